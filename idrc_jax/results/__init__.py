"""What certification and audits leave on disk, and what it says: rows, manifests, metrics, comparisons.

Imports core, certificates and several_levels. No JAX, so that results are read anywhere.
"""

from idrc_jax.results.final_text_table import summary_table
from idrc_jax.results.manifest import MANIFEST, read_manifest, seed_of
from idrc_jax.results.metrics import (
    RADII,
    abstention_rate,
    average_certified_radius,
    base_accuracy,
    certified_accuracy,
    certified_accuracy_lower,
    clean_accuracy,
    correct_radii,
    has_certificates,
    has_published,
    largest_radius,
    last_radius,
    published_is_valid,
    too_low,
)
from idrc_jax.results.recertify import read_results
from idrc_jax.results.result_file import ResultsFile, merge, result_files, worker_file
from idrc_jax.results.result_rows import (
    COLUMNS,
    MEMORY,
    NAME,
    SIX,
    UNLABELLED,
    Results,
    Row,
    is_correct,
    write,
)
from idrc_jax.results.resume_check import guarantee_differences
from idrc_jax.results.table_exports import to_pandas

__all__ = [
    "COLUMNS",
    "MANIFEST",
    "MEMORY",
    "NAME",
    "RADII",
    "SIX",
    "UNLABELLED",
    "Results",
    "ResultsFile",
    "Row",
    "abstention_rate",
    "average_certified_radius",
    "base_accuracy",
    "certified_accuracy",
    "certified_accuracy_lower",
    "clean_accuracy",
    "correct_radii",
    "guarantee_differences",
    "has_certificates",
    "has_published",
    "is_correct",
    "largest_radius",
    "last_radius",
    "merge",
    "published_is_valid",
    "read_manifest",
    "read_results",
    "result_files",
    "seed_of",
    "summary_table",
    "to_pandas",
    "too_low",
    "worker_file",
    "write",
]
