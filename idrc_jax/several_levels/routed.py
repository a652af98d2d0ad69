"""The certificate of `routed`: a smoothed router chooses the noise level (after Sun, Mao and Vechev 2026).

The router's answer at an image x is the likeliest under noise of its own level r; let it be k, with a probability of at
least q, and Q = r Phi^-1(q) where q > 1/2, else 0. The smoothed classifier's class at x is the likeliest under s_k; let
it be A, and R_j = s_j Phi^-1(p_j), p_j > 1/2 bounding from below how likely A is under s_j; 0 without such a bound.
Then the class is A at every image nearer than

    R = min( R_k, max( Q, min over j != k of R_j ) ):

inside Q the router's answer is k, whose level keeps A inside R_k; inside all of the R_j every level keeps A, whatever
the router answers. So votes under another level than the router's serve where the router alone would cut the radius.
The proof, and what part of alpha each bound has, are in docs/explanation/certificates.md.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from idrc_jax.certificates import confidence_bounds, radii, schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.level_schemes import Routed
from idrc_jax.certificates.radii import Certificate
from idrc_jax.several_levels.level_bounds import LevelBounds

ROUTER = 0  # its level


@dataclass(frozen=True)
class Bounds(LevelBounds):
    """What votes of a router, and of a classifier under the level that it chooses, prove.

    Attributes:
      scheme: that of the router.
      alpha: error probability of an image: the router's bound has its share, and the bound on the class under each
        level the other, whole. A wrong answer of the router is an error like any other.
      Others: see `LevelBounds`.
    """

    scheme: Routed

    @cached_property
    def errors(self) -> tuple[float, float]:
        """Error probabilities of the bound on the router's answer, and of that on the class under each level."""
        of_router, of_class = self.scheme.parts_of(self.alpha).tolist()
        return of_router, of_class

    def classes(self, level: int, classes: int) -> int:
        """How many answers votes under a level choose from, the classifier's being `classes`."""
        return len(self.scheme.levels) if level == ROUTER else classes

    def error(self, level: int) -> float:
        """That of the bound under a level."""
        return self.errors[min(level, 1)]

    def radius_of(self, level: int, p: np.ndarray) -> np.ndarray:
        """s Phi^-1(p), rounded down: how far what is voted on under a level stays, p bounding it from below."""
        return radii.radius(self._gaussians[level], 0.0, p, dim=1)

    def lower(self, one: LevelVotes, name: int) -> float:
        """The bound on an answer or a class, `name`, by votes under a level; 0 for -1."""
        if name == confidence_bounds.ABSTAIN:
            return 0.0
        return float(self.paid(one.level, self.plan.lower(one.votes[name], sum(one.votes), self.error(one.level))))

    def reached(self, one: LevelVotes, name: int, *, hoped: bool = False) -> float:
        """How far an answer or a class, `name`, stays.

        Args:
          hoped: how far it may be, instead, where the plan can draw more votes: with 95 % confidence no farther.
        """
        return _reached(self, one, name, hoped)

    @cached_property
    def reaches(self) -> list[float]:
        """How far what is voted on under each level stays at most, the router's answer first."""
        looks, made = np.asarray(self.plan.looks()), []
        for level in range(schemes.level_count(self.scheme)):
            unanimous = self.paid(level, self.plan.lower(looks, looks, self.error(level)))
            made.append(float(np.max(self.radius_of(level, unanimous))))
        return made

    def radius(self, drawn: Sequence[LevelVotes]) -> float:
        """That of the class of the level that the router chose, by votes of the router, of that level, and others."""
        router, chosen, *others = drawn
        own = self.reached(chosen, chosen.selected)
        return min(own, max(self.reached(router, answer_of(chosen)), self.without_router(chosen, others)))

    def without_router(self, chosen: LevelVotes, others: Sequence[LevelVotes], *, hoped: bool = False) -> float:
        """How far all levels but the chosen one keep its class; 0 while there are levels without votes.

        Args:
          hoped: how far they may, instead, where the plan can draw more votes, be it under levels without any.
        """
        found = {one.level: self.reached(one, chosen.selected, hoped=hoped) for one in others}
        missing = self.reaches if hoped else [0.0] * len(self.reaches)
        levels = [level for level in range(ROUTER + 1, len(missing)) if level != chosen.level]
        return min(found.get(level, missing[level]) for level in levels)

    def within_reach(self, chosen: int, router: float) -> float:
        """The largest radius under a chosen level, the router's answer for it reaching so far."""
        others = [reach for level, reach in enumerate(self.reaches) if level not in (ROUTER, chosen)]
        return min(self.reaches[chosen], max(router, min(others)))

    @property
    def largest_radius(self) -> float:
        """The largest that any votes give."""
        return max(self.within_reach(level, self.reaches[ROUTER]) for level in range(ROUTER + 1, len(self.reaches)))

    @cached_property
    def most_lower(self) -> float:
        """The largest lower bound on its class's probability that votes for one class alone give."""
        looks = np.asarray(self.plan.looks())
        unanimous = self.plan.lower(looks, looks, self.errors[1])
        return max(float(np.max(self.paid(level, unanimous))) for level in range(1, schemes.level_count(self.scheme)))

    def check(self) -> None:
        """ValueError unless n votes, all alike, certify something with the smaller share of alpha."""
        self.plan.check(min(self.errors))

    @cached_property
    def _gaussians(self) -> list[schemes.Gaussian]:
        return [schemes.Gaussian(sigma=level) for level in schemes.least_levels(self.scheme).tolist()]


