"""From votes to radii: noise schemes, probability bounds, sampling plans, and the radius that a bound certifies.

Imports core. No JAX: every formula here is float64 NumPy, rounded to the safe side.
"""

from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.radii import (
    CERTIFICATES,
    Certificate,
    check_certificate,
    explain,
    from_votes,
    published_is_valid,
    published_radius,
    radius,
    two_sided_radius,
)
from idrc_jax.certificates.sampling_plans import Fixed, Plan, SelectionFree, ToPrecision, ToRadius
from idrc_jax.certificates.schemes import L1, L2, SCHEMES, Cascade, Gaussian, InverseSqrtNorm, Scheme, Stepped, Uniform

__all__ = [
    "CERTIFICATES",
    "L1",
    "L2",
    "SCHEMES",
    "Cascade",
    "Certificate",
    "Fixed",
    "Gaussian",
    "InverseSqrtNorm",
    "LevelVotes",
    "Plan",
    "Scheme",
    "SelectionFree",
    "Stepped",
    "ToPrecision",
    "ToRadius",
    "Uniform",
    "check_certificate",
    "explain",
    "from_votes",
    "published_is_valid",
    "published_radius",
    "radius",
    "two_sided_radius",
]
