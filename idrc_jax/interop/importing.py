"""Import a PyTorch checkpoint: every tensor is checked, the normalisation is never guessed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from idrc_jax import models
from idrc_jax.core import files, validate
from idrc_jax.interop import diffusers, layouts, network_checks, torch_files, transformers_vit
from idrc_jax.models import Arrays, Description

_SIZES = {"resnet": 32, "resnet50": 224}


def import_network(
    path: str | Path,
    *,
    arch: str = "",
    classes: int = 0,
    size: int = 0,
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
) -> tuple[Arrays, Description]:
    """Read a PyTorch network as the tensors and the description that `models.save_weights` takes.

    Args:
      path: a file that `torch_files.read` can read, or a folder of a Vision Transformer
        (`transformers_vit`) or a U-Net (`diffusers`).
      arch: cifar_resnetN or resnet50; the file's own name for it by default.
      classes: that its head must have; 0 takes those of the file.
      size: height and width of the images; 0 takes 32 for CIFAR's networks, 224 for ImageNet's, a ViT's own.
      mean, std: of each channel (one value serves all), for a file that does not store them.

    Raises:
      ValueError: the file cannot be read, no or two architectures or normalisations, one on another scale than [0, 1],
        or tensors that are missing, unexpected, of another shape, not floats, not finite or variances below 0.
    """
    path = Path(path)
    validate.at_least("--size", size, 0)
    if path.is_dir():
        return _import_folder(path, arch=arch, classes=classes, size=size, mean=tuple(mean), std=tuple(std))
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
    channels = network_checks.shape_of(read.tensors, "conv1.weight", 4, path)[1]
    side = size or _SIZES[architecture]
    description = {
        "architecture": architecture,
        "depth": depth,
        "classes": network_checks.head(read.tensors, f"{layout.head}.bias", classes, path),
        "image_shape": [side, side, channels],
        "shortcut": "zero_pad" if zero_pad else "projection",
        **network_checks.normalisation(read, tuple(mean), tuple(std), channels, path),
        "dtype": "float32",
        "imported": network_checks.origin(path),
    }
    _, params, stats = models.abstract(description, dtype="float32")
    shapes = {name: value.shape for name, value in (params | stats).items()}
    names = layouts.torch_names(shapes, blocks, layout)
    return network_checks.tensors(read.tensors, names, shapes, path), description


def _import_folder(folder: Path, **asked: Any) -> tuple[Arrays, Description]:
    """A folder of transformers or of diffusers, by the class that its config.json names."""
    file = folder / "config.json"
    within = (folder / "unet" / "config.json").is_file()
    said = {} if within else files.read_json(file)
    of_diffusers, named = within or "_class_name" in said, said.get("architectures")
    takes = ("size",) if of_diffusers else ("classes", "size", "mean", "std")
    given = [f"--{name}" for name, value in asked.items() if value and name not in takes]
    if given:
        raise ValueError(f"Expected no {', '.join(given)} for {folder}, which says so itself, got them.")
    if of_diffusers:
        return diffusers.import_unet(folder, size=asked["size"])
    if named != [transformers_vit.ARCHITECTURE]:
        raise ValueError(
            f"Expected a folder of a {transformers_vit.ARCHITECTURE} or a diffusers UNet2DModel, got architectures "
            f"{named} in {file}: other networks are certified by idrc_jax.from_torch."
        )
    return transformers_vit.import_folder(folder, **{name: asked[name] for name in takes})


def _check_depth(tensors: Arrays, blocks: tuple[int, ...], path: Path) -> None:
    found: dict[int, int] = {}
    for name in tensors:
        stage, _, rest = name.removeprefix("layer").partition(".")
        if name.startswith("layer") and stage.isdigit() and rest.split(".")[0].isdigit():
            found[int(stage)] = max(found.get(int(stage), 0), int(rest.split(".")[0]) + 1)
    counts = tuple(found[stage] for stage in sorted(found))
    if counts != blocks:
        asked, got = (" + ".join(map(str, values)) for values in (blocks, counts))
        got = got or f"none: its tensors are {network_checks.few(sorted(tensors))}"
        raise ValueError(f"Expected {asked} blocks in layer1, layer2 ... of {path}, as --arch has them, got {got}.")
