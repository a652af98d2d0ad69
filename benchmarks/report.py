"""What a measurement leaves: a JSON file, and from it alone a Markdown page and a figure.

Command:   python -m benchmarks.report benchmarks/results/NAME.json        (renders it anew)
"""

import argparse
import io
import re
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import contest, instructions
from idrc_jax.core import files

RESULTS = Path(__file__).parent / "results"
_COLOURS = {contest.OURS: "#0072B2", contest.TORCH: "#D55E00", contest.ART: "#009E73"}
_MARKERS = {"float32": "o", "bfloat16": "s", "autocast": "^"}
_COLUMNS = {
    "contender": "contender", "asked": "asked for", "dtype": "type", "layout": "layout", "devices": "devices, threads",
    "batch": "batch, chunk", "kernel": "kernel", "size": "size", "n": "n", "median": "median",
    "quartiles": "quartiles", "steps": "steps/s", "tflops": "TFLOP/s", "percent_of_product": "% of a product",
    "gb_s": "GB/s layer by layer", "percent_of_copy": "% of a copy",
    "peak_rss_mib": "peak memory, MiB",
    "device_mib": "device memory, MiB",
}  # fmt: skip

Result = dict[str, Any]


class Report:
    """A result that is written whole after every change, so that a run that is cut off leaves what it has.

    Args:
      folder: of the files.
      name: of the files, without ending.
      head: the result's first entries: `title`, `command`, `machine`, `settings` ...
    """

    def __init__(self, folder: Path, name: str, head: Result) -> None:
        files.make_folder(folder)
        self._stem = folder / name
        self.result: Result = {"format": 1, "name": name, **head, "finished": False, "tables": []}

    def table(self, title: str, unit: str, x: str = "") -> dict[str, Any]:
        """A new table; `x` is the row's entry that a figure has on its axis."""
        self.result["tables"].append({"title": title, "unit": unit, "x": x, "rows": [], "ratios": [], "left_out": {}})
        return self.result["tables"][-1]

    def save(self) -> None:
        """Write JSON and Markdown."""
        files.write_json(self._stem.with_name(f"{self._stem.name}.json"), self.result)
        files.write_text(self._stem.with_name(f"{self._stem.name}.md"), markdown(self.result))

    def finish(self, *, whole: bool = True) -> None:
        """Write all of it, the figure too; `whole` unless the run was cut off."""
        self.result["finished"] = whole
        self.save()
        draw(self.result, self._stem.with_name(f"{self._stem.name}.png"))
        print(f"Results: {self._stem}.json, .md, .png")


def slug(text: str) -> str:
    """A name for files: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def markdown(result: Result) -> str:
    """The page of a result."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    kinds = sorted({row["kind"] for table in result["tables"] for row in table["rows"] if row["platform"] != "cpu"})
    cpu = ", ".join(filter(None, (machine["cpu"], machine.get("microarchitecture", ""))))
    where = ", ".join([*kinds, f"{cpu} ({', '.join(machine['instructions'])})", f"{machine['cores']} cores"])
    lines = [
        f"# {_with_instructions(result, result['title'])}\n",
        f"`{result['command']}`, {machine['started']}, commit {machine['commit'] or 'unknown'}\n",
        f"{where}; {machine['memory_gib']} GiB; {machine['system']}; Python {machine['python']}; {versions}. "
        f"Load before: {machine['load_before']}.\n",
        ", ".join(f"{name} {value}" for name, value in result["settings"].items()) + "\n",
    ]
    lines += _instructions(result)
    if not result["finished"]:
        lines.append("**The run was cut off: what it had measured until then.**\n")
    for title, rows in result.get("summaries", {}).items():
        lines += _summary(_with_instructions(result, title), rows)
    for table in result["tables"]:
        lines += _table(table, _with_instructions(result, table["title"]))
    for title, facts in result.get("facts", {}).items():
        lines += [f"## {title}\n", "| | |", "|---|---|"]
        lines += [f"| {name.replace('_', ' ')} | {_number(value)} |" for name, value in facts.items()]
        lines.append("")
    lines += [f"* {note}" for note in result.get("notes", [])]
    return "\n".join(lines).rstrip() + "\n"


def _with_instructions(result: Result, title: str) -> str:
    """A title that says the instruction set; results of before 2026-11 do not."""
    name = instructions.NAMES.get(result.get("instruction_set", ""), "")
    return f"{title}, {name}" if name else title


