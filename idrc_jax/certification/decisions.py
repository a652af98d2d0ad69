"""What votes decide: when an image has enough of them, and what they certify."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from idrc_jax import certificates, several_levels
from idrc_jax.certificates import Certificate
from idrc_jax.certificates.courses import Course, OneLevel
from idrc_jax.certificates.sampling_plans import RadiusOf
from idrc_jax.certificates.schemes import Scheme, drawn_level
from idrc_jax.certification.settings import Settings
from idrc_jax.sampling.dispatch_ahead import Drawn


@dataclass(frozen=True)
class Decisions:
    """The course and the certificate of each of some images.

    Attributes:
      scheme, settings: by which they are certified.
      statistic: float64 [N], the images' under the scheme.
      dim: values of an image, H * W * C.
      labels: int [N], the images' classes, for a plan that asks for them.
    """

    scheme: Scheme
    settings: Settings
    statistic: np.ndarray
    dim: int
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.settings.plan.asks_labels and self.labels is None:
            raise ValueError(f"Expected labels for {self.settings.plan}, got none.")

    def course(self, position: int) -> Course:
        """What votes the image at a position gets."""
        if self._bounds is not None:
            return several_levels.course(self._bounds)

        plan = self.settings.plan

        def stopping(radius_of: RadiusOf) -> Callable[[np.ndarray], bool]:
            label = None if self.labels is None else int(self.labels[position])
            return plan.stopping(radius_of, self.settings.alpha, label)

        stops = stopping(lambda p: certificates.radius(self.scheme, self.statistic[position], p, dim=self.dim))
        if not plan.asks_published or drawn_level(self.scheme, self.statistic[position]) == 0:
            return OneLevel(stops)
        published_stops = stopping(lambda p: certificates.published_radius(self.scheme, p))
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
