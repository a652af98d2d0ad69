"""How a network runs fastest on this machine: by which implementation, on how many devices, in which chunks.

That is measured on the network itself before a long job and remembered in the user's cache. It concerns speed alone:
votes are the same, up to ties that rounding breaks differently.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core import files, validate
from idrc_jax.core.files import cache_folder
from idrc_jax.kernels import build
from idrc_jax.models import Classifier, fingerprint
from idrc_jax.sampling import devices, random_keys, votes

SCHEMA_VERSION = 1
_SHARE, _SECONDS = 0.1, 60.0  # of the job's time, and at most, for measuring
_REPETITION = 0.1  # seconds
_REPETITIONS = 5
_PATIENCE = 1.5  # seconds of one candidate's repetitions; one that is slower has had its only run
_MARGIN = 1.03  # how much faster a candidate must be than one that comes before it
_HALF = 0.02  # of the largest logit: what two implementations may differ by in half precision
_AGREEMENT = {"float32": 5e-5}  # and in other types
_AGREED = 100  # weights whose implementations are remembered to agree
_PROBED = 9  # images whose logits are compared


@dataclass(frozen=True)
class Choice:
    """A way to run a network.

    Attributes:
      classifier: one implementation.
      mesh: the devices.
      chunk: samples that a device takes at a time.
      rates: samples/s of every candidate that was measured, now or when this was remembered.
      left_out: why others were not: they failed, or their logits disagree.
    """

    classifier: Classifier
    mesh: Mesh
    chunk: int
    rates: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `rates` calls it."""
        devices = f"{self.mesh.size} device{'s' * (self.mesh.size > 1)}"
        return f"{self.classifier.kernel} on {devices}, chunk {self.chunk}"

    def describe(self) -> dict[str, Any]:
        """As a manifest's session holds it."""
        device = self.mesh.devices.flat[0].device_kind
        said = {"devices": self.mesh.size, "device": device, "kernel": self.classifier.kernel, "chunk": self.chunk}
        return said | {name: value for name in ("rates", "left_out") if (value := getattr(self, name))}


