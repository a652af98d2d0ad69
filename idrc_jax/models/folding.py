"""A trained ResNet made for inference: batch normalisation folded into the convolutions, weights cast once.

In bfloat16 the activations and the convolutions' weights are stored rounded; biases, shortcuts, the mean over pixels
and the head are computed in float32. On accelerators biases are stored rounded, too: that lets XLA make bias, shortcut
and ReLU a part of cuDNN's convolution, which sums them in float32 and rounds once.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from idrc_jax.kernels import activations, network_cpu, resnet_cpu
from idrc_jax.kernels.network_cpu import ByKernel
from idrc_jax.models.classifier import ApplyFn
from idrc_jax.models.resnet50 import max_pool
from idrc_jax.models.tensors import Arrays, PyTree, Tensors

Convolve = Callable[..., jax.Array]
_EPSILON = 1e-5


def fold(tensors: Arrays, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Arrays:
    """Compute the float32 kernels and biases of the `ResNet` or `ResNet50` that has those tensors.

    Args:
      tensors: under their dotted names, running statistics included.
      mean, std: per channel, of the image's normalisation.

    Returns:
      `stem.kernel`, `stem.bias`, `blocks.0.conv1.kernel`, ..., `head.kernel`, `head.bias`, `mean` and `std`.

    Raises:
      ValueError: a value that is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        folded = _folded(tensors, mean, std, np.float64)
    for name, value in folded.items():
        if not np.isfinite(value).all():
            raise ValueError(f"Expected finite weights with BatchNorm folded in, got a non-finite value in {name}.")
    return folded


def fold_traced(tensors: Tensors, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensors:
    """Compute the same within a program, of tensors that change, in float32; whether all is finite is not looked at."""
    return _folded(tensors, mean, std, jnp.float32)


def _folded(tensors: Any, mean: tuple[float, ...], std: tuple[float, ...], dtype: DTypeLike) -> dict[str, Any]:
    xp = tensors["head.bias"].__array_namespace__()
    folded = {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)}
    for name in ("head.kernel", "head.bias"):
        folded[name] = tensors[name].astype(np.float32)
    for name in tensors:
        if not name.endswith(".kernel") or name == "head.kernel":
            continue
        conv = name.removesuffix(".kernel")
        norm = conv.replace("conv", "norm") if "conv" in conv else f"{conv}_norm"
        scale, bias, running, variance = (
            tensors[f"{norm}.{part}"].astype(dtype) for part in ("scale", "bias", "mean", "var")
        )
        factor = scale / xp.sqrt(variance + _EPSILON)
        folded[name] = (tensors[name].astype(dtype) * factor).astype(np.float32)
        folded[f"{conv}.bias"] = (bias - running * factor).astype(np.float32)
    return folded


def cast(folded: Arrays, dtype: DTypeLike, *, biases: DTypeLike = jnp.float32) -> Tensors:
    """Put weights on the device: kernels in `dtype`, biases in theirs; the head's and all else in float32."""
    types = {"kernel": dtype, "bias": biases}

    def stored(name: str) -> DTypeLike:
        layer, _, part = name.rpartition(".")
        return jnp.float32 if layer == "head" or part not in types else types[part]

    return {name: jnp.asarray(value, stored(name)) for name, value in folded.items()}


def apply(weights: Tensors, images: jax.Array, convolve: Convolve | None = None) -> jax.Array:
    """Compute logits float32 [N, classes] of images float32 [N, H, W, C]; activations are of the kernels' type.

    Args:
      weights: by `cast`.
      images: float32 [N, H, W, C].
      convolve: what does its convolutions, with all that follows them, instead of plain JAX.
    """
    convolve = convolve or _convolve
    x = convolve(weights, "stem", _normalised(weights, images), 1)
    for block in range(_blocks(weights)):
        x = _basic(weights, f"blocks.{block}", x, convolve)
    return _head(weights, x)


def apply_resnet50(
    weights: Tensors, images: jax.Array, convolve: Convolve | None = None, pool: Callable[..., jax.Array] = max_pool
) -> jax.Array:
    """Compute the same of a folded ResNet-50.

    Args:
      weights: by `cast`.
      images: float32 [N, H, W, C].
      convolve, pool: what does its convolutions and its pool, instead of plain JAX.
    """
    convolve = convolve or _convolve
    x = pool(convolve(weights, "stem", _normalised(weights, images), 2))
    for block in range(_blocks(weights)):
        x = _bottleneck(weights, f"blocks.{block}", x, convolve)
    return _head(weights, x)


def resnet_by_kernel(folded: Mapping[str, Any], *, half: bool) -> tuple[ApplyFn, PyTree]:
    """Make (apply_fn, params) of a folded CIFAR ResNet by `kernels.resnet_cpu`; its plain params are its "plain".

    Args:
      folded: by `fold` or `fold_traced`.
      half: whether it computes in bfloat16.
    """
    folded = dict(folded)
    return resnet_cpu.classifier(folded, apply, cast(folded, jnp.bfloat16 if half else jnp.float32), half=half)


