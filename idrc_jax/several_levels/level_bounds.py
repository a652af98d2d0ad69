"""What the bounds of every scheme of several levels rest on, and what they pay for exact noise."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from idrc_jax.certificates import schemes
from idrc_jax.certificates.confidence_bounds import Numbers
from idrc_jax.certificates.level_schemes import SeveralLevels
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.core import validate


@dataclass(frozen=True)
class LevelBounds:
    """What votes under several levels are drawn by.

    Attributes:
      scheme: of several levels.
      plan: by which the votes under each level are drawn.
      alpha: error probability of an image, of which each bound has a part.
      dim: number of values of an image: what the law of exact noise may be wrong by grows with it.

    Votes are about probabilities under the law drawn, certificates about those under the normal law, rounded to the
    grid of 8-bit images where noise is exact. Every bound that goes into one, of whichever level, passes `paid` or
    `risen` first. The law of float32 noise is taken for the normal one.
    """

    scheme: SeveralLevels
    plan: Plan
    alpha: float
    dim: int

    def __post_init__(self) -> None:
        validate.in_open_unit_interval("alpha", self.alpha)
        validate.at_least("dim", self.dim, 1)

    def paid(self, level: int, p: Numbers) -> Numbers:
        """A lower bound under the rounded normal law of a level, by one under the law drawn."""
        return np.maximum(p - self._gaps[level], 0.0)

    def risen(self, level: int, q: Numbers) -> Numbers:
        """An upper bound, likewise."""
        return np.minimum(q + self._gaps[level], 1.0)

    @cached_property
    def _gaps(self) -> np.ndarray:
        return self.scheme.gaps(schemes.drawn_levels(self.scheme, 0.0), self.dim)
