"""Writing result files: rows that are whole or not there, many workers, their union."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from idrc_jax.core import append_only, files
from idrc_jax.core.append_only import AppendOnlyTable
from idrc_jax.core.json_values import Json, as_json
from idrc_jax.results.manifest import MANIFEST, SCHEMA_VERSION, Manifest, flags, networks, read_manifest
from idrc_jax.results.recertify import check, read_results
from idrc_jax.results.result_rows import (
    NAME,
    OURS,
    Results,
    Row,
    columns_of,
    line_of,
    read_as_it_is,
    write,
)
from idrc_jax.results.resume_check import guarantee_differences, same_guarantee

_OTHER_RUN = "only files of one run can be united, and here"
_FILE = re.compile(r"certificates(\.\d+-of-\d+)?\.tsv")


class ResultsFile:
    """A result file being written; a context manager. Opening one that exists goes on from it.

    Workers write a file each into one folder, under one manifest.

    Attributes:
      done: images that have a row in any file of the folder, and those appended since.

    Args:
      workdir: existing folder for the file and its manifest.
      guarantee: all that the certificates depend on, as JSON values; must be that of the rows already there.
      session: provenance of this call, kept in the manifest.
      name: of the file.
      check_rows: called with the rows of each file that is there, before anything changes.

    Raises:
      ValueError: rows made under another guarantee (every difference is shown) or without their manifest, rows that do
        not follow from their votes (see `read_results`), or another process writes the file.

    Guarantee: a row is in the file whole or not at all, also when the process is killed or the disk is full.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        guarantee: Json,
        session: Json,
        name: str = NAME,
        check_rows: Callable[[Results], None] = lambda _: None,
    ) -> None:
        self._workdir, self._guarantee, self._session = workdir, as_json(guarantee), as_json(session)
        self._path, self._check_rows = workdir / name, check_rows
        self._table = AppendOnlyTable(self._path, columns_of(self._guarantee), others=OURS)
        self._confirmed = False
        self.done: set[int] = set()

    def __enter__(self) -> Self:
        with files.folder_lock(self._workdir), contextlib.ExitStack() as opened:
            manifest = self._manifest()
            if not self._path.exists():
                opened.callback(self._path.unlink, missing_ok=True)  # unless all goes well
            opened.enter_context(self._table)
            self.done = self._rows_there()
            files.write_json(self._workdir / MANIFEST, manifest)
            opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._table.__exit__(*error)

    def note(self, more: Json) -> None:
        """Add to what the manifest says of this call, unless it is of another guarantee by now."""
        with files.folder_lock(self._workdir):
            manifest = read_manifest(self._workdir)
            session = self._session | as_json(more)
            if manifest and not guarantee_differences(manifest["guarantee"], self._guarantee):
                sessions = manifest["sessions"]
                place = sessions.index(self._session) if self._session in sessions else len(sessions)
                manifest["sessions"] = [*sessions[:place], session, *sessions[place + 1 :]]
                files.write_json(self._workdir / MANIFEST, manifest)
            self._session = session

    def append(self, row: Row) -> None:
        """Write a row and wait until it is on the disk; OSError, and the file as it was, if that fails.

        Before this process's first row the manifest is compared once more: while there were none, a worker with
        another guarantee could make it its own.
        """
        if self._confirmed:
            self._table.append(line_of(row))
        else:
            with files.folder_lock(self._workdir):
                self._compare(read_manifest(self._workdir))
                self._table.append(line_of(row))
            self._confirmed = True
        self.done.add(row.idx)

    def _manifest(self) -> Manifest:
        stored = read_manifest(self._workdir)
        if not _rows_under_manifest(self._workdir) and (stored is None or stored["guarantee"] != self._guarantee):
            stored = Manifest(schema_version=SCHEMA_VERSION, guarantee=self._guarantee, sessions=[])
        if stored is None:
            raise ValueError(f"Expected {MANIFEST} beside the rows in {self._workdir}, got none: use another workdir.")
        self._compare(stored)
        return {**stored, "guarantee": self._guarantee, "sessions": [*stored["sessions"], self._session]}

    def _compare(self, stored: Manifest | None) -> None:
        """ValueError unless the manifest has the guarantee of this call."""
        made, named = (stored["guarantee"], flags(networks(stored))) if stored else ({}, "")
        same_guarantee(made, self._guarantee, self._workdir, networks=named)

    def _rows_there(self) -> set[int]:
        """The images that have a row in any file of the folder."""
        there: set[int] = set()
        for path in result_files(self._workdir):
            read, _ = read_as_it_is(path)
            if read.rows and read.manifest is None:
                raise ValueError(f"Expected all columns of this project in {path}, to go on from it, got only six.")
            if read.rows:
                check(read)
                self._check_rows(read)
            there |= {row.idx for row in read.rows}
        return there


