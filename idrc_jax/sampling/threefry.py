"""Threefry-2x32 under every setting of JAX, and in one pass over memory.

JAX's own keys draw other numbers under some of its settings (JAX_THREEFRY_PARTITIONABLE=0), and other generators void
the guarantee: under `vmap` the keys of `rbg` draw a whole batch from its first one. So noise is drawn from keys of this
module alone, with the bits of JAX's default.

JAX compiles Threefry-2x32 on a CPU to a loop of passes over the whole array (it is quick to compile). Written out, all
twenty rounds stay in registers, which takes an eighth of the time. On accelerators they are fused into what reads the
noise, which never passes through memory. The bits are the same.
"""

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl

NAME = "threefry2x32"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PIECES = 8  # a loop keeps XLA from fusing the rounds into what reads the bits, which takes ten times as long
_SMALL = 1024  # numbers that are not worth a loop


def key(data: np.ndarray) -> jax.Array:
    """The key with these two words, uint32 [2]."""
    return jax.random.wrap_key_data(jnp.asarray(data), impl=_PINNED)


def pinned(key: jax.Array) -> jax.Array:
    """A key that under any settings draws what `key` does under JAX's default ones.

    Raises ValueError unless it is a typed key of threefry2x32.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        words = isinstance(key, jax.Array) and key.dtype == jnp.uint32
        got = "the words of one: take jax.random.key for jax.random.PRNGKey" if words else type(key).__name__
        raise ValueError(f"Expected a typed key, as idrc_jax.prng.root(seed) gives, got {got}.")
    kind = jax.random.key_impl(key)
    if kind in (_PINNED, _ONE_PASS):
        return key
    if kind != NAME:
        raise ValueError(
            f"Expected a key of {NAME}, as idrc_jax.prng.root(seed) gives, got one of {kind}, whose numbers the "
            "guarantee does not cover."
        )
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_PINNED)


def one_pass(key: jax.Array) -> jax.Array:
    """`pinned`, faster."""
    return jax.random.wrap_key_data(jax.random.key_data(pinned(key)), impl=_ONE_PASS)


def _split(data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    with jax.threefry_partitionable(True):
        return threefry_prng_impl.split(data, shape)


def _bits(data: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    with jax.threefry_partitionable(True):
        return threefry_prng_impl.random_bits(data, width, shape)


def _bits_in_one_pass(data: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    if width != 32 or not _SMALL <= math.prod(shape) < 2**32:
        return _bits(data, width, shape)
    return jax.lax.platform_dependent(
        data, cpu=partial(_words_in_pieces, shape=shape), default=partial(_words_at_once, shape=shape)
    )


def word_pairs(data: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """64 random bits a number, as two arrays of uint32 [*shape], from a branch of a key that nothing else draws from.

    Args:
      data: uint32 [2], of the key.
      shape: of fewer than 2^32 numbers.

    They are both words of the blocks whose counters are (1, position). All that JAX draws from a key, its children
    among it, has counters that begin with 0, for fewer than 2^32 numbers.
    """
    cpu, default = (partial(how, shape=shape, block=_branch) for how in (_words_in_pieces, _words_at_once))
    return jax.lax.platform_dependent(data, cpu=cpu, default=default)


def _words_in_pieces(data: jax.Array, shape: tuple[int, ...], block: Callable[..., Any] | None = None) -> Any:
    """The words that `block` (`_block` by default) makes of a key and the positions in an array's memory."""
    size = math.prod(shape)
    piece = -(-size // _PIECES)

    def of_piece(number: jax.Array) -> Any:
        return (block or _block)(data, number * np.uint32(piece) + jnp.arange(piece, dtype=jnp.uint32))

    made = jax.lax.map(of_piece, jnp.arange(_PIECES, dtype=jnp.uint32))
    return jax.tree.map(lambda words: words.reshape(-1)[:size].reshape(shape), made)


def _words_at_once(data: jax.Array, shape: tuple[int, ...], block: Callable[..., Any] | None = None) -> Any:
    """The same, for XLA to fuse into what reads them on an accelerator: a reshape between would keep it from that."""
    position = jnp.zeros(shape, jnp.uint32)  # of each word in the array's memory
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        position += stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return (block or _block)(data, position)


def _block(key: jax.Array, counter: jax.Array) -> jax.Array:
    """The exclusive or of both words that a counter below 2**32 gives."""
    x, y = _words(key, 0, counter)
    return x ^ y


def _branch(key: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _words(key, 1, position)


def _words(key: jax.Array, high: int, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both words that the counter (high, low) gives (Salmon et al. 2011, Threefry-2x32-20)."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = jnp.full_like(low, high) + keys[0], low + keys[1]
    for injection in range(5):
        for rotation in _ROTATIONS[injection % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
        x = x + keys[(injection + 1) % 3]
        y = y + keys[(injection + 2) % 3] + np.uint32(injection + 1)
    return x, y


def _define(name: str, tag: str, random_bits: Callable[[jax.Array, int, tuple[int, ...]], jax.Array]) -> Hashable:
    return define_prng_impl(
        key_shape=(2,),
        seed=threefry_prng_impl.seed,
        split=_split,
        random_bits=random_bits,
        fold_in=threefry_prng_impl.fold_in,
        name=name,
        tag=tag,
    )


_PINNED = _define("threefry2x32_pinned", "fryp", _bits)
_ONE_PASS = _define("threefry2x32_one_pass", "fry1", _bits_in_one_pass)
