"""From votes to radii: noise schemes, probability bounds, sampling plans, and the radius that a bound certifies.

Imports core. No JAX: every formula here is float64 NumPy, rounded to the safe side.
"""

from idrc_jax.certificates.incremental import Pairs
from idrc_jax.certificates.radii import (
    CERTIFICATES,
    INCREMENTAL,
    TOP_K,
    Certificate,
    check_certificate,
    explain,
    from_votes,
    lower_alpha,
    published_is_valid,
    published_radius,
    radius,
    two_sided_radius,
)
from idrc_jax.certificates.sampling_plans import Fixed, LevelVotes, Plan, SelectionFree, ToPrecision, ToRadius
from idrc_jax.certificates.schemes import (
    L1,
    L2,
    SCHEMES,
    Cascade,
    Gaussian,
    InverseSqrtNorm,
    Routed,
    Scheme,
    Stepped,
    Uniform,
)

__all__ = [
    "CERTIFICATES",
    "INCREMENTAL",
    "L1",
    "L2",
    "SCHEMES",
    "TOP_K",
    "Cascade",
    "Certificate",
    "Fixed",
    "Gaussian",
    "InverseSqrtNorm",
    "LevelVotes",
    "Pairs",
    "Plan",
    "Routed",
    "Scheme",
    "SelectionFree",
    "Stepped",
    "ToPrecision",
    "ToRadius",
    "Uniform",
    "check_certificate",
    "explain",
    "from_votes",
    "lower_alpha",
    "published_is_valid",
    "published_radius",
    "radius",
    "two_sided_radius",
]
