"""Schemes under which votes of one noise level decide about others: what their votes prove, and in what order they are
drawn.

Imports core and certificates. No JAX.
"""

from idrc_jax.several_levels.bounds import (
    Bounds,
    bounds_of,
    bounds_of_results,
    certificate,
    course,
    deciding,
    follow,
)

__all__ = ["Bounds", "bounds_of", "bounds_of_results", "certificate", "course", "deciding", "follow"]
