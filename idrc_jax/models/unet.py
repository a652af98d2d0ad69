"""The U-Net of denoising diffusion (Ho et al. 2020; the variants of Dhariwal & Nichol 2021).

Every padding is written out, so that strided convolutions see the pixels that PyTorch's see. Group norm, softmax and
the time embedding are float32 in any compute type.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from idrc_jax.core import validate
from idrc_jax.models.resnet import Convolution
from idrc_jax.models.vit import Attend

_ddpm = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_zeros = nnx.initializers.zeros_init()
Padding = tuple[tuple[int, int], tuple[int, int]]  # before and after, of height and width
_BOTH = ((1, 1), (1, 1))
_NONE = ((0, 0), (0, 0))
_AFTER = ((0, 1), (0, 1))


class Layers(NamedTuple):
    """What all layers share."""

    groups: int
    epsilon: float
    head_channels: int
    scale_shift: bool
    time_features: int
    dtype: DTypeLike
    convolution: Convolution
    attend: Attend | None
    rngs: nnx.Rngs


class Conv(nnx.Module):
    """A convolution of size x size pixels with a bias, and with what the time adds to it."""

    def __init__(
        self,
        features_in: int,
        features: int,
        layers: Layers,
        *,
        size: int = 3,
        stride: int = 1,
        padding: Padding = _BOTH,
        init: nnx.Initializer = _ddpm,
    ) -> None:
        self.kernel = nnx.Param(init(layers.rngs.params(), (size, size, features_in, features), jnp.float32))
        self.bias = nnx.Param(_zeros(layers.rngs.params(), (features,), jnp.float32))
        self.strides, self.padding = (stride, stride), padding
        self.dtype, self.convolution = layers.dtype, layers.convolution

    def __call__(self, x: jax.Array, told: jax.Array | None = None) -> jax.Array:
        """Convolve [N, H, W, features_in], add `told` [N or 1, features]: [N, H', W', features]."""
        x, kernel, bias = (one.astype(self.dtype) for one in (x, self.kernel[...], self.bias[...]))
        y = self.convolution(x, kernel, self.strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if told is None:
            return y + bias
        if told.shape[0] > 1:
            return y + bias + told[:, None, None]
        # On accelerators as one bias, which XLA makes a part of cuDNN's convolution.
        return jax.lax.platform_dependent(
            y, bias, told[0], cpu=lambda y, bias, told: y + bias + told, default=lambda y, bias, told: y + (bias + told)
        )


def _linear(features_in: int, features: int, layers: Layers, init: nnx.Initializer = _ddpm) -> nnx.Linear:
    return nnx.Linear(features_in, features, kernel_init=init, dtype=layers.dtype, rngs=layers.rngs)


def enlarge(x: jax.Array) -> jax.Array:
    """Repeat each pixel twice in both directions: [N, H, W, C] -> [N, 2H, 2W, C]."""
    count, height, width, features = x.shape
    twice = jnp.broadcast_to(x[:, :, None, :, None], (count, height, 2, width, 2, features))
    return twice.reshape(count, 2 * height, 2 * width, features)


def shrink(x: jax.Array) -> jax.Array:
    """Average 2 x 2 pixels: [N, H, W, C] -> [N, H/2, W/2, C]."""
    count, height, width, features = x.shape
    return x.reshape(count, height // 2, 2, width // 2, 2, features).mean((2, 4))


_RESIZE = {"": lambda x: x, "up": enlarge, "down": shrink}


class GroupNorm(nnx.Module):
    """Group norm, then optionally x * (1 + scale) + shift per channel: [N, H, W, C] -> float32 [N, H, W, C]."""

    def __init__(self, features: int, layers: Layers) -> None:
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.groups, self.epsilon = layers.groups, layers.epsilon

    def __call__(self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
        # Moments of each channel first, and one factor and one addend of each channel last: the image is read twice.
        x = x.astype(jnp.float32)
        mean = self._over_group(jnp.mean(x, (1, 2)))
        variance = jnp.maximum(self._over_group(jnp.mean(jnp.square(x), (1, 2))) - jnp.square(mean), 0)
        factor = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...][None]
        addend = self.bias[...][None] - mean * factor
        if scale is not None and shift is not None:
            factor, addend = factor * (1 + scale), addend * (1 + scale) + shift
        return x * factor[:, None, None] + addend[:, None, None]

    def _over_group(self, values: jax.Array) -> jax.Array:
        """Each channel's value -> the mean over its group: [N, C] -> [N, C]."""
        grouped = values.reshape(values.shape[0], self.groups, -1)
        return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(values.shape)


