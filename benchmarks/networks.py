"""The networks and images that are timed, and what a forward pass costs by counting. No JAX is imported here."""

from typing import Any, NamedTuple

import numpy as np

Description = dict[str, Any]


class Cost(NamedTuple):
    """Of one sample: multiply-adds, and values that pass through memory if every layer reads and writes them."""

    multiply_adds: int
    values_moved: int


def describe(depth: int, size: int = 32) -> Description:
    """A CIFAR ResNet as `models.build` takes it: projection shortcuts, ten classes, `size` x `size` x 3."""
    return {
        "architecture": "resnet", "depth": depth, "classes": 10, "image_shape": [size, size, 3],
        "shortcut": "projection", "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.201], "dtype": "float32",
    }  # fmt: skip


def _of_transformers(module: str, size: int) -> Description:
    """A network of `modules.build`, normalised and with classes as ImageNet has them."""
    return {
        "architecture": "torch", "module": module, "classes": 1000, "image_shape": [size, size, 3],
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "dtype": "float32",
    }  # fmt: skip


# Eight networks of different kinds, by name. ResNet-8 is quickstart's, of digits; the "denoised" one is a committed
# denoiser before a committed classifier.
ANY: dict[str, Description] = {
    "ResNet-8": describe(8, 8) | {"image_shape": [8, 8, 1], "mean": [0.3], "std": [0.38]},
    "ResNet-20": describe(20),
    "ResNet-110": describe(110),
    "ResNet-18": _of_transformers("ResNet-18", 64),
    "ResNet-50": _of_transformers("ResNet-50", 224),
    "ConvNeXt-T": _of_transformers("ConvNeXt-T", 224),
    "ViT-B/16": _of_transformers("ViT-B/16", 224),
    "U-Net+ResNet-20": describe(20)
    | {
        "architecture": "denoised",
        "denoiser": "cifar10_denoiser_small.safetensors",
        "classifier": "cifar10_resnet20_gaussian_0.25.safetensors",
    },
}


def images(count: int, size: int = 32, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth random images, float32 [count, size, size, channels] in [0, 1]."""
    coarse = np.random.default_rng(seed).uniform(size=(count, 4, 4, channels))
    where = np.linspace(0, 3, size)
    low = np.minimum(where.astype(int), 2)
    share = (where - low)[:, None]
    rows = coarse[:, low] * (1 - share[..., None]) + coarse[:, low + 1] * share[..., None]
    return (rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share).astype(np.float32)


def count(description: Description) -> Cost:
    """What one forward pass costs, layer by layer: no fusion over convolutions, everything else fused into them.

    A convolution reads its input and writes its output; the block's shortcut is read once more.
    """
    height, width, channels = description["image_shape"]
    blocks = (description["depth"] - 2) // 6
    adds = moved = 0

    def convolution(features_in: int, features: int, size: int, stride: int) -> None:
        nonlocal adds, moved
        rows, columns = -(-height // stride), -(-width // stride)
        adds += rows * columns * size * size * features_in * features
        moved += height * width * features_in + rows * columns * features

    convolution(channels, 16, 3, 1)
    features_in = 16
    for stage, features in enumerate((16, 32, 64)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if stride == 2:
                convolution(features_in, features, 1, 2)
            convolution(features_in, features, 3, stride)
            height, width = -(-height // stride), -(-width // stride)
            convolution(features, features, 3, 1)
            moved += height * width * features
            features_in = features
    return Cost(adds + 64 * description["classes"], moved + height * width * 64)
