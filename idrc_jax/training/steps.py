"""What every training step is made of: its state, the images that it takes and the optimiser's update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from idrc_jax.models import Tensors
from idrc_jax.sampling import random_keys


class State(NamedTuple):
    """What a step changes.

    Attributes:
      params: the parameters.
      stats: running statistics; with them, or alone for a network that has none, the `moving_average` of the weights.
      optimiser: the optimiser's state.
      step: int32 [], steps done.
    """

    params: Tensors
    stats: Tensors
    optimiser: optax.OptState
    step: jax.Array


# (state, order of the epoch, *data) -> (state, metrics), of which the first is the loss.
Step = Callable[..., tuple[State, tuple[jax.Array, ...]]]


def epoch_order(seed: int, epoch: int, count: int) -> jax.Array:
    """Draw the order in which an epoch takes `count` images, [count]: a new one every epoch.

    It is made once an epoch and given to every step: a sort of 50,000 keys costs as much as some 20 images' training.
    """
    return jax.random.permutation(_order_key(seed, epoch), count)


def weighted_order(seed: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    """Draw the images of an epoch with replacement, each as often as its weight of all: int32 [N] of as many.

    It is made on the host, in float64, so that it is the same everywhere; `images_of_step` reads it as any order.

    Args:
      seed, epoch: see `epoch_order`.
      weights: [N], >= 0; an image of weight 0 is never drawn.
    """
    ends = np.cumsum(weights, dtype=np.float64)
    bits = np.asarray(jax.random.bits(_order_key(seed, epoch), (len(ends),), jnp.uint32))
    return np.searchsorted(ends, (bits + 0.5) / 2**32 * ends[-1], side="right").astype(np.int32)


def _order_key(seed: int, epoch: int) -> jax.Array:
    key = jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.TRAINING), 0)
    return jax.random.fold_in(key, epoch)


def images_of_step(order: jax.Array, step: jax.Array, batch: int) -> jax.Array:
    """Say which images a step takes, [batch], by the order of its epoch.

    What is left over when the batch does not divide the set is dropped.
    """
    return jax.lax.dynamic_slice(order, (step % (order.shape[0] // batch) * batch,), (batch,))


def descend(state: State, optimiser: optax.GradientTransformation, gradients: Tensors, stats: Tensors) -> State:
    """Take the optimiser's step: the state after it, with new stats."""
    updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
    return State(jax.tree.map(jnp.add, state.params, updates), stats, optimiser_state, state.step + 1)
