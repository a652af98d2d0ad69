"""The bits must be JAX's own, whatever is drawn from them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax import training
from idrc_jax.certificates import schemes
from idrc_jax.sampling import noise_laws, random_keys, threefry
from idrc_jax.training import steps

KEY = random_keys.sample(
    random_keys.stage(random_keys.root(7), random_keys.ESTIMATION), jnp.uint32(4_000_000_000), jnp.uint32(99_999)
)


def test_the_generator_is_threefry():
    """A known answer of Random123, so that it is not only JAX that ours is compared with."""
    zero = jnp.zeros(2, jnp.uint32)
    assert int(threefry._block(zero, jnp.zeros(1, jnp.uint32))[0]) == 0x6B200159 ^ 0x99BA4EFE


def test_the_key_is_another_kind():
    """Else the tests below compare JAX with itself."""
    assert jax.random.key_impl(threefry.one_pass(KEY)) != jax.random.key_impl(KEY)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1024,), (1031, 1), (32, 32, 3), (3, 41, 29), (224, 224, 3)])
def test_bits_are_jaxs(shape):
    expected = jax.random.bits(KEY, shape)
    np.testing.assert_array_equal(jax.random.bits(threefry.one_pass(KEY), shape), expected)


@pytest.mark.parametrize("shape", [(1024,), (1031, 1), (32, 32, 3), (2, 3, 41, 29)])
def test_bits_as_accelerators_draw_them_are_jaxs(shape):
    """In their own form, which any platform can run."""
    data = jax.random.key_data(KEY)
    np.testing.assert_array_equal(threefry._words_at_once(data, shape), jax.random.bits(KEY, shape))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_bits_of_every_width_are_jaxs(dtype):
    expected = jax.random.bits(KEY, (2048,), dtype)
    np.testing.assert_array_equal(jax.random.bits(threefry.one_pass(KEY), (2048,), dtype), expected)


@pytest.mark.parametrize("law", sorted(noise_laws.ADDED))
def test_laws_are_those_of_jaxs_keys_for_every_sample(law):
    """In a batch of samples, as the sampling core draws them."""
    keys = jax.vmap(random_keys.sample, in_axes=(None, None, 0))(KEY, jnp.uint32(5), jnp.arange(6))
    expected = jax.jit(jax.vmap(lambda key: noise_laws.ADDED[law](key, (32, 32, 3))))(keys)
    drawn = jax.jit(jax.vmap(lambda key: noise_laws.draw(law, key, jnp.float32(1.0), (32, 32, 3))))(keys)
    np.testing.assert_array_equal(drawn, expected)


def test_children_of_a_key_are_jaxs():
    ours = threefry.one_pass(KEY)
    for make in (lambda key: jax.random.fold_in(key, 12), lambda key: jax.random.split(key, 3)[2]):
        np.testing.assert_array_equal(jax.random.key_data(make(ours)), jax.random.key_data(make(KEY)))


SETTINGS = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_enable_x64": True,
}


@contextlib.contextmanager
def configured(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize("law", sorted(noise_laws.ADDED))
@pytest.mark.parametrize("shape", [(4, 4, 1), (32, 32, 3)])
def test_no_setting_of_jax_changes_a_draw(law, shape):
    def drawn():
        key = random_keys.sample(
            random_keys.stage(random_keys.root(7), random_keys.ESTIMATION), jnp.uint32(3), jnp.uint32(9)
        )
        return np.asarray(jax.jit(lambda key: noise_laws.draw(law, key, jnp.float32(1), shape))(key))

    expected = drawn()
    given = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), random_keys.ESTIMATION)
    by_jax = noise_laws.draw(law, random_keys.sample(given, jnp.uint32(3), jnp.uint32(9)), jnp.float32(1), shape)
    np.testing.assert_allclose(by_jax, expected, rtol=1e-5)
    for setting in SETTINGS.items():
        with configured(*setting):
            np.testing.assert_array_equal(drawn(), expected)


def test_no_setting_of_jax_changes_a_batch_of_training_or_its_order():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    recipe = training.Recipe(batch=8, sigma_low=0.1)

    def drawn():
        batch_of = training.make_batch(recipe, schemes.Gaussian(sigma=0.5), 3)
        order = steps.epoch_order(3, 1, 20)
        drawn = jax.jit(batch_of)(jnp.int32(1), order, jnp.asarray(images), jnp.arange(20, dtype=jnp.int32))
        return [np.asarray(value) for value in (order, drawn.labels, drawn.images, drawn.noise)]

    expected = drawn()
    for setting in SETTINGS.items():
        with configured(*setting):
            for value, wanted in zip(drawn(), expected, strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (jax.random.key(3, impl="rbg"), "Expected a key of threefry2x32, .*, got one of rbg"),
        (jax.random.PRNGKey(3), "Expected a typed key"),
        (3, "Expected a typed key"),
    ],
)
def test_other_generators_are_refused(key, message):
    with pytest.raises(ValueError, match=message):
        noise_laws.draw("normal", key, jnp.float32(1), (4, 4, 1))
    with pytest.raises(ValueError, match=message):
        random_keys.stage(key, random_keys.ESTIMATION)


@pytest.mark.parametrize("seed", [-1, 2**64, True, 1.0, "7"])
def test_seeds_that_the_keys_cannot_tell_apart_are_refused(seed):
    with pytest.raises(ValueError, match=r"Expected a seed in|Expected seed to be an integer"):
        random_keys.root(seed)


def test_the_first_and_the_last_seed_are_jaxs():
    for seed in (0, 7, np.int64(2**32 - 1)):
        expected = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
        np.testing.assert_array_equal(jax.random.key_data(random_keys.root(seed)), expected)


def test_a_seed_of_64_bits_is_the_key_of_its_two_words():
    for seed in (0, 7, 2**32, 2**64 - 1):
        key = random_keys.root(seed)
        assert jax.random.key_data(key).tolist() == [seed >> 32, seed & 0xFFFFFFFF]
        assert random_keys.seed_of(key) == seed
    for key in (jax.random.fold_in(jax.random.key(3), 5), jax.random.key(9)):
        again = random_keys.root(random_keys.seed_of(key))
        np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(key))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (7, "got the number 7: say seed=7"),
        (np.int64(7), "got the number 7: say seed=7"),
        (jax.random.PRNGKey(3), "jax.random.key for jax.random.PRNGKey"),
        (jax.random.split(jax.random.key(3)), r"Expected one key, got keys of shape \(2,\)"),
        ("7", "got str"),
    ],
)
def test_what_is_no_key_is_told_how_to_become_one(key, message):
    with pytest.raises(ValueError, match=message):
        random_keys.seed_of(key)


def test_the_key_tree_is_seed_then_stage_then_image_then_sample():
    """By JAX's own functions and numbers written out: rows and votes on disk go on only under the same tree."""
    stages = [
        ("SELECTION", 0), ("ESTIMATION", 1), ("PREDICTION", 2), ("INITIALISATION", 3), ("TRAINING", 4), ("SEARCH", 5),
        ("DIRECTION", 6), ("SCREENING", 7), ("CONFIRMATION", 8),
    ]  # fmt: skip
    for name, number in stages:
        wanted = jax.random.key(7, impl="threefry2x32")
        for branch in (number, 4_000_000_000, 12):
            wanted = jax.random.fold_in(wanted, np.uint32(branch))
        stage = random_keys.stage(random_keys.root(7), getattr(random_keys, name))
        found = random_keys.sample(stage, jnp.uint32(4_000_000_000), jnp.uint32(12))
        assert np.array_equal(jax.random.key_data(found), jax.random.key_data(wanted))
