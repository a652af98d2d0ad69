"""The look-up of rounded normals, kernel and twin, against a search in the thresholds; and the kernel's random bits."""

import built
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax.core.normal_thresholds import thresholds
from idrc_jax.kernels import rounded_normal_cpu as rounded
from idrc_jax.sampling import threefry

CASES = [(0.25, 8), (0.5, 8), (1.0, 10), (4.0, 12), (0.01, 8), (3e-4, 8), (0.0, 8)]


def tables(levels, bits, rows):
    made = [rounded.table(thresholds(level), bits) for level in levels]
    words, guide = (jnp.asarray(np.stack(part)) for part in zip(*made, strict=True))
    return rounded.Tables(words, guide, jnp.asarray(rows, jnp.int32))


def split(words):
    return (words >> np.uint64(32)).astype(np.uint32), (words & np.uint64(2**32 - 1)).astype(np.uint32)


def searched(words, level):
    """The integers by their definition, in NumPy."""
    rising = thresholds(level)[::-1]
    positive = words >= 2**63
    t = np.where(positive, ~words, words)
    count = len(rising) - np.searchsorted(rising, t, side="right")
    return np.where(positive, count, -count)


@pytest.mark.parametrize(("level", "bits"), CASES)
def test_the_twin_is_right_at_every_threshold_and_between(level, bits):
    own = thresholds(level)
    random = np.random.default_rng(0)
    anywhere = random.integers(0, 2**63, 20_000, np.uint64) >> random.integers(0, 63, 20_000, np.uint64)
    near = np.concatenate([own - np.uint64(1), own, own + np.uint64(1)])
    powers = np.uint64(1) << np.arange(63, dtype=np.uint64)
    t = np.concatenate([near, anywhere, np.arange(3000, dtype=np.uint64), powers, powers - np.uint64(1)])
    words = np.concatenate([t, ~t])
    high, low = split(words)
    made = jax.jit(rounded.plain)(high[None], low[None], tables([level], bits, [0]))
    np.testing.assert_array_equal(made[0], searched(words, level))


def words_of(keys, shape):
    return jax.jit(jax.vmap(lambda key: threefry.word_pairs(key, shape)))(keys)


@pytest.mark.parametrize("shape", [(7,), (1031,), (32, 32, 3)])
def test_the_kernel_draws_what_the_twin_does(shape):
    built.require(rounded)
    keys = np.random.default_rng(1).integers(0, 2**32, (9, 2), np.uint32)
    made = tables([0.25, 1.0, 0.0], 10, [0, 1, 2, 1, 0, 0, 1, 2, 1])
    integers = jax.jit(lambda keys: rounded.integers(keys, made, shape))(keys)
    assert integers.shape == (9, *shape)
    np.testing.assert_array_equal(integers, jax.jit(rounded.plain)(*words_of(keys, shape), made))
    assert np.all(np.asarray(integers)[[2, 7]] == 0)


def test_the_kernel_is_right_where_words_meet_thresholds():
    """Thresholds are put onto words that are drawn, one below them and one above."""
    built.require(rounded)
    keys, shape = np.array([[3, 5]], np.uint32), (40_000,)
    high, low = (np.asarray(one, np.uint64) for one in words_of(keys, shape))
    words = ((high << np.uint64(32)) | low)[0]
    t = np.where(words >= 2**63, ~words, words)
    steps = np.array([1, 1, 2], np.uint64)[np.arange(1200) % 3] - np.array([0, 1, 1], np.uint64)[np.arange(1200) % 3]
    chosen = np.sort(np.sort(t)[:: len(t) // 1200][:1200] + steps)[::-1]
    cells = (chosen.astype(np.float64).view(np.uint64) >> np.uint64(52 - 14)).tolist()
    one_a_cell = chosen[np.unique(cells, return_index=True)[1]]
    own = np.sort(one_a_cell)[::-1]
    assert len(own) > 600
    table, guide = rounded.table(own, 14)
    made = rounded.Tables(jnp.asarray(table)[None], jnp.asarray(guide)[None], jnp.zeros(1, jnp.int32))
    count = len(own) - np.searchsorted(own[::-1], t, side="right")
    expected = np.where(words >= 2**63, count, -count)
    np.testing.assert_array_equal(jax.jit(lambda: rounded.integers(keys, made, shape))()[0], expected)
    np.testing.assert_array_equal(jax.jit(rounded.plain)(*split(words[None]), made)[0], expected)
    beside = len(own) - np.searchsorted(own[::-1] + np.uint64(1), t, side="right")
    assert np.sum(beside != count) > 100  # it would be seen if a comparison were the other one


def test_tables_refuse_what_they_cannot_hold():
    with pytest.raises(ValueError, match="fewer than 1280 thresholds, got 2315"):
        rounded.table(thresholds(1.0), 8)
    with pytest.raises(ValueError, match="one threshold a cell of 8 bits, got two"):
        rounded.table(np.array([2**62 + 2, 2**62 + 1], np.uint64), 8)


def test_the_bits_are_a_branch_of_threefry_that_no_draw_of_jax_uses():
    """JAX's own hash of the counters (1, position); its draws and children have counters (0, number)."""
    from jax.extend.random import threefry_2x32

    key, size = jnp.asarray([17, 4_000_000_000], jnp.uint32), 2048
    position = jnp.arange(size, dtype=jnp.uint32)

    def hashed(high):
        both = threefry_2x32(key, jnp.concatenate([jnp.full(size, high, jnp.uint32), position]))
        return both[:size], both[size:]

    for shape in ((size,), (32, 8, 8)):
        for made in (
            jax.jit(threefry.word_pairs, static_argnums=1)(key, shape),
            jax.jit(threefry._words_at_once, static_argnums=(1, 2))(key, shape, threefry._branch),
        ):
            for ours, theirs in zip(made, hashed(1), strict=True):
                np.testing.assert_array_equal(ours, theirs.reshape(shape))
    first, second = hashed(0)
    typed = jax.random.wrap_key_data(key, impl="threefry2x32")
    np.testing.assert_array_equal(jax.random.bits(typed, (size,)), first ^ second)
    np.testing.assert_array_equal(jax.random.key_data(jax.random.fold_in(typed, 9)), [first[9], second[9]])
