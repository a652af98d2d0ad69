"""Commands with a router: what they refuse, and from a classifier that held images out to certificates."""

import json
import shlex
import subprocess
import sys

import pytest
import running
import trained_runs
from conftest import ROOT

from idrc_jax import config, models, results
from idrc_jax.certificates import schemes
from idrc_jax.commands import _inputs, audit, certify, train
from idrc_jax.config import fields
from idrc_jax.results import recertify

ROUTED = schemes.Routed(0.5)


def done(script, *arguments):
    own = [sys.executable, str(ROOT / script), *arguments]
    made = subprocess.run(own, capture_output=True, text=True, timeout=400, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout


def settings_with(**values):
    made = config.base()
    for path, value in values.items():
        fields.put(made, path.replace("__", "."), value)
    return made


def test_a_router_is_named_where_the_scheme_has_one_and_nowhere_else(tmp_path):
    assert _inputs._router_of(config.base(), schemes.Gaussian(0.5), tmp_path) is None
    with pytest.raises(ValueError, match=r"Expected router\.weights, .* for the scheme routed, got none\.$"):
        _inputs._router_of(config.base(), ROUTED, tmp_path)
    with pytest.raises(ValueError, match=r"Expected no router\.weights for the scheme gaussian, got here"):
        _inputs._router_of(settings_with(router__weights="here"), schemes.Gaussian(0.5), tmp_path)
    with pytest.raises(ValueError, match="Expected trained weights at nowhere"):
        _inputs._router_of(settings_with(router__weights="nowhere"), ROUTED, tmp_path)


def test_results_name_the_router_that_is_missing(tmp_path):
    network, router, out = (str(tmp_path / name) for name in ("network", "router", "out"))
    for seed, folder in enumerate((network, router)):
        trained_runs.save(tmp_path / folder, seed)  # of as many classes as there are levels
    named = [f"--config.model.weights={network}", f"--config.router.weights={router}"]
    given = ["--config.data.skip=4", "--config.certify.n=200", "--config.devices=1", "--config.noise.scheme=routed"]
    levels = "--config.noise.levels=(0.5,0.75,1.0,1.25)"
    status, told, error = running.run(certify.main, f"--workdir={out}", *named, *given, levels)
    assert status == 0, error
    assert " right under the noise of the level that the router chose, if it did (" in told
    one = "--config.devices=1"
    line = running.refused(audit.main, out, one)
    assert f"with, {named[0]} --config.model.dtype=float32 {named[1]}\n" in line
    line = running.refused(audit.main, out, one, named[0])
    assert line.endswith(f"for the scheme routed, got none: the results in {out} have {named[1]}.\n")
    line = running.refused(audit.main, out, one, named[0], f"--config.router.weights={network}")
    assert "got router's weights_sha256 was" in line
    assert line.endswith(f"...; the run was made with {' '.join(named)}.\n")


def test_settings_with_which_no_router_can_be_trained_are_refused(tmp_path):
    routed = {"noise__scheme": "routed", "train__loss__name": "router", "router__classifier": "nowhere"}
    for changed, message in (
        ({"noise__scheme": "gaussian"}, r"noise\.scheme = routed to train a router, got gaussian"),
        ({"train__loss__name": "gaussian"}, r"train\.loss\.name = router, .* got gaussian"),
        ({"train__held_out": 5}, r"no train\.held_out to train a router, got router, none and 5"),
        ({}, "Expected trained weights at nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            train._learned(settings_with(**routed | changed), None, None, tmp_path)
    assert config.training_scheme(settings_with(**routed | {"noise__router_level": 2.0})) == schemes.Gaussian(0.5)


def test_a_router_that_was_trained_for_other_noise_is_told(capsys):
    trained = {"scheme": {"name": "gaussian", "sigma": 0.5}, "teacher": {"levels": [0.25, 0.5]}}
    for changed, told in (
        ({}, ""),
        ({"router_level": 0.4}, "note: the router was trained at σ = 0.5, and votes at 0.2.\n"),
        (
            {"levels": (1.0, 0.5)},
            "note: the levels that the router was trained for, and those that it chooses from, differ: "
            "0.25, 0.5 and 0.5, 0.25.\n",
        ),
    ):
        _inputs._tell_of_router(trained, schemes.Routed(**{"sigma": 0.5, "levels": (0.5, 1.0)} | changed))
        assert capsys.readouterr().err == told
    _inputs._tell_of_router({}, schemes.Routed(0.5))
    assert capsys.readouterr().err == ""


def test_a_router_is_trained_on_the_data_set_of_its_classifiers_runs(tmp_path):
    for number in range(2):
        trained_runs.save(tmp_path / f"{number}", number)  # on synthetic images, which their config file named
        kept = tmp_path / f"{number}" / "settings.json"
        known = json.loads(kept.read_text())
        known["file"]["data.name"] = "synthetic"
        kept.write_text(json.dumps(known))
    given = [
        f"--config={ROOT}/configs/router.py", f"--config.router.classifier={tmp_path / '0'},{tmp_path / '1'}",
        "--config.noise.levels=(0.5,1.0)", "--config.router.images=all", "--config.router.samples=2",
        "--config.model.depth=8", "--config.model.mean=(0.3,)", "--config.model.std=(0.38,)", "--config.train.epochs=1",
        f"--workdir={tmp_path / 'router'}", "--config.devices=1",
    ]  # fmt: skip
    status, _, error = running.run(train.main, *given)
    assert status == 0, error
    trained = json.loads((tmp_path / "router" / "settings.json").read_text())["settings"]
    assert trained["data.name"] == "synthetic"
    assert models.read_description(tmp_path / "router")["training"]["data"] == "synthetic"
    line = running.refused(train.main, *given, "--config.data.name=digits", f"--workdir={tmp_path / 'other'}")
    assert line == "error: Expected labels below the classifier's 4 classes, got 9 in digits.\n"


@pytest.mark.evidence
def test_a_router_is_trained_for_a_classifier_and_both_are_certified(tmp_path):
    common = shlex.split("--config.data.name=digits --config.model.depth=8 --config.model.mean=(0.3,) "
                         "--config.model.std=(0.38,) --config.train.epochs=1 --config.train.batch=64")  # fmt: skip
    levels, router, out = (str(tmp_path / name) for name in ("levels", "router", "out"))
    done("train.py", *common, f"--workdir={levels}", "--config.train.held_out=600", "--config.train.sigma=0.5")
    given = [f"--config={ROOT}/configs/router.py", *common[:2], "--config.noise.levels=(0.5,1.0)"]
    done(
        "train.py", *given, *common[2:], f"--config.router.classifier={levels}", "--config.router.samples=10",
        "--config.train.augment=False", f"--workdir={router}",
    )  # fmt: skip
    done(
        "certify.py", *given[:1], *given[2:], *common[:1], f"--config.model.weights={levels}", f"--workdir={out}",
        f"--config.router.weights={router}", "--config.data.count=4", "--config.certify.n=1000",
    )  # fmt: skip
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert made["guarantee"]["router"]["answers"] == 2
    assert made["sessions"][0]["router"] == router
    read = results.read_results(out)
    assert len(read) == 4
    assert all(row.votes_by_level[0].level == 0 for row in read)
    assert repr(recertify.recertify(read).rows) == repr(read.rows)
