"""Convolutions for training on a CPU (`convolution_cpu.cc`); their twin is `jax.lax.conv_general_dilated`.

For a program of one device: under automatic sharding each device would compute the whole batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.kernels import build

Padding = Sequence[tuple[int, int]]
_CHANNELS = 16
_NHWC = ("NHWC", "HWIO", "NHWC")


def available() -> bool:
    """Say whether the kernel can be built here (it is, when this is first asked)."""
    targets = (("idrc_convolution", "IdrcConvolution"), ("idrc_weight_gradient", "IdrcWeightGradient"))
    return build.register("convolution_cpu.cc", targets)


def serves(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding) -> bool:
    """Say whether the kernel does this convolution.

    It does 3x3 and 1x1, of stride 1 or 2, in float32, padded by half the kernel, to a multiple of 16 channels.

    Args:
      x: [N, H, W, C].
      kernel: [h, w, C, C'].
      strides, padding: of height and width.
    """
    size, features = kernel.shape[0], kernel.shape[-1]
    return (
        kernel.shape[:2] in ((1, 1), (3, 3))
        and tuple(strides) in ((1, 1), (2, 2))
        and [tuple(pair) for pair in padding] == [(size // 2, size // 2)] * 2
        and features % _CHANNELS == 0
        and min(*x.shape[1:3], features) > 0
        and x.dtype == kernel.dtype == jnp.float32
    )


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, window_strides: Sequence[int], padding: Padding, **options: Any
) -> jax.Array:
    """Compute `jax.lax.conv_general_dilated` by the kernel where it serves.

    Args:
      x: [N, H, W, C].
      kernel: [h, w, C, C'].
      window_strides, padding, options: as `jax.lax.conv_general_dilated` takes them.
    """
    dilation = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    plain = all(one == 1 for one in dilation) and options.get("feature_group_count", 1) == 1
    if plain and serves(x, kernel, window_strides, padding):
        return _convolve(x, kernel, window_strides[0])
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    count, height, width, _ = x.shape
    result = jax.ShapeDtypeStruct((count, -(-height // stride), -(-width // stride), kernel.shape[-1]), x.dtype)
    return jax.ffi.ffi_call("idrc_convolution", result)(x, kernel, stride=np.int64(stride))


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    gradient = jax.ffi.ffi_call("idrc_weight_gradient", jax.ShapeDtypeStruct(kernel.shape, kernel.dtype))
    to_kernel = gradient(x, cotangent, stride=np.int64(stride))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    pad = kernel.shape[0] // 2
    if stride == 1 and serves(cotangent, turned, (1, 1), ((pad, pad), (pad, pad))):
        return _convolve(cotangent, turned, 1), to_kernel

    def plain(x: jax.Array) -> jax.Array:
        strides, padding = (stride, stride), ((pad, pad), (pad, pad))
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NHWC)

    (to_x,) = jax.linear_transpose(plain, x)(cotangent)
    return to_x, to_kernel


_convolve.defvjp(_forward, _backward)
