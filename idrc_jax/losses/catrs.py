"""CAT-RS (Jeong et al. 2023): images the network is sure of are trained at their worst noise, others at their easiest.

Of an image's m noises, p_hat is the share that is classified right, and N ~ Bin(m, p_hat), at least 1. The mean of

    L_low + weight * L_high,  L_low = 1/m * the sum of the N smallest CE(f(x + eps_i)),
    L_high = 1[N = m] * max_i KL(pi || F(x + eps'_i)),

pi the smoothed prediction of x by a network that was trained under Gaussian noise. eps' starts at eps and takes `steps`
steps of 2 epsilon / steps along the unit gradient of that divergence, each brought within epsilon of eps and then
rescaled to the mean and the root mean square of eps. Both passes are by the statistics of their batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.losses import attacks, terms
from idrc_jax.losses.loss import Batch, BySigma, Loss, Network, Outcome
from idrc_jax.models import Tensors

_PIXEL_AXES = (1, 2, 3)


@dataclass(frozen=True)
class CatRs(Loss):
    """Jeong et al.'s loss; `steps` + 2 passes of all copies, and a teacher.

    Attributes:
      noises, label_smoothing: see `Loss`.
      weight: of L_high, lambda; >= 0; published: .5, 1, 2 at sigma .25, .5, 1.
      epsilon: how far a noise may move, l2 in pixel units; > 0.
      steps: of the attack.
    """

    name: ClassVar[str] = "catrs"
    published: ClassVar[BySigma] = {0.25: {"weight": 0.5}, 0.5: {"weight": 1.0}, 1.0: {"weight": 2.0}}
    needs_teacher: ClassVar[bool] = True
    noises: int = 4
    weight: float = 1.0
    epsilon: float = 1.0
    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.at_least("weight", self.weight, 0)
        validate.positive("epsilon", self.epsilon)
        validate.count("steps", self.steps, 1)

    def check(self, scheme: Scheme, sigma_low: float) -> None:
        if sigma_low:
            raise SettingError(
                f"Expected sigma_low = 0 for the loss catrs, whose teacher predicts at one level, got {sigma_low}.",
                "sigma_low",
            )

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        if batch.teacher is None:
            raise ValueError("Expected a teacher's predictions for the loss catrs, got none.")
        worst = self.worst_noise(network, params, stats, batch)
        logits, losses, outcome = terms.classify(self, network, params, stats, batch)
        moved_logits, stats = network.train(params, outcome.stats, terms.noisy(batch, noise=worst))

        right = terms.by_image(jnp.argmax(logits, -1), batch.noises) == batch.labels[:, None]
        draws = jax.random.uniform(key, right.shape) < jnp.mean(right, axis=1, keepdims=True)
        accepted = jnp.maximum(jnp.sum(draws, axis=1), 1)
        easiest = jnp.arange(batch.noises) < accepted[:, None]
        low = jnp.mean(jnp.where(easiest, jnp.sort(terms.by_image(losses, batch.noises), axis=1), 0.0), axis=1)

        apart = _apart(batch.teacher, moved_logits, batch.noises)
        high = jnp.where(accepted == batch.noises, jnp.max(apart, axis=1), 0.0)
        return jnp.mean(low) + self.weight * jnp.mean(high), outcome._replace(stats=stats)

    def worst_noise(self, network: Network, params: Tensors, stats: Tensors, batch: Batch) -> jax.Array:
        """The noises eps' at which the divergence from the teacher is large: [N * m, H, W, C]."""
        fixed, noise = network.fixed(jax.lax.stop_gradient(params), stats), batch.noise
        mean, size = _mean(noise), jnp.sqrt(_mean(noise * noise))

        def objective(moved: jax.Array) -> jax.Array:
            logits = fixed(terms.noisy(batch, noise=moved))
            return jnp.sum(_apart(batch.teacher, logits, batch.noises))

        def inside(moved: jax.Array) -> jax.Array:
            moved = noise + attacks.shortened(moved - noise, self.epsilon)
            return mean + size * (moved - _mean(moved)) / jnp.sqrt(_mean(moved * moved))

        return attacks.climb(objective, noise, self.steps, 2 * self.epsilon / self.steps, inside)


def _apart(teacher: jax.Array | None, logits: jax.Array, noises: int) -> jax.Array:
    """KL(pi || F) of each noise: [N, m]."""
    log_q = terms.by_image(jax.nn.log_softmax(logits), noises)
    return terms.divergence(jnp.asarray(teacher)[:, None], log_q)


def _mean(images: jax.Array) -> jax.Array:
    return jnp.mean(images, axis=_PIXEL_AXES, keepdims=True)
