"""Convolutions for training on a CPU (`convolution_cpu.cc`); their twin is `jax.lax.conv_general_dilated`.

Of one device: under automatic sharding each device would compute the whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from idrc_jax.kernels import build

_CHANNELS = (16, 32, 64)
_TILE = 4


def available() -> bool:
    """Whether the kernel can be built here (it is, when this is first asked)."""
    targets = (("idrc_convolution", "IdrcConvolution"), ("idrc_weight_gradient", "IdrcWeightGradient"))
    return build.register("convolution_cpu.cc", targets)


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of [N, H, W, C] and [h, w, C, C'], by the kernel where it serves.

    It serves 3x3 convolutions of float32, stride 1 and padding 1 that keep 16, 32 or 64 channels, on images whose
    sizes are multiples of 4.
    """
    *_, height, width, channels = x.shape
    if (
        kernel.shape == (3, 3, channels, channels)
        and channels in _CHANNELS
        and height % _TILE == width % _TILE == 0
        and tuple(window_strides) == (1, 1)
        and [tuple(pair) for pair in padding] == [(1, 1), (1, 1)]
        and x.dtype == kernel.dtype == jnp.float32
    ):
        return _convolve(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.ffi.ffi_call("idrc_convolution", jax.ShapeDtypeStruct(x.shape, x.dtype))(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    gradient = jax.ffi.ffi_call("idrc_weight_gradient", jax.ShapeDtypeStruct(kernel.shape, kernel.dtype))
    return _convolve(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3)), gradient(x, cotangent)


_convolve.defvjp(_forward, _backward)
