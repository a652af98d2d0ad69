"""What a radius of one norm says in another: against the changes that are longest for their norm."""

import itertools
import math

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


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm to be one of l1, l2, linf, got 'l3'"):
        norms.stated(0.3, "l2", "l3", 4)
