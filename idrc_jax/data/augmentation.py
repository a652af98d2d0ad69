"""How training images are changed: crops and flips."""

import jax
import jax.numpy as jnp
import numpy as np


def augment(images: jax.Array, key: jax.Array, *, split: bool = False) -> jax.Array:
    """Crop at random after padding by 4 with zeros, and flip at random: [N, H, W, C] -> the same.

    `split` says that several devices share the batch; the result is the same.
    """
    count, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    corners = jax.random.randint(crop_key, (count, 2), 0, 9, jnp.int32)
    flips = jax.random.bernoulli(flip_key, np.float32(0.5), (count,))

    def one(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        crop = jax.lax.dynamic_slice(image, (*corner, jnp.int32(0)), (height, width, channels))
        return jnp.where(flip, crop[:, ::-1], crop)

    if split:
        return jax.vmap(one)(padded, corners, flips)
    # One after another on a CPU: there XLA would join a batch of crops with what follows (the noise), pixel by pixel,
    # and take five times as long for both.
    return jax.lax.platform_dependent(
        padded,
        corners,
        flips,
        cpu=lambda *arrays: jax.lax.map(lambda image: one(*image), arrays),
        default=jax.vmap(one),
    )


def flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Flip at random from left to right: [N, H, W, C] -> the same."""
    chosen = jax.random.bernoulli(key, np.float32(0.5), (images.shape[0], 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)
