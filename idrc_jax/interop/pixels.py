"""Images of PyTorch, [N, C, H, W], whose channels lie together, and how operations take them.

What a convolution or a pool makes is a `Pixels`: [N, C, H, W] to all who ask, stored as [N, H, W, C], which is fast. An
operation that is written for arrays is wrapped for them: by `as_arrays`, or by `in_stored_order` where one of the
functions at the end (`elementwise`, `reduction` ...) knows how to run it on the stored order of the axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STORED = (0, 2, 3, 1)  # PyTorch's axes in the order in which they are stored
_PLACES = (0, 3, 1, 2)  # where each of PyTorch's axes is stored

Operation = Callable[..., Any]  # of PyTorch's arguments
# (operation, its arguments, its options) -> its result by the stored order of the axes; None where it cannot take that.
How = Callable[[Operation, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
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
    def dtype(self) -> np.dtype:
        return self.stored.dtype


Tensor = jax.Array | Pixels


def as_torch(x: Any) -> Any:
    """Turn `Pixels` into an array [N, C, H, W], inside tuples too; all else stays."""
    if isinstance(x, Pixels):
        return jnp.transpose(x.stored, _PLACES)
    return tuple(as_torch(one) for one in x) if isinstance(x, tuple) else x


def channels_last(x: Tensor) -> jax.Array:
    """Move the channels behind height and width."""
    return x.stored if isinstance(x, Pixels) else jnp.moveaxis(x, 1, -1)


def channels_first(x: jax.Array) -> Tensor:
    """Undo `channels_last`: images as `Pixels`."""
    return Pixels(x) if x.ndim == 4 else jnp.moveaxis(x, -1, 1)


def as_arrays(operation: Operation) -> Operation:
    """Wrap an operation that takes arrays as PyTorch has them."""

    def run(*arguments: Any, **options: Any) -> Any:
        return operation(*as_torch(arguments), **{name: as_torch(value) for name, value in options.items()})

    return run


def in_stored_order(operation: Operation, how: How) -> Operation:
    """Wrap an operation that takes pixels as they are stored, where `how` can run it so, else arrays as PyTorch has."""
    on_arrays = as_arrays(operation)

    def run(*arguments: Any, **options: Any) -> Any:
        made = how(operation, arguments, options)
        return on_arrays(*arguments, **options) if made is None else made

    return run


def elementwise(operation: Operation, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run any function of numbers that broadcasts: all arguments in the order in which pixels are stored."""
    if not any(isinstance(one, Pixels) for one in arguments) or any(getattr(one, "ndim", 0) > 4 for one in arguments):
        return None

    def stored(x: Any) -> Any:
        if isinstance(x, Pixels):
            return x.stored
        if getattr(x, "ndim", 0) == 0:
            return x
        return jnp.transpose(x.reshape((1,) * (4 - x.ndim) + x.shape), _STORED)

    return Pixels(operation(*(stored(one) for one in arguments), **options))


def reduction(operation: Operation, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Reduce over height and width, or over channels with the axis kept."""
    x = arguments[0]
    dim = arguments[1] if len(arguments) > 1 else options.get("dim")
    keepdim = arguments[2] if len(arguments) > 2 else options.get("keepdim", False)
    if not isinstance(x, Pixels) or dim is None:
        return None
    axes = {axis % 4 for axis in ((dim,) if isinstance(dim, int) else dim)}
    if not axes or (not keepdim and axes != {2, 3}):
        return None
    others = {name: value for name, value in options.items() if name not in ("dim", "keepdim")}
    made = operation(x.stored, tuple(_PLACES[axis] for axis in sorted(axes)), keepdim, *arguments[3:], **others)
    return Pixels(made) if keepdim else made


def permutation(operation: Operation, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Permute pixels, or an array to pixels."""
    x, dims = arguments
    dims = tuple(axis % len(dims) for axis in dims)
    if isinstance(x, Pixels):
        return jnp.transpose(x.stored, [_PLACES[axis] for axis in dims])
    return Pixels(x) if dims == _PLACES else None


def view(operation: Operation, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """View images of one pixel, whose order is the same."""
    x, size = arguments
    return operation(x.stored, size) if isinstance(x, Pixels) and x.shape[2:] == (1, 1) and len(size) == 2 else None


def concatenation(operation: Operation, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Concatenate tensors among which are pixels."""
    tensors: Sequence[Tensor] = arguments[0]
    dim = arguments[1] if len(arguments) > 1 else options.get("dim", 0)
    if not any(isinstance(one, Pixels) for one in tensors):
        return None
    return Pixels(operation(tuple(channels_last(one) for one in tensors), _PLACES[dim % 4]))


def slicing(operation: Operation, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Slice along one axis."""
    x, dim, *rest = (*arguments, *((0,) if len(arguments) == 1 else ()))
    return Pixels(operation(x.stored, _PLACES[dim % 4], *rest, **options)) if isinstance(x, Pixels) else None


def padding(operation: Operation, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Pad by pairs from the last axis on."""
    x, pad, *rest = arguments
    if not isinstance(x, Pixels):
        return None
    pairs = [(0, 0)] * (4 - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    stored = [pairs[axis] for axis in _STORED]
    return Pixels(operation(x.stored, tuple(one for pair in stored[::-1] for one in pair), *rest, **options))
