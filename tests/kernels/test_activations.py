import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.kernels.activations import relu


def test_relu_is_jaxs_for_numbers_with_its_gradient():
    x = jnp.asarray([-np.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, np.inf])
    np.testing.assert_array_equal(relu(x), jax.nn.relu(x))
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(x), jax.vmap(jax.grad(jax.nn.relu))(x))
    half = x.astype(jnp.bfloat16)
    assert relu(half).dtype == jnp.bfloat16
    np.testing.assert_array_equal(relu(half), jax.nn.relu(half))


def test_what_is_no_number_outlives_relu_and_a_mean():
    """Of so many pixels that XLA hands the sum, and what comes before it, to a library."""
    x = np.ones((4, 64, 64, 16), np.float32)
    x[1] = np.nan
    x[2, 7, 8] = np.nan
    lost = np.isnan(jax.jit(lambda x: jnp.mean(relu(x), axis=(1, 2)))(x))
    assert lost.all(axis=1).tolist() == lost.any(axis=1).tolist() == [False, True, True, False]
