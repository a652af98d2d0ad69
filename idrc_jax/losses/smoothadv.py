"""Adversarial training of the smoothed classifier (Salman et al. 2019, "SmoothAdv", by projected gradient descent).

delta starts at 0 and takes `steps` steps of 2 epsilon / steps along the unit gradient of

    -log mean_i F_y(x + delta + eps_i);

after each, x + delta is clipped to [0, 1] and delta brought into the ball of radius epsilon. The loss is the mean
cross-entropy at x + delta + eps_i, with the same eps_i, drawn at the level of x. Epsilon rises linearly over the first
epochs. The attack sees running statistics, the loss the batch's.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from idrc_jax.core import validate
from idrc_jax.losses import attacks, terms
from idrc_jax.losses.loss import Batch, BySigma, Loss, Network, Outcome, warmed_up
from idrc_jax.models import Tensors


@dataclass(frozen=True)
class SmoothAdv(Loss):
    """Salman et al.'s loss; `steps` + 1 passes of all copies.

    Attributes:
      noises, label_smoothing: see `Loss`; published: 4, 8, 2 noises at sigma .25, .5, 1.
      epsilon: radius of the attack, l2 in pixel units; > 0; published: 1, 1, 2.
      steps: of the attack.
      warmup: epochs in which epsilon rises.
    """

    name: ClassVar[str] = "smoothadv"
    published: ClassVar[BySigma] = {
        0.25: {"epsilon": 1.0, "noises": 4},
        0.5: {"epsilon": 1.0, "noises": 8},
        1.0: {"epsilon": 2.0, "noises": 2},
    }
    noises: int = 8
    epsilon: float = 1.0
    steps: int = 10
    warmup: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.positive("epsilon", self.epsilon)
        validate.count("steps", self.steps, 1)
        validate.at_least("warmup", self.warmup, 0)

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        radius = self.epsilon * warmed_up(epoch, self.warmup)

        def inside(moved: jax.Array) -> jax.Array:
            return batch.images + attacks.shortened(jnp.clip(moved, 0, 1) - batch.images, radius)

        objective = attacks.mean_loss(network, params, stats, batch)
        moved = attacks.climb(objective, batch.images, self.steps, 2 * radius / self.steps, inside)
        _, losses, outcome = terms.classify(self, network, params, stats, batch, moved)
        return jnp.mean(losses), outcome
