"""The loop that trains a network under noise and can be killed, and what it trains: classifiers and denoisers.

Imports core, certificates, data, kernels, models and sampling.
"""

from idrc_jax.training.checkpoints import TrainingCheckpoints, same_or_refuse
from idrc_jax.training.classifier import Metrics, make_batch, make_step, network_on, train
from idrc_jax.training.recipe import Recipe

__all__ = [
    "Metrics",
    "Recipe",
    "TrainingCheckpoints",
    "make_batch",
    "make_step",
    "network_on",
    "same_or_refuse",
    "train",
]
