"""Any PyTorch module as a classifier: `torch.export` gives its graph of core ATen operations, JAX runs it."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import operator
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from idrc_jax.core import extras, validate
from idrc_jax.interop import fusing
from idrc_jax.interop.graphs import Instruction, Program, Value
from idrc_jax.interop.pixels import Operation
from idrc_jax.interop.torch_operators import OPERATIONS, dtype_of
from idrc_jax.kernels import network_cpu
from idrc_jax.kernels.network_cpu import ByKernel
from idrc_jax.models import Arrays, Classifier, Tensors

if TYPE_CHECKING:
    from torch import Tensor  # pyright: ignore[reportMissingImports]
    from torch.export import ExportedProgram  # pyright: ignore[reportMissingImports]
    from torch.nn import Module  # pyright: ignore[reportMissingImports]

_WITHOUT_MEANING = ("device", "layout", "pin_memory", "memory_format")
_SPREADS = (0.0, 0.5, 1.0)  # of the noise on the images that are compared
_AGREEMENT = 1e-4  # of the largest logit, less the mean of its image


def from_torch(
    module: "Module", *, image_shape: tuple[int, int, int], mean: float | Iterable[float], std: float | Iterable[float]
) -> Classifier:
    """Make a JAX classifier of a PyTorch module in inference mode and float32 on the CPU.

    Args:
      module: an `nn.Module` whose forward pass maps images [N, C, H, W] to logits [N, classes], or to an object with
        these as `logits`, for any N.
      image_shape: (H, W, C).
      mean, std: of the normalisation before the module, of each channel or of all; 0 and 1 where the module itself
        normalises images in [0, 1]. They have no default: a wrong normalisation makes a certified network useless.

    Returns:
      A classifier with the module's tensors as params. Its sha256 covers these and the graph, normalisation included;
      PyTorch's version shapes the graph. Its description says how far its logits are from PyTorch's at most, on random
      images with noise up to σ = 1 (`torch_difference`): relative to the largest under the same noise, both less the
      mean of each image, or to a hundredth of the largest as it is, if that is more.

    Raises:
      ValueError: without PyTorch, a module in training mode or in another type, one that `torch.export` cannot trace
        for every batch size, an operation that is not in `torch_operators.OPERATIONS` (named), logits that differ from
        PyTorch's, that are not finite for noisy images or that depend on the other images of a batch.
    """
    torch = _torch()
    if not isinstance(module, torch.nn.Module):
        got = f"{str(module)!r}" if isinstance(module, str | Path) else type(module).__name__
        raise ValueError(
            f"Expected a torch.nn.Module with its weights in it, got {got}: idrc-import reads files of weights, and "
            "load_state_dict puts them into a module."
        )
    training = [name or "the module" for name, part in module.named_modules() if part.training]
    if training:
        raise ValueError(f"Expected a module in inference mode, got {training[0]} in training mode: call .eval().")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ValueError(
                f"Expected float32 on the CPU, got {name} of {tensor.dtype} on {tensor.device}: call .cpu().float()."
            )
    height, width, channels = image_shape
    moments = [_moments(value, image_shape) for value in (mean, std)]
    validate.normalisation(*moments)
    tensors = (torch.tensor(one, dtype=torch.float32).reshape(1, channels, 1, 1) for one in moments)
    whole = _normalised(torch, module, *tensors)
    images = _noisy_images((height, width, channels))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    try:
        with torch.no_grad():
            expected = whole(batch)
    except Exception as error:  # PyTorch raises several kinds
        raise ValueError(
            f"Expected a module that takes images {list(batch.shape)}, [N, C, H, W] by image_shape = (H, W, C) = "
            f"{tuple(image_shape)}, got: {_first_line(error)}{_order(image_shape)}"
        ) from error
    if not isinstance(expected, torch.Tensor) or expected.ndim != 2 or len(expected) != len(images):
        got = tuple(expected.shape) if isinstance(expected, torch.Tensor) else type(expected).__name__
        raise ValueError(f"Expected a module that maps {len(images)} images to logits [{len(images)}, K], got {got}.")
    if not expected.isfinite().all():
        raise ValueError("Expected finite logits of images with noise, got others: clamp images within the module.")
    exported = _export(torch, whole, batch[:2])
    program, tensors = _program(torch, exported)

    plain = Classifier(
        apply_fn=lambda params, images: program(params, images).astype(jnp.float32),
        params=_arrays(tensors),
        classes=expected.shape[1],
        image_shape=(height, width, channels),
        sha256=_hash(program, tensors),
        description={"architecture": "torch", "module": type(module).__name__, "torch": torch.__version__},
    )
    gap = _check(plain, images, expected.numpy())
    plain = dataclasses.replace(plain, description={**plain.description, "torch_difference": float(f"{gap:.1e}")})
    if jax.default_backend() != "cpu" or not network_cpu.available():
        return plain
    try:
        by_kernel = _by_kernel(plain, program, tensors)
        _check_by_kernel(by_kernel, plain, images)
    except Exception as error:  # the plain one serves whatever is wrong with the faster one
        logging.getLogger("idrc_jax").warning("Left out network_cpu: %s", _first_line(error))
        return plain
    return by_kernel


def _by_kernel(plain: Classifier, program: Program, tensors: Arrays) -> Classifier:
    """The same network by the kernels; its gradients are those of the plain one."""
    fused, packed = fusing.fuse(program, tensors, plain.image_shape)

    def by_kernel(params: ByKernel, images: jax.Array) -> jax.Array:
        return fused(params["packed"], images).astype(jnp.float32)

    apply_fn = network_cpu.with_gradients_of(plain.apply_fn, by_kernel)
    params = {"plain": plain.params, "packed": _arrays(packed)}
    return dataclasses.replace(plain, apply_fn=apply_fn, params=params, kernel="network_cpu").with_alternatives(plain)


def _arrays(tensors: Arrays) -> Tensors:
    return {name: jnp.array(value, dtype_of(str(value.dtype))) for name, value in tensors.items()}


def _noisy_images(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Three images under noise of each spread, float32 [9, H, W, C]."""
    random = np.random.default_rng(0)
    images = random.uniform(size=(3 * len(_SPREADS), *image_shape))
    images += np.repeat(_SPREADS, 3)[:, None, None, None] * random.normal(size=images.shape)
    return images.astype(np.float32)


