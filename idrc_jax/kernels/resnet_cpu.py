"""The CIFAR ResNet on a CPU, as one call for a whole batch (`resnet_cpu.cc`); its twin is `models.folding.apply`."""

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.kernels import build

Array = Any  # NumPy's or, within a program, JAX's
_LANES = 16


def name(image_shape: tuple[int, ...], *, half: bool) -> str:
    """Of the kernel and, where it is not the vectors', its way: logits in bfloat16 differ by rounding between ways."""
    by_amx = half and build.asked("resnet_cpu.cc", "IdrcResnetByAmx", *image_shape)
    return "resnet_cpu, AMX" if by_amx else "resnet_cpu"


class Params(TypedDict):
    """Those of the plain twin, and the same packed for the kernel and for its gradient."""

    plain: dict[str, jax.Array]
    packed: jax.Array
    turned: jax.Array


def available() -> bool:
    """Say whether the kernel can be built here (it is, when this is first asked)."""
    targets = (("idrc_resnet", "IdrcResnet"), ("idrc_resnet_gradient", "IdrcResnetGradient"))
    return build.register("resnet_cpu.cc", targets)


def pack(folded: dict[str, Array], *, half: bool) -> Array:
    """Pack all weights in the order in which the kernel reads them, float32; each tensor begins at a multiple of 16.

    Args:
      folded: by `folding.fold`, or `fold_traced` to pack within a program.
      half: round the convolutions' weights to bfloat16, as `folding.cast` does.
    """
    parts = [folded["mean"], 1 / folded["std"].astype(np.float64)]
    for name in _layers(folded):
        parts += [_kernel(folded, name, half=half), folded[f"{name}.bias"]]
    return _joined([*parts, folded["head.kernel"], folded["head.bias"]])


def pack_turned(folded: dict[str, Array], *, half: bool) -> Array:
    """Pack the convolutions' kernels as their adjoints need them, in the same order: turned, [h, w, out, in].

    The stem's gets more channels, of zeros, up to 16 or a multiple of 32.
    """
    parts = []
    for name in _layers(folded):
        turned = _kernel(folded, name, half=half)[::-1, ::-1].swapaxes(2, 3)
        if name == "stem":
            channels = turned.shape[-1]
            more = (16 if channels <= 16 else -(-channels // 32) * 32) - channels
            turned = turned.__array_namespace__().pad(turned, ((0, 0), (0, 0), (0, 0), (0, more)))
        parts.append(turned)
    return _joined(parts)


def _layers(folded: dict[str, Array]) -> list[str]:
    names = [f"blocks.{b}.{layer}" for b in range(_blocks(folded)) for layer in ("conv1", "conv2", "projection")]
    return ["stem", *(name for name in names if f"{name}.kernel" in folded)]


def _kernel(folded: dict[str, Array], name: str, *, half: bool) -> Array:
    kernel = folded[f"{name}.kernel"]
    return np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32) if half else kernel


def _joined(parts: list[Array]) -> Array:
    xp = parts[-1].__array_namespace__()
    flat = [xp.asarray(value, dtype=np.float32).ravel() for value in parts]
    return xp.concatenate([xp.pad(value, (0, -len(value) % _LANES)) for value in flat])


def classifier(
    folded: dict[str, Array],
    twin: Callable[[dict[str, jax.Array], jax.Array], jax.Array],
    plain: dict[str, jax.Array],
    *,
    half: bool,
) -> tuple[Callable[[Params, jax.Array], jax.Array], Params]:
    """Make (apply_fn, params) of the folded network.

    Gradients with respect to images are the kernel's, too, those with respect to params the plain twin's.

    Args:
      folded: by `models.folding.fold` or `fold_traced`.
      twin, plain: the same network in plain JAX, as (params, images) -> logits, and its params.
      half: whether it computes in bfloat16.
    """
    classes = len(folded["head.bias"])
    attributes = {
        "blocks": np.int64(_blocks(folded) // 3),
        "projection": any("projection" in name for name in folded),
        "half": half,
    }

    @jax.custom_vjp
    def apply_fn(params: Params, images: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct((images.shape[0], classes), jnp.float32)
        call = jax.ffi.ffi_call("idrc_resnet", result, vmap_method="sequential")
        return call(images, params["packed"], **attributes)

    def forward(params: Params, images: jax.Array) -> tuple[jax.Array, tuple[Params, jax.Array]]:
        return apply_fn(params, images), (params, images)

    def backward(residuals: tuple[Params, jax.Array], cotangent: jax.Array) -> tuple[Params, jax.Array]:
        params, images = residuals
        result = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        call = jax.ffi.ffi_call("idrc_resnet_gradient", result, vmap_method="sequential")
        to_images = call(images, params["packed"], params["turned"], cotangent, **attributes)
        _, pullback = jax.vjp(lambda plain: twin(plain, images), params["plain"])
        (to_plain,) = pullback(cotangent)
        packed, turned = (jnp.zeros_like(params[name]) for name in ("packed", "turned"))
        return {"plain": to_plain, "packed": packed, "turned": turned}, to_images

    apply_fn.defvjp(forward, backward)
    packed, turned = jnp.asarray(pack(folded, half=half)), jnp.asarray(pack_turned(folded, half=half))
    return apply_fn, {"plain": plain, "packed": packed, "turned": turned}


def _blocks(folded: dict[str, Array]) -> int:
    return sum(name.endswith("conv1.kernel") for name in folded)
