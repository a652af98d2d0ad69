"""Certification results on disk: one TSV row an image, and a manifest beside it.

`certificates.tsv` starts with the six columns of the field (`idx label predict radius correct time`, abstain =
-1), so that other projects' tools read it, and goes on with what recomputes every radius. Numbers are
written in full precision. `manifest.json` holds the settings that the certificates depend on (`guarantee`,
compared whenever a run goes on) and one entry a call (`sessions`: versions, devices, date; never compared).
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from idrc_jax import _files, plans, schemes, statistics
from idrc_jax.certificates import Certificate

SCHEMA_VERSION = 1
NAME = "certificates.tsv"
MANIFEST = "manifest.json"
_FILE = re.compile(r"certificates(\.\d+-of-\d+)?\.tsv")
UNLABELLED = -1


@dataclass(frozen=True)
class Row:
    """One image. The fields after `time` are None in other projects' six-column logs.

    Attributes:
      idx, label: of the image in its data set; label -1 where it is unknown.
      predict: the class, or -1 (abstain).
      radius: valid l2 radius in pixel units; nan where the scheme has no certificate.
      correct: 1 where `predict` is the label, else 0, also where the label is unknown (see `is_correct`).
      time: seconds.
      radius_published: the paper's radius.
      selected: class chosen by the n0 selection votes, -1 for none.
      statistic: the image's statistic under the scheme.
      sigma_x: the noise level.
      p_lower: lower bound on the probability of `selected`.
      n, n0: estimation and selection samples.
      votes: estimation votes by class, zeros left out; -1 counts the votes with logits that were not finite.
    """

    idx: int
    label: int
    predict: int
    radius: float
    correct: int
    time: float
    radius_published: float | None = None
    selected: int | None = None
    statistic: float | None = None
    sigma_x: float | None = None
    p_lower: float | None = None
    n: int | None = None
    n0: int | None = None
    votes: dict[int, int] | None = None

    @classmethod
    def from_certificate(cls, certificate: Certificate, idx: int, label: int, seconds: float) -> Self:
        """The row of a certificate."""
        *classes, non_finite = certificate.votes
        votes = {number: count for number, count in enumerate(classes) if count}
        if non_finite:
            votes[-1] = non_finite
        return cls(
            idx=idx,
            label=label,
            correct=is_correct(label, certificate.predict),
            time=round(seconds, 3),
            **{name: getattr(certificate, name) for name in _SHARED},
            votes=votes,
        )


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
SIX = COLUMNS[:6]
_SHARED = [field.name for field in dataclasses.fields(Certificate) if field.name in COLUMNS and field.name != "votes"]
_INTEGERS = {"idx", "label", "predict", "correct", "selected", "n", "n0"}
_BOOLEANS = {"True": 1, "False": 0}


@dataclass(frozen=True)
class Results:
    """A result file: its rows in file order, the manifest beside it (None for six-column logs), where it is."""

    rows: tuple[Row, ...]
    manifest: dict[str, Any] | None
    path: Path

    @property
    def labelled(self) -> bool:
        """Whether the images' true classes are known."""
        return all(row.label != UNLABELLED for row in self.rows)


def read_results(path: str | Path) -> Results:
    """Read a result file of this project, or a six-column log of another.

    Args:
      path: the file, or a run's folder. In six-column logs `time` is seconds or h:mm:ss, after days if there are any,
        and `correct` may be True or False.

    Rows whose `correct` contradicts label and predict, as in logs that write a running total there or 1 for an
    abstention, get the one that follows from these (`is_correct`), and a warning counts them. A last line without its
    newline, in a file of this project, was cut off by a crash: it is left out with a warning.

    Raises:
      ValueError: no such file, an unknown header, a malformed line (named), an index that comes twice, or rows of
        another noise level, another number of samples or another plan than those of the manifest beside them.
    """
    path = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(f"Expected a result file at {path}, got no such file.")
    found, whole = _read(path)
    if not whole:
        warnings.warn(f"The last line of {path} was cut off by a crash and is left out.", stacklevel=2)
    rows = tuple(dataclasses.replace(row, correct=is_correct(row.label, row.predict)) for row in found.rows)
    changed = sum(new.correct != old.correct for new, old in zip(rows, found.rows, strict=True))
    if changed:
        warnings.warn(
            f"In {changed} of the {len(rows)} rows of {path} the column correct contradicts label and predict: it is "
            "taken from these.",
            stacklevel=2,
        )
    return dataclasses.replace(found, rows=rows)


