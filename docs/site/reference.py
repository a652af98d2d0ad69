"""Hook of MkDocs: the reference, written from the package itself: a page a room, the settings, the commands.

Names come from `__all__`, texts from docstrings, settings from `config.FIELDS`, and what commands take from their
`--help`, so that nothing here can be out of date.
"""

import contextlib
import importlib
import inspect
import io
import itertools
import pkgutil
import re
import sys
import tomllib
from pathlib import Path
from unittest import mock

from mkdocs.structure.files import File

import idrc_jax
from idrc_jax import config as settings

ROOT = Path(__file__).parents[2]
ROOMS = (
    "core", "certificates", "several_levels", "results", "report", "data", "kernels", "models", "interop", "losses",
    "sampling", "training", "certification", "audit", "config", "commands",
)  # fmt: skip


def on_files(files, config):
    pages = {f"reference/api/{room}.md": room_page(room) for room in ROOMS}
    pages |= {"reference/settings.md": settings_page(), "reference/commands.md": commands_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def room_page(room):
    """What `idrc_jax.ROOM` offers, then its modules, each with the public names that are not above."""
    module = importlib.import_module(f"idrc_jax.{room}")
    offered = sorted(getattr(module, "__all__", ()), key=lambda name: _kind(getattr(module, name)))
    page = [f"# {room}", "", _directive(f"idrc_jax.{room}", offered)]
    seen = {id(getattr(module, name)) for name in offered}
    for name in _modules(module):
        own = importlib.import_module(f"idrc_jax.{room}.{name}")
        members = [
            one
            for one, value in vars(own).items()
            if getattr(value, "__module__", None) == own.__name__ and not one.startswith("_") and id(value) not in seen
        ]
        alias = [f"`idrc_jax.{known}`" for known, place in idrc_jax._MODULES.items() if place == f"{room}.{name}"]
        also = f"Also {', '.join(alias)}." if alias else ""
        page += [f"## `{name}`", "", also, "", _directive(own.__name__, members)]
    return "\n".join(page) + "\n"


def _kind(value):
    """Classes come first, then functions, then constants."""
    return 0 if inspect.isclass(value) else 1 if callable(value) else 2


def _modules(package):
    """Names of its public modules: those a user may import, with those of `idrc_jax` first."""
    names = [one.name for one in pkgutil.iter_modules(package.__path__) if not one.name.startswith("_")]
    room = package.__name__.rpartition(".")[2]
    public = {place.rpartition(".")[2] for place in idrc_jax._MODULES.values() if place.startswith(f"{room}.")}
    return sorted(names, key=lambda name: (name not in public, name))


def _directive(path, members):
    listed = "".join(f"\n        - {name}" for name in members) if members else " false"
    return f"::: {path}\n    options:\n      members:{listed}\n"


def settings_page():
    """Every field of `config.FIELDS`, with default and help, a table a group."""
    page = [
        "# Settings",
        "",
        "`--config.FIELD=VALUE` sets a field; a file of `configs/`, named by `--config`, may give it another default. "
        "These are the fields of all commands and the values that `idrc_jax.config.base()` has.",
    ]
    for group, fields in itertools.groupby(settings.FIELDS.items(), key=lambda item: item[0].rpartition(".")[0]):
        page += ["", f"## `{group}`" if group else "## Of all", "", "| field | default | |", "|---|---|---|"]
        page += [f"| `{name}` | {_default(field.default)} | {_cell(field.help)} |" for name, field in fields]
    return "\n".join(page) + "\n"


def _default(value):
    return "" if value in ("", ()) else f"`{value}`"


def _cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def commands_page():
    """What each installed command says with --help."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    page = ["# Commands", "", "What each of them says with `--help`. Fields are in [settings](settings.md)."]
    for name, place in scripts.items():
        module, function = place.split(":")
        main = getattr(importlib.import_module(module), function)
        about = re.sub(rf"^{name}(?: [A-Z]+)?: ", "", " ".join(main.__doc__.split()))
        page += ["", f"## {name}", "", about[0].upper() + about[1:], "", f'??? note "{name} --help"', ""]
        page += ["    ```text", *(f"    {line}".rstrip() for line in _help(name, main).splitlines()), "    ```"]
    return "\n".join(page) + "\n"


def _help(name, main):
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, "--help"]),
        mock.patch.dict("os.environ", COLUMNS="100"),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        main()
    return out.getvalue()
