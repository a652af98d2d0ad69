"""The norms of radii, and what a radius of one norm says in another."""

import math

import numpy as np
from numpy.typing import ArrayLike

from idrc_jax.certificates.confidence_bounds import Numbers
from idrc_jax.core import validate

EXPONENTS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
SYMBOLS = {"l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞"}

_MARGIN = 2.0**-40  # of a radius, for the arithmetic of float64


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

    Guarantee: every change that is shorter than the result in `wanted` is shorter than `radius` in `norm`
    (||z||_p <= dim^(1/p - 1/q) ||z||_q for p < q, and ||z||_p <= ||z||_q for p >= q). Rounded down by at most 1e-12 of
    itself.
    """
    validate.one_of("norm", wanted, EXPONENTS)
    loss = 1 / EXPONENTS[norm] - 1 / EXPONENTS[wanted]
    found = np.asarray(radius, np.float64)
    return (found * (dim**-loss * (1 - _MARGIN)) if loss > 0 else found)[()]
