"""PyTorch's layers in JAX: matrix products, convolutions, normalisations, pools, changes of size, attention.

Those that are used most take and make `Pixels`; the others are for arrays as PyTorch has them. Arguments are those of
PyTorch's core ATen operations.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.interop.pixels import Pixels, Tensor, channels_first, channels_last

Shape = Sequence[int]
_Sides = int | Shape  # of height and width, or one of both


def addmm(c: jax.Array, a: jax.Array, b: jax.Array, beta: float = 1, alpha: float = 1) -> jax.Array:
    """Multiply matrices and add: alpha * a @ b + beta * c."""
    product = a @ b
    return (product if alpha == 1 else alpha * product) + (c if beta == 1 else beta * c)


def convolution(
    x: Tensor,
    kernel: jax.Array,
    bias: jax.Array | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    transposed: bool,
    output_padding: Shape,
    groups: int,
) -> Tensor:
    """Convolve images, or signals of one or three axes, in groups of channels."""
    if transposed:
        raise ValueError("Expected convolutions that are not transposed, got a transposed one.")
    space = "XYZ"[: kernel.ndim - 2]
    stride, padding, dilation = (_each(one, len(space)) for one in (stride, padding, dilation))
    made = jax.lax.conv_general_dilated(
        channels_last(x),
        jnp.moveaxis(kernel, (0, 1), (-1, -2)),
        stride,
        [(one, one) for one in padding],
        rhs_dilation=dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
    )
    return channels_first(made if bias is None else made + bias)


def _along_channels(value: jax.Array, like: jax.Array) -> jax.Array:
    return value.reshape(-1, *[1] * (like.ndim - 2))


def batch_norm(
    x: Tensor,
    weight: jax.Array | None,
    bias: jax.Array | None,
    mean: jax.Array,
    variance: jax.Array,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, None, None]:
    """Normalise each channel by running statistics, as in inference."""
    scale = jax.lax.rsqrt(variance + epsilon) * (1 if weight is None else weight)
    if isinstance(x, Pixels):
        made = (x.stored - mean) * scale
        return Pixels(made if bias is None else made + bias), None, None
    made = (x - _along_channels(mean, x)) * _along_channels(scale, x)
    return made if bias is None else made + _along_channels(bias, x), None, None


def _normalised(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    mean = jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def layer_norm(
    x: jax.Array, shape: Shape, weight: jax.Array | None, bias: jax.Array | None, epsilon: float
) -> tuple[jax.Array, None, None]:
    """Normalise over the last axes."""
    made = _normalised(x, tuple(range(-len(shape), 0)), epsilon)
    made = made if weight is None else made * weight
    return made if bias is None else made + bias, None, None


def group_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    count: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> tuple[jax.Array, None, None]:
    """Normalise over each group of channels."""
    made = _normalised(x.reshape(count, groups, -1), (2,), epsilon).reshape(x.shape)
    made = made if weight is None else made * _along_channels(weight, x)
    return made if bias is None else made + _along_channels(bias, x), None, None


def _each(values: int | Shape, count: int) -> tuple[int, ...]:
    """One value for each axis in space: one alone serves all."""
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * count if len(values) == 1 else values


def _beyond(size: int, window: int, stride: int, pad: int, dilation: int) -> int:
    """Rows that `ceil_mode` adds at the far end: the last window must start inside the image or the near padding."""
    extent = dilation * (window - 1) + 1
    count = math.ceil((size + 2 * pad - extent) / stride) + 1
    count -= (count - 1) * stride >= size + pad
    return max(0, (count - 1) * stride + extent - size - 2 * pad)


def _windows(
    x: Tensor, kernel: _Sides, stride: _Sides, padding: _Sides, dilation: _Sides, ceil_mode: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], list[tuple[int, int]], tuple[int, ...]]:
    """Window, stride, dilation, paddings of height and width, and how much of the far ones is due to `ceil_mode`."""
    window, pad, spread = (_each(one, 2) for one in (kernel, padding, dilation))
    step = _each(stride, 2) if stride else window
    sizes = zip(x.shape[2:], window, step, pad, spread, strict=True)
    beyond = tuple(_beyond(*one) for one in sizes) if ceil_mode else (0, 0)
    return window, step, spread, [(one, one + more) for one, more in zip(pad, beyond, strict=True)], beyond


def _largest(
    x: jax.Array, window: Shape, stride: Shape, paddings: list[tuple[int, int]], dilation: Shape = (1, 1)
) -> jax.Array:
    ends = [(0, 0), *paddings, (0, 0)]
    sizes, steps, spread = ((1, *one, 1) for one in (window, stride, dilation))
    made = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, sizes, steps, ends, window_dilation=spread)
    if any(step < size for step, size in zip(stride, window, strict=True)):
        return made
    # Windows that do not overlap are a reduction to XLA, as in `torch_operators`.
    lost = jax.lax.reduce_window(x != x, False, jax.lax.bitwise_or, sizes, steps, ends, window_dilation=spread)
    return jnp.where(lost, jnp.nan, made)


def max_pool(
    x: Tensor, kernel: _Sides, stride: _Sides = (), padding: _Sides = 0, dilation: _Sides = 1,
    ceil_mode: bool = False, reduce: Callable[..., jax.Array] = _largest,
) -> tuple[Tensor, None]:  # fmt: skip
    """Take the largest of each window, by `reduce` where windows have no gaps."""
    window, step, spread, paddings, _ = _windows(x, kernel, stride, padding, dilation, ceil_mode)
    if set(spread) == {1} and x.dtype == jnp.float32:
        return channels_first(reduce(channels_last(x), window, step, paddings)), None
    return channels_first(_largest(channels_last(x), window, step, paddings, spread)), None


def average_pool(
    x: Tensor,
    kernel: _Sides,
    stride: _Sides = (),
    padding: _Sides = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average each window."""
    window, step, _, paddings, beyond = _windows(x, kernel, stride, padding, 1, ceil_mode)

    def sums(values: jax.Array, pads: list[tuple[int, int]]) -> jax.Array:
        ends = [(0, 0), *pads, (0, 0)]
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, *window, 1), (1, *step, 1), ends)

    total = sums(channels_last(x), paddings)
    if divisor_override:
        return channels_first(total / divisor_override)
    counted, outside = x.shape[2:], paddings
    if count_include_pad:
        counted = [side + 2 * near for side, (near, _) in zip(counted, paddings, strict=True)]
        outside = [(0, more) for more in beyond]
    return channels_first(total / sums(jnp.ones((1, *counted, 1), x.dtype), outside))


