"""Schemes from the user's own code: by name, with a hash of their source; and the page about them is run."""

import json
import re
import shlex
import sys

import numpy as np
import pytest
import running
from conftest import ROOT

from idrc_jax import results
from idrc_jax.certificates import schemes, user_schemes
from idrc_jax.commands import audit, certify, gallery, predict, recertify, train
from idrc_jax.results import gallery_file

PAGE = (ROOT / "docs/how_to/own_noise_scheme.md").read_text()
EXAMPLE, CHECK = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
NAME = "my_noise:Contrast"
OTHERS = """
import numpy as np

class Louder(Contrast):
    name = "louder"
    loudness = 2.0

    def scale(self, statistic):
        return times(super().scale(statistic))

    def scale_bounds(self, statistic, distance, dim):
        here = self.scale(statistic)
        low, high = super().scale_bounds(statistic, distance, dim)
        return here - times(here - low), here + times(high - here)

def times(level):
    return FACTOR * level * TABLE["loud"][0]

def way():
    return 1

FACTOR = 2.0
TABLE = {"loud": [1.0, np.float32(0.5), np.arange(2000)], "kinds": {0, 8}, "way": way, "other": object()}

def make(sigma):
    return Contrast(sigma, ref=0.3)

def takes_ref(sigma, ref=0.2):
    return Contrast(sigma, ref=ref)

def ignores_sigma(sigma):
    return Contrast(0.125)

def a_number(sigma):
    return sigma

class LikeGaussian(schemes.Gaussian):
    name = "like_gaussian"

class SameName(Contrast):
    name = "l1"

class Nameless(schemes.Scheme):
    pass

class Unhashable(Contrast):
    __hash__ = None

class TooNarrow(Contrast):
    name = "too_narrow"

    def scale_bounds(self, statistic, distance, dim):
        low, high = super().scale_bounds(statistic, distance, dim)
        return low, (self.scale(statistic) + high) / 2

class NoBounds(Contrast):
    name = "no_bounds"
    scale_bounds = schemes.Scheme.scale_bounds
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's module, with more in it, in the current folder."""
    place = tmp_path_factory.mktemp("own")
    (place / "my_noise.py").write_text(EXAMPLE + OTHERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", list(sys.path))
        yield place
    sys.modules.pop("my_noise", None)


def test_the_class_or_a_function_by_its_name(folder):
    made = user_schemes.load(NAME, sigma=0.5)
    assert (made.name, made.sigma, made.ref) == ("contrast", 0.5, 0.38)
    assert user_schemes.load(NAME, sigma=0.5, ref=0.2).ref == 0.2
    assert user_schemes.load("my_noise:make", sigma=0.5).ref == 0.3
    described = schemes.describe(made)
    assert described["scheme_class"] == NAME
    assert len(described["scheme_sha256"]) == 64
    assert not {"scheme_class", "scheme_sha256"} & schemes.describe(schemes.L1(0.5)).keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_noise", "noise.factory to be package.module:function, got 'my_noise'"),
        ("nowhere:make", "noise.factory=nowhere:make to make a noise scheme, got ModuleNotFoundError"),
        ("my_noise:none", "AttributeError"),
        ("my_noise:a_number", "return an idrc_jax.schemes.Scheme, got float"),
        ("my_noise:ignores_sigma", "the sigma that it is called with, 0.5, got 0.125"),
        ("my_noise:LikeGaussian", "a subclass of Scheme itself, got one of Gaussian"),
        ("my_noise:SameName", "a name of its own, none of gaussian, .*got 'l1'"),
        ("my_noise:Nameless", "a name of its own, .*got None"),
        ("my_noise:Unhashable", "a dataclass with frozen=True"),
    ],
)
def test_anything_else_is_refused(folder, name, message):
    with pytest.raises(ValueError, match=message):
        user_schemes.load(name, sigma=0.5)
    with pytest.raises(ValueError, match="unexpected keyword argument 'ref'"):
        user_schemes.load("my_noise:make", sigma=0.5, ref=0.2)


