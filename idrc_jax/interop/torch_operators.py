"""PyTorch's core ATen operations in JAX: those that convolutional networks and vision transformers are made of.

`OPERATIONS` maps the name of an overload ("add.Tensor") to a function of the same arguments. What a convolution or a
pool makes is a `Pixels`: [N, C, H, W] to all who ask, stored as [N, H, W, C], which is fast. `call` hands it to
operations that know it and to those that take it in any order of the axes; all others get the array as PyTorch has it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.kernels.activations import relu

Shape = Sequence[int]
_STORED = (0, 2, 3, 1)  # PyTorch's axes in the order in which they are stored
_PLACES = (0, 3, 1, 2)  # where each of PyTorch's axes is stored


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
    """Images [N, C, H, W] whose channels lie together."""

    stored: jax.Array  # [N, H, W, C]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape[place] for place in _PLACES)

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> Any:
        return self.stored.dtype


def as_torch(x: Any) -> Any:
    """`Pixels` as an array [N, C, H, W], inside tuples too; all else as it is."""
    if isinstance(x, Pixels):
        return jnp.transpose(x.stored, _PLACES)
    return tuple(as_torch(one) for one in x) if isinstance(x, tuple) else x


def call(name: str, run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The result of the operation of that name, which `run` does."""
    if name in _KNOW_PIXELS or name.startswith("operator."):
        return run(*arguments, **options)
    by_place = _BY_PLACE.get(name)
    if by_place is not None:
        made = by_place(run, arguments, options)
        if made is not None:
            return made
    return run(*(as_torch(one) for one in arguments), **{key: as_torch(value) for key, value in options.items()})


def dtype_of(name: str) -> np.dtype:
    """The JAX type of a `torch.dtype` by its name; 64 bits become 32."""
    short = name.removeprefix("torch.")
    return np.dtype(jnp.dtype({"float64": "float32", "int64": "int32", "uint64": "uint32"}.get(short, short)))


# Shapes --------------------------------------------------------------------------------------------------------------


def _expand(x: jax.Array, sizes: Shape, implicit: bool = False) -> jax.Array:
    missing = len(sizes) - x.ndim
    kept = [x.shape[axis - missing] if size == -1 else size for axis, size in enumerate(sizes)]
    return jnp.broadcast_to(x, kept)


def _at(x: jax.Array, axis: int, index: Any) -> tuple[Any, ...]:
    return (slice(None),) * (axis % x.ndim) + (index,)


def _slice(x: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> jax.Array:
    return x[_at(x, dim, slice(start, end, step))]


def _slice_scatter(
    x: jax.Array, source: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> jax.Array:
    return x.at[_at(x, dim, slice(start, end, step))].set(source)


def _squeeze(x: jax.Array, dim: int | Shape | None = None) -> jax.Array:
    axes = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(x, tuple(axis for axis in axes if x.shape[axis] == 1))


def _index(x: jax.Array, indices: Sequence[jax.Array | None]) -> jax.Array:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _split_with_sizes(x: jax.Array, sizes: Shape, dim: int = 0) -> list[jax.Array]:
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), axis=dim)


def _split(x: jax.Array, size: int, dim: int = 0) -> list[jax.Array]:
    return jnp.split(x, list(range(size, x.shape[dim], size)), axis=dim)


def _pad(x: jax.Array, pad: Shape, value: float = 0.0) -> jax.Array:
    """Pairs of (before, after) from the last axis on; negative ones crop."""
    pairs = [(before, after, 0) for before, after in zip(pad[::2], pad[1::2], strict=True)]
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0)] * (x.ndim - len(pairs)) + pairs[::-1])


def _as_strided(x: jax.Array, size: Shape, stride: Shape, offset: int | None = None) -> jax.Array:
    """Of a contiguous x."""
    places = sum(np.ix_(*[np.arange(count) * step for count, step in zip(size, stride, strict=True)]), offset or 0)
    return x.reshape(-1)[places]


def _repeat(x: jax.Array, repeats: Shape) -> jax.Array:
    return jnp.tile(x, repeats)


# New tensors ---------------------------------------------------------------------------------------------------------


def _full(size: Shape, value: Any, dtype: Any = None) -> jax.Array:
    return jnp.full(size, value, dtype)


def _full_like(x: jax.Array, value: Any, dtype: Any = None) -> jax.Array:
    return jnp.full(x.shape, value, dtype or x.dtype)


