"""Data sets as plain arrays on the host: uint8 (or float32 in [0, 1]) images [N, H, W, C] and int32 labels.

`cifar10` reads the official binary version from a folder, or tensorflow-datasets in the same order; `digits` is
scikit-learn's; `npz` is any .npz file with `images` and, unless they are unknown, `labels`; `folder` is a folder of
images a class, or images without labels (see `folder.py`); `synthetic` is seeded, for tests; `imagenet` has its images
decoded when they are asked for (see `imagenet.py`). No pickle is ever loaded.
"""

import hashlib
import socket
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from idrc_jax.core import arrays, extras, validate
from idrc_jax.data import folder, imagenet
from idrc_jax.results import UNLABELLED

NAMES = ("cifar10", "digits", "folder", "imagenet", "npz", "synthetic")
SKIPS = {"cifar10": 20, "digits": 3, "imagenet": 100}  # the field's habits, and the digits' in the quick start
_CIFAR10_FILES = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_CIFAR10_RECORDS = 10_000


@dataclass(frozen=True)
class Dataset:
    """Images and labels of one split.

    Attributes:
      images: uint8 [N, H, W, C], or float32 in [0, 1]; or what gives them by an array of indices.
      labels: int32 [N], each in 0 .. classes - 1; or all `UNLABELLED`.
      classes: number of classes; 0 if unlabelled.
      source: the file or folder it came from, or its name: for messages.
      class_names: in the order of the labels, where the data set says so.
      files: where each image came from, if from a file of its own.
    """

    name: str
    split: str
    images: np.ndarray | imagenet.Images = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: int
    source: str = field(default="", compare=False)
    class_names: tuple[str, ...] = field(default=(), compare=False, repr=False)
    files: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", self.source or self.name)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the images' true classes are known."""
        return bool(np.all(self.labels != UNLABELLED))

    def fingerprint(self, indices: np.ndarray | None = None) -> str:
        """Compute the SHA-256 over the shape, type and bytes of images and labels.

        It is that of all of them; where images are decoded when asked for, that of `indices` and of those at them.
        """
        arrays = [self.images, self.labels]
        if isinstance(self.images, imagenet.Images):
            chosen = np.arange(len(self), dtype=np.int64) if indices is None else np.asarray(indices, np.int64)
            arrays = [chosen, self.images[chosen], self.labels[chosen]]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def kind(name: str, directory: str) -> str:
    """The data set that is meant: what the directory holds, where that says more than the name.

    Args:
      name: one of `NAMES`.
      directory: an .npz file, or a folder with train.npz or test.npz, CIFAR-10's binary files or images; else, and for
        imagenet, the name counts.

    Raises ValueError for an unknown name, and for a directory that holds nothing known, beside the name of a data set
    that needs none.
    """
    validate.one_of("data.name", name, NAMES)
    path = Path(directory)
    if path.suffix == ".npz":
        return "npz"
    if not directory or name == "imagenet":
        return name
    if any((path / f"{split}.npz").is_file() for split in ("train", "test")):
        return "npz"
    if any((path / part).is_file() for part in ("test_batch.bin", "cifar-10-batches-bin/test_batch.bin")):
        return "cifar10"
    if path.is_dir() and folder.holds_images(path):
        return "folder"
    if name in ("digits", "synthetic"):
        raise ValueError(f"Expected data.dir to be an .npz file or a folder with images, got {directory}.")
    return name