def of_one_worker(path: Path) -> bool:
    """Whether a result file is by its name one worker's of several."""
    found = _FILE.fullmatch(path.name)
    return found is not None and found[1] is not None


def result_files(folder: Path) -> list[Path]:
    """A run's result files: `certificates.tsv` and those of its workers (see `worker_file`), no copies of them."""
    return sorted(path for path in folder.glob("certificates*.tsv") if _FILE.fullmatch(path.name))


def _rows_under_manifest(folder: Path) -> bool:
    """Whether any table of the folder, whatever its name, has rows that its manifest is about."""
    headers = tuple(append_only.line(columns).encode() for columns in OURS)
    tables = [path for path in folder.glob("*.tsv") if path.is_file() and path.read_bytes().startswith(headers)]
    return any(map(append_only.has_rows, {*tables, *result_files(folder)}))


def worker_file(index: int, count: int) -> str:
    """The name of a worker's result file; that of a single one is `certificates.tsv`."""
    return NAME if count == 1 else f"certificates.{index}-of-{count}.tsv"


def merge(paths: Iterable[Path], out: Path) -> None:
    """Unite result files of one guarantee into `out/certificates.tsv`, sorted by index.

    A file already at `out` is one of the inputs, so nothing is lost. Rows of the same image must agree in all
    but `time`.

    Raises:
      ValueError: a file without a manifest, another guarantee, rows that disagree, or a process that writes to
        `out/certificates.tsv`.
    """
    paths = [Path(path) for path in paths]
    with contextlib.ExitStack() as held:
        if out.is_dir():
            held.enter_context(files.folder_lock(out))
        if (out / NAME).is_file():
            there = held.enter_context((out / NAME).open("r+b"))
            files.lock_or_refuse(there.fileno(), out / NAME)
            paths.append(out / NAME)
        rows: dict[int, tuple[Row, Path]] = {}
        manifest: Manifest | None = None
        for path in paths:
            read = read_results(path)
            if read.manifest is None:
                raise ValueError(f"Expected {MANIFEST} beside {read.path} and all columns in it, got a mere log.")
            manifest = manifest or {**read.manifest, "sessions": []}
            same_guarantee(manifest["guarantee"], read.manifest["guarantee"], read.path, advice=_OTHER_RUN)
            manifest["sessions"] += [one for one in read.manifest["sessions"] if one not in manifest["sessions"]]
            for row in read.rows:
                other, origin = rows.setdefault(row.idx, (row, read.path))
                if not _agree(row, other):
                    raise ValueError(
                        f"Expected one result for image {row.idx}, got two that differ, in {origin} and {read.path}: "
                        "merge files of one kind of device, or certify the images of one of them again."
                    )
        if manifest is None:
            raise ValueError(f"Expected result files to unite into {out}, got none.")
        stored = read_manifest(out)
        if stored is not None and _rows_under_manifest(out):
            same_guarantee(stored["guarantee"], manifest["guarantee"], out, advice=_OTHER_RUN)
        write([rows[idx][0] for idx in sorted(rows)], manifest, out)


def _agree(row: Row, other: Row) -> bool:
    same_time = dataclasses.replace(row, time=other.time)
    return line_of(same_time) == line_of(other)
