"""Command lines: flags, --config.FIELD overrides, help, and what is said of a wrong one.

A wrong setting or damaged file ends in one line on standard error and exit status 1; a job that stopped for its time
limit exits 0 and says in its status file how far it got; Ctrl-C exits 130.
"""

import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from idrc_jax import models
from idrc_jax.config import command_fields, fields, files, help_page, run_memory
from idrc_jax.core import command_line
from idrc_jax.sampling import devices, random_keys

_DEFAULT = "quickstart.py"
_CONFIG = "FILE[:ARGUMENT]: a config file of yours or, by its name, of this package; quickstart.py by default."


class PathFlag(flags.ArgumentParser):
    """Of flags that are paths."""

    def parse(self, argument: str) -> Path:
        return command_line.path(argument)


class OptionalPath(flags.ArgumentParser):
    """Of flags that are given alone, true or false, or are a path, several with commas between."""

    def parse(self, argument: str | bool) -> bool | str:
        words = {"true": True, "false": False}
        return words.get(argument, argument) if isinstance(argument, str) else argument


class WholeNumber(flags.IntegerParser):
    """Of flags and fields that are integers: 1e4 is one, too."""

    def convert(self, argument: int | str) -> int:
        return argument if isinstance(argument, int) else command_line.whole_number(argument)


class Paths(flags.ArgumentParser):
    """Of the field that may be a tuple in config files: text as it is."""

    def parse(self, argument: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return argument


def run(
    about: str | None,
    job: Callable,
    *,
    command: str = "",
    define: Callable[[flags.FlagValues], None] | None = None,
    cpu_devices: Callable[[fields.Config], int] = lambda _: os.cpu_count() or 1,
    folder: bool = False,
) -> None:
    """Parse the command line, and exit with what the job returns.

    Args:
      about: the first lines of `--help`.
      job: takes the flags; without a config also the other arguments.
      command: one of `command_fields.READS`, which takes a config; empty for one that takes none.
      define: adds flags of its own.
      cpu_devices: into how many devices a CPU is split, unless the user says.
      folder: whether the run's folder may stand alone, without `--workdir=`.
    """
    with command_line.one_line_errors(), devices.known_platforms():
        values, rest = _parse(command, define)
        if values.help:
            print(help_page.page(about, command, values, _config_file(sys.argv)[0] or _DEFAULT))
            sys.exit(0)
        if not command:
            sys.exit(job(values, rest))
        if folder and len(rest) == 1:
            values.workdir = command_line.path(rest[0])
        elif rest:
            raise ValueError(f"Expected only --flags, got {rest[0]!r}.")
        random_keys.check_seed(values.config.seed)
        devices.configure_cpu(values.config.devices or cpu_devices(values.config))
        sys.exit(job(values))


def _parse(command: str, define: Callable[[flags.FlagValues], None] | None) -> tuple[flags.FlagValues, list[str]]:
    """The flags and what is left of the command line, or a ValueError of one line."""
    values = flags.FlagValues()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    help_page.define(values, fields=bool(command))
    arguments = sys.argv
    try:
        if command:
            config_flags.register_flag_parser_for_type(int, WholeNumber())
            config_flags.register_flag_parser_for_type(object, Paths())
            name, arguments = _config_file(arguments)
            name = name or _DEFAULT
            config_flags.DEFINE_config_dict("config", files.load(name), _CONFIG, values, sys_argv=arguments)
            workdir = str(files.default_workdir(name))
            flags.DEFINE(PathFlag(), "workdir", workdir, f"Folder of the run, {workdir} by default.", values)
        if define:
            define(values)
        rest = _read(values, arguments)
        if command:
            given = config_flags.get_override_values(values["config"])
            command_fields.check(command, given)
            fields.expand_home(values.config)
            fields.name_data(values.config)
            fields.choose_scheme(values.config, given)
        return values, rest
    except (AttributeError, KeyError) as error:
        raise ValueError(_unknown_field(error)) from error
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_unknown_flag(error.flagname, command)) from error
    except (flags.Error, TypeError) as error:
        raise ValueError(_wrong_value(str(error))) from error