def certificate(bounds: Bounds, drawn: Sequence[LevelVotes]) -> Certificate:
    """What an image's votes certify.

    Args:
      bounds: of the router, its plan and alpha.
      drawn: votes of the router, of the classifier under the level that the router chose, if there are any, and under
        others.

    Returns:
      That of the class, with the classifier's numbers under the chosen level; without its votes an abstention without a
      class. All votes are in `votes_by_level`.

    Guarantee: with probability at least 1 - alpha over the votes, `radius` is valid for the smoothed classifier whose
    level is the router's exact answer, not the estimated one.
    """
    chosen = drawn[min(1, len(drawn) - 1)]
    selected, p, radius, votes = confidence_bounds.ABSTAIN, 0.0, 0.0, (0,)
    if chosen.level != ROUTER:
        selected, votes, p = chosen.selected, chosen.votes, bounds.lower(chosen, chosen.selected)
        radius = bounds.radius(drawn)
    return Certificate(
        predict=selected if radius > 0 else confidence_bounds.ABSTAIN,
        radius=radius,
        radius_published=math.nan,
        selected=selected,
        statistic=0.0,
        sigma_x=float(schemes.drawn_levels(bounds.scheme, 0.0)[chosen.level]),
        p_lower=p,
        n=sum(votes),
        n0=bounds.plan.selection,
        votes=votes,
        votes_by_level=tuple(drawn),
    )


@functools.lru_cache(maxsize=4096)
def _reached(bounds: Bounds, one: LevelVotes, name: int, hoped: bool) -> float:
    """See `Bounds.reached`."""
    p = bounds.lower(one, name)
    if hoped and name != confidence_bounds.ABSTAIN:
        p = float(bounds.paid(one.level, bounds.plan.hope(one.votes[name], sum(one.votes), bounds.error(one.level))))
    return float(bounds.radius_of(one.level, np.asarray(p)))


def answer_of(chosen: LevelVotes) -> int:
    """The router's answer that led to a level."""
    return chosen.level - 1


def level_of(answer: int) -> int:
    """The level that an answer of the router leads to."""
    return answer + 1


