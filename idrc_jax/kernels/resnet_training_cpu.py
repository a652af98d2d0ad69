"""The CIFAR ResNet in training on a CPU, forward and backward one call each (`resnet_training_cpu.cc`).

Its twin is `models.resnet.ResNet` with `train=True`. For a program of one device: under automatic sharding each device
would compute the whole batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from idrc_jax.kernels import build

Tensors = dict[str, jax.Array]
_FEATURES = 64


def available() -> bool:
    """Say whether the kernel can be built here (it is, when this is first asked)."""
    targets = (("idrc_training_forward", "IdrcTrainingForward"), ("idrc_training_backward", "IdrcTrainingBackward"))
    return build.register("resnet_training_cpu.cc", targets)


class _Network(NamedTuple):
    """What is static: blocks a stage, whether shortcuts are projections, and the image's normalisation."""

    blocks: int
    projection: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def layers(self) -> list[tuple[str, str]]:
        """Names of convolutions and their normalisations, in the kernel's order."""
        names = [("stem", "stem_norm")]
        for block in range(3 * self.blocks):
            names += [(f"blocks.{block}.{conv}", f"blocks.{block}.{norm}") for conv, norm in _IN_BLOCK]
            if self.projection and block in (self.blocks, 2 * self.blocks):
                names.append((f"blocks.{block}.projection", f"blocks.{block}.projection_norm"))
        return names

    @property
    def attributes(self) -> dict[str, np.int64 | bool]:
        return {"blocks": np.int64(self.blocks), "projection": self.projection}

    def image_statistics(self) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.mean, jnp.float32), jnp.asarray(1 / np.asarray(self.std, np.float64), jnp.float32)


_IN_BLOCK = (("conv1", "norm1"), ("conv2", "norm2"))


def network(
    *, depth: int, shortcut: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Tensors, Tensors, jax.Array], tuple[jax.Array, Tensors]]:
    """Make the function (params, stats, images [N, H, W, C]) -> (logits [N, classes], new stats) of the network.

    Tensors are named as `models.split` names them. Gradients are those with respect to params and images.

    Args:
      depth, shortcut: of the ResNet.
      mean, std: of each channel, of the images' normalisation.
    """
    static = _Network((depth - 2) // 6, shortcut == "projection", tuple(mean), tuple(std))

    def apply(params: Tensors, stats: Tensors, images: jax.Array) -> tuple[jax.Array, Tensors]:
        arrays = [
            array
            for conv, norm in static.layers
            for array in (
                params[f"{conv}.kernel"], params[f"{norm}.scale"], params[f"{norm}.bias"],
                stats[f"{norm}.mean"], stats[f"{norm}.var"],
            )
        ]  # fmt: skip
        made: Any = _features(static, images, arrays)
        features, statistics = made
        names = [f"{norm}.{part}" for _, norm in static.layers for part in ("mean", "var")]
        return features @ params["head.kernel"] + params["head.bias"], dict(zip(names, statistics, strict=True))

    return apply


def _run_forward(
    static: _Network, images: jax.Array, arrays: list[jax.Array], *, keep: bool
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Features [N, 64], the name of what is kept for the gradients, and new running statistics."""
    statistics = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for at, array in enumerate(arrays) if at % 5 > 2]
    results = [
        jax.ShapeDtypeStruct((images.shape[0], _FEATURES), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        *statistics,
    ]
    call = jax.ffi.ffi_call("idrc_training_forward", results, vmap_method="sequential")
    features, name, *new = call(images, *static.image_statistics(), *arrays, **static.attributes, keep=keep)
    return features, name, new


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _features(static: _Network, images: jax.Array, arrays: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    features, _, statistics = _run_forward(static, images, arrays, keep=False)
    return features, statistics


# Images, arrays, the name of what the kernel keeps, and () where gradients of images are asked for, else None.
_Residuals = tuple[jax.Array, list[jax.Array], jax.Array, tuple[()] | None]


def _forward(
    static: _Network, images: CustomVJPPrimal, arrays: list[CustomVJPPrimal]
) -> tuple[tuple[jax.Array, list[jax.Array]], _Residuals]:
    values = [array.value for array in arrays]
    features, name, statistics = _run_forward(static, images.value, values, keep=True)
    asked = () if images.perturbed else None  # told by the structure, which is static
    return (features, statistics), (images.value, values, name, asked)


def _backward(
    static: _Network, residuals: _Residuals, cotangents: tuple[jax.Array | SymbolicZero, list[jax.Array]]
) -> tuple[jax.Array, list[jax.Array]]:
    images, arrays, name, asked = residuals
    to_features, _ = cotangents
    to_images = asked is not None
    if isinstance(to_features, SymbolicZero):
        to_features = jnp.zeros((images.shape[0], _FEATURES), jnp.float32)
    results = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for at, array in enumerate(arrays) if at % 5 < 3]
    if to_images:
        results.append(jax.ShapeDtypeStruct(images.shape, jnp.float32))
    call = jax.ffi.ffi_call("idrc_training_backward", results, vmap_method="sequential")
    found = list(
        call(
            images, *static.image_statistics(), to_features, name, *arrays, **static.attributes, to_images=to_images
        )
    )  # fmt: skip
    to_pixels = found.pop() if to_images else jnp.zeros_like(images)
    found.reverse()
    return to_pixels, [found.pop() if at % 5 < 3 else jnp.zeros_like(array) for at, array in enumerate(arrays)]


_features.defvjp(_forward, _backward, symbolic_zeros=True)
