"""One NVIDIA GPU within minutes: parity with the CPU, throughput beside PyTorch's, ceilings, counted beside measured.

In order of value, as far as `--minutes` go: votes of committed networks against the CPU's; samples/s and seconds an
image of ResNet-110 and -20 beside a plain PyTorch loop, if PyTorch has CUDA; what the card's memory and products do;
the programs that it ran, counted, beside what they took. Results are written after every step: a run that is killed
leaves what it has. What was left out is in the result. Compiled programs stay in `--cache`, for the next call.

Needs JAX with CUDA, Flax and the base packages; no network. `--rehearse FOLDER` runs all of it in tiny sizes on
whatever device there is, into that folder.

Command:   make gpu-benchmark        (6 minutes at most; PYTHON_RUN=python3 takes an interpreter that has JAX already)
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import contest, measure, networks
from benchmarks.contest import OURS, TORCH, Variant
from benchmarks.report import RESULTS, Report, slug
from benchmarks.throughput import WEIGHTS, command_line
from benchmarks.workers import ROOT, Worker, WorkerError

_BYTES = {"float32": 4, "bfloat16": 2}
_FULL = {
    "depths": [110, 20], "chunks": [4096], "batches": [1000, 4000], "rounds": 3, "seconds": 0.5, "n": 100_000,
    "side": 8192, "values": 2**29, "parity": 512, "images": 10_000, "networks": ["ResNet-20", "ResNet-110"],
}  # fmt: skip
_TINY = {
    "depths": [8], "chunks": [4], "batches": [4], "rounds": 2, "seconds": 0.1, "n": 40,
    "side": 128, "values": 2**16, "parity": 10, "images": 20, "networks": ["ResNet-20"],
}  # fmt: skip
# Committed weights, which are what parity is about; a pair's are those of its classifier.
_COMMITTED = {
    "ResNet-20": WEIGHTS,
    "ResNet-110": contest.CHECKPOINTS / "cifar10_resnet110_gaussian_0.25.safetensors",
    "U-Net+ResNet-20": WEIGHTS,
}
_TYPES = {  # of parity: dtype and the precision of products
    "float32 without TF32": ("float32", "highest"),
    "float32": ("float32", ""),
    "bfloat16": ("bfloat16", ""),
}
COUNTED = RESULTS / "gpu_programs_h100.json"
CACHE = ROOT / ".cache" / "gpu"
_ENDING = 0.2  # minutes that closing the workers and drawing the figure may take


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--name", default="", help="of the result's files; default from the device")
    flags.add_argument("--minutes", type=float, default=6.0, help="after which it stops")
    flags.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    flags.add_argument("--rehearse", type=Path, help="tiny sizes, any device; the folder for the result")
    flags.add_argument("--cache", type=Path, help="folder of compiled programs; default .cache/gpu")
    flags.add_argument("--data", default="", help="folder with CIFAR-10's binary version, for its test images")
    for name in ("depths", "chunks", "batches"):
        flags.add_argument(f"--{name}", type=int, nargs="+", help=f"default {_FULL[name]}")
    for name in ("rounds", "n"):
        flags.add_argument(f"--{name}", type=int, help=f"default {_FULL[name]}")
    values = flags.parse_args()
    if values.rehearse and values.rehearse.resolve() == RESULTS.resolve():
        flags.error(f"Expected another folder than {RESULTS.name} for a rehearsal: it is no result.")
    sizes = _TINY if values.rehearse else _FULL
    run(values, argparse.Namespace(**sizes | {key: one for key, one in vars(values).items() if one and key in sizes}))


def keep_compiled(folder: Path | None) -> None:
    """Let the processes that this one starts keep every compiled program.

    Args:
      folder: of these; None for the one that the environment names to JAX, else `CACHE`.
    """
    if folder or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str((folder or CACHE).resolve())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


def run(values: argparse.Namespace, sizes: argparse.Namespace) -> None:
    """Measure all of it, the most wanted first."""
    clock = measure.Clock(max(values.minutes - _ENDING, _ENDING))
    keep_compiled(values.cache)
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
            "summaries": {},
            "notes": [
                "Memory on the device and in the host is the peak of a contender's process over all its variants, for "
                "PyTorch's device memory that of the variant.",
                "Float32 convolutions run in TF32 where the libraries' defaults say so, for both.",
                "Floors are those of the programs that ran, counted as `make gpu-check` does, at the measured "
                "ceilings.",
            ],
        }
        report = Report(values.rehearse or values.out, values.name or slug(f"gpu {device['kind']}"), head)
        peers = _pytorch(rehearsal=bool(values.rehearse))
        if not peers:
            report.result["notes"].append("PyTorch with CUDA is not installed: its rows are left out.")
        report.save()
        files = contest.Files(Path(folder), lab)
        bench = _Bench(lab, sizes, files, clock, report, values.data, peers)
        left_out, failed = in_order(bench.parts(), clock, report)
    report.finish(whole=not left_out and not failed)
    if failed:
        raise SystemExit(f"error: Failed, as the result's notes say: {'; '.join(failed)}.")


def _pytorch(*, rehearsal: bool) -> bool:
    """Whether there is a PyTorch to be timed: with CUDA, or in a rehearsal any."""
    if importlib.util.find_spec("torch") is None:
        return False
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return rehearsal or subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0


def in_order(
    parts: Mapping[str, Callable[[], None]], clock: measure.Clock, report: Report
) -> tuple[list[str], list[str]]:
    """Run parts by title while there is time, and keep the result after each.

    A part that fails is a note, and the others go on.

    Returns:
      What was left out for want of time, or cut off, and what failed; both are noted, too.
    """
    left_out, failed = [], []
    for title, part in parts.items():
        if clock.left == 0:
            left_out.append(title)
            continue
        try:
            part()
        except (WorkerError, ValueError) as error:
            report.result["notes"].append(f"{title}: {error}")
            clock.say(report.result["notes"][-1])
            if clock.left == 0:
                left_out.append(f"{title} (cut off)")
            else:
                failed.append(title)
        report.save()
    if left_out:
        report.result["notes"].append(f"Left out for want of time: {'; '.join(left_out)}.")
        report.save()
    return left_out, failed


class _Bench:
    """What is measured, part by part; what one part has found serves those after it.

    Args:
      lab: a worker that holds `roofline.Lab`.
      sizes: `_FULL` or `_TINY`, with the user's changes.
      files: weights of networks that are timed.
      clock: with the time that is left.
      report: takes everything.
      data: folder of CIFAR-10, or "".
      peers: whether PyTorch is timed, too.
    """

    def __init__(
        self,
        lab: Worker,
        sizes: argparse.Namespace,
        files: contest.Files,
        clock: measure.Clock,
        report: Report,
        data: str,
        peers: bool,
    ) -> None:
        self._lab, self._sizes, self._files, self._clock, self._report = lab, sizes, files, clock, report
        self._data, self._peers = data, peers
        self._rates: dict[int, dict[str, Any]] = {}  # tables by depth
        self._seconds: dict[int, list[contest.Row]] = {}

    def parts(self) -> dict[str, Callable[[], None]]:
        """All of them by title, the most wanted first."""
        named = self._sizes.networks
        parts: dict[str, Callable[[], None]] = {
            f"parity, {name}": lambda name=name: self._parity(name) for name in named
        }
        parts |= {f"throughput, ResNet-{depth}": lambda depth=depth: self._race(depth) for depth in self._sizes.depths}
        parts |= {"ceilings": self._ceilings, "counted beside measured": self._counted}
        parts |= {"bfloat16 against float32": self._agreement}
        return parts | {"parity, U-Net+ResNet-20": lambda: self._parity("U-Net+ResNet-20")}

    def _ask(self, method: str, **arguments: Any) -> Any:
        answer = self._lab.call(method, timeout=self._clock.left, **arguments)
        self._clock.say(f"{method}: {answer}")
        return answer

    def _parity(self, name: str) -> None:
        title = "Votes that differ from the CPU's in float32, on the same noise"
        rows = self._report.result["summaries"].setdefault(title, [])
        for kind, (dtype, precision) in _TYPES.items():
            found = self._ask(
                "parity",
                weights=str(_COMMITTED[name]),
                description=networks.ANY[name],
                dtype=dtype,
                precision=precision,
                samples=self._sizes.parity,
                chunk=max(self._sizes.chunks),
                folder=self._data,
            )
            rows.append({"network": name, "weights": _COMMITTED[name].name, "type": kind, **found})
            self._report.save()

    def _race(self, depth: int) -> None:
        """Throughput and seconds an image of one network, beside PyTorch's where that is."""
        sizes, variants = self._sizes, []
        for dtype in _BYTES:
            variants += [Variant(OURS, dtype, chunk) for chunk in sizes.chunks]  # each is a compilation
            if self._peers:
                variants += [Variant(TORCH, dtype, batch, "channels-last") for batch in sizes.batches]
                variants += [Variant(TORCH, dtype, sizes.batches[0], "contiguous")]
        with contest.Contest(contest.CERTIFIERS, depth, variants, self._files, self._clock, shared=True) as held:
            rates = self._rates[depth] = self._report.table(f"ResNet-{depth}", "samples/s")

            def keep_rates(rows: list[contest.Row]) -> None:
                rates.update(rows=rows, ratios=contest.ratios(rows), left_out=held.left_out)
                self._report.save()

            best = contest.best(held.throughput(sizes.rounds, sizes.seconds, keep_rates))
            held.keep(row["name"] for row in best)
            seconds = self._report.table(f"ResNet-{depth}, one image, n = {sizes.n:,}", "seconds an image")

            def keep_seconds(rows: list[contest.Row]) -> None:
                seconds.update(rows=rows)
                self._seconds[depth] = rows
                self._report.save()

            held.certification(sizes.n, 1, keep_seconds)

    def _ceilings(self) -> None:
        ceilings = self._ask("ceilings", side=self._sizes.side, values=self._sizes.values)
        self._report.result["facts"]["ceilings"] = ceilings
        for depth, table in self._rates.items():
            cost = networks.count(networks.describe(depth))
            table["rows"] = [row | roofline(cost, row, ceilings) for row in table["rows"]]

    def _counted(self) -> None:
        """Counted programs, their floors at the measured ceilings, and what they took."""
        ceilings = self._report.result["facts"].get("ceilings")
        if not ceilings:
            raise ValueError("Expected the ceilings to be measured, got none: no floor.")
        rows = self._report.result["summaries"].setdefault("Counted beside measured, a device", [])
        for depth, timed in self._seconds.items():
            weights, _ = self._files.of(depth, 32)
            for row in (one for one in timed if one["contender"] == OURS):
                name = f"certify, ResNet-{depth}, {row['dtype']}"
                count = self._ask("counted", weights=weights, dtype=row["dtype"], chunk=row["batch"])
                rows.append(beside(name, count, row, ceilings, self._sizes.n))
                self._report.save()

    def _agreement(self) -> None:
        found = self._ask("agreement", weights=str(WEIGHTS), folder=self._data, count=self._sizes.images)
        self._report.result["facts"]["bfloat16 against float32"] = found


