"""Results for the eye: figures, tables and one self-contained HTML page.

Imports core, certificates and results. No JAX. The page's libraries are loaded when `render` or `data_uri` is used.
"""

from typing import TYPE_CHECKING

from idrc_jax.report.figures import (
    plot_certified_accuracy,
    plot_noisy,
    plot_probabilities,
    plot_sigmas,
    plot_training,
)

if TYPE_CHECKING:
    from idrc_jax.report.page import data_uri, render

__all__ = [
    "data_uri",
    "plot_certified_accuracy",
    "plot_noisy",
    "plot_probabilities",
    "plot_sigmas",
    "plot_training",
    "render",
]


def __getattr__(name: str) -> object:
    if name in ("data_uri", "render"):
        from idrc_jax.report import page

        return getattr(page, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
