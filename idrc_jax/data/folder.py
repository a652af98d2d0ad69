"""Images in a folder: a folder a class, or flat without labels; all are read at once.

Order and labels follow from names, so that an index means the same image tomorrow: files are sorted within their class,
classes by their names, unless these are the labels themselves or `classes.txt` lists them.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from idrc_jax.core import files
from idrc_jax.data.imagenet import resize_and_crop, visible
from idrc_jax.results import UNLABELLED

CLASSES = "classes.txt"
_SPLITS = {"train": ("train",), "test": ("test", "val")}
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = ("1", "L", "LA")
_MODES = (*_GREY, "CMYK", "P", "PA", "RGB", "RGBA", "YCbCr")  # of 8 bits a value in memory
_BITS_PER_SAMPLE = 258  # a tag of TIFF


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
      images: uint8 [N, H, W, C]; C is 1 where all of them are grey, else 3.
      labels: int32 [N]; -1 for all in a flat folder.
      class_names: in the order of the labels; empty where folders are named by these, and in a flat folder.
      files: of each image, relative to the folder.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    files: tuple[str, ...]


def holds_images(directory: Path) -> bool:
    """Whether a folder has images in it, or in a folder of its own or one further down."""
    return any(next(_images(directory, depth), None) for depth in range(3))


def load(directory: str, split: str, size: int = 0) -> Folder:
    """Read the images of a folder.

    Args:
      directory: with a folder of images a class, or with images. Where it holds nothing but folders `train` and `test`
        (or `val`), those of the split.
      split: "train" or "test".
      size: resize the shorter side to this, and cut out the centre; 0 wants images of one size.

    Raises:
      ValueError: no such folder, none of the split, images beside class folders, a class without images or that
        `classes.txt` does not list, several sizes, or an image that cannot be read, has more than 8 bits or is
        transparent.
    """
    top = Path(directory)
    if not directory or not top.is_dir():
        raise ValueError(f"Expected data.dir to be a folder of images, got {directory!r}.")
    root = _of_split(top, split)
    folders = sorted(path for path in visible(root) if path.is_dir())
    flat = _images_of(root)
    if bool(folders) == bool(flat):
        got = "both" if folders else "neither"
        raise ValueError(f"Expected in {root} a folder of images for each class, or images without labels, got {got}.")
    if flat:
        paths, labels, names = flat, [UNLABELLED] * len(flat), ()
    else:
        numbers, names = _labels(folders, top)
        several = [_images_of(folder) for folder in folders]
        for folder, some in zip(folders, several, strict=True):
            deeper = [path for path in visible(folder) if path.is_dir()]
            if deeper or not some:
                got = f"the folder {deeper[0].name}" if deeper else "none"
                raise ValueError(f"Expected images ({', '.join(_SUFFIXES)}) in {folder}, got {got}.")
        paths = [path for some in several for path in some]
        labels = [number for number, some in zip(numbers, several, strict=True) for _ in some]
        order = np.argsort(labels, kind="stable")
        paths, labels = [paths[place] for place in order], [labels[place] for place in order]
    shown = tuple(str(path.relative_to(top)).encode(errors="replace").decode() for path in paths)
    return Folder(_pixels(paths, size), np.asarray(labels, np.int32), names, shown)


def _of_split(top: Path, split: str) -> Path:
    """The folder of the split, or the whole one where it is not parted."""
    inside = {path.name for path in visible(top) if path.is_dir()}
    if not inside or not inside <= {name for several in _SPLITS.values() for name in several}:
        return top
    for name in _SPLITS[split]:
        if name in inside:
            return top / name
    raise ValueError(
        f"Expected a folder {' or '.join(_SPLITS[split])} in {top}, got {', '.join(sorted(inside))} alone."
    )


def _labels(folders: Sequence[Path], top: Path) -> tuple[list[int], tuple[str, ...]]:
    """The label of each class folder, and the classes' names."""
    names = [folder.name for folder in folders]
    if (top / CLASSES).is_file():
        listed = files.read_lines(top / CLASSES)
        unknown = sorted(set(names) - set(listed))
        if unknown or len(set(listed)) < len(listed):
            got = f"the folder {unknown[0]}" if unknown else "a name twice"
            raise ValueError(f"Expected {top / CLASSES} to list each class once, one a line, got {got}.")
        return [listed.index(name) for name in names], listed
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"Expected a folder a label in {folders[0].parent}, got two of one: {', '.join(names)}.")
        return numbers, ()
    return list(range(len(names))), tuple(names)