def roofline(cost: networks.Cost, row: contest.Row, ceilings: dict[str, float]) -> dict[str, float]:
    """What the counted work comes to at a measured rate, and its share of the measured ceilings.

    Bytes are those of a network that reads and writes memory at every convolution; a kernel that keeps values on the
    chip passes 100 %.
    """
    tflops = row["median"] * 2 * cost.multiply_adds / 1e12
    gb_s = row["median"] * cost.values_moved * _BYTES[row["dtype"]] / 1e9
    return {
        "tflops": tflops,
        "gb_s": gb_s,
        "percent_of_product": 100 * tflops / ceilings[f"{row['dtype']}_product_tflops"],
        "percent_of_copy": 100 * gb_s / ceilings["copy_gb_s"],
    }


def beside(name: str, count: dict[str, float], row: contest.Row, ceilings: dict[str, float], n: int) -> dict[str, Any]:
    """A counted program beside what it took: a row of the last summary.

    Args:
      name: of the program, as `gpu_programs` has it.
      count: of `roofline.Lab.counted`.
      row: seconds of an image's n samples.
      ceilings: of `roofline.Lab.ceilings`.
      n: samples.
    """
    floors = {
        "memory": n * count["bytes"] / (1e9 * ceilings["copy_gb_s"]),
        "products": n * count["flops"] / (1e12 * ceilings[f"{row['dtype']}_product_tflops"]),
    }
    bound = max(floors, key=lambda one: floors[one])
    tabled = [one for one in json.loads(COUNTED.read_text()) if (one["program"], one["devices"]) == (name, 1)]
    return {
        "program": name,
        "kernels": count["kernels"],
        "MB a sample": count["bytes"] / 1e6,
        "of an H100, by its table": tabled[0]["megabytes"] if tabled else "",
        "MFLOP": count["flops"] / 1e6,
        "floor, s": floors[bound],
        "bound by": bound,
        "measured, s": row["median"],
        "measured / floor": row["median"] / floors[bound],
    }


if __name__ == "__main__":
    main()
