"""What a radius of one norm says in another: against the changes that are longest for their norm."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from idrc_jax.certificates import norms

ORDERS = {"l1": 1, "l2": 2, "linf": math.inf}


@pytest.mark.parametrize(("norm", "wanted"), list(itertools.product(ORDERS, ORDERS)))
@pytest.mark.parametrize("dim", [1, 7, 3072])
def test_no_shorter_change_is_longer_than_the_radius_and_the_worst_one_reaches_it(norm, wanted, dim):
    """Changes of one value, of all alike and between, each just as long as is said."""
    generator = np.random.default_rng(dim)
    radius = 0.7
    said = norms.stated(radius, norm, wanted, dim)
    counts = np.unique(np.concatenate([[1, dim], generator.integers(1, dim + 1, 300)]))
    lengths = []
    for count in counts:
        change = np.zeros(dim)
        change[:count] = 1 if generator.random() < 0.5 or count in (1, dim) else generator.normal(size=count)
        change *= said / np.linalg.norm(change, ORDERS[wanted])
        lengths.append(np.linalg.norm(change, ORDERS[norm]))
    assert max(lengths) <= radius * (1 + 1e-12)
    assert max(lengths) >= radius * (1 - 1e-11)  # some change is that long: no larger radius holds


def test_it_is_rounded_down_keeps_nan_and_takes_arrays():
    said = norms.stated([0.5, math.nan, 0.0], "l2", "linf", 3072)
    assert said[0] < 0.5 / math.sqrt(3072)
    assert said[0] == pytest.approx(0.5 / math.sqrt(3072), rel=1e-11)
    assert math.isnan(said[1])
    assert said[2] == 0
    assert norms.stated(0.3, "l2", "l2", 3072) == 0.3


@pytest.mark.parametrize("names", [("l2", "l3"), ("l3", "l2"), ("l3", "l3")])
def test_an_unknown_norm_is_refused(names):
    with pytest.raises(ValueError, match="norm to be one of l1, l2, linf, got 'l3'"):
        norms.stated(0.3, *names, 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("p_upper", [0.0, 5e-324, 1e-320, 1e-308, 1e-300, 2.0**-53, 0.25, 0.5, 1.0])
def test_no_probabilities_have_a_laplace_radius_above_the_true_one_or_an_infinite_one(p_upper):
    p_lower = np.array([0.0, 5e-324, 1e-310, 0.25, 0.5, 1 - 2.0**-53, 1.0])
    found = norms.laplace(p_lower, p_upper)
    assert np.all(np.isfinite(found))
    with mpmath.workdps(400):

        def true(p, upper):
            ratio = mpmath.log(mpmath.mpf(float(p)) / upper) / 2 if p else 0
            return norms.LAPLACE * max(ratio, -mpmath.log(1 - mpmath.mpf(float(p)) + upper), 0)

        for p, radius in zip(p_lower, found, strict=True):
            assert radius <= true(p, max(mpmath.mpf(p_upper), mpmath.mpf(2) ** -1074))
            assert radius >= true(p, max(mpmath.mpf(p_upper), mpmath.mpf(2) ** -1022)) * (1 - 1e-11) - 1e-14


@pytest.mark.parametrize("law", [norms.box, norms.laplace])
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf, [0.5, 1e300]])
def test_what_is_no_probability_has_no_radius(law, p):
    with pytest.raises(ValueError, match="Expected 0 <= p_lower <= 1, got"):
        law(p, 0.1)
    with pytest.raises(ValueError, match="Expected 0 <= p_upper <= 1, got"):
        law(0.6, p)
