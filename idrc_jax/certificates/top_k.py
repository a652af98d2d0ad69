"""The radius within which a class stays among the k likeliest (after Jia et al. 2020), for constant Gaussian noise.

In units of the noise level: with `lower` a lower bound on the class's probability and `sums[t - 1]` an upper bound on
that of the t least likely of its k likeliest rivals together, it is the largest r with

    Phi(Phi^-1(lower) - r) > min over t of Phi(Phi^-1(sums[t - 1]) + r) / t.

The proof is in docs/explanation/certificates.md.
"""

import numpy as np
from scipy import special

from idrc_jax.certificates import confidence_bounds
from idrc_jax.core import root_finding

# SciPy's normal quantile is good to about 1e-15 of itself and log Phi to 1e-12 of 1: both sides move apart by this.
_MARGIN = 2.0**-40
_RESOLUTION = 1e-10
_FAR = 40.0  # beyond the quantile of `lower` no class has a probability left that matters: log Phi(-40) = -804


def bounds(chosen: np.ndarray, votes: np.ndarray, alpha: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`lower` [rows] and `sums` [rows, k] from votes; arguments as for `confidence_bounds.rival_bounds`.

    Guarantee: for each image, with probability at least 1 - alpha all of them hold. The class and its rivals share a
    probability of 1, so no sum is above 1 - lower.
    """
    lower, upper = confidence_bounds.rival_bounds(chosen, votes, alpha, k)
    return lower, np.minimum(np.cumsum(upper[:, ::-1], axis=1), 1 - lower[:, None])


def strongest_rival(sums: np.ndarray) -> np.ndarray:
    """The probability above which `lower` certifies anything: the least sums[t - 1] / t, [rows]."""
    return np.min(sums / np.arange(1, sums.shape[1] + 1), axis=1)


def radius(lower: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The radius in units of the noise level.

    Args:
      lower: float64 [rows] in [0, 1).
      sums: float64 [rows, k] in (0, 1].

    Returns:
      float64 [rows]; 0 where nothing is certified.

    Guarantee: of a smoothed classifier under N(0, I) with these bounds at an image, the class is among the k likeliest
    at every image nearer than the result, however ties are broken. The number errs below, by at most 1e-9 of itself
    and what 1e-11 of the probabilities makes.
    """
    some = np.flatnonzero(lower > strongest_rival(sums))
    a, b = special.ndtri(lower[some]), special.ndtri(sums[some])
    a, b = a - _MARGIN * np.abs(a), np.where(np.isfinite(b), b + _MARGIN * np.abs(b), b)
    log_t = np.log(np.arange(1, sums.shape[1] + 1))

    def margin(rows: np.ndarray, r: np.ndarray) -> np.ndarray:
        rivals = np.min(special.log_ndtr(b[rows] + r[:, None]) - log_t, axis=1)
        return special.log_ndtr(a[rows] - r) - rivals - 1e-11

    found = np.zeros(len(lower))
    found[some], _ = root_finding.bracket(margin, np.zeros(len(some)), np.abs(a) + _FAR, resolution=_RESOLUTION)
    return found * (1 - _MARGIN)
