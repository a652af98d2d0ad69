"""The noise schemes: what noise an image x gets, as frozen, hashable dataclasses.

A scheme knows its parameters, the statistic of the image that its noise level depends on, the
level itself (`scale`), and how far that level can move when the image moves (`scale_bounds`).
The random laws are in `sampling.noise_laws`, the certificates in `radii`.

Images are float arrays [..., H, W, C] with values in [0, 1]; ||x|| is the l2 norm over the d = H*W*C values of
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
| `cascade`           | N(0, s^2 I) at several s in turn, until one of them is sure |
| `routed`            | N(0, s^2 I), s as a smoothed router chooses it              |
| `box`               | iid uniform on [-sqrt(3) sigma, sqrt(3) sigma]              |
| `laplace`           | iid Laplace of scale sigma / sqrt(2)                        |
| `splitting`         | the middles of intervals that the values of x fall into     |

Radii are l2 but for the last three, whose radii are l1.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from idrc_jax.certificates.level_schemes import Cascade, Routed, Stepped, fit_stepped
from idrc_jax.certificates.noise_scheme import STATISTICS, Array, Scheme, mean_abs, norm, nothing
from idrc_jax.certificates.scheme_check import SchemeCheck, check
from idrc_jax.core import normal_thresholds, user_code, validate
from idrc_jax.core.json_values import Json
from idrc_jax.core.validate import SettingError

MOST_POSITIONS = 2**16 - 1  # of `splitting`: products of two of them are 32 bits
_OF_SIGMA = 2 * math.sqrt(3) * normal_thresholds.GRID

__all__ = [
    "L1",
    "L2",
    "SCHEMES",
    "STATISTICS",
    "Box",
    "Cascade",
    "Gaussian",
    "InverseSqrtNorm",
    "Laplace",
    "Routed",
    "Scheme",
    "SchemeCheck",
    "Splitting",
    "Stepped",
    "Uniform",
    "check",
    "check_pixels",
    "describe",
    "drawn_level",
    "drawn_levels",
    "fit_stepped",
    "from_description",
    "host_levels",
    "host_scale",
    "least_levels",
    "level_count",
    "make",
    "on_grid",
    "scales",
    "with_exact_noise",
]


@dataclass(frozen=True)
class _Constant(Scheme):
    """The same law for every image."""

    def statistic(self, images: Array) -> Array:
        return nothing(images)

    def scale(self, statistic: Array) -> Array:
        return self.sigma + 0 * statistic

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        return self.sigma, self.sigma


@dataclass(frozen=True)
class Gaussian(_Constant):
    """The same Gaussian noise for every image (Cohen et al. 2019)."""

    name: ClassVar[str] = "gaussian"


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
class L2(_Constant):
    """A random direction with a half-normal length sigma * |g| (the paper's Figure 2).

    The law does not depend on the image; its length does not grow with the dimension.
    """

    name: ClassVar[str] = "l2"
    law: ClassVar[str] = "half_normal_length"


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
class Box(_Constant):
    """Each value's noise uniform on [-lambda, lambda], lambda = sqrt(3) sigma (Yang et al. 2020); radii are l1."""

    name: ClassVar[str] = "box"
    law: ClassVar[str] = "box"
    norm: ClassVar[str] = "l1"


@dataclass(frozen=True)
class Laplace(_Constant):
    """Each value's noise Laplace of scale lambda = sigma / sqrt(2) (Teng et al. 2019); radii are l1."""

    name: ClassVar[str] = "laplace"
    law: ClassVar[str] = "laplace"
    norm: ClassVar[str] = "l1"


@dataclass(frozen=True)
class Splitting(_Constant):
    """Each value of an 8-bit image as the middle of the interval that it falls into (Levine and Feizi 2021).

    Intervals are `positions` grey levels wide, cut off at 0 and 255. Where they begin, those of a value are at a fixed
    distance from those of all others, and one offset moves them all; of it there are `positions`, equally likely, so
    that the votes of all of them are all that there is to know. Radii are l1, exact and without alpha.

    sigma is the deviation of a uniform law as wide as an interval, as under `box`; it is rounded to whole grey levels.
    """

    name: ClassVar[str] = "splitting"
    law: ClassVar[str] = "splitting"
    norm: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions > MOST_POSITIONS:
            most = MOST_POSITIONS / _OF_SIGMA
            raise SettingError(f"Expected sigma <= {most:.4g} for the scheme splitting, got {self.sigma}.", "sigma")

    @property
    def positions(self) -> int:
        """Grey levels of an interval, and offsets: 2 * lambda * 255, lambda = sqrt(3) sigma."""
        return max(round(_OF_SIGMA * self.sigma), 1)

    def scale(self, statistic: Array) -> Array:
        return self.positions / _OF_SIGMA + 0 * statistic

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        return self.positions / _OF_SIGMA, self.positions / _OF_SIGMA


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme
    for scheme in (Gaussian, L1, L2, Uniform, InverseSqrtNorm, Stepped, Cascade, Routed, Box, Laplace, Splitting)
}


