"""Consistency regularisation (Jeong and Shin 2020): the m noisy copies of an image are to agree.

With F the softmax and Fbar = mean_i F(x + eps_i), the mean over images of

    mean_i CE(f(x + eps_i)) + weight * mean_i KL(Fbar || F(x + eps_i)) + entropy * H(Fbar),

gradients through Fbar, too. One pass of all copies.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from idrc_jax.losses import terms
from idrc_jax.losses.loss import Batch, BySigma, Loss, Network, Outcome
from idrc_jax.models import Tensors


@dataclass(frozen=True)
class Consistency(Loss):
    """Jeong and Shin's loss; the passes of noise augmentation with as many noises.

    Attributes:
      noises: at least 2.
      label_smoothing: see `Loss`.
      weight: of the divergence, lambda; >= 0; published: 20, 10, 10 at sigma .25, .5, 1.
      entropy: weight of the mean prediction's entropy, eta; >= 0.
    """

    name: ClassVar[str] = "consistency"
    published: ClassVar[BySigma] = {0.25: {"weight": 20.0}, 0.5: {"weight": 10.0}, 1.0: {"weight": 10.0}}
    noises: int = 2
    weight: float = 10.0
    entropy: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        terms.check_disagreement(self, weight=self.weight, entropy=self.entropy)

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        logits, losses, outcome = terms.classify(self, network, params, stats, batch)
        _, apart, spread = terms.disagreement(logits, batch.noises)
        value = jnp.mean(losses) + self.weight * jnp.mean(apart) + self.entropy * jnp.mean(spread)
        return value, outcome