class Trial:
    """Runs candidates as certification would, and looks at the clock."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._placed: dict[tuple[str, int], Classifier] = {}

    def clock(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def prepare(self, candidate: Choice) -> Callable[[int], None]:
        """Compile; the function that then draws, classifies and counts so many chunks on every device."""
        mesh, chunk, where = candidate.mesh, candidate.chunk, (candidate.classifier.kernel, candidate.mesh.size)
        if where not in self._placed:
            self._placed[where] = votes.place(candidate.classifier, mesh)
        classifier = self._placed[where]
        images = np.broadcast_to(_images(classifier, 1), (votes.SLOTS, *classifier.image_shape))
        key = random_keys.stage(random_keys.root(0), random_keys.ESTIMATION)

        def draw(chunks: int) -> None:
            n = np.zeros(votes.SLOTS, int)
            n[0] = chunks * chunk * mesh.size
            counted = votes.dispatch_votes(
                classifier,
                self._scheme,
                images,
                np.full(votes.SLOTS, self._scheme.sigma),
                indices=np.arange(votes.SLOTS),
                first=0,
                n=n,
                key=key,
                chunk=chunk,
                mesh=mesh,
            )
            jax.block_until_ready(counted)

        draw(0)
        return draw

    def logits(self, classifier: Classifier) -> np.ndarray:
        """Of a few images, float [N, classes]."""
        return np.asarray(jax.jit(classifier.apply_fn)(classifier.params, _images(classifier, _PROBED)))


def choose(
    classifier: Classifier,
    scheme: Scheme,
    *,
    samples: int,
    seconds: float = 0.0,
    mesh: Mesh | None = None,
    chunk: int = 0,
    trial: Trial | None = None,
    folder: Path | None = None,
) -> Choice:
    """The fastest way to run a classifier, of those that what is given leaves open.

    Candidates are all implementations of the classifier, on all devices and, on a CPU, on one device of all cores, with
    larger and smaller chunks. They take turns at certification's own program. Where implementations disagree about
    logits, the plainest is believed. Measuring takes about a tenth of the time that the job would take, and at most a
    minute; a job too short for that runs as it is: the first implementation, all devices, the default chunk. A
    candidate must be 3 % faster than those before it.

    Args:
      samples: that the job will draw, at most.
      seconds: that the job may take; 0 for no limit.
      mesh, chunk: kept, if given.
      trial: what runs the candidates.
      folder: of what is remembered; the user's cache by default.

    A candidate that fails or disagrees is named in one warning, and so is a cache that cannot be written.
    """
    check_chunk(classifier, mesh, chunk)
    meshes = [mesh] if mesh else _layouts()
    implementations = classifier.implementations
    first = _with_default_chunk(implementations[0], meshes[0], chunk)
    if not samples or (len(implementations) == len(meshes) == 1 and chunk):
        return first
    cache = _Cache(folder, _identity(classifier, scheme, meshes, chunk))
    trial = trial or Trial(scheme)
    remembered = cache.recall(implementations, meshes, samples)
    if remembered and (len(implementations) == 1 or cache.recall_agreement(classifier)):
        return remembered
    if remembered and not _disagreements(classifier, trial):  # other weights of the same network
        cache.remember_agreement(classifier)
        return remembered
    contest = _Contest(trial, first, samples, seconds)
    if not contest.has_time() or (contest.empty and not classifier.alternatives):
        return first  # without a word: a network that fails in every way tells so itself
    _say(f"Measuring how {' or '.join(one.kernel for one in implementations)} runs fastest here ...", end=" ")
    begun = time.perf_counter()
    contest.compare_logits(classifier)
    contest.compare([_with_default_chunk(one, on, chunk) for on in meshes for one in implementations])
    if not chunk:
        contest.vary_chunk()
    best = contest.best()
    rate = f"{best.rates[best.name]:,.0f} samples/s" if best.rates else "none does"
    _say(f"{best.name}: {rate} (measured in {time.perf_counter() - begun:.0f} s).")
    for name, why in best.left_out.items():
        _log().warning("Left out %s: %s", name, why)
    if best.rates:
        cache.remember(best, samples=None if contest.complete else samples)
        if not best.left_out:
            cache.remember_agreement(classifier)
    return best


def check_chunk(classifier: Classifier, mesh: Mesh | None, chunk: int) -> None:
    """ValueError unless a chunk is 0, to be chosen, or an integer >= 2 whose largest array one device can hold."""
    if not validate.integer("chunk", chunk):
        return
    validate.at_least("chunk", chunk, 2)
    memory = devices.memory(mesh or devices.mesh(1))
    most = memory // classifier.largest_intermediate
    if chunk > most:
        raise ValueError(
            f"Expected chunk <= {most:,}, as much of this network as {memory / 2**30:.1f} GiB of memory hold, got "
            f"{chunk:,}."
        )


def _layouts() -> list[Mesh]:
    """All local devices; on a CPU one device, too, whose kernels use all cores."""
    every = devices.mesh()
    return [every, devices.mesh(1)] if every.size > 1 and devices.is_cpu() else [every]


def _with_default_chunk(classifier: Classifier, mesh: Mesh, chunk: int) -> Choice:
    return Choice(classifier, mesh, chunk or votes.default_chunk(classifier, mesh))


def _images(classifier: Classifier, count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, *classifier.image_shape), np.float32)


class _Contest:
    """Candidates that take turns until the time for measuring is over.

    Attributes:
      complete: whether there was time for all.
    """

    def __init__(self, trial: Trial, first: Choice, samples: int, seconds: float) -> None:
        self._trial, self._first, self._samples, self._seconds = trial, first, samples, seconds
        self._entered: dict[str, Choice] = {}
        self._draw: dict[str, Callable[[int], None]] = {}
        self._rough: dict[str, float] = {}  # samples/s of the first run
        self._rates: dict[str, list[float]] = {}  # of the repetitions
        self._left_out: dict[str, str] = {}
        self._wrong: set[str] = set()
        self._slowest, self._end = 0.0, math.inf
        self.complete = True
        self._enter(first)

    def has_time(self) -> bool:
        """Whether there is time for another candidate that takes as long as the slowest so far."""
        return self._trial.clock() + self._slowest <= self._end

    @property
    def empty(self) -> bool:
        """Whether no candidate has run so far."""
        return not self._entered

    def compare_logits(self, classifier: Classifier) -> None:
        """Leave out implementations that disagree with the plainest."""
        if not classifier.alternatives:
            return
        self._left_out |= _disagreements(classifier, self._trial)
        self._wrong = {one.kernel for one in classifier.implementations} & self._left_out.keys()
        right = [one for one in classifier.implementations if one.kernel not in self._wrong]
        self._first = replace(self._first, classifier=right[0] if right else classifier.reference)
        self._entered = {name: one for name, one in self._entered.items() if one.classifier.kernel not in self._wrong}

    def compare(self, candidates: list[Choice]) -> None:
        """Time them in turns."""
        self._repeat([one for one in candidates if self._enter(one)])

    def vary_chunk(self) -> None:
        """Smaller and larger chunks for the fastest candidate, by factors of 4, as long as they gain."""
        for smaller in (True, False):
            while self._entered:
                best = self.best()
                chunk = best.chunk // 4 if smaller else 4 * best.chunk
                candidate = Choice(best.classifier, best.mesh, chunk)
                fits = 2 <= chunk <= votes.largest_chunk(best.classifier, best.mesh)
                if not fits or candidate.name in self._entered or not self._enter(candidate):
                    break
                self._repeat([best, candidate])
                if self.best().name != candidate.name:
                    break

    def best(self) -> Choice:
        """The fastest so far; one that was not measured if none could be."""
        rates = {name: median(self._rates.get(name) or [self._rough[name]]) for name in self._entered}
        chosen = next((self._entered[name] for name in rates if rates[name] * _MARGIN >= max(rates.values())), None)
        rounded = {name: round(rate, 1) for name, rate in rates.items()}
        return replace(chosen or self._first, rates=rounded, left_out=dict(self._left_out))

    def _enter(self, candidate: Choice) -> bool:
        """Compile a candidate and run it once; whether it takes part."""
        name = candidate.name
        if name in self._entered or name in self._left_out or candidate.classifier.kernel in self._wrong:
            return name in self._entered
        if self._entered and not self.has_time():
            self.complete = False
            return False
        begun = self._trial.clock()
        try:
            self._draw[name] = self._trial.prepare(candidate)
            rough = self._time(candidate, 1)
            more = round(min(_REPETITION * rough, self._samples / 20) / self._stride(candidate))
            self._rough[name] = self._time(candidate, more) if more > 1 else rough
        except Exception as error:  # JAX and kernels raise several kinds
            self._leave_out(name, error)
            return False
        self._entered[name] = candidate
        now = self._trial.clock()
        self._slowest = max(self._slowest, now - begun)
        if self._end == math.inf:
            job = self._samples / self._rough[name]
            self._end = now + min(_SECONDS, _SHARE * min(job, self._seconds or math.inf))
        return True

    def _repeat(self, candidates: list[Choice]) -> None:
        """Time those in turns that are not far behind the fastest."""
        fastest = max((self._rough[one.name] for one in candidates), default=0.0)
        near = [one for one in candidates if 3 * self._rough[one.name] > fastest]
        for turn in range(_REPETITIONS):
            for one in near:
                a_second = self._rough[one.name] / self._stride(one)
                chunks = max(1, round(_REPETITION * a_second))
                if one.name not in self._entered or (turn + 1) * chunks / a_second > _PATIENCE:
                    continue
                try:
                    self._rates.setdefault(one.name, []).append(self._time(one, chunks))
                except Exception as error:  # JAX and kernels raise several kinds
                    self._leave_out(one.name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._left_out[name] = _one_line(error)
        self._entered.pop(name, None)

    def _time(self, candidate: Choice, chunks: int) -> float:
        """Samples/s."""
        begun = self._trial.clock()
        self._draw[candidate.name](chunks)
        return chunks * self._stride(candidate) / max(self._trial.clock() - begun, 1e-9)

    def _stride(self, candidate: Choice) -> int:
        return candidate.chunk * candidate.mesh.size


def _disagreements(classifier: Classifier, trial: Trial) -> dict[str, str]:
    """Which implementations fail or give other logits than the plainest that does not, and how."""
    made: dict[str, np.ndarray] = {}
    found: dict[str, str] = {}
    for one in classifier.implementations:
        try:
            made[one.kernel] = trial.logits(one)
        except Exception as error:  # JAX and kernels raise several kinds
            found[one.kernel] = _one_line(error)
    plainest = classifier.reference.kernel if classifier.reference.kernel in made else next(reversed(made), "")
    for kernel, logits in made.items():
        gap = _disagreement(logits, made[plainest], classifier.dtype)
        if gap:
            found[kernel] = f"expected the logits of {plainest}, got {gap}"
    return found


def _disagreement(logits: np.ndarray, expected: np.ndarray, dtype: str) -> str:
    """How logits differ by more than rounding; empty where they do not.

    What all logits of an image have in common decides nothing and is taken off.
    """
    if logits.shape != expected.shape:
        return f"the shape {logits.shape} instead of {expected.shape}"
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(logits), finite):
        return f"{np.sum(np.isfinite(logits) != finite)} of {finite.size} finite where they are not, or the reverse"
    rows = finite.all(axis=-1)
    logits, expected = (
        some[rows] - some[rows].mean(axis=-1, keepdims=True, dtype=float) for some in (logits, expected)
    )
    gap = np.max(np.abs(logits - expected), initial=0.0)
    gap /= np.max(np.abs(expected), initial=1e-30)
    return f"a difference of {gap:.1g} of the largest" if gap > _AGREEMENT.get(dtype, _HALF) else ""


class _Cache:
    """A choice in a file of its own, which is named by all that it depends on."""

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity
        self._name = f"choice-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}.json"

    def recall(self, implementations: tuple[Classifier, ...], meshes: list[Mesh], samples: int) -> Choice | None:
        """What was measured for a job at least as long, if it can be had still."""
        try:
            said = json.loads(self._path().read_text())
            if said["identity"] != self._identity or (said["samples"] is not None and samples > said["samples"]):
                return None
            (classifier,) = [one for one in implementations if one.kernel == said["kernel"]]
            (mesh,) = [one for one in meshes if one.size == said["devices"]]
            if not 2 <= said["chunk"] <= votes.largest_chunk(classifier, mesh):
                return None  # the memory is another
            rates = {str(name): float(rate) for name, rate in said["rates"].items()}
            left_out = {str(name): str(why) for name, why in said["left_out"].items()}
            return Choice(classifier, mesh, said["chunk"], rates, left_out)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def remember(self, choice: Choice, *, samples: int | None) -> None:
        """Keep it: for jobs of at most so many samples, or for all."""
        said = {"kernel": choice.classifier.kernel, "devices": choice.mesh.size, "chunk": choice.chunk}
        said |= {"rates": choice.rates, "left_out": choice.left_out, "samples": samples, "identity": self._identity}
        said |= {"agreed": []}
        try:
            files.write_json(self._path(), said)
        except (OSError, RuntimeError) as error:
            _log().warning("What was measured is not remembered: %s", _one_line(error))

    def recall_agreement(self, classifier: Classifier) -> bool:
        """Whether the implementations of these very weights were found to agree."""
        try:
            return _named(classifier) in json.loads(self._path().read_text())["agreed"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError):
            return False

    def remember_agreement(self, classifier: Classifier) -> None:
        """The newest of them."""
        try:
            said = json.loads(self._path().read_text())
            said["agreed"] = [*said["agreed"], _named(classifier)][-_AGREED:]
            files.write_json(self._path(), said)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError):
            return  # they are compared again

    def _path(self) -> Path:
        return (self._folder or cache_folder()) / self._name


def _named(classifier: Classifier) -> str:
    return classifier.sha256 or fingerprint(classifier)


def _identity(classifier: Classifier, scheme: Scheme, meshes: list[Mesh], chunk: int) -> dict[str, Any]:
    """All that a choice depends on."""
    return {
        "schema_version": SCHEMA_VERSION,
        "network": classifier.structure,
        "implementations": [one.kernel for one in classifier.implementations],
        "image_shape": list(classifier.image_shape),
        "dtype": classifier.dtype,
        "law": scheme.law,
        "chunk": chunk,
        "devices": [mesh.size for mesh in meshes],
        "device": meshes[0].devices.flat[0].device_kind,
        "local_devices": len(jax.local_devices()),
        "cores": os.cpu_count(),
        "processor": build.processor(),
        "environment": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "IDRC_VECTOR_BITS", "CXX")},
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "kernels": _sources(),
    }


@functools.cache
def _sources() -> str:
    """SHA-256 of the kernels."""
    room = Path(build.__file__).parent.rglob("*")
    files = sorted(path for path in room if path.suffix in (".cc", ".h", ".py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _log() -> logging.Logger:
    return logging.getLogger("idrc_jax")
