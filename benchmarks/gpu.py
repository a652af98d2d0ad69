"""One NVIDIA GPU: throughput beside PyTorch's, seconds an image, the roofline, parity with the CPU.

Needs JAX with CUDA, Flax and the base packages; no network. Without PyTorch its rows are left out and the result says
so. Stops after `--minutes` with what it has; results are written after every round. `--rehearse FOLDER` runs all of it
in tiny sizes on whatever device there is, into that folder.

Command:   make gpu-benchmark        (8 minutes at most; PYTHON_RUN=python3 takes an interpreter that has JAX already)
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import contest, measure, networks
from benchmarks.contest import OURS, TORCH, Variant
from benchmarks.report import RESULTS, Report, slug
from benchmarks.throughput import WEIGHTS, command_line
from benchmarks.workers import Worker, WorkerError

_BYTES = {"float32": 4, "bfloat16": 2}
_FULL = {
    "depths": [110, 20], "chunks": [1024, 4096], "batches": [1000, 4000], "rounds": 5, "seconds": 0.5, "n": 100_000,
    "side": 8192, "values": 2**29, "parity": 1000, "images": 10_000,
}  # fmt: skip
_TINY = {
    "depths": [8], "chunks": [4], "batches": [4], "rounds": 2, "seconds": 0.1, "n": 40,
    "side": 128, "values": 2**16, "parity": 10, "images": 20,
}  # fmt: skip


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--name", default="", help="of the result's files; default from the device")
    flags.add_argument("--minutes", type=float, default=7.5, help="after which it stops")
    flags.add_argument("--rehearse", type=Path, help="tiny sizes, any device; the folder for the result")
    flags.add_argument("--data", default="", help="folder with CIFAR-10's binary version, for the agreement of types")
    for name in ("depths", "chunks", "batches"):
        flags.add_argument(f"--{name}", type=int, nargs="+", help=f"default {_FULL[name]}")
    for name in ("rounds", "n"):
        flags.add_argument(f"--{name}", type=int, help=f"default {_FULL[name]}")
    values = flags.parse_args()
    if values.rehearse and values.rehearse.resolve() == RESULTS.resolve():
        flags.error(f"Expected another folder than {RESULTS.name} for a rehearsal: it is no result.")
    sizes = _TINY if values.rehearse else _FULL
    run(values, argparse.Namespace(**sizes | {key: one for key, one in vars(values).items() if one and key in sizes}))


def run(values: argparse.Namespace, sizes: argparse.Namespace) -> None:
    """Measure all of it, the most wanted first."""
    clock = measure.Clock(values.minutes)
    with (
        tempfile.TemporaryDirectory() as folder,
        contest.running("benchmarks.roofline:Lab", timeout=clock.left) as lab,
    ):
        device = lab.call("device", timeout=clock.left)
        if device["platform"] == "cpu" and not values.rehearse:
            raise SystemExit("error: Expected a GPU, got JAX on the CPU: install jax[cuda13], or --rehearse FOLDER.")
        head = {
            "title": f"{'REHEARSAL, no result: ' if values.rehearse else ''}{device['kind']}",
            "rehearsal": bool(values.rehearse),
            "command": command_line("gpu"),
            "machine": measure.machine(),
            "settings": {"sigma": measure.SIGMA, "image": "32x32x3", "rounds": sizes.rounds, "minutes": values.minutes},
            "facts": {"device": device},
            "notes": [
                "Memory on the device and in the host is the peak of a contender's process over all its variants, for "
                "PyTorch's device memory that of the variant.",
                "Float32 convolutions run in TF32 where the libraries' defaults say so, for both.",
            ],
        }
        report = Report(values.rehearse or RESULTS, values.name or slug(f"gpu {device['kind']}"), head)
        try:
            _measure(lab, sizes, contest.Files(Path(folder), lab), clock, report, values.data)
        except WorkerError as error:
            report.result["notes"].append(f"Cut off: {error}")
            clock.say(f"cut off: {error}")
            report.finish(whole=False)
            return
    report.finish()


def _measure(
    lab: Worker, sizes: argparse.Namespace, files: contest.Files, clock: measure.Clock, report: Report, data: str
) -> None:
    facts = report.result["facts"]

    def ask(title: str, method: str, **arguments: Any) -> dict[str, Any]:
        """A measurement of the laboratory; one that fails is a note."""
        try:
            facts[title] = lab.call(method, timeout=clock.left, **arguments)
        except WorkerError as error:
            if clock.left == 0:
                raise
            report.result["notes"].append(f"{title}: {error}")
        report.save()
        clock.say(f"{title}: {facts.get(title, report.result['notes'][-1])}")
        return facts.get(title, {})

    ceilings = ask("ceilings", "ceilings", side=sizes.side, values=sizes.values)
    fastest = {depth: _against_pytorch(depth, sizes, files, clock, report, ceilings) for depth in sizes.depths}
    ask("parity with the CPU", "parity", weights=str(WEIGHTS), samples=sizes.parity, chunk=max(sizes.chunks))
    ask("bfloat16 against float32", "agreement", weights=str(WEIGHTS), folder=data, count=sizes.images)
    for depth, rows in fastest.items():
        for row in rows:
            if row["contender"] == OURS:
                weights, _ = files.of(depth, 32)
                title = f"XLA's count a sample, ResNet-{depth}, {row['dtype']}"
                ask(title, "count", weights=weights, dtype=row["dtype"], chunk=row["batch"])


def _against_pytorch(
    depth: int,
    sizes: argparse.Namespace,
    files: contest.Files,
    clock: measure.Clock,
    report: Report,
    ceilings: dict[str, float],
) -> list[contest.Row]:
    """Throughput, seconds an image and roofline of one network; the best rows."""
    variants = []
    for dtype in ("float32", "bfloat16"):
        chunks = sizes.chunks if dtype == "bfloat16" else [max(sizes.chunks)]  # each is a compilation
        variants += [Variant(OURS, dtype, chunk) for chunk in chunks]
        variants += [Variant(TORCH, dtype, batch, "channels-last") for batch in sizes.batches]
        variants += [Variant(TORCH, dtype, sizes.batches[0], "contiguous")]
    cost = networks.count(networks.describe(depth))
    report.result["facts"][f"counted a sample, ResNet-{depth}"] = {
        "flops": 2 * cost.multiply_adds,
        "values moved, layer by layer": cost.values_moved,
    }
    with contest.Contest(contest.CERTIFIERS, depth, variants, files, clock, shared=True) as held:
        rates = report.table(f"ResNet-{depth}", "samples/s")

        def keep_rates(rows: list[contest.Row]) -> None:
            rows = [row | roofline(cost, row, ceilings) for row in rows]
            rates.update(rows=rows, ratios=contest.ratios(rows), left_out=held.left_out)
            report.save()

        best = contest.best(held.throughput(sizes.rounds, sizes.seconds, keep_rates))
        held.keep(row["name"] for row in best)
        seconds = report.table(f"ResNet-{depth}, one image, n = {sizes.n:,}", "seconds an image")

        def keep_seconds(rows: list[contest.Row]) -> None:
            seconds.update(rows=rows)
            report.save()

        held.certification(sizes.n, 1, keep_seconds)
    return best


def roofline(cost: networks.Cost, row: contest.Row, ceilings: dict[str, float]) -> dict[str, float]:
    """What the counted work comes to at a measured rate, and its share of the measured ceilings.

    Bytes are those of a network that reads and writes memory at every convolution; a kernel that keeps values on the
    chip passes 100 %.
    """
    found = {
        "tflops": row["median"] * 2 * cost.multiply_adds / 1e12,
        "gb_s": row["median"] * cost.values_moved * _BYTES[row["dtype"]] / 1e9,
    }
    if ceilings:
        found["percent_of_product"] = 100 * found["tflops"] / ceilings[f"{row['dtype']}_product_tflops"]
        found["percent_of_copy"] = 100 * found["gb_s"] / ceilings["copy_gb_s"]
    return found


if __name__ == "__main__":
    main()
