"""What the classes of a data set are called."""

from collections.abc import Sequence
from pathlib import Path

from idrc_jax.certificates import confidence_bounds
from idrc_jax.core import files

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def known(data: str) -> tuple[str, ...]:
    """The names in the order of the labels, of a data set as manifests name it; none of an unknown one."""
    return CIFAR10 if data.startswith("cifar10/") else ()


def read(path: Path) -> tuple[str, ...]:
    """Names from a text file, one a line in the order of the labels; blank lines do not count."""
    try:
        names = files.read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected a text file of class names, got {path}: {type(error).__name__}.") from None
    if not names:
        raise ValueError(f"Expected a class name a line in {path}, got an empty file.")
    return names


def name(names: Sequence[str], number: int) -> str:
    """The name of a class; its number where there is none; `abstained` for -1."""
    if number == confidence_bounds.ABSTAIN:
        return "abstained"
    return names[number] if 0 <= number < len(names) else str(number)
