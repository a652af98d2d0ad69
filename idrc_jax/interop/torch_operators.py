"""The table of PyTorch's core ATen operations in JAX, which convolutional networks and vision transformers are made of.

`OPERATIONS` maps the name of an overload ("add.Tensor") to a function of the same arguments, which takes `Pixels` in
place of any array. To add one, write it as a function of PyTorch's arguments, here or beside its like in
`torch_layers`, and give it a line in the dictionary that says how it takes pixels; `_ON_ARRAYS` is always right.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from idrc_jax.interop import pixels, torch_layers
from idrc_jax.interop.pixels import Operation
from idrc_jax.kernels.activations import relu

Shape = Sequence[int]
Number = jax.Array | float  # or many of them


def dtype_of(name: str) -> np.dtype:
    """Name the JAX type of a `torch.dtype` by the name of that; 64 bits become 32."""
    short = name.removeprefix("torch.")
    return np.dtype(jnp.dtype({"float64": "float32", "int64": "int32", "uint64": "uint32"}.get(short, short)))


# Shapes --------------------------------------------------------------------------------------------------------------


def _expand(x: jax.Array, sizes: Shape, implicit: bool = False) -> jax.Array:
    missing = len(sizes) - x.ndim
    kept = [x.shape[axis - missing] if size == -1 else size for axis, size in enumerate(sizes)]
    return jnp.broadcast_to(x, kept)


def _at(x: jax.Array, axis: int, index: slice | int) -> tuple[slice | int, ...]:
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


def _full(size: Shape, value: ArrayLike, dtype: DTypeLike | None = None) -> jax.Array:
    return jnp.full(size, value, dtype)


def _full_like(x: jax.Array, value: ArrayLike, dtype: DTypeLike | None = None) -> jax.Array:
    return jnp.full(x.shape, value, dtype or x.dtype)


def _arange(start: Number, end: Number, step: Number = 1, dtype: DTypeLike | None = None) -> jax.Array:
    return jnp.arange(start, end, step, dtype=dtype)


def _to_copy(x: jax.Array, dtype: DTypeLike | None = None, non_blocking: bool = False) -> jax.Array:
    if dtype is None:
        return x
    if jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.integer):
        x = jnp.trunc(x)  # XLA on CPUs (jaxlib 0.10) leaves a cast to 8 bits out before a sum over pixels
    return x.astype(dtype)


def _copy(x: jax.Array, source: jax.Array, non_blocking: bool = False) -> jax.Array:
    return jnp.broadcast_to(source, x.shape).astype(x.dtype)


# Elementwise ---------------------------------------------------------------------------------------------------------


def _add(x: Number, y: Number, alpha: float = 1) -> jax.Array:
    return jnp.add(x, y if alpha == 1 else alpha * y)


def _sub(x: Number, y: Number, alpha: float = 1) -> jax.Array:
    return jnp.subtract(x, y if alpha == 1 else alpha * y)


def _div(x: Number, y: Number, rounding_mode: str | None = None) -> jax.Array:
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    return jnp.trunc(jnp.divide(x, y)) if rounding_mode == "trunc" else jnp.divide(x, y)


def _keeping_nan(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """An elementwise function whose result is no number where an argument is none; XLA's maximum alone may lose it."""

    def run(*arguments: Number, **options: Number) -> jax.Array:
        made = function(*arguments, **options)
        for one in arguments:
            if isinstance(one, jax.Array):
                made = jnp.where(one != one, one, made)
        return made

    return run


def _clamp(x: jax.Array, low: Number | None = None, high: Number | None = None) -> jax.Array:
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
    def reduce(
        x: jax.Array, dim: int | Shape | None = None, keepdim: bool = False, dtype: DTypeLike | None = None
    ) -> jax.Array:
        return function(x if dtype is None else x.astype(dtype), axis=_axes(dim), keepdims=keepdim)

    return reduce


