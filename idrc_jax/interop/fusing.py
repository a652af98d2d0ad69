"""A graph by the kernels of `network_cpu`: each convolution and matrix product with what follows it as one layer.

Inference's batch norm, a scale or an addend of each channel go into the weights, in float64; a sum with another value
and the activation become the layer's.
"""

import operator
from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.interop import torch_layers
from idrc_jax.interop.graphs import Instruction, Program, Value, numbers_in, renumbered
from idrc_jax.interop.pixels import Pixels, Tensor, as_torch, channels_last
from idrc_jax.interop.torch_operators import dtype_of
from idrc_jax.kernels import network_cpu
from idrc_jax.kernels.network_cpu import Layer

_CHANNELS_FIRST = (0, 3, 1, 2)
_SAME = ("aten.clone.default", "aten.alias.default", "aten.detach.default")
_VIEWS = ("aten.view.default", "aten._unsafe_view.default")
_COPIES = (*_SAME, *_VIEWS, "aten.expand.default", "aten.unsqueeze.default")
_ATTENTION = "aten.scaled_dot_product_attention.default"
_BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"


def fuse(
    program: Program, tensors: dict[str, np.ndarray], image_shape: tuple[int, int, int]
) -> tuple[Program, dict[str, np.ndarray]]:
    """Make the same function of images of that shape (H, W, C), and its tensors: those of the layers packed."""
    graph = _Graph(program, tensors, image_shape)
    absorbed, fused = set(), {}
    made: dict[str, np.ndarray] = {}
    for at in range(len(program.instructions)):
        chain = None if at in absorbed else _begin(graph, at)
        if chain is None:
            continue
        _grow(graph, chain, absorbed)
        absorbed |= set(chain.absorbed)
        names = (f"layer{at}.weights", f"layer{at}.bias")
        layer, made[names[0]] = network_cpu.prepare(
            chain.kernel * chain.factor, image=chain.image, stride=chain.stride, padding=chain.padding,
            groups=chain.groups,
        )  # fmt: skip
        made[names[1]] = np.broadcast_to(chain.bias, layer.features).astype(np.float32)
        layer = layer._replace(activation=chain.activation)
        arguments = (chain.x, *(Value(graph.number_of(name)) for name in names), chain.shortcut, tuple(chain.views))
        run = partial(_run_rows, layer, chain.moved, chain.beside_moved) if chain.rows else partial(_run_images, layer)
        fused[chain.absorbed[-1]] = Instruction("network_cpu", run, arguments, {})
    for at, one in enumerate(program.instructions):
        if one.name == "aten.max_pool2d_with_indices.default" and graph.is_float(one.arguments[0]):
            fused[at] = one._replace(run=partial(torch_layers.max_pool, reduce=network_cpu.max_pool))
        elif one.name == _ATTENTION and _attention_serves(graph, *one.arguments, **one.options):
            fused[at] = one._replace(run=_attention, arguments=one.arguments[:3])
    # Numbers of the new graph: images, tensors that are used, instructions that are used.
    kept = {at: one for at, one in enumerate(program.instructions) if at not in absorbed} | fused
    needed, order = {program.result.number}, []
    for at in sorted(kept, reverse=True):
        if graph.first + at in needed:
            needed |= numbers_in((kept[at].arguments, kept[at].options))
            order.append(at)
    every = dict(tensors) | made
    names = tuple(name for name in every if graph.number_of(name) in needed)
    numbers = {0: 0} | {graph.number_of(name): number for number, name in enumerate(names, 1)}
    instructions = []
    for at in order[::-1]:
        one = kept[at]
        numbers[graph.first + at] = 1 + len(names) + len(instructions)
        arguments, options = renumbered((one.arguments, one.options), numbers)
        instructions.append(one._replace(arguments=arguments, options=options))
    result = Value(numbers[program.result.number])
    return Program(names, tuple(instructions), result), {name: every[name] for name in names}


def _run_images(
    layer: Layer, x: Tensor, weights: jax.Array, bias: jax.Array, shortcut: Tensor | None, _: tuple[()]
) -> Pixels:
    beside = None if shortcut is None else channels_last(shortcut)
    return Pixels(network_cpu.run(layer, channels_last(x), weights, bias, beside))


