"""A bound on a variant's class probability from another network's votes and from pairs of both on the same noise.

After Ugare et al. (2024): a network f' differs little from f, whose votes are there already. The pairs are drawn on
noise of their own, after f's votes have chosen the class A. With p a lower bound on P(f = A) and zeta an upper bound on
P(f = A, f' != A), P(f' = A) is at least p - zeta: noise on which f' answers A and f does not only adds to it.
"""

from dataclasses import dataclass

import numpy as np

from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.core import validate


@dataclass(frozen=True)
class Pairs:
    """How many pairs an image gets, and what they may err.

    Attributes:
      n: pairs of each image.
      share: of alpha, for the bound on the difference; the rest is for the bound on f's probability. Half of it costs
        either bound a factor of two in its error, which is little of a bound that grows with the logarithm of it.
    """

    n: int = 10_000
    share: float = 0.5

    def __post_init__(self) -> None:
        validate.count("n", self.n, 1)
        validate.in_open_unit_interval("share", self.share)


def lower(plan: Plan, own: np.ndarray, n: np.ndarray, lost: np.ndarray, pairs: Pairs, alpha: float) -> np.ndarray:
    """Lower bounds [rows] on the probabilities that f' answers each image's class.

    Args:
      plan: by which f's votes were drawn.
      own, n: int [rows], f's votes for the class, and all of them.
      lost: int [rows], pairs in which f answers the class and f' does not.
      pairs: how many there are, and how alpha is split.
      alpha: error probability of each image.

    Guarantee: for each image, with probability at least 1 - alpha: the bound on f has error (1 - share) * alpha under
    its plan, and, the class given, that on the difference has share * alpha, as pairs and votes are independent.
    """
    of_network = plan.lower(own, n, alpha * (1 - pairs.share))
    difference = confidence_bounds.clopper_pearson_upper(lost, pairs.n, alpha * pairs.share)
    return np.maximum(of_network - difference - 2.0**-50, 0.0)
