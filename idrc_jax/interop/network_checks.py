"""What importers ask of files: a network's tensors and no others, a normalisation that is never guessed."""

import hashlib
import math
from pathlib import Path

import numpy as np

from idrc_jax.core import validate
from idrc_jax.interop import layouts, torch_files
from idrc_jax.models import Arrays


def origin(path: Path) -> dict[str, str]:
    """Say what a description tells of the file that a network came from."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def shape_of(stored: Arrays, name: str, ndim: int, path: Path) -> tuple[int, ...]:
    """Look up the shape of a tensor, which must have so many axes, or ValueError."""
    if name not in stored or stored[name].ndim != ndim:
        got = "none" if name not in stored else f"shape {stored[name].shape}"
        raise ValueError(f"Expected a tensor {name} with {ndim} axes in {path}, got {got}.")
    return stored[name].shape


def head(stored: Arrays, name: str, classes: int, path: Path) -> int:
    """Count the classes by the head's bias: at least 2, and as many as `classes` unless that is 0.

    Args:
      stored: the file's tensors.
      name: of the head's bias there.
      classes: that it must have.
      path: the file, for messages.
    """
    found = shape_of(stored, name, 1, path)[0]
    if classes and classes != found:
        raise ValueError(f"Expected a head of {classes} classes in {path}, got {found}.")
    return validate.classes(path, found)


def normalisation(
    read: torch_files.Checkpoint, mean: tuple[float, ...], std: tuple[float, ...], channels: int, path: Path
) -> dict[str, list[float] | str]:
    """Find mean and std of each channel, as the file or else the user gives them, and say where they came from.

    Args:
      read: the file.
      mean, std: the user's, of each channel or one for all; empty for none.
      channels: how many there are.
      path: the file, for messages.

    Raises:
      ValueError: no normalisation or two, or one that cannot be.
    """
    given = bool(mean or std)
    if given and read.mean is not None:
        raise ValueError(
            f"Expected no --mean and --std, as {path} holds mean {read.mean} and std {read.std}, got them."
        )
    if not given and read.mean is None:
        raise ValueError(
            f"Expected --mean and --std of the images' normalisation, as {path} does not hold them (0 and 1: none). "
            "Cohen et al. use .4914 .4822 .4465 and .2023 .1994 .2010 for CIFAR-10, .485 .456 .406 and .229 .224 .225 "
            "for ImageNet, akamaster the latter for CIFAR-10."
        )
    made = {}
    for name, values in (("mean", mean if given else read.mean), ("std", std if given else read.std)):
        values = tuple(values or ())
        values = values * channels if len(values) == 1 else values
        if len(values) != channels or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            raise ValueError(f"Expected a {name} for each of {channels} channels (std > 0), got {list(values)}.")
        made[name] = list(values)
    validate.normalisation(made["mean"], made["std"])
    source = "given by the user" if given else "from the file"
    return {**made, "normalisation": f"mean {made['mean']}, std {made['std']}, {source}"}


def tensors(stored: Arrays, names: dict[str, str], shapes: dict[str, tuple[int, ...]], path: Path) -> Arrays:
    """Take a file's tensors under our names and in our axes.

    Args:
      stored: the file's; BatchNorm's counters of batches are left out.
      names: ours -> the file's.
      shapes: ours.
      path: the file, for messages.

    Raises:
      ValueError: tensors that are missing, unexpected, of another shape, not floats, not finite or variances below 0.
    """
    wanted = set(names.values())
    counters = {name.replace("running_mean", "num_batches_tracked") for name in wanted}
    missing, unexpected = sorted(wanted - stored.keys()), sorted(stored.keys() - wanted - counters)
    if missing or unexpected:
        raise ValueError(
            f"Expected the network's tensors in {path}, missing: {few(missing)}; unexpected: {few(unexpected)}."
        )
    return {name: _tensor(stored, names[name], shape, path) for name, shape in shapes.items()}


def few(names: list[str]) -> str:
    """Name at most five of them, and say how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "none") + more


def _tensor(stored: Arrays, name: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    value = stored[name]
    wanted = layouts.to_torch(np.empty(shape, np.float32)).shape
    if value.shape != wanted:
        raise ValueError(f"Expected {name} of shape {wanted} in {path}, got {value.shape}.")
    if value.dtype != np.float32:
        raise ValueError(f"Expected floats in {name} of {path}, got {value.dtype}.")
    validate.weights(name, value, path)
    return layouts.from_torch(value)
