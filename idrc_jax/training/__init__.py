"""The loop that trains a network under noise and can be killed, and what it trains: classifiers and denoisers.

Imports core, certificates, data, kernels, losses, models and sampling.
"""

from idrc_jax.training.checkpoints import TrainingCheckpoints
from idrc_jax.training.classifier import Metrics, make_batch, make_step, train
from idrc_jax.training.job import RunOptions
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.run_folder import recorded_held_out, same_or_refuse
from idrc_jax.training.training_kernel import network_on
from idrc_jax.training.training_votes import Teacher, Worths

__all__ = [
    "Metrics",
    "Recipe",
    "RunOptions",
    "Teacher",
    "TrainingCheckpoints",
    "Worths",
    "make_batch",
    "make_step",
    "network_on",
    "recorded_held_out",
    "same_or_refuse",
    "train",
]
