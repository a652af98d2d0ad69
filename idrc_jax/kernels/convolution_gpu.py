"""A 3x3 convolution on a GPU that normalises what it reads, and cuts and sums what it writes (Pallas by Triton).

Batch normalisation asks for sums over all of a convolution's outputs before the next may start; as passes of their own
these, what applies them and what cuts gradients move twice the bytes of the convolutions. Here sums are made of each
tile while it is in registers, and applied to what the next convolution loads. Pixels lie flat, [N * H * W, C]; a tile
is some of them in a row, whatever the images' size, and a tap is the same tile some pixels further on. Channels are
16, 32 or 64.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

_TILE = 4096  # numbers of a tile: pixels times channels
_WARPS = 4


class Affine(NamedTuple):
    """factor * (x - mean) + addend, of each channel: float32 [C]."""

    factor: jax.Array
    mean: jax.Array
    addend: jax.Array


class Cut(NamedTuple):
    """Where a gradient is zero, and what its products are of.

    Attributes:
      output: [P, C], of the convolution before.
      norm: that follows it; the gradient is zero where the result of that is not positive,
      joined: or where this is not, [P, C]: the normalised output with a shortcut, cut at zero. None without one.
    """

    output: jax.Array
    norm: Affine
    joined: jax.Array | None = None


class _Static(NamedTuple):
    height: int
    width: int
    pixels: int
    tile: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    relu: bool


def forward(
    x: jax.Array,
    kernel: jax.Array,
    size: tuple[int, int],
    norm: Affine | None = None,
    shortcut: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> dict[str, jax.Array]:
    """Convolve z = max(norm(x) + shortcut, 0), or x itself where there is no norm; see `moments`.

    Args:
      x, shortcut: [P, C], P pixels of images one after another.
      kernel: [3, 3, C, D], of x's type; sums are in float32.
      size: height and width of an image.
      norm: of x.
      interpret: whether Pallas interprets the kernel, on any machine.

    Returns:
      "convolved" [P, D]; "operand" z [P, C] if there is a norm; "partials" float32 [tiles, 2, D]: each tile's mean and
      sum of squares about it.
    """
    arrays = {"x": x} if norm is None else {"x": x, "affine": jnp.stack(norm)}
    if shortcut is not None:
        arrays["second"] = shortcut
    return _run(arrays, kernel, size, relu=True, sums=True, interpret=interpret)


def backward(
    gradient: jax.Array,
    output: jax.Array,
    kernel: jax.Array,
    size: tuple[int, int],
    factor: jax.Array,
    affine: Affine,
    shortcut: jax.Array | None = None,
    cut: Cut | None = None,
    *,
    interpret: bool = False,
) -> dict[str, jax.Array]:
    """Convolve dy = factor * gradient + affine(output), and cut the result plus the shortcut.

    Args:
      gradient, output: [P, C].
      kernel: [3, 3, C, D], turned as the gradient of pixels asks for.
      size: height and width of an image.
      factor: float32 [C].
      affine: of the output.
      shortcut: [P, D].
      cut: where it is cut; None cuts and sums nothing.
      interpret: as for `forward`.

    Returns:
      "convolved" [P, D]; "operand" dy [P, C]; with a cut "partials" float32 [tiles, 2, D]: each tile's sums of what is
      convolved, and of its products with the cut's output less the mean of that.
    """
    arrays = {"x": output, "affine": jnp.stack([*affine, factor]), "second": gradient}
    if shortcut is not None:
        arrays["shortcut"] = shortcut
    if cut is not None:
        arrays |= {"before": cut.output, "norm": jnp.stack(cut.norm)}
        if cut.joined is not None:
            arrays["joined"] = cut.joined
    return _run(arrays, kernel, size, relu=False, sums=cut is not None, interpret=interpret)


def moments(partials: jax.Array, pixels: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel, float32 [D], of what tiles say of theirs."""
    tiles = partials.shape[0]
    tile = _tile(partials.shape[2])
    counts = jnp.minimum(tile, pixels - tile * jnp.arange(tiles, dtype=jnp.int32)).astype(jnp.float32)[:, None]
    means, squares = partials[:, 0], partials[:, 1]
    mean = jnp.sum(counts * means, 0) / pixels
    return mean, jnp.sum(squares + counts * jnp.square(means - mean), 0) / pixels


def _tile(channels: int) -> int:
    return _TILE // channels


