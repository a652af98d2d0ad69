"""Hook of MkDocs: the notebooks of `docs/notebooks`, run when the site is built and shown as pages with their pictures.

A notebook is committed without outputs. What it printed and drew is kept in `build/notebooks`, under a hash of the
notebook and the package, so that it runs again where either has changed.
"""

import hashlib
import tempfile
from pathlib import Path

import nbformat
from mkdocs.structure.files import File
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
_SECONDS = 300  # of a cell, at most
_QUIET = ["--log-level=ERROR"]  # not that the kernel listens on the loopback address


def on_files(files, config):
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, resources = MarkdownExporter().from_notebook_node(run(path), {"unique_key": path.stem})
        link = f'<a href="{path.name}" download>{path.name}</a>'
        note = f"*This page is a notebook, run when the site was built: {link}.*"
        title, _, rest = text.partition("\n")
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=f"{title}\n\n{note}\n{rest}"))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def run(path):
    """The notebook with its outputs, run in an empty folder unless that was done before."""
    kept = ROOT / "build" / "notebooks" / f"{path.stem}-{_hash(path)}.ipynb"
    if kept.exists():
        return nbformat.read(kept, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook, timeout=_SECONDS, coalesce_streams=True, extra_arguments=_QUIET, resources=resources
        ).execute()
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, kept)
    return notebook


def _hash(path):
    digest = hashlib.sha256()
    for one in (path, *sorted((ROOT / "idrc_jax").rglob("*.py"))):
        digest.update(one.read_bytes())
    return digest.hexdigest()[:16]
