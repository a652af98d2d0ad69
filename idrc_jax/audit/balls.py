"""Balls of a norm: how long changes of images are, the steepest step inside, the nearest point of a ball."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.core.normal_thresholds import GRID

TINY = 1e-30
_PIXEL_AXES = (-3, -2, -1)
_SPARSE = 0.01  # of the values, in a steepest step in l1

Pixels = TypeVar("Pixels", np.ndarray, jax.Array)


def length(images: Pixels, norm: str = "l2") -> Pixels:
    """Lengths of images [..., H, W, C] in a norm: [...]."""
    xp = images.__array_namespace__()
    if norm == "l1":
        return xp.sum(xp.abs(images), axis=_PIXEL_AXES)
    if norm == "linf":
        return xp.max(xp.abs(images), axis=_PIXEL_AXES)
    return xp.sqrt(xp.sum(images * images, axis=_PIXEL_AXES))


def distances(images: np.ndarray, moved: np.ndarray, norm: str = "l2") -> np.ndarray:
    """Distances in a norm between images [..., H, W, C], in float64: [...]."""
    return length(np.asarray(moved, np.float64) - images, norm)


def grid_distances(images: np.ndarray, moved: np.ndarray, norm: str = "l2") -> np.ndarray:
    """Distances in a norm between 8-bit images in float32, which has rounded them, [..., H, W, C]: [...]."""
    grey, other = (np.rint(np.asarray(one, np.float64) * GRID) for one in (images, moved))
    return length(other - grey, norm) / GRID


def steepest(gradients: Pixels, norm: str) -> Pixels:
    """The directions of length 1 in a norm in which functions with these gradients [T, H, W, C] grow fastest; 0 for 0.

    The gradient's own in l2, its signs in linf. In l1 it is the largest value's alone; as gradients are estimates, the
    largest hundredth of the values share it (after Tramer and Boneh 2019).
    """
    xp = gradients.__array_namespace__()
    if norm != "l2":
        signs = xp.sign(gradients)
        if norm == "linf":
            return signs
        flat = xp.abs(gradients).reshape(len(gradients), -1)
        least = xp.sort(flat, axis=1)[:, -math.ceil(_SPARSE * flat.shape[1])]
        gradients = xp.where(xp.abs(gradients) >= per_image(least), signs, 0.0)
    return gradients / per_image(xp.maximum(length(gradients, norm), TINY))


def projected(shifts: jax.Array, budgets: jax.Array, norm: str) -> jax.Array:
    """The points of the balls around 0 with radii [T] that are nearest in l2 to shifts [T, H, W, C]."""
    if norm == "linf":
        return jnp.clip(shifts, -per_image(budgets), per_image(budgets))
    if norm == "l2":
        return per_image(jnp.minimum(budgets / jnp.maximum(length(shifts), TINY), 1)) * shifts
    # All values shrink by as much, down to 0, as leaves the budget (Duchi et al. 2008).
    sizes = jnp.sort(jnp.abs(shifts).reshape(len(shifts), -1), axis=1)[:, ::-1]
    over = (jnp.cumsum(sizes, axis=1) - budgets[:, None]) / jnp.arange(1, sizes.shape[1] + 1)
    most = jnp.maximum(jnp.max(over, axis=1), 0)
    return jnp.sign(shifts) * jnp.maximum(jnp.abs(shifts) - per_image(most), 0)


def per_image(values: Pixels) -> Pixels:
    """Values [T] as they multiply images [T, H, W, C]."""
    return values[:, None, None, None]