def _run(
    arrays: dict[str, jax.Array],
    kernel: jax.Array,
    size: tuple[int, int],
    *,
    relu: bool,
    sums: bool,
    interpret: bool,
) -> dict[str, jax.Array]:
    from jax.experimental.pallas import triton  # here, as a later JAX may not have it: whoever tries it goes without

    pixels, channels = arrays["x"].shape
    features = kernel.shape[3]
    tile = _tile(features)
    tiles = -(-pixels // tile)
    dtype = arrays["x"].dtype
    arrays = arrays | {"kernel": kernel.reshape(9, channels, features)}
    results = {"convolved": jax.ShapeDtypeStruct((pixels, features), dtype)}
    if "affine" in arrays:
        results["operand"] = jax.ShapeDtypeStruct((pixels, channels), dtype)
    if sums:
        results["partials"] = jax.ShapeDtypeStruct((tiles, 2, features), jnp.float32)
    static = _Static(*size, pixels, tile, tuple(arrays), tuple(results), relu)
    call = pl.pallas_call(
        partial(_kernel, static),
        out_shape=list(results.values()),
        grid=(tiles,),
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="convolution_gpu",
    )
    return dict(zip(results, call(*arrays.values()), strict=True))


def _kernel(static: _Static, *refs: Any) -> None:
    from jax.experimental.pallas import triton

    ref = dict(zip(static.inputs + static.outputs, refs, strict=True))
    number = pl.program_id(0)
    pixel = number * static.tile + jnp.arange(static.tile)
    inside = pixel < static.pixels
    features = ref["kernel"].shape[2]
    row, column = pixel // static.width % static.height, pixel % static.width

    def load(name: str, at: jax.Array, there: jax.Array) -> jax.Array:
        each = jnp.arange(ref[name].shape[1])[None]
        mask = jnp.broadcast_to(there[:, None], (static.tile, ref[name].shape[1]))
        return triton.load(ref[name].at[at[:, None], each], mask=mask, other=0).astype(jnp.float32)

    def store(name: str, value: jax.Array) -> None:
        each = jnp.arange(ref[name].shape[1])[None]
        mask = jnp.broadcast_to(inside[:, None], value.shape)
        triton.store(ref[name].at[pixel[:, None], each], value, mask=mask)

    def vector(name: str, at: int) -> jax.Array:
        return ref[name][at, :][None]

    total = jnp.zeros((static.tile, features), jnp.float32)
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        there = inside & (row + down >= 0) & (row + down < static.height)
        there &= (column + right >= 0) & (column + right < static.width)
        at = pixel + (down * static.width + right)
        value = load("x", at, there)
        if "affine" in ref:
            value = vector("affine", 0) * (value - vector("affine", 1)) + vector("affine", 2)
            if "second" in ref:
                second = load("second", at, there)
                value += second if static.relu else vector("affine", 3) * second
            if static.relu:
                value = jnp.where(value <= 0, 0.0, value)
            value = jnp.where(there[:, None], value, 0.0)  # the border is of zeros, whatever the norm makes of them
        value = value.astype(ref["x"].dtype)
        if tap == 4 and "operand" in ref:
            store("operand", value)
        total += jnp.dot(value, ref["kernel"][tap], preferred_element_type=jnp.float32)

    if "shortcut" in ref:
        total += load("shortcut", pixel, inside)
    before = None
    if "before" in ref:
        before = load("before", pixel, inside) - vector("norm", 1)
        joined = load("joined", pixel, inside) if "joined" in ref else vector("norm", 0) * before + vector("norm", 2)
        total = jnp.where(joined <= 0, 0.0, total)
    rounded = total.astype(ref["x"].dtype)
    store("convolved", rounded)
    if "partials" not in ref:
        return
    value = jnp.where(inside[:, None], rounded.astype(jnp.float32), 0.0)
    if before is None:
        mean = jnp.sum(value, 0) / jnp.minimum(static.tile, static.pixels - number * static.tile).astype(jnp.float32)
        squares = jnp.square(jnp.where(inside[:, None], value - mean[None], 0.0))
        ref["partials"][number, 0, :] = mean
        ref["partials"][number, 1, :] = jnp.sum(squares, 0)
    else:
        ref["partials"][number, 0, :] = jnp.sum(value, 0)
        ref["partials"][number, 1, :] = jnp.sum(value * before, 0)