def _arange(start: Any, end: Any, step: Any = 1, dtype: Any = None) -> jax.Array:
    return jnp.arange(start, end, step, dtype=dtype)


def _to_copy(x: jax.Array, dtype: Any = None, non_blocking: bool = False) -> jax.Array:
    return x if dtype is None else x.astype(dtype)


def _copy(x: jax.Array, source: jax.Array, non_blocking: bool = False) -> jax.Array:
    return jnp.broadcast_to(source, x.shape).astype(x.dtype)


# Elementwise ---------------------------------------------------------------------------------------------------------


def _add(x: Any, y: Any, alpha: Any = 1) -> jax.Array:
    return jnp.add(x, y if alpha == 1 else alpha * y)


def _sub(x: Any, y: Any, alpha: Any = 1) -> jax.Array:
    return jnp.subtract(x, y if alpha == 1 else alpha * y)


def _div(x: Any, y: Any, rounding_mode: str | None = None) -> jax.Array:
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    return jnp.trunc(jnp.divide(x, y)) if rounding_mode == "trunc" else jnp.divide(x, y)


def _keeping_nan(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """An elementwise function whose result is no number where an argument is none; XLA's maximum alone may lose it."""

    def run(*arguments: Any, **options: Any) -> jax.Array:
        made = function(*arguments, **options)
        for one in arguments:
            if isinstance(one, jax.Array):
                made = jnp.where(one != one, one, made)
        return made

    return run


def _clamp(x: jax.Array, low: Any = None, high: Any = None) -> jax.Array:
    return jnp.clip(x, low, high)


def _hardtanh(x: jax.Array, low: float = -1.0, high: float = 1.0) -> jax.Array:
    return jnp.clip(x, low, high)


def _leaky_relu(x: jax.Array, slope: float = 0.01) -> jax.Array:
    return jnp.where(x > 0, x, slope * x)


def _elu(x: jax.Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> jax.Array:
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x) * input_scale))


def _gelu(x: jax.Array, approximate: str = "none") -> jax.Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


# Reductions ----------------------------------------------------------------------------------------------------------


def _axes(dim: int | Shape | None) -> int | tuple[int, ...] | None:
    return dim if dim is None or isinstance(dim, int) else tuple(dim) or None