def _read(values: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Give the flags their values; what is no flag."""
    try:
        return values(arguments)[1:]
    except (MemoryError, RecursionError) as error:  # of Python's parser, which reads the values of tuples
        longest = max(arguments[1:], key=len)
        raise ValueError(f"Expected fields without deep nesting, got {longest[:60]}...") from error


def _config_file(arguments: list[str]) -> tuple[str, list[str]]:
    """What the last --config says, empty without one, and the other arguments."""
    name, others, rest = "", [], iter(arguments)
    for argument in rest:
        match = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if match:
            name = next(rest, "") if match[1] is None else match[1]
        else:
            others.append(argument)
    return name, others


def config_of_file() -> fields.Config:
    """The settings of this process's command line before its flags: as the config file has them."""
    return files.load(_config_file(sys.argv)[0] or _DEFAULT)


def take_from_run(values: flags.FlagValues, command: str) -> str:
    """Put what the run of the weights remembers into the settings (see `run_memory`).

    Returns:
      What to tell: which settings were taken, and where they differ from the training's. Empty for weights that know
      nothing of their training.

    Raises:
      ValueError: a network that knows no sigma, for a command that takes one, and no flag or file that says it; a flag
        that nothing reads under what is then chosen.
    """
    config = values.config
    named = [path for path in ("model.factory", "model.weights", "model.by_level") if fields.get(config, path)]
    if len(named) > 1:
        raise ValueError(f"Expected {' or '.join(named)}, got both.")
    where = config.model.by_level or config.model.weights or values.workdir
    flagged = (
        ""
        if named or os.path.isfile(os.path.join(where, models.WEIGHTS))
        else run_memory.of_results(where, command_fields.READS[command])
    )
    if flagged:
        raise ValueError(
            f"Expected trained weights in {where}, got none: give what the results there were made with, {flagged}"
        )
    run = None if config.model.factory else run_memory.read(where)
    given = config_of_file() if _config_file(sys.argv)[0] else None
    said = config_flags.get_override_values(values["config"])
    remembered = {} if run is None else {**run.settings, **run.differing}
    known = given is not None or "noise.sigma" in said or "noise.sigma" in remembered
    there = config.model.factory or any(map(_are_weights, fields.several(where)))
    if there and not known and "noise.sigma" in command_fields.READS[command]:
        raise ValueError(
            "Expected --config.noise.sigma, in pixel units, such as 0.25, with a network that does not say under which "
            "noise it was trained, got none."
        )
    note = "" if run is None else run_memory.take(config, run, command, said, given)
    command_fields.check_choices(config, said)
    return note


def take_fields_from_run(values: flags.FlagValues, where: str | Path, paths: Collection[str]) -> None:
    """Put these fields into the settings, as the run that trained the weights there remembers them.

    What a flag says, or a config file that `--config` names and says otherwise than the run's, stays; of a file that
    has all of them as they are by default nothing does. ValueError as for `run_memory.taken`.
    """
    run = run_memory.read(where)
    if run is None:
        return
    given = config_of_file() if _config_file(sys.argv)[0] else None
    if given is not None and all(fields.get(given, path) == fields.FIELDS[path].default for path in paths):
        given = None
    said = {
        path: run_memory.absolute(path, fields.get(values.config, path))
        for path in config_flags.get_override_values(values["config"])
    }
    for path, value in run_memory.taken(run, paths, said, given).items():
        fields.put(values.config, path, value)


def _are_weights(where: str | Path) -> bool:
    """Whether there are weights of this project; what is wrong with others, loading them says."""
    try:
        models.read_description(where)
    except ValueError:
        return False
    return True


def _unknown_flag(name: str, command: str) -> str:
    """With the field that may be meant, of those that the command reads: one whose last part it is, else a near one."""
    known = (*command_fields.FIRST[command], *command_fields.READS[command]) if command else ()
    near = [path for path in known if name in (path, path.rpartition(".")[2])] or get_close_matches(name, known, n=1)
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
