"""Export: weights to PyTorch under the names of its files, results to tables."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from idrc_jax import _command, _files, checkpoints, results
from idrc_jax.interop import layouts, tables

_WEIGHTS = (".pth", ".pt", ".safetensors")
_TABLES = {".parquet": tables.write_parquet, ".tsv": tables.write_log}


def state_dict(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A network's float32 tensors under PyTorch's names and in its axes, with what is not a tensor there.

    Returns:
      (state dict, {"arch", "mean", "std"}): names are torchvision's or, of a CIFAR ResNet with zero-padding shortcuts,
      akamaster's; mean and std normalise the image before the network.
    """
    tensors, described = checkpoints.read_weights(path)
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
    with _files.replacing(target) as partial:
        if target.suffix == ".safetensors":
            save_file(tensors, partial, metadata={"checkpoint": json.dumps(about)})
        else:
            _torch_save(tensors, about, partial)


def _torch_save(tensors: dict[str, np.ndarray], about: dict[str, Any], path: Path) -> None:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Expected PyTorch to write its format, got no such package: pip install 'idrc_jax[torch]', or export to "
            ".safetensors."
        ) from None
    torch.save({**about, "state_dict": {name: torch.from_numpy(value) for name, value in tensors.items()}}, path)


def main() -> None:
    """Export weights to PyTorch (.pth, .pt, .safetensors), results to .parquet or the six-column log (.tsv)."""
    with _command.one_line_errors():
        parser = _command.Parser("idrc-export", main.__doc__)
        parser.add_argument("source", type=_command.path, help="a run's folder, its weights or its results")
        parser.add_argument("target", type=_command.path, help="the new file; its suffix chooses the format")
        asked = parser.parse_args()
        suffix = asked.target.suffix
        if suffix not in (*_WEIGHTS, *_TABLES):
            raise ValueError(f"Expected a target with suffix {', '.join((*_WEIGHTS, *_TABLES))}, got {asked.target}.")
        if asked.target.exists() or not asked.target.parent.is_dir():
            raise ValueError(f"Expected a target that is new, in a folder that exists, got {asked.target}.")
        if suffix in _WEIGHTS:
            export_weights(asked.source, asked.target)
        else:
            _TABLES[suffix](results.read_results(asked.source), asked.target)
        print(f"Exported: {asked.target}")
    sys.exit(0)


if __name__ == "__main__":
    main()
