"""How certification scales: with the samples an image, the devices, or the size of the images.

  n        seconds for one image's whole certificate, n from 1,000 to 100,000
  devices  samples per second on 1, 2, ... CPU cores (or accelerators, ours alone): our devices, PyTorch's threads
  size     samples per second on images of 32, 48, 64 ... pixels a side

Command:   make scaling WHAT=n        (or devices, size; on an idle machine)
"""

import argparse
from collections.abc import Callable

from benchmarks import contest, measure
from benchmarks.contest import ART, OURS, TORCH, Variant
from benchmarks.throughput import begin, parse, parser

_TITLES = {
    "n": "One image's certificate against its number of samples",
    "devices": "Throughput against the number of devices",
    "size": "Throughput against the size of the images",
}


def main() -> None:
    flags = parser(__doc__, "scaling")
    flags.add_argument("what", choices=_TITLES)
    flags.add_argument("--values", type=int, nargs="+", default=[], help="of n, devices or size")
    flags.add_argument("--depth", type=int, default=20)
    flags.add_argument("--contenders", nargs="+", choices=(OURS, TORCH, ART), default=[OURS, TORCH, ART])
    flags.add_argument("--chunk", type=int, default=0, help="ours; 0: the default")
    flags.add_argument("--batch", type=int, default=200, help="the peers'")
    values, held_to = parse(flags)
    clock = measure.Clock()
    settings = {"sigma": measure.SIGMA, "network": f"ResNet-{values.depth}"}
    with contest.host() as (host, files):
        report = begin(host, "scaling", _TITLES[values.what], values, settings, held_to, about=values.what)
        device = host.call("device")
        if values.what == "devices":
            comparable = (OURS, TORCH) if device["platform"] == "cpu" else (OURS,)
            values.contenders = [name for name in values.contenders if name in comparable]
        unit = "seconds an image" if values.what == "n" else "samples/s"
        table = report.table(f"ResNet-{values.depth}", unit, x=values.what)

        def enter(**more: int) -> contest.Contest:
            made = _variants(values, **more)
            return contest.Contest(
                contest.CERTIFIERS, values.depth, made, files, clock, pin=device["platform"] == "cpu"
            )

        def keep(x: int, held: contest.Contest) -> Callable[[list[contest.Row]], None]:
            before = table["rows"]

            def after(rows: list[contest.Row]) -> None:
                table["rows"] = before + [row | {values.what: x} for row in rows]
                table["left_out"] |= held.left_out
                report.save()

            return after

        if values.what == "n":
            with enter() as held:
                for n in values.values or [1_000, 10_000, 100_000]:
                    held.certification(n, values.rounds, keep(n, held))
        else:
            one_to_all = list(range(1, device["devices"] + 1))
            for x in values.values or (one_to_all if values.what == "devices" else [32, 48, 64]):
                with enter(**{"count" if values.what == "devices" else "size": x}) as held:
                    held.throughput(values.rounds, values.seconds, keep(x, held))
    report.finish()


def _variants(values: argparse.Namespace, *, count: int = 0, size: int = 32) -> list[Variant]:
    made = {
        OURS: [Variant(OURS, dtype, values.chunk, "", count, size) for dtype in ("float32", "bfloat16")],
        TORCH: [Variant(TORCH, dtype, values.batch, "channels-last", count, size) for dtype in ("float32", "bfloat16")],
        ART: [Variant(ART, "float32", values.batch, "contiguous", count, size)],
    }
    return [variant for name in values.contenders for variant in made[name]]


if __name__ == "__main__":
    main()
