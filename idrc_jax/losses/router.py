"""A router that chooses the noise level which is worth most (for `routed`, after Sun, Mao and Vechev 2026).

Of an image, worth_k is what level k is worth there: a certified radius, or the share of some radii that is certified.
With F the softmax and Fbar = mean_i F(x + eps_i), the mean over images of

    mean_i sum_k (worth_k - min_j worth_j) * -log F_k(x + eps_i)
      + weight * mean_i KL(Fbar || F(x + eps_i)) + entropy * H(Fbar),

gradients through Fbar, too. The first term is a cross-entropy that counts an image by what its choice is worth: where
it is least, the likeliest answer to images that look alike is the level that is worth most to them on average. (What
the soft choice is expected to lose, sum_k Fbar_k (max_j worth_j - worth_k), has no gradient at a sure wrong answer:
routers trained by that ended in one answer for all.) The others, as in `consistency`, widen margins: a router's
certificate is cut where its own answer is not sure. One pass of all copies.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from idrc_jax.core.validate import SettingError
from idrc_jax.losses import terms
from idrc_jax.losses.loss import Batch, Loss, Network, Outcome
from idrc_jax.models import Tensors


@dataclass(frozen=True)
class Router(Loss):
    """The loss of routers; the passes of noise augmentation with as many noises.

    Attributes:
      noises: at least 2; label_smoothing: 0, as worths are no labels.
      weight: of the divergence; >= 0.
      entropy: weight of the mean prediction's entropy; >= 0.
    """

    name: ClassVar[str] = "router"
    needs_teacher: ClassVar[bool] = True
    noises: int = 2
    weight: float = 0.5
    entropy: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        terms.check_disagreement(self, weight=self.weight, entropy=self.entropy)
        if self.label_smoothing:
            raise SettingError(
                f"Expected label_smoothing = 0 for the loss router, which has no labels, got {self.label_smoothing}.",
                "label_smoothing",
            )

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        if batch.teacher is None:
            raise ValueError("Expected what the levels are worth for the loss router, got none.")
        logits, _, outcome = terms.classify(self, network, params, stats, batch)
        _, apart, spread = terms.disagreement(logits, batch.noises)
        worth = batch.teacher - jnp.min(batch.teacher, axis=1, keepdims=True)
        missed = -jnp.sum(terms.copies(worth, batch.noises) * jax.nn.log_softmax(logits), axis=-1)
        return jnp.mean(missed) + self.weight * jnp.mean(apart) + self.entropy * jnp.mean(spread), outcome