class ResidualBlock(nnx.Module):
    """Two norms, SiLUs and 3x3 convolutions, told the time, and a shortcut; "up" or "down" it also resizes.

    Calls map x [N, H, W, features_in] and the activated time embedding [N or 1, T] to [N, H', W', features].
    """

    def __init__(self, features_in: int, features: int, layers: Layers, resize: str = "") -> None:
        self.norm1 = GroupNorm(features_in, layers)
        self.conv1 = Conv(features_in, features, layers)
        self.time = _linear(layers.time_features, features * (2 if layers.scale_shift else 1), layers)
        self.norm2 = GroupNorm(features, layers)
        self.conv2 = Conv(features, features, layers, init=_zeros)
        if features_in != features:
            self.shortcut = nnx.data(Conv(features_in, features, layers, size=1, padding=_NONE))
        else:
            self.shortcut = nnx.data(None)
        self.scale_shift, self.resize = layers.scale_shift, resize

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        resize = _RESIZE[self.resize]
        y = resize(nnx.silu(self.norm1(x)))
        told = self.time(time)
        if self.scale_shift:
            y = self.norm2(self.conv1(y), *jnp.split(told.astype(jnp.float32), 2, axis=-1))
        else:
            y = self.norm2(self.conv1(y, told))
        x = resize(x)
        return self.conv2(nnx.silu(y)) + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """Self-attention over all pixels with a residual connection: [N, H, W, C] -> [N, H, W, C]."""

    def __init__(self, features: int, layers: Layers, norm: bool = True) -> None:
        self.norm = nnx.data(GroupNorm(features, layers) if norm else None)
        self.query = _linear(features, features, layers)
        self.key = _linear(features, features, layers)
        self.value = _linear(features, features, layers)
        self.out = _linear(features, features, layers, init=_zeros)
        self.head_channels, self.attend = layers.head_channels or features, layers.attend

    def __call__(self, x: jax.Array) -> jax.Array:
        y = (x if self.norm is None else self.norm(x)).reshape(-1, x.shape[3])  # flat, or XLA adds each bias by a pass
        heads = (x.shape[0], x.shape[1] * x.shape[2], x.shape[3] // self.head_channels, self.head_channels)
        query, key, value = (one(y).reshape(heads) for one in (self.query, self.key, self.value))
        if self.attend:
            mixed = self.attend(query, key, value)
        else:
            scores = jnp.einsum("nqhc,nkhc->nhqk", query, key, preferred_element_type=jnp.float32)
            weights = nnx.softmax(scores * self.head_channels**-0.5).astype(value.dtype)
            mixed = jnp.einsum("nhqk,nkhc->nqhc", weights, value)
        return x + self.out(mixed.reshape(y.shape)).reshape(x.shape)


class Resample(nnx.Module):
    """Half the size by a convolution of stride 2, or twice the size and a convolution; the time plays no part."""

    def __init__(self, features: int, layers: Layers, resize: str, padding: Padding = _BOTH) -> None:
        self.conv = Conv(features, features, layers, stride=2 if resize == "down" else 1, padding=padding)
        self.resize = resize

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        return self.conv(enlarge(x) if self.resize == "up" else x)


class Level(nnx.Module):
    """The residual blocks of one resolution, each with attention behind it or not, and the way to the next."""

    def __init__(
        self,
        features_in: Sequence[int],
        features: int,
        layers: Layers,
        *,
        attention: bool,
        resample: Resample | ResidualBlock | None,
    ) -> None:
        self.blocks = nnx.List([ResidualBlock(one, features, layers) for one in features_in])
        self.attentions = nnx.List([Attention(features, layers) for _ in features_in if attention])
        self.resample = nnx.data(resample)

    def step(self, k: int, x: jax.Array, time: jax.Array) -> jax.Array:
        """Run the k-th block and its attention."""
        x = self.blocks[k](x, time)
        return self.attentions[k](x) if len(self.attentions) else x


class UNet(nnx.Module):
    """A U-Net that predicts the noise, or another image, from a noisy image and its time.

    Calls map x float [N, H, W, channels] and t float32 [N] or scalar (0-based steps, fractions allowed) to
    float32 [N, H, W, channels_out]; H and W are multiples of 2 ** (len(widths) - 1).

    Args:
      channels, channels_out: of the image and of the prediction.
      widths: channels of each resolution, from the full one down; each step down halves height and width.
      blocks: residual blocks of each resolution on the way down; one more on the way up.
      attention: for each resolution, whether self-attention follows its blocks.
      middle_attention, middle_norm: whether the lowest resolution's middle has attention, and that a group norm.
      head_channels: channels of an attention head; 0 is one head.
      groups, epsilon: of every group norm.
      scale_shift: whether the time scales and shifts the second norm's output; else it is added before that norm.
      resample: "conv" (Ho et al.) or "resnet" (residual blocks that resize, Dhariwal & Nichol).
      downsample_padding: of the "conv" that halves: 1 on each side, or 0, which pads one row and column at the end.
      flip_sin_to_cos, frequency_shift: order and frequencies of the time embedding; Ho et al. have sines first and 1.
      dtype: compute type; weights are float32.
      convolution: what convolves, called like `jax.lax.conv_general_dilated`.
      attend: what attends instead of XLA, called like `jax.nn.dot_product_attention`.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        channels_out: int = 3,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        middle_attention: bool = True,
        middle_norm: bool = True,
        head_channels: int = 0,
        groups: int = 32,
        epsilon: float = 1e-6,
        scale_shift: bool = False,
        resample: str = "conv",
        downsample_padding: int = 1,
        flip_sin_to_cos: bool = False,
        frequency_shift: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        convolution: Convolution = jax.lax.conv_general_dilated,
        attend: Attend | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        _check(widths, blocks, attention, middle_attention, head_channels, groups, epsilon)
        validate.one_of("resample", resample, ("conv", "resnet"))
        if downsample_padding not in (0, 1):
            raise ValueError(f"Expected downsample_padding 0 or 1, got {downsample_padding}.")
        half, first, lowest = widths[0] // 2, widths[0], widths[-1]
        if frequency_shift >= half:
            raise ValueError(f"Expected frequency_shift < {half}, half of the first width, got {frequency_shift}.")
        layers = Layers(groups, epsilon, head_channels, scale_shift, 4 * first, dtype, convolution, attend, rngs)
        self.half, self.flip_sin_to_cos, self.frequency_shift = half, flip_sin_to_cos, frequency_shift
        self.dtype = dtype
        exact = layers._replace(dtype=jnp.float32)
        self.time1 = _linear(first, layers.time_features, exact)
        self.time2 = _linear(layers.time_features, layers.time_features, exact)
        self.stem = Conv(channels, first, layers)

        def resampling(features: int, resize: str) -> Resample | ResidualBlock:
            if resample == "resnet":
                return ResidualBlock(features, features, layers, resize)
            padding = _AFTER if resize == "down" and downsample_padding == 0 else _BOTH
            return Resample(features, layers, resize, padding)

        down, skips, x = [], [first], first
        for k, width in enumerate(widths):
            last = k == len(widths) - 1
            inputs = [x] + [width] * (blocks - 1)
            way = None if last else resampling(width, "down")
            down.append(Level(inputs, width, layers, attention=attention[k], resample=way))
            skips += [width] * (blocks if last else blocks + 1)
            x = width
        self.down = nnx.List(down)
        self.middle = nnx.List([ResidualBlock(lowest, lowest, layers) for _ in range(2)])
        self.middle_attention = nnx.data(Attention(lowest, layers, middle_norm) if middle_attention else None)
        up = []
        for k, width in reversed(list(enumerate(widths))):
            inputs = [before + skips.pop() for before in [x] + [width] * blocks]
            way = None if k == 0 else resampling(width, "up")
            up.append(Level(inputs, width, layers, attention=attention[k], resample=way))
            x = width
        self.up = nnx.List(up)
        self.head_norm = GroupNorm(first, layers)
        self.head = Conv(first, channels_out, layers, init=_zeros)

    def __call__(self, x: jax.Array, t: jax.Array | float) -> jax.Array:
        multiple = 2 ** (len(self.down) - 1)
        if x.shape[1] % multiple or x.shape[2] % multiple:
            raise ValueError(f"Expected images whose height and width are multiples of {multiple}, got {x.shape[1:3]}.")
        time = nnx.silu(self.time2(nnx.silu(self.time1(self._embed(t)))))
        x = self.stem(x.astype(self.dtype))
        skips = [x]
        for level in self.down:
            for k in range(len(level.blocks)):
                x = level.step(k, x, time)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x, time)
                skips.append(x)
        x = self.middle[0](x, time)
        if self.middle_attention is not None:
            x = self.middle_attention(x)
        x = self.middle[1](x, time)
        for level in self.up:
            for k in range(len(level.blocks)):
                x = level.step(k, jnp.concatenate((x, skips.pop()), axis=-1), time)
            if level.resample is not None:
                x = level.resample(x, time)
        return self.head(nnx.silu(self.head_norm(x))).astype(jnp.float32)

    def _embed(self, t: jax.Array | float) -> jax.Array:
        """Times [N] or one time -> sines and cosines float32 [N or 1, widths[0]]."""
        frequencies = 10_000.0 ** (-np.arange(self.half) / (self.half - self.frequency_shift))
        angles = jnp.atleast_1d(jnp.asarray(t, jnp.float32))[:, None] * frequencies.astype(np.float32)[None]
        waves = (jnp.sin(angles), jnp.cos(angles))
        return jnp.concatenate(waves[::-1] if self.flip_sin_to_cos else waves, axis=-1)


def _check(
    widths: Sequence[int],
    blocks: int,
    attention: Sequence[bool],
    middle_attention: bool,
    head_channels: int,
    groups: int,
    epsilon: float,
) -> None:
    """ValueError for settings that make no network."""
    validate.count("blocks", blocks, 1)
    validate.count("groups", groups, 1)
    for width in widths:
        validate.count("widths", width, 1)
    if not all(isinstance(flag, bool) for flag in attention):
        raise ValueError(f"Expected attention to be True or False for each width, got {attention}.")
    validate.at_least("head_channels", head_channels, 0)
    validate.positive("epsilon", epsilon)
    if not widths or len(widths) != len(attention):
        raise ValueError(f"Expected an attention flag for each width, got widths {widths} and attention {attention}.")
    if any(width < 1 or width % groups for width in widths) or widths[0] % 2:
        raise ValueError(f"Expected widths that are multiples of {groups} groups, the first one even, got {widths}.")
    attended = [width for width, flag in zip(widths, attention, strict=True) if flag]
    attended += [widths[-1]] if middle_attention else []
    if head_channels and any(width % head_channels for width in attended):
        raise ValueError(f"Expected attended widths that are multiples of {head_channels} per head, got {attended}.")
