"""The Vision Transformer (Dosovitskiy et al. 2021): patches and a class token through pre-norm encoder blocks.

Linear layers and attention are computed in `dtype`; the residual stream, layer norms, softmax and the head in float32.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from idrc_jax.core import validate

Resize = Literal["bilinear", "bicubic"]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # called like `jax.nn.dot_product_attention`

_EPSILON = 1e-12
_position = nnx.initializers.truncated_normal(0.02)


class Attention(nnx.Module):
    """Self-attention of several heads: queries [N, Q, width], tokens [N, T, width] -> [N, Q, width]."""

    def __init__(self, width: int, heads: int, dtype: DTypeLike, attend: Attend | None, rngs: nnx.Rngs) -> None:
        self.heads, self.attend = heads, attend
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, queries: jax.Array, tokens: jax.Array) -> jax.Array:
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.heads, -1)

        # One query's scores are few, and not every fused kernel takes it.
        attend = self.attend if self.attend and queries.shape[1] > 1 else jax.nn.dot_product_attention
        mixed = attend(split(self.query(queries)), split(self.key(tokens)), split(self.value(tokens)))
        return self.out(mixed.reshape(queries.shape))


class EncoderBlock(nnx.Module):
    """Attention, then two linear layers, each after a layer norm and beside a shortcut: [N, T, width] -> the same."""

    def __init__(
        self, width: int, heads: int, mlp: int, dtype: DTypeLike, attend: Attend | None, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = _layer_norm(width, rngs)
        self.attention = Attention(width, heads, dtype, attend, rngs)
        self.norm2 = _layer_norm(width, rngs)
        self.fc1 = nnx.Linear(width, mlp, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(mlp, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, first: int | None = None) -> jax.Array:
        """The tokens after this block: all, or the `first` alone."""
        y = self.norm1(x)
        x = x[:, :first] + self.attention(y[:, :first], y)
        y = self.fc1(self.norm2(x))
        return x + self.fc2(jax.nn.gelu(y, approximate=False))


class ViT(nnx.Module):
    """A Vision Transformer with its input normalisation inside.

    Calls map images float32 [N, H, W, C] in [0, 1] (noisy ones may leave it) to logits float32 [N, classes]. Images of
    another size than the network's are resized first, as Pillow does it (antialiased where they are larger).

    Args:
      size: height and width of the images that the patches are cut from.
      patch: height and width of a patch.
      width: features of a token.
      depth: number of blocks.
      heads: of the attention; they share the width.
      mlp: features between the two linear layers of a block.
      classes: number of classes.
      channels: image channels.
      mean, std: per channel, applied to the image first.
      resize: "bilinear" or "bicubic".
      dtype: compute type; weights are float32.
      attend: what attends instead of XLA, called like `jax.nn.dot_product_attention`.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        classes: int,
        channels: int = 3,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        resize: Resize = "bilinear",
        dtype: DTypeLike = jnp.float32,
        attend: Attend | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if size % patch:
            raise ValueError(f"Expected an image size in whole patches, got {size} with patches of {patch}.")
        if width % heads:
            raise ValueError(f"Expected a width that the heads share equally, got {width} with {heads} heads.")
        validate.one_of("resize", resize, ("bilinear", "bicubic"))
        if not len(mean) == len(std) == channels:
            raise ValueError(f"Expected a mean and a std for each of {channels} channels, got {mean} and {std}.")
        self.mean, self.std, self.size, self.resize = tuple(mean), tuple(std), size, resize
        self.patches = nnx.Conv(channels, width, (patch, patch), strides=patch, padding="VALID", dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.positions = nnx.Param(_position(rngs.params(), (1, (size // patch) ** 2 + 1, width), jnp.float32))
        self.blocks = nnx.List([EncoderBlock(width, heads, mlp, dtype, attend, rngs) for _ in range(depth)])
        self.norm = _layer_norm(width, rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = (images - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
        x = jax.image.resize(x, (x.shape[0], self.size, self.size, x.shape[3]), self.resize)
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...]
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x = last(x, first=1)  # the class token, all that is read
        return self.head(self.norm(x[:, 0]))


def _layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=_EPSILON, use_fast_variance=False, rngs=rngs)
