"""Searches for images at which a scheme's noise level leaves the bounds that the scheme states.

A certificate rests on `scale_bounds`, and no program proves those of a scheme of the user's own. What is found proves
them wrong; that nothing is found proves nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from idrc_jax.core import validate

Array = Any  # NumPy's or JAX's

_PIXEL_AXES = (-3, -2, -1)
_ROUNDING = 2.0**-30  # of a level: float64 errs far less, and certificates allow for 2^-23
_RANDOM, _SPARSE, _OTHERS = 6, 4, 4


class Levelled(Protocol):
    """What is checked of a `Scheme`."""

    def statistic(self, images: Array) -> Array: ...

    def scale(self, statistic: Array) -> Array: ...

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]: ...


@dataclass(frozen=True)
class SchemeCheck:
    """What a search for levels outside a scheme's bounds found: the worst of all images.

    Attributes:
      scheme: its name.
      violation: how far the level is outside the bounds, as a share of the level at the image that it is near;
        negative inside.
      index: of that image among those given.
      image: float64 [H, W, C], near it.
      distance: between them, l2.
      level: at the image found.
      low, high: the bounds that do not hold there.
      images: how many were searched around.
      points: levels that the search has computed.
    """

    scheme: str
    violation: float
    index: int
    image: np.ndarray = field(repr=False, compare=False)
    distance: float
    level: float
    low: float
    high: float
    images: int
    points: int

    @property
    def ok(self) -> bool:
        """Whether no level was found outside the bounds."""
        return self.violation <= _ROUNDING

    def __str__(self) -> str:
        looked = f"{self.points} points near {self.images} images"
        if self.ok:
            return f"{self.scheme}: no level outside scale_bounds at {looked}."
        return (
            f"Expected levels of {self.scheme} within its scale_bounds, [{self.low:.6g}, {self.high:.6g}] at distance "
            f"{self.distance:.6g} from image {self.index}, got {self.level:.6g} at an image there: its certificates "
            f"would not hold ({looked})."
        )


def check(
    scheme: Levelled,
    images: np.ndarray,
    *,
    reaches: Sequence[float] = (1 / 16, 1 / 4, 1.0, 4.0),
    steps: int = 10,
    seed: int = 0,
) -> SchemeCheck:
    """Search near images for levels outside the scheme's bounds, by the level's gradient, up and down.

    Points start along the level's gradient, brighter and darker, towards black and other given images, along single
    values and at random. They may leave [0, 1], as a certificate's ball does.

    Args:
      scheme: whose `statistic` and `scale` take JAX's arrays, too (by `images.__array_namespace__()`).
      images: uint8, or floats in [0, 1], [N, H, W, C]; a few of those that are to be certified.
      reaches: distances to search within, in units of each image's level. No radius is larger than some 4 levels.
      steps: of a gradient search.
      seed: of the random starts.

    Returns:
      The worst that was found; `ok` where it lies within the bounds, to rounding.

    Raises:
      ValueError: no image with a level, or a scheme without bounds or for NumPy's arrays alone.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"Expected images [N, H, W, C], got shape {images.shape}.")
    validate.count("steps", steps, 1)
    if not (reaches and validate.ascend(reaches, above=0)):
        raise ValueError(f"Expected reaches > 0 that ascend, got {reaches}.")
    clean = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)
    name = getattr(scheme, "name", type(scheme).__name__)
    statistic, levels = _levels(scheme, clean.astype(np.float64))
    searched = np.flatnonzero(np.isfinite(levels) & (levels > 0))
    if not len(searched):
        raise ValueError(f"Expected an image with a noise level under {name}, got none of {len(images)}.")
    search, starts = _searcher(scheme, name, clean.shape[1:], steps)
    generator = np.random.default_rng(seed)
    worst: SchemeCheck | None = None
    for index in searched:
        distances = levels[index] * np.asarray(reaches)
        others = clean[generator.choice(len(clean), _OTHERS)] - clean[index]
        found = np.stack([search(clean[index], others, distance, generator) for distance in distances])
        found = found.reshape(-1, *clean.shape[1:]).astype(np.float64)
        said = _worst(scheme, clean[index].astype(np.float64), float(statistic[index]), levels[index], found)
        if worst is None or said["violation"] > worst.violation:
            points = len(searched) * len(distances) * 2 * starts * (steps + 1)
            worst = SchemeCheck(scheme=name, index=int(index), images=len(searched), points=points, **said)
    assert worst is not None
    return worst


