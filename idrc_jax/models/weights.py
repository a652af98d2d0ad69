"""Weights on disk: `weights.safetensors` with the description that rebuilds the network.

The file holds every tensor of the network under its dotted path (`blocks.3.conv1.kernel`) and, as metadata, one JSON
text; it is what certification loads.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from idrc_jax.core import files, validate
from idrc_jax.kernels import convolution_cpu, network_cpu, resnet_cpu
from idrc_jax.models import folding
from idrc_jax.models.classifier import Classifier
from idrc_jax.models.diffusion import Denoiser, Schedule
from idrc_jax.models.registry import DTYPES, SETTINGS, Tensors, abstract, merge

WEIGHTS = "weights.safetensors"
_FORMAT = 1
_DESCRIBED = {"architecture", "image_shape", "dtype"}


def save_weights(path: Path, tensors: Tensors, description: dict[str, Any]) -> None:
    """Write tensors and description to a `.safetensors` file, whole or not at all."""
    flat = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with files.replacing(path) as partial:
        save_file(flat, partial, metadata={"idrc_jax": json.dumps({"format": _FORMAT, **description})})


def save_half(source: str | Path, path: Path) -> None:
    """Copy a run's weights in float16, half the size, for sharing: another classifier, to be certified anew."""
    tensors, description = read_weights(source)
    save_weights(path, {name: value.astype(np.float16) for name, value in tensors.items()}, description)


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and description in a run's folder or a `.safetensors` file of this project."""
    return _read(_weights_file(path))


def load_classifier(
    path: str | Path, *, dtype: str = "", kernel: str = "auto", expect: dict[str, Any] | None = None
) -> Classifier:
    """The classifier in a run's folder or a `.safetensors` file of this project, made for inference.

    Args:
      path: the file, or a folder holding `weights.safetensors`.
      dtype: compute type ("float32", "bfloat16"); empty takes the one it was trained in.
      kernel: "auto" takes a kernel where this machine can run one, with the plain network as its alternative (`choice`
        takes the faster); "xla" the plain network alone.
      expect: entries of the description (architecture, depth ...) that must agree.

    Raises:
      ValueError: no such file, not a file of this project, another architecture than expected, or tensors
        that are missing, unexpected, of another shape or not finite.
    """
    file = _weights_file(path)
    tensors, description = _read(file)
    if description["architecture"] == "unet":
        raise ValueError(f"Expected a classifier, got a denoiser in {file}: set denoiser.weights to it.")
    for name, value in (expect or {}).items():
        if description.get(name) != value:
            raise ValueError(
                f"Expected a checkpoint with {name} = {value}, got {name} = {description.get(name)} in {file}."
            )
    dtype = dtype or description["dtype"]
    _, params, stats = abstract(description, dtype=dtype)
    check_tensors(tensors, params | stats, file)
    sha256 = hash_tensors(tensors)
    first, *others = (
        Classifier(
            apply_fn=apply_fn,
            params=weights,
            classes=description["classes"],
            image_shape=tuple(description["image_shape"]),
            dtype=dtype,
            kernel=name,
            sha256=sha256,
            description=description,
        )
        for name, apply_fn, weights in _for_inference(tensors, description, dtype=dtype, kernel=kernel)
    )
    return first.with_alternatives(*others)


def load_denoiser(path: str | Path, *, dtype: str = "", kernel: str = "auto") -> Denoiser:
    """The denoiser in a run's folder or a `.safetensors` file of this project.

    Args, errors: as for `load_classifier`.
    """
    file = _weights_file(path)
    tensors, description = _read(file)
    if description["architecture"] != "unet":
        raise ValueError(
            f"Expected a denoiser, got a {description['architecture']} in {file}: set model.weights to it."
        )
    validate.one_of("kernel", kernel, ("auto", "xla"))
    dtype, diffused = dtype or description["dtype"], description["diffusion"]
    schedule = Schedule(**diffused["schedule"])
    low, high = schedule.sigmas
    _, params, _ = abstract(description, dtype=dtype)
    check_tensors(tensors, params, file)
    weights = {name: jnp.asarray(value, jnp.float32) for name, value in tensors.items()}

    def by(name: str, convolution: Any) -> Denoiser:
        graph, _, _ = abstract(description, dtype=dtype, convolution=convolution)

        def apply_fn(weights: Tensors, x: jax.Array, time: jax.Array) -> jax.Array:
            return merge(graph, weights)(x, time)

        return Denoiser(
            apply_fn=apply_fn,
            params=weights,
            image_shape=tuple(description["image_shape"]),
            schedule=schedule,
            prediction=diffused["prediction"],
            sigmas=(diffused.get("sigma_low", low), diffused.get("sigma_high", high)),
            dtype=dtype,
            kernel=name,
            sha256=hash_tensors(tensors),
            description=description,
        )

    plain = by("xla", jax.lax.conv_general_dilated)
    if kernel == "auto" and dtype == "float32" and jax.default_backend() == "cpu" and convolution_cpu.available():
        return by("convolution_cpu", convolution_cpu.conv_general_dilated).with_alternatives(plain)
    return plain