def test_results_are_found_again_by_the_same_source_alone(folder):
    for name, more in ((NAME, {}), (NAME, {"ref": 0.2}), ("my_noise:make", {}), ("my_noise:takes_ref", {"ref": 0.25})):
        made = user_schemes.load(name, sigma=0.5, **more)
        stored = json.loads(json.dumps(schemes.describe(made)))
        assert user_schemes.of_results(stored, name) == made
    with pytest.raises(
        ValueError, match=r"the scheme my_noise:Contrast, .* named by noise.factory or --factory, got none"
    ):
        user_schemes.of_results(stored)
    with pytest.raises(ValueError, match=r"got another by my_noise:Louder: .*scheme was contrast, is louder"):
        user_schemes.of_results(stored, "my_noise:Louder")
    with pytest.raises(ValueError, match="scheme_sha256 was x, is "):
        user_schemes.of_results(stored | {"scheme_sha256": "x"}, "my_noise:takes_ref")
    older = {key: value for key, value in stored.items() if not key.startswith("scheme_")}
    assert user_schemes.of_results(older, "my_noise:takes_ref").ref == 0.25  # made before hashes were kept
    assert user_schemes.of_results(schemes.describe(schemes.L1(0.3))) == schemes.L1(0.3)


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("self.sigma / self.ref / 2", "self.sigma / self.ref / 4", True),  # in a base
        ("FACTOR = 2.0", "FACTOR = 3.0", True),  # a value that a function names that the class names
        ("return FACTOR * level", "return level * FACTOR", True),
        ("loudness = 2.0", "loudness = 3.0", True),
        ("ref=0.3", "ref=0.4", False),  # of another function
        ('"loud": [1.0', '"loud": [2.0', True),  # in a table
        ("float32(0.5)", "float64(0.5)", True),
        ("arange(2000)", "arange(2000) // 1001 * 1000 + np.arange(2000) % 1001", True),  # in the middle
        ("{0, 8}", "{8, 0}", False),  # the same set in another order
        ("{0, 8}", "{0, 16}", True),
        ("return 1", "return 2", True),  # of a function in a table
        ("ref: float = 0.38", "ref: float = 0.380", True),
    ],
)
def test_the_hash_is_that_of_all_that_the_scheme_names(tmp_path, monkeypatch, old, new, changes):
    monkeypatch.setattr(sys, "path", list(sys.path))
    hashes = []
    for text in (EXAMPLE + OTHERS, (EXAMPLE + OTHERS).replace(old, new)):
        place = tmp_path / str(len(hashes))
        place.mkdir()
        (place / "changed_noise.py").write_text(text)
        monkeypatch.chdir(place)
        hashes.append(schemes.describe(user_schemes.load("changed_noise:Louder", sigma=0.5))["scheme_sha256"])
        sys.modules.pop("changed_noise")
    assert old in EXAMPLE + OTHERS
    assert (hashes[0] != hashes[1]) == changes


def test_one_with_the_name_of_another_is_never_taken_for_that():
    """As results were made whose scheme inherits its name."""
    stored = schemes.describe(schemes.L1(0.5)) | {"scheme_class": "a:Largest", "scheme_sha256": "1"}
    with pytest.raises(ValueError, match="the scheme a:Largest, which is not of this package"):
        user_schemes.of_results(stored)
    changed = results.guarantee_differences(stored, schemes.describe(schemes.L1(0.5)))
    assert changed.startswith("scheme_class was a:Largest, is unset")
    assert "scheme_class" in results.guarantee_differences(schemes.describe(schemes.L1(0.5)), stored)


def test_results_without_the_names_of_code_go_on():
    """Those made before, under a scheme of the user's own in Python."""
    stored = {"scheme": "own", "sigma": 0.5, "generator": "x"}
    asked = stored | {"scheme_class": "a:Own", "scheme_sha256": "1"}
    assert results.guarantee_differences(stored, asked) == results.guarantee_differences(asked, stored) == ""
    changed = results.guarantee_differences(asked, asked | {"scheme_sha256": "2"})
    assert changed == "scheme_sha256 was 1, is 2"


COMMAND = {
    "idrc-train": (train.main, "--config.train.epochs=1 --config.train.warmup_epochs=0.0 --config.devices=1"),
    "idrc-certify": (certify.main, "--config.certify.n=400 --config.data.skip=40 --config.devices=1"),
    "idrc-predict": (predict.main, "--config.data.skip=90 --config.devices=1"),
    "idrc-audit": (
        audit.main,
        "--config.audit.images=2 --config.audit.steps=2 --config.audit.votes=100 --config.audit.fractions=(1.0,) "
        "--config.audit.radii=(0.1,) --config.devices=1 --config.data.skip=40",
    ),
    "idrc-recertify": (recertify.main, ""),
}


