"""What `--help` prints: the command's flags, and of the fields that it reads those that most people set, or all."""

import itertools

from absl import flags

from idrc_jax.config import command_fields, fields

ALL = "all"

_FLAGS = ("config", "workdir", "eval_only", "dry_run", "n", "adaptive", "out", "classes", "debug", "help")


class HelpParser(flags.ArgumentParser):
    """Of a flag that is given alone, or as `--help=all`."""

    def parse(self, argument: str | bool) -> bool | str:
        return ALL if argument == ALL else flags.BooleanParser().parse(argument)


def define(values: flags.FlagValues, *, fields: bool) -> None:
    """Define the flag; `fields` says whether the command has any to explain."""
    told = "Show this help; --help=all: with every field." if fields else "Show this help."
    flags.DEFINE_flag(flags.Flag(HelpParser(), None, "help", False, told, boolean=True), values)


def page(about: str | None, command: str, values: flags.FlagValues, file: str) -> str:
    """Write the help of a command.

    Args:
      about: what it does.
      command: one of `command_fields.READS`, or empty for one without fields.
      values: its flags; that of help says how much is asked for.
      file: the config whose values are shown.
    """
    own = [values[name] for name in values if not name.startswith("config.") and values[name].help]
    lines = [about or "", *(f"  --{flag.name:<9} {flag.help}" for flag in own if flag.name in _FLAGS)]
    if not command:
        return "\n".join(lines)

    def explained(path: str) -> str:
        return _explained(path, fields.FIELDS[path], fields.get(values.config, path))

    first = command_fields.FIRST[command]
    others = [path for path in command_fields.READS[command] if path not in first]
    lines += ["", f"Fields that most people set, by --config.FIELD=VALUE, with the values of {file}:", ""]
    lines += map(explained, first)
    if values.help != ALL:
        return "\n".join([*lines, "", f"{len(others)} more: idrc-{command} --help=all"])
    lines += ["", f"The others that idrc-{command} reads:"]
    for _, group in itertools.groupby(others, key=lambda path: path.rpartition(".")[0]):
        lines += ["", *map(explained, group)]
    return "\n".join(lines)


def _explained(path: str, field: fields.Field, value: object) -> str:
    default = "" if value == field.default else f" ({field.default!r} in a config that does not say)"
    return f"  {f'{path} = {value!r}':<38}  # {field.help}{default}"
