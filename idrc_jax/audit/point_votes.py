"""Votes at any images under their own noise, and the class that rivals the certified one there."""

from collections.abc import Sequence

import jax
import numpy as np

from idrc_jax import sampling
from idrc_jax.certificates.schemes import Scheme, host_scale
from idrc_jax.sampling.execution import Execution


def count(
    execution: Execution,
    scheme: Scheme,
    points: np.ndarray,
    *,
    indices: Sequence[int] | np.ndarray,
    first: np.ndarray,
    n: np.ndarray,
    key: jax.Array,
) -> np.ndarray:
    """Count votes at images: int64 [M, K + 1]; none where the noise level is 0, which certificates except.

    Args:
      execution: placed on its devices.
      points: float32 [M, H, W, C]; an image may come several times.
      indices: int [M], which name the noise.
      first, n: int [M], number of the first sample of each, and how many there are.
      key: a typed key of a stage of its own.
    """
    indices, levels = np.asarray(indices), host_scale(scheme, points)[1]
    n = np.where(levels > 0, n, 0)
    dispatched = []
    for begin in range(0, len(points), sampling.SLOTS):
        slots = np.arange(begin, min(begin + sampling.SLOTS, len(points)))
        empty = sampling.SLOTS - len(slots)
        padded = np.concatenate([slots, np.repeat(slots[:1], empty)])
        dispatched.append(
            sampling.dispatch_votes(
                execution,
                scheme,
                points[padded],
                levels[padded],
                indices=indices[padded],
                first=first[padded],
                n=np.concatenate([n[slots], np.zeros(empty, int)]),
                key=key,
            )
        )
    votes = [np.asarray(counts, np.int64).sum(axis=0) for counts in dispatched]
    return np.concatenate(votes)[: len(points)]


def strongest_rivals(votes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest rival of each class, and its share of the votes for either, 0 where there are none: [M] each.

    Args:
      votes: int [M, K + 1].
      classes: int [M].
    """
    own = np.take_along_axis(votes[:, :-1], classes[:, None], axis=1)[:, 0]
    others = votes[:, :-1].copy()
    np.put_along_axis(others, classes[:, None], -1, axis=1)
    rivals, most = np.argmax(others, axis=1), np.max(others, axis=1)
    return rivals, most / np.maximum(own + most, 1)
