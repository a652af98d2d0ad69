"""The noise schemes: what noise an image x gets, as frozen, hashable dataclasses.

A scheme knows its parameters, the statistic of the image that its noise level depends on, the
level itself (`scale`), and how far that level can move when the image moves (`scale_bounds`).
The random laws are in `noise.py`, the certificates in `certificates.py`.

Images are float arrays [..., H, W, C] with values in [0, 1]; norms are l2 over the d = H*W*C values of
one image. `statistic` and `scale` follow the array that they are given (NumPy or JAX, by the array API
standard), so that training computes on the device what certification computes on the host in float64.

| name                | noise at x                                                  |
|---------------------|-------------------------------------------------------------|
| `gaussian`          | N(0, sigma^2 I)                                             |
| `l1`                | N(0, s^2 I), s = sigma * mean|x| / ref                      |
| `inverse_sqrt_norm` | N(0, s^2 I), s = sigma * sqrt(ref / ||x||)                  |
| `l2`                | sigma * g * u, g ~ N(0, 1), u uniform on the unit sphere    |
| `uniform`           | sigma * ||x|| * l / ||l||, l_i iid Laplace(0, 1)            |
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from idrc_jax import _validate

_PIXEL_AXES = (-3, -2, -1)


def _norm(images: Any) -> Any:
    xp = images.__array_namespace__()
    return xp.sqrt(xp.sum(images * images, axis=_PIXEL_AXES))


@dataclass(frozen=True)
class Scheme:
    """A noise law whose size may depend on the image.

    Attributes:
      name: what configs and result files call it.
      law: which law of `noise.LAWS` the level multiplies.
      sigma: the noise parameter, in pixel units of images in [0, 1]; > 0.
    """

    name: ClassVar[str]
    law: ClassVar[str] = "normal"
    sigma: float

    def __post_init__(self) -> None:
        _validate.positive("sigma", self.sigma)

    def statistic(self, images: Any) -> Any:
        """The number the noise level depends on: images [..., H, W, C] -> [...]."""
        raise NotImplementedError

    def scale(self, statistic: Any) -> Any:
        """The noise level at an image with this statistic, in pixel units; same shape."""
        raise NotImplementedError

    def scale_bounds(self, statistic: float, distance: float, dim: int) -> tuple[float, float]:
        """Smallest and largest level within l2 `distance` of an image of `dim` values.

        Returns (low, high) with low non-increasing and high non-decreasing in `distance`; low may be
        0 or below and high infinite, which a certificate counts as failure.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussian(Scheme):
    """The same Gaussian noise for every image (Cohen et al. 2019)."""

    name: ClassVar[str] = "gaussian"

    def statistic(self, images: Any) -> Any:
        xp = images.__array_namespace__()
        return xp.zeros(images.shape[:-3], dtype=images.dtype)

    def scale(self, statistic: Any) -> Any:
        return self.sigma + 0 * statistic

    def scale_bounds(self, statistic: float, distance: float, dim: int) -> tuple[float, float]:
        return self.sigma, self.sigma


@dataclass(frozen=True)
class _WithReference(Scheme):
    """A Gaussian scheme whose level is sigma at a reference value of the statistic.

    Attributes:
      ref: the statistic at which the level is sigma; > 0. 1 is the paper's literal code; the data set's
        own typical value makes sigma the level of an ordinary image (CIFAR-10 test: mean |x| .47658,
        median ||x|| 28.673).
    """

    ref: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _validate.positive("ref", self.ref)


@dataclass(frozen=True)
class L1(_WithReference):
    """Gaussian noise of level sigma * mean|x| / ref (the paper's Figure 1). Statistic: mean |x|."""

    name: ClassVar[str] = "l1"

    def statistic(self, images: Any) -> Any:
        xp = images.__array_namespace__()
        return xp.mean(xp.abs(images), axis=_PIXEL_AXES)

    def scale(self, statistic: Any) -> Any:
        return self.sigma * (statistic / self.ref)

    def scale_bounds(self, statistic: float, distance: float, dim: int) -> tuple[float, float]:
        centre = self.sigma * (statistic / self.ref)
        slack = self.sigma / self.ref * distance / math.sqrt(dim)
        return centre - slack, centre + slack


@dataclass(frozen=True)
class InverseSqrtNorm(_WithReference):
    """Gaussian noise of level sigma * sqrt(ref / ||x||) (the paper's abstract). Statistic: ||x||."""

    name: ClassVar[str] = "inverse_sqrt_norm"

    def statistic(self, images: Any) -> Any:
        return _norm(images)

    def scale(self, statistic: Any) -> Any:
        return self.sigma * (self.ref / statistic) ** 0.5

    def scale_bounds(self, statistic: float, distance: float, dim: int) -> tuple[float, float]:
        low = self.sigma * math.sqrt(self.ref / (statistic + distance))
        if distance >= statistic:
            return low, math.inf
        return low, self.sigma * math.sqrt(self.ref / (statistic - distance))


@dataclass(frozen=True)
class L2(Scheme):
    """A random direction with a half-normal length sigma * |g| (the paper's Figure 2).

    The law does not depend on the image; its length does not grow with the dimension.
    """

    name: ClassVar[str] = "l2"
    law: ClassVar[str] = "half_normal_length"

    def statistic(self, images: Any) -> Any:
        xp = images.__array_namespace__()
        return xp.zeros(images.shape[:-3], dtype=images.dtype)

    def scale(self, statistic: Any) -> Any:
        return self.sigma + 0 * statistic

    def scale_bounds(self, statistic: float, distance: float, dim: int) -> tuple[float, float]:
        return self.sigma, self.sigma


@dataclass(frozen=True)
class Uniform(Scheme):
    """A Laplace vector scaled to length exactly sigma * ||x|| (the paper's Figure 3). Statistic: ||x||."""

    name: ClassVar[str] = "uniform"
    law: ClassVar[str] = "laplace_direction"

    def statistic(self, images: Any) -> Any:
        return _norm(images)

    def scale(self, statistic: Any) -> Any:
        return self.sigma * statistic

    def scale_bounds(self, statistic: float, distance: float, dim: int) -> tuple[float, float]:
        return self.sigma * (statistic - distance), self.sigma * (statistic + distance)


SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (Gaussian, L1, L2, Uniform, InverseSqrtNorm)}


def make(name: str, *, sigma: float, ref: float = 1.0) -> Scheme:
    """The scheme called `name`; a `ref` other than 1 is refused where the scheme has none.

    Raises ValueError for an unknown name (naming the near ones), sigma <= 0 or ref <= 0.
    """
    scheme = SCHEMES[_validate.one_of("noise.scheme", name, SCHEMES)]
    if issubclass(scheme, _WithReference):
        return scheme(sigma=sigma, ref=ref)
    if ref != 1:
        raise ValueError(f"Expected ref = 1 for the scheme {name!r}, which has no reference value, got {ref}.")
    return scheme(sigma=sigma)


def host_scale(scheme: Scheme, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and noise level as certification uses them.

    Args:
      images: float [N, H, W, C] in [0, 1].

    Returns:
      statistic float64 [N], and the level float64 [N] holding float32 values: it is computed in float64
      and rounded once, so that the number recorded is the number the device gets. A level that is not
      finite (||x|| = 0 under `inverse_sqrt_norm`) becomes 0, which no certificate accepts.
    """
    statistic = scheme.statistic(np.asarray(images, dtype=np.float64))
    with np.errstate(divide="ignore"):
        scale = scheme.scale(statistic).astype(np.float32).astype(np.float64)
    return statistic, np.where(np.isfinite(scale), scale, 0.0)