def resnet50_by_kernel(folded: Arrays, image_shape: tuple[int, ...]) -> tuple[ApplyFn, PyTree]:
    """Make (apply_fn, params) of a folded ResNet-50 by the kernels of `network_cpu`; gradients are the plain network's.

    Args:
      folded: by `fold`.
      image_shape: (H, W, C); images of another size are refused where that changes how a layer is computed.
    """
    layers: dict[str, network_cpu.Layer] = {}
    packed: Arrays = {}

    def prepare(
        weights: Tensors,
        name: str,
        x: jax.Array,
        stride: int,
        *,
        shortcut: jax.Array | None = None,
        relu: bool = True,
    ) -> jax.Array:
        kernel = folded[f"{name}.kernel"]
        pad = kernel.shape[0] // 2
        layers[name], packed[name] = network_cpu.prepare(
            kernel, image=x.shape[1:3], stride=(stride, stride), padding=(pad, pad)
        )
        return _convolve(weights, name, x, stride, shortcut=shortcut, relu=relu)

    def apply_fn(params: ByKernel, images: jax.Array) -> jax.Array:
        def convolve(
            weights: Tensors,
            name: str,
            x: jax.Array,
            stride: int,
            *,
            shortcut: jax.Array | None = None,
            relu: bool = True,
        ) -> jax.Array:
            layer = layers[name]._replace(activation="relu" if relu else "")
            return network_cpu.run(layer, x, params["packed"][name], weights[f"{name}.bias"], shortcut)

        def pool(x: jax.Array) -> jax.Array:
            return network_cpu.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

        return apply_resnet50(params["plain"], images, convolve, pool)

    plain = cast(folded, jnp.float32)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(partial(apply_resnet50, convolve=prepare), plain, images)
    params = {"plain": plain, "packed": {name: jnp.asarray(value) for name, value in packed.items()}}
    return network_cpu.with_gradients_of(apply_resnet50, apply_fn), params


def _blocks(weights: Tensors) -> int:
    return sum(name.endswith("conv1.kernel") for name in weights)


def _normalised(weights: Tensors, images: jax.Array) -> jax.Array:
    return ((images - weights["mean"]) / weights["std"]).astype(weights["stem.kernel"].dtype)


def _head(weights: Tensors, x: jax.Array) -> jax.Array:
    x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return x @ weights["head.kernel"] + weights["head.bias"]


def _bottleneck(weights: Tensors, name: str, x: jax.Array, convolve: Convolve) -> jax.Array:
    features_in, features = weights[f"{name}.conv1.kernel"].shape[2:]
    stride = 2 if features_in == 2 * features else 1  # the first block of a stage, but not of the first stage
    y = convolve(weights, f"{name}.conv1", x, 1)
    y = convolve(weights, f"{name}.conv2", y, stride)
    if f"{name}.projection.kernel" in weights:
        x = convolve(weights, f"{name}.projection", x, stride, relu=False)
    return convolve(weights, f"{name}.conv3", y, 1, shortcut=x)


def _basic(weights: Tensors, name: str, x: jax.Array, convolve: Convolve) -> jax.Array:
    features_in, features = weights[f"{name}.conv1.kernel"].shape[2:]
    stride = 1 if features == features_in else 2
    y = convolve(weights, f"{name}.conv1", x, stride)
    if f"{name}.projection.kernel" in weights:
        x = convolve(weights, f"{name}.projection", x, stride, relu=False)
    elif stride == 2:
        before = (features - features_in) // 2
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (before, features - features_in - before)))
    return convolve(weights, f"{name}.conv2", y, 1, shortcut=x)


def _convolution(kernel: jax.Array, x: jax.Array, stride: int) -> jax.Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve(
    weights: Tensors, name: str, x: jax.Array, stride: int, *, shortcut: jax.Array | None = None, relu: bool = True
) -> jax.Array:
    y = _convolution(weights[f"{name}.kernel"], x, stride).astype(jnp.float32) + weights[f"{name}.bias"]
    if shortcut is not None:
        y = y + shortcut.astype(jnp.float32)
    return (activations.relu(y) if relu else y).astype(x.dtype)


def _convolve_in_own_type(
    weights: Tensors, name: str, x: jax.Array, stride: int, *, shortcut: jax.Array | None = None, relu: bool = True
) -> jax.Array:
    """`_convolve` in the form that XLA knows as one call of cuDNN: no other type, and the ReLU a maximum."""
    y = _convolution(weights[f"{name}.kernel"], x, stride) + weights[f"{name}.bias"]
    if shortcut is not None:
        y = y + shortcut
    return jax.nn.relu(y) if relu else y


# The same functions for accelerators, where `cast` is to give biases of the kernels' type. Each is one object, by which
# a compiled program is found again.
apply_on_accelerator = partial(apply, convolve=_convolve_in_own_type)
apply_resnet50_on_accelerator = partial(apply_resnet50, convolve=_convolve_in_own_type)