def _images_of(folder: Path) -> list[Path]:
    """The images in a folder, sorted; a warning counts other files."""
    found = sorted(path for path in visible(folder) if path.is_file() and path.name != CLASSES)
    others = [path.name for path in found if path.suffix.lower() not in _SUFFIXES]
    if others:
        told = ", ".join(others[:3]) + (f" ... ({len(others)} files)" if len(others) > 3 else "")
        warnings.warn(f"Left out of {folder}, no images by their names: {told}", stacklevel=2)
    return [path for path in found if path.suffix.lower() in _SUFFIXES]


def _images(folder: Path, depth: int) -> Iterator[Path]:
    """Images so many folders down."""
    for path in visible(folder):
        if depth and path.is_dir():
            yield from _images(path, depth - 1)
        elif not depth and path.suffix.lower() in _SUFFIXES and path.is_file():
            yield path


def _pixels(paths: Sequence[Path], size: int) -> np.ndarray:
    """uint8 [N, H, W, C]."""
    heads = [_head(path) for path in paths]
    grey = all(mode in _GREY for mode, _, _ in heads)
    sizes = {(height, width): path for (_, height, width), path in zip(heads, paths, strict=True)}
    if len(sizes) > 1 and not size:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise ValueError(
            f"Expected images of one size, got {one} of {_by(first)} and {other} of {_by(second)}: with "
            "--config.data.size=N the shorter side is resized to N, and the centre is cut out."
        )
    height, width = (size, size) if size else next(iter(sizes))
    pixels = np.empty((len(paths), height, width, 1 if grey else 3), np.uint8)
    for image, path in zip(pixels, paths, strict=True):
        decoded = _decode(path, "L" if grey else "RGB")
        image[...] = (resize_and_crop(decoded, size, size) if size else decoded).reshape(image.shape)
    return pixels


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _head(path: Path) -> tuple[str, int, int]:
    """Mode, height and width of an image; ValueError for one of more than 8 bits a value."""
    with _opened(path) as image:
        if image.mode not in _MODES or _deep(image):
            got = f"mode {image.mode}" if image.mode not in _MODES else "more"
            raise ValueError(f"Expected images of 8 bits a value, got {path} of {got}: convert it.")
        return image.mode, image.height, image.width


def _deep(image: ImageFile.ImageFile) -> bool:
    """Whether there are more than 8 bits a value in the file, of which Pillow would keep 8 in colours."""
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,))) > 8
    told = str([tile[3] for tile in image.tile])  # how the pixels are stored, in PNM with the largest value
    return ";16B" in told or (image.format == "PPM" and max(map(int, re.findall(r"\d+", told)), default=0) > 255)


def _decode(path: Path, mode: str) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]; ValueError for an image through which one sees."""
    with _opened(path) as image:
        try:
            seen_through = "A" in image.getbands() or "transparency" in image.info
            opacity = image.convert("RGBA").getchannel("A").getextrema()[0] if seen_through else 255
            pixels = np.asarray(image.convert(mode))
        except Exception as error:  # Pillow raises several kinds
            raise ValueError(f"Expected a readable image, got {path}: {error}.") from None
    if opacity != 255:
        raise ValueError(f"Expected opaque images, got {path}, which is transparent: put a ground behind it.")
    return pixels


def _opened(path: Path) -> ImageFile.ImageFile:
    try:
        return Image.open(path)
    except Exception as error:  # Pillow raises several kinds
        raise ValueError(f"Expected a readable image, got {path}: {error}.") from None
