"""Variants of contenders against each other: start their workers, hold their logits together, time them in turns."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, networks
from benchmarks.workers import Worker, WorkerError

OURS, TORCH, ART = "idrc_jax", "PyTorch", "ART"
CERTIFIERS = {OURS: "benchmarks.ours:Sampling", TORCH: "benchmarks.peers:Loop", ART: "benchmarks.peers:Toolbox"}
TRAINERS = {OURS: "benchmarks.ours:Training", TORCH: "benchmarks.peers:Training"}

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
Row = dict[str, Any]
_AGREE = {"float32": 1e-4}
_AGREE_HALF = 0.05


@dataclass(frozen=True)
class Variant:
    """One thing to be timed.

    Attributes:
      contender: OURS, TORCH or ART.
      dtype: what it computes in.
      batch: of PyTorch, or our chunk a device (0: the default).
      layout: of PyTorch's images.
      count: of devices or threads (0: all).
      size: of the images.
      kernel: that ours is asked for; "" is "auto".
    """

    contender: str
    dtype: str
    batch: int
    layout: str = ""
    count: int = 0
    size: int = 32
    kernel: str = ""

    @property
    def name(self) -> str:
        parts = [self.contender, self.kernel and f"kernel {self.kernel}", self.dtype, self.layout]
        parts += [f"batch {self.batch}" if self.batch else ""]
        parts += [f"{self.count} cores" if self.count else "", f"{self.size} px" if self.size != 32 else ""]
        return ", ".join(filter(None, parts))


@dataclass
class Files:
    """Weights files of networks, written by a worker that holds `ours.Host` when first asked for."""

    folder: Path
    host: Worker
    _written: dict[tuple[int | str, int], tuple[str, networks.Description]] = field(default_factory=dict)

    def of(self, network: int | str, size: int) -> tuple[str, networks.Description]:
        """The path and description of a CIFAR ResNet with random weights by its depth, or of one of `networks.ANY`.

        The path is empty where the weights follow from the description.
        """
        if (network, size) not in self._written:
            description = networks.describe(network, size) if isinstance(network, int) else networks.ANY[network]
            path = str(self.folder / f"{len(self._written)}.safetensors")
            if description["architecture"] == "resnet":
                self.host.call("write_weights", path=path, description=description)
            elif description["architecture"] == "denoised":
                description = self.host.call("write_denoised", path=path, description=description)
                path = str(CHECKPOINTS / description["classifier"])
            else:
                path = ""
            self._written[network, size] = path, description
        return self._written[network, size]


@contextlib.contextmanager
def host() -> Iterator[tuple[Worker, Files]]:
    """A worker that holds `ours.Host`, and weights files while it does."""
    with tempfile.TemporaryDirectory() as folder, running("benchmarks.ours:Host") as worker:
        yield worker, Files(Path(folder), worker)


@contextlib.contextmanager
def running(target: str, *, timeout: float | None = None, **arguments: Any) -> Iterator[Worker]:
    """A worker for the time of a `with` block."""
    worker = Worker(target, timeout=timeout, **arguments)
    try:
        yield worker
    finally:
        worker.close()


@dataclass
class Entry:
    """A variant that is ready."""

    variant: Variant
    worker: Worker
    rate: float
    stride: int
    row: Row


class Contest:
    """Variants of one network.

    Args:
      targets: the class of each contender, for `workers.Worker`.
      network: that `files` knows: the depth of a ResNet, or a name.
      variants: what is timed; the first computes in float32, and the others' logits are held against its.
      files: where weights are.
      clock: says what happens; its limit is that of every call.
      shared: one process a contender, not one a variant: starts faster, but memory peaks are the process's.
      pin: a variant's `count` is also of the cores that its process may use.

    Attributes:
      entries: the variants that are ready.
      left_out: why the others are not.
    """

    def __init__(
        self,
        targets: dict[str, str],
        network: int | str,
        variants: Iterable[Variant],
        files: Files,
        clock: measure.Clock,
        *,
        shared: bool = False,
        pin: bool = False,
    ) -> None:
        self._clock, self._shared, self._pin = clock, shared, pin
        self._workers: dict[Any, Worker] = {}
        self.entries: dict[str, Entry] = {}
        self.left_out: dict[str, str] = {}
        self._truth: dict[int, np.ndarray] = {}
        try:
            for variant in variants:
                self._enter(targets[variant.contender], variant, *files.of(network, variant.size))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Contest":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def _enter(self, target: str, variant: Variant, weights: str, description: networks.Description) -> None:
        key = (target, variant.count) if self._shared else variant
        arguments: dict[str, Any] = {
            "weights": weights, "description": description, "dtype": variant.dtype, "batch": variant.batch,
        }  # fmt: skip
        arguments |= {"kernel": variant.kernel} if variant.kernel else {}
        arguments |= {"layout": variant.layout} if variant.contender != OURS else {}
        try:
            if key not in self._workers:
                cores = variant.count if self._pin else 0
                self._workers[key] = Worker(target, timeout=self._clock.left, cores=cores, count=variant.count)
            worker = self._workers[key]
            ready = worker.call("prepare", timeout=self._clock.left, name=variant.name, **arguments)
            device = worker.call("device", timeout=self._clock.left)
        except WorkerError as error:
            self._leave_out(variant.name, error)
            return
        error = self._disagreement(variant, np.array(ready["logits"]))
        row = {
            "name": variant.name,
            "contender": variant.contender,
            "dtype": variant.dtype,
            "layout": variant.layout,
            "size": variant.size,
            "asked": variant.kernel,
            "logits_error": error,
            **device,
            **ready["facts"],
        }
        self.entries[variant.name] = Entry(variant, worker, ready["rate"], ready["stride"], row)
        self._clock.say(f"ready: {variant.name}: about {ready['rate']:,.0f}/s, logits within {error:.1e}")

    def _leave_out(self, name: str, error: WorkerError) -> None:
        if self._clock.left == 0:
            raise error
        self.entries.pop(name, None)
        self.left_out[name] = str(error)
        self._clock.say(f"left out: {name}: {error}")

    def _disagreement(self, variant: Variant, logits: np.ndarray) -> float:
        """The largest difference to the first contender's logits, in shares of the largest logit, if small enough."""
        truth = self._truth.setdefault(variant.size, logits)
        error = float(np.abs(logits - truth).max() / np.abs(truth).max())
        allowed = _AGREE.get(variant.dtype, _AGREE_HALF)
        if not error <= allowed:
            raise ValueError(
                f"Expected the logits of {variant.name} within {allowed} of the others', got {error:.2g}: no timing "
                "means anything before they agree."
            )
        return error

    def throughput(self, rounds: int, seconds: float, after: Callable[[list[Row]], None]) -> list[Row]:
        """Rows with samples per second in each round, turns of about `seconds`; `after` each round sees them, too."""

        def turn(entry: Entry) -> float:
            samples = max(1, round(entry.rate * seconds / entry.stride)) * entry.stride
            return samples / self._call(entry, "turn", name=entry.variant.name, samples=samples)

        return self._in_turns(turn, rounds, after)

    def certification(self, n: int, rounds: int, after: Callable[[list[Row]], None]) -> list[Row]:
        """Rows with seconds for one image's certificate of n samples."""

        def turn(entry: Entry, n: int = n) -> float:
            return self._call(entry, "certify", name=entry.variant.name, n=n)

        for entry in self.entries.values():
            turn(entry, n=max(entry.stride, measure.N0))  # warm-up
        return self._in_turns(turn, rounds, after)

    def keep(self, names: Iterable[str]) -> None:
        """Time only these from now on."""
        self.entries = {name: self.entries[name] for name in names}

    def _in_turns(self, turn: Callable[[Entry], float], rounds: int, after: Callable[[list[Row]], None]) -> list[Row]:
        """Let all have a turn, `rounds` times, there and back."""
        values: dict[str, list[float]] = {name: [] for name in self.entries}
        wide: dict[str, bool | None] = dict.fromkeys(self.entries)
        rows: list[Row] = []
        for number in range(rounds):
            for name in list(self.entries)[:: 1 if number % 2 == 0 else -1]:
                try:
                    values[name].append(turn(self.entries[name]))
                    seen = self.entries[name].worker.used_avx512
                    wide[name] = wide[name] or seen
                except WorkerError as error:
                    self._leave_out(name, error)
            rows = [
                entry.row
                | {"rounds": values[name], "avx512": wide[name]}
                | {**measure.summary(values[name]), **self._call(entry, "memory")}
                for name, entry in self.entries.items()
            ]
            said = "; ".join(f"{row['name']}: {row['rounds'][-1]:,.4g}" for row in rows)
            self._clock.say(f"round {number + 1} of {rounds}: {said}")
            after(rows)
        return rows

    def _call(self, entry: Entry, method: str, **arguments: Any) -> Any:
        return entry.worker.call(method, timeout=self._clock.left, **arguments)


def best(rows: list[Row]) -> list[Row]:
    """Of each contender and type the variant with the highest median."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["contender"], row["dtype"])
        if key not in found or row["median"] > found[key]["median"]:
            found[key] = row
    return list(found.values())


def ratios(rows: list[Row]) -> list[dict[str, Any]]:
    """Our best variant of each type against every peer's best of each type, and of any type, paired by round."""
    ours = [row for row in best(rows) if row["contender"] == OURS]
    peers = [row for row in best(rows) if row["contender"] != OURS]
    found = [(one, peer, peer["name"]) for one in ours for peer in peers]
    for contender in dict.fromkeys(peer["contender"] for peer in peers):
        of_types = [peer for peer in peers if peer["contender"] == contender]
        if len(of_types) > 1:
            fastest = max(of_types, key=lambda row: row["median"])
            found += [(one, fastest, f"{contender}'s best of any type: {fastest['name']}") for one in ours]
    return [{"of": one["name"], "to": name, **paired(one, peer)} for one, peer, name in found]


def paired(one: Row, other: Row) -> dict[str, float]:
    """Median and quartiles of the ratios of two variants' turns of the same round."""
    return measure.summary(np.divide(one["rounds"], other["rounds"]))