def _levels(scheme: Levelled, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and level in float64, as certification computes them."""
    with np.errstate(all="ignore"):
        statistic = np.asarray(scheme.statistic(images), np.float64)
        return statistic, np.broadcast_to(np.asarray(scheme.scale(statistic), np.float64), statistic.shape)


def _worst(scheme: Levelled, image: np.ndarray, statistic: float, level: float, found: np.ndarray) -> dict[str, Any]:
    """The point that is farthest outside the bounds of its distance."""
    distance = np.sqrt(np.sum((found - image) ** 2, axis=_PIXEL_AXES)) * (1 + 2.0**-40)
    _, there = _levels(scheme, found)
    try:
        with np.errstate(all="ignore"):
            both = scheme.scale_bounds(np.full(distance.shape, statistic), distance, image.size)
    except NotImplementedError:
        raise ValueError("Expected a scheme with scale_bounds, got one without.") from None
    low, high = (np.broadcast_to(np.asarray(one, np.float64), distance.shape) for one in both)
    # Bounds of 0 and infinity end a radius, and so do bounds that are no numbers: they claim nothing.
    claims = (low > 0) & np.isfinite(high)
    outside = np.maximum(there - high, low - there) / level
    outside = np.where(claims, np.where(np.isfinite(there), outside, np.inf), -np.inf)
    worst = np.argmax(outside)
    return {
        "violation": float(outside[worst]),
        "image": found[worst],
        "distance": float(distance[worst]),
        "level": float(there[worst]),
        "low": float(low[worst]),
        "high": float(high[worst]),
    }


def _searcher(
    scheme: Levelled, name: str, shape: tuple[int, ...], steps: int
) -> tuple[Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray], int]:
    """The search (image, ways to others, distance, generator) -> the lowest and the highest [2, H, W, C].

    Returns it and its number of starts.
    """
    import jax
    import jax.numpy as jnp

    def level(image: Array) -> Array:
        return jnp.reshape(scheme.scale(scheme.statistic(image[None])), ())

    def unit(way: Array) -> Array:
        way = jnp.nan_to_num(way, posinf=0.0, neginf=0.0)
        return way / jnp.maximum(jnp.sqrt(jnp.sum(way * way)), 1e-30)

    def climb(sign: Array, image: Array, way: Array, distance: Array) -> tuple[Array, Array]:
        """The most extreme point on the way up (or down), and by how much its level is."""

        def rated(shift: Array) -> Array:
            value = sign * level(image + shift)
            return jnp.where(jnp.isnan(value), jnp.inf, value)

        def step(number: Array, carry: tuple) -> tuple:
            shift, best, most = carry
            value = rated(shift)
            best, most = jnp.where(value > most, shift, best), jnp.maximum(value, most)
            slope = unit(jax.grad(lambda s: sign * level(image + s))(shift))
            moved = shift + distance * 0.7 ** jnp.asarray(number, jnp.float32) * slope
            length = jnp.sqrt(jnp.sum(moved * moved))
            return moved * jnp.minimum(1.0, distance / jnp.maximum(length, 1e-30)), best, most

        start = way * distance
        shift, best, most = jax.lax.fori_loop(0, steps, step, (start, start, -jnp.inf))
        value = rated(shift)
        return image + jnp.where(value > most, shift, best), jnp.maximum(value, most)

    @jax.jit
    def extremes(image: Array, ways: Array, distance: Array) -> Array:
        slope = unit(jax.grad(level)(image))
        starts = jnp.concatenate([jnp.stack([slope, -slope]), ways])

        def one_way(sign: Array) -> Array:
            points, rates = jax.vmap(lambda way: climb(sign, image, way, distance))(starts)
            return points[jnp.argmax(rates)]

        return jnp.stack([one_way(jnp.float32(-1)), one_way(jnp.float32(1))])

    def search(image: np.ndarray, others: np.ndarray, distance: float, generator: np.random.Generator) -> np.ndarray:
        random = generator.normal(size=(_RANDOM, *shape))
        sparse = np.zeros((_SPARSE, int(np.prod(shape))))
        sparse[np.arange(_SPARSE), generator.integers(0, sparse.shape[1], _SPARSE)] = generator.choice((-1, 1), _SPARSE)
        ways = np.concatenate([np.stack([np.ones(shape), -np.ones(shape), image, -image]), others, random])
        ways = np.concatenate([ways, sparse.reshape(-1, *shape)])
        lengths = np.sqrt(np.sum(ways**2, axis=_PIXEL_AXES, keepdims=True))
        inside = np.concatenate([np.ones(4 + _OTHERS), generator.uniform(size=_RANDOM + _SPARSE)])  # some start nearer
        ways = inside[:, None, None, None] * ways / np.maximum(lengths, 1e-30)
        try:
            return np.asarray(extremes(image, ways.astype(np.float32), np.float32(distance)))
        except TypeError as error:
            raise ValueError(
                f"Expected statistic and scale of {name} to take JAX's arrays, too (images.__array_namespace__() has "
                f"the functions for both), got: {str(error).splitlines()[0]}"
            ) from error

    return search, 2 + 4 + _OTHERS + _RANDOM + _SPARSE