def is_correct(label: int, predict: int) -> int:
    """1 where the prediction is the label, 0 elsewhere and for every abstention, also of an image without a label."""
    return int(predict == label != statistics.ABSTAIN)


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

    Raises:
      ValueError: rows made under another guarantee (every difference is shown) or without their manifest, or another
        process writes the file.

    Guarantee: a row is in the file whole or not at all, also when the process is killed or the disk is full.
    """

    def __init__(self, workdir: Path, *, guarantee: dict[str, Any], session: dict[str, Any], name: str = NAME) -> None:
        self._workdir, self._guarantee, self._session = workdir, as_json(guarantee), as_json(session)
        self._path = workdir / name
        self._confirmed = False
        self.done: set[int] = set()

    def __enter__(self) -> Self:
        with _files.folder_lock(self._workdir):
            manifest = self._manifest()
            existed = self._path.exists()
            self._file = self._path.open("a+b", buffering=0)
            try:
                _files.lock_or_refuse(self._file.fileno(), self._path)
                self._repair()
                _files.write_json(self._workdir / MANIFEST, manifest)
            except BaseException:
                self._file.close()
                if not existed:
                    self._path.unlink()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def note(self, more: dict[str, Any]) -> None:
        """Add to what the manifest says of this call."""
        with _files.folder_lock(self._workdir):
            manifest = _read_manifest(self._workdir)
            session = self._session | as_json(more)
            if manifest and self._session in manifest["sessions"]:
                manifest["sessions"][manifest["sessions"].index(self._session)] = session
                _files.write_json(self._workdir / MANIFEST, manifest)
            self._session = session

    def append(self, row: Row) -> None:
        """Write a row and wait until it is on the disk; OSError, and the file as it was, if that fails.

        Before this process's first row the manifest is compared once more: while there were none, a worker with
        another guarantee could make it its own.
        """
        if self._confirmed:
            self._write(_line(row))
        else:
            with _files.folder_lock(self._workdir):
                stored = _read_manifest(self._workdir)
                _same_guarantee(stored["guarantee"] if stored else {}, self._guarantee, self._workdir)
                self._write(_line(row))
            self._confirmed = True
        self.done.add(row.idx)

    def _manifest(self) -> dict[str, Any]:
        stored = _read_manifest(self._workdir)
        if not any(map(has_rows, files(self._workdir))) and (stored is None or stored["guarantee"] != self._guarantee):
            stored = {"schema_version": SCHEMA_VERSION, "guarantee": self._guarantee, "sessions": []}
        if stored is None:
            raise ValueError(f"Expected {MANIFEST} beside the rows in {self._workdir}, got none: use another workdir.")
        _same_guarantee(stored["guarantee"], self._guarantee, self._workdir)
        return stored | {"guarantee": self._guarantee, "sessions": [*stored["sessions"], self._session]}

    def _repair(self) -> None:
        """Cut off what a crash left half-written and blank lines at the end, and write the header of a new file."""
        self._file.seek(0)
        content = self._file.read()
        lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
        while lines and not lines[-1].strip():
            lines.pop()
        whole = sum(len(line) + 1 for line in lines)
        if whole < len(content):
            self._file.truncate(whole)
        if whole == 0:
            self._write("\t".join(COLUMNS) + "\n")
        self.done = set()
        for path in files(self._workdir):
            read, _ = _read(path)
            if read.rows and read.manifest is None:
                raise ValueError(f"Expected all columns of this project in {path}, to go on from it, got only six.")
            self.done |= {row.idx for row in read.rows}

    def _write(self, line: str) -> None:
        before = os.fstat(self._file.fileno()).st_size
        data = line.encode()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes fitted")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(before)
            raise OSError(
                f"Expected to write a row to {self._path}, got: {error}. Finished rows are kept: free space, run again."
            ) from error


def files(folder: Path) -> list[Path]:
    """A run's result files: `certificates.tsv` and those of its workers (see `worker_file`), no copies of them."""
    return sorted(path for path in folder.glob("certificates*.tsv") if _FILE.fullmatch(path.name))


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
            held.enter_context(_files.folder_lock(out))
        if (out / NAME).is_file():
            there = held.enter_context((out / NAME).open("r+b"))
            _files.lock_or_refuse(there.fileno(), out / NAME)
            paths.append(out / NAME)
        rows: dict[int, tuple[Row, Path]] = {}
        manifest: dict[str, Any] = {}
        for path in paths:
            read = read_results(path)
            if read.manifest is None:
                raise ValueError(f"Expected {MANIFEST} beside {read.path} and all columns in it, got a mere log.")
            manifest = manifest or read.manifest | {"sessions": []}
            _same_guarantee(manifest["guarantee"], read.manifest["guarantee"], read.path)
            manifest["sessions"] += [one for one in read.manifest["sessions"] if one not in manifest["sessions"]]
            for row in read.rows:
                other, origin = rows.setdefault(row.idx, (row, read.path))
                if not _agree(row, other):
                    raise ValueError(
                        f"Expected one result for image {row.idx}, got two that differ, in {origin} and {read.path}: "
                        "merge files of one kind of device, or certify the images of one of them again."
                    )
        write([rows[idx][0] for idx in sorted(rows)], manifest, out)


