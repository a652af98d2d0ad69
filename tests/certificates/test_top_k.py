"""Bounds and radii of "the class is among the k likeliest": against SciPy, mpmath, an adversary's linear program,
classifiers whose truth is known, and simulation."""

import mpmath
import numpy as np
import pytest
from scipy import optimize, special, stats

from idrc_jax import certificates
from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes, top_k

ALPHA = 0.1


def drawn(p, n, runs, seed=0):
    """Votes [runs, K + 1] of classes with these probabilities."""
    return np.column_stack([np.random.default_rng(seed).multinomial(n, p, runs), np.zeros(runs, int)])


def exceeds(count, runs, alpha=ALPHA):
    """Whether so many errors are more than alpha allows, but for one case in a thousand."""
    return count > stats.binom.ppf(0.999, runs, alpha)


def partition_radius(votes, chosen, buckets, alpha):
    """Class partitioning: a bound at alpha / m for the class and for each bucket, the others' numbers."""
    n, m = np.sum(votes), 1 + len(buckets)
    lower = stats.beta.ppf(alpha / m, votes[chosen], n - votes[chosen] + 1) if votes[chosen] else 0.0
    counts = np.asarray([np.sum(votes[bucket]) for bucket in buckets])
    upper = np.where(counts < n, stats.beta.ppf(1 - alpha / m, counts + 1, np.maximum(n - counts, 1)), 1)
    return (stats.norm.ppf(lower) - stats.norm.ppf(np.max(upper))) / 2


def test_bounds_are_clopper_and_pearsons_at_their_shares_of_alpha():
    votes = np.array([[30, 700, 0, 150, 100, 20], [0, 0, 0, 0, 0, 1000], [5, 5, 5, 5, 5, 0]])
    chosen = np.array([1, 0, confidence_bounds.ABSTAIN])
    lower, upper = confidence_bounds.rival_bounds(chosen, votes, 0.05, 2)
    assert lower[0] == pytest.approx(stats.beta.ppf(0.04, 700, 301), rel=1e-9)
    assert upper[0] == pytest.approx(stats.beta.ppf(1 - 0.005, [151, 101], [850, 900]), rel=1e-9)
    assert lower[1] == 0
    assert upper[1] == pytest.approx(stats.beta.ppf(1 - 0.005, [1, 1], [1000, 1000]), rel=1e-9)
    assert lower[2] == 0
    assert upper[2].tolist() == [1, 1]
    for k in (0, 5):
        with pytest.raises(ValueError, match="k from 1 to 4, fewer than the 5 classes"):
            confidence_bounds.rival_bounds(chosen, votes, 0.05, k)


