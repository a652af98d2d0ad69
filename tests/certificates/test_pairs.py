"""The bound on a variant's class probability, by simulation at worst cases."""

import numpy as np
import pytest
from scipy import stats

from idrc_jax.certificates import Pairs
from idrc_jax.certificates.sampling_plans import Fixed, SelectionFree

ALPHA, RUNS = 0.1, 20_000


def exceeds(count):
    """Whether so many errors are more than alpha allows, but for one case in a thousand."""
    return count > stats.binom.ppf(0.999, RUNS, ALPHA)


def drawn(p, lost, n, pairs):
    """Votes of f for the class, and pairs in which f answers it and f' does not."""
    generator = np.random.default_rng(0)
    return generator.binomial(n, p, RUNS), generator.binomial(pairs, lost, RUNS)


def test_it_is_the_difference_of_clopper_and_pearsons_bounds():
    found = Pairs(200, 0.3).lower(
        Fixed(n=1000).lower, np.array([900, 900, 10]), np.full(3, 1000), np.array([0, 7, 5]), 0.01
    )
    of_network = stats.beta.ppf(0.007, [900, 900, 10], [101, 101, 991])
    difference = stats.beta.ppf(1 - 0.003, [1, 8, 6], [200, 193, 195])
    assert found == pytest.approx(np.maximum(of_network - difference, 0), rel=1e-9)
    assert found[2] == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("p", "lost", "n", "pairs"),
    [(0.9, 0.002, 300, 200), (0.999, 0.02, 100, 1000), (0.6, 0.3, 1000, 50), (0.8, 0.0, 200, 100)],
)
def test_the_bound_holds(p, lost, n, pairs, share):
    """The worst variant: it loses what the pairs show and gains nothing elsewhere."""
    own, differing = drawn(p, lost, n, pairs)
    found = Pairs(pairs, share).lower(Fixed(n=n).lower, own, np.full(RUNS, n), differing, ALPHA)
    assert not exceeds(np.sum(found > p - lost))
    assert np.mean(found) > p - lost - 0.2  # and is not idle


def test_wrong_forms_are_refuted():
    """The run's own bound without the difference; the difference as it was seen, without a bound."""
    p, lost, n, pairs = 0.9, 0.01, 100_000, 200
    own, differing = drawn(p, lost, n, pairs)
    of_network = Fixed(n=n).lower(own, np.full(RUNS, n), ALPHA)
    assert exceeds(np.sum(of_network > p - lost))
    assert exceeds(np.sum(of_network - differing / pairs > p - lost))


def test_a_class_that_the_votes_chose_has_a_bound_only_with_the_plans_own_discount():
    """`selection_free` certifies above 1/2 alone; f' is f here, with two classes of 1/2: it errs by the plan."""
    own = np.random.default_rng(0).binomial(100, 0.5, RUNS)
    most, none = np.maximum(own, 100 - own), np.zeros(RUNS, int)
    found = Pairs(10**6, 0.01).lower(SelectionFree(n=100).lower, most, np.full(RUNS, 100), none, ALPHA)
    assert not exceeds(np.sum(found > 0.5))
    undiscounted = Fixed(n=100).lower(most, np.full(RUNS, 100), ALPHA)
    assert exceeds(np.sum(undiscounted > 0.5))


def test_impossible_pairs_are_refused():
    for n, share, message in ((0, 0.5, "n >= 1"), (10, 0.0, "share"), (10, 1.0, "share")):
        with pytest.raises(ValueError, match=message):
            Pairs(n, share)