def write(rows: Iterable[Row], manifest: dict[str, Any], out: Path) -> None:
    """Write rows and their manifest into a folder, replacing what is there."""
    _files.make_folder(out)
    _files.write_text(out / NAME, "\t".join(COLUMNS) + "\n" + "".join(_line(row) for row in rows))
    _files.write_json(out / MANIFEST, manifest)


def _line(row: Row) -> str:
    values = [repr(getattr(row, name)) for name in COLUMNS[:-1]]
    return "\t".join([*values, votes_text(row.votes)]) + "\n"


def votes_text(votes: dict[int, int] | None) -> str:
    """`class:count,...`, as the column has it."""
    return ",".join(f"{number}:{count}" for number, count in (votes or {}).items())


def _agree(row: Row, other: Row) -> bool:
    same_time = dataclasses.replace(row, time=other.time)
    return _line(same_time) == _line(other)


def _read(path: Path) -> tuple[Results, bool]:
    """The file as it is, and whether its last line was whole; ValueError for rows that contradict the manifest."""
    columns, rows, whole = _read_rows(path)
    manifest = _read_manifest(path.parent) if columns == COLUMNS else None
    if manifest is not None and rows:
        _check_rows(rows, manifest, path)
    return Results(rows, manifest, path), whole


def _read_rows(path: Path) -> tuple[tuple[str, ...], tuple[Row, ...], bool]:
    """Header, rows, and whether the last line was whole."""
    try:
        lines = _files.read_text(path).split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"Expected a text file of results, got {path}.") from None
    columns = tuple(lines[0].split("\t"))
    if columns not in (COLUMNS, SIX):
        raise ValueError(f"Expected a header {' '.join(SIX)} (and ours beyond) in {path}, got {lines[0][:80]!r}.")
    whole = columns == SIX or lines[-1] == ""
    body = lines[1:] if whole else lines[1:-1]
    while body and not body[-1].strip():
        body.pop()
    rows: dict[int, Row] = {}
    for number, line in enumerate(body, start=2):
        try:
            row = _parse(columns, line)
        except ValueError as error:
            raise ValueError(f"Expected {len(columns)} columns of numbers in {path}, line {number}: {error}.") from None
        if row.idx in rows:
            raise ValueError(f"Expected each image once in {path}, got {row.idx} again in line {number}.")
        rows[row.idx] = row
    return columns, tuple(rows.values()), whole


