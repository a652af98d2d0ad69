"""Noise augmentation (Cohen et al. 2019): CE(f(x + eps)), the mean over images and their noises."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from idrc_jax.losses import terms
from idrc_jax.losses.loss import Batch, Loss, Network, Outcome
from idrc_jax.models import Tensors


@dataclass(frozen=True)
class Gaussian(Loss):
    """Cohen's loss; one pass a step.

    Attributes:
      noises, label_smoothing: see `Loss`; one noise an image.
    """

    name: ClassVar[str] = "gaussian"

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        _, losses, outcome = terms.classify(self, network, params, stats, batch)
        return jnp.mean(losses), outcome
