"""What a choice between the levels of two runs certifies, by their own votes: a table of docs/how_to/choosing_noise.md.

The runs are of constant noise on the same images, the larger level first, under a plan without selection votes. Each
image's votes of both are certified as a cascade's, for several thresholds; those of one, as `stepped` has them in two
bins of a statistic with as many training images in each (but those that are in the test set, too), the smaller level in
the lower one. "either" is no certificate: of each image the larger radius of both, as if it were known beforehand which
level is the better one.

A plan stops where its one level has reached a radius that was asked for, at which a cascade, with a share of alpha,
just misses it: accuracies are taken .05 below.

Command:   python -m benchmarks.cascades RUN OF_SMALLER_LEVEL FOLDER
"""

import sys

import numpy as np
from scipy import special

from idrc_jax import data, results
from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.results import Results, Row
from idrc_jax.several_levels import cascade

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
RADII = (0.2, 0.45, 0.7, 0.95, 1.2, 1.45)


def right(row: Row) -> float:
    """The radius of a rightly predicted image, else 0."""
    return row.radius if row.correct else 0.0


def of_row(row: Row, level: int, classes: int) -> LevelVotes:
    """A run's votes, whose class they choose."""
    counts = row.votes or {}
    votes = tuple(counts.get(k, 0) for k in range(classes + 1))
    return LevelVotes(level, confidence_bounds.select(np.asarray(votes)), votes)


def of_cascade(bounds: cascade.Bounds, rows: tuple[Row, Row], classes: int) -> float:
    """The radius at one image if its class is right, else 0; under each level its votes choose the class."""
    made = cascade.certificate(bounds, [of_row(row, level, classes) for level, row in enumerate(rows)])
    return made.radius if made.predict == rows[0].label else 0.0


def pairs_of(large: Results, small: Results) -> list[tuple[Row, Row]]:
    """The rows of both runs at each image that both have."""
    others = {row.idx: row for row in small.rows}
    return [(row, others[row.idx]) for row in large.rows if row.idx in others]


def radii(large: Results, small: Results) -> dict[str, np.ndarray]:
    """What each contender certifies, image by image."""
    pairs = pairs_of(large, small)
    made, below = (one.manifest["guarantee"] for one in (large, small) if one.manifest)
    plan, factor = sampling_plans.from_description(made), below["sigma"] / made["sigma"]
    found = {f"σ = {one['sigma']:g}": [right(pair[n]) for pair in pairs] for n, one in enumerate((made, below))}
    for threshold in THRESHOLDS:
        scheme = schemes.Cascade(sigma=made["sigma"], levels=(1.0, factor), thresholds=(threshold,))
        bounds = cascade.Bounds(scheme, plan, made["alpha"], made["dim"])
        found[f"cascade, threshold {threshold:g}"] = [of_cascade(bounds, pair, made["classes"]) for pair in pairs]
    found["either"] = [max(right(one), right(other)) for one, other in pairs]
    return {name: np.asarray(values) for name, values in found.items()}


def stepped(large: Results, small: Results, train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """What `stepped` certifies by each statistic, image by image; train and test are images in [0, 1]."""
    pairs, found = pairs_of(large, small), {}
    made, below = (one.manifest["guarantee"] for one in (large, small) if one.manifest)
    images = test[[row.idx for row, _ in pairs]].astype(np.float64)
    alone = np.asarray([[right(low), right(high)] for high, low in pairs])
    for by in schemes.STATISTICS:
        edges = schemes.fit_stepped(train, sigma=1.0, by=by, bins=2).edges
        scheme = schemes.Stepped(made["sigma"], by=by, edges=edges, levels=(below["sigma"] / made["sigma"], 1.0))
        statistic = scheme.statistic(images)
        own = alone[np.arange(len(pairs)), scheme.bin_of(statistic)]
        found[f"stepped by {by}"] = np.minimum(own, scheme.distance_to_edge(statistic, made["dim"]))
    return found


def room(large: Results, threshold: float, radius: float = 0.25) -> tuple[float, float]:
    """By shares of votes, without bounds: of how many images the large level keeps the true class up to a radius, and
    of how many others its rivals leave a smaller level that much room."""
    made = large.manifest["guarantee"] if large.manifest else {}
    kept = left = 0
    for row in large.rows:
        counts = np.asarray([(row.votes or {}).get(k, 0) for k in range(made["classes"] + 1)])
        shares = (counts / counts.sum())[: made["classes"]]
        own, rival = shares[row.label], np.max(np.delete(shares, row.label))
        reached = special.ndtri(own) - special.ndtri(threshold) >= radius / made["sigma"]
        kept += reached
        left += not reached and special.ndtri(threshold) - special.ndtri(rival) >= radius / made["sigma"]
    return kept / len(large.rows), left / len(large.rows)


def print_table(found: dict[str, np.ndarray]) -> None:
    """What each contender certifies, in Markdown, the ACR rounded down."""
    print("| certified accuracy at r | 0 | " + " | ".join(f"{r:g}" for r in RADII) + " | ACR |")
    print("|---|" + "---|" * (len(RADII) + 2))
    for name, values in found.items():
        cells = [np.mean(values > 0), *(np.mean(values >= r) for r in RADII), np.floor(1e3 * np.mean(values)) / 1e3]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


def main() -> None:
    large, small = (results.read_results(path) for path in sys.argv[1:3])
    train, test = (data.load("cifar10", one, directory=sys.argv[3]).images for one in ("train", "test"))
    others = data.to_unit(train[~data.shared(train, test)])
    found = radii(large, small) | stepped(large, small, others, data.to_unit(test))
    print(f"{len(found['either'])} images\n")
    print_table(found)
    for threshold in THRESHOLDS:
        kept, left = room(large, threshold)
        print(
            f"At threshold {threshold:g} and r = .25 the large level keeps {kept:.3f}, and leaves room in {left:.3f}."
        )


if __name__ == "__main__":
    main()
