import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax.training import moving_average


@pytest.mark.parametrize("steps", [1, 7, 199])
def test_the_average_forgets_the_first_weights_soon_and_then_decays_at_its_rate(steps):
    """Against the sum written out: each step's weights times its share, and the factors of all later steps."""
    values = np.random.default_rng(0).normal(size=steps + 1)
    average = moving_average.first({"w": jnp.asarray(values[0], jnp.float32)}, {})
    for step, value in enumerate(values[1:]):
        average = moving_average.updated(average, {"w": jnp.asarray(value, jnp.float32)}, jnp.asarray(step), 0.9)
    factors = np.minimum(0.9, (1 + np.arange(steps)) / (10 + np.arange(steps)))
    shares = np.concatenate([[1.0], 1 - factors]) * np.concatenate([np.cumprod(factors[::-1])[::-1], [1.0]])
    assert shares.sum() == pytest.approx(1)
    assert float(average["w"]) == pytest.approx(shares @ values, rel=1e-5)


def test_the_average_begins_with_a_copy():
    params = {"w": jnp.ones(3)}
    first = moving_average.first(params, {})
    assert first["w"] is not params["w"]
    np.testing.assert_array_equal(first["w"], params["w"])


def test_beside_running_statistics_it_has_theirs_too_and_can_be_parted():
    params, stats = {"w": jnp.ones(3)}, {"mean": jnp.zeros(2)}
    joined = moving_average.first(params, stats)
    assert set(joined) == {"mean", "average.w", "average.mean"}
    running, average = moving_average.parted(params, joined)
    assert (set(running), set(average)) == ({"mean"}, {"w", "mean"})
    assert moving_average.parted(params, stats) == (stats, {})


def test_without_running_statistics_it_lies_in_their_place_under_the_names_of_the_params():
    params = {"w": jnp.ones(3)}
    running, average = moving_average.parted(params, moving_average.first(params, {}))
    assert (running, set(average)) == ({}, {"w"})
    assert moving_average.joined(running, average) == average
    assert moving_average.parted(params, {}) == ({}, {})
