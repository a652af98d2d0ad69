"""What votes decide: when an image has enough of them, and what they certify."""

from dataclasses import dataclass

import numpy as np

from idrc_jax import certificates
from idrc_jax.certificates import Certificate
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.certification.settings import Settings
from idrc_jax.sampling.dispatch_ahead import Drawn, StopRule


@dataclass(frozen=True)
class Decisions:
    """The stop rule and the certificate of each of some images.

    Attributes:
      scheme, settings: by which they are certified.
      statistic: float64 [N], the images' under the scheme.
      dim: values of an image, H * W * C.
    """

    scheme: Scheme
    settings: Settings
    statistic: np.ndarray
    dim: int

    def stop_rule(self, position: int) -> StopRule:
        """When the image at a position has enough votes."""

        def radius_of(p_lower: np.ndarray) -> np.ndarray:
            return certificates.radius(self.scheme, self.statistic[position], p_lower, dim=self.dim)

        return self.settings.plan.stopping(radius_of, self.settings.alpha)

    def certificate(self, drawn: Drawn) -> Certificate:
        """What a finished image's votes certify."""
        (made,) = certificates.from_votes(
            self.scheme,
            self.statistic[[drawn.position]],
            [drawn.selected],
            drawn.votes[None],
            plan=self.settings.plan,
            alpha=self.settings.alpha,
            dim=self.dim,
            certificate=self.settings.certificate,
        )
        return made