def load(name: str, split: str, *, directory: str = "", seed: int = 0, size: int = 0) -> Dataset:
    """Load one split of a data set.

    Args:
      name: one of `NAMES`.
      split: "train" or "test".
      directory: for cifar10 the folder with the binary version, for imagenet (test alone) a folder of class folders
        (empty: tensorflow-datasets); for npz the .npz file, or a folder holding train.npz and test.npz; for folder the
        folder of images.
      seed: of the synthetic set.
      size: of folder: resize the images' shorter side to this and cut out the centre; 0 for as they are.

    Raises:
      ValueError: an unknown name or split, a missing or truncated file, labels or pixels out of range.
    """
    validate.one_of("data.name", name, NAMES)
    validate.one_of("split", split, ("train", "test"))
    if validate.count("data.size", size, 0) and name != "folder":
        raise ValueError(f"Expected data.size for a folder of images alone, got data.size = {size} for {name}.")
    if name == "imagenet":
        if split != "test":
            raise ValueError("Expected ImageNet's networks to be imported (idrc-import), got a request to train one.")
        return Dataset(name, split, *imagenet.load(directory), imagenet.CLASSES)
    if name == "npz":
        return _npz(directory, split)
    if name == "folder":
        read = folder.load(directory, split, size)
        classes = len(read.class_names)
        made = from_arrays(read.images, read.labels, name=name, split=split, classes=classes, source=directory)
        return replace(made, class_names=read.class_names, files=read.files)
    if name == "cifar10":
        images, labels = _cifar10_binary(Path(directory), split) if directory else _cifar10_tfds(split)
        classes = 10
    elif name == "digits":
        images, labels = _digits(split)
        classes = 10
    else:
        images, labels = _synthetic(split, seed)
        classes = 4
    return from_arrays(images, labels, name=name, split=split, classes=classes)


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    name: str = "arrays",
    split: str = "test",
    classes: int = 0,
    source: str = "",
) -> Dataset:
    """Make a checked data set of arrays.

    Args:
      images: uint8, or floats in [0, 1], [N, H, W, C].
      labels: integers [N]; None, or -1 for all, where they are unknown.
      name, split: of the data set.
      classes: 0 takes the largest label + 1.
      source: see `Dataset`.
    """
    images, where = np.asarray(images), source or name
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"Expected images [N, H, W, C] with N >= 1 and none of the others 0 in {where}, got shape {images.shape}."
        )
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"Expected images of uint8 or floats in {where}, got {images.dtype}.")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"Expected images within [0, 1] in {where}, got values from {low:g} to {high:g}.")
        images = images.astype(np.float32)
    labels = np.full(len(images), UNLABELLED) if labels is None else np.asarray(labels)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected {len(images)} integer labels in {where}, got shape {labels.shape} of {labels.dtype}."
        )
    if np.all(labels == UNLABELLED):
        return Dataset(name, split, images, labels.astype(np.int32), classes, where)
    low, high, most = int(labels.min()), int(labels.max()), classes or 2**31
    if low < 0 or high >= most:
        raise ValueError(
            f"Expected labels from 0 to {most - 1} in {where}, or {UNLABELLED} for all, got {low} to {high}."
        )
    return Dataset(name, split, images, labels.astype(np.int32), classes or high + 1, where)


def select(count: int, *, skip: int = 1, start: int = 0, stop: int = -1, most: int = 0) -> np.ndarray:
    """List the indices start, start + skip, ... below stop (-1: the end), the first `most` of them (0: all).

    Every 20th is the field's habit. Raises ValueError when nothing is left.
    """
    validate.count("data.skip", skip, 1)
    validate.count("data.start", start, 0)
    validate.count("data.stop", stop, -1)
    validate.count("data.count", most, 0)
    indices = np.arange(start, count if stop == -1 else min(stop, count), skip)[: most or None]
    if not len(indices):
        raise ValueError(f"Expected data.start={start}, data.stop={stop} to leave images of {count}, got none.")
    return indices


def shared(images: Any, others: Any) -> np.ndarray:
    """Find which of the images are among the others, by their pixels, which `to_unit` makes comparable: bool [N]."""
    comparable = (lambda image: image) if images.dtype == others.dtype else to_unit

    def digests(some: Any) -> list[bytes]:
        return [hashlib.sha256(comparable(image).tobytes()).digest() for image in some]

    known = set(digests(others))
    return np.asarray([digest in known for digest in digests(images)])


