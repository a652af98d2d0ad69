"""Hook of MkDocs: pages outside `docs/` join the site under `project/`, and links between the two sides are mended.

In a checkout every link is relative to its file, so that it works where the files are looked at. In the site `docs/` is
the root; a link that leaves it, comes from outside it, or leads to a notebook is written anew. One that leads to no
file is left alone, and MkDocs, which is strict, names it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PLACE = "project"
OUTSIDE = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "benchmarks/results/*.md",
    "benchmarks/results/*.png",
    "checkpoints/README.md",
    "examples/**/*.*",
    "results/README.md",
)
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files, config):
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and path.suffix != ".pyc":
                name = f"{PLACE}/{path.relative_to(ROOT).as_posix()}"
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    here = page.file.src_uri
    return _LINK.sub(lambda link: _mended(link, here), markdown)


def _mended(link, here):
    """The link, from one page of the site to another, where either lies outside `docs/`."""
    begin, target, anchor = link[1], link[2], link[3] or ""
    place = here.removeprefix(f"{PLACE}/") if here.startswith(f"{PLACE}/") else f"docs/{here}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
    notebook = path.startswith("docs/notebooks/")
    inside = path.startswith("docs/")
    if not (ROOT / path).exists() or (inside and place.startswith("docs/") and not notebook):
        return link[0]
    there = path.removeprefix("docs/") if inside else f"{PLACE}/{path}"
    if notebook:
        there = there.replace(".ipynb", ".md")
    return f"{begin}{posixpath.relpath(there, posixpath.dirname(here))}{anchor})"
