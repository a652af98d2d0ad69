"""Import a PyTorch checkpoint: every tensor is checked, the normalisation is never guessed."""

import hashlib
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from idrc_jax import _command, _files, checkpoints
from idrc_jax.interop import diffusers, layouts, torch_files

_SIZES = {"resnet": 32, "resnet50": 224}


def import_network(
    path: str | Path,
    *,
    arch: str = "",
    classes: int = 0,
    size: int = 0,
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A PyTorch network as the tensors and the description that `checkpoints.save_weights` takes.

    Args:
      path: a file that `torch_files.read` can read.
      arch: cifar_resnetN or resnet50; the file's own name for it by default.
      classes: that its head must have; 0 takes those of the file.
      size: height and width of the images; 0 takes 32 for CIFAR's networks and 224 for ImageNet's.
      mean, std: of each channel (one value serves all), for a file that does not store them.

    Raises:
      ValueError: the file cannot be read, no or two architectures or normalisations, or tensors that are missing,
        unexpected, of another shape, not floats or not finite.
    """
    path = Path(path)
    read = torch_files.read(path)
    if arch and read.arch and arch != read.arch:
        raise ValueError(f"Expected --arch {read.arch}, as {path} says itself, got {arch}.")
    if not arch and not read.arch:
        raise ValueError(f"Expected --arch cifar_resnetN or resnet50, as {path} does not name its architecture.")
    architecture, depth = layouts.parse(arch or read.arch)
    akamaster = architecture == "resnet" and any(name.startswith("linear.") for name in read.tensors)
    layout = layouts.AKAMASTER if akamaster else layouts.TORCHVISION
    zero_pad = akamaster and not any(f".{layout.shortcut}." in name for name in read.tensors)
    blocks = layouts.stages(architecture, depth)
    _check_depth(read.tensors, blocks, path)
    channels = _shape_of(read.tensors, "conv1.weight", 4, path)[1]
    head = _shape_of(read.tensors, f"{layout.head}.bias", 1, path)[0]
    if classes and classes != head:
        raise ValueError(f"Expected a head of {classes} classes in {path}, got {head}.")
    moments, origin = _normalisation(read, tuple(mean), tuple(std), channels, path)
    side = size or _SIZES[architecture]
    description = {
        "architecture": architecture,
        "depth": depth,
        "classes": head,
        "image_shape": [side, side, channels],
        "shortcut": "zero_pad" if zero_pad else "projection",
        **moments,
        "dtype": "float32",
        "normalisation": f"mean {moments['mean']}, std {moments['std']}, {origin}",
        "imported": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    _, params, stats = checkpoints.abstract(description, dtype="float32")
    shapes = {name: value.shape for name, value in (params | stats).items()}
    names = layouts.torch_names(shapes, blocks, layout)
    means = (name for name in names.values() if name.endswith(".running_mean"))
    counters = {name.replace("running_mean", "num_batches_tracked") for name in means}
    stored = {name: value for name, value in read.tensors.items() if name not in counters}
    return layouts.take(stored, names, shapes, path), description


def _check_depth(tensors: dict[str, np.ndarray], blocks: tuple[int, ...], path: Path) -> None:
    found: dict[int, int] = {}
    for name in tensors:
        stage, _, rest = name.removeprefix("layer").partition(".")
        if name.startswith("layer") and stage.isdigit() and rest.split(".")[0].isdigit():
            found[int(stage)] = max(found.get(int(stage), 0), int(rest.split(".")[0]) + 1)
    counts = tuple(found[stage] for stage in sorted(found))
    if counts != blocks:
        asked, got = (" + ".join(map(str, values)) or "none" for values in (blocks, counts))
        raise ValueError(f"Expected {asked} blocks in layer1, layer2 ... of {path}, as --arch has them, got {got}.")


def _shape_of(tensors: dict[str, np.ndarray], name: str, ndim: int, path: Path) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != ndim:
        got = "none" if name not in tensors else f"shape {tensors[name].shape}"
        raise ValueError(f"Expected a tensor {name} with {ndim} axes in {path}, got {got}.")
    return tensors[name].shape


def _normalisation(
    read: torch_files.Checkpoint, mean: tuple[float, ...], std: tuple[float, ...], channels: int, path: Path
) -> tuple[dict[str, list[float]], str]:
    """Mean and std of each channel, and where they came from."""
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
    return made, "given by the user" if given else "from the file"


def main() -> None:
    """Import a PyTorch checkpoint, to be certified by --config.model.weights=DIR/weights.safetensors."""
    with _command.one_line_errors():
        parser = _command.Parser("idrc-import", main.__doc__)
        about = ".pth, .pt, .th, .tar or .safetensors; or the folder of a diffusers UNet2DModel"
        parser.add_argument("checkpoint", type=Path, help=about)
        parser.add_argument("--arch", default="", help="cifar_resnetN or resnet50, if the file does not say")
        parser.add_argument("--classes", type=int, default=0, help="refuse a network of another number of classes")
        parser.add_argument("--size", type=int, default=0, help="height and width of the images: 32 or 224 by default")
        parser.add_argument("--mean", type=float, nargs="+", default=(), help="of each channel, if the file has none")
        parser.add_argument("--std", type=float, nargs="+", default=(), help="of each channel, if the file has none")
        parser.add_argument("--out", type=Path, required=True, help="folder for weights.safetensors")
        asked = vars(parser.parse_args())
        asked.pop("debug")
        path, out = asked.pop("checkpoint"), asked.pop("out") / checkpoints.WEIGHTS
        if out.exists():
            raise ValueError(f"Expected no {out} yet, got one: choose another --out.")
        tensors, description = _import_folder(path, **asked) if path.is_dir() else import_network(path, **asked)
        _files.make_folder(out.parent)
        checkpoints.save_weights(out, tensors, description)
        print(_summary(tensors, description, out))
    sys.exit(0)


def _import_folder(folder: Path, *, size: int, **others: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    given = [f"--{name}" for name, value in others.items() if value]
    if given:
        raise ValueError(f"Expected no {', '.join(given)} for a folder of diffusers, which says so itself, got them.")
    return diffusers.import_unet(folder, size=size)


def _summary(tensors: dict[str, np.ndarray], description: dict[str, Any], out: Path) -> str:
    shape = "x".join(map(str, description["image_shape"]))
    if description["architecture"] == "unet":
        noise = description["diffusion"]
        return (
            f"Imported unet: {sum(value.size for value in tensors.values()) / 1e6:.1f} million parameters, images "
            f"{shape}, {noise['steps']} steps of a {noise['schedule']} schedule, predicts {noise['prediction']}: {out}"
        )
    return (
        f"Imported {layouts.arch_of(description)}: {description['classes']} classes, images {shape}, "
        f"normalised by {description['normalisation']}.\nCertify it by --config.model.weights={out}"
    )


if __name__ == "__main__":
    main()
