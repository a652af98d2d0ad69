"""Schemes under which votes of one noise level decide about others: what their votes prove, and in what order they are
drawn.

Imports core and certificates. No JAX.
"""

from idrc_jax.several_levels.bounds import (
    Bounds,
    about_classes,
    bounds_of,
    bounds_of_results,
    certificate,
    course,
    follow,
)

__all__ = ["Bounds", "about_classes", "bounds_of", "bounds_of_results", "certificate", "course", "follow"]
