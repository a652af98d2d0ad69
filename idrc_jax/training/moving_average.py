"""The exponential moving average of the weights over the steps of training.

It lies among the running statistics of a training's state: those of a network that has none are the average itself, the
others have it beside them, under names that begin with `average.`. Running statistics are averaged as weights are.
"""

import jax
import jax.numpy as jnp

from idrc_jax.models import Tensors

_BESIDE = "average."


def first(params: Tensors, stats: Tensors) -> Tensors:
    """Begin the average: running statistics with a copy of the initial weights."""
    return joined(stats, jax.tree.map(jnp.copy, params | stats))


def joined(stats: Tensors, average: Tensors) -> Tensors:
    """Put the average of all tensors beside running statistics, in their place where there are none."""
    return stats | {f"{_BESIDE}{name}": value for name, value in average.items()} if stats else average


def parted(params: Tensors, stats: Tensors) -> tuple[Tensors, Tensors]:
    """Part what `joined` has put together: running statistics and the average, each perhaps empty."""
    if stats.keys() == params.keys():
        return {}, stats
    average = {name.removeprefix(_BESIDE): value for name, value in stats.items() if name.startswith(_BESIDE)}
    return {name: value for name, value in stats.items() if not name.startswith(_BESIDE)}, average


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
