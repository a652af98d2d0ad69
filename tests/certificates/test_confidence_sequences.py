"""Anytime-valid bounds by exact computation: the law of the walk that has not yet stopped, step by step."""

import mpmath
import numpy as np
import pytest
from scipy import stats

from idrc_jax.certificates import confidence_bounds

HORIZON = 10_000


def first_rejected(n, p, alpha):
    """The fewest successes in n at which p is rejected, by bisection; n + 1 where none is enough."""
    low, high = np.full(n.shape, -1), n + 1
    while np.any(high - low > 1):
        middle = (low + high) // 2
        rejected = (middle <= n) & (confidence_bounds.log_wealth(np.clip(middle, 0, n), n, p) >= -np.log(alpha))
        high, low = np.where(rejected, middle, high), np.where(rejected, low, middle)
    return high


def walk(boundary, q):
    """P(the walk with step probability q ever reaches its boundary), and the mean number of steps until then."""
    law = np.zeros(len(boundary) + 2)
    law[0] = 1.0
    stopped = steps = 0.0
    for limit in boundary:
        steps += law.sum()
        law[1:] = law[1:] * (1 - q) + law[:-1] * q
        law[0] *= 1 - q
        stopped += law[limit:].sum()
        law[limit:] = 0.0
    return stopped, steps


@pytest.mark.parametrize("p", [0.5, 0.84, 0.977, 0.999])
def test_looking_at_every_sample_errs_at_most_alpha(p):
    boundary = first_rejected(np.arange(1, HORIZON + 1), p, 0.001)
    error, _ = walk(boundary, p)
    assert 0.0002 < error <= 0.001
    assert walk(boundary, 0.99 * p)[0] < error  # the worst law of the null is p itself


def test_power():
    boundary = first_rejected(np.arange(1, HORIZON + 1), 0.977, 0.001)
    certain, mean = walk(boundary, 0.9943)
    assert certain > 0.999999
    assert mean <= 900


def test_wealth_is_a_supermartingale_step_by_step():
    """Its mean after one more trial, at the null's p, is never above its value; exact over all k and n."""
    for p in (0.3, 0.5, 0.9):
        n = np.arange(0, 60)[:, None]
        k = np.minimum(np.arange(0, 60)[None], n)
        now, up, down = (np.exp(confidence_bounds.log_wealth(k + i, n + j, p)) for i, j in ((0, 0), (1, 1), (0, 1)))
        assert np.all(p * up + (1 - p) * down <= now * (1 + 1e-9))
        assert np.exp(confidence_bounds.log_wealth(0, 0, p)) == pytest.approx(1)


@pytest.mark.parametrize(("k", "n", "p"), [(10, 10, 0.5), (950, 1000, 0.9), (99_000, 100_000, 0.985), (3, 50, 0.2)])
def test_wealth_in_40_digits(k, n, p):
    with mpmath.workdps(40):
        a, b, x = mpmath.mpf(k) + 0.5, mpmath.mpf(n - k) + 0.5, mpmath.mpf(p)
        above = lambda a, b: mpmath.betainc(a, b, x, 1)  # noqa: E731
        half = mpmath.mpf(1) / 2
        expected = mpmath.log(above(a, b) / above(half, half)) - k * mpmath.log(x) - (n - k) * mpmath.log(1 - x)
    assert float(confidence_bounds.log_wealth(k, n, p)) == pytest.approx(float(expected), abs=1e-9)


def test_bound_is_the_smallest_proportion_not_rejected():
    for k, n, alpha in (
        (10, 10, 0.001),
        (60, 60, 0.0005),
        (950, 1000, 0.001),
        (99_990, 100_000, 0.001),
        (5, 400, 0.05),
    ):
        lower = confidence_bounds.betting_lower(k, n, alpha)
        grid = lower * np.linspace(0.01, 1 - 1e-8, 2000)
        assert np.all(confidence_bounds.log_wealth(k, n, grid) > -np.log(alpha))
        assert confidence_bounds.log_wealth(k, n, lower * (1 + 1e-6)) < -np.log(alpha)
        assert lower < confidence_bounds.clopper_pearson_lower(k, n, alpha)
    assert confidence_bounds.betting_lower(0, 50, 0.01) == 0
    assert confidence_bounds.betting_upper(50, 50, 0.01) == 1
    assert confidence_bounds.betting_upper(3, 50, 0.01) == 1 - confidence_bounds.betting_lower(47, 50, 0.01)


