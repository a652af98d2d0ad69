"""The noise schemes: what noise an image x gets, as frozen, hashable dataclasses.

A scheme knows its parameters, the statistic of the image that its noise level depends on, the
level itself (`scale`), and how far that level can move when the image moves (`scale_bounds`).
The random laws are in `sampling.noise_laws`, the certificates in `radii`.

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
| `stepped`           | N(0, s^2 I), s = sigma * (a level that is constant in steps)|
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from idrc_jax.certificates import normal_thresholds
from idrc_jax.certificates.image_statistics import STATISTICS, Array, mean_abs, norm
from idrc_jax.certificates.scheme_check import SchemeCheck, check
from idrc_jax.core import user_code, validate
from idrc_jax.core.json_values import Json
from idrc_jax.core.validate import SettingError

__all__ = [
    "L1",
    "L2",
    "SCHEMES",
    "STATISTICS",
    "Gaussian",
    "InverseSqrtNorm",
    "Scheme",
    "SchemeCheck",
    "Stepped",
    "Uniform",
    "check",
    "check_pixels",
    "describe",
    "drawn_level",
    "fit_stepped",
    "from_description",
    "host_scale",
    "make",
    "with_exact_noise",
]


@dataclass(frozen=True)
class Scheme:
    """A noise law whose size may depend on the image.

    Attributes:
      name: what configs and result files call it.
      law: which law of `noise_laws.LAWS` the level multiplies.
      sigma: the noise parameter, in pixel units of images in [0, 1]; > 0.
      exact: whether votes are drawn under integers whose law is known to the last bit (`normal_thresholds`) instead of
        float32 normals: the classifier then sees 8-bit images with noise rounded to their grid. For the law "normal".
    """

    name: ClassVar[str]
    law: ClassVar[str] = "normal"
    sigma: float
    exact: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", float(validate.level("sigma", self.sigma)))  # arithmetic in float64
        if self.exact and self.law != "normal":
            raise SettingError(
                f"Expected exact = False for the scheme {self.name}, whose law is {self.law}: exact noise is normal.",
                "exact",
            )
        if self.exact and self.sigma > normal_thresholds.LARGEST:
            raise SettingError(
                f"Expected sigma <= {normal_thresholds.LARGEST:g} under exact noise, got {self.sigma}.", "sigma"
            )

    def statistic(self, images: Array) -> Array:
        """The number the noise level depends on: images [..., H, W, C] -> [...]."""
        raise NotImplementedError

    def scale(self, statistic: Array) -> Array:
        """The noise level at an image with this statistic, in pixel units; same shape."""
        raise NotImplementedError

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        """Smallest and largest level within l2 `distance` of an image of `dim` values, elementwise on arrays.

        Returns (low, high) with low non-increasing and high non-decreasing in `distance`; low may be
        0 or below and high infinite, which a certificate counts as failure. A Gaussian scheme of your own needs no more
        than `statistic`, `scale` and this to be certified.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussian(Scheme):
    """The same Gaussian noise for every image (Cohen et al. 2019)."""

    name: ClassVar[str] = "gaussian"

    def statistic(self, images: Array) -> Array:
        xp = images.__array_namespace__()
        return xp.zeros(images.shape[:-3], dtype=images.dtype)

    def scale(self, statistic: Array) -> Array:
        return self.sigma + 0 * statistic

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
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
        object.__setattr__(self, "ref", float(validate.positive("ref", self.ref)))


@dataclass(frozen=True)
class L1(_WithReference):
    """Gaussian noise of level sigma * mean|x| / ref (the paper's Figure 1). Statistic: mean |x|."""

    name: ClassVar[str] = "l1"

    def statistic(self, images: Array) -> Array:
        return mean_abs(images)

    def scale(self, statistic: Array) -> Array:
        return self.sigma * (statistic / self.ref)

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        centre = self.sigma * (statistic / self.ref)
        slack = self.sigma / self.ref * distance / math.sqrt(dim)
        return centre - slack, centre + slack


@dataclass(frozen=True)
class InverseSqrtNorm(_WithReference):
    """Gaussian noise of level sigma * sqrt(ref / ||x||) (the paper's abstract). Statistic: ||x||."""

    name: ClassVar[str] = "inverse_sqrt_norm"

    def statistic(self, images: Array) -> Array:
        return norm(images)

    def scale(self, statistic: Array) -> Array:
        return self.sigma * (self.ref / statistic) ** 0.5

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        with np.errstate(divide="ignore"):
            nearest = np.maximum(np.asarray(statistic) - distance, 0.0)
            return self.scale(np.asarray(statistic) + distance), self.scale(nearest)