def to_unit(images: Any) -> Any:
    """Turn uint8 images into float32 in [0, 1] (NumPy or JAX); float32 images pass unchanged."""
    return images.astype("float32") / np.float32(255) if images.dtype == np.uint8 else images


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Turn float32 images that `to_unit` made of uint8 back into these; others pass unchanged, and uint8."""
    if images.dtype == np.uint8:
        return images
    rounded = np.rint(255 * images).astype(np.uint8)
    return rounded if np.array_equal(to_unit(rounded), images) else images


def _cifar10_binary(directory: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    inner = directory / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else directory
    parts = []
    for name in _CIFAR10_FILES[split]:
        path = folder / name
        if not path.is_file():
            raise ValueError(
                f"Expected the binary version of CIFAR-10 in data.dir, got no file {path}. "
                "Unpack cifar-10-binary.tar.gz there."
            )
        expected = _CIFAR10_RECORDS * _CIFAR10_RECORD
        if path.stat().st_size != expected:
            raise ValueError(
                f"Expected {expected} bytes in {path}, got {path.stat().st_size}: fetch or unpack it again."
            )
        parts.append(np.fromfile(path, np.uint8).reshape(_CIFAR10_RECORDS, _CIFAR10_RECORD))
    records = np.concatenate(parts)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int32)


def _cifar10_tfds(split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Expected data.dir to hold the binary version of CIFAR-10, or tensorflow-datasets to fetch it; got "
            f"neither. Set --config.data.dir=FOLDER or {extras.how_to_get('datasets')}."
        ) from None
    builder = tfds.builder("cifar10", file_format="array_record")
    if not builder.is_prepared():
        _require_network()
        builder.download_and_prepare()
    records = sorted(builder.as_data_source(split=split), key=lambda record: record["id"])
    for number, record in enumerate(records):  # of the binary files, which tensorflow-datasets shuffles
        if record["id"] != f"{split}_{number:05d}".encode():
            raise ValueError(
                f"Expected CIFAR-10's images {split}_00000, {split}_00001, ... of tensorflow-datasets, got "
                f"{record['id']!r} as number {number}: prepare them again or set --config.data.dir=FOLDER."
            )
    images = np.stack([record["image"] for record in records])
    return images, np.asarray([record["label"] for record in records], np.int32)


def _require_network() -> None:
    """tensorflow-datasets would retry for minutes; ask once, for seconds."""
    try:
        socket.create_connection(("www.cs.toronto.edu", 443), timeout=5).close()
    except OSError as error:
        raise ValueError(
            f"Expected a network to download CIFAR-10 once, got: {error}. Fetch cifar-10-binary.tar.gz on "
            "another machine, unpack it and set --config.data.dir=FOLDER."
        ) from None


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            f"Expected scikit-learn for data.name=digits, got no such package. {extras.how_to_get('quickstart')}."
        ) from None
    digits: Any = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(images)) % 5 == 0
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], digits.target[chosen].astype(np.int32)


def _npz(directory: str, split: str) -> Dataset:
    path = Path(directory)
    if path.is_dir():
        path = path / f"{split}.npz"
    if not directory or not path.is_file():
        raise ValueError(f"Expected data.dir to be an .npz file, or a folder with {split}.npz, got {directory!r}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"Expected a readable .npz file, as np.savez writes it, got {path}, which is no zip archive.")
    try:
        found = arrays.read_npz(path, ("images", "labels"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a readable .npz file, got {path}: {error}.") from None
    if "images" not in found:
        with np.load(path) as file:
            raise ValueError(
                f"Expected an array images, and labels if there are any, in {path}, got {sorted(file.files)}."
            )
    return from_arrays(found["images"], found.get("labels"), name="npz", split=split, source=str(path))


def _synthetic(split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes: one bright quadrant each, on 8x8x1 images; easy enough for a tiny network."""
    generator = np.random.default_rng([seed, {"train": 0, "test": 1}[split]])
    count = {"train": 512, "test": 64}[split]
    labels = generator.integers(0, 4, count)
    images = generator.integers(0, 80, (count, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return images.astype(np.uint8), labels.astype(np.int32)
