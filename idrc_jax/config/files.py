"""Config files: finding them, running them, and what is said of an error inside."""

import inspect
import os
import re
import runpy
import traceback
from pathlib import Path

from idrc_jax.config.fields import FIELDS, Config, get, unknown_field


def folder() -> Path:
    """Where the config files are: in the wheel inside the package, in a checkout beside it."""
    inside = Path(__file__).parent.parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "configs"


def load(name: str) -> Config:
    """The config that `FILE[:ARGUMENT]` names: what the `get_config` of a file returns, given the argument.

    The file is the user's or else, by its name, one of `folder()`. ValueError, which names the place, for one that does
    not load.
    """
    file, colon, argument = os.path.expanduser(name).partition(":")
    path = Path(file) if Path(file).is_file() else folder() / Path(file).name
    if not path.is_file():
        known = ", ".join(sorted(one.name for one in folder().glob("*.py")))
        raise ValueError(f"Expected --config to be a file, or one of {known}, got {file!r}.")
    try:
        return _made(path, [argument] if colon else [])
    except Exception as error:
        raise ValueError(_told(error, str(path))) from error


def _made(path: Path, given: list[str]) -> Config:
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise ValueError("Expected a function get_config, got none.")
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        wrong = "no argument after FILE:, got one" if given else "--config=FILE:ARGUMENT, got no argument"
        raise ValueError(f"Expected {wrong}.") from None
    made = get_config(*given)
    for field in FIELDS:
        try:
            get(made, field)
        except (KeyError, TypeError):
            raise ValueError(
                f"Expected get_config to return idrc_jax.config.base() with changes, got {type(made).__name__} without "
                f"{field}."
            ) from None
    return made


def _told(error: Exception, path: str) -> str:
    """An error inside a config file, with its place there; its kind, too, unless the message is meant for the user."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    place = f"{path}, line {lines[-1]}" if lines else path
    cast = re.fullmatch(  # what a ConfigDict says of a value of another type
        r"Could not override field '(\w+)' .*?\. (.*) is of original type <class '(\w+)'> and cannot be casted to type "
        r"<class '(\w+)'>",
        str(error),
        re.DOTALL,
    )
    if cast:
        name, value, found, wanted = cast.groups()
        return f"{place}: Expected {name} to be of type {wanted}, got {value} of type {found}."
    unknown = re.search(r'Key "(\w+)" does not exist and cannot be added', str(error))  # what a locked ConfigDict says
    if unknown:
        return f"{place}: {unknown_field(unknown[1])}"
    return f"{place}: {error}" if isinstance(error, ValueError) else f"{place}: {type(error).__name__}: {error}"


def default_workdir(name: str) -> Path:
    """The folder of a run whose config is `FILE[:ARGUMENT]` and that the user gives no folder: runs/FILE[-ARGUMENT]."""
    file, _, argument = name.partition(":")
    return Path("runs", "-".join([Path(file).stem, *([argument.replace("/", "-")] if argument else [])]))
