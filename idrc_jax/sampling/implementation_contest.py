"""Candidates that run a network, timed in turns; and whether their logits agree."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import jax
import numpy as np

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.models import Classifier
from idrc_jax.sampling import random_keys, votes
from idrc_jax.sampling.execution import Execution, largest_chunk

_SHARE, _SECONDS = 0.1, 60.0  # of the job's time, and at most, for measuring
_REPETITION = 0.1  # seconds
_REPETITIONS = 5
_PATIENCE = 1.5  # seconds of one candidate's repetitions; one that is slower has had its only run
_MARGIN = 1.03  # how much faster a candidate must be than one that comes before it
_HALF = 0.02  # of the largest logit: what two implementations may differ by in half precision
_AGREEMENT = {"float32": 5e-5}  # and in other types
_LONGEST = 2.0  # seconds that a larger chunk may take: plans that stop early fill it with few votes of each image
_PROBED = 9  # images whose logits are compared


class Trial:
    """Runs candidates as certification would, and looks at the clock."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._placed: dict[tuple[str, int], Classifier] = {}

    def clock(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def prepare(self, candidate: Execution) -> Callable[[int], None]:
        """Compile; the function that then draws, classifies and counts so many chunks on every device."""
        where = (candidate.classifier.kernel, candidate.mesh.size)
        if where not in self._placed:
            self._placed[where] = candidate.placed().classifier
        execution = replace(candidate, classifier=self._placed[where])
        images = np.broadcast_to(_images(execution.classifier, 1), (votes.SLOTS, *execution.classifier.image_shape))
        key = random_keys.stage(random_keys.root(0), random_keys.ESTIMATION)

        def draw(chunks: int) -> None:
            n = np.zeros(votes.SLOTS, int)
            n[0] = chunks * execution.stride
            counted = votes.dispatch_votes(
                execution,
                self._scheme,
                images,
                np.full(votes.SLOTS, self._scheme.sigma),
                indices=np.arange(votes.SLOTS),
                first=0,
                n=n,
                key=key,
            )
            jax.block_until_ready(counted)

        draw(0)
        return draw

    def logits(self, classifier: Classifier) -> np.ndarray:
        """Of a few images, float [N, classes]."""
        return np.asarray(jax.jit(classifier.apply_fn)(classifier.params, _images(classifier, _PROBED)))


class Contest:
    """Candidates that take turns until the time for measuring is over.

    Args:
      trial: what runs them.
      first: the candidate that a tie goes to; it is run at once, and says how long the job would take.
      samples, seconds: of the job (see `implementation_choice.choose`).

    Attributes:
      complete: whether there was time for all.
    """

    def __init__(self, trial: Trial, first: Execution, samples: int, seconds: float) -> None:
        self._trial, self._first, self._samples, self._seconds = trial, first, samples, seconds
        self._entered: dict[str, Execution] = {}
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
    def disagree(self) -> bool:
        """Whether an implementation was left out by its logits, which are of these weights alone."""
        return bool(self._wrong)

    @property
    def empty(self) -> bool:
        """Whether no candidate has run so far."""
        return not self._entered

    def compare_logits(self, classifier: Classifier) -> None:
        """Leave out implementations that disagree with the plainest."""
        if not classifier.alternatives:
            return
        self._left_out |= disagreements(classifier, self._trial)
        self._wrong = {one.kernel for one in classifier.implementations} & self._left_out.keys()
        right = [one for one in classifier.implementations if one.kernel not in self._wrong]
        self._first = replace(self._first, classifier=right[0] if right else classifier.reference)
        self._entered = {name: one for name, one in self._entered.items() if one.classifier.kernel not in self._wrong}

    def compare(self, candidates: list[Execution]) -> None:
        """Time them in turns."""
        self._repeat([one for one in candidates if self._enter(one)])

    def vary_chunk(self) -> None:
        """Smaller and larger chunks for the fastest candidate, by factors of 4, as long as they gain; none that takes
        more than two seconds."""
        for smaller in (True, False):
            while self._entered:
                best = self.best()
                chunk = best.chunk // 4 if smaller else 4 * best.chunk
                candidate = Execution(best.classifier, best.mesh, chunk)
                fits = 2 <= chunk <= largest_chunk(best.classifier, best.mesh)
                fits &= smaller or candidate.stride <= _LONGEST * best.rates[best.name]
                if not fits or candidate.name in self._entered or not self._enter(candidate):
                    break
                self._repeat([best, candidate])
                if self.best().name != candidate.name:
                    break

    def best(self) -> Execution:
        """The fastest so far; one that was not measured if none could be."""
        rates = {name: median(self._rates.get(name) or [self._rough[name]]) for name in self._entered}
        chosen = next((self._entered[name] for name in rates if rates[name] * _MARGIN >= max(rates.values())), None)
        rounded = {name: round(rate, 1) for name, rate in rates.items()}
        return replace(chosen or self._first, rates=rounded, left_out=dict(self._left_out))

    def _enter(self, candidate: Execution) -> bool:
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
            more = round(min(_REPETITION * rough, self._samples / 20) / candidate.stride)
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

    def _repeat(self, candidates: list[Execution]) -> None:
        """Time those in turns that are not far behind the fastest."""
        fastest = max((self._rough[one.name] for one in candidates), default=0.0)
        near = [one for one in candidates if 3 * self._rough[one.name] > fastest]
        for turn in range(_REPETITIONS):
            for one in near:
                a_second = self._rough[one.name] / one.stride
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

    def _time(self, candidate: Execution, chunks: int) -> float:
        """Samples/s."""
        begun = self._trial.clock()
        self._draw[candidate.name](chunks)
        return chunks * candidate.stride / max(self._trial.clock() - begun, 1e-9)


def disagreements(classifier: Classifier, trial: Trial) -> dict[str, str]:
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


def _images(classifier: Classifier, count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, *classifier.image_shape), np.float32)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
