"""Training that gives up hard images (Sun et al. 2025, "Average Certified Radius is a Poor Metric ...").

Until epoch `start_epoch` it is noise augmentation. From then on

* images are left out of which the network, when that epoch begins, classifies less than `threshold` of the noisy copies
  rightly;
* the others are drawn with replacement, by weights that are counted anew every `redraw_epochs`: the standard normal
  quantile of the lower bound on p of that many right answers, taken as at least three quarters of all;
* the noise is attacked before the cross-entropy: it takes up to `steps` steps of length `step_size` along its unit
  gradient, each brought back to its norm, and stops where the network is wrong.

The attack sees running statistics, the loss the batch's. ACR grows so, and hard images lose: that is the paper's point.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.losses import attacks, terms
from idrc_jax.losses.loss import Batch, BySigma, Loss, Network, Outcome
from idrc_jax.models import Tensors

_LEAST, _ALPHA = 0.75, 0.1  # the share of right answers that a weight takes at least, its bound's error probability


@dataclass(frozen=True)
class HardSamples(Loss):
    """Sun et al.'s recipe; one pass until `start_epoch`, at most `steps` + 1 from then on, beside the counting.

    Attributes:
      noises, label_smoothing: see `Loss`.
      start_epoch: epochs of plain noise augmentation; published: 60, 70, 60 at sigma .25, .5, 1, of 150.
      threshold: share of right answers below which an image is left out, in [0, 1); published: .5, .4, .4.
      threshold_samples: noisy copies by which that share is counted.
      redraw_epochs: between two countings of the weights.
      weight_samples: noisy copies by which they are counted; a multiple of 4, at least 12.
      steps: of the attack at most; 0 for none; published: 3, 6, 4.
      step_size: of each, l2 in pixel units; > 0; published: .25, .25, .5.
    """

    name: ClassVar[str] = "hard_samples"
    published: ClassVar[BySigma] = {
        0.25: {"start_epoch": 60, "threshold": 0.5, "steps": 3, "step_size": 0.25},
        0.5: {"start_epoch": 70, "threshold": 0.4, "steps": 6, "step_size": 0.25},
        1.0: {"start_epoch": 60, "threshold": 0.4, "steps": 4, "step_size": 0.5},
    }
    noises: int = 4
    start_epoch: int = 60
    threshold: float = 0.4
    threshold_samples: int = 100
    redraw_epochs: int = 10
    weight_samples: int = 16
    steps: int = 4
    step_size: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.count("start_epoch", self.start_epoch, 0)
        validate.fraction("threshold", self.threshold)
        validate.count("threshold_samples", self.threshold_samples, 1)
        validate.count("redraw_epochs", self.redraw_epochs, 1)
        if validate.count("weight_samples", self.weight_samples, 1) % 4 or self.weight_samples < 12:
            raise SettingError(
                "Expected weight_samples to be a multiple of 4 and at least 12, of which three quarters show a p above "
                f"1/2, got {self.weight_samples}.",
                "weight_samples",
            )
        validate.count("steps", self.steps, 0)
        validate.positive("step_size", self.step_size)

    def check(self, scheme: Scheme, sigma_low: float) -> None:
        if scheme.law != "normal":
            raise SettingError(
                "Expected scheme to be of Gaussian noise for the loss hard_samples, which weighs images by their "
                f"Gaussian radius, got {scheme.name}.",
                "scheme",
            )
        if sigma_low:
            raise SettingError(
                f"Expected sigma_low = 0 for the loss hard_samples, which weighs images at one level, got {sigma_low}.",
                "sigma_low",
            )

    # A program for each, as XLA on CPUs runs input gradients inside conditionals several times slower.
    @property
    def changes(self) -> tuple[int, ...]:
        return (self.start_epoch,)

    def at(self, epoch: int) -> Loss:
        return self if epoch >= self.start_epoch else replace(self, steps=0)

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        if self.steps:
            frozen = jax.lax.stop_gradient((params, stats))
            batch = batch._replace(noise=self.worse_noise(network, *frozen, batch))
        _, losses, outcome = terms.classify(self, network, params, stats, batch)
        return jnp.mean(losses), outcome

    def worse_noise(self, network: Network, params: Tensors, stats: Tensors, batch: Batch) -> jax.Array:
        """The noises, each moved on its sphere until the network is wrong: [N * m, H, W, C]."""
        fixed, lengths = network.fixed(params, stats), attacks.norms(batch.noise)
        labels = terms.copies(batch.labels, batch.noises)

        def objective(moved: jax.Array) -> jax.Array:
            logits = fixed(terms.noisy(batch, noise=moved))
            # Where the network is wrong the gradient is 0, and the noise stays.
            right = jnp.argmax(logits, -1) == labels
            return jnp.sum(jnp.where(right, terms.cross_entropy(logits, labels, 0.0), 0.0))

        def on_sphere(moved: jax.Array) -> jax.Array:
            return attacks.of_length(moved, lengths)

        return attacks.climb(objective, batch.noise, self.steps, self.step_size, on_sphere)

    def kept(self, right: np.ndarray) -> np.ndarray:
        """Which images are not left out, bool [N], by how many of their `threshold_samples` copies are right, [N]."""
        return right / self.threshold_samples >= self.threshold

    def weights(self, right: np.ndarray) -> np.ndarray:
        """How often to draw each image, > 0, float64 [N], by how many of its `weight_samples` copies are right, [N]."""
        taken = np.maximum(right, round(_LEAST * self.weight_samples))
        return ndtri(confidence_bounds.clopper_pearson_lower(taken, self.weight_samples, _ALPHA))
