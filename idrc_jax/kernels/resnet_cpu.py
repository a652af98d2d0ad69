"""The CIFAR ResNet on a CPU, as one call for a whole batch (`resnet_cpu.cc`); its twin is `models.folding.apply`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.kernels import build
from idrc_jax.models import folding

_LANES = 16


def available() -> bool:
    """Whether the kernel can be built here (it is, when this is first asked)."""
    return build.register("resnet_cpu.cc", (("idrc_resnet", "IdrcResnet"),))


def pack(folded: dict[str, np.ndarray], *, half: bool) -> np.ndarray:
    """All weights in the order in which the kernel reads them, float32; each tensor begins at a multiple of 16.

    Args:
      folded: by `folding.fold`.
      half: round the convolutions' weights to bfloat16, as `folding.cast` does.
    """
    parts: list[np.ndarray] = []

    def add(value: np.ndarray) -> None:
        flat = np.asarray(value, np.float32).ravel()
        parts.append(np.pad(flat, (0, -len(flat) % _LANES)))

    def add_layer(name: str) -> None:
        kernel = folded[f"{name}.kernel"]
        add(np.asarray(jnp.asarray(kernel, jnp.bfloat16)) if half else kernel)
        add(folded[f"{name}.bias"])

    add(folded["mean"])
    add(1 / folded["std"].astype(np.float64))
    add_layer("stem")
    for block in range(_blocks(folded)):
        for layer in ("conv1", "conv2", "projection"):
            if f"blocks.{block}.{layer}.kernel" in folded:
                add_layer(f"blocks.{block}.{layer}")
    add(folded["head.kernel"])
    add(folded["head.bias"])
    return np.concatenate(parts)


def classifier(folded: dict[str, np.ndarray], *, half: bool) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    """(apply_fn, params) of the folded network. Gradients are those of the plain twin."""
    classes = len(folded["head.bias"])
    attributes = {
        "blocks": np.int64(_blocks(folded) // 3),
        "projection": any("projection" in name for name in folded),
        "half": half,
    }

    @jax.custom_vjp
    def apply_fn(params: Any, images: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct((images.shape[0], classes), jnp.float32)
        call = jax.ffi.ffi_call("idrc_resnet", result, vmap_method="sequential")
        return call(images, params["packed"], **attributes)

    def forward(params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        return apply_fn(params, images), (params, images)

    def backward(residuals: Any, cotangent: jax.Array) -> tuple[Any, jax.Array]:
        params, images = residuals
        _, pullback = jax.vjp(folding.apply, params["plain"], images)
        plain, to_images = pullback(cotangent)
        return {"plain": plain, "packed": jnp.zeros_like(params["packed"])}, to_images

    apply_fn.defvjp(forward, backward)
    plain = folding.cast(folded, jnp.bfloat16 if half else jnp.float32)
    return apply_fn, {"plain": plain, "packed": jnp.asarray(pack(folded, half=half))}


def _blocks(folded: dict[str, np.ndarray]) -> int:
    return sum(name.endswith("conv1.kernel") for name in folded)