def make(
    name: str,
    *,
    sigma: float,
    ref: float = 1.0,
    by: str = "norm",
    edges: Sequence[float] = (),
    levels: Sequence[float] = (),
    thresholds: Sequence[float] = (),
    shares: Sequence[float] = (),
    router_level: float = Routed.router_level,
    exact: bool = False,
) -> Scheme:
    """Make the scheme called `name`.

    Args:
      name: one of `SCHEMES`.
      sigma: the noise parameter, in pixel units.
      ref: value of the statistic at which the level is sigma; other than 1 it is refused where a scheme has none.
      by, edges: of `stepped` alone, see `Stepped`.
      levels: of `stepped`, `cascade` and `routed`.
      thresholds: of `cascade` alone, see `Cascade`.
      shares: of `cascade` and `routed`.
      router_level: of `routed` alone, see `Routed`.
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
    if scheme is Cascade:
        levels = tuple(levels) or Cascade.levels
        return Cascade(sigma=sigma, levels=levels, thresholds=tuple(thresholds), shares=tuple(shares), exact=exact)
    if scheme is Routed:
        levels = tuple(levels) or Routed.levels
        return Routed(sigma=sigma, levels=levels, router_level=router_level, shares=tuple(shares), exact=exact)
    return scheme(sigma=sigma, exact=exact)


def with_exact_noise(scheme: Scheme, exact: bool = True) -> Scheme:
    """The same scheme with exact noise, or without; ValueError for a law that is not normal, or a level too large."""
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
    known = ("sigma", "ref", "by", "edges", "levels", "thresholds", "shares", "router_level", "exact")
    return make(description["scheme"], **{name: description[name] for name in known if name in description})


def scales(scheme: Scheme, statistic: Array) -> Array:
    """Every level that votes of an image may be drawn under, before they are rounded: [...] -> [..., levels].

    One for all schemes but `cascade`, whose levels descend, and `routed`, whose router's level is the first.
    """
    xp = statistic.__array_namespace__()
    if not isinstance(scheme, Cascade | Routed):
        return scheme.scale(statistic)[..., None]
    router = (scheme.router_level,) if isinstance(scheme, Routed) else ()
    levels = xp.asarray([scheme.sigma * level for level in (*router, *scheme.levels)], dtype=statistic.dtype)
    return 0 * statistic[..., None] + levels


def level_count(scheme: Scheme) -> int:
    """How many `scales` there are."""
    if not isinstance(scheme, Cascade | Routed):
        return 1
    return len(scheme.levels) + isinstance(scheme, Routed)


def constant_levels(scheme: Scheme) -> tuple[float, ...]:
    """The noise levels that a scheme chooses from, each of which may have a network of its own, in the order in which
    it has them; () for others."""
    if not isinstance(scheme, Cascade | Routed | Stepped):
        return ()
    return tuple(scheme.sigma * level for level in scheme.levels)


def drawn_levels(scheme: Scheme, statistic: ArrayLike) -> np.ndarray:
    """`scales` as the device gets them: float64 holding float32 values, 0 where they are infinite or denormal, which
    devices take for 0, and above `normal_thresholds.LARGEST` under exact noise, whose tables would be too large.

    They are computed in float64 and rounded once, so that the number recorded is the number drawn with. No
    certificate accepts 0 (||x|| = 0 under `inverse_sqrt_norm`, a black image under `l1`).
    """
    with np.errstate(divide="ignore", over="ignore"):
        asked = scales(scheme, np.asarray(statistic, np.float64))
        level = np.asarray(asked, np.float32).astype(np.float64)
    most = normal_thresholds.LARGEST if scheme.exact else np.finfo(np.float32).max
    return np.where((level >= np.finfo(np.float32).tiny) & (level <= most), level, 0.0)


def drawn_level(scheme: Scheme, statistic: ArrayLike) -> np.ndarray:
    """The first of `drawn_levels`, which is the only one but for `cascade` and `routed`: [...]."""
    return drawn_levels(scheme, statistic)[..., 0]


def least_levels(scheme: Scheme) -> np.ndarray:
    """Of a scheme of constant levels, the smaller of each level drawn and the level asked for, before it was rounded to
    float32: float64 [levels]."""
    return np.minimum(drawn_levels(scheme, 0.0), scales(scheme, np.zeros(())))


def host_levels(scheme: Scheme, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and noise levels as certification uses them.

    Args:
      images: float [N, H, W, C] in [0, 1]; under exact noise those of the nearest 8-bit images count.

    Returns:
      statistic float64 [N] and `drawn_levels` float64 [N, levels].
    """
    images = np.asarray(images, dtype=np.float64)
    statistic = scheme.statistic(
        np.rint(images * normal_thresholds.GRID) / normal_thresholds.GRID if scheme.exact else images
    )
    return statistic, drawn_levels(scheme, statistic)


def host_scale(scheme: Scheme, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`host_levels` with the first level alone: float64 [N] each."""
    statistic, levels = host_levels(scheme, images)
    return statistic, levels[:, 0]


def on_grid(scheme: Scheme) -> bool:
    """Whether a scheme's votes are of 8-bit images alone: under exact noise, and `splitting`."""
    return scheme.exact or isinstance(scheme, Splitting)


def check_pixels(scheme: Scheme, images: np.ndarray) -> None:
    """ValueError for images [N, H, W, C], uint8 or floats, that are no 8-bit images, where the scheme is for these."""
    if on_grid(scheme) and images.dtype != np.uint8:
        normal_thresholds.check_on_grid(images)
