"""Export weights to PyTorch, under the names of its files."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from idrc_jax import models
from idrc_jax.core import extras, files
from idrc_jax.interop import layouts
from idrc_jax.models import Arrays

WEIGHTS = (".pth", ".pt", ".safetensors")


def state_dict(path: str | Path) -> tuple[Arrays, dict[str, str | list[float]]]:
    """Give a network's float32 tensors under PyTorch's names and in its axes, with what is not a tensor there.

    Returns:
      (state dict, {"arch", "mean", "std"}): names are torchvision's or, of a CIFAR ResNet with zero-padding shortcuts,
      akamaster's; mean and std normalise the image before the network.
    """
    tensors, described = models.read_weights(path)
    if described["architecture"] not in ("resnet", "resnet50"):
        raise ValueError(f"Expected a ResNet to export, got the architecture {described['architecture']} in {path}.")
    layout = layouts.AKAMASTER if described["shortcut"] == "zero_pad" else layouts.TORCHVISION
    blocks = layouts.stages(described["architecture"], described["depth"])
    names = layouts.torch_names(tensors, blocks, layout)
    about = {"arch": layouts.arch_of(described), "mean": described["mean"], "std": described["std"]}
    return {names[name]: layouts.to_torch(value.astype(np.float32)) for name, value in tensors.items()}, about


def export_weights(source: str | Path, target: Path) -> None:
    """Write `state_dict` to a file that `idrc-import` and PyTorch read: .safetensors, else by `torch.save`."""
    tensors, about = state_dict(source)
    with files.replacing(target) as partial:
        if target.suffix == ".safetensors":
            save_file(tensors, partial, metadata={"checkpoint": json.dumps(about)})
        else:
            _torch_save(tensors, about, partial)


def _torch_save(tensors: Arrays, about: dict[str, str | list[float]], path: Path) -> None:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"Expected PyTorch to write its format, got no such package: {extras.how_to_get('torch')}, or export to "
            ".safetensors."
        ) from None
    torch.save({**about, "state_dict": {name: torch.from_numpy(value) for name, value in tensors.items()}}, path)