def _for_inference(
    tensors: Tensors, description: dict[str, Any], *, dtype: str, kernel: str
) -> list[tuple[str, Callable[[Any, jax.Array], jax.Array], Any]]:
    """The kernel's name, apply_fn and params of each implementation of the network, a ResNet folded."""
    validate.one_of("kernel", kernel, ("auto", "xla"))
    if description["architecture"] == "vit":
        graph, _, _ = abstract(description, dtype=dtype)

        def apply_fn(weights: Tensors, images: jax.Array) -> jax.Array:
            return merge(graph, weights, {})(images)

        return [("xla", apply_fn, folding.cast(tensors, DTYPES[dtype]))]
    folded = folding.fold(tensors, mean=tuple(description["mean"]), std=tuple(description["std"]))
    if description["architecture"] == "resnet50":
        if kernel == "auto" and dtype == "float32" and jax.default_backend() == "cpu" and network_cpu.available():
            fast, params = folding.resnet50_by_kernel(folded, tuple(description["image_shape"]))
            return [("network_cpu", fast, params), ("xla", folding.apply_resnet50, params["plain"])]
        return [("xla", folding.apply_resnet50, folding.cast(folded, DTYPES[dtype]))]
    if kernel == "auto" and jax.default_backend() == "cpu" and resnet_cpu.available():
        fast, params = folding.resnet_by_kernel(folded, half=dtype == "bfloat16")
        return [("resnet_cpu", fast, params), ("xla", folding.apply, params["plain"])]
    return [("xla", folding.apply, folding.cast(folded, DTYPES[dtype]))]


def _weights_file(path: str | Path) -> Path:
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"Expected trained weights at {file}, got no such file. Train first, or name another.")
    return file


def _read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(file, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            ours = "idrc_jax" in metadata  # others' may be of types that NumPy does not have
            tensors = {name: handle.get_tensor(name) for name in handle.keys()} if ours else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        hint = "" if file.suffix == ".safetensors" else " A PyTorch checkpoint is to be imported first: idrc-import."
        raise ValueError(f"Expected a whole .safetensors file, got {file}: {error}.{hint}") from None
    if not ours:
        raise ValueError(f"Expected weights written by idrc_jax, got {file} without its description.")
    try:
        description = json.loads(metadata["idrc_jax"])
        version = description.pop("format")
    except (ValueError, KeyError):
        raise ValueError(f"Expected a readable description in {file}, got {metadata['idrc_jax'][:80]!r}.") from None
    if version != _FORMAT:
        raise ValueError(
            f"Expected weights of format {_FORMAT} in {file}, got {version}: use the release that wrote it."
        )
    wanted = _DESCRIBED | SETTINGS.get(description.get("architecture", ""), set())
    missing = sorted(wanted - description.keys())
    if missing:
        raise ValueError(f"Expected a whole description in {file}, got none of {', '.join(missing)}.")
    return tensors, description


def check_tensors(tensors: dict[str, np.ndarray], wanted: Tensors, file: str | Path) -> None:
    """ValueError unless a file's tensors have the names and shapes of those wanted and values that can be theirs."""
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(f"Expected the network's tensors in {file}, got missing {missing}, unexpected {unexpected}.")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"Expected {name} of shape {value.shape} in {file}, got {tensors[name].shape}.")
        validate.weights(name, tensors[name], file)


def hash_tensors(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