def _reduction(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def reduce(x: jax.Array, dim: int | Shape | None = None, keepdim: bool = False, dtype: Any = None) -> jax.Array:
        return function(x if dtype is None else x.astype(dtype), axis=_axes(dim), keepdims=keepdim)

    return reduce


def _extreme(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A maximum or minimum that is no number where one of the numbers is none."""

    def extreme(x: jax.Array, axis: Any, keepdims: bool) -> jax.Array:
        made = function(x, axis=axis, keepdims=keepdims)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return made
        return jnp.where(jnp.any(x != x, axis=axis, keepdims=keepdims), jnp.nan, made)

    return _reduction(extreme)


def _variance(
    x: jax.Array, dim: int | Shape | None = None, correction: int | None = None, keepdim: bool = False
) -> jax.Array:
    return jnp.var(x, axis=_axes(dim), ddof=1 if correction is None else correction, keepdims=keepdim)


def _vector_norm(
    x: jax.Array, order: float = 2, dim: int | Shape | None = None, keepdim: bool = False, dtype: Any = None
) -> jax.Array:
    if order != 2:
        raise ValueError(f"Expected linalg_vector_norm of order 2, got {order}.")
    x = x if dtype is None else x.astype(dtype)
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=_axes(dim), keepdims=keepdim))


def _softmax(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    return jax.nn.softmax(x, axis=dim)


def _log_softmax(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    return jax.nn.log_softmax(x, axis=dim)


def attention_scale(queries: jax.Array, scale: float | None) -> float:
    """Of the scores, by default one over the root of a query's numbers."""
    return 1 / math.sqrt(queries.shape[-1]) if scale is None else scale


def _attention(
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


# Layers --------------------------------------------------------------------------------------------------------------


def _addmm(c: jax.Array, a: jax.Array, b: jax.Array, beta: Any = 1, alpha: Any = 1) -> jax.Array:
    product = a @ b
    return (product if alpha == 1 else alpha * product) + (c if beta == 1 else beta * c)


def _channels_last(x: Any) -> jax.Array:
    return x.stored if isinstance(x, Pixels) else jnp.moveaxis(x, 1, -1)


def _channels_first(x: jax.Array) -> Any:
    return Pixels(x) if x.ndim == 4 else jnp.moveaxis(x, -1, 1)


def _convolution(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    transposed: bool,
    output_padding: Shape,
    groups: int,
) -> jax.Array:
    if transposed:
        raise ValueError("Expected convolutions that are not transposed, got a transposed one.")
    space = "XYZ"[: kernel.ndim - 2]
    stride, padding, dilation = (_each(one, len(space)) for one in (stride, padding, dilation))
    made = jax.lax.conv_general_dilated(
        _channels_last(x),
        jnp.moveaxis(kernel, (0, 1), (-1, -2)),
        stride,
        [(one, one) for one in padding],
        rhs_dilation=dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
    )
    return _channels_first(made if bias is None else made + bias)


def _along_channels(value: jax.Array, like: Any) -> jax.Array:
    return value.reshape(-1, *[1] * (like.ndim - 2))


def _batch_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    mean: jax.Array,
    variance: jax.Array,
    momentum: float,
    epsilon: float,
) -> tuple[Any, None, None]:
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


def _layer_norm(
    x: jax.Array, shape: Shape, weight: jax.Array | None, bias: jax.Array | None, epsilon: float
) -> tuple[jax.Array, None, None]:
    made = _normalised(x, tuple(range(-len(shape), 0)), epsilon)
    made = made if weight is None else made * weight
    return made if bias is None else made + bias, None, None


def _group_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    count: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> tuple[jax.Array, None, None]:
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
    x: jax.Array, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
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
    # Windows that do not overlap are a reduction to XLA, as in `_extreme`.
    lost = jax.lax.reduce_window(x != x, False, jax.lax.bitwise_or, sizes, steps, ends, window_dilation=spread)
    return jnp.where(lost, jnp.nan, made)


def max_pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    reduce: Callable[..., jax.Array] = _largest,
) -> tuple[Any, None]:  # fmt: skip
    """The pool, by `reduce` where its windows have no gaps."""
    window, step, spread, paddings, _ = _windows(x, kernel, stride, padding, dilation, ceil_mode)
    if set(spread) == {1} and x.dtype == jnp.float32:
        return _channels_first(reduce(_channels_last(x), window, step, paddings)), None
    return _channels_first(_largest(_channels_last(x), window, step, paddings, spread)), None


def _average_pool(
    x: jax.Array,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> jax.Array:
    window, step, _, paddings, beyond = _windows(x, kernel, stride, padding, 1, ceil_mode)

    def sums(values: jax.Array, pads: list[tuple[int, int]]) -> jax.Array:
        ends = [(0, 0), *pads, (0, 0)]
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, *window, 1), (1, *step, 1), ends)

    total = sums(_channels_last(x), paddings)
    if divisor_override:
        return _channels_first(total / divisor_override)
    counted, outside = x.shape[2:], paddings
    if count_include_pad:
        counted = [side + 2 * near for side, (near, _) in zip(counted, paddings, strict=True)]
        outside = [(0, more) for more in beyond]
    return _channels_first(total / sums(jnp.ones((1, *counted, 1), x.dtype), outside))


def _adaptive_average_pool(x: Any, size: Shape) -> Pixels:
    def averages(inputs: int, outputs: int) -> np.ndarray:
        matrix = np.zeros((outputs, inputs), np.float32)
        for row in range(outputs):
            start, end = row * inputs // outputs, -(-(row + 1) * inputs // outputs)
            matrix[row, start:end] = 1 / (end - start)
        return matrix

    rows, columns = averages(x.shape[2], size[0]), averages(x.shape[3], size[1])
    return Pixels(jnp.einsum("nhwc,ih,jw->nijc", _channels_last(x), rows, columns, precision="highest"))