def _run_rows(
    layer: Layer, moved: bool, beside_moved: bool, x: Tensor, weights: jax.Array, bias: jax.Array,
    shortcut: Tensor | None, views: tuple[tuple[int, ...], ...],
) -> Tensor:  # fmt: skip
    """Rows, then their views, and `moved` whether the channels go first; `beside_moved` where the shortcut's are."""
    beside = channels_last(shortcut) if shortcut is not None and beside_moved else as_torch(shortcut)
    made = network_cpu.product(layer, as_torch(x), weights, bias, beside)
    for view in views:
        made = made.reshape(view)
    return Pixels(made) if moved else made


def _attention_serves(
    graph: "_Graph", queries: Value, keys: Value, values: Value, mask: Value | None = None, dropout: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> bool:  # fmt: skip
    """Whether the kernel computes this: every token attends to all."""
    allowed = np.asarray(True if mask is None else graph.constant(graph.copied(mask)))
    to_all = allowed.dtype == bool and allowed.all() and not is_causal
    plain = to_all and dropout == 0 and not enable_gqa and (scale is None or scale > 0)
    if not (plain and all(graph.is_float(one) for one in (queries, keys, values))):
        return False
    shapes = [graph.shapes[one.number] for one in (queries, keys, values)]
    return all(len(shape) == 4 and shape[:2] == shapes[0][:2] for shape in shapes)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, **_: object) -> jax.Array:
    scale = torch_layers.attention_scale(queries, scale)
    return network_cpu.attention(as_torch(queries), as_torch(keys), as_torch(values), scale=scale)


class _Chain:
    """A layer that grows."""

    def __init__(self, at: int, end: int, x: Value, kernel: np.ndarray, bias: np.ndarray | float, rows: bool) -> None:
        self.absorbed, self.end, self.x, self.rows = [at], end, x, rows
        self.kernel, self.factor, self.bias = kernel, np.ones(kernel.shape[-1]), bias
        self.image: tuple[int, ...] = (1, 1)
        self.stride, self.padding, self.groups = (1, 1), (0, 0), 1
        self.shortcut: Value | None = None
        self.activation: network_cpu.Activation = ""
        self.views: list[tuple[int, ...]] = []
        self.moved = self.beside_moved = False  # the channels of rows to the front, before or after the shortcut


class _Graph:
    """A program with what can be said of its values: their shapes and types, who uses them, which are tensors."""

    def __init__(self, program: Program, tensors: dict[str, np.ndarray], image_shape: tuple[int, int, int]) -> None:
        self.instructions, self.tensors = program.instructions, tensors
        self.first = 1 + len(program.tensors)
        self._names = dict(enumerate(program.tensors, 1))
        self._numbers = {name: number for number, name in self._names.items()}
        self.users: dict[int, list[int]] = defaultdict(list)
        for at, one in enumerate(program.instructions):
            for number in numbers_in((one.arguments, one.options)):
                self.users[number].append(at)
        self.users[program.result.number].append(-1)
        self.shapes, self._types = _shapes(program, tensors, image_shape)
        self._constants: dict[int, Any] = {}
        self._of_images = {0}  # values that depend on the images, or on how many there are: other sizes are numbers
        for number, one in enumerate(program.instructions, self.first):
            if numbers_in((one.arguments, one.options)) & self._of_images:
                self._of_images.add(number)

    def number_of(self, name: str) -> int:
        """A new name gets a number that no other value has."""
        return self._numbers.setdefault(name, -2 - len(self._numbers))

    def is_float(self, value: Any) -> bool:
        return isinstance(value, Value) and self._types[value.number] == jnp.float32

    def tensor(self, value: Any) -> np.ndarray | None:
        """The value, where it is a tensor or one whose axes were permuted."""
        if not isinstance(value, Value):
            return None
        if value.number in self._names:
            return self.tensors[self._names[value.number]]
        if value.number >= self.first:
            made = self.instructions[value.number - self.first]
            inner = self.tensor(made.arguments[0]) if made.name == "aten.permute.default" else None
            return None if inner is None else np.transpose(inner, made.arguments[1])
        return None

    def copied(self, value: Value) -> Value:
        """What all numbers of the value are copies of."""
        while value.number >= self.first and (made := self.instructions[value.number - self.first]).name in _COPIES:
            value = made.arguments[0]
        return value

    def constant(self, value: Any) -> Any:
        """The value, where images have no part in it, nor how many there are; None where they have."""
        if not isinstance(value, Value):
            return value
        if value.number in self._of_images:
            return None
        if value.number not in self._constants:
            self._constants[value.number] = self._computed(value.number)
        return self._constants[value.number]

    def _computed(self, number: int) -> Any:
        if number in self._names:
            return jnp.asarray(self.tensors[self._names[number]])
        instruction = self.instructions[number - self.first]
        used = numbers_in((instruction.arguments, instruction.options))
        return instruction.result({number: self.constant(Value(number)) for number in used})

    def repeated_matrix(self, value: Any) -> np.ndarray | None:
        """[K, M], where the value is [N, K, M] made of copies of a tensor."""
        shape = self.shapes[value.number][-2:]
        while value.number >= self.first and self.tensor(value) is None:
            made = self.instructions[value.number - self.first]
            if made.name not in _COPIES or self.shapes[value.number][-2:] != shape:
                return None
            value = made.arguments[0]
        matrix = self.tensor(value)
        return None if matrix is None or matrix.squeeze().shape != shape else matrix.squeeze()


