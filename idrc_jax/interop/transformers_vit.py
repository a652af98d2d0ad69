"""Vision Transformers from folders of Hugging Face's transformers, as `save_pretrained` writes them.

`config.json` gives the sizes, `model.safetensors` or `pytorch_model.bin` the tensors, and `preprocessor_config.json`,
where there is one, the normalisation and the resizing.
"""

import dataclasses
from pathlib import Path
from typing import Any

from idrc_jax import models
from idrc_jax.core import files
from idrc_jax.interop import layouts, network_checks, torch_files
from idrc_jax.models import Arrays, Description

ARCHITECTURE = "ViTForImageClassification"

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SIZES = {
    "size": "image_size",
    "patch": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
}
# What the network and the normalisation take for granted; where a file does not say, transformers takes the same.
_NETWORK = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True}
_PREPROCESSING = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_RESIZE = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers

_MODULES = {
    "class_token": "vit.embeddings.cls_token",
    "positions": "vit.embeddings.position_embeddings",
    "patches": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
_BLOCK_MODULES = {
    "norm1": "layernorm_before",
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.out": "attention.output.dense",
    "norm2": "layernorm_after",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}


def import_folder(
    folder: Path, *, classes: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Arrays, Description]:
    """Read the tensors and the description of a `ViTForImageClassification`.

    Args:
      folder: as `save_pretrained` writes it.
      classes, size, mean, std: as for `importing.import_network`.

    Raises:
      ValueError: files that are missing or damaged, settings that the network here does not have, no or two
        normalisations, or tensors that are missing, unexpected, of another shape, not floats or not finite.
    """
    config = files.read_json(folder / "config.json")
    _require(config, _NETWORK, folder / "config.json")
    settings = {ours: _count(config, theirs, folder) for ours, theirs in _SIZES.items()}
    channels = _count(config, "num_channels", folder)
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"Expected {' or '.join(_WEIGHTS)} in {folder}, got neither.")
    read, resize = _preprocessing(torch_files.read(path), folder / "preprocessor_config.json")
    side = size or settings["size"]
    description = {
        "architecture": "vit",
        "vit": {**settings, "resize": resize},
        "classes": network_checks.head(read.tensors, "classifier.bias", classes, path),
        "image_shape": [side, side, channels],
        **network_checks.normalisation(read, mean, std, channels, folder),
        "dtype": "float32",
        "imported": network_checks.origin(path),
    }
    _, params, _ = models.abstract(description, dtype="float32")
    shapes = {name: value.shape for name, value in params.items()}
    return network_checks.tensors(read.tensors, {name: _their_name(name) for name in shapes}, shapes, path), description


def _their_name(name: str) -> str:
    """The name of one of our tensors in the folder's file."""
    if name in _MODULES:  # a tensor of its own
        return _MODULES[name]
    module, _, leaf = name.rpartition(".")
    if module in _MODULES:
        return f"{_MODULES[module]}.{layouts.LEAVES[leaf]}"
    _, block, inside = module.split(".", 2)
    return f"vit.encoder.layer.{block}.{_BLOCK_MODULES[inside]}.{layouts.LEAVES[leaf]}"


def _preprocessing(read: torch_files.Checkpoint, path: Path) -> tuple[torch_files.Checkpoint, str]:
    """The checkpoint with the mean and std that the file gives, if it exists, and how to resize."""
    if not path.is_file():
        return read, "bilinear"
    said = files.read_json(path)
    _require(said, _PREPROCESSING, path)
    resize = _RESIZE.get(said.get("resample", 2))
    if resize is None:
        raise ValueError(f"Expected resample 2 (bilinear) or 3 (bicubic) in {path}, got {said['resample']}.")
    moments = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        values = said.get(theirs, [])
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"Expected {theirs} of each channel in {path}, got {values}.")
        moments[ours] = tuple(values) or None
    return dataclasses.replace(read, **moments), resize


def _require(said: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """ValueError where a file says anything but what is wanted."""
    for name, value in wanted.items():
        if said.get(name, value) != value:
            raise ValueError(f"Expected {name} = {value} in {path}, got {said[name]}: use idrc_jax.from_torch.")


def _count(config: dict[str, Any], name: str, folder: Path) -> int:
    """A positive whole number, which [height, width] may say twice."""
    value = config.get(name)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"Expected a positive whole number as {name} in {folder}/config.json, got {config.get(name)}.")
    return value
