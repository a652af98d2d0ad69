"""The laws of the noise schemes in JAX.

A law is drawn at scale 1 and multiplied by the noise level, in float32: half-precision normals take only some hundred
values and would void the certificate. Cast after adding, never before. `splitting` alone adds nothing: see `_split`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.certificates import norms
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core.normal_thresholds import GRID
from idrc_jax.kernels.rounded_normal_cpu import Tables
from idrc_jax.sampling import exact_noise, random_keys, threefry

Shape = tuple[int, ...]
SPLITTING = "splitting"
_POSITIONS = np.float32(2 * math.sqrt(3) * GRID)  # of an interval, in units of the noise level
_OFFSETS = np.asarray([0x53504C49, 0x5454494E], np.uint32)  # key of the distances between the values' intervals
_STEP = np.uint32(2**31 - 1)


def _normal(key: jax.Array, shape: Shape) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _half_normal_length(key: jax.Array, shape: Shape) -> jax.Array:
    length_key, direction_key = jax.random.split(key)
    return jax.random.normal(length_key, (), jnp.float32) * _unit(_normal(direction_key, shape))


def _laplace_direction(key: jax.Array, shape: Shape) -> jax.Array:
    return _unit(jax.random.laplace(key, shape, jnp.float32))


def _box(key: jax.Array, shape: Shape) -> jax.Array:
    return norms.BOX * jax.random.uniform(key, shape, jnp.float32, minval=-1, maxval=1)


def _laplace(key: jax.Array, shape: Shape) -> jax.Array:
    return norms.LAPLACE * jax.random.laplace(key, shape, jnp.float32)


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.sqrt(jnp.sum(vector * vector))


def _split(images: jax.Array, scale: jax.Array, offset: jax.Array) -> jax.Array:
    """The middles of the intervals of `splitting` that the values of an image [H, W, C] fall into.

    Args:
      images: rounded to the grid of 8-bit images within [0, 1].
      scale: float32 [], the noise level; 0 leaves the image.
      offset: uint32 [], of all intervals; counted modulo their width.
    """
    width = jnp.maximum(jnp.rint(scale * _POSITIONS), 1).astype(jnp.uint32)
    words = jax.random.bits(threefry.one_pass(threefry.key(_OFFSETS)), images.shape, jnp.uint32)
    grey = jnp.clip(jnp.rint(images * GRID), 0, GRID).astype(jnp.uint32)
    # Every offset comes once in `width` samples, as _STEP is prime; neighbours in this order are not alike.
    begin = (words % width + (offset % width) * (_STEP % width)) % width
    low = grey.astype(jnp.int32) - ((grey + width - begin) % width).astype(jnp.int32)
    ends = jnp.maximum(low, 0) + jnp.minimum(low + width.astype(jnp.int32) - 1, GRID)
    return ends.astype(jnp.float32) * np.float32(0.5 / GRID)


ADDED: dict[str, Callable[[jax.Array, Shape], jax.Array]] = {
    "normal": _normal,
    "half_normal_length": _half_normal_length,
    "laplace_direction": _laplace_direction,
    "box": _box,
    "laplace": _laplace,
}
LAWS = (*ADDED, SPLITTING)


def draw(law: str, key: jax.Array, scale: jax.Array, shape: Shape) -> jax.Array:
    """One noise array.

    Args:
      law: a name in `ADDED`; static under jit. A scheme's is `scheme.law`.
      key: a typed key.
      scale: float32 [], the noise level in pixel units.
      shape: (H, W, C) of the image.

    Returns:
      float32 [H, W, C], `scale` times the law at scale 1.
    """
    return scale * ADDED[law](threefry.one_pass(key), shape)


def at(law: str, key: jax.Array, scale: jax.Array, image: jax.Array) -> jax.Array:
    """One noise array for an image [H, W, C], as `draw`; under `splitting`, by a random offset, what it changes."""
    if law != SPLITTING:
        return draw(law, key, scale, image.shape)
    changed = _split(image, scale, jax.random.bits(threefry.one_pass(key), (), jnp.uint32))
    return jax.lax.stop_gradient(changed - image)


def noisy(
    law: str,
    key: jax.Array,
    images: jax.Array,
    indices: jax.Array,
    scales: jax.Array | Tables,
    slot: jax.Array,
    sample: jax.Array,
) -> jax.Array:
    """Images with the noise that votes are drawn under, one a slot: float32 [B, H, W, C].

    Args:
      law: a name in `LAWS`.
      key: the stage's typed key.
      images: float32 [N, H, W, C].
      indices: uint32 [N], which with `sample` name the noise.
      scales: float32 [N], noise levels; or their `exact_noise.tables`, for exact noise of the law "normal".
      slot: int32 [B], which image.
      sample: uint32 [B], which sample of it.
    """
    if isinstance(scales, Tables):
        keys = jax.vmap(random_keys.sample, in_axes=(None, 0, 0))(key, indices[slot], sample)
        return exact_noise.add(keys, images[slot], scales._replace(row=scales.row[slot]))

    if law == SPLITTING:
        return jax.vmap(lambda position, number: _split(images[position], scales[position], number))(slot, sample)

    def one(position: jax.Array, number: jax.Array) -> jax.Array:
        sample_key = random_keys.sample(key, indices[position], number)
        image = images[position]
        return image + draw(law, sample_key, scales[position], image.shape)

    return jax.vmap(one)(slot, sample)


def levels(scheme: Scheme, images: jax.Array, sigma_factor: jax.Array | None = None) -> jax.Array:
    """The noise level that each image's own pixels ask for, float32 [N]; arguments as for `of_images`."""
    scale = scheme.scale(scheme.statistic(images))
    return scale if sigma_factor is None else scale * sigma_factor


def of_images(scheme: Scheme, images: jax.Array, key: jax.Array, sigma_factor: jax.Array | None = None) -> jax.Array:
    """Noise for a batch, each image's of the level that its own pixels ask for (training's use).

    Args:
      images: float32 [N, H, W, C] in [0, 1].
      key: a typed key; image i gets `fold_in(key, i)`.
      sigma_factor: optional float32 [N] that multiplies every level.

    Returns:
      float32 [N, H, W, C].
    """
    scale = levels(scheme, images, sigma_factor)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(images.shape[0]))
    return jax.vmap(lambda k, s, x: at(scheme.law, k, s, x))(keys, scale, images)
