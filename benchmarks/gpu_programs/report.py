"""Tables of counted programs, one a card, and the limits that their figures must keep. No JAX is imported here."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu_programs import counting
from benchmarks.gpu_programs.cards import Card
from benchmarks.gpu_programs.counting import Count

Row = dict[str, Any]

LIMITS = Path(__file__).with_name("limits.json")
SPARE = 0.25  # of what JAX can use of a card's memory
# What a floor of seconds is for.
WORK = {"certify": 100_000, "audit": 100_000, "train": 50_000}
_HEAD = (
    "program", "devices", "at a time", "kernels", "MB", "convolutions", "products", "passes", "noise", "layout",
    "MFLOP", "convolutions", "products", "the rest", "integer Mop", "all-reduces", "scratch GB", "memory", "floor, s",
    "bound by",
)  # fmt: skip
_NOTES = """\
Counted from compiled programs ({machine}), **not measured: no card ran this.** A row is one turn
of a program's main loop: a chunk of samples (`certify`, which is `predict`, too), a training step (`train`), a gradient
step of an attack (`audit`). MB and operations are a sample's or an image's on one device: what kernels read and write,
by class; convolutions and attention count a multiply-add as two. Scratch is of each device, beside its arguments;
memory is what both take of the {usable:.1f} GB that JAX can use, 75 % at most. The floor is seconds for n = 100,000
samples of one image (`audit`: for 100,000 gradients; `train`: for an epoch of 50,000 images) on all the devices, at the
card's full bandwidth ({bandwidth:.2f} TB/s) or its peak ({source}:
{bfloat16:.0f} TFLOP/s in bfloat16, {float32:.0f} in TF32), whichever takes longer; no program is as fast.
"""


def row(card: Card, command: str, network: str, dtype: str, law: str, *, devices: int, units: int, count: Count,
        scratch: int, arguments: int) -> Row:  # fmt: skip
    """Make a table's row of a counted program.

    Args:
      card: that it was compiled for.
      command, network, dtype, law: which program.
      devices: that share the work.
      units: samples or images of a turn, on one device.
      count: of a turn.
      scratch, arguments: bytes of temporaries and arguments on one device.
    """
    classes = {
        name: {"kernels": one.kernels, "bytes": one.bytes / units, "flops": one.flops / units,
               "integers": one.integers / units}
        for name, one in count.by_class.items()
    }  # fmt: skip
    dense = sum(classes[name]["flops"] for name in (counting.CONVOLUTIONS, counting.PRODUCTS))
    total = count.total
    work = WORK[command] / devices
    floors = {
        "memory": work * total.bytes / units / card.bandwidth,
        "products": work * dense / card.product_flops[dtype],
        "arithmetic": work
        * ((total.flops / units - dense) / (card.flops / 2) + total.integers / units / card.integers),
    }
    return {
        "program": ", ".join([command, network, dtype, *([law] if law != "normal" else [])]),
        "devices": devices,
        "units": units,
        "kernels": total.kernels,
        "megabytes": total.bytes / units / 1e6,
        "classes": classes,
        "moves": count.moves,
        "scratch": scratch,
        "arguments": arguments,
        "floors": floors,
        "floor": max(floors.values()),
        "bound": max(floors, key=lambda name: floors[name]),
    }


def broken(card: Card, rows: list[Row]) -> list[str]:
    """Say which rows break a rule or a limit of `limits.json`.

    Rules are for all: a quarter of what JAX can use of the card is spare; what samples on several devices has no
    collective; nothing sorts in a training step.
    """
    limits = json.loads(LIMITS.read_text()).get(card.name, {})
    told = []
    for one in rows:
        name, classes = f"{one['program']} on {one['devices']}", one["classes"]
        needed, most = one["scratch"] + one["arguments"], (1 - SPARE) * card.usable
        if needed > most:
            told.append(f"{name}: Expected at most {most / 1e9:.2f} GB of memory, got {needed / 1e9:.2f}.")
        if not one["program"].startswith("train") and classes[counting.COLLECTIVES]["kernels"]:
            told.append(f"{name}: Expected no collective, got {classes[counting.COLLECTIVES]['kernels']}.")
        if classes[counting.SORTS]["kernels"]:
            told.append(f"{name}: Expected no sort, got {classes[counting.SORTS]['kernels']}.")
        limit = limits.get(one["program"], {})
        found = {
            "megabytes": one["megabytes"],
            "kernels": one["kernels"],
            "layout": classes[counting.LAYOUT]["kernels"],
            "collectives": classes[counting.COLLECTIVES]["kernels"],
        }
        for figure, most in limit.items():
            if found[figure] > most:
                moves = f" ({'; '.join(one['moves'])})" if figure == "layout" else ""
                told.append(f"{name}: Expected at most {most} {figure}, got {found[figure]:.4g}{moves}.")
    return told


def page(card: Card, rows: list[Row], machine: str) -> str:
    """The Markdown page of a card."""
    notes = _NOTES.format(
        machine=machine,
        usable=card.usable / 1e9,
        bandwidth=card.bandwidth / 1e12,
        source=card.source,
        bfloat16=card.product_flops["bfloat16"] / 1e12,
        float32=card.product_flops["float32"] / 1e12,
    )
    lines = [f"# Programs for an {card.title}" if card.title[0] in "AEFHILMNORSX" else f"# Programs for a {card.title}"]
    lines += ["", notes, "| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    for one in rows:
        classes = one["classes"]
        shown = [counting.CONVOLUTIONS, counting.PRODUCTS, counting.PASSES, counting.NOISE, counting.LAYOUT]
        dense = [classes[name]["flops"] for name in (counting.CONVOLUTIONS, counting.PRODUCTS)]
        rest = sum(each["flops"] for each in classes.values()) - sum(dense)
        cells = [
            one["program"], one["devices"], one["units"], one["kernels"], f"{one['megabytes']:.3f}",
            *(f"{classes[name]['bytes'] / 1e6:.3f}" for name in shown),
            *(f"{flops / 1e6:.1f}" for flops in (sum(dense) + rest, *dense, rest)),
            f"{sum(each['integers'] for each in classes.values()) / 1e6:.2f}",
            classes[counting.COLLECTIVES]["kernels"],
            f"{one['scratch'] / 1e9:.2f}", f"{(one['scratch'] + one['arguments']) / card.usable:.0%}",
            f"{one['floor']:.3g}", one["bound"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"
