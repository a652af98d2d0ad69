"""What PyTorch's files call the tensors of our networks, and how their axes lie there.

Cohen et al.'s CIFAR ResNets and ImageNet's ResNet-50 use torchvision's names. Akamaster's CIFAR ResNets have names of
their own for the head and the shortcuts, and where they have no shortcut tensors pad with zeros.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from idrc_jax.models import Description

_STAGES_50 = (3, 4, 6, 3)


class Layout(NamedTuple):
    """The names in which files differ."""

    head: str
    shortcut: str


TORCHVISION = Layout("fc", "downsample")
AKAMASTER = Layout("linear", "shortcut")

_MODULES = {"stem": "conv1", "stem_norm": "bn1", "projection": "{shortcut}.0", "projection_norm": "{shortcut}.1"}
_MODULES |= {"head": "{head}"} | {f"conv{k}": f"conv{k}" for k in (1, 2, 3)} | {f"norm{k}": f"bn{k}" for k in (1, 2, 3)}
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def parse(arch: str) -> tuple[str, int]:
    """Read (architecture, depth) from a name: cifar_resnetN with N = 6n + 2, or resnet50; ValueError for another."""
    if arch == "resnet50":
        return "resnet50", 50
    match = re.fullmatch(r"cifar_resnet(\d+)", arch)
    if not match or int(match[1]) < 8 or (int(match[1]) - 2) % 6:
        raise ValueError(
            f"Expected --arch to be resnet50 (ImageNet's), or cifar_resnetN with N = 6n + 2 (8, 20 ...), got {arch!r}."
        )
    return "resnet", int(match[1])


def arch_of(description: Description) -> str:
    """Name a described network as `parse` reads it; the architecture's own name where `parse` knows none."""
    architecture = description["architecture"]
    return f"cifar_resnet{description['depth']}" if architecture == "resnet" else architecture


def stages(architecture: str, depth: int) -> tuple[int, ...]:
    """Count the blocks in each stage."""
    return _STAGES_50 if architecture == "resnet50" else ((depth - 2) // 6,) * 3


def torch_names(ours: Iterable[str], blocks: tuple[int, ...], layout: Layout) -> dict[str, str]:
    """Map our tensors' names to PyTorch's; `blocks` are those of each stage."""
    places = [f"layer{stage}.{block}" for stage, count in enumerate(blocks, start=1) for block in range(count)]
    names = {}
    for name in ours:
        *path, module, leaf = name.split(".")
        place = f"{places[int(path[1])]}." if path else ""
        names[name] = f"{place}{_MODULES[module].format(**layout._asdict())}.{LEAVES[leaf]}"
    return names


def to_torch(value: np.ndarray) -> np.ndarray:
    """Turn kernels [H, W, in, out] -> [out, in, H, W] and [in, out] -> [out, in]; all else stays."""
    return np.ascontiguousarray(value.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, range(value.ndim))))


def from_torch(value: np.ndarray) -> np.ndarray:
    """Undo `to_torch`."""
    return np.ascontiguousarray(value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, range(value.ndim))))
