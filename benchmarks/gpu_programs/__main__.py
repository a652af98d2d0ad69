"""Compile what the commands run for GPUs that are not there, count it, hold it against `limits.json`.

Command:   make gpu-check            (the main figures; ARGS=--all: every program on every card)
"""

import argparse
import importlib.metadata
import json
import re
import sys
import time
from pathlib import Path

import jax

from benchmarks.gpu_programs import compilation, counting, examples, hlo, programs, report
from benchmarks.gpu_programs.cards import CARDS, Card
from idrc_jax.core import files

# What is compiled without --all: (program, devices) for a card.
_MAIN = {
    "h100": [
        ("certify, ResNet-110, bfloat16", 1),
        ("certify, ResNet-20, bfloat16", 1),
        ("certify, ResNet-20, float32", 1),
        ("certify, ResNet-20, bfloat16", 8),
        ("train, ResNet-20 (by kernel), bfloat16", 1),
        ("train, ResNet-20, bfloat16", 8),
        ("train, ResNet-20 (statistics of a device), bfloat16", 8),
    ],
    "a100": [("certify, ResNet-20, bfloat16", 1)],
    "rtx_3050": [("certify, ResNet-20, float32", 1)],
}


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_programs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--all", action="store_true", help="every program, on 1 and 8 devices of every card")
    flags.add_argument("--cards", nargs="+", choices=sorted(CARDS), help="with --all: these cards")
    flags.add_argument("--devices", nargs="+", type=int, default=[1, 8], help="with --all: so many of each")
    flags.add_argument("--only", default="", help="with --all: programs whose names match this regular expression")
    flags.add_argument("--out", type=Path, help="folder for a table a card; its rows of other programs stay")
    flags.add_argument("--examples", type=Path, help="write the compiled examples into this folder, and stop")
    values = flags.parse_args()
    if not compilation.available():
        raise SystemExit("error: Expected JAX's CUDA compiler, found none: make gpu-check installs it.")
    if values.examples:
        _write_examples(values.examples)
        return
    wrong = _check_examples()
    everything = {program.name: program for program in programs.every()}
    asked = _MAIN
    if values.all:
        each = [
            (name, count)
            for name, program in everything.items()
            if re.search(values.only, name)
            for count in values.devices
            if count == 1 or not program.alone
        ]
        asked = dict.fromkeys(values.cards or CARDS, each)
        if absent := programs.missing():
            print(f"Left out: networks of from_torch, which need {' and '.join(absent)}.", file=sys.stderr)
    for name, some in asked.items():
        table = _Table(CARDS[name], list(everything), values.out)
        wrong += _check(table, [(everything[program], count) for program, count in some])
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)


class _Table:
    """Rows of a card, in a folder's files if there is one, which are written anew with every row.

    Args:
      card: whose.
      names: of all programs, in the table's order.
      folder: of the files, None for none. Rows that are there and not counted anew stay.
    """

    def __init__(self, card: Card, names: list[str], folder: Path | None) -> None:
        self.card, self._names, self.rows = card, names, []
        self._stem = folder / f"gpu_programs_{card.name}" if folder else None
        if self._stem and self._stem.with_suffix(".json").is_file():
            self.rows = json.loads(self._stem.with_suffix(".json").read_text())
            self.rows = [row for row in self.rows if row["program"] in names]

    def add(self, row: report.Row) -> None:
        """Add a row in the place of the one that was counted before."""
        place = (row["program"], row["devices"])
        self.rows = [one for one in self.rows if (one["program"], one["devices"]) != place] + [row]
        self.rows.sort(key=lambda one: (self._names.index(one["program"]), one["devices"]))
        if self._stem:
            files.make_folder(self._stem.parent)
            files.write_text(self._stem.with_suffix(".md"), _page(self.card, self.rows))
            files.write_text(self._stem.with_suffix(".json"), json.dumps(self.rows, indent=1) + "\n")


def _check(table: _Table, asked: list[tuple[programs.Program, int]]) -> list[str]:
    """Compile and count programs for a card, print the table: what is wrong."""
    wrong, card = [], table.card
    for program, count in asked:
        begun = time.perf_counter()
        try:
            table.add(_row(card, program, count))
        except jax.errors.JaxRuntimeError as error:
            wrong.append(f"{program.name} on {count} for {card.name}: {str(error).splitlines()[0]}")
        print(f"{card.name}: {program.name} on {count} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr)
    print(_page(card, table.rows))
    return wrong + report.broken(card, table.rows)


def _row(card: Card, program: programs.Program, count: int) -> report.Row:
    lowered = program.lower(card, compilation.mesh_of(card, count))
    compiled = compilation.compiled(lowered.program, program.options)
    return report.row(
        card,
        program.command,
        program.network,
        program.dtype,
        program.law,
        devices=count,
        units=lowered.units,
        count=counting.count_loop(hlo.parse(compiled.text)),
        scratch=compiled.scratch,
        arguments=compiled.arguments,
    )


def _page(card: Card, rows: list[report.Row]) -> str:
    return report.page(card, rows, f"JAX {importlib.metadata.version('jax')}, CUDA 13.0, cuDNN 9.12")


def _compiled_examples() -> dict[str, str]:
    return {
        name: compilation.compiled(one.lower(compilation.mesh_of(CARDS["h100"], one.count))).text
        for name, one in examples.EXAMPLES.items()
    }


def _check_examples() -> list[str]:
    """Hold the counter against what hands count of small programs, as this compiler makes them."""
    return [
        line
        for name, text in _compiled_examples().items()
        for line in examples.differences(name, counting.count_loop(hlo.parse(text)))
    ]


def _write_examples(folder: Path) -> None:
    """Without what tells where in the source an instruction comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _compiled_examples().items():
        body = text[re.search(r"^(?:%|ENTRY )", text, re.MULTILINE).start() :]
        body = re.sub(r"(, )?metadata=\{[^}]*\}", "", body)
        (folder / f"{name.replace(' ', '_')}.hlo").write_text(f"{text.splitlines()[0]}\n\n{body}")


if __name__ == "__main__":
    main()
