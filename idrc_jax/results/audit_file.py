"""Writing an audit: the rows of an image are whole or not there, beside the manifest that they were found under."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from idrc_jax.core import append_only, files
from idrc_jax.core.append_only import AppendOnlyTable
from idrc_jax.core.json_values import Json, as_json, differences
from idrc_jax.results.audit_rows import COLUMNS, MANIFEST, NAME, Finding, line_of, read_manifest, read_rows


class FindingsFile:
    """An audit being written; a context manager. Opening one that exists goes on from it.

    Attributes:
      rows: those of the images that are done.
      manifest: as it is on the disk.

    Args:
      folder: existing.
      manifest: with all that the findings depend on under `settings`, which must be that of the rows already there.
      expected: rows of each image, by its index: those from the first image on that has another number are dropped.

    Raises:
      ValueError: rows made under other settings (every difference is shown) or without their manifest, or another
        process writes the file.

    Guarantee: an image's rows are in the file all or not at all once it has been opened again.
    """

    def __init__(self, folder: Path, *, manifest: Json, expected: Mapping[int, int]) -> None:
        self._folder, self._path, self._expected = folder, folder / NAME, expected
        self._table = AppendOnlyTable(self._path, COLUMNS, self._compare)
        self.manifest = as_json(manifest)
        self.rows: list[Finding] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._table)
            found = read_rows(self._path)
            counts = Counter(row.idx for row in found)
            self.rows = list(itertools.takewhile(lambda row: counts[row.idx] == self._expected.get(row.idx), found))
            self._table.cut(len(self.rows))
            self.write_manifest()
            opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._table.__exit__(*error)

    def _compare(self, _: list[bytes]) -> None:
        """Go on from the manifest that is there, once no other process can write and before the file changes."""
        stored = read_manifest(self._folder)
        if stored is None and append_only.has_rows(self._path):
            raise ValueError(f"Expected {MANIFEST} beside {self._path}, got none: use another folder.")
        if stored is not None:
            changed = differences(stored["settings"], self.manifest["settings"])
            if changed:
                raise ValueError(
                    f"Expected the settings of the audit in {self._folder}, got {changed}: use another folder."
                )
            self.manifest["sessions"] = [*stored["sessions"], *self.manifest["sessions"]]

    @property
    def done(self) -> set[int]:
        """Indices of the images that are done."""
        return {row.idx for row in self.rows}

    def append(self, rows: Sequence[Finding]) -> None:
        """Write the rows of one image and wait until they are on the disk; OSError, and the file as it was, if not."""
        self._table.append("".join(map(line_of, rows)))
        self.rows += rows

    def write_manifest(self, **more: object) -> None:
        """Write `audit.json` with these entries."""
        self.manifest |= more
        files.write_json(self._folder / MANIFEST, self.manifest)