@pytest.fixture(scope="module")
def ran(folder):
    """What the page's commands say, with fewer epochs, images and samples: {command: standard output and error}."""
    pytest.importorskip("sklearn")
    said = {}
    for line in COMMANDS.splitlines():
        name, *arguments = shlex.split(line)
        main, more = COMMAND[name]
        status, out, error = running.run(main, *arguments, *more.split())
        assert status == 0, error
        said[name] = (out, error)
    assert said.keys() == COMMAND.keys()
    return said


@pytest.mark.evidence
def test_the_commands_of_the_page(folder, ran):
    read = results.read_results(folder / "runs/contrast")
    made, (session, *_) = read.manifest["guarantee"], read.manifest["sessions"]
    assert (made["scheme"], made["scheme_class"], made["ref"], made["sigma"]) == ("contrast", NAME, 0.38, 0.5)
    assert session["scheme_check"]["images"] <= 16
    assert session["scheme_check"]["violation"] <= 2.0**-30
    assert session["training"]["scheme"]["name"] == "contrast"
    assert gallery_file.read(folder / "runs/contrast") is not None
    scheme = user_schemes.load(NAME, sigma=0.5)
    np.testing.assert_array_equal(
        [row.sigma_x for row in read.rows], schemes.drawn_level(scheme, [row.statistic for row in read.rows])
    )
    assert {row.sigma_x for row in read.rows} != {0.5}
    (note,) = [line for line in ran["idrc-certify"][1].splitlines() if line.startswith("note: ")]
    assert "noise.sigma = 0.5" in note
    assert "noise.scheme" not in note
    assert "trained" not in note
    assert "ACR" in ran["idrc-recertify"][0]
    assert "2 images of digits/test" in ran["idrc-audit"][0]


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (certify.main, [], "Expected --config.noise.factory=my_noise:Contrast, under which the run in runs/con"),
        (predict.main, [], "code is only loaded where the command line names it"),
        (certify.main, ["--config.noise.factory=my_noise:TooNarrow"], "levels of too_narrow within its scale_bounds"),
        (certify.main, ["--config.noise.factory=my_noise:NoBounds"], "law 'normal' and to give scale_bounds"),
        (certify.main, ["--config.noise.factory=my_noise:Louder"], "scheme was contrast, is louder"),
        (certify.main, [f"--config.noise.factory={NAME}", "--config.noise.scheme=l1"], "no noise.scheme beside"),
        (certify.main, [f"--config.noise.factory={NAME}", "--config.noise.bins=2"], "no noise.bins beside"),
        (audit.main, [], "Expected the scheme my_noise:Contrast, which is not of this package, to be named by"),
        (audit.main, ["--config.noise.factory=my_noise:Louder"], "got another by my_noise:Louder"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_run_is_one_line(folder, ran, main, arguments, message):
    before = (folder / "runs/contrast/manifest.json").read_bytes()
    if main is certify.main:
        arguments = [*arguments, "--config.certify.n=400"]
    error = running.refused(main, "--workdir=runs/contrast", "--config.devices=1", *arguments)
    assert message in error
    assert (folder / "runs/contrast/manifest.json").read_bytes() == before


def test_recertify_and_gallery_need_the_factory(folder, ran):
    for main in (recertify.main, gallery.main):
        assert "to be named by noise.factory or --factory, got none" in running.refused(main, "runs/contrast")
        status, _, error = running.run(main, "runs/contrast", f"--factory={NAME}")
        assert status == 0, error


def test_the_page_checks_its_scheme_and_shows_the_line_of_wrong_bounds(folder, capsys):
    pytest.importorskip("sklearn")
    names = {}
    exec(CHECK, names)  # what the page says to paste
    assert capsys.readouterr().out.startswith("True contrast: no level outside scale_bounds at ")
    kind = type(user_schemes.load(NAME, sigma=0.5))

    class Wrong(kind):
        def scale_bounds(self, statistic, distance, dim):
            low, high = super().scale_bounds(statistic, distance, dim)
            return (self.scale(statistic) + low) / 2, (self.scale(statistic) + high) / 2

    found = schemes.check(Wrong(sigma=0.5), names["images"])
    assert not found.ok
    shown = re.search(r"^Expected levels of contrast .*$", PAGE, flags=re.M)[0]
    number = r"(\d+\.\d+|\d+)"
    assert re.sub(number, "0", str(found)) == re.sub(number, "0", shown)
    for text in (str(found), shown):  # which image is the worst depends on how a processor rounds
        low, high, distance, image, level, points, images = (float(one) for one in re.findall(number, text))
        assert not low <= level <= high
        assert (distance > 0, 0 <= image < 16, points, images) == (True, True, 28_160, 16)
