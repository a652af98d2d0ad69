"""Radii in l1, by noise that is made for it, and what a radius of one norm says in another.

`box`, noise uniform on [-lambda, lambda]^d: moved by z, the laws share all but at most ||z||_1 / (2 lambda) of their
mass (Yang et al. 2020). `splitting`, intervals 2 lambda wide: that is the share of offsets at which an interval is left
(Levine and Feizi 2021). `laplace`, iid Laplace of scale lambda: densities differ by a factor of at most
exp(||z||_1 / lambda) (Teng et al. 2019). The proofs are in docs/explanation/certificates.md.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from idrc_jax.certificates.confidence_bounds import Numbers
from idrc_jax.core import validate

EXPONENTS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
SYMBOLS = {"l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞"}

# lambda in units of the noise level, which is the standard deviation of each value; as float32, which devices draw by.
BOX = float(np.float32(math.sqrt(3)))
LAPLACE = float(np.float32(math.sqrt(0.5)))

_MARGIN = 2.0**-40  # of a radius, for the arithmetic of float64
_OF_PROBABILITIES = 2.0**-50  # for that of sums and ratios of probabilities


def box(p_lower: ArrayLike, p_upper: ArrayLike) -> Numbers:
    """The l1 radius under uniform noise and splitting, in units of the noise level: lambda * (p_lower - p_upper).

    Args:
      p_lower: lower bound on a class's probability, in [0, 1]; scalar or array.
      p_upper: upper bound on every other class's, in [0, 1]: at most 1 - p_lower, which gives Yang et al.'s (2020)
        2 * lambda * (p_lower - 1/2).

    Returns:
      float64; 0 where p_lower <= p_upper.

    Raises:
      ValueError: a bound outside [0, 1], or nan.

    Guarantee: at every image nearer than that the class is the likeliest. Rounding errs below.
    """
    lower, upper = _bounds(p_lower, p_upper)
    return np.maximum(BOX * (1 - _MARGIN) * (lower - upper - _OF_PROBABILITIES), 0.0)[()]


def laplace(p_lower: ArrayLike, p_upper: ArrayLike) -> Numbers:
    """The l1 radius under Laplace noise, in units of the noise level: lambda times the larger of
    log(p_lower / p_upper) / 2 and -log(1 - p_lower + p_upper), which is -log(2 (1 - p_lower)) at p_upper = 1 - p_lower.

    Arguments, result, errors and guarantee as of `box`; a p_upper below 2.3e-308 counts as that, which keeps the radius
    finite.
    """
    lower, upper = _bounds(p_lower, p_upper)
    upper = np.maximum(upper, np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore"):
        ratio = np.log(lower / upper) / 2
    rest = -np.log((1 - lower + upper) * (1 + _OF_PROBABILITIES))
    found = np.maximum(ratio - _OF_PROBABILITIES, rest)
    return np.maximum(LAPLACE * (1 - _MARGIN) * found, 0.0)[()]


def _bounds(p_lower: ArrayLike, p_upper: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """float64, or ValueError for what is no probability."""
    lower, upper = np.asarray(p_lower, np.float64), np.asarray(p_upper, np.float64)
    for name, bound in (("p_lower", lower), ("p_upper", upper)):
        if not np.all((bound >= 0) & (bound <= 1)):
            raise ValueError(f"Expected 0 <= {name} <= 1, got {bound}.")
    return lower, upper


def stated(radius: ArrayLike, norm: str, wanted: str, dim: int) -> Numbers:
    """What a radius of one norm says in another.

    Args:
      radius: in `norm`, pixel units; scalar or array, nan stays.
      norm, wanted: names in `EXPONENTS`.
      dim: number of values of an image, H * W * C.

    Returns:
      float64: the radius itself where the norms are the same or `wanted` is the larger one (l1 > l2 > linf of the same
      change); else radius * dim^(1/q - 1/p), p the exponent of `norm` and q that of `wanted`: R / sqrt(dim) for linf of
      an l2 radius.

    Raises:
      ValueError: another norm.

    Guarantee: every change that is shorter than the result in `wanted` is shorter than `radius` in `norm`
    (||z||_p <= dim^(1/p - 1/q) ||z||_q for p < q, and ||z||_p <= ||z||_q for p >= q). Rounded down by at most 1e-12 of
    itself.
    """
    for name in (norm, wanted):
        validate.one_of("norm", name, EXPONENTS)
    loss = 1 / EXPONENTS[norm] - 1 / EXPONENTS[wanted]
    found = np.asarray(radius, np.float64)
    return (found * (dim**-loss * (1 - _MARGIN)) if loss > 0 else found)[()]
