"""The networks and images that are timed, and what a forward pass costs by counting. No JAX is imported here."""

from typing import Any, NamedTuple

import numpy as np

Description = dict[str, Any]


class Cost(NamedTuple):
    """Of one sample: multiply-adds, and values that pass through memory if every layer reads and writes them."""

    multiply_adds: int
    values_moved: int


def describe(depth: int, size: int = 32) -> Description:
    """A CIFAR ResNet as `checkpoints.build` takes it: projection shortcuts, ten classes, `size` x `size` x 3."""
    return {
        "architecture": "resnet", "depth": depth, "classes": 10, "image_shape": [size, size, 3],
        "shortcut": "projection", "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.201], "dtype": "float32",
    }  # fmt: skip


def images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random colour images, float32 [count, size, size, 3] in [0, 1]."""
    coarse = np.random.default_rng(seed).uniform(size=(count, 4, 4, 3))
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
