"""Settings as JSON values, and how two of them differ."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Json = dict[str, Any]  # a JSON object


def differences(stored: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """`name was x, is y; ...` over the entries that differ, hashes by their first digits; empty when none does."""
    return "; ".join(
        f"{name} was {_short(stored.get(name, 'unset'))}, is {_short(asked.get(name, 'unset'))}"
        for name in sorted(stored.keys() | asked.keys())
        if stored.get(name) != asked.get(name)
    )


def _short(value: object) -> object:
    """A SHA-256 by its first eight digits; anything else as it is."""
    return f"{value[:8]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


def as_json(value: Mapping[str, object]) -> Json:
    """The values as a JSON file gives them back, NumPy's numbers as Python's; ValueError for what none can hold."""
    return json.loads(json.dumps(value, default=_number))


def _number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"Expected numbers, texts and lists of them in settings, got {value!r}.")
