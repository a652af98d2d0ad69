"""Weights on disk: `weights.safetensors` with the description that rebuilds the network.

The file holds every tensor of the network under its dotted path (`blocks.3.conv1.kernel`) and, as metadata, one JSON
text; it is what certification loads.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from idrc_jax.core import files
from idrc_jax.core.json_values import parsed, require
from idrc_jax.models.registry import SETTINGS
from idrc_jax.models.tensors import Arrays, Description
from idrc_jax.results.manifest import TRAINING

WEIGHTS = "weights.safetensors"
_FORMAT = 1
# What a description must hold, and of what kind the rest is, where it is there.
_DESCRIBED = {
    "architecture": str, "image_shape": (int, int, int), "dtype": str,
    "classes?": int, "mean?": [float], "std?": [float], "depth?": int, "shortcut?": str, "vit?": {"depth": int},
    "unet?": {"blocks": int},
    "diffusion?": {"schedule": dict, "prediction": str, "sigma_low?": float, "sigma_high?": float},
    "training?": TRAINING, "class_names?": [str],
}  # fmt: skip


def save_weights(path: Path, tensors: Mapping[str, ArrayLike], description: Description) -> None:
    """Write tensors and description to a `.safetensors` file, whole or not at all."""
    flat = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with files.replacing(path) as partial:
        save_file(flat, partial, metadata={"idrc_jax": json.dumps({"format": _FORMAT, **description})})


def save_half(source: str | Path, path: Path) -> None:
    """Copy a run's weights in float16, half the size, for sharing: another classifier, to be certified anew.

    Raises:
      ValueError: as for `read_weights`, and where a value is beyond float16.
    """
    tensors, description = read_weights(source)
    for name, value in tensors.items():
        if not (largest := np.max(np.abs(value), initial=0)) <= np.finfo(np.float16).max:
            raise ValueError(
                f"Expected values of at most 65504, float16's largest, in {source}, got {largest:g} in {name}: share "
                "the file itself."
            )
    save_weights(path, {name: value.astype(np.float16) for name, value in tensors.items()}, description)


def weights_file(path: str | Path) -> Path:
    """Find the weights in a run's folder, or take the file itself; ValueError where there is none."""
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(
            f"Expected trained weights at {file}, got no such file. Train first, or name another: model.weights, or "
            "model.by_level for one a level."
        )
    return file


def read_weights(path: str | Path) -> tuple[Arrays, Description]:
    """Read tensors and description from a run's folder or a `.safetensors` file of this project.

    Raises:
      ValueError: no such file, a damaged one, or one that is not of this project or of another format.
    """
    return _read(weights_file(path), tensors=True)


def read_description(path: str | Path) -> Description:
    """Read the description alone, without the tensors; args, errors as for `read_weights`."""
    return _read(weights_file(path), tensors=False)[1]


def _read(file: Path, *, tensors: bool) -> tuple[Arrays, Description]:
    try:
        with safe_open(file, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            ours = "idrc_jax" in metadata  # others' may be of types that NumPy does not have
            wanted = handle.keys() if ours and tensors else []
            found = {name: handle.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        hint = "" if file.suffix == ".safetensors" else " A PyTorch checkpoint is to be imported first: idrc-import."
        raise ValueError(f"Expected a whole .safetensors file, got {file}: {error}.{hint}") from None
    if not ours:
        raise ValueError(f"Expected weights written by idrc_jax, got {file} without its description.")
    try:
        description = parsed(metadata["idrc_jax"])
        version = description.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"Expected a readable description in {file}, got {metadata['idrc_jax'][:80]!r}.") from None
    if version != _FORMAT:
        raise ValueError(
            f"Expected weights of format {_FORMAT} in {file}, got {version}: use the release that wrote it."
        )
    require(description, _DESCRIBED, "", file)
    missing = sorted(SETTINGS.get(description["architecture"], set()) - description.keys())
    if missing:
        raise ValueError(f"Expected a whole description in {file}, got none of {', '.join(missing)}.")
    return found, description
