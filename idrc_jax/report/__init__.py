"""Results for the eye: figures, tables and one self-contained HTML page.

Imports core, certificates and results. No JAX.
"""

from idrc_jax.report.figures import plot_certified_accuracy, plot_noisy, plot_sigmas, plot_training
from idrc_jax.report.page import data_uri, render

__all__ = ["data_uri", "plot_certified_accuracy", "plot_noisy", "plot_sigmas", "plot_training", "render"]
