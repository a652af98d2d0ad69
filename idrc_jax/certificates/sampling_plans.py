"""Sampling plans: how many votes an image gets, the bound that then holds, and when to stop.

A plan reads the votes of an image at its `looks`, numbers of samples fixed beforehand, and stops at one of them. What
it decides depends on the image's votes alone, and its label if it asks for that, so that a run's rows do not depend on
the order of the images, on the device or on where it was cut, and the votes of an adaptive run are the first of those
of a fixed one.

`fixed` is CERTIFY of Cohen et al. (2019). The others choose the class by the same votes that bound its probability,
at half of alpha, and certify only above 1/2: with the bound lower(c) of class c and p_c its probability, an error needs
lower(c) > p_c for some c with lower(c) > 1/2. Classes with p_c <= 1/2 share at most alpha (their error is at most
2 p_c * alpha / 2 and the p_c add up to 1), or, if one class has p > 1/2, alpha / 2 + alpha (1 - p) < alpha in all.
For one look that is the convexity of the binomial tail on [0, 1/2]; with many it holds path by path.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.confidence_bounds import Numbers
from idrc_jax.core import root_finding, validate
from idrc_jax.core.json_values import Json
from idrc_jax.core.validate import SettingError

MOST = 2**32  # samples of an image: their numbers are 32 bits of its keys

RadiusOf = Callable[[np.ndarray], np.ndarray]
"""p_lower [rows] -> the radius of one image at these bounds, non-decreasing."""

# Looks of the adaptive plans: the first, and by what factor they grow. Samples between a decision and the next look are
# drawn in vain: 5 % on average at 1.1. The union bound pays for each of its looks, so it takes fewer.
_FIRST_LOOK = 50
_GROWTH = {"betting": 1.1, "union": 1.5}

SWITCHES = ("published", "correct_only")  # of a plan that has them; off by default

# Error probability of the belief that a goal is out of reach. It costs radius, never validity.
_FUTILITY = 0.05


@dataclass(frozen=True)
class Plan:
    """How the votes of one image are drawn.

    Attributes:
      name: what configs and manifests call it.
      n: the most samples an image gets.
    """

    name: ClassVar[str]
    n: int = 100_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", validate.integer("n", self.n))

    @property
    def selection(self) -> int:
        """Samples that select the class beforehand; 0 where the same votes select and bound."""
        return 0

    @property
    def most(self) -> int:
        """Samples of an image, at most, with those of the selection."""
        return self.selection + self.n

    @property
    def adaptive(self) -> bool:
        """Whether the votes themselves decide how many an image gets."""
        return len(self.looks()) > 1

    @property
    def asks_published(self) -> bool:
        """Whether the radius that the paper publishes is to be decided, too, by `stopping` of its own."""
        return False

    @property
    def asks_labels(self) -> bool:
        """Whether the images' labels are to be known, too, to `stopping`."""
        return False

    def looks(self) -> list[int]:
        """Sample numbers, ascending, at which votes are read; the last is n."""
        return [self.n]

    def lower(self, k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
        """Lower bound on the probability of the class with k of n votes, n one of the looks; arrays or scalars.

        Guarantee: with probability at least 1 - alpha the class that is certified has at least this probability,
        whichever look the plan stops at.
        """
        raise NotImplementedError

    def hope(self, k: int, n: int, alpha: float) -> float:
        """What `lower` may still come up to, with 95 % confidence no farther; costs radius, never validity."""
        return float(self.lower(k, n, alpha))

    def rival_upper(self, k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
        """Upper bound on the probabilities of all classes but one, k the most votes that any of them has; n as for
        `lower`.

        Guarantee: with probability at least 1 - alpha it holds whichever class is left out, also one that was chosen
        by these votes, and at all looks. For c and d the likeliest classes, each has a bound of its own at alpha / 2
        that exceeds its probability; the likeliest of the others is c or, where c is left out, d; and the most votes
        of the others, whose bound this is, are no fewer than its own.
        """
        return 1 - self.lower(np.asarray(n) - k, n, alpha)  # of not being a class fixed beforehand, at alpha / 2

    def rival_hope(self, k: int, n: int, alpha: float) -> float:
        """What `rival_upper` may still come down to, with 95 % confidence no farther; costs radius, never validity."""
        return float(self.rival_upper(k, n, alpha))

    def worthwhile(self, now: float, best: float) -> bool:
        """Whether a radius of `best` instead of `now` is worth more votes."""
        return best > now

    def stopping(self, radius_of: RadiusOf, alpha: float, label: int | None = None) -> Callable[[np.ndarray], bool]:
        """The stop rule of one image: its votes at a look before the last, int [K + 1] -> whether to stop there.

        Args:
          radius_of: the image's radius.
          alpha: of `lower`.
          label: where the plan asks for it, the image's.
        """
        return lambda votes: True

    def check(self, alpha: float) -> None:
        """ValueError unless n votes, all for one class, certify something."""

        def enough(n: int) -> bool:
            return bool(replace(self, n=n).lower(n, n, alpha) > 0.5)

        validate.at_least("n", self.n, 1)
        if self.n > MOST:
            raise SettingError(f"Expected n <= {MOST}, as many samples as an image has keys, got {self.n}.", "n")
        if not enough(self.n):
            least = next(n for n in itertools.count(self.n) if enough(n))
            raise SettingError(
                f"Expected n >= {least}, the fewest samples that can certify anything at alpha = {alpha}, got "
                f"{self.n}.",
                "n",
            )


@dataclass(frozen=True)
class Fixed(Plan):
    """CERTIFY of Cohen et al. (2019): n0 votes choose the class, n fresh ones bound its probability."""

    name: ClassVar[str] = "fixed"
    n0: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n0", validate.count("n0", self.n0, 1))

    @property
    def selection(self) -> int:
        return self.n0

    def lower(self, k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
        return confidence_bounds.clopper_pearson_lower(k, n, alpha)

    def rival_upper(self, k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
        return 1 - self.lower(np.asarray(n) - k, n, alpha / 2)


@dataclass(frozen=True)
class SelectionFree(Plan):
    """The n votes choose the class and bound its probability, at alpha / 2."""

    name: ClassVar[str] = "selection_free"

    def lower(self, k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
        return confidence_bounds.clopper_pearson_lower(k, n, alpha / 2)


@dataclass(frozen=True)
class Exhaustive(Plan):
    """All n equally likely noises, each once: the offsets of `splitting`. Bounds are shares, whatever alpha; a share of
    1 is told as the number below it, whose quantile is finite. ValueError for other numbers of votes, as shares of a
    part of the noises prove nothing."""

    name: ClassVar[str] = "exhaustive"

    def lower(self, k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
        if np.any(np.asarray(n) != self.n):
            raise ValueError(f"Expected votes of all {self.n} offsets, each once, got {n} votes.")
        return np.minimum(np.asarray(k) / np.asarray(n), 1 - 2.0**-53)[()]


@dataclass(frozen=True)
class _Adaptive(Plan):
    """Votes are read at growing numbers of samples, under a bound that holds at all of them.

    Attributes:
      sequence: "betting" (`confidence_bounds.betting_lower`) or "union" (Clopper and Pearson's bound at look j with
        error alpha / (j (j + 1)), which add up to alpha).
    """

    sequence: str = "betting"

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.one_of("sequence", self.sequence, _GROWTH)

    def looks(self) -> list[int]:
        made, at = [], _FIRST_LOOK
        while at < self.n:
            made.append(at)
            at = 10 * math.ceil(at * _GROWTH[self.sequence] / 10)
        return [*made, self.n]

    def lower(self, k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
        if self.sequence == "betting":
            return confidence_bounds.betting_lower(k, n, alpha / 2)
        return confidence_bounds.clopper_pearson_lower(k, n, alpha / 2 * self._share(n))

    def hope(self, k: int, n: int, alpha: float) -> float:
        odds = confidence_bounds.betting_upper(k, n, _FUTILITY)
        return min(float(odds), float(self.lower(k + self.n - n, self.n, alpha)))

    def rival_hope(self, k: int, n: int, alpha: float) -> float:
        if n == self.n:
            return super().rival_hope(k, n, alpha)
        odds = float(confidence_bounds.betting_lower(k, n, _FUTILITY))
        return max(odds, float(self.rival_upper(k, self.n, alpha)))

    def _share(self, n: ArrayLike) -> Numbers:
        """Of alpha, what the union bound spends at look n."""
        looks = np.asarray(self.looks())
        if not np.all(np.isin(n, looks)):
            raise ValueError(f"Expected votes at one of the plan's looks, got {n} samples.")
        number = np.searchsorted(looks, n) + 1
        return 1 / (number * (number + 1))

    def _reaches(self, k: int, n: int, p: np.ndarray, alpha: float) -> np.ndarray:
        """Whether `lower` is at least p, without computing it."""
        if self.sequence == "betting":
            return confidence_bounds.log_wealth(k, n, p) >= np.log(2 / alpha) + 2 * confidence_bounds.wealth_error(n)
        return self.lower(k, n, alpha) >= p

    def _reachable(self, k: int, n: int, p: np.ndarray, alpha: float) -> np.ndarray:
        """Whether p can still be reached: not if the remaining votes, all for the class, or the odds forbid it."""
        odds = confidence_bounds.log_wealth(n - k, n, 1 - p) < np.log(1 / _FUTILITY)
        return odds & self._reaches(k + self.n - n, self.n, p, alpha)


@dataclass(frozen=True)
class ToRadius(_Adaptive):
    """Decide for each of some radii whether it is certified, and stop.

    Attributes:
      radii: ascending, > 0. Votes stop where the largest of them is certified, or the next one is out of reach: even if
        all votes to come were for the class, or, with 95 % confidence, because the probability is too low.
      published: decide so for the radius that the paper publishes, too: stop where both are decided by the same votes.
      correct_only: decide so for correct predictions alone: stop where the class of the image's label has the largest
        of the radii, or the next one is out of its reach. Certified accuracy is as without; of a wrong prediction the
        radius, which is valid, is as large as few votes make it, and many become abstentions.
    """

    name: ClassVar[str] = "to_radius"
    radii: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    published: bool = False
    correct_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "radii", tuple(self.radii))
        if not (self.radii and validate.ascend(self.radii, above=0)):
            raise SettingError(f"Expected radii to ascend from above 0, got {self.radii}.", "radii")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"Expected {name} to be True or False, got {getattr(self, name)!r}.", name)

    @property
    def asks_published(self) -> bool:
        return self.published

    @property
    def asks_labels(self) -> bool:
        return self.correct_only

    def worthwhile(self, now: float, best: float) -> bool:
        return any(now < radius <= best for radius in self.radii)

    def stopping(self, radius_of: RadiusOf, alpha: float, label: int | None = None) -> Callable[[np.ndarray], bool]:
        has = radius_of(np.zeros(1))[0]
        ahead = [radius for radius in self.radii if radius > has]
        goals = needed_probabilities(radius_of, ahead, float(self.lower(self.n, self.n, alpha)))

        def finished(votes: np.ndarray) -> bool:
            k, n = int(np.max(votes[:-1]) if label is None else votes[label]), int(np.sum(votes))
            left = goals[~self._reaches(k, n, goals, alpha)]
            return not len(left) or not self._reachable(k, n, left[:1], alpha)[0]

        return finished


@dataclass(frozen=True)
class ToPrecision(_Adaptive):
    """Stop where more votes would not add more than a fraction to the radius.

    Attributes:
      precision: that fraction: stop where the radius is at least 1 - precision times the radius at the upper end of the
        95 % confidence sequence (and at what n votes could still prove).
    """

    name: ClassVar[str] = "to_precision"
    precision: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.in_open_unit_interval("precision", self.precision)

    def worthwhile(self, now: float, best: float) -> bool:
        return now < (1 - self.precision) * best

    def stopping(self, radius_of: RadiusOf, alpha: float, label: int | None = None) -> Callable[[np.ndarray], bool]:
        def finished(votes: np.ndarray) -> bool:
            k, n = int(np.max(votes[:-1])), int(np.sum(votes))
            now, best = radius_of(np.array([self.lower(k, n, alpha), self.hope(k, n, alpha)]))
            return not self.worthwhile(now, best)

        return finished


@dataclass(frozen=True)
class ToSignificance(_Adaptive):
    """For prediction: stop where `confidence_bounds.predict_sequential` names a class."""

    name: ClassVar[str] = "to_significance"

    def stopping(self, radius_of: RadiusOf, alpha: float, label: int | None = None) -> Callable[[np.ndarray], bool]:
        return lambda votes: confidence_bounds.predict_sequential(votes, alpha) != confidence_bounds.ABSTAIN


PLANS: dict[str, type[Plan]] = {plan.name: plan for plan in (Fixed, SelectionFree, ToRadius, ToPrecision, Exhaustive)}


def describe(plan: Plan) -> Json:
    """A plan as plain values, as manifests hold it: its name as `plan`, `n0`, `n` and what else it has."""
    described = {"plan": plan.name, "n0": plan.selection, **asdict(plan)}
    return {name: value for name, value in described.items() if name not in SWITCHES or value}  # older runs have none


def from_description(description: Json) -> Plan:
    """The plan that `describe` described; other keys are ignored."""
    plan = PLANS[validate.one_of("plan", description["plan"], PLANS)]
    there = description | {name: description.get(name) is True for name in SWITCHES}  # else of a scheme of one's own
    stored = {field.name: there[field.name] for field in fields(plan)}
    values: Json = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    return plan(**values)


def needed_probabilities(radius_of: RadiusOf, radii: Sequence[float], most: float) -> np.ndarray:
    """The p_lower at which an image gets each radius, ascending; radii that `most` does not give are left out.

    Rounded up by 1e-8 of 1 - p: at the result the radius is reached.
    """
    wanted = np.asarray(radii, np.float64)
    quantile = float(special.ndtri(most))
    if not (quantile > 0 and len(wanted)):
        return np.zeros(0)
    _, high = root_finding.bracket(
        lambda rows, x: wanted[rows] - radius_of(special.ndtr(x)),
        np.zeros(len(wanted)),
        np.full(len(wanted), quantile),
        resolution=1e-9,
    )
    reached = radius_of(special.ndtr(high)) >= wanted
    return 1 - (1 - special.ndtr(high[reached])) * (1 - 1e-8)
