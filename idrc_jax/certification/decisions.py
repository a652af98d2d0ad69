"""What votes decide: when an image has enough of them, and what they certify."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from idrc_jax import certificates, several_levels
from idrc_jax.certificates import Certificate
from idrc_jax.certificates.sampling_plans import Course, OneLevel, ToRadius
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.certification.settings import Settings
from idrc_jax.sampling.dispatch_ahead import Drawn


@dataclass(frozen=True)
class Decisions:
    """The course and the certificate of each of some images.

    Attributes:
      scheme, settings: by which they are certified.
      statistic: float64 [N], the images' under the scheme.
      dim: values of an image, H * W * C.
    """

    scheme: Scheme
    settings: Settings
    statistic: np.ndarray
    dim: int

    def course(self, position: int) -> Course:
        """What votes the image at a position gets."""
        if self._bounds is not None:
            return several_levels.course(self._bounds)

        def radius_of(p_lower: np.ndarray) -> np.ndarray:
            return certificates.radius(self.scheme, self.statistic[position], p_lower, dim=self.dim)

        plan, alpha = self.settings.plan, self.settings.alpha
        stops = plan.stopping(radius_of, alpha)
        if not (isinstance(plan, ToRadius) and plan.published):
            return OneLevel(stops)
        published_stops = plan.stopping(lambda p_lower: certificates.published_radius(self.scheme, p_lower), alpha)
        return OneLevel(lambda votes: stops(votes) and published_stops(votes))

    def certificate(self, drawn: Drawn) -> Certificate:
        """What a finished image's votes certify."""
        if self._bounds is not None:
            return several_levels.certificate(self._bounds, drawn.levels)
        (only,) = drawn.levels
        (made,) = certificates.from_votes(
            self.scheme,
            self.statistic[[drawn.position]],
            [only.selected],
            np.asarray([only.votes]),
            plan=self.settings.plan,
            alpha=self.settings.alpha,
            dim=self.dim,
            certificate=self.settings.certificate,
        )
        return made

    @cached_property
    def _bounds(self) -> several_levels.Bounds | None:
        """Those of a scheme of several levels."""
        return several_levels.bounds_of(self.scheme, self.settings.plan, self.settings.alpha, self.dim)
