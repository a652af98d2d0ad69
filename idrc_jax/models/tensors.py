"""The tensors of a network under dotted names, `blocks.3.conv1.kernel`: their nesting, their checks, their hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from idrc_jax.core import validate

PyTree = Any  # of arrays
Tensors = dict[str, jax.Array]
Arrays = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]
Description = dict[str, Any]  # of a network, by JSON's values: what rebuilds it, and where its weights come from


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested dicts into one of dotted names."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str | int, Any]:
    """Turn dotted names into nested dicts; digits become integers, as NNX lists have them."""
    tree: dict[str | int, Any] = {}
    for name, value in flat.items():
        *path, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def check_tensors(tensors: Arrays, wanted: Shapes, file: str | Path) -> None:
    """ValueError unless a file's tensors have the names and shapes of those wanted and values that can be theirs."""
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(f"Expected the network's tensors in {file}, got missing {missing}, unexpected {unexpected}.")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"Expected {name} of shape {value.shape} in {file}, got {tensors[name].shape}.")
        validate.weights(name, tensors[name], file)


def hash_tensors(tensors: Arrays) -> str:
    """Compute the SHA-256 of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
