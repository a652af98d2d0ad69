"""JAX's own random bits, computed in one pass over memory on a CPU.

JAX compiles Threefry-2x32 on a CPU to a loop of passes over the whole array (it is quick to compile). Written out, all
twenty rounds stay in registers, which takes an eighth of the time. The bits are the same.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

_JAX = "threefry2x32"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PIECES = 8  # a loop keeps XLA from fusing the rounds into what reads the bits, which takes ten times as long
_SMALL = 1024  # numbers that are not worth a loop


def one_pass(key: jax.Array) -> jax.Array:
    """A key that gives the same numbers as `key` in all of `jax.random`, faster on a CPU.

    It is `key` itself where JAX's default backend is no CPU, and where the key is not of JAX's default kind.
    """
    usual = jax.random.key_impl(key) == _JAX and getattr(jax.config, "jax_threefry_partitionable", True)
    if jax.default_backend() != "cpu" or not usual:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_IMPLEMENTATION)


def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    size = math.prod(shape)
    if width != 32 or not _SMALL <= size < 2**32:
        return jax.random.bits(_usual(key), shape, f"uint{width}")
    piece = -(-size // _PIECES)

    def of_piece(number: jax.Array) -> jax.Array:
        return _block(key, number * np.uint32(piece) + jnp.arange(piece, dtype=jnp.uint32))

    return jax.lax.map(of_piece, jnp.arange(_PIECES, dtype=jnp.uint32)).reshape(-1)[:size].reshape(shape)


def _block(key: jax.Array, counter: jax.Array) -> jax.Array:
    """The exclusive or of both words that a counter below 2**32 gives (Salmon et al. 2011, Threefry-2x32-20)."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = jnp.full_like(counter, 0) + keys[0], counter + keys[1]
    for injection in range(5):
        for rotation in _ROTATIONS[injection % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
        x = x + keys[(injection + 1) % 3]
        y = y + keys[(injection + 2) % 3] + np.uint32(injection + 1)
    return x ^ y


def _usual(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key, impl=_JAX)


_IMPLEMENTATION = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl=_JAX)),
    split=lambda key, shape: jax.random.key_data(jax.random.split(_usual(key), shape)),
    random_bits=_bits,
    fold_in=lambda key, number: jax.random.key_data(jax.random.fold_in(_usual(key), number)),
    name="threefry2x32_one_pass",
    tag="fry1",
)
