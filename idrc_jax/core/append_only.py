"""Tables that are only ever appended to: locked while they are written, whole after every crash."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from idrc_jax.core import files


class AppendOnlyTable:
    """A text table, a header and rows with tabs between columns, while this process alone writes it; without columns it
    has rows alone.

    A context manager. Entering it opens the file, locks it, cuts off what a crash left half-written and blank lines at
    the end, and gives a new file its header. ValueError if another process writes it.

    Args:
      path: of the file.
      columns: their names; none for a table of rows alone.
      check: called with the whole lines that are there, once the file is locked and before anything in it changes.
      others: columns of tables of the same kind, whose header is replaced where no row follows it.

    Guarantee: what is appended together is in the file whole, and on the disk, or not at all when the disk is full; a
    process killed meanwhile leaves whole rows and at most one torn line, which readers leave out and the next writer
    cuts off.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        check: Callable[[list[bytes]], None] = lambda _: None,
        others: Iterable[Sequence[str]] = (),
    ) -> None:
        self._path, self._header, self._check = path, line(columns) if columns else "", check
        self._others = [list(one) for one in others if one != columns]

    def __enter__(self) -> Self:
        self._file = self._path.open("a+b", buffering=0)
        try:
            files.lock_or_refuse(self._file.fileno(), self._path)
            whole = self._whole_lines()
            self._check(whole)
            if len(whole) == 1 and whole[0].decode(errors="replace").split() in self._others:
                whole = []
            self._keep(whole)
            if not whole:
                self.append(self._header)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, lines: str) -> None:
        """Write whole lines and wait until they are on the disk; OSError, and the file as it was, if that fails."""
        before, data = os.fstat(self._file.fileno()).st_size, lines.encode()
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

    def cut(self, rows: int) -> None:
        """Keep the first `rows` rows alone."""
        self._keep(self._whole_lines()[: 1 + rows])

    def _whole_lines(self) -> list[bytes]:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")[:-1]
        while lines and not lines[-1].strip():
            lines.pop()
        return lines

    def _keep(self, lines: Sequence[bytes]) -> None:
        """End the file behind these lines, its first ones."""
        self._file.truncate(sum(len(one) + 1 for one in lines))


def line(values: Sequence[str]) -> str:
    """The line of a table that has these values."""
    return "\t".join(values) + "\n"


def has_rows(path: Path) -> bool:
    """Whether a table has more than its header; False where there is none."""
    return path.is_file() and path.read_bytes().count(b"\n") > 1
