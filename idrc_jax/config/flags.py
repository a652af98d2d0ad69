"""Command lines: flags, --config.FIELD overrides, help, and what is said of a wrong one.

A wrong setting or damaged file ends in one line on standard error and exit status 1; a job that stopped for its time
limit exits 0 and says in its status file how far it got; Ctrl-C exits 130.
"""

import itertools
import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from idrc_jax.config import fields, files
from idrc_jax.core import command_line
from idrc_jax.sampling import devices, random_keys

_CONFIG = "FILE[:ARGUMENT]: a config file of yours or, by its name, of this package; quickstart.py by default."


class PathFlag(flags.ArgumentParser):
    """Of flags that are paths."""

    def parse(self, argument: str) -> Path:
        return command_line.path(argument)


def run(
    about: str | None,
    job: Callable,
    *,
    config_file: bool,
    define: Callable[[flags.FlagValues], None] | None = None,
    cpu_devices: Callable[[fields.Config], int] = lambda _: os.cpu_count() or 1,
    folder: bool = False,
) -> None:
    with command_line.one_line_errors(), devices.known_platforms():
        values, rest = _parse(config_file, define)
        if values.help:
            print(_help(about, values))
            sys.exit(0)
        if not config_file:
            sys.exit(job(values, rest))
        if folder and len(rest) == 1:
            values.workdir = command_line.path(rest[0])
        elif rest:
            raise ValueError(f"Expected only --flags, got {rest[0]!r}.")
        random_keys.check_seed(values.config.seed)
        devices.configure_cpu(values.config.devices or cpu_devices(values.config))
        sys.exit(job(values))


def _help(about: str | None, values: flags.FlagValues) -> str:
    own = [values[name] for name in values if not name.startswith("config.") and values[name].help]
    names = ("config", "workdir", "dry_run", "n", "adaptive", "out", "classes", "debug", "help")
    lines = [about or "", *(f"  --{flag.name:<9} {flag.help}" for flag in own if flag.name in names)]
    if "config" in values:
        lines += ["", "Fields, to be set by --config.FIELD=VALUE, with the values of this config:"]
        for _, group in itertools.groupby(fields.FIELDS.items(), key=lambda item: item[0].rpartition(".")[0]):
            lines += ["", *(_explained(path, field, fields.get(values.config, path)) for path, field in group)]
    return "\n".join(lines)


def _explained(path: str, field: fields.Field, value: object) -> str:
    default = "" if value == field.default else f" (default: {field.default!r})"
    return f"  {f'{path} = {value!r}':<38}  # {field.help}{default}"


def _parse(config_file: bool, define: Callable[[flags.FlagValues], None] | None) -> tuple[flags.FlagValues, list[str]]:
    """The flags and what is left of the command line, or a ValueError of one line."""
    values = flags.FlagValues()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values)
    arguments = sys.argv
    try:
        if config_file:
            name, arguments = _config_file(arguments)
            config_flags.DEFINE_config_dict("config", files.load(name), _CONFIG, values, sys_argv=arguments)
            workdir = str(files.default_workdir(name))
            flags.DEFINE(PathFlag(), "workdir", workdir, f"Folder of the run, {workdir} by default.", values)
        if define:
            define(values)
        rest = values(arguments)[1:]
        if config_file:
            fields.expand_home(values.config)
            fields.name_data(values.config)
        return values, rest
    except (AttributeError, KeyError) as error:
        raise ValueError(_unknown_field(error)) from error
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_unknown_flag(error.flagname)) from error
    except (flags.Error, TypeError) as error:
        raise ValueError(_wrong_value(str(error))) from error


def _config_file(arguments: list[str]) -> tuple[str, list[str]]:
    """What the last --config says, or the default, and the other arguments."""
    name, others, rest = "quickstart.py", [], iter(arguments)
    for argument in rest:
        match = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if match:
            name = next(rest, "") if match[1] is None else match[1]
        else:
            others.append(argument)
    return name, others


def _unknown_flag(name: str) -> str:
    near = [name] if name in fields.FIELDS else get_close_matches(name, fields.FIELDS, n=1)
    return f"Expected a known flag, got --{name}.{f' Did you mean --config.{near[0]}?' if near else ''}"


def _wrong_value(told: str) -> str:
    """What absl says of a value that its flag cannot take, with the field's type."""
    match = re.match(r"flag --config\.([\w.]+)=", told)
    if not match or match[1] not in fields.FIELDS:
        return told
    value = told[match.end() :].partition(": ")[0]
    return f"Expected {match[1]} to be of type {type(fields.FIELDS[match[1]].default).__name__}, got {value!r}."


def _unknown_field(error: Exception) -> str:
    for argument in sys.argv[1:]:
        match = re.match(r"--(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in fields.FIELDS:
            return fields.unknown_field(match[1])
    return f"Expected known config fields: {error}"
