"""Rounded normal integers from random bits and a table of thresholds, on a CPU (`rounded_normal_cpu.cc`).

The kernel draws the bits itself, those of Threefry-2x32-20 for counters (1, position). Its twin is `plain` of these
bits, for accelerators and where there is no compiler: the integers are the same. Both look a number up
in two steps: a guide says, for a cell of numbers t that have their first bits in common, how many thresholds are above
all of the cell, and one comparison tells on which side of the threshold in the cell, if there is one, t is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.kernels import build

_TARGET = "idrc_rounded_normal"
_OCTAVES = 64  # of t: the first is that of its 63 bits' highest, the last that of t = 0 alone
_A_CELL = 5  # places of a table for each cell of an octave


class Tables(NamedTuple):
    """What makes integers of random bits, and who uses which.

    Attributes:
      thresholds: uint32 [U, 5 * 2^b, 2], falling numbers of 63 bits, low word first, and zeros behind them.
      guide: uint16 [U, 64 * 2^b], how many thresholds lie above a whole cell: the numbers t of one highest bit and b
        bits behind it, from the highest octave on, upwards in each.
      row: int32 [N], the table of each.
    """

    thresholds: jax.Array
    guide: jax.Array
    row: jax.Array


def available() -> bool:
    """Say whether the kernel can be built here (it is, when this is first asked)."""
    return build.register("rounded_normal_cpu.cc", ((_TARGET, "IdrcRoundedNormal"),))


def places(bits: int) -> int:
    """How many thresholds a table with so many bits a cell has room for, and a zero."""
    return _A_CELL << bits


def table(thresholds: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """One table of `Tables`: thresholds uint32 [5 * 2^bits, 2] and guide uint16 [64 * 2^bits].

    Args:
      thresholds: uint64 [m], falling, below 2^63.
      bits: b; large enough for one threshold a cell at most.

    Raises:
      ValueError: two thresholds in a cell, or more than the table holds.

    Guarantee: by what is returned, every t gives the number of thresholds above it.
    """
    size, ahead = places(bits), len(thresholds)
    if ahead >= size:
        raise ValueError(f"Expected fewer than {size} thresholds, got {ahead}.")
    octave, mantissa = np.divmod(np.arange((_OCTAVES - 1) << bits, dtype=np.uint64), np.uint64(1 << bits))
    highest = np.uint64(_OCTAVES - 2) - octave  # bit of each cell
    first = np.uint64(1) << highest
    down = np.maximum(np.int64(bits) - highest.astype(np.int64), 0).astype(np.uint64)
    up = np.maximum(highest.astype(np.int64) - bits, 0).astype(np.uint64)
    last = first + (((mantissa >> down) + np.uint64(1)) << up) - np.uint64(1)
    rising = thresholds[::-1]
    guide = ahead - np.searchsorted(rising, last, side="right")
    low = last + np.uint64(1) - (np.uint64(1) << up)
    if np.any(ahead - np.searchsorted(rising, low, side="right") - guide > 1):
        raise ValueError(f"Expected one threshold a cell of {bits} bits, got two.")
    words = np.zeros((size, 2), np.uint32)
    words[:ahead, 0], words[:ahead, 1] = thresholds & np.uint64(2**32 - 1), thresholds >> np.uint64(32)
    whole = np.full(_OCTAVES << bits, ahead, np.uint16)
    whole[: len(guide)] = guide
    return words, whole


def integers(keys: jax.Array, tables: Tables, shape: tuple[int, ...]) -> jax.Array:
    """Integers int32 [N, *shape] of N keys of threefry2x32, by the kernel.

    Args:
      keys: uint32 [N, 2].
      tables: of N rows.
      shape: of what each key draws, fewer than 2^32 integers.
    """
    result = jax.ShapeDtypeStruct((len(keys), *shape), jnp.int32)
    made = jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")(keys, *tables)
    # What a call gives varies over no mesh, for shard_map; the keys do. XLA leaves the zeros out.
    varying = 0 * (keys[:, 0].astype(jnp.int32) + tables.row)
    return made + varying.reshape(-1, *[1] * len(shape))


def plain(high: jax.Array, low: jax.Array, tables: Tables) -> jax.Array:
    """Integers of random bits in plain JAX.

    Args:
      high, low: uint32 [N, ...], the words of 64 random bits a number. The first bit is the sign, 1 for +; t is the
        other 63, all of them flipped if that is 1.
      tables: of N rows.

    Returns:
      int32 [N, ...]: plus or minus the number of thresholds above t.
    """
    _, size, _ = tables.thresholds.shape
    bits = (size // _A_CELL).bit_length() - 1
    row = tables.row.reshape(-1, *[1] * (high.ndim - 1))
    positive = high >> np.uint32(31)
    flip = jnp.uint32(0) - positive
    high, low = high ^ flip, low ^ flip
    in_high = high != 0
    zeros = jax.lax.clz(jnp.where(in_high, high, low))
    # The 32 bits from the highest one on. A shift by 32, of high = 1 and of t = 0, gives 0.
    aligned = jnp.where(in_high, (high << zeros) | (low >> (np.uint32(32) - zeros)), low << zeros)
    mantissa = (aligned >> np.uint32(31 - bits)) & np.uint32((1 << bits) - 1)
    octave = zeros + jnp.where(in_high, np.uint32(0), np.uint32(32)) - np.uint32(1)
    cell = ((octave << np.uint32(bits)) | mantissa).astype(jnp.int32)
    above = tables.guide.at[row, cell].get(mode="promise_in_bounds").astype(jnp.int32)
    near = tables.thresholds.at[row, above].get(mode="promise_in_bounds")
    less = (high < near[..., 1]) | ((high == near[..., 1]) & (low < near[..., 0]))
    found = above + less.astype(jnp.int32)
    return jnp.where(positive == 1, found, -found)
