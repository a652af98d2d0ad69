"""What every noise scheme is: a law whose level may depend on the image; and the statistics it may depend on."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from idrc_jax.core import normal_thresholds, validate
from idrc_jax.core.validate import SettingError

Array = Any  # NumPy's or JAX's

_PIXEL_AXES = (-3, -2, -1)


def norm(images: Array) -> Array:
    """||x||, the l2 norm."""
    xp = images.__array_namespace__()
    return xp.sqrt(xp.sum(images * images, axis=_PIXEL_AXES))


def mean_abs(images: Array) -> Array:
    """Mean of |x|."""
    xp = images.__array_namespace__()
    return xp.mean(xp.abs(images), axis=_PIXEL_AXES)


def std(images: Array) -> Array:
    """Standard deviation of all values (ddof 0)."""
    xp = images.__array_namespace__()
    return xp.std(images, axis=_PIXEL_AXES)


def nothing(images: Array) -> Array:
    """0, where a level does not depend on the image."""
    return images.__array_namespace__().zeros(images.shape[:-3], dtype=images.dtype)


STATISTICS = {"mean_abs": mean_abs, "std": std, "norm": norm}


@dataclass(frozen=True)
class Scheme:
    """A noise law whose size may depend on the image.

    Attributes:
      name: what configs and result files call it.
      law: which law of `noise_laws.LAWS` the level multiplies.
      norm: of its radii, a name in `norms.EXPONENTS`; "l2" for all of your own.
      sigma: the noise parameter, in pixel units of images in [0, 1]; > 0.
      exact: whether votes are drawn under integers whose law is known to the last bit (`normal_thresholds`) instead of
        float32 normals: the classifier then sees 8-bit images with noise rounded to their grid. For the law "normal".
    """

    name: ClassVar[str]
    law: ClassVar[str] = "normal"
    norm: ClassVar[str] = "l2"
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
