"""Checkpoints of PyTorch as NumPy arrays. A file whose loading would run code is refused."""

import contextlib
import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from idrc_jax.core import extras
from idrc_jax.core.json_values import parsed, require
from idrc_jax.models import Arrays

_FLOATS = ("F64", "F32", "F16", "BF16")
_TRANSPARENT = re.compile(r"\b_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_NORMALISATION = re.compile(r"(?:0|normalize_layer|normalize)\.(means?|sds|std)")


@dataclass(frozen=True)
class Checkpoint:
    """What a file says of a network.

    Attributes:
      tensors: under PyTorch's names, without those of wrappers; floats as float32.
      arch: the architecture's name, or empty.
      mean, std: of each channel, or None where the file does not say.
    """

    tensors: Arrays = field(repr=False)
    arch: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read(path: Path) -> Checkpoint:
    """Read a state dict: in a .safetensors file, plain in a file of `torch.save`, or there under "state_dict".

    What all names begin with is taken off: "module." (`DataParallel`), "model.", "net.", "backbone." and the like, and
    of a `Sequential` of normalisation and network "0." and "1."; "_orig_mod." (`torch.compile`) anywhere. Means and sds
    of the normalisation are read where they are stored.

    Raises:
      ValueError: no such file, a damaged one, one that is more than tensors and plain values, no state dict, a tensor
        that is not plain: complex, sparse, quantised, or of floats of 8 bits, whose scales are elsewhere; a mean or
        standard deviation that is no numbers, without the other, or another beside than among the tensors.
    """
    if not path.is_file():
        raise ValueError(f"Expected a checkpoint, got no file {path}.")
    tensors, said = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    network, stored = _unwrap(tensors)
    beside = {name: _numbers(said[name], name, path) for name in ("mean", "std") if said.get(name) is not None}
    among = {name: _numbers(value, name, path) for name, value in stored.items()}
    for name in beside.keys() & among.keys():
        if not np.allclose(beside[name], among[name], rtol=2**-10):  # those among them may be in half precision
            raise ValueError(
                f"Expected one {name} in {path}, got {beside[name]} beside the tensors and {among[name]} among them: "
                "take one of them out."
            )
    moments = beside | among
    if len(moments) == 1:
        raise ValueError(f"Expected a mean and a standard deviation in {path}, got only {', '.join(moments)}.")
    arch = said.get("arch", "")
    return Checkpoint(network, arch if isinstance(arch, str) else "", **moments)


def _safetensors(path: Path) -> tuple[Arrays, dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as handle:
            said = parsed((handle.metadata() or {}).get("checkpoint", "{}"))
            require(said, {"arch?": str, "mean?": [float], "std?": [float]}, "checkpoint", path)
            types = {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
            odd = [name for name, kind in types.items() if kind not in _FLOATS and kind[0] not in "IUB"]
            tensors = {} if odd else {name: _as_float32(handle.get_tensor(name)) for name in types}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"Expected a whole .safetensors file, got {path}: {error}.") from None
    if odd:
        raise ValueError(f"Expected floats of 16 bits or more in {path}, got {odd[0]} of {types[odd[0]]}.")
    return tensors, said


def _torch(path: Path) -> tuple[Arrays, dict[str, Any]]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"Expected PyTorch to read {path}, got no such package: {extras.how_to_get('torch')}, or save the state "
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
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not state or not all(isinstance(one, torch.Tensor) for one in state.values()):
        got = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"Expected a state dict in {path}, plain or under 'state_dict', got {got or 'nothing'}.")
    tensors = {}
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_complex() or (value.is_floating_point() and value.itemsize < 2):
            what = f"{value.dtype}, {value.layout}, on {value.device}"
            raise ValueError(f"Expected plain tensors of 16 bits or more in {path}, got {name} of {what}.")
        value = value.detach()
        tensors[name] = (value.float() if value.is_floating_point() else value).numpy()
    return tensors, content if state is not content else {}


def _as_float32(value: np.ndarray) -> np.ndarray:
    return value if value.dtype.kind in "biu" else value.astype(np.float32)


def _unwrap(tensors: Arrays) -> tuple[Arrays, Arrays]:
    """The network's tensors and the normalisation's mean and std, without prefixes."""
    moments, network = {}, {}
    for name, value in _bare({_TRANSPARENT.sub("", name): value for name, value in tensors.items()}).items():
        match = _NORMALISATION.fullmatch(name)
        if match:
            moments["mean" if match[1].startswith("mean") else "std"] = value
        else:
            network[name] = value
    return _bare(network), moments


def _bare(tensors: Arrays) -> Arrays:
    """Without what all names begin with: no network here is one module alone."""
    while len({name.partition(".")[0] for name in tensors}) == 1 and all("." in name for name in tensors):
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    return tensors


def _numbers(values: Any, what: str, path: Path) -> tuple[float, ...]:
    """Channel values as the shortest decimals that are the same float32: .485 stays .485."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        numbers = np.asarray(values)
        if numbers.dtype.kind in "iuf":
            return tuple(float(str(value)) for value in numbers.astype(np.float32).ravel())
    raise ValueError(f"Expected numbers as {what} in {path}, got {type(values).__name__}: write a list of them.")
