"""The bits must be JAX's own, whatever is drawn from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax import noise, prng, threefry

KEY = prng.sample(prng.stage(prng.root(7), prng.ESTIMATION), jnp.uint32(4_000_000_000), jnp.uint32(99_999))


def test_the_generator_is_threefry():
    """A known answer of Random123, so that it is not only JAX that ours is compared with."""
    zero = jnp.zeros(2, jnp.uint32)
    assert int(threefry._block(zero, jnp.zeros(1, jnp.uint32))[0]) == 0x6B200159 ^ 0x99BA4EFE


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPUs")
def test_on_a_cpu_the_key_is_another_kind():
    """Else the tests below compare JAX with itself."""
    assert jax.random.key_impl(threefry.one_pass(KEY)) != jax.random.key_impl(KEY)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1024,), (1031, 1), (32, 32, 3), (3, 41, 29), (224, 224, 3)])
def test_bits_are_jaxs(shape):
    expected = jax.random.bits(KEY, shape)
    np.testing.assert_array_equal(jax.random.bits(threefry.one_pass(KEY), shape), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_bits_of_every_width_are_jaxs(dtype):
    expected = jax.random.bits(KEY, (2048,), dtype)
    np.testing.assert_array_equal(jax.random.bits(threefry.one_pass(KEY), (2048,), dtype), expected)


@pytest.mark.parametrize("law", sorted(noise.LAWS))
def test_laws_are_those_of_jaxs_keys_for_every_sample(law):
    """In a batch of samples, as the sampling core draws them."""
    keys = jax.vmap(prng.sample, in_axes=(None, None, 0))(KEY, jnp.uint32(5), jnp.arange(6))
    expected = jax.jit(jax.vmap(lambda key: noise.LAWS[law](key, (32, 32, 3))))(keys)
    drawn = jax.jit(jax.vmap(lambda key: noise.draw(law, key, jnp.float32(1.0), (32, 32, 3))))(keys)
    np.testing.assert_array_equal(drawn, expected)


def test_children_of_a_key_are_jaxs():
    ours = threefry.one_pass(KEY)
    for make in (lambda key: jax.random.fold_in(key, 12), lambda key: jax.random.split(key, 3)[2]):
        np.testing.assert_array_equal(jax.random.key_data(make(ours)), jax.random.key_data(make(KEY)))


def test_other_keys_stay_what_they_are():
    other = jax.random.key(3, impl="rbg")
    assert threefry.one_pass(other) is other
    with jax.threefry_partitionable(False):
        assert threefry.one_pass(KEY) is KEY
