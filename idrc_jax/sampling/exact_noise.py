"""Noise whose law is known to the last bit: 8-bit images with normal noise that is rounded to their grid.

An image i / 255 becomes (i + k) / 255, not clipped, with integers k of 64 random bits each (`normal_thresholds`): what
f(round(x + noise)) sees, if f rounds what it gets to the grid first. Each level has its own table of thresholds, made
on the host and sent along with the images.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from idrc_jax.core import normal_thresholds
from idrc_jax.core.normal_thresholds import GRID
from idrc_jax.kernels import rounded_normal_cpu
from idrc_jax.kernels.rounded_normal_cpu import Tables
from idrc_jax.sampling import devices, threefry

# Bits of a cell, each for levels up to four times those before: tables of few sizes, since each compiles anew.
_BITS = (8, 10, 12, 14)


def tables(levels: ArrayLike) -> Tables:
    """The tables of images' noise levels [N], one for all where the levels are one."""
    levels = np.asarray(levels, np.float32).astype(np.float64)
    shared = np.all(levels == levels[0])
    made = _stacked(tuple(levels[:1].tolist() if shared else levels.tolist()))
    row = np.zeros(len(levels), np.int32) if shared else np.arange(len(levels), dtype=np.int32)
    return made._replace(row=row)


@lru_cache(maxsize=4)
def _stacked(levels: tuple[float, ...]) -> Tables:
    known = [normal_thresholds.thresholds(level) for level in levels]
    bits = _bits(max(map(len, known)))
    made = {level: rounded_normal_cpu.table(own, bits) for level, own in zip(levels, known, strict=True)}
    thresholds, guide = (np.stack([made[level][part] for level in levels]) for part in (0, 1))
    return Tables(jnp.asarray(thresholds), jnp.asarray(guide), jnp.zeros(len(levels), jnp.int32))


def _bits(count: int) -> int:
    """Those of a table that holds so many thresholds."""
    for bits in _BITS:
        if count < rounded_normal_cpu.places(bits):
            return bits
    raise ValueError(
        f"Expected levels up to {normal_thresholds.LARGEST:g} under exact noise, got one of {count} thresholds."
    )


def like(images: int) -> Tables:
    """Shapes and types of the tables of so many images with one level up to .55."""
    made = tables([0.25] * images)
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), made)


def integers(keys: jax.Array, shape: tuple[int, ...], made: Tables) -> jax.Array:
    """The noise in grey levels: int32 [N, *shape].

    Args:
      keys: N typed keys, one a sample; a branch of each is used that nothing else draws from.
      shape: (H, W, C) of an image.
      made: of N rows.
    """

    def plain(keys: jax.Array) -> jax.Array:
        high, low = jax.vmap(lambda data: threefry.word_pairs(data, shape))(keys)
        return rounded_normal_cpu.plain(high, low, made)

    words = jax.random.key_data(threefry.pinned(keys))
    if not (devices.is_cpu() and rounded_normal_cpu.available()):
        return plain(words)
    kernel = partial(rounded_normal_cpu.integers, tables=made, shape=shape)
    return jax.lax.platform_dependent(words, cpu=kernel, default=plain)


def add(keys: jax.Array, images: jax.Array, made: Tables) -> jax.Array:
    """Images [N, H, W, C] with the exact noise of N keys: integers times float32's 1/255, not clipped.

    Args:
      keys, made: as for `integers`.
      images: float32, rounded to the grid of 8-bit images.
    """
    grey = jnp.rint(images * GRID) + integers(keys, images.shape[1:], made).astype(jnp.float32)
    return grey * np.float32(1 / GRID)  # compilers make such a product of a quotient, some of them
