"""Checkpoints of PyTorch as NumPy arrays. A file whose loading would run code is refused."""

import json
import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

_NORMALISATION = re.compile(r"(?:0|normalize_layer|normalize)\.(means?|sds|std)")


@dataclass(frozen=True)
class Checkpoint:
    """What a file says of a network.

    Attributes:
      tensors: under PyTorch's names, without the prefixes of wrappers; floats as float32.
      arch: the architecture's name, or empty.
      mean, std: of each channel, or None where the file does not say.
    """

    tensors: dict[str, np.ndarray] = field(repr=False)
    arch: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read(path: Path) -> Checkpoint:
    """Read a state dict: in a .safetensors file, plain in a file of `torch.save`, or there under "state_dict".

    The prefixes of `DataParallel` ("module.") and of a `Sequential` of normalisation and network ("0.", "1.") are
    taken off; means and sds of the normalisation are read where they are stored.

    Raises:
      ValueError: no such file, a damaged one, one that is more than tensors and plain values, or no state dict.
    """
    if not path.is_file():
        raise ValueError(f"Expected a checkpoint, got no file {path}.")
    tensors, said = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    network, moments = _unwrap(tensors)
    moments = {**{name: said[name] for name in ("mean", "std") if name in said}, **moments}
    if len(moments) == 1:
        raise ValueError(f"Expected a mean and a standard deviation in {path}, got only {', '.join(moments)}.")
    arch = said.get("arch", "")
    return Checkpoint(network, arch if isinstance(arch, str) else "", **{k: _numbers(v) for k, v in moments.items()})


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: _as_float32(handle.get_tensor(name)) for name in handle.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata.get("checkpoint", "{}"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"Expected a whole .safetensors file, got {path}: {error}.") from None


def _torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"Expected PyTorch to read {path}, got no such package: pip install 'idrc_jax[torch]', or save the state "
            "dict as .safetensors."
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise ValueError(f"Expected PyTorch >= 2.6, whose weights_only=True runs no code, got {torch.__version__}.")
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it would run code, {code[1]}" if code else "it cannot be loaded without running code, or is damaged"
        raise ValueError(f"Expected a checkpoint of tensors alone, got {path}: {why}.") from None
    except Exception as error:  # torch raises several kinds for a damaged file
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"Expected a whole checkpoint, got {path}: {why}.") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(one, torch.Tensor) for one in state.values()):
        got = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"Expected a state dict in {path}, plain or under 'state_dict', got {got or 'nothing'}.")
    tensors = {}
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise ValueError(f"Expected plain tensors in {path}, got {name} of {value.dtype}, {value.layout}.")
        tensors[name] = (value.float() if value.is_floating_point() else value).numpy()
    return tensors, content if state is not content else {}


def _as_float32(value: np.ndarray) -> np.ndarray:
    return value if value.dtype.kind in "biu" else value.astype(np.float32)


def _unwrap(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The network's tensors and the normalisation's mean and std, without prefixes."""
    tensors = _strip(tensors, "module.")
    moments, network = {}, {}
    for name, value in tensors.items():
        match = _NORMALISATION.fullmatch(name)
        if match:
            moments["mean" if match[1].startswith("mean") else "std"] = value
        else:
            network[name] = value
    return _strip(_strip(network, "1."), "module."), moments


def _strip(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    if not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _numbers(values: Any) -> tuple[float, ...]:
    """Channel values as the shortest decimals that are the same float32: .485 stays .485."""
    return tuple(float(str(value)) for value in np.asarray(values, np.float32).ravel())
