"""Losses of training for certificates, a module each: pure functions of a network and a noisy batch.

Imports core, certificates and models.
"""

from idrc_jax.losses.gaussian import Gaussian
from idrc_jax.losses.hard_samples import HardSamples
from idrc_jax.losses.loss import Batch, Loss, Network, Outcome
from idrc_jax.losses.registry import LOSSES, make
from idrc_jax.losses.router import Router

__all__ = ["LOSSES", "Batch", "Gaussian", "HardSamples", "Loss", "Network", "Outcome", "Router", "make"]
