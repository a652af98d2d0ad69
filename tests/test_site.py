"""The documentation's site: it builds, strictly; every public name is on a page; no page needs the network."""

import importlib
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

import idrc_jax

ROOMS = [path.name for path in (ROOT / "idrc_jax").iterdir() if (path / "__init__.py").exists()]
pytestmark = pytest.mark.timeout(900)  # notebooks are run when the site is built
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("docs/notebooks/*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` does."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    clean = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=clean | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    return folder


class Page(HTMLParser):
    """What a page refers to, what it loads, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values.get("id"), values.get("name")}
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif tag in ("img", "script", "iframe"):
            self.loaded.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(values.get("href") or "")


@pytest.fixture(scope="module")
def pages(site):
    """The site's pages but the report, which has tests of its own."""
    return {path: Page(path.read_text()) for path in site.rglob("*.html") if path.parent.name != "report"}


@pytest.mark.peers
def test_no_page_loads_anything_from_the_network(pages, site):
    for path, page in pages.items():
        assert not [one for one in page.loaded if urlsplit(one).netloc], path
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", styles)


@pytest.mark.peers
def test_every_link_leads_somewhere(pages, site):
    for path, page in pages.items():
        for one in (*page.links, *page.loaded):
            parts = urlsplit(one)
            if parts.scheme or parts.netloc or not one or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_relative_to(site.resolve()), (path, one)
            assert target.exists(), (path, one)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (path, one)


@pytest.mark.peers
@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_on_its_page(site, room):
    entries = _inventory(site / "objects.inv")
    offered = getattr(importlib.import_module(f"idrc_jax.{room}"), "__all__", ())
    names = {f"idrc_jax.{room}.{name}" for name in offered}
    for alias, place in idrc_jax._MODULES.items():
        if place.startswith(f"{room}."):
            module = getattr(idrc_jax, alias)
            names |= {f"{module.__name__}.{name}" for name in _functions_and_classes(module)}
    assert names <= entries.keys(), names - entries.keys()
    assert {entries[name] for name in names} <= {f"reference/api/{room}.html"}


def _functions_and_classes(module):
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def _inventory(path):
    """Sphinx's inventory, which mkdocstrings writes: full name -> page."""
    *_, packed = path.read_bytes().split(b"\n", 4)
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split(" ")[0]: line.split(" ")[3].partition("#")[0] for line in lines}


@pytest.mark.peers
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_shown_with_their_pictures(site, pages, name):
    page = site / "notebooks" / f"{name}.html"
    shown = [one for one in pages[page].loaded if one.startswith(f"{name}_") and one.endswith(".png")]
    assert shown
    assert all((page.parent / one).stat().st_size > 1_000 for one in shown)
    assert f'href="{name}.ipynb"' in page.read_text()


def test_there_are_three_notebooks_without_outputs():
    assert NOTEBOOKS == ["five_minutes", "published_is_not_certified", "pytorch_model"]
    for name in NOTEBOOKS:
        text = Path(ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text()
        assert '"outputs": []' in text
        assert "image/png" not in text
