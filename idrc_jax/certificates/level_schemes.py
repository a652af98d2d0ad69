"""Schemes of several constant levels: chosen by the bin of a statistic, by the votes under larger ones, or by those of
a router.

All are certified as constant Gaussian noise is, as far as the level cannot change.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from idrc_jax.certificates.noise_scheme import STATISTICS, Array, Scheme, nothing
from idrc_jax.core import normal_thresholds, validate
from idrc_jax.core.validate import SettingError


def _check_level(scheme: Scheme, name: str, factor: float) -> None:
    """SettingError unless noise of sigma times a factor can be drawn."""
    level = validate.level(f"sigma times {name}", scheme.sigma * factor)
    if scheme.exact and level > normal_thresholds.LARGEST:
        raise SettingError(
            f"Expected sigma times {name} <= {normal_thresholds.LARGEST:g} under exact noise, got {level:g}.",
            name.rpartition(" ")[2],
            "sigma",
        )


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
            _check_level(self, "each of levels", level)
        for name in ("edges", "levels"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def statistic(self, images: Array) -> Array:
        return STATISTICS[self.by](images)

    def scale(self, statistic: Array) -> Array:
        xp = statistic.__array_namespace__()
        levels = xp.asarray([self.sigma * level for level in self.levels], dtype=statistic.dtype)
        return levels[self.bin_of(statistic)]

    def bin_of(self, statistic: Array) -> Array:
        """k, the number of the bin that holds each statistic: integers [...]."""
        xp = statistic.__array_namespace__()
        return xp.searchsorted(xp.asarray(self.edges, dtype=statistic.dtype), statistic, side="right")

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


class SeveralLevels(Scheme):
    """Constant levels whose votes are drawn one after another, each with a share of the error probability alpha."""

    shares: tuple[float, ...]

    def statistic(self, images: Array) -> Array:
        return nothing(images)

    def parts_of(self, alpha: float) -> np.ndarray:
        """What each share is of alpha, together no more than it: shares are 1 together to 1e-9."""
        return alpha * (np.asarray(self.shares) / max(1.0, math.fsum(self.shares)))

    def gaps(self, levels: np.ndarray, dim: int) -> np.ndarray:
        """What bounds on probabilities under these levels, as they are drawn, pay for exact noise; 0 without it.

        Guarantee: under exact noise the probability of any class under the rounded normal law is within this of that
        under the law drawn, of images of `dim` values.
        """
        return normal_thresholds.total_variation(levels, dim) if self.exact else np.zeros(len(levels))


@dataclass(frozen=True)
class Cascade(SeveralLevels):
    """Gaussian noise of several constant levels, the largest first: the first level that is sure decides.

    The smoothed classifier answers with class A at the first level under which A's probability exceeds the level's
    threshold, and gives no answer where there is none (after Jeong and Shin 2023). Its votes are drawn level by level,
    and its certificates are those of `cascade`.

    Attributes:
      levels: descending, at least two, > 0: noise level k is sigma * levels[k].
      thresholds: of each level but the last, whose own is 1/2; in [1/2, 1). Empty: 1/2 each.
      shares: of the error probability alpha, for each level, > 0 and 1 together. Empty: as much for each.
    """

    name: ClassVar[str] = "cascade"
    levels: tuple[float, ...] = (1.0, 0.5)
    thresholds: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.levels)
        if count < 2 or not validate.ascend(self.levels[::-1], above=0):
            raise SettingError(f"Expected levels, at least 2, to descend to above 0, got {self.levels}.", "levels")
        for level in self.levels:
            _check_level(self, "each of levels", level)
        thresholds = tuple(self.thresholds) or (0.5,) * (count - 1)
        if len(thresholds) != count - 1 or not all(validate.finite(one) and 0.5 <= one < 1 for one in thresholds):
            raise SettingError(
                f"Expected thresholds in [.5, 1), one for each level but the last, {count - 1}, got {self.thresholds}.",
                "thresholds",
            )
        shares = tuple(self.shares) or (1 / count,) * count
        whole = len(shares) == count and all(validate.finite(one) and one > 0 for one in shares)
        if not (whole and abs(sum(shares) - 1) < 1e-9):
            raise SettingError(
                f"Expected shares > 0 of alpha, one for each of {count} levels and 1 together, got {self.shares}.",
                "shares",
            )
        for name, values in (("levels", self.levels), ("thresholds", thresholds), ("shares", shares)):
            object.__setattr__(self, name, tuple(float(value) for value in values))

    def scale(self, statistic: Array) -> Array:
        """The largest level."""
        return self.sigma * self.levels[0] + 0 * statistic

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        return self.sigma * self.levels[-1], self.sigma * self.levels[0]


@dataclass(frozen=True)
class Routed(SeveralLevels):
    """Gaussian noise of a constant level that a smoothed router chooses (after Sun, Mao and Vechev 2026).

    A router, a network with one answer for each of the levels, has a level of noise of its own; the answer that is
    likeliest under it names the level of the classifier's noise, and the class that is likeliest under that is the
    smoothed classifier's. Votes are drawn of the router first, which is level 0 of `drawn_levels`, then of the
    classifier under the level that it names, which answer k makes level k + 1, and where the router is not sure enough
    under the others. The certificate is that of `routed`.

    Attributes:
      levels: of the router's answers, at least two, > 0: the noise level of answer k is sigma * levels[k].
      router_level: > 0: the router's noise level is sigma * router_level.
      shares: of the error probability alpha, for the bound on the router's answer and for those on the class, which
        have it whole under each level, > 0 and 1 together. Empty: the split under which the larger of the two losses of
        radius is least. A bound that has a share s of alpha costs a radius under level s_k about s_k * log(1 / s), up
        to a factor that is the same for both, so the router's share solves s^router_level = (1 - s)^max(levels).
    """

    name: ClassVar[str] = "routed"
    levels: tuple[float, ...] = (0.5, 1.0)
    router_level: float = 1.0
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.levels) < 2:
            raise SettingError(f"Expected at least 2 levels for a router to choose from, got {self.levels}.", "levels")
        for name, values in (("levels", self.levels), ("router_level", (self.router_level,))):
            for value in values:
                validate.positive(name, value)
                _check_level(self, f"{'each of ' * (name == 'levels')}{name}", value)
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        object.__setattr__(self, "router_level", float(self.router_level))
        shares = tuple(float(share) for share in self.shares) or self._least_loss()
        whole = len(shares) == 2 and all(validate.finite(one) and one > 0 for one in shares)
        if not (whole and abs(sum(shares) - 1) < 1e-9):
            raise SettingError(
                f"Expected shares > 0 of alpha, one for the router and one for the class and 1 together, got "
                f"{self.shares}.",
                "shares",
            )
        object.__setattr__(self, "shares", shares)

    def scale(self, statistic: Array) -> Array:
        """The router's level."""
        return self.sigma * self.router_level + 0 * statistic

    def scale_bounds(self, statistic: Array, distance: Array, dim: int) -> tuple[Array, Array]:
        return self.sigma * min(self.levels), self.sigma * max(self.levels)

    def _least_loss(self) -> tuple[float, float]:
        """The shares that make the larger loss least, the router's from 1 % to 99 %."""
        low, high = 0.01, 0.99
        for _ in range(60):
            middle = (low + high) / 2
            larger = self.router_level * math.log(1 / middle) > max(self.levels) * math.log(1 / (1 - middle))
            low, high = (middle, high) if larger else (low, middle)
        return round(low, 12), 1 - round(low, 12)


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
    if bins > len(images):
        raise SettingError(f"Expected bins <= {len(images)}, one for each training image at most, got {bins}.", "bins")
    statistic = np.concatenate(
        [STATISTICS[by](images[i : i + 1000].astype(np.float64)) for i in range(0, len(images), 1000)]
    )
    edges = np.quantile(statistic, np.arange(1, bins) / bins)
    which = np.searchsorted(edges, statistic, side="right")
    if not np.bincount(which, minlength=bins).all():
        raise SettingError(
            f"Expected fewer bins: one of {bins} holds no training image, as {by} is often alike.", "bins"
        )
    means = np.asarray([np.mean(statistic[which == k]) for k in range(bins)])
    levels = means / np.mean(statistic)
    return Stepped(sigma=sigma, by=by, edges=tuple(edges.tolist()), levels=tuple(levels.tolist()))
