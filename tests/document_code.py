"""What the documentation's pages hold: blocks of code, the commands in them (as the shell reads them), links.

A block that cannot be run has a comment above it that says why: <!-- not run: reason -->. Blocks without a language or
called text are not code.
"""

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md", "checkpoints/README.md")),
        *ROOT.glob("docs/**/*.md"),
    ]
)
# The front page of the site links to pages that are written when it is built; they are checked there.
TEXTS = [page for page in (*PAGES, ROOT / "CHANGELOG.md") if page != ROOT / "docs" / "index.md"]
_BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\s*\n)?^( *)```(\w*)[^\n]*\n(.*?)^\2```", re.MULTILINE | re.DOTALL)
# One write a call: those of commands in the background must not mix.
_STUB = '#!/bin/sh\nend=$(printf "\\036")\nprintf "%s\\0" "${0##*/}" "$@" "$end" >> "$COMMANDS"\n'


class Block(NamedTuple):
    """A fenced block: its language, its text, the number of its first line, and why it is not run ("": it is)."""

    language: str
    text: str
    line: int
    reason: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[3], textwrap.dedent(found[4]), text[: found.start(4)].count("\n") + 1, found[1] or "")
        for found in _BLOCK.finditer(text)
    ]


def code(page: Path, language: str) -> list[Block]:
    """The page's blocks of a language that are to be run."""
    return [block for block in blocks(page) if block.language == language and not block.reason]


def files(page: Path) -> dict[str, str]:
    """Python files that a page has the reader write: blocks that begin with a comment of the name alone."""
    found = {re.match(r"# (\w+\.py)\n", block.text): block.text for block in code(page, "python")}
    return {match[1]: text for match, text in found.items() if match}


def notebooks() -> dict[Path, str]:
    """The code of each notebook, in order."""
    read = {path: json.loads(path.read_text()) for path in sorted(ROOT.glob("docs/notebooks/*.ipynb"))}
    return {
        path: "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
        for path, notebook in read.items()
    }


def links(page: Path) -> list[tuple[str, str]]:
    """Targets and anchors of a page's links to other files of the checkout, and to its own headings."""
    text = _BLOCK.sub("", page.read_text())
    found = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text)
    return [(target, anchor) for target, anchor in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Those of its headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path, programs: list[str], folder: Path) -> list[list[str]]:
    """The words of every command of a page, in order, as bash passes them on: variables, loops, quotes and all.

    Args:
      programs: names of what may be called; each stands in `folder` as a script that only writes down its words.
      folder: an empty one, in which the blocks run one after the other.

    Raises:
      AssertionError: bash refuses a block, or a program is not among `programs`.
    """
    stubs, written = folder / ".stubs", folder / ".commands"
    for name in programs:
        stub = (folder if "/" in name else stubs) / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(_STUB)
        stub.chmod(0o755)
    written.touch()
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    script = "\n".join(_shell(block) for block in code(page, "bash"))
    answer = subprocess.run(
        ["/bin/bash", "-eu", "-c", f"{script}\nwait"],
        cwd=folder,
        env={
            "PATH": str(stubs),
            "HOME": str(folder),
            "COMMANDS": str(written),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"{page.name}: {answer.stderr}"
    return [record.split("\0")[:-1] for record in written.read_text().split("\036\0")[:-1]]


def _shell(block: Block) -> str:
    """The block without its prompts and, where it has these, without what the commands answered."""
    if not block.text.startswith("$ "):
        return block.text
    return "\n".join(line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ "))
