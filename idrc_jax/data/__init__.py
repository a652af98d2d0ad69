"""Data sets as arrays, and how training images are changed.

Imports core and results.
"""

from idrc_jax.data.augmentation import augment, flip
from idrc_jax.data.datasets import NAMES, SKIPS, Dataset, as_bytes, from_arrays, kind, load, select, shared, to_unit

__all__ = [
    "NAMES",
    "SKIPS",
    "Dataset",
    "as_bytes",
    "augment",
    "flip",
    "from_arrays",
    "kind",
    "load",
    "select",
    "shared",
    "to_unit",
]
