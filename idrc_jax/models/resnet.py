"""Residual networks for small images: depth 6n + 2 with basic blocks (He et al. 2016, section 4.2).

Three stages of n blocks with 16, 32 and 64 channels. Every padding is written out, so that strided
convolutions see the pixels that PyTorch's see.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from idrc_jax.core import validate
from idrc_jax.kernels.activations import relu

Shortcut = Literal["projection", "zero_pad"]
Convolution = Callable[..., jax.Array]  # called like `jax.lax.conv_general_dilated`
Chain = Callable[..., tuple[jax.Array, Any]]  # called like `kernels.residual_gpu.blocks`
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)

_he_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_linear_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Layers(NamedTuple):
    """What all layers share: compute type, convolution and random keys."""

    dtype: DTypeLike
    convolution: Convolution
    rngs: nnx.Rngs


def conv(features_in: int, features_out: int, size: int, stride: int, layers: Layers) -> nnx.Conv:
    """Make a convolution without a bias, of size x size pixels, that keeps height and width at stride 1."""
    return nnx.Conv(
        features_in,
        features_out,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=_he_fan_out,
        dtype=layers.dtype,
        conv_general_dilated=layers.convolution,
        rngs=layers.rngs,
    )


def batch_norm(features: int, layers: Layers) -> nnx.BatchNorm:
    """Make a batch normalisation with PyTorch's defaults."""
    # Flax's momentum is the weight of the old value: 0.9 is PyTorch's default of 0.1.
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=layers.dtype, rngs=layers.rngs)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: [N, H, W, C] -> [N, H/stride, W/stride, features]."""

    def __init__(self, features_in: int, features: int, stride: int, shortcut: Shortcut, layers: Layers) -> None:
        self.conv1 = conv(features_in, features, 3, stride, layers)
        self.norm1 = batch_norm(features, layers)
        self.conv2 = conv(features, features, 3, 1, layers)
        self.norm2 = batch_norm(features, layers)
        self.stride = stride
        self.new_channels = features - features_in
        self.changes_shape = stride != 1 or self.new_channels != 0
        if self.changes_shape and shortcut == "projection":
            self.projection = nnx.data(conv(features_in, features, 1, stride, layers))
            self.projection_norm = nnx.data(batch_norm(features, layers))
        else:
            self.projection = nnx.data(None)
            self.projection_norm = nnx.data(None)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = relu(self.norm1(self.conv1(x), use_running_average=not train))
        y = self.norm2(self.conv2(y), use_running_average=not train)
        return relu(y + self._shortcut(x, train))

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.changes_shape:
            return x
        if self.projection is not None and self.projection_norm is not None:
            return self.projection_norm(self.projection(x), use_running_average=not train)
        before = self.new_channels // 2
        channels = (before, self.new_channels - before)
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels))


class ResNet(nnx.Module):
    """A CIFAR ResNet with its input normalisation inside.

    Calls map images float32 [N, H, W, C] in [0, 1] (noisy ones may leave it) to logits float32 [N, classes].

    Args:
      depth: 6n + 2: 8, 20, 56, 110 ...
      classes: number of classes.
      channels: image channels.
      shortcut: "projection" (1x1 convolution, as in Cohen's networks) or "zero_pad" (option A of He et al.).
      mean, std: per channel, applied to the image before the first convolution.
      dtype: compute type; weights are float32.
      convolution: what convolves, called like `jax.lax.conv_general_dilated`.
      chain: what computes in training those blocks that change no shape, called like `kernels.residual_gpu.blocks`;
        None for the blocks themselves.
    """

    def __init__(
        self,
        *,
        depth: int,
        classes: int,
        channels: int = 3,
        shortcut: Shortcut = "projection",
        mean: tuple[float, ...] = CIFAR_MEAN,
        std: tuple[float, ...] = CIFAR_STD,
        dtype: DTypeLike = jnp.float32,
        convolution: Convolution = jax.lax.conv_general_dilated,
        chain: Chain | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if not 8 <= depth < 10_000 or (depth - 2) % 6:
            raise ValueError(f"Expected a ResNet depth of 6n + 2 (8, 20, 56, 110 ...) below 10,000, got {depth}.")
        validate.one_of("shortcut", shortcut, ("projection", "zero_pad"))
        if not len(mean) == len(std) == channels:
            raise ValueError(f"Expected a mean and a std for each of {channels} channels, got {mean} and {std}.")
        self.mean, self.std, self.dtype, self.chain = tuple(mean), tuple(std), dtype, chain
        layers = Layers(dtype, convolution, rngs)
        self.stem = conv(channels, 16, 3, 1, layers)
        self.stem_norm = batch_norm(16, layers)
        blocks = []
        features_in = 16
        for stage, features in enumerate((16, 32, 64)):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(features_in, features, stride, shortcut, layers))
                features_in = features
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(64, classes, kernel_init=_linear_default, bias_init=_head_bias, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = (images - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
        x = x.astype(self.dtype)
        x = relu(self.stem_norm(self.stem(x), use_running_average=not train))
        for changes, blocks in itertools.groupby(self.blocks, key=lambda block: block.changes_shape):
            if self.chain and train and not changes:
                x = _by_chain(self.chain, list(blocks), x)
                continue
            for block in blocks:
                x = block(x, train)
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return self.head(x).astype(jnp.float32)


def _by_chain(chain: Chain, blocks: Sequence[BasicBlock], x: jax.Array) -> jax.Array:
    """Compute blocks in training, with their running statistics."""
    layers: list[Any] = [((block.conv1, block.norm1), (block.conv2, block.norm2)) for block in blocks]
    weights = tuple(
        tuple((conv.kernel[...], norm.scale[...], norm.bias[...]) for conv, norm in block) for block in layers
    )
    x, found = chain(x, weights)
    for block, statistics in zip(layers, found, strict=True):
        for (_, norm), (mean, variance) in zip(block, statistics, strict=True):
            old = norm.momentum
            norm.mean[...] = old * norm.mean[...] + (1 - old) * mean
            norm.var[...] = old * norm.var[...] + (1 - old) * variance
    return x


def _head_bias(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, out_sharding: object = None
) -> jax.Array:
    # PyTorch's nn.Linear: uniform in +-1/sqrt(fan_in), and fan_in is 64 here.
    return jax.random.uniform(key, shape, dtype, -1 / 8, 1 / 8)
