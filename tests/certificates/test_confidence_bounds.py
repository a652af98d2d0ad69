import itertools

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from idrc_jax.certificates import confidence_bounds

VECTORS = [
    (100_000, 100_000, 0.001, 0.9999309248),
    (99_000, 100_000, 0.001, 0.9889893404),
    (60_000, 100_000, 0.001, 0.5952010473),
    (10, 10, 0.001, 0.5011872336),
    (100_000, 100_000, 0.0005, 0.0005**1e-5),
]


@pytest.mark.parametrize(("k", "n", "alpha", "expected"), VECTORS)
def test_lower_bound_of_the_literature_values(k, n, alpha, expected):
    assert confidence_bounds.clopper_pearson_lower(k, n, alpha) == pytest.approx(expected, abs=1e-9)


def upper_tail(k, n, p):
    """P(Bin(n, p) >= k) to 50 digits, term by term."""
    with mpmath.workdps(50):
        p = mpmath.mpf(float(p))
        ratio = p / (1 - p)
        term = mpmath.exp(
            mpmath.loggamma(n + 1)
            - mpmath.loggamma(k + 1)
            - mpmath.loggamma(n - k + 1)
            + k * mpmath.log(p)
            + (n - k) * mpmath.log1p(-p)
        )
        total = mpmath.mpf(0)
        for j in range(k, n + 1):
            total += term
            term *= ratio * (n - j) / (j + 1)
        return total


@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-9])
@pytest.mark.parametrize("n", [1, 7, 100, 10_000, pytest.param(100_000, marks=pytest.mark.evidence)])
def test_bounds_never_err_to_the_unsafe_side(n, alpha):
    for k in sorted({1, n // 2, n * 9 // 10, n - 1, n} - {0}):
        lower = confidence_bounds.clopper_pearson_lower(k, n, alpha)
        assert upper_tail(k, n, lower) <= alpha
        assert upper_tail(k, n, lower * (1 + 3e-12)) > alpha  # and no more careful than stated
        upper = confidence_bounds.clopper_pearson_upper(n - k, n, alpha)
        if upper < 1:
            assert 1 - upper_tail(n - k + 1, n, upper) <= alpha


@pytest.mark.parametrize(
    ("k", "n", "alpha"),
    [
        (2, 116_769_276, 2.5225610763958486e-07),
        (1, 291_644, 0.059),
        *((k, n, alpha) for k in (1, 3, 10, 30) for n in (10**6, 10**7, 10**8) for alpha in (1e-9, 0.001, 0.05)),
    ],
)
def test_bounds_of_few_in_millions_do_not_err_to_the_unsafe_side(k, n, alpha):
    """Where SciPy's inverse is good to 1e-9 alone."""
    upper = confidence_bounds.clopper_pearson_upper(k, n, alpha)
    at_most = lower_tail(k, n, upper)
    assert alpha * (1 - 1e-6) <= at_most <= alpha
    lower = confidence_bounds.clopper_pearson_lower(k, n, alpha)
    assert alpha * (1 - 1e-6) <= 1 - lower_tail(k - 1, n, lower) <= alpha


@pytest.mark.parametrize(
    ("k", "n", "alpha"),
    [
        (25, 18_082_390, 1.806314207015279e-05),
        (31, 26_499_712, 0.0024490287894242363),
        *((k, n, alpha) for k in (1, 5, 40) for n in (10**6, 10**7, 10**8) for alpha in (1e-6, 0.001, 0.05)),
    ],
)
def test_the_wealth_of_few_in_millions_is_there(k, n, alpha):
    """Where its logarithm is a difference of numbers near a billion."""
    wealth = exact_wealth(k, n, confidence_bounds.betting_lower(k, n, alpha))
    assert 1 / alpha <= wealth <= (1 + 1e-5) / alpha


def exact_wealth(k, n, p):
    """`log_wealth`, not as a logarithm, to 40 digits: P(X > p) by the series of the incomplete beta function."""
    with mpmath.workdps(40):
        a, b, p = k + mpmath.mpf(0.5), n - k + mpmath.mpf(0.5), mpmath.mpf(float(p))
        term = total = mpmath.mpf(1)
        for j in itertools.count():
            term *= (a + b + j) / (a + 1 + j) * p
            total += term
            if term < total * mpmath.mpf(10) ** -38:
                break
        log_beta = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
        above = 1 - mpmath.exp(a * mpmath.log(p) + b * mpmath.log1p(-p) - mpmath.log(a) - log_beta) * total
        null = 1 - 2 / mpmath.pi * mpmath.asin(mpmath.sqrt(p))
        ratio = mpmath.exp(log_beta - k * mpmath.log(p) - (n - k) * mpmath.log1p(-p))
        return ratio / mpmath.pi * above / null


def lower_tail(k, n, p):
    """P(Bin(n, p) <= k) to 50 digits, term by term."""
    with mpmath.workdps(50):
        p = mpmath.mpf(float(p))
        term = total = mpmath.exp(n * mpmath.log1p(-p))
        for j in range(k):
            term *= p / (1 - p) * (n - j) / (j + 1)
            total += term
        return total


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.floats(1e-6, 0.5), st.data())
def test_bounds_agree_with_scipy_and_mirror_each_other(n, alpha, draw):
    k = draw.draw(st.integers(0, n))
    lower, upper = (
        confidence_bounds.clopper_pearson_lower(k, n, alpha),
        confidence_bounds.clopper_pearson_upper(k, n, alpha),
    )
    exact = stats.binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact")
    assert lower == pytest.approx(exact.low, abs=1e-9)
    assert upper == pytest.approx(exact.high, abs=1e-9)
    assert 0 <= lower <= k / n <= upper <= 1
    assert 1 - confidence_bounds.clopper_pearson_upper(n - k, n, alpha) == pytest.approx(lower, abs=1e-9)


def test_bounds_broadcast():
    k = np.arange(11)
    lower = confidence_bounds.clopper_pearson_lower(k, 10, 0.01)
    assert lower.shape == (11,)
    assert lower[0] == 0
    assert np.all(np.diff(lower) > 0)
    assert confidence_bounds.clopper_pearson_upper(k, 10, 0.01)[-1] == 1


@pytest.mark.parametrize("p", [0.3, 0.77, 0.85])
def test_coverage_by_simulation(p):
    """The bound exceeds the truth at most as often as alpha allows (10**6 draws, four standard errors)."""
    draws, alpha, n = 10**6, 0.01, 50
    k = np.random.default_rng(1).binomial(n, p, draws)
    miss = np.mean(confidence_bounds.clopper_pearson_lower(np.arange(n + 1), n, alpha)[k] > p)
    assert miss <= alpha + 4 * np.sqrt(alpha / draws)
    assert miss > alpha / 20  # it does miss: the test has power


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_bad_counts_are_refused(k, n, alpha):
    with pytest.raises(ValueError, match="Expected"):
        confidence_bounds.clopper_pearson_lower(k, n, alpha)


def test_select_takes_the_lowest_on_a_tie_and_nothing_without_a_valid_vote():
    assert confidence_bounds.select(np.array([3, 40, 2, 55])) == 1  # the last are the votes of no class
    assert confidence_bounds.select(np.array([2, 5, 5, 0])) == 1
    assert confidence_bounds.select(np.array([0, 0, 10])) == confidence_bounds.ABSTAIN
    assert confidence_bounds.simultaneous_bounds(confidence_bounds.ABSTAIN, np.array([0, 100, 0]), 0.01) == (0.0, 1.0)


def test_simultaneous_bounds_are_clopper_pearsons_at_alpha_over_classes():
    p_lower, p_upper = confidence_bounds.simultaneous_bounds(1, np.array([30, 60, 8, 2]), 0.003)
    assert p_lower == confidence_bounds.clopper_pearson_lower(60, 100, 0.001)
    assert p_upper == confidence_bounds.clopper_pearson_upper(30, 100, 0.001)
    with pytest.raises(ValueError, match="at least 2 classes"):
        confidence_bounds.simultaneous_bounds(0, np.array([5, 0]), 0.1)


def test_simultaneous_bounds_hold_together_by_simulation():
    alpha, truth = 0.05, np.array([0.5, 0.3, 0.15, 0.05])
    votes = np.random.default_rng(3).multinomial(200, [*truth, 0.0], 4000)
    bounds = np.array([confidence_bounds.simultaneous_bounds(0, row, alpha) for row in votes])
    wrong = np.mean((bounds[:, 0] > 0.5) | (bounds[:, 1] < 0.3))
    assert alpha / 20 < wrong <= alpha


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.001, 0.05]))
def test_predict_is_the_two_sided_binomial_test(first, second, alpha):
    predicted = confidence_bounds.predict(np.array([first, 0, second, 17]), alpha)
    if first == second:
        assert predicted == confidence_bounds.ABSTAIN
        return
    top, rest = max(first, second), min(first, second)
    p_value = min(1.0, 2 * stats.binom.sf(top - 1, top + rest, 0.5))
    expected = (0 if first > second else 2) if p_value <= alpha else confidence_bounds.ABSTAIN
    assert predicted == expected