def _shapes(
    program: Program, tensors: dict[str, np.ndarray], image_shape: tuple[int, int, int]
) -> tuple[dict[int, tuple[int, ...]], dict[int, np.dtype | None]]:
    """The shape and the type of every value that is an array, for a batch of 2."""
    shapes: dict[int, tuple[int, ...]] = {}
    types: dict[int, np.dtype | None] = {}

    def trace(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        values = program.values(params, images)
        shapes.update({number: getattr(value, "shape", ()) for number, value in enumerate(values)})
        types.update({number: getattr(value, "dtype", None) for number, value in enumerate(values)})
        return as_torch(values[program.result.number])

    params = {name: jnp.asarray(tensors[name], dtype_of(str(tensors[name].dtype))) for name in program.tensors}
    jax.eval_shape(trace, params, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    return shapes, types


def _begin(graph: _Graph, at: int) -> _Chain | None:
    """The layer that begins with this instruction, if one does."""
    name, _, arguments, options = graph.instructions[at]
    if not graph.is_float(Value(graph.first + at)):
        return None
    if name == "aten.convolution.default" and not options:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
        kernel, offset = graph.tensor(weight), 0.0 if bias is None else graph.tensor(bias)
        if kernel is None or offset is None or transposed or kernel.ndim != 4 or not graph.is_float(x):
            return None
        kernel = np.transpose(kernel, (2, 3, 1, 0))
        stride, padding, dilation = (one * 2 if len(one) == 1 else one for one in (stride, padding, dilation))
        if not network_cpu.serves(kernel.shape, groups=groups, dilation=dilation):
            return None
        chain = _Chain(at, graph.first + at, x, kernel, offset, rows=False)
        chain.image, chain.stride, chain.padding = tuple(graph.shapes[x.number][2:]), stride, padding
        chain.groups = groups
        return chain
    if name in ("aten.addmm.default", "aten.mm.default") and not options:
        x, weight = arguments[-2:]
        matrix, offset = graph.tensor(weight), graph.tensor(arguments[0]) if name == "aten.addmm.default" else 0.0
        if matrix is None or offset is None or not graph.is_float(x) or graph.tensor(x) is not None:
            return None
        offset = np.asarray(offset)
        if offset.size not in (1, matrix.shape[1]) or offset.shape[-1:] not in ((), (offset.size,)):
            return None  # not one for each column, or for all
        offset = np.broadcast_to(offset.reshape(-1), matrix.shape[1])
        return _Chain(at, graph.first + at, x, matrix[None, None], offset, rows=True)
    if name == "aten.bmm.default":
        x, weight = arguments
        matrix = graph.repeated_matrix(weight)
        if matrix is None or not graph.is_float(x):
            return None
        return _Chain(at, graph.first + at, x, matrix[None, None], 0.0, rows=True)
    return None


def _grow(graph: _Graph, chain: _Chain, absorbed: set[int]) -> None:
    """Takes into the layer what follows it, is used by nothing else and belongs to no other layer."""
    while len(graph.users[chain.end]) == 1 and (at := graph.users[chain.end][0]) not in absorbed | {-1}:
        if not _take(graph, chain, at):
            return


def _take(graph: _Graph, chain: _Chain, at: int) -> bool:
    """Whether this instruction, which alone uses the chain's end, became a part of it."""
    name, _, arguments, options = graph.instructions[at]
    end, taken = Value(chain.end), [at]
    plain = chain.shortcut is None and not chain.activation
    if name == _BATCH_NORM and plain and not chain.rows and arguments[0] == end:
        followers = graph.users[graph.first + at]
        scale, offset, mean, variance = moments = [graph.tensor(one) for one in arguments[1:5]]
        if any(one is None and given is not None for one, given in zip(moments, arguments[1:5], strict=True)):
            return False  # computed
        if len(followers) != 1 or followers[0] < 0 or mean is None or variance is None:
            return False
        follower = graph.instructions[followers[0]]
        if follower.run is not operator.getitem or follower.arguments[1] != 0:
            return False
        factor = (1.0 if scale is None else scale) / np.sqrt(variance.astype(np.float64) + arguments[6])
        chain.bias = (chain.bias - mean.astype(np.float64)) * factor + (0.0 if offset is None else offset)
        chain.factor = chain.factor * factor
        taken.append(followers[0])
    elif chain.activation:
        return False
    elif name in _SAME and arguments == (end,):
        pass
    elif name in _VIEWS and chain.rows and not chain.moved and arguments[0] == end:
        chain.views.append(arguments[1])
    elif name == "aten.permute.default" and chain.rows and not chain.moved and arguments == (end, _CHANNELS_FIRST):
        chain.moved = True
    elif name in ("aten.mul.Tensor", "aten.add.Tensor") and len(arguments) == 2 and not options:
        other = arguments[1] if arguments[0] == end else arguments[0]
        constant = _of_each_channel(graph, chain, other)
        if plain and constant is not None and name == "aten.mul.Tensor":
            chain.factor, chain.bias = chain.factor * constant, chain.bias * constant
        elif plain and constant is not None:
            chain.bias = chain.bias + constant
        elif name == "aten.add.Tensor" and plain and _beside(graph, chain, other):
            chain.shortcut, chain.beside_moved = other, chain.moved
        else:
            return False
    elif name == "aten.relu.default":
        chain.activation = "relu"
    elif name == "aten.gelu.default" and options.get("approximate", "none") == "none" and len(arguments) == 1:
        chain.activation = "gelu"
    else:
        return False
    chain.absorbed += taken
    chain.end = graph.first + taken[-1]
    return True


def _beside(graph: _Graph, chain: _Chain, other: Any) -> bool:
    """Whether a value can be the chain's shortcut."""
    if not graph.is_float(other) or other.number == chain.end or graph.tensor(other) is not None:
        return False
    return graph.shapes[other.number] == graph.shapes[chain.end]


def _of_each_channel(graph: _Graph, chain: _Chain, value: Any) -> np.ndarray | None:
    """Float64 [features], where the value is a tensor with a number for each of the chain's channels."""
    tensor, features, shape = graph.tensor(value), chain.kernel.shape[-1], graph.shapes[chain.end]
    wanted = (features,) if chain.rows and not chain.moved else (features, 1, 1)
    if tensor is None or tensor.size != features or tensor.ndim > len(shape) or shape[-len(wanted)] != features:
        return None
    padded = (1,) * (len(shape) - tensor.ndim) + tensor.shape
    whole = (1,) * (len(shape) - len(wanted)) + wanted
    return tensor.reshape(-1).astype(np.float64) if padded == whole else None
