"""Images in, certificates out: the job that writes a result file, and the same in memory.

Imports core, certificates, several_levels, results, report, data, models, sampling and training.
"""

from idrc_jax.certification.guarantee import check_fits, check_rows, describe_guarantee
from idrc_jax.certification.in_memory import certify, check_prediction, predict
from idrc_jax.certification.incremental import certify_variant
from idrc_jax.certification.job import certify_dataset, estimate
from idrc_jax.certification.settings import Settings
from idrc_jax.certification.smoothed_classifier import SmoothedClassifier

__all__ = [
    "Settings",
    "SmoothedClassifier",
    "certify",
    "certify_dataset",
    "certify_variant",
    "check_fits",
    "check_prediction",
    "check_rows",
    "describe_guarantee",
    "estimate",
    "predict",
]