@dataclass(frozen=True, eq=False)
class RoutedCourse:
    """The course of one image: the router's votes, the class's under the level that it chose, more of the router's,
    and, where these cut the radius, the class's under the other levels.

    The router is first asked for no more than a majority for an answer. Votes for the class are then drawn as far as
    they may count, and the router is gone on with, as far as the class has come, but no farther. If it does not come
    that far, the other levels are asked to.
    """

    bounds: Bounds
    _kept: dict[Any, Callable[[np.ndarray], bool]] = field(default_factory=dict, init=False)

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        bounds, router = self.bounds, drawn[0]
        if len(drawn) == 1:
            if router.selected == confidence_bounds.ABSTAIN:
                return None
            level = level_of(router.selected)
            return level if bounds.plan.worthwhile(0.0, self._best(router, level)) else None
        chosen, others = drawn[1], drawn[2:]
        most, now = bounds.reached(chosen, chosen.selected), bounds.radius(drawn)
        routed = bounds.reached(router, answer_of(chosen), hoped=True)
        if sum(router.votes) < bounds.plan.n and bounds.plan.worthwhile(now, min(most, routed)):
            return ROUTER
        missing = set(range(ROUTER + 1, len(bounds.reaches))) - {one.level for one in drawn}
        best = min(most, bounds.without_router(chosen, others, hoped=True))
        return min(missing) if missing and bounds.plan.worthwhile(now, best) else None

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        bounds, router = self.bounds, drawn[0]
        if len(drawn) == 1:
            return bounds.reached(router, router.selected) > 0 or not self._may_decide(router)
        chosen, others = drawn[1], drawn[2:]
        if level == chosen.level:
            return self._rule(level, self._best(router, level))(np.asarray(chosen.votes))
        under_way = router if level == ROUTER else others[-1]
        name = answer_of(chosen) if level == ROUTER else chosen.selected
        most, now = bounds.reached(chosen, chosen.selected), 0.0
        if level != ROUTER:
            now = min(most, bounds.reached(router, answer_of(chosen)))
            most = min(most, bounds.without_router(chosen, others[:-1], hoped=True))
        own = under_way.votes[name]
        return self._rule(level, most, now)(np.asarray([own, sum(under_way.votes) - own]))

    def _may_decide(self, router: LevelVotes) -> bool:
        """Whether the router may come as far as the plan asks, be it how little."""
        if router.selected == confidence_bounds.ABSTAIN:
            return sum(router.votes) < self.bounds.plan.n
        return self.bounds.plan.worthwhile(0.0, self.bounds.reached(router, router.selected, hoped=True))

    def _best(self, router: LevelVotes, level: int) -> float:
        """The largest radius that may come under a level, by the router's votes."""
        return self.bounds.within_reach(level, self.bounds.reached(router, level - 1, hoped=True))

    def _rule(self, level: int, most: float, least: float = 0.0) -> Callable[[np.ndarray], bool]:
        """The plan's stop rule of a level, whose radius is cut at `most` and counts from `least`."""
        if (level, most, least) not in self._kept:
            bounds = self.bounds

            def radius_of(p: np.ndarray) -> np.ndarray:
                return np.maximum(np.minimum(bounds.radius_of(level, bounds.paid(level, p)), most), least)

            self._kept[level, most, least] = bounds.plan.stopping(radius_of, bounds.error(level))
        return self._kept[level, most, least]


@dataclass(frozen=True)
class PredictionCourse:
    """The course of a prediction: the router's votes until they name an answer, then the class's until they do.

    If the router's do not, those of the class under every level, as long as they name the same one.

    Attributes:
      bounds: with the plan of the prediction.
      name: votes [K + 1] and an error probability -> what they name, or -1.

    Guarantee: if `name` errs with at most the error probability that it is given, `answer` is another class than the
    smoothed classifier's with probability at most alpha. The router's answer and the class under a level are named each
    at its share of alpha. A class that all levels name is wrong only if the name under one level is, that of the
    router's exact answer.
    """

    bounds: Bounds
    name: Callable[[np.ndarray, float], int]

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        answer, classes = self._answer(drawn), self._classes(drawn)
        if answer != confidence_bounds.ABSTAIN:
            return None if classes else level_of(answer)
        agree = len(set(classes)) < 2 and confidence_bounds.ABSTAIN not in classes
        return len(drawn) if agree and len(drawn) < schemes.level_count(self.bounds.scheme) else None

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        named = self._classes(drawn)[-1] if len(drawn) > 1 else self._answer(drawn)
        return named != confidence_bounds.ABSTAIN

    def answer(self, drawn: Sequence[LevelVotes]) -> int:
        """The class; -1 where it is undecided, or the router is and the levels have not all named the same class."""
        classes = self._classes(drawn)
        enough = 1 if self._answer(drawn) != confidence_bounds.ABSTAIN else len(self.bounds.scheme.levels)
        return classes[0] if len(classes) == enough and len(set(classes)) == 1 else confidence_bounds.ABSTAIN

    def _answer(self, drawn: Sequence[LevelVotes]) -> int:
        """What the router's votes name."""
        return self.name(np.asarray(drawn[0].votes), self.bounds.error(ROUTER))

    def _classes(self, drawn: Sequence[LevelVotes]) -> list[int]:
        """What the votes for classes name, level by level."""
        return [self.name(np.asarray(one.votes), self.bounds.error(one.level)) for one in drawn[1:]]