def halved(k, n, alpha):
    """The bound by bisection alone: the whole wealth at every middle."""
    low, high = np.zeros(k.shape), k / n
    goal = -np.log(alpha) + confidence_bounds.wealth_error(n)
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(invalid="ignore"):
            rejected = confidence_bounds.log_wealth(k, n, np.maximum(middle, 1e-300)) >= goal
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low * (1 - 1e-9)


@pytest.mark.filterwarnings("error")
def test_what_is_spared_changes_no_bit_of_a_bound(monkeypatch):
    """Of all k at few votes, and of any; and most of the work is spared."""
    generator, calls = np.random.default_rng(0), []
    for n in (1, 2, 50, 230):
        k = np.arange(n + 1)
        for alpha in (0.5, 0.0005, 1e-9):
            np.testing.assert_array_equal(confidence_bounds.betting_lower(k, n, alpha), halved(k, n, alpha))
    above = confidence_bounds._log_above
    for alpha in (0.3, 0.01, 0.0005, 1e-6):
        n = (10 ** generator.uniform(0, 7, (20, 50))).astype(int)
        k = generator.binomial(n, generator.choice([0, 0.5, 0.9, 0.999, 1], n.shape))
        expected = halved(k, n, alpha)
        with monkeypatch.context() as counting:
            counting.setattr(confidence_bounds, "_log_above", lambda *of: calls.append(np.size(of[0])) or above(*of))
            np.testing.assert_array_equal(confidence_bounds.betting_lower(k, n, alpha), expected)
    assert sum(calls) < 25 * 4 * 1000  # of 60
    assert confidence_bounds.betting_lower([[40, 45]], [[50], [60]], 0.01).shape == (2, 2)


def test_coverage_by_simulation():
    """10**5 runs to 400 samples with a look at each: how often any bound along the path is too high."""
    runs, p, alpha = 100_000, 0.9, 0.01
    boundary = first_rejected(np.arange(1, 401), p, alpha)
    generator = np.random.default_rng(0)
    wrong = np.zeros(runs, bool)
    k = np.zeros(runs, int)
    for limit in boundary:
        k += generator.uniform(size=runs) < p
        wrong |= k >= limit
    assert alpha / 10 < np.mean(wrong) <= alpha + 3 * np.sqrt(alpha / runs)
    assert np.mean(wrong) == pytest.approx(walk(boundary, p)[0], abs=4 * np.sqrt(alpha / runs))


def test_rejection_and_bound_agree():
    n = np.array([100, 500, 5000])
    limit = first_rejected(n, 0.9, 0.001)
    assert np.all(confidence_bounds.betting_lower(limit, n, 0.001) > 0.9 * (1 - 1e-6))
    assert np.all(confidence_bounds.betting_lower(limit - 1, n, 0.001) < 0.9)
    assert stats.binom.sf(limit[0] - 1, 100, 0.9) < 0.001


def test_sequential_prediction_errs_at_most_alpha_by_exact_computation():
    """Two equal classes, the worst case: a look at each of 5,000 samples."""
    alpha = 0.01
    n = np.arange(1, 5001)
    boundary = first_rejected(n, 0.5, alpha)
    assert confidence_bounds.predict_sequential(np.array([boundary[99], 100 - boundary[99], 0]), alpha) == 0
    assert (
        confidence_bounds.predict_sequential(np.array([boundary[99] - 1, 101 - boundary[99], 7]), alpha)
        == confidence_bounds.ABSTAIN
    )
    law, error = np.zeros(5002), 0.0
    law[0] = 1.0
    for limit, total in zip(boundary, n, strict=True):
        law[1:] = (law[1:] + law[:-1]) / 2
        law[0] /= 2
        error += law[limit:].sum()  # the one class; the other one's error is the same
        law[limit:] = 0.0
        law[: max(total - limit + 1, 0)] = 0.0
    assert 0.1 * alpha < error <= alpha


def test_sequential_prediction_of_ten_classes_by_simulation():
    alpha, truth = 0.05, np.array([0.105] + [0.0995] * 9)  # the first is right, hardly
    generator, wrong, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        votes = np.zeros(11, int)
        for _ in range(40):
            votes[:10] += generator.multinomial(25, truth / truth.sum())
            answer = confidence_bounds.predict_sequential(votes, alpha)
            if answer != confidence_bounds.ABSTAIN:
                wrong += answer != 0
                break
    assert wrong / runs <= alpha


def test_sequential_prediction_of_one_class_and_of_no_votes():
    assert confidence_bounds.predict_sequential(np.array([50, 0]), 0.01) == 0
    assert confidence_bounds.predict_sequential(np.array([0, 0, 30]), 0.01) == confidence_bounds.ABSTAIN
