"""Argument checks: one clear line that says what was expected and what came."""

import math
import numbers
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import numpy as np

Number = TypeVar("Number", int, float)


class SettingError(ValueError):
    """A value that a setting cannot have; the message names the attributes and arguments that `names` lists."""

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names

    def renamed(self, paths: Mapping[str, str]) -> "SettingError":
        """The same error for those who know the attributes by other names: `paths` says which."""
        message = str(self)
        for name in self.names:
            message = re.sub(rf"(?<![\w.]){name}\b", paths.get(name, name), message, count=1)
        return SettingError(message)


def finite(value: object) -> bool:
    """Whether a value is a number that is finite as a float; an array is none."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer above all floats
        return False


def ascend(values: Sequence[Any], above: float = -math.inf) -> bool:
    """Whether values are finite numbers that ascend, all of them > `above`."""
    return all(finite(value) and value > above for value in values) and list(values) == sorted(set(values))


def positive(name: str, value: float) -> float:
    """Return `value` if it is finite and > 0, else raise ValueError."""
    if not (finite(value) and value > 0):
        raise _refusal(name, f"Expected {name} > 0, got {value}.")
    return value


def level(name: str, value: float) -> float:
    """Return `value` if it is > 0 and neither 0 nor infinite in float32, else raise ValueError."""
    if not 2.0**-126 <= float(positive(name, value)) < 2.0**128 - 2.0**103:
        raise _refusal(name, f"Expected {name} from 1.2e-38 to 3.4e38, the range of float32, got {value}.")
    return value


def at_least(name: str, value: Number, least: float) -> Number:
    """Return `value` if it is >= `least`, else raise ValueError."""
    if not value >= least:
        raise _refusal(name, f"Expected {name} >= {least}, got {value}.")
    return value


def integer(name: str, value: object) -> int:
    """Return `value` as an int if its type is one of integers, else raise ValueError."""
    try:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise _refusal(name, f"Expected {name} to be an integer, got {value!r}.") from None


def count(name: str, value: object, least: int) -> int:
    """Return `value` as an int if it is an integer >= `least`, else raise ValueError."""
    return at_least(name, integer(name, value), least)


def classes(where: object, value: object) -> int:
    """Return a number of classes as an int if it is at least 2, else raise ValueError, which says what to do with 1."""
    number = integer("classes", value)
    if number < 2:
        raise ValueError(
            f"Expected at least 2 classes in {where}, got {value}: a single logit z, as a sigmoid takes it, is to be "
            "given as the two logits [0, z]."
        )
    return number


def in_open_unit_interval(name: str, value: float) -> float:
    """Return `value` if 0 < value < 1, else raise ValueError."""
    if not 0 < value < 1:
        raise _refusal(name, f"Expected 0 < {name} < 1, got {value}.")
    return value


def fraction(name: str, value: float) -> float:
    """Return `value` if 0 <= value < 1, else raise ValueError."""
    if not 0 <= value < 1:
        raise _refusal(name, f"Expected 0 <= {name} < 1, got {value}.")
    return value


def normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """ValueError unless means and standard deviations can be those of pixels in [0, 1]."""
    if not (all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)):
        raise ValueError(
            f"Expected a mean within [0, 1] and a std within (0, 1], as pixels are within [0, 1], got {list(mean)} and "
            f"{list(std)}: divide those of a scale of 0 to 255 by 255."
        )


def weights(name: str, values: np.ndarray, file: str | Path) -> None:
    """ValueError unless a file's tensor is finite and, if it holds variances, not negative."""
    if not np.isfinite(values).all():
        raise ValueError(f"Expected finite weights in {file}, got a non-finite value in {name}.")
    if name.endswith((".var", ".running_var")) and (values < 0).any():
        raise ValueError(f"Expected variances >= 0 in {file}, got {values.min()} in {name}.")


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise ValueError naming the near ones."""
    choices = sorted(choices)
    if value not in choices:
        near = get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise _refusal(name, f"Expected {name} to be one of {', '.join(choices)}, got {value!r}.{hint}")
    return value


def _refusal(name: str, message: str) -> SettingError:
    """`name` may be a phrase around that of a setting."""
    return SettingError(message, *re.findall(r"\w+", name))
