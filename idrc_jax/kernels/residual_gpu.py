"""A chain of residual blocks in training on a GPU, by `convolution_gpu`, with its gradients.

Its twin is a chain of `models.resnet.BasicBlock` that change no shape, with `train=True`. Each block is four calls
forward and backward; gradients of weights are XLA's, of what those calls store. For a program of one device.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from idrc_jax.kernels import convolution_gpu
from idrc_jax.kernels.convolution_gpu import Affine, Cut

_EPSILON = 1e-5


class Layer(NamedTuple):
    """A convolution [3, 3, C, C] and the scale and bias [C] of its batch normalisation, float32."""

    kernel: jax.Array
    scale: jax.Array
    bias: jax.Array


Weights = tuple[jax.Array, jax.Array, jax.Array]  # of a Layer


class Statistics(NamedTuple):
    """Of a batch, before normalisation: float32 [C]."""

    mean: jax.Array
    variance: jax.Array


Blocks = tuple[tuple[Layer, Layer], ...]
Found = tuple[tuple[Statistics, Statistics], ...]


class _Kept(NamedTuple):
    """Of one block: its input, what its convolutions give, and the second one's operand; [P, C]."""

    x: jax.Array
    first: jax.Array
    middle: jax.Array
    second: jax.Array


def blocks(x: jax.Array, layers: Sequence[Sequence[Weights]], *, interpret: bool = False) -> tuple[jax.Array, Found]:
    """Compute a chain of blocks, [N, H, W, C] -> [N, H, W, C], and its batch statistics, which have no gradient.

    Args:
      x: in the compute type; 16, 32 or 64 channels.
      layers: two `Layer`s of each block.
      interpret: whether Pallas interprets the kernel, on any machine.
    """
    made: Any = _chain(interpret, x, tuple((Layer(*one), Layer(*two)) for one, two in layers))
    out, found = made
    return out, jax.lax.stop_gradient(found)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chain(interpret: bool, x: jax.Array, layers: Blocks) -> tuple[jax.Array, Found]:
    return _forward(interpret, x, layers)[0]


# The chain's output, what each block keeps and finds, and its layers.
_Residuals = tuple[jax.Array, list[_Kept], Found, Blocks]


def _forward(interpret: bool, x: jax.Array, layers: Blocks) -> tuple[tuple[jax.Array, Found], _Residuals]:
    pixels = x.size // x.shape[3]
    convolve = partial(convolution_gpu.forward, size=(x.shape[1], x.shape[2]), interpret=interpret)
    flat = x.reshape(pixels, -1)
    kept, found = [], []
    norm = None  # of the block before
    for one, two in layers:
        if norm is None:
            made = convolve(flat, one.kernel.astype(x.dtype))
        else:
            made = convolve(kept[-1].second, one.kernel.astype(x.dtype), norm=norm, shortcut=flat)
            flat = made["operand"]
        first, at_first = made["convolved"], Statistics(*convolution_gpu.moments(made["partials"], pixels))
        made = convolve(first, two.kernel.astype(x.dtype), norm=_normalise(one, at_first))
        second, at_second = made["convolved"], Statistics(*convolution_gpu.moments(made["partials"], pixels))
        kept.append(_Kept(flat, first, made["operand"], second))
        found.append((at_first, at_second))
        norm = _normalise(two, at_second)
    joined = _apply(_normalise(layers[-1][1], found[-1][1]), kept[-1].second) + flat.astype(jnp.float32)
    out = jnp.where(joined <= 0, 0.0, joined).astype(x.dtype).reshape(x.shape)
    return (out, tuple(found)), (out, kept, tuple(found), layers)


def _backward(interpret: bool, residuals: _Residuals, cotangents: tuple[jax.Array, Found]) -> tuple[jax.Array, Blocks]:
    out, kept, found, layers = residuals
    pixels, dtype = out.size // out.shape[3], out.dtype
    convolve = partial(convolution_gpu.backward, size=(out.shape[1], out.shape[2]), interpret=interpret)
    gradient = jnp.where(out <= 0, 0, cotangents[0]).reshape(pixels, -1)
    wide = gradient.astype(jnp.float32)
    centred = kept[-1].second.astype(jnp.float32) - found[-1][1].mean
    sums = jnp.stack([jnp.sum(wide, 0), jnp.sum(wide * centred, 0)])
    gradients = []
    for number in reversed(range(len(layers))):
        (one, two), (at_first, at_second), held = layers[number], found[number], kept[number]
        factor, affine, to_two = _of_norm(two, at_second, sums, pixels)
        made = convolve(
            gradient, held.second, _turned(two, dtype), factor=factor, affine=affine,
            cut=Cut(held.first, _normalise(one, at_first)),
        )  # fmt: skip
        to_two = to_two._replace(kernel=_of_kernel(held.middle, made["operand"], out.shape))
        factor, affine, to_one = _of_norm(one, at_first, jnp.sum(made["partials"], 0), pixels)
        cut = None
        if number:
            cut = Cut(kept[number - 1].second, _normalise(layers[number - 1][1], found[number - 1][1]), held.x)
        made = convolve(
            made["convolved"], held.first, _turned(one, dtype), factor=factor, affine=affine, shortcut=gradient, cut=cut
        )
        to_one = to_one._replace(kernel=_of_kernel(held.x, made["operand"], out.shape))
        gradients.append((to_one, to_two))
        gradient = made["convolved"]
        if cut:
            sums = jnp.sum(made["partials"], 0)
    return gradient.reshape(out.shape), tuple(reversed(gradients))


_chain.defvjp(_forward, _backward)


def _normalise(layer: Layer, statistics: Statistics) -> Affine:
    return Affine(layer.scale * jax.lax.rsqrt(statistics.variance + _EPSILON), statistics.mean, layer.bias)


def _apply(norm: Affine, x: jax.Array) -> jax.Array:
    return norm.factor * (x.astype(jnp.float32) - norm.mean) + norm.addend


def _of_norm(layer: Layer, statistics: Statistics, sums: jax.Array, pixels: int) -> tuple[jax.Array, Affine, Layer]:
    """How a gradient g behind a normalisation passes it, by sums of g and of its products with the centred input.

    Returns:
      (factor, affine): factor * g + affine(input) is the gradient before it; and the gradients of scale and bias.
    """
    spread = jax.lax.rsqrt(statistics.variance + _EPSILON)
    factor = layer.scale * spread
    total, product = sums
    affine = Affine(-factor * jnp.square(spread) * product / pixels, statistics.mean, -factor * total / pixels)
    return factor, affine, Layer(layer.kernel, spread * product, total)


def _turned(layer: Layer, dtype: jnp.dtype) -> jax.Array:
    """The kernel by which a gradient of outputs gives one of inputs."""
    return layer.kernel[::-1, ::-1].swapaxes(2, 3).astype(dtype)


def _of_kernel(x: jax.Array, gradient: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The gradient of a kernel [3, 3, C, C], float32, of a convolution of x with that of its output; both [P, C]."""

    def convolve(kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x.reshape(shape), kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers
        )

    kernel = jax.ShapeDtypeStruct((3, 3, shape[3], shape[3]), x.dtype)
    (found,) = jax.linear_transpose(convolve, kernel)(gradient.reshape(shape))
    return found.astype(jnp.float32)