def _check_rows(rows: tuple[Row, ...], manifest: dict[str, Any], path: Path) -> None:
    """ValueError unless the noise levels and numbers of samples are those of the manifest's scheme and plan."""
    try:
        made = manifest["guarantee"]
        plan = plans.from_description(made)
        # The level of a user's own scheme is known to that scheme alone.
        scheme = schemes.from_description(made) if made["scheme"] in schemes.SCHEMES else None
    except (KeyError, TypeError) as error:
        raise ValueError(f"Expected a whole manifest beside {path}, got one without {error}.") from None
    looks = set(plan.looks())
    levels = [row.sigma_x for row in rows]
    if scheme is not None:
        levels = schemes.drawn_level(scheme, [row.statistic for row in rows]).tolist()
    for row, level in zip(rows, levels, strict=True):
        if row.n not in looks or row.n0 != plan.selection or row.sigma_x != level:
            raise ValueError(
                f"Expected rows under {MANIFEST} in {path}, with n at most {plan.n}, n0 = {plan.selection} (plan "
                f"{plan.name}) and sigma_x = {level}, got n = {row.n}, n0 = {row.n0}, sigma_x = {row.sigma_x} for "
                f"image {row.idx}: it is a file of another run."
            )


def _parse(columns: tuple[str, ...], line: str) -> Row:
    texts = line.split("\t")
    if len(texts) != len(columns):
        raise ValueError(f"got {len(texts)} columns")
    values: dict[str, Any] = {}
    for name, text in zip(columns, texts, strict=True):
        if name == "votes":
            values[name] = {int(c): int(k) for c, k in (pair.split(":") for pair in text.split(",") if pair)}
        elif name in _INTEGERS:
            values[name] = _BOOLEANS[text] if text in _BOOLEANS and name == "correct" else int(text)
        else:
            values[name] = _seconds(text) if name == "time" else float(text)
    for name in ("radius", "radius_published", "time"):
        value = values.get(name, 0.0)
        if value < 0 or math.isinf(value) or (name == "time" and math.isnan(value)):
            raise ValueError(f"got {name} = {value}, which is not finite and >= 0")
    return Row(**values)


def _seconds(text: str) -> float:
    """Seconds, or h:mm:ss with a fraction and, where there are any, days: `1 day, 2:03:04`."""
    days, _, clock = text.rpartition(", ")
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return 86_400 * int(days.removesuffix("s").removesuffix(" day") or 0) + total


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    return _files.read_manifest(folder / MANIFEST, SCHEMA_VERSION, "a manifest of this project")


def _same_guarantee(stored: dict[str, Any], asked: dict[str, Any], where: Path) -> None:
    changed = guarantee_differences(stored, asked)
    if changed:
        raise ValueError(f"Expected the settings of the certificates in {where}, got {changed}: use another workdir.")


def guarantee_differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """`differences` of two guarantees; one that names no generator is older than the naming of JAX's default."""
    return differences(*({"generator": "threefry2x32"} | one for one in (stored, asked)))


def differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """`name was x, is y; ...` over the entries that differ; empty when none does."""
    return "; ".join(
        f"{name} was {stored.get(name, 'unset')}, is {asked.get(name, 'unset')}"
        for name in sorted(stored.keys() | asked.keys())
        if stored.get(name) != asked.get(name)
    )


def has_rows(path: Path) -> bool:
    """Whether a results file has more than its header; False where there is none."""
    return path.is_file() and path.read_bytes().count(b"\n") > 1


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """The values as a JSON file gives them back."""
    return json.loads(json.dumps(value))
