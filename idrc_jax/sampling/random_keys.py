"""The key tree: every random number is a function of (seed, stage, data-set index, sample index) alone.

All branches are `fold_in`, so that a sample's noise does not depend on the batch, the chunk, the number of
devices, the order of the images or the point at which a run was resumed. Keys are those of `threefry`, so that it does
not depend on any setting of JAX either.
"""

import numbers

import jax
import numpy as np

from idrc_jax.core import validate
from idrc_jax.sampling import threefry

SELECTION = 0
ESTIMATION = 1
PREDICTION = 2
INITIALISATION = 3
TRAINING = 4
SEARCH = 5
DIRECTION = 6
SCREENING = 7
CONFIRMATION = 8
VALIDATION = 9
PAIRING = 10
_STAGES = 16  # more than there are


def check_seed(seed: object) -> int:
    """The seed if it is one of 0 .. 2**64 - 1, which the key tree tells apart, else ValueError."""
    number = validate.integer("seed", seed)
    if not 0 <= number < 2**64:
        raise ValueError(f"Expected a seed in 0 .. 2**64 - 1, got {seed}.")
    return number


def root(seed: int) -> jax.Array:
    """The typed key of a run: that of `jax.random.key(seed, impl="threefry2x32")` with 64-bit numbers, whatever JAX's
    settings are.

    Raises ValueError for a seed outside 0 .. 2**64 - 1.
    """
    return threefry.key(np.asarray(divmod(check_seed(seed), 2**32), np.uint32))


def seed_of(key: jax.Array) -> int:
    """The seed whose `root` a key is: every single key of threefry2x32 is one.

    Raises ValueError for anything else, and says what to give instead.
    """
    if isinstance(key, numbers.Integral):
        raise ValueError(f"Expected a typed key, got the number {key}: say seed={key}.")
    words = np.asarray(jax.random.key_data(threefry.pinned(key)))
    if words.shape != (2,):
        raise ValueError(f"Expected one key, got keys of shape {key.shape}.")
    high, low = map(int, words)
    return 2**32 * high + low


def stage(key: jax.Array, number: int) -> jax.Array:
    """The key of one stage of a run, e.g. `ESTIMATION`; different stages share no randomness.

    Raises ValueError for a key of another generator than threefry2x32.
    """
    return jax.random.fold_in(threefry.pinned(key), number)


def stage_of_level(number: int, level: int) -> int:
    """The number of a stage under a scheme's noise level; under level 0 it is the stage's own.

    Stages of different levels share no randomness.
    """
    return number + _STAGES * level


def sample(stage_key: jax.Array, index: jax.Array, sample_index: jax.Array) -> jax.Array:
    """The key of one noisy sample: stage -> data-set index -> sample index (scalars, below 2**32)."""
    return jax.random.fold_in(jax.random.fold_in(stage_key, index), sample_index)
