"""Votes at any images under their own noise, under each level of a scheme."""

from collections.abc import Sequence

import jax
import numpy as np

from idrc_jax import sampling
from idrc_jax.certificates.schemes import Scheme, host_levels
from idrc_jax.sampling.execution import Execution, voter_numbers


def count(
    execution: Execution,
    scheme: Scheme,
    points: np.ndarray,
    *,
    indices: Sequence[int] | np.ndarray,
    first: np.ndarray,
    n: np.ndarray,
    keys: Sequence[jax.Array],
) -> np.ndarray:
    """Count votes at images: int64 [M, levels, K + 1]; none where the noise level is 0, which certificates except.

    K is that of the classifier or, if it has more answers, of its router, whose votes are those of level 0; the last
    column counts votes whose logits were not finite, under every level.

    Args:
      execution: placed on its devices.
      points: float32 [M, H, W, C]; an image may come several times.
      indices: int [M], which name the noise.
      first, n: int [M], number of the first sample of each, and how many there are, under each level.
      keys: a typed key a level, of a stage of its own.
    """
    indices, levels = np.asarray(indices), host_levels(scheme, points)[1]
    voters, numbers = execution.voters(scheme), voter_numbers(execution.classifier, scheme, points)

    def under(level: int, key: jax.Array) -> np.ndarray:
        """Of each network for its images."""
        classes = voters[numbers[0, level]].classifier.classes
        found = np.zeros((len(points), classes + 1), np.int64)
        for number in np.unique(numbers[:, level]):
            own = numbers[:, level] == number
            found[own] = _count(
                voters[number], scheme, points[own], levels[own, level], indices=indices[own], first=first[own],
                n=n[own], key=key,
            )  # fmt: skip
        return found

    votes = [under(level, key) for level, key in enumerate(keys)]
    width = max(one.shape[1] for one in votes)
    padded = [np.insert(one, [-1] * (width - one.shape[1]), 0, axis=1) for one in votes]
    return np.stack(padded, axis=1)


def _count(
    execution: Execution,
    scheme: Scheme,
    points: np.ndarray,
    levels: np.ndarray,
    *,
    indices: np.ndarray,
    first: np.ndarray,
    n: np.ndarray,
    key: jax.Array,
) -> np.ndarray:
    """Under one level of each image: int64 [M, K + 1]."""
    n, dispatched = np.where(levels > 0, n, 0), []
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