def _extreme(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A maximum or minimum that is no number where one of the numbers is none."""

    def extreme(x: jax.Array, axis: int | tuple[int, ...] | None, keepdims: bool) -> jax.Array:
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
    x: jax.Array,
    order: float = 2,
    dim: int | Shape | None = None,
    keepdim: bool = False,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    if order != 2:
        raise ValueError(f"Expected linalg_vector_norm of order 2, got {order}.")
    x = x if dtype is None else x.astype(dtype)
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=_axes(dim), keepdims=keepdim))


def _same(x: jax.Array, **options: object) -> jax.Array:
    return x


def _nothing(*arguments: object, **options: object) -> None:
    pass


# The table -----------------------------------------------------------------------------------------------------------

_UNARY: dict[str, Operation] = {
    "abs": jnp.abs, "neg": jnp.negative, "exp": jnp.exp, "expm1": jnp.expm1, "log": jnp.log, "log1p": jnp.log1p,
    "sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "reciprocal": jnp.reciprocal, "sin": jnp.sin, "cos": jnp.cos,
    "tanh": jnp.tanh, "erf": jax.lax.erf, "sigmoid": jax.nn.sigmoid, "relu": relu, "silu": jax.nn.silu,
    "hardswish": jax.nn.hard_swish, "hardsigmoid": jax.nn.hard_sigmoid, "floor": jnp.floor, "ceil": jnp.ceil,
    "round": jnp.round, "sign": jnp.sign, "logical_not": jnp.logical_not, "bitwise_not": jnp.bitwise_not,
    "clone": _same, "alias": _same, "detach": _same, "lift_fresh_copy": _same,
}  # fmt: skip
_BINARY: dict[str, Operation] = {
    "add": _add, "sub": _sub, "mul": jnp.multiply, "div": _div, "eq": jnp.equal, "ne": jnp.not_equal, "lt": jnp.less,
    "le": jnp.less_equal, "gt": jnp.greater, "ge": jnp.greater_equal, "fmod": jnp.fmod, "remainder": jnp.remainder,
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or,
}  # fmt: skip
_ELEMENTWISE: dict[str, Operation] = {
    **{f"{name}.default": operation for name, operation in _UNARY.items()},
    **{f"{name}.{kind}": operation for name, operation in _BINARY.items() for kind in ("Tensor", "Scalar")},
    "pow.Tensor_Scalar": jnp.power, "maximum.default": _keeping_nan(jnp.maximum),
    "minimum.default": _keeping_nan(jnp.minimum), "clamp.default": _keeping_nan(_clamp), "hardtanh.default": _hardtanh,
    "leaky_relu.default": _leaky_relu, "elu.default": _elu, "gelu.default": _gelu,
}  # fmt: skip
_REDUCTIONS: dict[str, Operation] = {
    "mean.dim": _reduction(jnp.mean), "sum.dim_IntList": _reduction(jnp.sum), "amax.default": _extreme(jnp.max),
}  # fmt: skip
_VIEWS: dict[str, Operation] = {"view.default": jnp.reshape, "_unsafe_view.default": jnp.reshape}
# These take pixels themselves.
_ON_PIXELS: dict[str, Operation] = {
    "convolution.default": torch_layers.convolution,
    "_native_batch_norm_legit_no_training.default": torch_layers.batch_norm,
    "max_pool2d_with_indices.default": torch_layers.max_pool, "avg_pool2d.default": torch_layers.average_pool,
    "_adaptive_avg_pool2d.default": torch_layers.adaptive_average_pool, "sym_size.int": lambda x, dim: x.shape[dim],
}  # fmt: skip
_ON_ARRAYS: dict[str, Operation] = {
    "div.Tensor_mode": _div, "pow.Tensor_Tensor": jnp.power, "logical_and.default": jnp.logical_and,
    "logical_or.default": jnp.logical_or, "where.self": jnp.where, "clamp.Tensor": _keeping_nan(_clamp),
    "sum.default": _reduction(jnp.sum), "mean.default": _reduction(jnp.mean), "amin.default": _extreme(jnp.min),
    "any.dim": _reduction(jnp.any), "any.dims": _reduction(jnp.any), "var.correction": _variance,
    "linalg_vector_norm.default": _vector_norm, "_softmax.default": torch_layers.softmax,
    "_log_softmax.default": torch_layers.log_softmax, "scaled_dot_product_attention.default": torch_layers.attention,
    "expand.default": _expand, "unsqueeze.default": jnp.expand_dims, "squeeze.dim": _squeeze, "squeeze.dims": _squeeze,
    "squeeze.default": _squeeze, "slice_scatter.default": _slice_scatter,
    "select.int": lambda x, dim, index: x[_at(x, dim, index)], "index.Tensor": _index,
    "index_select.default": lambda x, dim, index: jnp.take(x, index, axis=dim),
    "embedding.default": lambda weight, index, padding=-1, *_: jnp.take(weight, index, axis=0),
    "flip.default": jnp.flip, "split_with_sizes.default": _split_with_sizes, "split.Tensor": _split,
    "repeat.default": _repeat, "as_strided.default": _as_strided, "full.default": _full,
    "full_like.default": _full_like, "arange.start_step": _arange, "scalar_tensor.default": jnp.asarray,
    "_to_copy.default": _to_copy, "copy.default": _copy, "_assert_tensor_metadata.default": _nothing,
    "mm.default": jnp.matmul, "bmm.default": jnp.matmul, "addmm.default": torch_layers.addmm,
    "native_layer_norm.default": torch_layers.layer_norm, "native_group_norm.default": torch_layers.group_norm,
    "upsample_bilinear2d.vec": torch_layers.bilinear, "upsample_nearest2d.vec": torch_layers.nearest,
}  # fmt: skip


def _stored(operations: dict[str, Operation], how: pixels.How) -> dict[str, Operation]:
    return {name: pixels.in_stored_order(operation, how) for name, operation in operations.items()}


OPERATIONS: dict[str, Operation] = {
    **{name: pixels.as_arrays(operation) for name, operation in _ON_ARRAYS.items()},
    **_ON_PIXELS,
    **_stored(_ELEMENTWISE, pixels.elementwise),
    **_stored(_REDUCTIONS, pixels.reduction),
    **_stored(_VIEWS, pixels.view),
    **_stored({"permute.default": jnp.transpose}, pixels.permutation),
    **_stored({"cat.default": lambda tensors, dim=0: jnp.concatenate(tensors, axis=dim)}, pixels.concatenation),
    **_stored({"slice.Tensor": _slice}, pixels.slicing),
    **_stored({"constant_pad_nd.default": _pad}, pixels.padding),
}
