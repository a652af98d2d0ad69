"""The user's own code: found by the name that a setting gives, and named by a hash of its source."""

import ast
import hashlib
import importlib
import inspect
import os
import sys
import textwrap
from typing import Any

import numpy as np

_PACKAGE = __name__.partition(".")[0]


def call(setting: str, name: str, kind: str, **arguments: object) -> Any:
    """Call `package.module:function` (or a class) with these arguments; the current folder is searched first.

    Args:
      setting: by which the user names it, for messages.
      kind: of what it is to make, with its article.

    Raises:
      ValueError: it cannot be imported, or raises.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"Expected {setting} to be package.module:function, got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)(**arguments)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            what += f"; it is looked for in the current folder, {os.getcwd()}, and where Python finds packages"
        raise ValueError(f"Expected {setting}={name} to make {kind}, got {what}.") from error


def describe(made: object) -> dict[str, str]:
    """What an object's class is, where it is not of this package: its name as `class`, and `sha256` of its source.

    The hash is over the source of the class and its bases, and of the functions, classes, plain values, arrays and
    lists, tuples, sets and dicts of these that they name in their modules, as far as there is a source: comments count;
    other code in the module, what they name in other modules, and objects of other kinds do not.
    """
    kind = type(made)
    if kind.__module__.partition(".")[0] == _PACKAGE:
        return {}
    own = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in (_PACKAGE, "builtins")]
    named = {"class": f"{kind.__module__}:{kind.__qualname__}"}
    sources: dict[str, str] = {}
    try:
        for one in own:
            _collect(one, sources)
    except (OSError, TypeError):  # no source: typed into an interpreter, or compiled
        return named
    text = "\n".join(f"{name}\n{source}" for name, source in sorted(sources.items()))
    return named | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _collect(thing: Any, sources: dict[str, str]) -> None:
    """Put the source of a class or function, and of what it names in its module, into `sources`."""
    place = f"{thing.__module__}:{thing.__qualname__}"
    if place in sources:
        return
    sources[place] = textwrap.dedent(inspect.getsource(thing))
    around = vars(sys.modules[thing.__module__])
    names = {node.id for node in ast.walk(ast.parse(sources[place])) if isinstance(node, ast.Name)}
    for name in sorted(names & around.keys()):
        text = _text(around[name], thing.__module__, sources)
        if text and not inspect.isfunction(around[name]) and not inspect.isclass(around[name]):
            sources[f"{thing.__module__}:{name}"] = text


def _text(value: Any, module: str, sources: dict[str, str]) -> str:
    """All of a value as text, the same in every process, after `_collect` of what it holds of the module; empty for
    objects of other kinds."""
    if inspect.isfunction(value) or inspect.isclass(value):
        if value.__module__ == module:
            _collect(value, sources)
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, list | tuple | set | frozenset):
        held = [_text(one, module, sources) for one in value]
        if isinstance(value, tuple):
            return f"({', '.join(held)}{',' * (len(held) == 1)})"
        return f"{type(value).__name__}({', '.join(held if isinstance(value, list) else sorted(held))})"
    if isinstance(value, dict):
        pairs = [tuple(_text(one, module, sources) for one in pair) for pair in value.items()]
        return f"dict({', '.join(f'{key}: {own}' for key, own in pairs)})"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return repr(value)
    array = np.asarray(value) if hasattr(value, "__array__") else None  # of JAX or PyTorch, too
    if array is None or array.dtype.hasobject:
        return ""
    return f"{array.shape} {array.dtype} {array.tobytes().hex()}"