@dataclass(frozen=True)
class L2(Scheme):
    """A random direction with a half-normal length sigma * |g| (the paper's Figure 2).

    The law does not depend on the image; its length does not grow with the dimension.
    """

    name: ClassVar[str] = "l2"
    law: ClassVar[str] = "half_normal_length"

    def statistic(self, images: Array) -> Array:
        xp = images.__array_namespace__()
        return xp.zeros(images.shape[:-3], dtype=images.dtype)

    def scale(self, statistic: Array) -> Array:
        return self.sigma + 0 * statistic

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        return self.sigma, self.sigma


@dataclass(frozen=True)
class Uniform(Scheme):
    """A Laplace vector scaled to length exactly sigma * ||x|| (the paper's Figure 3). Statistic: ||x||."""

    name: ClassVar[str] = "uniform"
    law: ClassVar[str] = "laplace_direction"

    def statistic(self, images: Array) -> Array:
        return norm(images)

    def scale(self, statistic: Array) -> Array:
        return self.sigma * statistic

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        return self.sigma * (statistic - distance), self.sigma * (statistic + distance)


@dataclass(frozen=True)
class Stepped(Scheme):
    """Gaussian noise whose level is constant on each bin of a statistic of the image.

    Bins must be fixed beforehand, e.g. by `fit_stepped` on training images, never from the images to be certified.

    Attributes:
      by: the statistic, a name in `STATISTICS`: mean |x|, standard deviation of all values (ddof 0), or ||x||.
      edges: ascending, between the bins; bin k holds edges[k-1] <= s < edges[k], the first and last are open-ended.
      levels: one more than edges, > 0: the noise level in bin k is sigma * levels[k].
    """

    name: ClassVar[str] = "stepped"
    by: str = "norm"
    edges: tuple[float, ...] = ()
    levels: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.one_of("by", self.by, STATISTICS)
        if not validate.ascend(self.edges):
            raise SettingError(f"Expected edges to ascend, got {self.edges}.", "edges")
        if len(self.levels) != len(self.edges) + 1:
            raise SettingError(
                f"Expected one level a bin, {len(self.edges) + 1} levels for {len(self.edges)} edges, got "
                f"{len(self.levels)}.",
                "levels",
                "edges",
            )
        for level in self.levels:
            validate.positive("levels", level)
            validate.level("sigma times each of levels", self.sigma * level)
        for name in ("edges", "levels"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def statistic(self, images: Array) -> Array:
        return STATISTICS[self.by](images)

    def scale(self, statistic: Array) -> Array:
        xp = statistic.__array_namespace__()
        levels = xp.asarray([self.sigma * level for level in self.levels], dtype=statistic.dtype)
        edges = xp.asarray(self.edges, dtype=statistic.dtype)
        return levels[xp.searchsorted(edges, statistic, side="right")]

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        """The bin's level up to the distance to its edge; from there on, of all bins."""
        statistic = np.asarray(statistic, np.float64)
        inside, level = distance < self.distance_to_edge(statistic, dim), self.scale(statistic)
        ends = (self.sigma * min(self.levels), self.sigma * max(self.levels))
        return np.where(inside, level, ends[0]), np.where(inside, level, ends[1])

    def distance_to_edge(self, statistic: ArrayLike, dim: int) -> np.ndarray:
        """A lower bound on the l2 distance from an image with this statistic to any image in another bin: [...].

        Guarantee: the statistics are Lipschitz, 1 / sqrt(dim) for `mean_abs` and `std` and 1 for `norm`; 2^-40 of the
        statistic (and of 1) is taken off for its float64 arithmetic, there and at the other image.
        """
        statistic = np.asarray(statistic, np.float64)
        gap = np.min(np.abs(statistic[..., None] - np.asarray([*self.edges, np.inf])), axis=-1)
        gap = np.maximum(gap - 2.0**-39 * (1 + np.abs(statistic)), 0.0)
        return gap if self.by == "norm" else gap * math.sqrt(dim) * (1 - 2.0**-50)


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme for scheme in (Gaussian, L1, L2, Uniform, InverseSqrtNorm, Stepped)
}


def make(
    name: str,
    *,
    sigma: float,
    ref: float = 1.0,
    by: str = "norm",
    edges: Sequence[float] = (),
    levels: Sequence[float] = (),
    exact: bool = False,
) -> Scheme:
    """Make the scheme called `name`.

    Args:
      name: one of `SCHEMES`.
      sigma: the noise parameter, in pixel units.
      ref: value of the statistic at which the level is sigma; other than 1 it is refused where a scheme has none.
      by, edges, levels: of `stepped` alone, see `Stepped`.
      exact: see `Scheme`.

    Raises ValueError for an unknown name (naming the near ones) or parameter values that make no scheme.
    """
    scheme = SCHEMES[validate.one_of("scheme", name, SCHEMES)]
    if ref != 1 and not issubclass(scheme, _WithReference):
        raise ValueError(f"Expected ref = 1 for the scheme {name!r}, which has no reference value, got {ref}.")
    if issubclass(scheme, _WithReference):
        return scheme(sigma=sigma, ref=ref, exact=exact)
    if scheme is Stepped:
        return Stepped(sigma=sigma, by=by, edges=tuple(edges), levels=tuple(levels) or (1.0,), exact=exact)
    return scheme(sigma=sigma, exact=exact)


