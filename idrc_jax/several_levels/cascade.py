"""The certificate of `cascade`: the largest noise level that is sure decides (after Jeong and Shin 2023).

With levels s_1 > ... > s_K, thresholds t_k >= 1/2 (t_K = 1/2) and P_k(c) the probability of class c under s_k, the
smoothed classifier answers with A at the first k with P_k(A) > t_k. Let p be a lower bound on P_k(A), and q_j, for each
j < k, an upper bound on P_j(c) for every class c but A. Then it answers with A at every image nearer than

    R_k = min( s_k (Phi^-1(p) - Phi^-1(t_k)), min over j < k of s_j (Phi^-1(t_j) - Phi^-1(q_j)) ).

That holds for each k by itself, whether or not an earlier level answers with A, too: so the radius is the largest R_k
of the levels that votes were drawn under, and a level is worth its votes where it could raise that. The proof, and what
part of alpha each bound has, are in docs/explanation/certificates.md.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special

from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes
from idrc_jax.certificates.confidence_bounds import Numbers
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.level_schemes import Cascade
from idrc_jax.certificates.radii import Certificate
from idrc_jax.core.validate import SettingError
from idrc_jax.several_levels.level_bounds import LevelBounds

# SciPy's normal quantile is good to about 1e-15 of itself; differences lose 2**-40 (9e-13) of what is subtracted.
_MARGIN = 2.0**-40


@dataclass(frozen=True)
class Bounds(LevelBounds):
    """What votes under the levels of a cascade prove.

    Attributes:
      scheme: the cascade.
      alpha: error probability of an image. Level k has its share of it: half for the lower bound on its class, half for
        the upper bound on the others; the last level, which needs no upper bound, all for the lower bound.
      Others: see `LevelBounds`.
    """

    scheme: Cascade

    @cached_property
    def levels(self) -> np.ndarray:
        """See `schemes.least_levels`."""
        return schemes.least_levels(self.scheme)

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Of each level."""
        return np.asarray([*self.scheme.thresholds, 0.5])

    @cached_property
    def errors(self) -> np.ndarray:
        """Error probability of each level's lower bound and, but for the last, of its upper bound."""
        last = len(self.levels) - 1
        return self.scheme.parts_of(self.alpha) / np.where(np.arange(last + 1) < last, 2, 1)

    def classes(self, level: int, classes: int) -> int:
        """How many answers votes under a level choose from: the classifier's."""
        return classes

    def lower(self, level: int, k: int | np.ndarray, n: int | np.ndarray) -> Numbers:
        """The bound on a class with k of n votes under a level."""
        return self.paid(level, self.plan.lower(k, n, float(self.errors[level])))

    def own(self, level: int, p: Numbers) -> Numbers:
        """s (Phi^-1(p) - Phi^-1(t)): how far the class keeps more than the threshold, p bounding it from below."""
        return self.levels[level] * _gap(p, self.thresholds[level])

    def room(self, level: int, q: Numbers) -> Numbers:
        """s (Phi^-1(t) - Phi^-1(q)): how far no other class exceeds the threshold, q bounding them from above."""
        return self.levels[level] * _gap(self.thresholds[level], q)

    def rooms(self, drawn: Sequence[LevelVotes], *, hoped: bool = False) -> np.ndarray:
        """How far no class but this one is the answer of one of these levels: float64 [K], none without any level.

        Args:
          hoped: how far it may be, instead, where the plan can draw more votes: with 95 % confidence no farther.
        """
        return np.min([_room_of(self, one, hoped) for one in drawn], axis=0) if drawn else np.zeros(0)

    @cached_property
    def reaches(self) -> list[float]:
        """The largest radius that each level and those after it can give; 0 after the last."""
        looks, made = np.asarray(self.plan.looks()), [0.0]
        for level in reversed(range(len(self.levels))):
            unanimous = self.lower(level, looks, looks)
            made.append(max(made[-1], float(np.max(self.own(level, unanimous)))))
        return made[::-1]

    @property
    def largest_radius(self) -> float:
        """The largest that any votes give."""
        return self.reaches[0]

    @cached_property
    def most_lower(self) -> float:
        """The largest lower bound that votes for one class alone give."""
        looks = np.asarray(self.plan.looks())
        return max(float(np.max(self.lower(level, looks, looks))) for level in range(len(self.levels)))

    def radii(self, drawn: Sequence[LevelVotes]) -> list[tuple[float, float]]:
        """R_k and the lower bound p of each of these levels, R_k not above 0 where it certifies nothing."""
        found = []
        for number, one in enumerate(drawn):
            if one.selected == confidence_bounds.ABSTAIN:
                found.append((0.0, 0.0))
                continue
            p = _lower_of(self, one)
            room = self.rooms(drawn[:number])[one.selected] if number else np.inf
            found.append((float(min(self.own(one.level, np.asarray(p)), room)), p))
        return found

    def radius(self, drawn: Sequence[LevelVotes]) -> float:
        """The largest R_k of these levels, 0 where none certifies."""
        return max((0.0, *(radius for radius, _ in self.radii(drawn))))

    def check(self) -> None:
        """ValueError unless n votes under each level, all for one class, exceed its threshold."""
        for level, threshold in enumerate(self.thresholds.tolist()):

            def enough(n: int, level: int = level, threshold: float = threshold) -> bool:
                return bool(replace(self, plan=replace(self.plan, n=n)).lower(level, n, n) > threshold)

            if not enough(self.plan.n):
                if not enough(sampling_plans.MOST):
                    raise SettingError(f"Expected thresholds that votes can exceed, got {threshold}.", "thresholds")
                most = next(most for most in (self.plan.n * 2**power for power in itertools.count()) if enough(most))
                least = bisect.bisect_left(range(most), True, key=lambda n: n >= self.plan.n and enough(n))
                raise SettingError(
                    f"Expected n >= {least}, the fewest samples that can exceed the threshold {threshold} of level "
                    f"{self.levels[level]:g} at its share of alpha = {self.alpha:g}, got {self.plan.n}.",
                    "n",
                )


