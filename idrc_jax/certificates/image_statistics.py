"""Numbers of an image that its noise level may depend on: images [..., H, W, C] of NumPy or JAX -> [...]."""

from typing import Any

Array = Any  # NumPy's or JAX's

_PIXEL_AXES = (-3, -2, -1)


def norm(images: Array) -> Array:
    """The l2 norm of all values."""
    xp = images.__array_namespace__()
    return xp.sqrt(xp.sum(images * images, axis=_PIXEL_AXES))


def mean_abs(images: Array) -> Array:
    """The mean of |x|."""
    xp = images.__array_namespace__()
    return xp.mean(xp.abs(images), axis=_PIXEL_AXES)


def std(images: Array) -> Array:
    """The standard deviation of all values, ddof 0."""
    xp = images.__array_namespace__()
    return xp.std(images, axis=_PIXEL_AXES)


STATISTICS = {"mean_abs": mean_abs, "std": std, "norm": norm}