def _bilinear(
    x: jax.Array, size: Shape | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> jax.Array:
    if align_corners:
        raise ValueError("Expected upsample_bilinear2d without align_corners, got it.")
    return jax.image.resize(x, (*x.shape[:2], *_size(x, size, scale_factors)), "bilinear", antialias=False)


def _nearest(x: jax.Array, size: Shape | None, scale_factors: Sequence[float] | None) -> jax.Array:
    height, width = _size(x, size, scale_factors)
    rows, columns = np.arange(height) * x.shape[2] // height, np.arange(width) * x.shape[3] // width
    return x[:, :, rows][..., columns]


def _size(x: jax.Array, size: Shape | None, factors: Sequence[float] | None) -> Shape:
    if size is not None:
        return size
    return [math.floor(side * factor) for side, factor in zip(x.shape[2:], factors or (), strict=True)]


def _same(x: Any, **options: Any) -> Any:
    return x


def _nothing(*arguments: Any, **options: Any) -> None:
    pass


_UNARY = {
    "abs": jnp.abs, "neg": jnp.negative, "exp": jnp.exp, "expm1": jnp.expm1, "log": jnp.log, "log1p": jnp.log1p,
    "sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "reciprocal": jnp.reciprocal, "sin": jnp.sin, "cos": jnp.cos,
    "tanh": jnp.tanh, "erf": jax.lax.erf, "sigmoid": jax.nn.sigmoid, "relu": relu, "silu": jax.nn.silu,
    "hardswish": jax.nn.hard_swish, "hardsigmoid": jax.nn.hard_sigmoid, "floor": jnp.floor, "ceil": jnp.ceil,
    "round": jnp.round, "sign": jnp.sign, "logical_not": jnp.logical_not, "bitwise_not": jnp.bitwise_not,
    "clone": _same, "alias": _same, "detach": _same, "lift_fresh_copy": _same,
}  # fmt: skip
_BINARY = {
    "add": _add, "sub": _sub, "mul": jnp.multiply, "div": _div, "eq": jnp.equal, "ne": jnp.not_equal, "lt": jnp.less,
    "le": jnp.less_equal, "gt": jnp.greater, "ge": jnp.greater_equal, "fmod": jnp.fmod, "remainder": jnp.remainder,
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or,
}  # fmt: skip
OPERATIONS: dict[str, Callable[..., Any]] = {
    **{f"{name}.default": function for name, function in _UNARY.items()},
    **{f"{name}.{kind}": function for name, function in _BINARY.items() for kind in ("Tensor", "Scalar")},
    "div.Tensor_mode": _div, "pow.Tensor_Scalar": jnp.power, "pow.Tensor_Tensor": jnp.power,
    "maximum.default": _keeping_nan(jnp.maximum), "minimum.default": _keeping_nan(jnp.minimum),
    "logical_and.default": jnp.logical_and,
    "logical_or.default": jnp.logical_or, "where.self": jnp.where, "clamp.default": _keeping_nan(_clamp),
    "clamp.Tensor": _keeping_nan(_clamp),
    "hardtanh.default": _hardtanh, "leaky_relu.default": _leaky_relu, "elu.default": _elu, "gelu.default": _gelu,
    "sum.default": _reduction(jnp.sum), "sum.dim_IntList": _reduction(jnp.sum), "mean.default": _reduction(jnp.mean),
    "mean.dim": _reduction(jnp.mean), "amax.default": _extreme(jnp.max), "amin.default": _extreme(jnp.min),
    "any.dim": _reduction(jnp.any), "any.dims": _reduction(jnp.any), "var.correction": _variance,
    "linalg_vector_norm.default": _vector_norm, "_softmax.default": _softmax, "_log_softmax.default": _log_softmax,
    "scaled_dot_product_attention.default": _attention,
    "view.default": jnp.reshape, "_unsafe_view.default": jnp.reshape, "permute.default": jnp.transpose,
    "expand.default": _expand, "unsqueeze.default": jnp.expand_dims, "squeeze.dim": _squeeze, "squeeze.dims": _squeeze,
    "squeeze.default": _squeeze, "slice.Tensor": _slice, "slice_scatter.default": _slice_scatter,
    "select.int": lambda x, dim, index: x[_at(x, dim, index)], "index.Tensor": _index,
    "index_select.default": lambda x, dim, index: jnp.take(x, index, axis=dim),
    "embedding.default": lambda weight, index, padding=-1, *_: jnp.take(weight, index, axis=0),
    "cat.default": lambda tensors, dim=0: jnp.concatenate(tensors, axis=dim), "flip.default": jnp.flip,
    "split_with_sizes.default": _split_with_sizes, "split.Tensor": _split, "constant_pad_nd.default": _pad,
    "repeat.default": _repeat, "as_strided.default": _as_strided, "full.default": _full,
    "full_like.default": _full_like, "arange.start_step": _arange,
    "scalar_tensor.default": jnp.asarray, "_to_copy.default": _to_copy, "copy.default": _copy,
    "_assert_tensor_metadata.default": _nothing, "sym_size.int": lambda x, dim: x.shape[dim], "mm.default": jnp.matmul,
    "bmm.default": jnp.matmul, "addmm.default": _addmm, "convolution.default": _convolution,
    "_native_batch_norm_legit_no_training.default": _batch_norm, "native_layer_norm.default": _layer_norm,
    "native_group_norm.default": _group_norm, "max_pool2d_with_indices.default": max_pool,
    "avg_pool2d.default": _average_pool, "_adaptive_avg_pool2d.default": _adaptive_average_pool,
    "upsample_bilinear2d.vec": _bilinear, "upsample_nearest2d.vec": _nearest,
}  # fmt: skip


# Pixels --------------------------------------------------------------------------------------------------------------


def _elementwise(run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Any function of numbers that broadcasts: all arguments in the order in which pixels are stored."""
    if not any(isinstance(one, Pixels) for one in arguments) or any(getattr(one, "ndim", 0) > 4 for one in arguments):
        return None

    def stored(x: Any) -> Any:
        if isinstance(x, Pixels):
            return x.stored
        if getattr(x, "ndim", 0) == 0:
            return x
        return jnp.transpose(x.reshape((1,) * (4 - x.ndim) + x.shape), _STORED)

    return Pixels(run(*(stored(one) for one in arguments), **options))


def _reduce_stored(run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Over height and width, or over channels with the axis kept."""
    x = arguments[0]
    dim: Any = arguments[1] if len(arguments) > 1 else options.get("dim")
    keepdim = arguments[2] if len(arguments) > 2 else options.get("keepdim", False)
    if not isinstance(x, Pixels) or dim is None:
        return None
    axes = {axis % 4 for axis in ((dim,) if isinstance(dim, int) else dim)}
    if not axes or (not keepdim and axes != {2, 3}):
        return None
    others = {key: value for key, value in options.items() if key not in ("dim", "keepdim")}
    made = run(x.stored, tuple(_PLACES[axis] for axis in sorted(axes)), keepdim, *arguments[3:], **others)
    return Pixels(made) if keepdim else made


def _permute_stored(run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    x, dims = arguments
    dims = tuple(axis % len(dims) for axis in dims)
    if isinstance(x, Pixels):
        return jnp.transpose(x.stored, [_PLACES[axis] for axis in dims])
    return Pixels(x) if dims == _PLACES else None


def _view_stored(run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Of images of one pixel, whose order is the same."""
    x, size = arguments
    return run(x.stored, size) if isinstance(x, Pixels) and x.shape[2:] == (1, 1) and len(size) == 2 else None


def _concatenate_stored(run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    tensors: Any = arguments[0]
    dim = arguments[1] if len(arguments) > 1 else options.get("dim", 0)
    if not any(isinstance(one, Pixels) for one in tensors):
        return None
    return Pixels(run(tuple(_channels_last(one) for one in tensors), _PLACES[dim % 4]))


def _slice_stored(run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    x, dim, *rest = (*arguments, *((0,) if len(arguments) == 1 else ()))
    return Pixels(run(x.stored, _PLACES[dim % 4], *rest, **options)) if isinstance(x, Pixels) else None


def _pad_stored(run: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    x, pad, *rest = arguments
    if not isinstance(x, Pixels):
        return None
    pairs = [(0, 0)] * (4 - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    stored = [pairs[axis] for axis in _STORED]
    return Pixels(run(x.stored, tuple(one for pair in stored[::-1] for one in pair), *rest, **options))


_KNOW_PIXELS = {
    "convolution.default", "_native_batch_norm_legit_no_training.default", "max_pool2d_with_indices.default",
    "avg_pool2d.default", "_adaptive_avg_pool2d.default", "sym_size.int", "network_cpu",
}  # fmt: skip
_BY_PLACE: dict[str, Callable[..., Any]] = {
    **{f"{name}.default": _elementwise for name in _UNARY},
    **{f"{name}.{kind}": _elementwise for name in _BINARY for kind in ("Tensor", "Scalar")},
    **dict.fromkeys(
        (
            "pow.Tensor_Scalar", "maximum.default", "minimum.default", "clamp.default", "hardtanh.default",
            "leaky_relu.default", "elu.default", "gelu.default",
        ),
        _elementwise,
    ),
    "mean.dim": _reduce_stored, "sum.dim_IntList": _reduce_stored, "amax.default": _reduce_stored,
    "permute.default": _permute_stored, "view.default": _view_stored, "_unsafe_view.default": _view_stored,
    "cat.default": _concatenate_stored, "slice.Tensor": _slice_stored, "constant_pad_nd.default": _pad_stored,
}  # fmt: skip
