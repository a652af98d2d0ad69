"""Extension of griffe, which reads the docstrings: one entry for several arguments becomes one for each.

The docstrings here say "first, second: of the same images."; readers of Google's style know one name an entry.
"""

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+)(:.*(?:\n\1 +\S.*)*)", flags=re.MULTILINE)


class OneNameAnEntry(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _ENTRY.sub(_each, obj.docstring.value)


def _each(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}{text}" for name in names.split(", "))
