"""Predictions as lines, a table (.tsv) or JSON (.jsonl), and a file of them that a stopped call leaves whole.

A file `FILE` has its manifest beside it, in `FILE.json`: what the predictions depend on, as for certificates.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

from idrc_jax import data
from idrc_jax.certificates.confidence_bounds import ABSTAIN
from idrc_jax.core import append_only, files
from idrc_jax.core.append_only import AppendOnlyTable
from idrc_jax.core.json_values import Json, as_json, parsed, require
from idrc_jax.report import class_names
from idrc_jax.results.resume_check import same_guarantee

SUFFIXES = (".tsv", ".jsonl")
_SCHEMA_VERSION = 1
_SAID_SINCE = ("columns", "class_names")  # in manifests of later versions alone
_OTHERWISE = {"what": "predictions", "advice": "use another --out, or give these as they were"}
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def columns(dataset: data.Dataset, names: Sequence[str]) -> list[str]:
    """Those of a data set's predictions: labels, names of classes and files are there where they are known."""
    known = {"label": dataset.labelled, "correct": dataset.labelled, "class": bool(names), "file": bool(dataset.files)}
    return [name for name in ("idx", "label", "predict", "correct", "class", "file") if known.get(name, True)]


def row(dataset: data.Dataset, names: Sequence[str], index: int, predict: int) -> dict[str, int | str]:
    """One image's prediction, by the names of `columns`; the class of an abstention, -1, is "abstained"."""
    values = {
        "idx": int(index),
        "label": int(dataset.labels[index]),
        "predict": int(predict),
        "correct": int(predict == dataset.labels[index]),
        "class": class_names.name(names, int(predict)),
        "file": dataset.files[index] if dataset.files else "",
    }
    return {name: values[name] for name in columns(dataset, names)}


def as_tsv(values: Mapping[str, int | str]) -> str:
    """A row as a line of a table; tabs, newlines and backslashes are escaped."""
    return append_only.line([str(value).translate(_ESCAPED) for value in values.values()])


def as_json_line(values: Mapping[str, int | str]) -> str:
    """A row as a line of JSON."""
    return json.dumps(values, ensure_ascii=False) + "\n"


def tally(path: Path, indices: Collection[int]) -> tuple[int, int | None]:
    """How many of a file's predictions of these images are abstentions, and how many right; None without labels."""
    rows = _numbers(path, path.read_bytes().split(b"\n")[:-1])
    own = [row for row in rows if row["idx"] in indices]
    right = sum(row["correct"] for row in own) if all("correct" in row for row in own) else None
    return sum(row["predict"] == ABSTAIN for row in own), right


def _numbers(path: Path, lines: Sequence[bytes]) -> list[dict[str, int]]:
    """The numbers in the lines of a file, each row's by their names; ValueError unless they are predictions."""
    known = ("idx", "label", "predict", "correct")
    try:
        if path.suffix == ".tsv":
            names, *cells = (line.decode().split("\t") for line in lines)
            rows = [dict(zip(names, own, strict=True)) for own in cells]
        else:
            rows = [parsed(line) for line in lines]
        found = [{name: int(str(row[name])) for name in known if name in row} for row in rows]
        for row in found:
            if (
                row["idx"] < 0
                or row["predict"] < ABSTAIN
                or ("label" in row and row["correct"] != (row["predict"] == row["label"]))
            ):
                raise ValueError(f"a row that says {row}")
        if len({row["idx"] for row in found}) < len(found):
            raise ValueError("an image twice")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"Expected predictions in {path}, each image's once, got something else: {error}.") from None
    return found


def check_path(path: Path) -> None:
    """ValueError unless a path can be that of a file of predictions."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Expected --out to end in {' or '.join(SUFFIXES)}, got {path}.")
    if not path.parent.is_dir():
        raise ValueError(f"Expected --out in a folder that exists, got {path}.")


class PredictionFile:
    """A file of predictions being written; a context manager. Opening one that exists goes on from it.

    Attributes:
      done: images that have a row.

    Args:
      path: ends in one of `SUFFIXES`.
      dataset, names: whose images are classified, and what the classes are called.
      guarantee: all that the predictions depend on, as JSON values; `classes` among them.

    Raises:
      ValueError: predictions made under another guarantee (every difference is shown), a row of an image, label, class
        or name that is none of theirs, a file that is not one of these, or another process writes it.

    Guarantee: rows that are appended together are in the file whole or not at all, as `AppendOnlyTable` says.
    """

    def __init__(self, path: Path, dataset: data.Dataset, names: Sequence[str], guarantee: Json) -> None:
        self._path, self._manifest, self._guarantee = path, path.with_name(f"{path.name}.json"), as_json(guarantee)
        self._tsv = path.suffix == ".tsv"
        self._dataset, self._names = dataset, names
        self._table = AppendOnlyTable(path, columns(dataset, names) if self._tsv else (), self._go_on)
        self.done: set[int] = set()

    def __enter__(self) -> Self:
        self._table.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._table.__exit__(*error)

    def append(self, rows: Sequence[Mapping[str, int | str]]) -> None:
        """Write rows and wait until they are on the disk; OSError, and the file as it was, if that fails."""
        self._table.append("".join(map(self._line, rows)))
        self.done |= {int(one["idx"]) for one in rows}

    def _go_on(self, lines: list[bytes]) -> None:
        """Compare the guarantee with that of the rows that are there, and write the manifest, before the file changes.

        The file is locked: no other process can make it its own in between. A manifest of before says neither columns
        nor names of classes.
        """
        stored = files.read_manifest(self._manifest, _SCHEMA_VERSION, "the manifest of predictions")
        if stored is None and self._path.stat().st_size:
            raise ValueError(f"Expected {self._manifest} beside {self._path}, got none: choose another --out.")
        if stored is not None:
            require(stored, {"guarantee": {"scheme?": str}}, "", self._manifest)
        if stored is not None and lines[int(self._tsv) :]:
            said = {name: self._guarantee[name] for name in _SAID_SINCE if name in self._guarantee}
            same_guarantee(said | stored["guarantee"], self._guarantee, self._path, **_OTHERWISE)
        self.done = self._rows_of(lines)
        files.write_json(self._manifest, {"schema_version": _SCHEMA_VERSION, "guarantee": self._guarantee})

    def _rows_of(self, lines: list[bytes]) -> set[int]:
        """The images whose rows these lines are, the first of a table's its header."""
        header = append_only.line(columns(self._dataset, self._names))
        if self._tsv and lines and lines[0] != header[:-1].encode():
            raise ValueError(f"Expected predictions of these images in {self._path}, got something else.")
        found = _numbers(self._path, lines) if lines else []
        for one, line in zip(found, lines[int(self._tsv) :], strict=True):
            told = line.decode(errors="surrogateescape")
            if told != self._written(one["idx"], one["predict"]):
                raise ValueError(
                    f"Expected predictions of {self._dataset.source} in {self._path}, got a row that cannot be one, "
                    f"{told[:80]!r}: use another --out."
                )
        return {one["idx"] for one in found}

    def _written(self, index: int, predict: int) -> str | None:
        """The line of an image and its class; None where there is no such image or class."""
        if index >= len(self._dataset) or predict >= self._guarantee["classes"]:
            return None
        return self._line(row(self._dataset, self._names, index, predict))[:-1]

    def _line(self, values: Mapping[str, int | str]) -> str:
        return as_tsv(values) if self._tsv else as_json_line(values)
