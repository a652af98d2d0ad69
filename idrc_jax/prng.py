"""The key tree: every random number is a function of (seed, stage, data-set index, sample index) alone.

All branches are `fold_in`, so that a sample's noise does not depend on the batch, the chunk, the number of
devices, the order of the images or the point at which a run was resumed.
"""

import jax

SELECTION = 0
ESTIMATION = 1
PREDICTION = 2
INITIALISATION = 3
TRAINING = 4
SEARCH = 5
DIRECTION = 6
SCREENING = 7
CONFIRMATION = 8


def root(seed: int) -> jax.Array:
    """The typed key of a run."""
    return jax.random.key(seed)


def stage(key: jax.Array, number: int) -> jax.Array:
    """The key of one stage of a run, e.g. `ESTIMATION`; different stages share no randomness."""
    return jax.random.fold_in(key, number)


def sample(stage_key: jax.Array, index: jax.Array, sample_index: jax.Array) -> jax.Array:
    """The key of one noisy sample: stage -> data-set index -> sample index (scalars, below 2**32)."""
    return jax.random.fold_in(jax.random.fold_in(stage_key, index), sample_index)