def _instructions(result: Result) -> list[str]:
    """What the contenders were held to, and what was seen of it."""
    forced = result.get("forced_by")
    if not forced:
        return []
    name = instructions.NAMES[result["instruction_set"]]
    rows = [row for table in result["tables"] for row in table["rows"]]
    said = sorted({f"{row['contender']} says {row['says']}" for row in rows if row.get("says")})
    seen = "The system does not tell whether registers of AVX-512 were in use."
    looked = [row for row in rows if row.get("avx512") is not None]
    wide = list(dict.fromkeys(row["name"] for row in looked if row["avx512"]))
    if looked:
        seen = f"The system saw registers of AVX-512 in use in the turns of {'; '.join(wide) or 'none'}."
    lines = [f"{' '.join([f'{name}, forced on all.', *(f'{one}.' for one in said), seen])}\n"]
    lines += [f"**Not all kept to {name}.**\n"] if wide else []
    return [*lines, f"By {', '.join(f'`{key}={value}`' for key, value in forced.items())}.\n"]


def _summary(title: str, rows: list[dict[str, Any]]) -> list[str]:
    """A table whose columns are the entries of its rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"## {title}\n", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return [*lines, *(f"| {' | '.join(_number(row.get(column, '')) for column in columns)} |" for row in rows), ""]


def _table(table: dict[str, Any], title: str) -> list[str]:
    lines = [f"## {title}, {table['unit']}\n"]
    rows = [row | {"quartiles": f"{_number(row['q1'])} – {_number(row['q3'])}"} for row in table["rows"]]
    filled = {column for row in rows for column, value in row.items() if value != ""}
    shown = [column for column in _COLUMNS if column in filled and (column != "size" or table["x"] == "size")]
    if rows:
        lines.append(f"| {' | '.join(_COLUMNS[column] for column in shown)} |")
        lines.append("|---" * len(shown) + "|")
        lines += [f"| {' | '.join(_number(row.get(column, '')) for column in shown)} |" for row in rows]
        lines.append("")
    if table["ratios"]:
        lines += ["| | against | ratio | quartiles |", "|---|---|---|---|"]
        lines += [
            f"| {one['of']} | {one['to']} | {one['median']:.2f} | {one['q1']:.2f} – {one['q3']:.2f} |"
            for one in table["ratios"]
        ]
        lines.append("")
    lines += [f"Left out: {name}: {why}\n" for name, why in table["left_out"].items()]
    return lines


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 100 else f"{value:.1f}"


def draw(result: Result, path: Path) -> None:
    """A panel a table: bars, or curves over its `x`; whiskers are quartiles. In 256 colours, a third of the bytes."""
    tables = [table for table in result["tables"] if table["rows"]]
    if not tables:
        return
    heights = [2.5 if table["x"] else 0.6 + 0.28 * len(table["rows"]) for table in tables]
    figure = Figure(layout="constrained", figsize=(8, 0.8 * len(tables) + sum(heights)))
    panels = figure.subplots(len(tables), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        (_curves if table["x"] else _bars)(axes, table)
        axes.set_title(_with_instructions(result, table["title"]), fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)


def _bars(axes: Axes, table: dict[str, Any]) -> None:
    rows = table["rows"]
    for position, row in enumerate(rows):
        whiskers = [[row["median"] - row["q1"]], [row["q3"] - row["median"]]]
        half = row["dtype"] != "float32"
        axes.barh(
            position, row["median"], xerr=whiskers, color=_COLOURS[row["contender"]], hatch="//" if half else "",
            edgecolor="white", ecolor="black", capsize=2,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_label(row, batch=True) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(table["unit"])


def _curves(axes: Axes, table: dict[str, Any]) -> None:
    x = table["x"]
    for label in dict.fromkeys(_label(row) for row in table["rows"]):
        rows = [row for row in table["rows"] if _label(row) == label]
        median = [row["median"] for row in rows]
        whiskers = [[row["median"] - row["q1"] for row in rows], [row["q3"] - row["median"] for row in rows]]
        axes.errorbar(
            [row[x] for row in rows], median, whiskers, label=label, color=_COLOURS[rows[0]["contender"]], capsize=2,
            marker=_MARKERS[rows[0]["dtype"]], linestyle="-" if rows[0]["dtype"] == "float32" else "--",
        )  # fmt: skip
    values = sorted({row[x] for row in table["rows"]})
    axes.set(xlabel=_COLUMNS[x], ylabel=table["unit"])
    if x == "n":
        axes.set(xscale="log", yscale="log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(values, [_number(value) for value in values], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=8, frameon=False)


def _label(row: dict[str, Any], *, batch: bool = False) -> str:
    parts = [
        row["contender"],
        row.get("asked", ""),
        row["dtype"],
        row["layout"],
        f"batch {row['batch']}" if batch else "",
    ]
    return ", ".join(filter(None, parts))


def main() -> None:
    import json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    result = json.loads(path.read_text())
    files.write_text(path.with_suffix(".md"), markdown(result))
    draw(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
