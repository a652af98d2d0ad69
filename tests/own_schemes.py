"""A noise scheme of the user's own, for tests."""

import math
from dataclasses import dataclass

from idrc_jax.certificates import schemes


@dataclass(frozen=True)
class Own(schemes.Scheme):
    """The level grows with the standard deviation of the pixels."""

    name = "own"

    def statistic(self, images):
        return schemes.STATISTICS["std"](images)

    def scale(self, statistic):
        return self.sigma * (1 + statistic)

    def scale_bounds(self, statistic, distance, dim):
        slack = self.sigma * distance / math.sqrt(dim)
        return self.scale(statistic) - slack, self.scale(statistic) + slack
