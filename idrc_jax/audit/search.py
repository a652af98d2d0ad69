"""The search for images x', near certified ones, at which another class is claimed to win under the noise of x'.

For an image x with its class A the attacks of `attacks` look for x' inside balls at which another class B wins. What
they find is *promising* where screening votes say so; then fresh votes decide, by the rule of `significance`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import Mesh
from scipy import stats

from idrc_jax import sampling
from idrc_jax.audit import attacks, balls, breaks, point_votes
from idrc_jax.audit.attacks import Attacker, Targets
from idrc_jax.audit.settings import Settings
from idrc_jax.certificates import Gaussian, Routed, Splitting, Stepped, confidence_bounds
from idrc_jax.certificates.schemes import Scheme, drawn_level, host_levels, level_count, on_grid
from idrc_jax.models import Classifier
from idrc_jax.sampling import random_keys

_ROWS = 64
_RAY = np.arange(1, 9) / 8
_HALVINGS = 4
_REFINED = 1.02


@dataclass(frozen=True)
class Candidate:
    """An x' that an attack proposes, float32 [H, W, C], and the strongest rival's share of the screening votes there
    (nan: not counted)."""

    attack: str
    image: np.ndarray = field(repr=False)
    share: float = math.nan


@dataclass(frozen=True)
class Attempt:
    """An x' of the search, float32 [H, W, C], and what fresh votes say about it (none: it was not promising).

    Under a scheme of several levels sigma_x and votes are those of the level that p_value is of.
    """

    attack: str
    image: np.ndarray = field(repr=False)
    distance: float
    sigma_x: float
    rival: int = confidence_bounds.ABSTAIN
    votes: tuple[int, ...] = ()
    p_value: float = 1.0
    broken: bool = False


@dataclass
class Search:
    """How far the search around one image has come.

    Attributes:
      position: of the image among those to be searched around.
      answer: the router's there, by votes; -1 without one.
      image, index, predict: float32 [H, W, C]; what names its noise; its certified class.
      budgets: distances to try, descending.
      refinements: how many more to try afterwards, see `Settings`.
      law: `attacks.law_directions` at the image.
      best: the most promising point of the last ball, from which the next, smaller one begins.
      searched: noise samples that attacks have used.
      nearest: the nearest break so far.
      tried: what came closest to a break nearer than each budget, where there was none.
      confirmed, failed: confirmations, and how many of them claimed nothing.
    """

    position: int
    image: np.ndarray = field(repr=False)
    index: int
    predict: int
    budgets: list[float]
    refinements: int
    law: np.ndarray = field(repr=False)
    best: Candidate
    searched: int
    answer: int = confidence_bounds.ABSTAIN
    nearest: Attempt | None = None
    tried: dict[float, Attempt] = field(default_factory=dict)
    confirmed: int = 0
    failed: int = 0

    def next_budget(self) -> float | None:
        """The largest one that is neither tried nor beyond the nearest break; then one that refines the nearest."""
        reach = math.inf if self.nearest is None else self.nearest.distance
        asked = next((budget for budget in self.budgets if budget <= reach and budget not in self.tried), None)
        if asked is not None or self.nearest is None or len(self.tried.keys() - self.budgets) == self.refinements:
            return asked
        free = max((budget for budget in self.tried if budget < reach), default=reach / 2)
        return math.sqrt(free * reach) if free * _REFINED < reach else None


class Searcher:
    """Searches around many images at once.

    Args:
      classifier, scheme: what is attacked.
      key: the run's typed key; the stages of the audit share no randomness with those of certification.
      norm: of the budgets.
      threshold: a break is claimed where the p-value of fresh votes is at most this (see `significance.threshold`).
      chunk, mesh: as for `sampling.count_votes`.
    """

    def __init__(
        self,
        classifier: Classifier,
        scheme: Scheme,
        settings: Settings,
        *,
        key: jax.Array,
        threshold: float,
        norm: str = "l2",
        chunk: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        self._execution = sampling.unmeasured(classifier, mesh, chunk).placed()
        self._scheme, self._settings, self._threshold, self._norm = scheme, settings, threshold, norm
        # A gradient keeps all intermediate results, votes only the largest.
        a_device = min(max(self._execution.chunk // (8 * settings.samples), 1), _ROWS)
        self._rows = a_device * self._execution.mesh.size
        stages = (random_keys.SEARCH, random_keys.DIRECTION, random_keys.SCREENING, random_keys.CONFIRMATION)
        self._keys = {
            stage: [
                random_keys.stage(key, random_keys.stage_of_level(stage, level)) for level in range(level_count(scheme))
            ]
            for stage in stages
        }

        def attacker(classifier: Classifier, scheme: Scheme, level: int) -> Attacker:
            key = self._keys[random_keys.SEARCH][level]
            return Attacker(classifier, scheme, key, settings.steps, settings.samples, self._execution.mesh)

        router = self._execution.classifier.router if isinstance(scheme, Routed) else None
        self._attacker = attacker(self._execution.classifier, scheme, int(router is not None))
        self._router = router and attacker(router, Gaussian(float(drawn_level(scheme, 0.0))), 0)
        # How far above 1/2 the rival's share must be for fresh votes to confirm it probably: the critical value, and
        # two standard errors of the difference between screening and fresh votes.
        error = math.sqrt(1 / settings.votes + 1 / settings.screening)
        self._margin = stats.norm.isf(threshold) / (2 * math.sqrt(settings.votes)) + error
        # Votes of all offsets leave nothing to chance.
        self._all = scheme.positions if isinstance(scheme, Splitting) else 0
        self._margin = 0.0 if self._all else self._margin

    def run(
        self,
        images: np.ndarray,
        indices: np.ndarray,
        classes: np.ndarray,
        budgets: Sequence[Sequence[float]],
        *,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Search]:
        """Search around every image, nearer than each of its budgets; yield each as it is finished.

        Args:
          images: float32 [N, H, W, C].
          indices: [N], which name the noise.
          classes: [N], certified there.
          budgets: of each image, at least one, > 0.
          must_stop: asked now and then; unfinished images are lost then.

        An image is confirmed at most `Settings.attempts(len(budgets))` times. A budget that is larger than the distance
        of a break is not searched: the break is nearer than it.
        """
        waiting = deque(range(len(images)))
        pool: list[Search] = []
        while (waiting or pool) and not must_stop():
            if len(pool) < self._rows and waiting:
                new = [waiting.popleft() for _ in range(min(self._rows, len(waiting)))]
                pool += self._begin(new, images[new], indices[new], classes[new], [budgets[i] for i in new])
            elif pool:
                self._try_next_distance(pool[: self._rows])
            yield from (one for one in pool if one.next_budget() is None)
            pool = [one for one in pool if one.next_budget() is not None]

    def _begin(
        self,
        positions: Sequence[int],
        images: np.ndarray,
        indices: np.ndarray,
        classes: np.ndarray,
        budgets: Sequence[Sequence[float]],
    ) -> list[Search]:
        """New searches, after the minimal-norm attack and for the nearest break on the ray that it points out."""
        padding = self._padding(len(positions))
        largest = np.asarray([max(some) for some in budgets])
        targets = Targets(
            images[padding], indices[padding], classes[padding], largest[padding], on_grid(self._scheme), self._norm
        )
        moved = self._attacker.minimal_norm(targets, first=np.zeros(len(padding), int))
        far = attacks.within(targets, moved, stretch=True)
        laws = attacks.law_directions(self._scheme, targets.images, self._norm)
        answers = self._answers(images, indices)
        group = [
            Search(
                position=position,
                image=images[i],
                index=int(indices[i]),
                predict=int(classes[i]),
                budgets=sorted(set(budgets[i]), reverse=True),
                refinements=self._settings.refinements,
                law=laws[i],
                best=Candidate("minimal_norm", far[i]),
                searched=self._attacker.draws,
                answer=int(answers[i]),
            )
            for i, position in enumerate(positions)
        ]
        self._pursue(group, [one.best for one in group], np.ones(len(group), bool))
        return group

    def _try_next_distance(self, group: list[Search]) -> None:
        """All attacks, on each image at its next budget."""
        budgets = [one.next_budget() or 0.0 for one in group]
        padding = self._padding(len(group))
        targets = Targets(
            images=np.stack([one.image for one in group])[padding],
            indices=np.asarray([one.index for one in group])[padding],
            classes=np.asarray([one.predict for one in group])[padding],
            budgets=np.asarray(budgets)[padding],
            exact=on_grid(self._scheme),
            norm=self._norm,
        )
        candidates = self._starts(group, targets)
        middle = (targets.images[: len(group)] + np.stack([own[-1].image for own in candidates])) / 2
        confirmed: dict[int, Attempt] = {}
        for restart in range(self._settings.restarts):
            straight_through = restart % 2 == 1
            start = np.stack([_strongest(own).image for own in candidates]) if restart == 0 else middle
            first = np.asarray([one.searched for one in group])[padding]
            moved = self._attacker.pgd(targets, start[padding], first=first, straight_through=straight_through)
            name = "pgd_straight_through" if straight_through else "pgd"
            reached = self._screened(group, [[name] * len(group)], moved[None, : len(group)])
            for one, own, new in zip(group, candidates, reached, strict=True):
                one.searched += self._attacker.draws
                own += new
            aims = [_strongest(own) if restart == 0 else own[-1] for own in candidates]
            confirmed |= self._pursue(group, aims, np.asarray([aim.share > 0.5 for aim in aims]))
        for i, one in enumerate(group):
            one.best = _strongest(candidates[i])
            one.tried[budgets[i]] = confirmed.get(i) or self._attempt(one, one.best.attack, one.best.image)

    def _starts(self, group: list[Search], targets: Targets) -> list[list[Candidate]]:
        """Points near the edge of each image's ball.

        The best point of larger balls, the changes of the noise level if it does change (under `stepped` also with the
        rest of the budget spent towards the best point), from the best point on the way to another answer of a router,
        and a random one, which comes last.
        """
        padding = self._padding(len(group))
        numbers = np.asarray([len(one.tried) for one in group])[padding]
        best = attacks.within(targets, np.stack([one.best.image for one in group])[padding], stretch=True)
        laws = np.stack([one.law for one in group])[padding]
        moves = list(attacks.law_moves(self._scheme, targets, laws)) if np.any(laws) else []
        if isinstance(self._scheme, Stepped):
            moves += [attacks.move_across(targets, moved, best) for moved in moves]
        found = ["law"] * len(moves)
        if self._router is not None:
            first = np.asarray([one.searched for one in group])[padding]
            answers = np.asarray([one.answer for one in group])[padding]
            moves.append(self._router.pgd(targets._replace(classes=answers), best, first=first))
            found.append("router")
        random = attacks.random_moves(targets, self._keys[random_keys.DIRECTION][0], numbers)
        names = [[one.best.attack for one in group], *[[name] * len(group) for name in (*found, "random")]]
        return self._screened(group, names, np.stack([best, *moves, random])[:, : len(group)])

    def _screened(
        self, group: list[Search], names: Sequence[Sequence[str]], points: np.ndarray
    ) -> list[list[Candidate]]:
        """The candidates of each image, in order, from points [P, images, H, W, C] and the attacks that found them."""
        _, shares = self._ways(group, points)
        return [
            [Candidate(names[p][i], points[p, i], float(shares[p, i])) for p in range(len(points))]
            for i in range(len(group))
        ]

    def _pursue(self, group: list[Search], aims: Sequence[Candidate], wanted: np.ndarray) -> dict[int, Attempt]:
        """Confirm the nearest promising x' between each wanted image and its aim, or the best if it wins at all.

        Returns the attempts by position in the group.
        """
        if not np.any(wanted):
            return {}
        images = np.stack([one.image for one in group]).astype(np.float64)
        far = np.stack([aim.image for aim in aims])

        def at(t: np.ndarray) -> np.ndarray:
            points = (images + t[..., None, None, None] * (far - images)).astype(np.float32)
            if not on_grid(self._scheme):
                return points
            most = balls.distances(images, points, self._norm) + 1e-6
            return attacks.on_grid(images, points, most, self._norm)

        everyone = np.arange(len(group))
        # Each confirmation that failed raises the bar: the same screening noise would flatter x' again.
        bar = np.minimum(0.5 + self._margin * np.asarray([1 + one.failed for one in group]), 1.0)
        ways, shares = self._ways(group, at(np.tile(_RAY[:, None], len(group))), wanted)
        promising = np.any(shares >= bar, axis=0)
        step = np.where(promising, np.argmax(shares >= bar, axis=0), np.argmax(shares, axis=0))
        wanted, way = wanted & (shares[step, everyone] > 0.5), ways[step, everyone]
        low, high = _RAY[step] - _RAY[0], _RAY[step]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            ways, shares = self._ways(group, at(middle[None]), promising)
            nearer = promising & (shares[0] >= bar)
            low, high = np.where(nearer, low, middle), np.where(nearer, middle, high)
            way = np.where(nearer, ways[0], way)
        nearest, chosen = at(high), np.flatnonzero(wanted).tolist()
        attempts = {i: self._attempt(group[i], aims[i].attack, nearest[i]) for i in chosen}
        return self._confirm(group, attempts, way)

    def _confirm(self, group: list[Search], attempts: dict[int, Attempt], ways: np.ndarray) -> dict[int, Attempt]:
        """The attempts with fresh votes on their ways (int [images], see `breaks`); breaks are noted."""
        if not attempts:
            return {}
        n = self._all or self._settings.votes
        votes = self._votes(
            np.stack([attempt.image for attempt in attempts.values()]),
            [group[i].index for i in attempts],
            random_keys.CONFIRMATION,
            first=np.asarray([group[i].confirmed * n for i in attempts]),
            n=np.full(len(attempts), n),
        )
        voted = {}
        for (i, attempt), counts in zip(attempts.items(), votes, strict=True):
            one, way = group[i], int(ways[i])
            p_value, level = breaks.p_value(self._scheme, counts, one.predict, way)
            broken = p_value <= self._threshold
            voted[i] = replace(
                attempt,
                rival=way % (counts.shape[-1] - 1),
                sigma_x=self._levels(attempt.image)[level],
                votes=tuple(counts[level].tolist()),
                p_value=p_value,
                broken=broken,
            )
            one.confirmed += 1
            one.failed += not broken
            if broken and (one.nearest is None or attempt.distance < one.nearest.distance):
                one.nearest = voted[i]
        return voted

    def _attempt(self, one: Search, attack: str, image: np.ndarray) -> Attempt:
        measure = balls.grid_distances if on_grid(self._scheme) else balls.distances
        distance = float(measure(one.image, image, self._norm))
        return Attempt(attack=attack, image=image, distance=distance, sigma_x=self._levels(image)[0])

    def _levels(self, image: np.ndarray) -> list[float]:
        """The noise levels at an image."""
        return host_levels(self._scheme, image[None])[1][0].tolist()

    def _ways(
        self, group: list[Search], points: np.ndarray, wanted: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest way in which each image's class loses at points [P, images, H, W, C] by screening votes, and
        its share (0 where no votes fall, and at images that are not wanted): [P, images] each; see `breaks`."""
        count, images = points.shape[:2]
        live = np.ones(images, bool) if wanted is None else wanted
        votes = self._votes(
            points.reshape(-1, *points.shape[2:]),
            [one.index for one in group] * count,
            random_keys.SCREENING,
            first=np.zeros(count * images, int),
            n=np.tile(np.where(live, self._all or self._settings.screening, 0), count),
        )
        ways, shares = breaks.likeliest(self._scheme, votes, np.tile([one.predict for one in group], count))
        return ways.reshape(count, images), shares.reshape(count, images)

    def _answers(self, images: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The router's answers at images: int [M]; -1 without a router."""
        if self._router is None:
            return np.full(len(images), confidence_bounds.ABSTAIN)
        n, none = np.full(len(images), self._settings.screening), np.zeros(len(images), int)
        votes = self._votes(images, indices, random_keys.SCREENING, first=none, n=n)
        return np.argmax(votes[:, 0, : self._router.classifier.classes], axis=1)

    def _votes(
        self, points: np.ndarray, indices: Sequence[int] | np.ndarray, stage: int, *, first: np.ndarray, n: np.ndarray
    ) -> np.ndarray:
        return point_votes.count(
            self._execution, self._scheme, points, indices=indices, first=first, n=n, keys=self._keys[stage]
        )

    def _padding(self, images: int) -> np.ndarray:
        """Positions of so many images, and of the first one until a batch of the attacks is full."""
        return np.asarray([*range(images), *[0] * (self._rows - images)])


def _strongest(candidates: Sequence[Candidate]) -> Candidate:
    """The first of those with the largest share."""
    return max(candidates, key=lambda one: one.share)
