"""What a router of two runs' networks certifies, by the runs' own votes (see docs/how_to/choosing_noise.md).

The runs are of constant noise on the same images, the larger level first, under a plan without selection votes. The
router answers 0 for the smaller level. Its votes are drawn under the larger one, of each image as many as the plan asks
for to come as far as the class does under the chosen level. "published" is the certificate without votes under the
other level; "either" is none: of each image the larger radius of both, as if it were known beforehand which is better.

A plan stops where its one level has reached a radius that was asked for, at which a router, with a share of alpha, just
misses it: accuracies are taken .05 below, the router's votes are drawn for these radii, 10,000 at most, and none counts
for more than the largest of them.

Command:   python -m benchmarks.routers ROUTER RUN OF_SMALLER_LEVEL FOLDER
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cascades import RADII, of_row, pairs_of, print_table, right
from idrc_jax import data, models, results
from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.results import Results, Row
from idrc_jax.sampling import implementation_choice, random_keys
from idrc_jax.sampling.dispatch_ahead import Scheduler
from idrc_jax.sampling.vote_counter import VoteCounter
from idrc_jax.several_levels import routed

MOST = 10_000  # votes of the router


@dataclass(frozen=True)
class Known:
    """The course of a router's votes, those under its levels being known: level -> votes."""

    bounds: routed.Bounds
    levels: dict[int, LevelVotes]

    def drawn(self, router: LevelVotes) -> list[LevelVotes]:
        """All of the image, in the order of the levels' turns."""
        chosen = routed.level_of(router.selected)
        return [router, self.levels[chosen], *(one for level, one in self.levels.items() if level != chosen)]

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        return None

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        router = drawn[0]
        if router.selected == confidence_bounds.ABSTAIN:
            return False
        _, chosen, *_ = self.drawn(router)
        own = self.bounds.reached(chosen, chosen.selected)
        now, best = (min(own, self.bounds.reached(router, router.selected, hoped=hoped)) for hoped in (False, True))
        return not self.bounds.plan.worthwhile(now, best)


def courses(large: Results, small: Results) -> tuple[routed.Bounds, list[Row], list[Known]]:
    """The bounds of a router of both levels; the larger level's rows; and the courses at their images."""
    made, below = (one.manifest["guarantee"] for one in (large, small) if one.manifest)
    scheme = schemes.Routed(sigma=made["sigma"], levels=(below["sigma"] / made["sigma"], 1.0))
    plan = sampling_plans.ToRadius(n=MOST, radii=RADII, sequence=made["sequence"])
    bounds = routed.Bounds(scheme, plan, made["alpha"], made["dim"])
    pairs = pairs_of(large, small)
    votes = [{1: of_row(other, 1, made["classes"]), 2: of_row(row, 2, made["classes"])} for row, other in pairs]
    return bounds, [row for row, _ in pairs], [Known(bounds, one) for one in votes]


def router_votes(
    router: models.Classifier, images: np.ndarray, rows: Sequence[Row], known: Sequence[Known]
) -> Iterator[tuple[int, LevelVotes]]:
    """Positions and votes, as the images are decided."""
    bounds = known[0].bounds
    noise = schemes.Gaussian(float(schemes.least_levels(bounds.scheme)[routed.ROUTER]))
    execution = implementation_choice.choose(router, noise, samples=len(images) * MOST)
    levels = np.full((len(images), 1), noise.sigma, np.float32)
    counter = VoteCounter(
        execution, noise, images, levels, indices=np.asarray([row.idx for row in rows]), key=random_keys.root(0)
    )
    scheduler = Scheduler(counter, bounds.plan, lambda position: known[position], piece=4 * counter.stride)
    for drawn in scheduler.run(range(len(images))):
        yield drawn.position, drawn.levels[0]


def radii(
    bounds: routed.Bounds, rows: Sequence[Row], known: Sequence[Known], router: dict[int, LevelVotes]
) -> dict[str, np.ndarray]:
    """What each contender certifies, image by image."""
    found: dict[str, list[float]] = {"router": [], "router, published certificate": []}
    for position, row in enumerate(rows):
        drawn = known[position].drawn(router[position])
        correct = drawn[1].selected == row.label
        for name, votes in zip(found, (drawn, drawn[:2]), strict=True):
            found[name].append(routed.certificate(bounds, votes).radius if correct else 0.0)
    return {name: np.asarray(values) for name, values in found.items()}


def needed(bounds: routed.Bounds, known: Known, router: LevelVotes) -> int:
    """Samples that a run would draw, at most: those stored of the other level where they could raise the radius."""
    made = known.drawn(router)
    _, chosen, other = made
    best = min(bounds.reached(chosen, chosen.selected), bounds.reaches[other.level])
    cut = bounds.plan.worthwhile(bounds.radius(made[:2]), best)
    return sum(sum(one.votes) for one in (made if cut else made[:2]))


def kept(of_large: np.ndarray, of_small: np.ndarray, of_router: np.ndarray, radius: float) -> list[tuple[float, float]]:
    """How many images the larger level alone certifies up to a radius, the smaller alone, and both; and for how many of
    each the router does."""
    large, small, router = (values >= radius for values in (of_large, of_small, of_router))
    groups = (large & ~small, small & ~large, large & small)
    return [(float(np.mean(group)), float(np.mean(group & router))) for group in groups]


def main() -> None:
    weights, *runs, folder = sys.argv[1:]
    large, small = (results.read_results(path) for path in runs)
    bounds, rows, known = courses(large, small)
    test_set = data.load("cifar10", "test", directory=folder)
    images = data.to_unit(np.asarray(test_set.images[np.asarray([row.idx for row in rows])]))
    router = dict(router_votes(models.load_classifier(weights), images, rows, known))
    smaller = {row.idx: row for row in small.rows}
    factor = bounds.scheme.levels[0]
    alone = {
        f"σ = {bounds.scheme.sigma:g}": np.asarray([right(row) for row in rows]),
        f"σ = {bounds.scheme.sigma * factor:g}": np.asarray([right(smaller[row.idx]) for row in rows]),
    }
    found = alone | radii(bounds, rows, known, router) | {"either": np.max([*alone.values()], axis=0)}
    print(f"{len(rows)} images, {sum(sum(one.votes) for one in router.values()):,} votes of the router\n")
    print_table({name: np.minimum(values, RADII[-1]) for name, values in found.items()})
    print("\n| certified up to r, and by the router of these | the larger level alone | the smaller alone | both |")
    print("|---|---|---|---|")
    for radius in RADII:
        groups = kept(*alone.values(), found["router"], radius)
        print(f"| {radius:g} | " + " | ".join(f"{share:.3f}, {held:.3f}" for share, held in groups) + " |")
    shares = np.asarray([router[position].votes[1] / sum(router[position].votes) for position in range(len(rows))])
    told = ", ".join(f"{np.quantile(shares, q):.3f} ({q:.0%})" for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    print(f"\nThe larger level is chosen at {np.mean(shares > 0.5):.3f} of the images; quantiles of its votes: {told}.")
    total = sum(needed(bounds, known[position], router[position]) for position in range(len(rows)))
    print(f"Samples: {total:,}; σ = {bounds.scheme.sigma:g} alone {sum(row.n or 0 for row in rows):,}.")


if __name__ == "__main__":
    main()
