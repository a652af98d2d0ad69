"""ImageNet's validation images, decoded when they are asked for: [50,000, 224, 224, 3] would be 7.5 GB.

Images stand in the field's order: by class, then by file name, so that every 100th is the field's. They are resized as
torchvision does: the shorter side to 256, bilinear with antialiasing, then the centre of 224 x 224.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from idrc_jax.core import extras

CLASSES = 1000
_RESIZED, _SIDE = 256, 224
_SUFFIXES = (".jpeg", ".jpg", ".png")
# SHA-256 of the 1000 names in their order, with a newline between two.
_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


@dataclass(frozen=True)
class Images:
    """What `data.Dataset.images` needs of an array: its shape and type, and images by their indices.

    Attributes:
      count: number of images.
      decode: the RGB pixels, uint8 [H, W, 3] of any size, of one image.
    """

    count: int
    decode: Callable[[int], np.ndarray] = field(repr=False)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.count, _SIDE, _SIDE, 3)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [len(indices), 224, 224, 3]."""
        return np.stack([resize_and_crop(self.decode(int(index))) for index in indices])


def load(directory: str) -> tuple[Images, np.ndarray]:
    """Find images and int32 labels of the validation set.

    Args:
      directory: with a folder of images for each of the 1000 classes (or with `val/` that has them), named by the
        wnids of ILSVRC 2012 (`n01440764` ...) or by the labels 0 ... 999; empty for tensorflow-datasets. Names that
        begin with a dot, of folders or of images, are passed over.

    Raises:
      ValueError: no such folder, another number of classes or other names, a class without images, or no
        tensorflow-datasets.
    """
    return _folder(Path(directory)) if directory else _tfds()


def resize_and_crop(pixels: np.ndarray, shorter: int = _RESIZED, side: int = _SIDE) -> np.ndarray:
    """Resize the shorter side, and cut out the centre: uint8 [H, W, 3] or [H, W] -> [side, side, 3] or [side, side]."""
    height, width = pixels.shape[:2]
    least = min(height, width)
    size = (int(shorter * width / least), int(shorter * height / least))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    top, left = (round((one - side) / 2) for one in resized.shape[:2])
    return resized[top : top + side, left : left + side]


def _folder(directory: Path) -> tuple[Images, np.ndarray]:
    files, labels = [], []
    for label, folder in enumerate(_class_folders(directory / "val" if (directory / "val").is_dir() else directory)):
        found = sorted(path for path in visible(folder) if path.suffix.lower() in _SUFFIXES)
        if not found:
            raise ValueError(f"Expected images ({', '.join(_SUFFIXES)}) in {folder}, got none.")
        files += found
        labels += [label] * len(found)

    def decode(index: int) -> np.ndarray:
        try:
            with Image.open(files[index]) as opened:
                return np.asarray(opened.convert("RGB"))
        except OSError as error:
            raise ValueError(f"Expected a readable image, got {files[index]}: {error}.") from None

    return Images(len(files), decode), np.asarray(labels, np.int32)


def _class_folders(root: Path) -> list[Path]:
    """The folder of each class, in the order of the labels."""
    folders = [path for path in visible(root) if path.is_dir()] if root.is_dir() else []
    if len(folders) != CLASSES:
        raise ValueError(
            f"Expected data.dir with a folder for each of {CLASSES} classes, got {len(folders)} in {root}."
        )
    numbers = {int(path.name): path for path in folders if path.name.isascii() and path.name.isdigit()}
    if numbers.keys() == set(range(CLASSES)):
        return [numbers[label] for label in range(CLASSES)]
    folders.sort()
    if hashlib.sha256("\n".join(path.name for path in folders).encode()).hexdigest() != _WNIDS:
        raise ValueError(
            f"Expected folders named by the wnids of ILSVRC 2012 (n01440764 ... n15075141) or by the labels 0 ... "
            f"{CLASSES - 1} in {root}, got others: {folders[0].name} ... {folders[-1].name}."
        )
    return folders


def visible(folder: Path) -> Iterator[Path]:
    """What is in a folder, but for names that begin with a dot: `.ipynb_checkpoints`, `._a.png` of macOS."""
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _tfds() -> tuple[Images, np.ndarray]:
    """`imagenet2012` of tensorflow-datasets; its own order is another, so labels and names are read once to sort."""
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Expected data.dir with a folder of images for each class, or tensorflow-datasets; got neither. Set "
            f"--config.data.dir=FOLDER or {extras.how_to_get('datasets')}."
        ) from None
    builder = tfds.builder("imagenet2012", file_format="array_record")
    if not builder.is_prepared():
        raise ValueError(
            "Expected imagenet2012 prepared by tensorflow-datasets (as array_record; it needs the archives that "
            "image-net.org gives), got none: prepare it, or set --config.data.dir=FOLDER."
        )
    undecoded = builder.as_data_source(split="validation", decoders={"image": tfds.decode.SkipDecoding()})
    named = [(int(one["label"]), _text(one["file_name"]), place) for place, one in enumerate(undecoded)]
    places = [place for _, _, place in sorted(named)]
    source = builder.as_data_source(split="validation")
    return Images(len(named), lambda index: source[places[index]]["image"]), np.asarray(
        sorted(label for label, _, _ in named), np.int32
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