def _check(classifier: Classifier, images: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of JAX's logits from the expected ones, as a part of the largest under the same noise.

    ValueError unless they agree, whatever images are beside an image.
    """
    apply = jax.jit(classifier.apply_fn)
    exact, even = _centred(expected), np.arange(len(images)) % 2 == 0
    # _AGREEMENT of a hundredth of a logit is eight float32 roundings of it.
    sizes = np.maximum(np.abs(exact), np.abs(expected) / 100).reshape(len(_SPREADS), -1)
    largest = np.maximum(np.max(sizes, axis=1), np.finfo(np.float32).tiny)

    def part(gap: np.ndarray) -> float:
        return float(np.max(np.max(np.abs(gap).reshape(len(_SPREADS), -1), axis=1) / largest))

    def logits(images: np.ndarray) -> np.ndarray:
        return np.asarray(apply(classifier.params, images), np.float64)

    def among_others(kept: np.ndarray) -> np.ndarray:
        """The logits of those that are kept, each at another place."""
        batch = np.where(kept[:, None, None, None], images, 1 - images)
        return np.roll(logits(np.roll(batch, 1, axis=0)), -1, axis=0)

    try:
        with jax.default_matmul_precision("highest"):
            made = logits(images)
            beside_others = np.where(even[:, None], among_others(even), among_others(~even))
    except Exception as error:  # JAX raises several kinds
        raise ValueError(f"Expected a module that JAX can run, got: {_first_line(error)}") from error
    apart = _centred(made) - exact
    for what, gap in (("JAX and PyTorch", apart), ("an image in two batches", made - beside_others)):
        if not part(gap) <= _AGREEMENT:
            raise ValueError(f"Expected equal logits of {what}, got a difference of {part(gap):.2g} of the largest.")
    return part(apart)


def _check_by_kernel(by_kernel: Classifier, plain: Classifier, images: np.ndarray) -> None:
    """ValueError unless the kernels give the plain logits, to a fraction of what tells classes apart.

    Then the classes differ only where the two largest logits are closer than twice that.
    """
    logits = jax.jit(by_kernel.apply_fn)
    with jax.default_matmul_precision("highest"):
        expected = _centred(jax.jit(plain.apply_fn)(plain.params, images))
        for order in (np.arange(9), np.arange(9)[::-1], np.array([4, 7, 1, 8])):
            gap = np.max(np.abs(_centred(logits(by_kernel.params, images[order])) - expected[order]))
            if not gap <= _AGREEMENT * np.max(np.abs(expected)):
                raise ValueError(f"Expected the logits of plain JAX, got a difference of {gap:.2g}.")


def _centred(logits: ArrayLike) -> np.ndarray:
    """Float64, less the mean of each image."""
    exact = np.asarray(logits, np.float64)
    return exact - exact.mean(1, keepdims=True)


def _torch() -> ModuleType:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"Expected PyTorch, got no such package: {extras.how_to_get('torch')}.") from None
    return torch


def _moments(values: float | Iterable[float], image_shape: tuple[int, int, int]) -> list[float]:
    channels = image_shape[2]
    values = [values] * channels if isinstance(values, int | float) else list(values)
    if len(values) != channels:
        raise ValueError(
            f"Expected mean and std of each of {channels} channels, by image_shape = (H, W, C), got {values}."
            f"{_order(image_shape)}"
        )
    return [float(value) for value in values]


def _order(image_shape: tuple[int, int, int]) -> str:
    """What to say of a shape whose channels seem to come first."""
    first, *others = image_shape
    if first not in (1, 3) or others[1] in (1, 3):
        return ""
    return f" {tuple(image_shape)} looks like (C, H, W): image_shape = {(*others, first)}."


def _normalised(torch: ModuleType, module: "Module", mean: "Tensor", std: "Tensor") -> "Module":
    """Normalisation, module and choice of the logits as one module."""

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)

        def forward(self, images: "Tensor") -> "Tensor":
            made = self.module((images - self.mean) / self.std)
            return getattr(made, "logits", made)

    return Whole().eval()


def _export(torch: ModuleType, module: "Module", example: "Tensor") -> "ExportedProgram":
    """The graph for every batch size, in core ATen operations."""
    wanted = "Expected a module that torch.export can trace for any batch size"
    fixed = _Fixed(torch)
    try:
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        with torch.no_grad(), warnings.catch_warnings(action="ignore"), fixed.watched():
            kept_whole = torch.ops.aten.scaled_dot_product_attention.default
            core = torch.export.default_decompositions()
            core.pop(kept_whole, None)
            return torch.export.export(module, (example,), dynamic_shapes=shapes).run_decompositions(core)
    except Exception as error:  # torch raises many kinds
        place = _place(torch, traceback.extract_tb(error.__traceback__))
        if fixed.place and not place:
            raise ValueError(
                f"{wanted}, got one that fixes it at {fixed.place}: write x.shape[0] for len(x) or int(x.shape[0])."
            ) from error
        raise ValueError(f"{wanted}, got: {_first_line(error)}{place and f' At {place}.'}") from error


class _Fixed(logging.Handler):
    """Notes where in the module the tracer first makes a number of what should stay a symbol.

    The tracer's error does not say it, but it logs the moment, while the module's call is on the stack.
    """

    def __init__(self, torch: ModuleType) -> None:
        super().__init__()
        self.place, self._torch = "", torch

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
        level, propagate, handlers = logger.level, logger.propagate, logger.handlers
        logger.setLevel(logging.INFO)
        logger.propagate, logger.handlers = False, [self]  # PyTorch's own would print
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers

    def emit(self, record: logging.LogRecord) -> None:
        if not self.place and re.search(r"set_replacement \w+ = \d+ ", record.getMessage()):
            self.place = _place(self._torch, traceback.extract_stack()[:-1])


def _place(torch: ModuleType, stack: traceback.StackSummary | list[traceback.FrameSummary]) -> str:
    """The module's innermost line in a stack that goes through `Whole.forward`; empty where it is all PyTorch's."""
    last = max((at for at, frame in enumerate(stack) if frame.filename == __file__), default=len(stack))
    others = (str(Path(str(torch.__file__)).parent), *(str(one.__file__) for one in (logging, contextlib, functools)))
    own = [frame for frame in stack[last:] if frame.filename != __file__ and not frame.filename.startswith(others)]
    return f"{own[-1].filename}, line {own[-1].lineno}: {own[-1].line}" if own else ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _program(torch: ModuleType, exported: "ExportedProgram") -> tuple[Program, Arrays]:
    """The graph as instructions with their own numbering, and its tensors."""
    kinds = torch.export.graph_signature.InputKind
    specs = exported.graph_signature.input_specs
    stored = {**exported.constants, **exported.state_dict}
    inputs = {spec.arg.name: str(spec.target) for spec in specs if spec.kind != kinds.USER_INPUT}
    (images,) = [spec.arg.name for spec in specs if spec.kind == kinds.USER_INPUT]
    numbers = {name: Value(number) for number, name in enumerate((images, *inputs))}
    instructions, unknown, results = [], set(), ()
    for node in exported.graph.nodes:
        if node.op == "call_function":
            name, run = _operation(node.target)
            if run is None:
                unknown.add(name)
                continue
            options = {key: value for key, value in node.kwargs.items() if key not in _WITHOUT_MEANING}
            arguments = tuple(_numbered(torch, one, numbers) for one in node.args)
            options = {key: _numbered(torch, value, numbers) for key, value in options.items()}
            instructions.append(Instruction(name, run, arguments, options))
            numbers[node.name] = Value(len(numbers))
        elif node.op == "output":
            results = node.args[0]
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"Expected operations that idrc_jax.interop.torch_operators has, got also {names}.")
    if len(results) != 1:
        raise ValueError("Expected a module that changes none of its tensors, got one that does.")
    tensors = {target: _numpy(torch, stored[target].detach()) for target in inputs.values()}
    return Program(tuple(inputs.values()), tuple(instructions), numbers[results[0].name]), tensors


def _numpy(torch: ModuleType, tensor: "Tensor") -> np.ndarray:
    """As float32 where NumPy has no such floats."""
    wide = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if tensor.is_floating_point() and not wide else tensor).numpy()


def _operation(target: Callable[..., Any]) -> tuple[str, Operation | None]:
    """Name and function of an operation of the graph; None for one that is unknown."""
    if getattr(operator, getattr(target, "__name__", ""), None) is target:  # arithmetic of sizes
        return f"operator.{target.__name__}", target
    name = str(target)
    return name, OPERATIONS.get(name.removeprefix("aten."))


def _numbered(torch: ModuleType, argument: Any, numbers: dict[str, Value]) -> Any:
    """An argument with `Value`s for nodes, JAX types for PyTorch's, and tuples for lists."""
    if isinstance(argument, torch.fx.Node):
        return numbers[argument.name] if argument.name in numbers else Value(-1)  # the latter after an unknown one
    if isinstance(argument, torch.dtype):
        return dtype_of(str(argument))
    if isinstance(argument, list | tuple):
        return tuple(_numbered(torch, one, numbers) for one in argument)
    return argument


def _hash(program: Program, tensors: Arrays) -> str:
    digest = hashlib.sha256(str(program).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
