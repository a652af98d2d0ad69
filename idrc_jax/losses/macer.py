"""MACER (Zhai et al. 2020): the certified radius itself is trained, without attacks.

With z_i the logits at x + eps_i, F their softmax and p = mean_i softmax(beta z_i), the mean over images of

    -log mean_i F_y(z_i) + weight * level / 2 * [gamma - (Phi^-1(p_1) - Phi^-1(p_2))],

p_1 and p_2 the largest and the second of p; the second term only where p_1 is the label's and the gap is finite and at
most gamma. The level is sigma or, under noise that depends on the image, that of x, whose change with x is left out.
One pass of all copies. Published with 16 noises of 64 images a step (batch 1024 here), lr .01, weight decay 5e-4, 440
epochs with drops at 200 and 400.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.losses import terms
from idrc_jax.losses.loss import Batch, Loss, Network, Outcome
from idrc_jax.models import Tensors


@dataclass(frozen=True)
class Macer(Loss):
    """Zhai et al.'s loss; the passes of noise augmentation with as many noises.

    Attributes:
      noises, label_smoothing: see `Loss`.
      weight: of the radius, lambda; >= 0.
      beta: what logits are multiplied by, > 0: the larger, the more the mean of softmaxes is a share of votes.
      gamma: gaps above it are left alone; > 0.
    """

    name: ClassVar[str] = "macer"
    noises: int = 16
    weight: float = 12.0
    beta: float = 16.0
    gamma: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.at_least("weight", self.weight, 0)
        validate.positive("beta", self.beta)
        validate.positive("gamma", self.gamma)

    def check(self, scheme: Scheme, sigma_low: float) -> None:
        if scheme.law != "normal":
            raise SettingError(
                f"Expected scheme to be of Gaussian noise for the loss macer, which trains the Gaussian radius, got "
                f"{scheme.name}.",
                "scheme",
            )

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        logits, stats = network.train(params, stats, terms.noisy(batch))
        labels = terms.copies(batch.labels, batch.noises)
        z = terms.by_image(logits, batch.noises)
        losses = terms.negative_log(terms.log_mean(jax.nn.log_softmax(z)), batch.labels, self.label_smoothing)
        p = jnp.mean(jax.nn.softmax(self.beta * z), axis=1)
        (first, second), which = (jnp.moveaxis(one, -1, 0) for one in jax.lax.top_k(p, 2))
        gap = ndtri(first) - ndtri(second)
        taken = (which[0] == batch.labels) & jnp.isfinite(gap) & (gap <= self.gamma)
        # Quantiles are taken again where they are finite, as a gradient of infinity times 0 would be none.
        gap = ndtri(jnp.where(taken, first, 0.5)) - ndtri(jnp.where(taken, second, 0.5))
        short = batch.levels / 2 * jnp.where(taken, self.gamma - gap, 0.0)
        value = jnp.mean(losses) + self.weight * jnp.mean(short)
        return value, Outcome(stats, terms.accuracy(logits, labels))
