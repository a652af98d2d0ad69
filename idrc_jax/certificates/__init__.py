"""From votes to radii: noise schemes, probability bounds, sampling plans, and the radius that a bound certifies.

Imports core. No JAX: every formula here is float64 NumPy, rounded to the safe side.
"""

from idrc_jax.certificates.confidence_bounds import Pairs
from idrc_jax.certificates.courses import LevelVotes
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
    usual_plan,
)
from idrc_jax.certificates.sampling_plans import (
    Exhaustive,
    Fixed,
    Plan,
    SelectionFree,
    ToPrecision,
    ToRadius,
)
from idrc_jax.certificates.schemes import (
    L1,
    L2,
    SCHEMES,
    Box,
    Cascade,
    Gaussian,
    InverseSqrtNorm,
    Laplace,
    Routed,
    Scheme,
    Splitting,
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
    "Box",
    "Cascade",
    "Certificate",
    "Exhaustive",
    "Fixed",
    "Gaussian",
    "InverseSqrtNorm",
    "Laplace",
    "LevelVotes",
    "Pairs",
    "Plan",
    "Routed",
    "Scheme",
    "SelectionFree",
    "Splitting",
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
    "usual_plan",
]
