"""Networks, what rebuilds and loads them, and the two functions that others call: `Classifier` and `Denoiser`.

Imports core and kernels.
"""

from idrc_jax.models.classifier import Classifier, check_logits, fingerprint
from idrc_jax.models.denoised_classifier import denoised
from idrc_jax.models.diffusion import Denoiser, Schedule
from idrc_jax.models.ensembles import common_training, ensemble
from idrc_jax.models.loading import classifier_of, load_classifier, load_denoiser
from idrc_jax.models.registry import abstract, build, merge, split
from idrc_jax.models.tensors import Arrays, Description, PyTree, Tensors, check_tensors, flatten, hash_tensors
from idrc_jax.models.weights import WEIGHTS, read_description, read_weights, save_half, save_weights

__all__ = [
    "WEIGHTS",
    "Arrays",
    "Classifier",
    "Denoiser",
    "Description",
    "PyTree",
    "Schedule",
    "Tensors",
    "abstract",
    "build",
    "check_logits",
    "check_tensors",
    "classifier_of",
    "common_training",
    "denoised",
    "ensemble",
    "fingerprint",
    "flatten",
    "hash_tensors",
    "load_classifier",
    "load_denoiser",
    "merge",
    "read_description",
    "read_weights",
    "save_half",
    "save_weights",
    "split",
]
