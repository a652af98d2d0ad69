"""ImageNet's ResNet-50 with bottleneck blocks (He et al. 2016), in the layout of torchvision: v1.5, stride in the 3x3.

Every padding is written out, so that strided convolutions and the max-pool see the pixels that PyTorch's see.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from idrc_jax.kernels.activations import relu
from idrc_jax.models.resnet import Convolution, Layers, batch_norm, conv

STAGES = (3, 4, 6, 3)
_POOL_PADDING = ((0, 0), (1, 1), (1, 1), (0, 0))  # with -inf
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def max_pool(x: jax.Array) -> jax.Array:
    """Take the largest of 3x3 pixels, at every second one: [N, H, W, C] -> [N, H/2, W/2, C]."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), _POOL_PADDING)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: [N, H, W, C] -> [N, H/stride, W/stride, 4 * features]."""

    def __init__(self, features_in: int, features: int, stride: int, layers: Layers) -> None:
        self.conv1 = conv(features_in, features, 1, 1, layers)
        self.norm1 = batch_norm(features, layers)
        self.conv2 = conv(features, features, 3, stride, layers)
        self.norm2 = batch_norm(features, layers)
        self.conv3 = conv(features, 4 * features, 1, 1, layers)
        self.norm3 = batch_norm(4 * features, layers)
        if stride != 1 or features_in != 4 * features:
            self.projection = nnx.data(conv(features_in, 4 * features, 1, stride, layers))
            self.projection_norm = nnx.data(batch_norm(4 * features, layers))
        else:
            self.projection = nnx.data(None)
            self.projection_norm = nnx.data(None)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = relu(self.norm1(self.conv1(x), use_running_average=not train))
        y = relu(self.norm2(self.conv2(y), use_running_average=not train))
        y = self.norm3(self.conv3(y), use_running_average=not train)
        if self.projection is not None and self.projection_norm is not None:
            x = self.projection_norm(self.projection(x), use_running_average=not train)
        return relu(y + x)


class ResNet50(nnx.Module):
    """ResNet-50 with its input normalisation inside.

    Calls map images float32 [N, H, W, 3] in [0, 1] (noisy ones may leave it) to logits float32 [N, classes].

    Args:
      classes: number of classes.
      mean, std: per channel, applied to the image before the first convolution.
      dtype: compute type; weights are float32.
      convolution: what convolves, called like `jax.lax.conv_general_dilated`.
    """

    def __init__(
        self,
        *,
        classes: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        dtype: DTypeLike = jnp.float32,
        convolution: Convolution = jax.lax.conv_general_dilated,
        rngs: nnx.Rngs,
    ) -> None:
        if not len(mean) == len(std) == 3:
            raise ValueError(f"Expected a mean and a std for each of 3 channels, got {mean} and {std}.")
        self.mean, self.std, self.dtype = tuple(mean), tuple(std), dtype
        layers = Layers(dtype, convolution, rngs)
        self.stem = conv(3, 64, 7, 2, layers)
        self.stem_norm = batch_norm(64, layers)
        blocks = []
        features_in = 64
        for stage, count in enumerate(STAGES):
            features = 64 * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(features_in, features, stride, layers))
                features_in = 4 * features
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(features_in, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = (images - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
        x = x.astype(self.dtype)
        x = relu(self.stem_norm(self.stem(x), use_running_average=not train))
        x = max_pool(x)
        for block in self.blocks:
            x = block(x, train)
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return self.head(x).astype(jnp.float32)
