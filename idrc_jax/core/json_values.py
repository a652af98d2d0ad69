"""Settings as JSON values, and how two of them differ."""

import json
import re
import sys
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


def _short(value: object) -> str:
    """A value as text, each SHA-256 in it by its first eight digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1...", str(value))


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for a damaged one, a name that an object has twice, or too deep nesting."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("lists or objects nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> Json:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return made


def require(value: Any, kind: Any, place: str, where: object) -> None:
    """ValueError, in one line, unless a value of a JSON file is of a kind.

    Args:
      value: of the file.
      kind: str, bool, int (of 64 bits), float (any finite number), dict or list; [kind] for a list of such values,
        (kind, kind) for one of two, {name: kind} for an object that has these entries, "name?" those that it may lack.
      place: of the value in the file, dotted; empty for the whole.
      where: the file.
    """
    if isinstance(kind, dict):
        require(value, dict, place, where)
        for name, inner in kind.items():
            inside = f"{place}.{name.rstrip('?')}".lstrip(".")
            if name.rstrip("?") in value:
                require(value[name.rstrip("?")], inner, inside, where)
            elif not name.endswith("?"):
                raise ValueError(f"Expected {inside} in {where}, got none.")
    elif isinstance(kind, list | tuple):
        require(value, list, place, where)
        if isinstance(kind, tuple) and len(value) != len(kind):
            raise ValueError(f"Expected {len(kind)} values at {place} in {where}, got {len(value)}.")
        for number, one in enumerate(value):
            require(one, kind[number % len(kind)], f"{place}.{number}", where)
    elif not _is(value, kind):
        raise ValueError(f"Expected {place or 'all'} in {where} to be {_KINDS[kind]}, got {_shown(value)}.")


_KINDS = {
    str: "a text", bool: "true or false", int: "an integer of 64 bits", float: "a finite number", dict: "an object",
    list: "a list",
}  # fmt: skip


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, kind)


def _shown(value: object) -> str:
    """A value as JSON, its beginning if it is long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def as_json(value: Mapping[str, object]) -> Json:
    """The values as a JSON file gives them back, NumPy's numbers as Python's; ValueError for what none can hold."""
    return json.loads(json.dumps(value, default=_number))


def _number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"Expected numbers, texts and lists of them in settings, got {value!r}.")
