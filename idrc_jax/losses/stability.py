"""Stability training (Li et al. 2019): a noisy image is to be classified as the clean one is.

With F the softmax of f, the mean over images of

    CE(f(x)) + weight * mean_i CE(F(x), f(x + eps_i)),

gradients through F(x), too. The clean images and the noisy ones are a pass each, by statistics of their own. At weight
0 it is training without noise.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from idrc_jax.core import validate
from idrc_jax.losses import terms
from idrc_jax.losses.loss import Batch, BySigma, Loss, Network, Outcome
from idrc_jax.models import Tensors


@dataclass(frozen=True)
class Stability(Loss):
    """Li et al.'s loss; 1 + 1 / m times the passes of noise augmentation with m noises.

    Attributes:
      noises, label_smoothing: see `Loss`.
      weight: of the second term, lambda; >= 0; published: 2, 2, 1 at sigma .25, .5, 1, for Jeong and Shin's (2020)
        comparison with it.
    """

    name: ClassVar[str] = "stability"
    published: ClassVar[BySigma] = {0.25: {"weight": 2.0}, 0.5: {"weight": 2.0}, 1.0: {"weight": 1.0}}
    weight: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.at_least("weight", self.weight, 0)

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        clean, stats = network.train(params, stats, batch.images)
        logits, stats = network.train(params, stats, terms.noisy(batch))
        p = terms.copies(jax.nn.softmax(clean), batch.noises)
        stable = -jnp.sum(p * jax.nn.log_softmax(logits), axis=-1)
        losses = terms.cross_entropy(clean, batch.labels, self.label_smoothing)
        accuracy = terms.accuracy(logits, terms.copies(batch.labels, batch.noises))
        return jnp.mean(losses) + self.weight * jnp.mean(stable), Outcome(stats, accuracy)