def certificate(bounds: Bounds, drawn: Sequence[LevelVotes]) -> Certificate:
    """What an image's votes certify.

    Args:
      bounds: of the cascade, its plan and alpha.
      drawn: votes under levels 0, 1, ..., at least one.

    Returns:
      That of the level with the largest radius, or an abstention with the numbers of the last level; with all votes.

    Guarantee: with probability at least 1 - alpha over the votes, `radius` is valid for the cascade.
    """
    found = bounds.radii(drawn)
    best = max(range(len(found)), key=lambda number: (found[number][0], -number))
    certified = found[best][0] > 0
    number = best if certified else len(found) - 1
    chosen = drawn[number]
    return Certificate(
        predict=chosen.selected if certified else confidence_bounds.ABSTAIN,
        radius=found[number][0] if certified else 0.0,
        radius_published=math.nan,
        selected=chosen.selected,
        statistic=0.0,
        sigma_x=float(schemes.drawn_levels(bounds.scheme, 0.0)[chosen.level]),
        p_lower=found[number][1],
        n=sum(chosen.votes),
        n0=bounds.plan.selection,
        votes=chosen.votes,
        votes_by_level=tuple(drawn),
    )


@dataclass(frozen=True, eq=False)
class CascadeCourse:
    """The course of one image: level by level, as long as the next can raise the radius.

    Under a new level it is asked how sure its class is. Only if it is surer than the levels before leave it room, are
    those gone on with, until there is room or plainly none. Both are the plan's own questions, of other probabilities.
    """

    bounds: Bounds
    _kept: dict[Any, Any] = field(default_factory=dict, init=False)  # what was computed once

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        bounds, level = self.bounds, len(drawn)
        for one in drawn[:-1]:
            if sum(one.votes) < bounds.plan.n and not self._has_room(drawn, one.level):
                return one.level
        best = min(bounds.reaches[level], float(np.max(bounds.rooms(drawn, hoped=True))))
        return level if bounds.plan.worthwhile(bounds.radius(drawn), best) else None

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        if level < len(drawn) - 1:
            return self._has_room(drawn, level)
        before, votes = drawn[:-1], np.asarray(drawn[-1].votes)
        most = float(self.bounds.rooms(before, hoped=True)[np.argmax(votes[:-1])]) if before else np.inf
        return self._rule(level, "own", self.bounds.radius(before), most)(votes)

    def _has_room(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        """Whether votes under a level show, or cannot show, that there is room for the classes of those after it."""
        bounds, classes, n = self.bounds, np.asarray(drawn[level].votes[:-1]), sum(drawn[level].votes)
        others = bounds.rooms([one for one in drawn[:-1] if one.level != level], hoped=True)
        least = bounds.radius(drawn[:level])
        for one in drawn[level + 1 :]:
            if one.selected == confidence_bounds.ABSTAIN:
                continue
            p = _lower_of(bounds, one)
            most = min(float(bounds.own(one.level, p)), float(others[one.selected]) if len(others) else np.inf)
            if bounds.plan.worthwhile(least, most):
                rival = int(np.max(np.delete(classes, one.selected)))
                rule = self._rule(level, "room", least, most)
                if not rule(np.asarray([n - rival, rival])):
                    return False
        return True

    def _rule(self, level: int, what: str, least: float, most: float) -> Callable[[np.ndarray], bool]:
        """The plan's stop rule for what a bound makes of the radius, which is `least` at least and `most` at most: that
        on the level's own class, or that on not being its rival, which makes room."""
        key = (level, what, least, most)
        if key not in self._kept:
            bounds = self.bounds

            def radius_of(p: np.ndarray) -> np.ndarray:
                p = bounds.paid(level, p)
                reached = bounds.own(level, p) if what == "own" else bounds.room(level, 1 - p)
                return np.maximum(np.minimum(reached, most), least)

            self._kept[key] = bounds.plan.stopping(radius_of, float(bounds.errors[level]))
        return self._kept[key]


@functools.lru_cache(maxsize=4096)
def _lower_of(bounds: Bounds, one: LevelVotes) -> float:
    """The lower bound on a level's own class."""
    return float(bounds.lower(one.level, one.votes[one.selected], sum(one.votes)))


@functools.lru_cache(maxsize=4096)
def _room_of(bounds: Bounds, one: LevelVotes, hoped: bool) -> np.ndarray:
    """A level's room for each class (see `Bounds.rooms`), not to be changed."""
    classes, n = np.asarray(one.votes[:-1]), sum(one.votes)
    bound = bounds.plan.rival_hope if hoped else bounds.plan.rival_upper
    room = np.empty(len(classes))
    for winner, most in _rivals(classes):
        room[winner] = bounds.room(one.level, bounds.risen(one.level, bound(most, n, float(bounds.errors[one.level]))))
    return room


def _rivals(classes: np.ndarray) -> tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]]:
    """The most votes that another class has, for the class with most votes, and for all others: bool [K] and number."""
    first = np.arange(len(classes)) == np.argmax(classes)
    return (first, int(np.max(classes[~first], initial=0))), (~first, int(np.max(classes)))


def _gap(high: Numbers, low: Numbers) -> Numbers:
    """Phi^-1(high) - Phi^-1(low), rounded down; -inf where either is 0 or 1."""
    high, low = special.ndtri(high), special.ndtri(low)
    with np.errstate(invalid="ignore"):
        gap = high - low - _MARGIN * (np.abs(high) + np.abs(low))
    return np.where(np.isfinite(high) & np.isfinite(low), gap, -np.inf)[()]
