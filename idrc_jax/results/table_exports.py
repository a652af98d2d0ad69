"""Results for other tools: a pandas table, Parquet, and the six columns that other projects' analyses read."""

from pathlib import Path
from typing import Any

from idrc_jax.core import extras, files
from idrc_jax.results import result_rows
from idrc_jax.results.result_rows import Results
from idrc_jax.results.runs import norm_of


def to_pandas(read: Results) -> Any:
    """A `pandas.DataFrame` with a row an image and the file's columns; `attrs["manifest"]` is the manifest.

    `votes`, `differing` and `votes_by_level` are texts as in the file, `class:count,...`. ValueError without pandas.
    """
    try:
        import pandas as pd  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"Expected pandas, got no such package: {extras.how_to_get('tables')}.") from None
    columns = result_rows.columns_of(read.manifest["guarantee"]) if read.manifest is not None else result_rows.SIX
    table = pd.DataFrame({name: [getattr(row, name) for row in read.rows] for name in columns})
    for name in ("votes", "differing"):
        if name in table:
            table[name] = [result_rows.votes_text(getattr(row, name)) for row in read.rows]
    if "votes_by_level" in table:
        table["votes_by_level"] = [result_rows.levels_text(row.votes_by_level) for row in read.rows]
    table.attrs["manifest"] = read.manifest
    return table


def write_parquet(read: Results, path: Path) -> None:
    """`to_pandas` as a Parquet file, whole or not at all; pandas reads the manifest back with it."""
    table = to_pandas(read)
    try:
        with files.replacing(path) as partial:
            table.to_parquet(partial, index=False)
    except ImportError:
        raise ValueError(f"Expected pyarrow, got no such package: {extras.how_to_get('tables')}.") from None


def write_log(read: Results, path: Path) -> None:
    """The field's six columns in full precision, abstain = -1, time in seconds; `read_results` gives the same back.

    `radius` is the valid one, `nan` where there is none, which comparisons count as not certified. ValueError for
    images without labels: the column `correct` would tell an accuracy of 0.
    """
    if not read.labelled:
        raise ValueError(f"Expected labels in {read.path} for a log whose rows say what is correct, got none.")
    if norm_of([read]) != "l2":
        raise ValueError(
            f"Expected l2 radii in {read.path} for a log, whose columns name no norm, got {norm_of([read])}."
        )
    lines = ["\t".join(repr(getattr(row, name)) for name in result_rows.SIX) for row in read.rows]
    files.write_text(path, "\n".join(["\t".join(result_rows.SIX), *lines, ""]))
