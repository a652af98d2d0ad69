"""Installed commands run inside the test's process, which spares starting Python for each."""

import contextlib
import io
import sys
from unittest import mock

import pytest


def run(main, *arguments):
    """Call a command's `main` with a command line: (exit status, standard output, standard error)."""
    out, error = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["idrc", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        pytest.raises(SystemExit) as stopped,
    ):
        main()
    return stopped.value.code, out.getvalue(), error.getvalue()


def refused(main, *arguments):
    """The one line of a command that refuses its input and says nothing else but notes of what it took."""
    status, out, error = run(main, *arguments)
    assert (status, out) == (1, "")
    lines = [one for one in error.splitlines(keepends=True) if not one.startswith("note: ")]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    return lines[0]
