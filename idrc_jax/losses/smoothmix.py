"""SmoothMix (Jeong et al. 2021): predictions fade towards the uniform one on the way to an adversarial image.

x_adv is reached by `steps` steps of length `step_size` on SmoothAdv's objective, clipped to [0, 1], not kept in a ball.
In the one-step variant the image after the first step, brought within warm * step_size of x, takes the place of x. With
w ~ U[0, .5], Fbar = mean_i F(x + eps_i), x_mix = (1 - w) x + w x_adv and y_mix = (1 - w) Fbar + w / K, the mean of

    CE(f(x + eps_i)) + weight * warm * 1[Fbar is right] * KL(y_mix || F(x_mix + eps_i)),

warm rising to 1 over the first epochs, gradients through Fbar, too. Both passes are by the statistics of their batch.
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
class SmoothMix(Loss):
    """Jeong et al.'s loss; `steps` + 2 passes of all copies.

    Attributes:
      noises, label_smoothing: see `Loss`.
      weight: of the mixed images' term, eta; >= 0.
      steps: of the attack.
      step_size: of each, in pixel units; > 0; published: .5, 1, 2 at sigma .25, .5, 1.
      one_step: whether the image after one step takes the place of x; published: no, yes, yes.
      warmup: epochs in which the term rises.
    """

    name: ClassVar[str] = "smoothmix"
    published: ClassVar[BySigma] = {
        0.25: {"step_size": 0.5, "one_step": False},
        0.5: {"step_size": 1.0, "one_step": True},
        1.0: {"step_size": 2.0, "one_step": True},
    }
    noises: int = 2
    weight: float = 5.0
    steps: int = 4
    step_size: float = 1.0
    one_step: bool = True
    warmup: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.at_least("weight", self.weight, 0)
        validate.count("steps", self.steps, 1)
        validate.positive("step_size", self.step_size)
        validate.at_least("warmup", self.warmup, 0)

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        warm = warmed_up(epoch, self.warmup)
        objective = attacks.mean_loss(network, params, stats, batch)

        def climb(start: jax.Array, steps: int) -> jax.Array:
            return attacks.climb(objective, start, steps, self.step_size, lambda moved: jnp.clip(moved, 0, 1))

        base, moved = batch.images, climb(batch.images, 1)
        if self.one_step:
            base = base + attacks.shortened(moved - base, warm * self.step_size)
        if self.steps > 1:
            moved = climb(moved, self.steps - 1)

        logits, losses, outcome = terms.classify(self, network, params, stats, batch, base)
        mean = jnp.mean(terms.by_image(jax.nn.softmax(logits), batch.noises), axis=1)

        share = jax.random.uniform(key, batch.labels.shape, maxval=0.5)
        mixed = base + share[:, None, None, None] * (moved - base)
        target = (1 - share[:, None]) * mean + share[:, None] / mean.shape[-1]
        mixed_logits, stats = network.train(params, outcome.stats, terms.noisy(batch, mixed))
        apart = terms.divergence(terms.copies(target, batch.noises), jax.nn.log_softmax(mixed_logits))
        right = terms.copies(jnp.argmax(mean, -1) == batch.labels, batch.noises)
        value = jnp.mean(losses) + self.weight * warm * jnp.mean(right * apart)
        return value, outcome._replace(stats=stats)
