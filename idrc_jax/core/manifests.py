"""Settings as JSON values, and how two of them differ."""

import json
from typing import Any


def differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """`name was x, is y; ...` over the entries that differ; empty when none does."""
    return "; ".join(
        f"{name} was {stored.get(name, 'unset')}, is {asked.get(name, 'unset')}"
        for name in sorted(stored.keys() | asked.keys())
        if stored.get(name) != asked.get(name)
    )


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """The values as a JSON file gives them back."""
    return json.loads(json.dumps(value))
