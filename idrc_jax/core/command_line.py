"""What every installed command does with errors."""

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NoReturn

_DIGITS = 20  # of a whole number at most: 1e999999999 would fill the memory


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a ValueError, for `one_line_errors`; it knows --debug."""

    def __init__(self, prog: str, about: str | None) -> None:
        super().__init__(prog=prog, description=about)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        before, _, names = message.partition("arguments are required: ")
        if before == "the following ":
            told = {one.metavar or one.dest: f", {one.help}" for one in self._actions if one.help}
            message = f"expected {' and '.join(name + told.get(name, '') for name in names.split(', '))}, got none"
        raise ValueError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def path(text: str) -> Path:
    """A path of a command line; `~` is the home folder also behind `--out=`, where shells leave it as it is.

    ValueError for an empty one, which would be the current folder.
    """
    if not text:
        raise ValueError("Expected a path, got nothing.")
    return Path(os.path.expanduser(text))


def whole_number(text: str) -> int:
    """A whole number of a command line, also where it is written as 1e4 or 2.5e3; ValueError for any other."""
    with contextlib.suppress(InvalidOperation):
        value = Decimal(text)
        if value.is_finite() and value.adjusted() < _DIGITS and value == int(value):
            return int(value)
    raise ValueError(f"Expected a whole number, got {text!r}.")


def _one_line(message: Warning | str, *_: object) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """A wrong setting or damaged file ends in one line on standard error and exit status 1, Ctrl-C in 130; a warning
    is one line, too.

    `--debug` anywhere on the command line shows the traceback. Letters that the terminal's or pipe's encoding lacks are
    printed as escapes, `\\u03c3` for sigma.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            yield
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        told = _too_large(error) if isinstance(error, RuntimeError) else str(error)
        if "--debug" in sys.argv or not told:
            raise
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        sys.exit(1)


def _too_large(error: RuntimeError) -> str:
    """What to say where JAX had too little memory; empty for another error."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return ""
    return f"Expected enough memory, got too little: set a smaller --config.chunk. JAX says: {error}"
