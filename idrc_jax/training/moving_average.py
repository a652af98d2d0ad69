"""The exponential moving average of the weights over the steps of training."""

import jax
import jax.numpy as jnp

from idrc_jax.models import Tensors


def first(params: Tensors) -> Tensors:
    """Begin the average: a copy of the initial weights."""
    return jax.tree.map(jnp.copy, params)


def updated(average: Tensors, params: Tensors, step: jax.Array, decay: float) -> Tensors:
    """Average the weights that a step has made into those of the steps before: d * average + (1 - d) * params.

    The factor d grows from 1 / 10 to the decay, (1 + step) / (10 + step): a short memory at first soon forgets the
    initial weights.

    Args:
      average: of the weights before the step.
      params: the weights after it.
      step: int32 [], steps done before it.
      decay: the largest d, in [0, 1).
    """
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, now: keep * old + (1 - keep) * now, average, params)
