"""The certificate of `routed`: a smoothed router chooses the noise level (after Sun, Mao and Vechev 2026).

The router's answer at an image x is the likeliest under noise of its own level r; let it be k, with a probability of at
least q > 1/2. The smoothed classifier's class at x is the likeliest under s_k; let it be A, with a probability of at
least p > 1/2. Then both are the same at every image nearer than

    R = min( r Phi^-1(q), s_k Phi^-1(p) ):

inside the first radius the router's answer, and so the law of the noise, does not change; inside the second the class
does not, under that law. The proof, and what part of alpha each bound has, are in docs/explanation/certificates.md.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from idrc_jax.certificates import confidence_bounds, radii, schemes
from idrc_jax.certificates.level_schemes import Routed
from idrc_jax.certificates.radii import Certificate
from idrc_jax.certificates.sampling_plans import LevelVotes
from idrc_jax.several_levels.level_bounds import LevelBounds

ROUTER = 0  # its level


@dataclass(frozen=True)
class Bounds(LevelBounds):
    """What votes of a router, and of a classifier under the level that it chooses, prove.

    Attributes:
      scheme: that of the router.
      alpha: error probability of an image, shared by the two bounds as the scheme says. A wrong answer of the router is
        an error like any other.
      Others: see `LevelBounds`.
    """

    scheme: Routed

    @cached_property
    def errors(self) -> tuple[float, float]:
        """Error probabilities of the bound on the router's answer, and of that on the class."""
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
        """The largest radius that each level can give: the router's is its own, of the others it is cut by that."""
        looks, made = np.asarray(self.plan.looks()), []
        for level in range(schemes.level_count(self.scheme)):
            unanimous = self.paid(level, self.plan.lower(looks, looks, self.error(level)))
            made.append(float(np.max(self.radius_of(level, unanimous))))
        return [made[ROUTER], *(min(made[ROUTER], one) for one in made[1:])]

    @property
    def largest_radius(self) -> float:
        """The largest that any votes give."""
        return max(self.reaches[ROUTER + 1 :])

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
      drawn: votes of the router and, unless it is undecided, of the classifier under the level that the router chose.

    Returns:
      That of the class, with the classifier's numbers; for an undecided router an abstention without a class and
      without votes for one. All votes are in `votes_by_level`.

    Guarantee: with probability at least 1 - alpha over the votes, `radius` is valid for the smoothed classifier whose
    level is the router's exact answer, not the estimated one.
    """
    router, chosen = drawn[0], drawn[-1]
    selected, p, radius, votes = confidence_bounds.ABSTAIN, 0.0, 0.0, (0,)
    if chosen.level != ROUTER:
        selected, votes, p = chosen.selected, chosen.votes, bounds.lower(chosen, chosen.selected)
        radius = min(bounds.reached(router, answer_of(chosen)), bounds.reached(chosen, selected))
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
    """The course of one image: the router's votes, the class's under the level that it chose, more of the router's.

    The router is first asked for no more than a majority for an answer. Votes for the class are then drawn as far as
    the router may come, and at last the router is gone on with, as far as the class has come, but no farther.
    """

    bounds: Bounds
    _kept: dict[Any, Callable[[np.ndarray], bool]] = field(default_factory=dict, init=False)

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        bounds, router = self.bounds, drawn[0]
        if len(drawn) == 1:
            return level_of(router.selected) if self._has_answer(router) and self._is_of_use(router) else None
        answer, most = answer_of(drawn[1]), bounds.reached(drawn[1], drawn[1].selected)
        now, best = (min(bounds.reached(router, answer, hoped=hoped), most) for hoped in (False, True))
        return ROUTER if sum(router.votes) < bounds.plan.n and bounds.plan.worthwhile(now, best) else None

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        bounds, router = self.bounds, drawn[0]
        if len(drawn) == 1:
            return self._has_answer(router) or not self._is_of_use(router)
        chosen, answer = drawn[1], answer_of(drawn[1])
        if level == ROUTER:
            own = router.votes[answer]
            votes = np.asarray([own, sum(router.votes) - own])
            return self._rule(ROUTER, bounds.reached(chosen, chosen.selected))(votes)
        return self._rule(level, bounds.reached(router, answer, hoped=True))(np.asarray(chosen.votes))

    def _has_answer(self, router: LevelVotes) -> bool:
        """Whether the router's votes show a majority for an answer."""
        return self.bounds.reached(router, router.selected) > 0

    def _is_of_use(self, router: LevelVotes) -> bool:
        """Whether the router and the level of its answer may come as far as the plan asks, be it how little."""
        if router.selected == confidence_bounds.ABSTAIN:
            return sum(router.votes) < self.bounds.plan.n
        best = self.bounds.reached(router, router.selected, hoped=True)
        return self.bounds.plan.worthwhile(0.0, min(best, self.bounds.reaches[level_of(router.selected)]))

    def _rule(self, level: int, most: float) -> Callable[[np.ndarray], bool]:
        """The plan's stop rule of a level, whose radius is cut at `most`."""
        if (level, most) not in self._kept:
            bounds = self.bounds

            def radius_of(p: np.ndarray) -> np.ndarray:
                return np.minimum(bounds.radius_of(level, bounds.paid(level, p)), most)

            self._kept[level, most] = bounds.plan.stopping(radius_of, bounds.error(level))
        return self._kept[level, most]


@dataclass(frozen=True)
class PredictionCourse:
    """The course of a prediction: the router's votes until they name an answer, then the class's until they do.

    Attributes:
      bounds: with the plan of the prediction.
      name: votes [K + 1] and an error probability -> what they name, or -1.

    Guarantee: if `name` errs with at most the error probability that it is given, `answer` is another class than the
    smoothed classifier's with probability at most alpha.
    """

    bounds: Bounds
    name: Callable[[np.ndarray, float], int]

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        answer = self._named(drawn[0])
        return None if len(drawn) > 1 or answer == confidence_bounds.ABSTAIN else level_of(answer)

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        return self._named(drawn[-1]) != confidence_bounds.ABSTAIN

    def answer(self, drawn: Sequence[LevelVotes]) -> int:
        """The class, or -1 where router or classifier are undecided."""
        return confidence_bounds.ABSTAIN if drawn[-1].level == ROUTER else self._named(drawn[-1])

    def _named(self, one: LevelVotes) -> int:
        return self.name(np.asarray(one.votes), self.bounds.error(one.level))