def test_sums_begin_with_the_least_likely_of_the_likeliest():
    votes = 100 * np.array([[30, 700, 0, 150, 120, 0]])
    lower, sums = top_k.bounds(np.array([1]), votes, 0.05, 2)
    each = stats.beta.ppf(1 - 0.005, [12_001, 15_001], [88_000, 85_000])
    assert sums[0] == pytest.approx(np.cumsum(each), rel=1e-9)
    assert sums[0, 1] < 1 - lower[0]
    lower, sums = top_k.bounds(np.array([1]), votes, 0.05, 4)
    assert sums[0, 3] == 1 - lower[0]
    assert top_k.strongest_rival(sums)[0] == pytest.approx(np.min(sums[0] / [1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("p", "k"),
    [
        ((0.5, 0.5), 1),
        ((0.6, 0.4), 1),
        ((0.4, 0.2, 0.2, 0.2), 1),
        ((0.3, 0.28, 0.22, 0.2), 1),
        ((0.05, 0.9, 0.05), 1),
        ((0.25, 0.25, 0.25, 0.25), 2),
        ((0.2, 0.3, 0.25, 0.25), 2),
        ((0.1, *[0.1] * 9), 5),
        ((0.1, *[0.1] * 9), 9),
        ((0.9, 0.05, 0.03, 0.01, 0.01), 3),
    ],
)
def test_all_bounds_hold_at_once(p, k):
    """Errors of 20,000 draws: not more than alpha, where the bound of every rival would have had a share of its own."""
    runs, n = 20_000, 200
    lower, upper = confidence_bounds.rival_bounds(np.zeros(runs, int), drawn(p, n, runs), ALPHA, k)
    truth = np.sort(p[1:])[::-1][:k]
    wrong = (lower > p[0]) | np.any(upper < truth, axis=1)
    assert not exceeds(np.sum(wrong), runs)
    assert np.mean(wrong) > ALPHA / 4  # and are not idle


def test_wrong_forms_are_refuted():
    """Without a split of alpha; with one rival, fixed by the selection votes, alone; the class by the same votes."""
    runs, n = 20_000, 200
    p = (0.5, 0.3, 0.2)
    votes = drawn(p, n, runs)
    twice = stats.beta.ppf(ALPHA, votes[:, 0], n - votes[:, 0] + 1) > p[0]
    twice |= stats.beta.ppf(1 - ALPHA, votes[:, 1] + 1, n - votes[:, 1]) < p[1]
    assert exceeds(np.sum(twice), runs)

    p = (0.4, 0.32, 0.28)
    rival = 1 + np.argmax(drawn(p, 20, runs, seed=1)[:, 1:3], axis=1)
    own = drawn(p, n, runs)[np.arange(runs), rival]
    assert exceeds(np.sum(stats.beta.ppf(1 - ALPHA / 2, own + 1, n - own) < p[1]), runs)

    votes = drawn([0.1] * 10, n, runs)
    lower, _ = confidence_bounds.rival_bounds(np.argmax(votes[:, :-1], axis=1), votes, ALPHA)
    assert exceeds(np.sum(lower > 0.1), runs)


def test_no_partition_of_the_classes_gives_more_even_chosen_by_the_votes_themselves():
    """Halves of alpha for class and rivals are never worse than alpha / m each for the class and m - 1 buckets."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        classes, n = generator.integers(3, 9), int(10 ** generator.uniform(1, 4))
        votes = generator.multinomial(n, generator.dirichlet([0.5] * classes))
        chosen = int(generator.integers(classes))
        others = generator.permutation(np.delete(np.arange(classes), chosen))
        cuts = np.sort(generator.choice(np.arange(1, classes - 1), generator.integers(0, classes - 1), replace=False))
        by_votes = others[np.argsort(-votes[others])]
        partitions = [np.split(others, cuts), np.split(by_votes, cuts), [by_votes[:1], by_votes[1:]]]
        halves = partition_radius(votes, chosen, [others[[i]] for i in range(len(others))], ALPHA * classes / 2)
        assert all(partition_radius(votes, chosen, one, ALPHA) <= halves + 1e-12 for one in partitions)


def test_one_likeliest_has_the_closed_forms():
    generator = np.random.default_rng(0)
    lower = generator.uniform(0.1, 0.999, 200)
    upper = generator.uniform(0, np.minimum(lower, 1 - lower))
    radius = top_k.radius(lower, upper[:, None])
    assert radius == pytest.approx((stats.norm.ppf(lower) - stats.norm.ppf(upper)) / 2, rel=1e-8)
    assert np.all(radius <= (stats.norm.ppf(lower) - stats.norm.ppf(upper)) / 2)
    sure = lower[lower > 0.5]
    assert top_k.radius(sure, 1 - sure[:, None]) == pytest.approx(stats.norm.ppf(sure), rel=1e-7)


def test_the_equation_is_solved_from_below():
    """Against 40 digits, from tails of 1e-9 to k = 20."""
    generator = np.random.default_rng(1)
    mpmath.mp.dps = 40

    def quantile(p):
        return mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(float(p)) - 1)

    for k in (2, 3, 20):
        sums = np.cumsum(np.sort(10 ** generator.uniform(-9, -1.5, (8, k)), axis=1), axis=1)
        lower = generator.uniform(0.2, 1 - np.maximum(sums[:, -1], 1e-9))
        for found, own, rivals in zip(top_k.radius(lower, sums), lower, sums, strict=True):
            a, b = quantile(own), [quantile(one) for one in rivals]

            def gap(r, a=a, b=b):
                return mpmath.ncdf(a - r) - min(mpmath.ncdf(one + r) / t for t, one in enumerate(b, 1))

            assert gap(mpmath.mpf(found)) > 0
            assert gap(mpmath.mpf(found) * (1 + mpmath.mpf("1e-8"))) < 0


def test_slabs_of_classes_have_no_smaller_true_radius():
    """K classes in slabs, several of them a class: how far an image is moved along the normal is all that matters."""
    generator = np.random.default_rng(2)
    ways, classes = np.linspace(-4, 4, 2401), 4
    for _ in range(500):
        slabs = generator.integers(4, 9)
        bounds = np.sort(generator.normal(size=slabs - 1))
        whose = generator.permutation(np.concatenate([np.arange(4), generator.integers(0, classes, slabs - 4)]))
        k = int(generator.integers(1, classes))
        ends = np.concatenate([[-np.inf], bounds, [np.inf]])
        moved = np.diff(stats.norm.cdf(ends - ways[:, None]), axis=1) @ np.eye(classes)[whose]
        here = moved[len(ways) // 2]
        sums = np.cumsum(np.sort(here[1:])[-k:])
        (radius,) = top_k.radius(here[:1] * (1 - 1e-12), sums[None])
        inside = moved[np.abs(ways) < radius]
        assert np.all(np.sum(inside[:, 1:] >= inside[:, :1], axis=1) < k)


def test_the_radius_is_the_truth_where_the_rivals_share_a_half_space():
    """The label in a half-space, k rivals in equal parts of another: no larger radius is valid."""
    for k, own, rivals in ((1, 0.6, 0.2), (2, 0.5, 0.3), (5, 0.3, 0.6), (3, 0.7, 0.01)):
        sums = rivals * np.arange(1, k + 1) / k
        (found,) = top_k.radius(np.array([own]), sums[None])
        a, b = stats.norm.ppf(own), stats.norm.ppf(rivals)
        truth = optimize.brentq(lambda r, a=a, b=b, k=k: stats.norm.cdf(a - r) - stats.norm.cdf(b + r) / k, 0, 9)
        assert found == pytest.approx(truth, rel=1e-7)
        assert found <= truth


def best_attack(own, upper, r, cells=400):
    """By how much k rivals can exceed the label at distance r: the optimum over all classifiers that are constant on so
    many regions of like likelihood ratio, by linear programming.

    The label has at least `own`, each rival at most its `upper`; other classes may have anything.
    """
    edges = special.ndtri(np.linspace(0, 1, cells + 1))
    here, there = np.diff(special.ndtr(edges)), np.diff(special.ndtr(edges - r))
    k = len(upper)
    size = (k + 2) * cells  # label, rivals, rest; then what is maximised

    def of(number, weights):
        row = np.zeros(size + 1)
        row[number * cells : (number + 1) * cells] = weights
        return row

    at_most = [-of(0, here), *(of(1 + i, here) for i in range(k))]
    limits = [-own, *upper]
    for i in range(k):
        row = of(0, there) - of(1 + i, there)
        row[-1] = 1
        at_most.append(row)
        limits.append(0)
    whole = np.zeros((cells, size + 1))
    for number in range(k + 2):
        whole[np.arange(cells), number * cells + np.arange(cells)] = 1
    found = optimize.linprog(
        -np.eye(size + 1)[-1],
        A_ub=np.array(at_most),
        b_ub=limits,
        A_eq=whole,
        b_eq=np.ones(cells),
        bounds=[(0, 1)] * size + [(-1, 1)],
        method="highs",
    )
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize(
    "case",
    [
        (0.7, (0.2,)),
        (0.5, (0.2, 0.1)),
        (0.4, (0.3, 0.25)),
        (0.4, (0.5, 0.2)),
        (0.3, (0.2, 0.2, 0.05)),
        (0.6, (0.3, 0.3)),
        (0.3, (0.6, 0.02, 0.01)),
        (0.2, (0.3, 0.3, 0.3, 0.1)),
    ],
)
def test_no_adversary_does_better_and_one_does_as_well(case):
    """Every classifier with these probabilities, by linear programming, just below and just above the radius."""
    own, upper = case
    sums = np.minimum(np.cumsum(upper[::-1]), 1 - own)
    (radius,) = top_k.radius(np.array([own]), sums[None])
    assert radius > 0.05
    assert best_attack(own, upper, 0.97 * radius) < 0
    assert best_attack(own, upper, 1.03 * radius) > 0


def test_certificates_exceed_the_truth_no_oftener_than_alpha():
    """The label in a half-space and its rivals in equal parts of another, as above: radii of 4,000 drawn votes."""
    runs, n, k, own, rivals = 4000, 300, 3, 0.35, 0.6
    votes = drawn([0.05, *[rivals / k] * k, own], n, runs)
    made = certificates.from_votes(
        schemes.Gaussian(sigma=0.5), np.zeros(runs), np.full(runs, 1), votes, plan=sampling_plans.SelectionFree(n=n),
        alpha=ALPHA, dim=48, certificate=certificates.TOP_K, labels=np.full(runs, k + 1), k=k,
    )  # fmt: skip
    sums = rivals * np.arange(1, k + 1) / k
    truth = 0.5 * top_k.radius(np.array([own]), sums[None])[0]
    radii = np.array([one.radius for one in made])
    assert not exceeds(np.sum(radii > truth), runs)
    assert np.mean(radii) > 0.5 * truth
    assert {one.predict for one in made} <= {-1, k + 1}
    assert {one.selected for one in made} == {1}


def test_a_class_that_is_not_sure_abstains():
    votes = np.array([[10, 50, 40, 0], [90, 10, 0, 0]])
    made = certificates.from_votes(
        schemes.Gaussian(sigma=0.5), np.zeros(2), np.array([1, 0]), votes, plan=sampling_plans.Fixed(n=100),
        alpha=0.01, dim=48, certificate=certificates.TOP_K, labels=np.array([0, 0]), k=2,
    )  # fmt: skip
    assert [one.predict for one in made] == [-1, 0]
    assert made[0].radius == 0 < made[1].radius
    assert np.isnan(made[0].radius_published)
