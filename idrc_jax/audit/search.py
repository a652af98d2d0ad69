"""Images x' near a certified one at which another class is claimed to win, under the noise of x'.

For an image x with its class A the attacks of `attacks` look for x' inside balls at which another class B wins. What
they find is *promising* where screening votes say so; then fresh votes decide. **The claim**: at x', B is strictly
likelier than A. It contradicts every certificate of A with a radius above ||x' - x||, which says that A is the
likeliest class there.

Guarantee: if a break is claimed where the p-value is at most level / M, and there are at most M confirmations, then
with probability at least 1 - level over the fresh votes every claim is true (as far as floating point and the
generator go, see docs/caveats.md).

Proof. x' and B are functions of the data, the search and earlier confirmations; the votes of a confirmation have a
stage of the key tree and sample numbers of their own, so they are independent of these. Given x', B and how many of
the votes fall on A or B, the number on B is binomial with probability q = p_B / (p_A + p_B). If the claim is false,
p_B <= p_A, then q <= 1/2, and the exact one-sided binomial p-value of q <= 1/2 is at most t with probability at most t.
The union bound over M confirmations with t = level / M gives the level (Bonferroni); M is fixed before the search, and
which of the M are made does not matter.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from scipy import stats

from idrc_jax import sampling
from idrc_jax.audit import attacks
from idrc_jax.audit.attacks import Attacker, Targets
from idrc_jax.audit.significance import break_p_value
from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.schemes import Scheme, Stepped, host_scale
from idrc_jax.core import validate
from idrc_jax.models import Classifier
from idrc_jax.results import metrics
from idrc_jax.sampling import random_keys

_ROWS = 64
_RAY = np.arange(1, 9) / 8
_HALVINGS = 4
_REFINED = 1.02
_SAVED = 64


@dataclass(frozen=True)
class Settings:
    """How an audit searches, and when it claims a break.

    Attributes:
      images: rows of the file to look at, evenly spaced; 0 takes all.
      fractions: of each claimed radius.
      radii: at which the robust accuracy is measured.
      level: probability that anything at all is claimed wrongly.
      votes: fresh ones of each confirmation.
      screening: votes by which the search compares images, with the same noise for all x' of an image.
      steps, samples: gradient steps of an attack; noise samples of a step.
      restarts: of projected gradient descent at each distance. The first begins at the best x' so far and follows the
        mean softmax; the others begin at random and follow votes and softmax in turns.
      refinements: distances tried at last between the nearest break and the next distance, at which none was found:
        each halves that gap in the logarithm, until it is below 2 %.
      saved: adversarial images to keep.
    """

    images: int = 50
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
    radii: tuple[float, ...] = metrics.RADII[1:]
    level: float = 0.001
    votes: int = 2000
    screening: int = 200
    steps: int = 20
    samples: int = 16
    restarts: int = 2
    refinements: int = 4
    saved: int = _SAVED

    def __post_init__(self) -> None:
        validate.in_open_unit_interval("audit.level", self.level)
        for name in ("images", "refinements", "saved"):
            validate.count(f"audit.{name}", getattr(self, name), 0)
        for name in ("votes", "screening", "steps", "samples", "restarts"):
            validate.count(f"audit.{name}", getattr(self, name), 1)
        for name in ("fractions", "radii"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"Expected audit.{name} that differ, got {values}.")
            for value in values:
                validate.positive(f"audit.{name}", value)
        if self.saved > _SAVED:
            raise ValueError(f"Expected audit.saved <= {_SAVED}, got {self.saved}.")

    def attempts(self, distances: int) -> int:
        """The most confirmations an image with so many distances to try gets."""
        return 1 + (distances + self.refinements) * self.restarts


@dataclass(frozen=True)
class Attempt:
    """An x' of the search, float32 [H, W, C], and what fresh votes say about it (none: it was not promising)."""

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
      budgets: distances to try, descending.
      refinements: how many more to try afterwards, see `Settings`.
      nearest: the nearest break so far.
      tried: what came closest to a break nearer than each budget, where there was none.
    """

    position: int
    image: np.ndarray
    index: int
    predict: int
    budgets: list[float]
    refinements: int
    nearest: Attempt | None = None
    tried: dict[float, Attempt] = field(default_factory=dict)
    best: np.ndarray = field(init=False, repr=False)
    best_attack: str = "minimal_norm"
    law: np.ndarray = field(init=False, repr=False)
    searched: int = 0
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
      key: the run's typed key; the stages of the audit share no randomness with those of certification.
      threshold: a break is claimed where the p-value of fresh votes is at most this.
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
        chunk: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        self._execution = sampling.unmeasured(classifier, mesh, chunk).placed()
        self._scheme, self._settings, self._threshold = scheme, settings, threshold
        # A gradient keeps all intermediate results, votes only the largest.
        a_device = min(max(self._execution.chunk // (8 * settings.samples), 1), _ROWS)
        self._rows = a_device * self._execution.mesh.size
        stages = (random_keys.SEARCH, random_keys.DIRECTION, random_keys.SCREENING, random_keys.CONFIRMATION)
        self._keys = {stage: random_keys.stage(key, stage) for stage in stages}
        self._attacker = Attacker(
            self._execution.classifier,
            scheme,
            self._keys[random_keys.SEARCH],
            settings.steps,
            settings.samples,
            self._execution.mesh,
        )
        # How far above 1/2 the rival's share must be for fresh votes to confirm it probably: the critical value, and
        # two standard errors of the difference between screening and fresh votes.
        error = math.sqrt(1 / settings.votes + 1 / settings.screening)
        self._margin = stats.norm.isf(threshold) / (2 * math.sqrt(settings.votes)) + error

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
          images: float32 [N, H, W, C]; indices: [N], which name the noise; classes: [N], certified there.
          budgets: of each image, at least one, > 0.
          must_stop: asked now and then; unfinished images are lost then.

        An image is confirmed at most `Settings.attempts(len(budgets))` times. A budget that is larger than the distance
        of a break is not searched: the break is nearer than it.
        """
        waiting = deque(
            Search(
                i,
                images[i],
                int(indices[i]),
                int(classes[i]),
                sorted(set(budgets[i]), reverse=True),
                self._settings.refinements,
            )
            for i in range(len(images))
        )
        pool: list[Search] = []
        while (waiting or pool) and not must_stop():
            if len(pool) < self._rows and waiting:
                new = [waiting.popleft() for _ in range(min(self._rows, len(waiting)))]
                self._enter(new)
                pool += new
            elif pool:
                self._try_next_distance(pool[: self._rows])
            yield from (one for one in pool if one.next_budget() is None)
            pool = [one for one in pool if one.next_budget() is not None]

    def _enter(self, group: list[Search]) -> None:
        """The minimal-norm attack, and the nearest break on the ray that it points out."""
        targets = self._targets(group, [one.budgets[0] for one in group])
        moved = self._attacker.minimal_norm(targets, first=self._take(group))
        far = attacks.within(targets, moved, stretch=True)[: len(group)]
        laws = attacks.law_directions(self._scheme, targets.images)
        for one, best, law in zip(group, far, laws, strict=False):  # the targets are padded
            one.best, one.law = best, law
        self._pursue(group, far, [one.best_attack for one in group], np.ones(len(group), bool))

    def _try_next_distance(self, group: list[Search]) -> None:
        """All attacks, on each image at its next budget."""
        budgets = [one.next_budget() or 0.0 for one in group]
        targets, names, points = self._starts(group, budgets)
        shares, _ = self._shares(group, points)
        everyone, middle = np.arange(len(group)), (targets.images[: len(group)] + points[-1]) / 2
        confirmed: dict[int, Attempt] = {}
        for restart in range(self._settings.restarts):
            straight_through = restart % 2 == 1
            start = points[np.argmax(shares, axis=0), everyone] if restart == 0 else middle
            moved = self._attacker.pgd(
                targets, start[self._padding(group)], first=self._take(group), straight_through=straight_through
            )
            points = np.concatenate([points, moved[None, : len(group)]])
            shares = np.concatenate([shares, self._shares(group, points[-1:])[0]])
            names.append(["pgd_straight_through" if straight_through else "pgd"] * len(group))
            last = np.full(len(group), len(points) - 1)
            chosen = np.argmax(shares, axis=0) if restart == 0 else last
            confirmed |= self._pursue(
                group,
                points[chosen, everyone],
                [names[which][i] for i, which in enumerate(chosen)],
                shares[chosen, everyone] > 0.5,
            )
        for i, which in enumerate(np.argmax(shares, axis=0)):
            one = group[i]
            one.best, one.best_attack = points[which, i], names[which][i]
            one.tried[budgets[i]] = confirmed.get(i) or self._attempt(one, one.best_attack, one.best)

    def _starts(self, group: list[Search], budgets: list[float]) -> tuple[Targets, list[list[str]], np.ndarray]:
        """Targets, and points near the edges of the balls [P, images, H, W, C] with the attacks that they are from.

        The best point of larger balls, the changes of the noise level if it does change (under `stepped` also with the
        rest of the budget spent towards the best point), and a random one.
        """
        targets = self._targets(group, budgets)
        padding = self._padding(group)
        numbers = np.asarray([len(one.tried) for one in group])[padding]
        best = attacks.within(targets, np.stack([one.best for one in group])[padding], stretch=True)
        laws = np.stack([one.law for one in group])[padding]
        moves = list(attacks.law_moves(self._scheme, targets, laws)) if np.any(laws) else []
        if isinstance(self._scheme, Stepped):
            moves += [attacks.move_across(targets, moved, best) for moved in moves]
        random = attacks.random_moves(targets, self._keys[random_keys.DIRECTION], numbers)
        names = [[one.best_attack for one in group], *[["law"] * len(group) for _ in moves], ["random"] * len(group)]
        return targets, names, np.stack([best, *moves, random])[:, : len(group)]

    def _pursue(self, group: list[Search], far: np.ndarray, names: list[str], wanted: np.ndarray) -> dict[int, Attempt]:
        """Confirm the nearest promising x' between each wanted image and a point, or the best if it wins at all.

        Returns the attempts by position in the group.
        """
        images = np.stack([one.image for one in group]).astype(np.float64)

        def at(t: np.ndarray) -> np.ndarray:
            return (images + t[..., None, None, None] * (far - images)).astype(np.float32)

        if not np.any(wanted):
            return {}
        everyone = np.arange(len(group))
        # Each confirmation that failed raises the bar: the same screening noise would flatter x' again.
        bar = np.minimum(0.5 + self._margin * np.asarray([1 + one.failed for one in group]), 1.0)
        shares, rivals = self._shares(group, at(np.tile(_RAY[:, None], len(group))), wanted)
        promising = np.any(shares >= bar, axis=0)
        step = np.where(promising, np.argmax(shares >= bar, axis=0), np.argmax(shares, axis=0))
        wanted, rival = wanted & (shares[step, everyone] > 0.5), rivals[step, everyone]
        low, high = _RAY[step] - _RAY[0], _RAY[step]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            shares, rivals = self._shares(group, at(middle[None]), promising)
            nearer = promising & (shares[0] >= bar)
            low, high = np.where(nearer, low, middle), np.where(nearer, middle, high)
            rival = np.where(nearer, rivals[0], rival)
        return self._confirm(group, at(high), rival, names, wanted)

    def _confirm(
        self, group: list[Search], points: np.ndarray, rivals: np.ndarray, names: list[str], wanted: np.ndarray
    ) -> dict[int, Attempt]:
        """Draw fresh votes at the wanted points, and note the breaks."""
        chosen = np.flatnonzero(wanted)
        if not len(chosen):
            return {}
        n = self._settings.votes
        votes = self._draw(
            points[chosen],
            [group[i].index for i in chosen],
            random_keys.CONFIRMATION,
            first=np.asarray([group[i].confirmed * n for i in chosen]),
            n=np.full(len(chosen), n),
        )
        made = {}
        for i, counts in zip(chosen.tolist(), votes, strict=True):
            one = group[i]
            one.confirmed += 1
            made[i] = self._attempt(one, names[i], points[i], int(rivals[i]), counts)
            one.failed += not made[i].broken
            if made[i].broken and (one.nearest is None or made[i].distance < one.nearest.distance):
                one.nearest = made[i]
        return made

    def _attempt(
        self, one: Search, attack: str, image: np.ndarray, rival: int = confidence_bounds.ABSTAIN, votes: Any = ()
    ) -> Attempt:
        p_value = break_p_value(votes, one.predict, rival) if len(votes) else 1.0
        return Attempt(
            attack=attack,
            image=image,
            distance=float(attacks.distances(one.image, image)),
            sigma_x=float(host_scale(self._scheme, image[None])[1][0]),
            rival=rival,
            votes=tuple(int(count) for count in votes),
            p_value=p_value,
            broken=p_value <= self._threshold,
        )

    def _shares(
        self, group: list[Search], points: np.ndarray, wanted: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The strongest rival of each image's class at points [P, images, H, W, C], and its share of the votes for
        either (0 where there are none, and at images that are not wanted): [P, images] each."""
        count, images = points.shape[:2]
        live = np.ones(images, bool) if wanted is None else wanted
        n = np.where(live, self._settings.screening, 0)
        votes = self._draw(
            points.reshape(-1, *points.shape[2:]),
            [one.index for one in group] * count,
            random_keys.SCREENING,
            first=np.zeros(count * images, int),
            n=np.tile(n, count),
        )
        classes = np.tile([one.predict for one in group], count)
        own = np.take_along_axis(votes[:, :-1], classes[:, None], axis=1)[:, 0]
        others = votes[:, :-1].copy()
        np.put_along_axis(others, classes[:, None], -1, axis=1)
        rivals, most = np.argmax(others, axis=1), np.max(others, axis=1)
        return (most / np.maximum(own + most, 1)).reshape(count, images), rivals.reshape(count, images)

    def _draw(
        self, points: np.ndarray, indices: Sequence[int], stage: int, *, first: np.ndarray, n: np.ndarray
    ) -> np.ndarray:
        """Votes int64 [M, K + 1] at any float32 images [M, H, W, C] under their own noise; none where its level is 0,
        which certificates except."""
        scales = host_scale(self._scheme, points)[1]
        n = np.where(scales > 0, n, 0)
        dispatched = []
        for begin in range(0, len(points), sampling.SLOTS):
            slots = np.arange(begin, min(begin + sampling.SLOTS, len(points)))
            empty = sampling.SLOTS - len(slots)
            padded = np.concatenate([slots, np.repeat(slots[:1], empty)])
            dispatched.append(
                sampling.dispatch_votes(
                    self._execution,
                    self._scheme,
                    points[padded],
                    scales[padded],
                    indices=np.asarray(indices)[padded],
                    first=first[padded],
                    n=np.concatenate([n[slots], np.zeros(empty, int)]),
                    key=self._keys[stage],
                )
            )
        votes = [np.asarray(counts, np.int64).sum(axis=0) for counts in dispatched]
        return np.concatenate(votes)[: len(points)]

    def _targets(self, group: list[Search], budgets: list[float]) -> Targets:
        padding = self._padding(group)
        return Targets(
            images=np.stack([one.image for one in group])[padding],
            indices=np.asarray([one.index for one in group])[padding],
            classes=np.asarray([one.predict for one in group])[padding],
            budgets=np.asarray(budgets)[padding],
        )

    def _take(self, group: list[Search]) -> np.ndarray:
        """The numbers of each image's next unused noise samples of the search."""
        first = np.asarray([one.searched for one in group])[self._padding(group)]
        for one in group:
            one.searched += self._attacker.draws
        return first

    def _padding(self, group: list[Search]) -> np.ndarray:
        """Positions of the group's images, and of its first one until a batch of the attacks is full."""
        return np.asarray([*range(len(group)), *[0] * (self._rows - len(group))])
