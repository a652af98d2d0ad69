"""Data sets as arrays, and how training images are changed.

Imports core and results.
"""

from idrc_jax.data.augmentation import augment, flip
from idrc_jax.data.datasets import NAMES, Dataset, from_arrays, load, select, shared, to_unit

__all__ = ["NAMES", "Dataset", "augment", "flip", "from_arrays", "load", "select", "shared", "to_unit"]
