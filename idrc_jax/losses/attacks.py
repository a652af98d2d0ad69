"""Inner attacks: steps of a given length along the unit gradient of an objective, each image's for itself.

They climb the network at its running statistics (`Network.fixed`), with nothing differentiated through them afterwards.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from idrc_jax.losses import terms
from idrc_jax.losses.loss import Batch, Network
from idrc_jax.models import Tensors

_TINY = 1e-12  # a gradient that is shorter moves its image by less than a step


def norms(images: jax.Array) -> jax.Array:
    """l2 norms: [R, H, W, C] -> [R, 1, 1, 1]."""
    return jnp.sqrt(jnp.sum(images * images, axis=(1, 2, 3), keepdims=True))


def shortened(shifts: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Shifts [R, H, W, C], those longer than `radius` brought to that length."""
    return shifts * jnp.minimum(1.0, radius / jnp.maximum(norms(shifts), _TINY))


def of_length(shifts: jax.Array, lengths: jax.Array) -> jax.Array:
    """Shifts [R, H, W, C], each brought to its length [R, 1, 1, 1]."""
    return shifts * (lengths / jnp.maximum(norms(shifts), _TINY))


def climb(
    objective: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    steps: int,
    length: jax.Array | float,
    after: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Climb from `start` [R, H, W, C] by steps of a length; `after` brings each step's end back to where it may be.

    Args:
      objective: images -> float32 [], a sum of one term an image.
      start: float32 [R, H, W, C].
      steps: how many, each one gradient.
      length: of a step, in pixel units.
      after: of what a step gives, [R, H, W, C] -> the same.
    """

    def step(moved: jax.Array, _: None) -> tuple[jax.Array, None]:
        gradient = jax.grad(objective)(moved)
        return after(moved + length * gradient / jnp.maximum(norms(gradient), _TINY)), None

    # XLA on CPUs runs input gradients inside loops a dozen times slower.
    unroll = steps if jax.default_backend() == "cpu" else 1
    return jax.lax.stop_gradient(jax.lax.scan(step, jax.lax.stop_gradient(start), length=steps, unroll=unroll)[0])


def mean_loss(network: Network, params: Tensors, stats: Tensors, batch: Batch) -> Callable[[jax.Array], jax.Array]:
    """The objective of Salman et al. (2019): images -> the sum of -log mean_i F_y(image + eps_i)."""
    fixed = network.fixed(jax.lax.stop_gradient(params), stats)

    def objective(images: jax.Array) -> jax.Array:
        logits = fixed(terms.noisy(batch, images))
        log_p = terms.by_image(jax.nn.log_softmax(logits), batch.noises)
        own = jnp.take_along_axis(log_p, batch.labels[:, None, None], axis=-1)[..., 0]
        return -jnp.sum(jax.nn.logsumexp(own, axis=1))

    return objective