def adaptive_average_pool(x: Tensor, size: Shape) -> Pixels:
    """Average windows that divide the image into so many rows and columns."""

    def averages(inputs: int, outputs: int) -> np.ndarray:
        matrix = np.zeros((outputs, inputs), np.float32)
        for row in range(outputs):
            start, end = row * inputs // outputs, -(-(row + 1) * inputs // outputs)
            matrix[row, start:end] = 1 / (end - start)
        return matrix

    rows, columns = averages(x.shape[2], size[0]), averages(x.shape[3], size[1])
    return Pixels(jnp.einsum("nhwc,ih,jw->nijc", channels_last(x), rows, columns, precision="highest"))


def bilinear(x: jax.Array, size: Shape | None, align_corners: bool, scale_factors: Sequence[float] | None) -> jax.Array:
    """Change height and width by bilinear interpolation."""
    if align_corners:
        raise ValueError("Expected upsample_bilinear2d without align_corners, got it.")

    def weights(inputs: int, outputs: int, step: float) -> np.ndarray:
        half = np.float32(0.5)
        places = np.clip((np.arange(outputs, dtype=np.float32) + half) * np.float32(step) - half, 0, inputs - 1)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(inputs, dtype=np.float32)))

    rows, columns = (weights(*one) for one in _steps(x, size, scale_factors))
    return jnp.einsum("nchw,ih,jw->ncij", x, rows, columns, precision="highest")


def nearest(x: jax.Array, size: Shape | None, scale_factors: Sequence[float] | None) -> jax.Array:
    """Change height and width by the nearest pixel."""

    def places(inputs: int, outputs: int, step: float) -> np.ndarray:
        step = 0.5 if outputs == 2 * inputs else step  # whatever the factor
        return np.minimum((np.arange(outputs, dtype=np.float32) * np.float32(step)).astype(int), inputs - 1)

    rows, columns = (places(*one) for one in _steps(x, size, scale_factors))
    return x[:, :, rows][..., columns]


def _steps(x: jax.Array, size: Shape | None, factors: Sequence[float] | None) -> list[tuple[int, int, float]]:
    """Of height and width: inputs, outputs, and the inputs from one output to the next, as PyTorch counts them."""
    sides = x.shape[2:]
    if size is None:
        size = [int(side * factor) for side, factor in zip(sides, factors or (), strict=True)]
        steps = [1 / factor for factor in factors or ()]
    else:
        steps = [side / made for side, made in zip(sides, size, strict=True)]
    return [(side, made, 1 if made == side else step) for side, made, step in zip(sides, size, steps, strict=True)]


def softmax(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    """Compute the softmax over one axis."""
    return jax.nn.softmax(x, axis=dim)


def log_softmax(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    """Compute the logarithm of the softmax over one axis."""
    return jax.nn.log_softmax(x, axis=dim)


def attention_scale(queries: Tensor, scale: float | None) -> float:
    """Choose the factor of the scores, by default one over the root of a query's numbers."""
    return 1 / math.sqrt(queries.shape[-1]) if scale is None else scale


def attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    """Compute scaled dot-product attention [..., queries, numbers]; a query whose tokens are all masked gets zeros."""
    if dropout:
        raise ValueError(f"Expected attention without dropout in inference, got dropout_p = {dropout}.")
    if enable_gqa:
        keys, values = (jnp.repeat(one, queries.shape[-3] // one.shape[-3], axis=-3) for one in (keys, values))
    scores = attention_scale(queries, scale) * (queries @ jnp.swapaxes(keys, -1, -2))
    if is_causal:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask
        nothing = jnp.all(scores == -jnp.inf, axis=-1, keepdims=True)
        scores = jnp.where(nothing, 0.0, scores)  # its softmax is no number
        return jnp.where(nothing, 0.0, jax.nn.softmax(scores, axis=-1)) @ values
    return jax.nn.softmax(scores, axis=-1) @ values
