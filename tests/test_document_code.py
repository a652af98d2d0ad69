"""Every block of code in the documentation, and every link.

Python and notebooks are run, commands are parsed by themselves, or a comment says why not.
"""

import ast
import contextlib
import importlib
import os
import re
import subprocess
import sys
import tomllib
from unittest import mock

import document_code
import matplotlib.pyplot as plt
import numpy as np
import pytest
import running
from conftest import ROOT
from PIL import Image

import idrc_jax as idrc
from idrc_jax.core import command_line

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = PROJECT["scripts"]
OWN_SCRIPTS = {"train.py": SCRIPTS["idrc-train"], "certify.py": SCRIPTS["idrc-certify"]}
OTHERS = ("git", "make", "pip", "python", "taskset")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
TUTORIAL = ROOT / "docs" / "tutorials" / "your_own_model.md"  # is run from beginning to end
HEAVY = re.compile(r"^\s*(?:import|from) (?:torch|transformers|diffusers|pandas)", flags=re.MULTILINE)


def name(page):
    return str(page.relative_to(ROOT))


def python_pages():
    """Pages with Python, marked by what it needs: other libraries, or time to compile the networks of checkpoints/."""
    for page in document_code.PAGES:
        text = "".join(block.text for block in document_code.code(page, "python"))
        marks = [pytest.mark.peers] if HEAVY.search(text) else [pytest.mark.evidence] if "checkpoints/" in text else []
        if text and page != TUTORIAL:
            yield pytest.param(page, id=name(page), marks=marks)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """An empty folder in which a reader works: modules are found in it, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", document_code.PAGES, ids=name)
def test_every_block_has_a_language_that_is_tested(page):
    for block in document_code.blocks(page):
        assert block.reason or block.language in ("bash", "python", "text", ""), f"{name(page)}:{block.line}"


@pytest.mark.parametrize("page", list(python_pages()))
def test_python_runs(page, reader):
    """A page's blocks in order, in one namespace, in a folder with what a checkout has and with made-up CIFAR-10."""
    _link_checkout(reader)
    _write_cifar10(reader / "FOLDER")
    _write_files(page, reader)
    namespace = {"__name__": "page"}
    for block in document_code.code(page, "python"):
        tree = ast.parse(block.text, filename=f"{name(page)}:{block.line}")
        ast.increment_lineno(tree, block.line - 1)
        exec(compile(tree, str(page), "exec"), namespace)


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.peers if HEAVY.search(text) else pytest.mark.evidence)
        for path, text in document_code.notebooks().items()
    ],
)
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(document_code.notebooks()[notebook], str(notebook), "exec"), {"__name__": "notebook"})
        assert plt.get_fignums()
    finally:
        plt.close("all")


@pytest.mark.peers
@pytest.mark.timeout(900)  # eight processes, of which four compile
def test_a_model_of_ones_own_from_beginning_to_end(reader):
    """Every command of the tutorial but those that install, as a process of its own; files are the page's."""
    found = document_code.commands(TUTORIAL, [*SCRIPTS, *OTHERS], reader)
    own = _write_files(TUTORIAL, reader)
    clean = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    for program, *words in found:
        if program in SCRIPTS:
            module, function = SCRIPTS[program].split(":")
            words = ["-c", f"from {module} import {function}; {function}()", *words]
        elif words[0] not in own:
            continue
        answer = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, env=clean | {"PYTHONPATH": str(ROOT)}
        )
        assert answer.returncode == 0, answer.stderr
    assert 0.5 < idrc.certified_accuracy(idrc.read_results("runs/mine"), 0.25) < 1
    assert (reader / "report" / "index.html").stat().st_size > 100_000
    assert (reader / "runs" / "mine" / "audit.tsv").exists()


def _link_checkout(folder):
    for known in ("checkpoints", "configs", "examples", "results"):
        (folder / known).symlink_to(ROOT / known)


def _write_files(page, folder):
    own = document_code.files(page)
    for file, text in own.items():
        (folder / file).write_text(text)
    return own


def _write_cifar10(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (10_000, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    for one in ("test_batch", *(f"data_batch_{k}" for k in range(1, 6))):
        (folder / f"{one}.bin").write_bytes(records.tobytes())


@pytest.mark.parametrize("page", [page for page in document_code.PAGES if document_code.code(page, "bash")], ids=name)
def test_commands_parse(page, reader):
    found = document_code.commands(page, [*SCRIPTS, *OTHERS, ".ci/run"], reader)
    assert found
    _link_checkout(reader)
    (reader / "photos").mkdir()  # which pages call the reader's own images
    Image.new("RGB", (4, 4)).save(reader / "photos" / "0.png")
    for program, *words in found:
        if not (program == "python" and words[0] in document_code.files(page)):
            _check(program, [word for word in words if word != "..."])  # "...": what the reader's call says already


def _check(program, words):
    if program in SCRIPTS:
        _parses(SCRIPTS[program], words)
    elif program == "taskset":
        _check(words[2], words[3:])
    elif program == "python" and words[0] in OWN_SCRIPTS:
        _parses(OWN_SCRIPTS[words[0]], words[1:])
    elif program == "python" and words[0] == "-c":
        ast.parse(words[1])
    elif program == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1])
    elif program == "python":
        assert (ROOT / words[0]).is_file()
    elif program == "make":
        assert {word for word in words if "=" not in word and not word.startswith("-")} <= TARGETS
    elif program == "pip":
        for extras in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("page", document_code.TEXTS, ids=name)
def test_links_lead_somewhere(page):
    """In a checkout, where links are paths; anchors are what GitHub makes of headings."""
    for target, anchor in document_code.links(page):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in document_code.anchors(there), f"{target}#{anchor}"


class Parsed(BaseException):
    """The command line is right; nothing is to be done by it."""


def _parses(place, words):
    """That the command takes these words: its parser says so, before anything is read."""
    module, function = place.split(":")
    main = getattr(importlib.import_module(module), function)
    parse = command_line.Parser.parse_args

    def parse_only(self):
        parse(self)
        raise Parsed

    with mock.patch.object(command_line.Parser, "parse_args", parse_only), contextlib.suppress(Parsed):
        status, _, error = running.run(main, *words, "--help") if _has_fields(module) else running.run(main, *words)
        assert status == 0, f"{words}: {error}"


def _has_fields(module):
    return hasattr(importlib.import_module(module), "run")
