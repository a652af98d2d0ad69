"""Any network: samples per second of eight, by the commands' own choice, by XLA, and by PyTorch in eager mode.

For each network: ours as it is certified by default ("auto": kernel, devices and chunk as the commands choose them),
ours with kernel=xla and the default chunk, and PyTorch channels-last and contiguous at a few batches. Networks of
transformers have random weights and come to JAX through `from_torch`. All variants of a network have the same weights
and run in turns; the first table has the medians, ratios are paired by round.

Command:   make networks        (40 minutes on two idle cores; ARGS="--networks ResNet-20 ViT-B/16" for some)
"""

import argparse
from typing import Any

from benchmarks import contest, measure, networks
from benchmarks.contest import OURS, TORCH, Variant
from benchmarks.report import Report
from benchmarks.throughput import begin, parse, parser

_SMALL, _MEDIUM, _LARGE = (50, 200, 400), (25, 50, 100), (4, 8, 32)  # PyTorch's batches


def variants(name: str, values: argparse.Namespace) -> list[Variant]:
    """Of one network: float32 first, ours beside PyTorch's."""
    size = networks.ANY[name]["image_shape"][0]
    batches = values.batches or (_LARGE if size > 64 else _MEDIUM if size > 32 or "+" in name else _SMALL)
    made = []
    for dtype in values.dtypes:
        made += [Variant(OURS, dtype, 0, size=size, kernel=kernel) for kernel in ("auto", "xla")]
        if TORCH in values.contenders:
            made += [Variant(TORCH, dtype, batch, one, size=size) for one in values.layouts for batch in batches]
    return made


def summary(name: str, rows: list[contest.Row]) -> list[dict[str, Any]]:
    """A line for each of our types: what was chosen, its rate, and the ratios to XLA and to PyTorch's best."""
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows if row["contender"] == OURS):
        ours = {row["asked"]: row for row in rows if row["contender"] == OURS and row["dtype"] == dtype}
        peers = [row for row in rows if row["contender"] == TORCH and row["dtype"] == dtype]
        auto = ours.get("auto")
        if auto is None:
            continue
        line = {
            "network": name,
            "type": dtype,
            "chosen": f"{auto['kernel']}, {auto['devices']} x {auto['batch']}",
            "auto": auto["median"],
        }
        others = [("xla", ours.get("xla")), (TORCH, max(peers, key=lambda row: row["median"], default=None))]
        line |= {title: other["median"] for title, other in others if other}
        line |= {f"auto / {title}": contest.paired(auto, other)["median"] for title, other in others if other}
        lines.append(line)
    return lines


def run(name: str, values: argparse.Namespace, files: contest.Files, clock: measure.Clock, report: Report) -> None:
    """Time the variants of one network, whose processes end with it."""
    table = report.table(name, "samples/s")
    lines = report.result["summaries"]["samples/s"]
    with contest.Contest(contest.CERTIFIERS, name, variants(name, values), files, clock) as held:

        def keep(rows: list[contest.Row]) -> None:
            table.update(rows=rows, ratios=contest.ratios(rows), left_out=held.left_out)
            lines[:] = [line for line in lines if line["network"] != name] + summary(name, rows)
            report.save()

        held.throughput(values.rounds, values.seconds, keep)


def main() -> None:
    flags = parser(__doc__, "any_network")
    flags.set_defaults(rounds=5)
    flags.add_argument("--networks", nargs="+", choices=networks.ANY, default=list(networks.ANY))
    flags.add_argument("--contenders", nargs="+", choices=(OURS, TORCH), default=[OURS, TORCH])
    flags.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    flags.add_argument("--batches", type=int, nargs="+", default=[], help="PyTorch's; default by the network")
    flags.add_argument("--layouts", nargs="+", default=["channels-last", "contiguous"], help="PyTorch's")
    values, held_to = parse(flags)
    clock = measure.Clock()
    settings = {"sigma": measure.SIGMA, "seconds a turn": values.seconds}
    with contest.host() as (host, files):
        report = begin(host, "any_network", "Certification of any network", values, settings, held_to)
        report.result["summaries"] = {"samples/s": []}
        report.result["notes"] = [
            'Chosen: the kernel, devices x chunk. "auto / ..." are medians of the ratios of two turns of a round; '
            "PyTorch's is its best batch and layout of the type."
        ]
        for name in values.networks:
            run(name, values, files, clock, report)
    report.finish()


if __name__ == "__main__":
    main()