@pytest.mark.parametrize(("top", "answer"), [(14, 0), (13, confidence_bounds.ABSTAIN)])
def test_predict_turns_at_alpha(top, answer):
    # Against one vote, 14 have the p-value 2 * 16 / 2**15 = .00098 and 13 have 2 * 15 / 2**14 = .00183.
    assert confidence_bounds.predict(np.array([top, 1, 0]), 0.001) == answer


def test_predict_errs_at_most_alpha_of_the_time_by_simulation():
    alpha, runs = 0.05, 4000
    votes = np.random.default_rng(5).multinomial(60, [0.36, 0.34, 0.3, 0.0], runs)
    answers = np.array([confidence_bounds.predict(row, alpha) for row in votes])
    wrong = np.mean((answers != 0) & (answers != confidence_bounds.ABSTAIN))
    assert wrong <= alpha
    assert np.mean(answers == confidence_bounds.ABSTAIN) > 0.5  # 60 votes cannot tell these classes apart


@pytest.mark.parametrize(("alpha", "expected"), [(0.001, 10), (0.5, 2), (2.0**-10, 11), (0.05, 5), (1e-6, 20)])
def test_smallest_n_that_can_certify(alpha, expected):
    n = confidence_bounds.smallest_n(alpha)
    assert n == expected
    assert alpha ** (1 / n) > 0.5
    assert n == 1 or alpha ** (1 / (n - 1)) <= 0.5


def test_proportion_interval_is_scipys_exact_one():
    low, high = confidence_bounds.proportion_interval(np.array([0, 300, 500]), 500)
    for i, k in enumerate((0, 300, 500)):
        exact = stats.binomtest(k, 500).proportion_ci(0.95, "exact")
        assert (low[i], high[i]) == pytest.approx((exact.low, exact.high), abs=1e-9)