def with_exact_noise(scheme: Scheme, exact: bool = True) -> Scheme:
    """The same scheme with exact noise, or without; ValueError for a law that is not normal."""
    if scheme.exact == exact:
        return scheme
    try:
        return replace(scheme, exact=exact)
    except TypeError as error:  # of a user's class with an __init__ of its own
        raise ValueError(f"Expected {type(scheme).__name__} to be a dataclass with exact, got: {error}.") from None


def describe(scheme: Scheme) -> Json:
    """A scheme as plain values, as manifests hold it: its name as `scheme`, `sigma`, `ref` and what else it has, and
    `exact` where it is.

    One of the user's own has its class as `scheme_class`, with the hash of its source as `scheme_sha256`.
    """
    code = {f"scheme_{name}": value for name, value in user_code.describe(scheme).items()}
    return {"scheme": scheme.name, "ref": 1.0, **parameters(scheme), **code}


def parameters(scheme: Scheme) -> Json:
    """A scheme's attributes; `exact` is left out where it is not, as before there was any."""
    return {name: value for name, value in asdict(scheme).items() if name != "exact" or value}


def from_description(description: Json) -> Scheme:
    """The scheme that `describe` described; other keys are ignored."""
    known = ("sigma", "ref", "by", "edges", "levels", "exact")
    return make(description["scheme"], **{name: description[name] for name in known if name in description})


def fit_stepped(images: np.ndarray, *, sigma: float, by: str = "norm", bins: int = 4) -> Stepped:
    """Bins with equally many of `images` in each, and levels that rise with the statistic and have mean 1.

    Args:
      images: float [N, H, W, C] in [0, 1], of a training set: the guarantee needs bins that do not depend on the images
        to be certified.
      sigma: mean noise level over `images`.
      by: the statistic.
      bins: how many.
    """
    validate.one_of("by", by, STATISTICS)
    validate.at_least("bins", bins, 1)
    statistic = np.concatenate(
        [STATISTICS[by](images[i : i + 1000].astype(np.float64)) for i in range(0, len(images), 1000)]
    )
    edges = np.quantile(statistic, np.arange(1, bins) / bins)
    if len(np.unique(edges)) < len(edges):
        raise SettingError(f"Expected fewer bins: {bins} quantiles of {by} over the training images coincide.", "bins")
    which = np.searchsorted(edges, statistic, side="right")
    means = np.asarray([np.mean(statistic[which == k]) for k in range(bins)])
    levels = means / np.mean(statistic)
    return Stepped(sigma=sigma, by=by, edges=tuple(edges.tolist()), levels=tuple(levels.tolist()))


def drawn_level(scheme: Scheme, statistic: ArrayLike) -> np.ndarray:
    """The noise level as the device gets it: float64 holding float32 values, 0 where they are infinite or denormal,
    which devices take for 0, and above `normal_thresholds.LARGEST` under exact noise, whose tables would be too large.

    It is computed in float64 and rounded once, so that the number recorded is the number drawn with. No
    certificate accepts 0 (||x|| = 0 under `inverse_sqrt_norm`, a black image under `l1`).
    """
    with np.errstate(divide="ignore", over="ignore"):
        level = np.asarray(scheme.scale(np.asarray(statistic, np.float64)), np.float32).astype(np.float64)
    most = normal_thresholds.LARGEST if scheme.exact else np.finfo(np.float32).max
    return np.where((level >= np.finfo(np.float32).tiny) & (level <= most), level, 0.0)


def host_scale(scheme: Scheme, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and noise level as certification uses them.

    Args:
      images: float [N, H, W, C] in [0, 1]; under exact noise those of the nearest 8-bit images count.

    Returns:
      statistic float64 [N] and `drawn_level` float64 [N].
    """
    images = np.asarray(images, dtype=np.float64)
    statistic = scheme.statistic(
        np.rint(images * normal_thresholds.GRID) / normal_thresholds.GRID if scheme.exact else images
    )
    return statistic, drawn_level(scheme, statistic)


def check_pixels(scheme: Scheme, images: np.ndarray) -> None:
    """ValueError for images [N, H, W, C], uint8 or floats, that are no 8-bit images, where the noise is exact."""
    if scheme.exact and images.dtype != np.uint8:
        normal_thresholds.check_on_grid(images)
