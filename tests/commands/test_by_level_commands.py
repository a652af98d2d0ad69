"""Commands with a network for each level: certified, predicted, audited, told in the manifest, and what is refused."""

import json

import pytest
import running
import trained_runs

from idrc_jax import models, results
from idrc_jax.commands import audit, certify, predict
from idrc_jax.report import page, run_summaries
from idrc_jax.results import runs

ONE = "--config.devices=1"
FEW = ("--config.data.skip=16", "--config.certify.n=200", ONE)
CASCADE = ("--config.noise.scheme=cascade", "--config.noise.levels=(1.0, 0.5)")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_level")
    for number in range(2):
        trained_runs.save(folder / f"{number}", number)
    return folder


def by_level(place, *numbers):
    return "--config.model.by_level=" + ",".join(str(place / f"{number}") for number in numbers)


@pytest.fixture(scope="module")
def certified(place):
    out = place / "certified"
    status, told, error = running.run(certify.main, f"--workdir={out}", *CASCADE, by_level(place, 0, 1), *FEW)
    assert status == 0, error
    return out, told, error


def test_networks_by_level_are_told_like_one_network(place, certified):
    out, told, error = certified
    made = json.loads((out / "manifest.json").read_text())
    guarantee, session = made["guarantee"], made["sessions"][0]
    first, last = (models.load_classifier(place / f"{number}").sha256 for number in range(2))
    assert [one["weights_sha256"] for one in guarantee["by_level"]] == [first, last]
    assert guarantee["weights_sha256"] == last
    assert session["by_level"] == by_level(place, 0, 1).partition("=")[2]
    assert [one["training"]["seed"] for one in session["networks"]] == [0, 1]
    assert "cascade, levels 0.5, 0.25, 2 networks, one a level, " in told
    assert "and levels 0.5, 0.25, even if all votes agree" in told
    assert "note: network 2 was trained at σ = 0.5, and votes at 0.25.\n" in error
    assert "network 1 was" not in error
    read = results.read_results(out)
    assert runs.trained_under(read) == "gaussian, σ = 0.5"
    command = run_summaries.command(read)
    assert by_level(place, 0, 1) in command
    assert "model.weights" not in command
    read.manifest["sessions"][0].pop("by_level")
    assert "--config.model.by_level=WEIGHTS1,WEIGHTS2" in run_summaries.command(read)
    assert "<dt>by_level.1.weights_sha256</dt>" in page.render(runs.read([str(out)]))


def test_they_go_on_with_themselves_alone_are_audited_and_predict(place, certified):
    out, _, _ = certified
    given = (by_level(place, 0, 1), ONE)
    light = [f"--config.audit.{name}" for name in ("images=1", "votes=100", "screening=100", "steps=1", "samples=8")]
    status, _, error = running.run(audit.main, str(out), *given, *light)
    assert status == 0, error
    status, told, error = running.run(predict.main, *given, *CASCADE, "--config.data.count=2", "--n=100")
    assert status == 0, error
    assert len(told.splitlines()) == 3
    line = running.refused(certify.main, f"--workdir={out}", *CASCADE, by_level(place, 1, 0), *FEW)
    assert "by_level was" in line
    assert "Expected the classifier and data" in running.refused(audit.main, out, by_level(place, 1, 0), ONE, *light)


def test_what_cannot_be_is_one_line(place, tmp_path):
    work, both = f"--workdir={tmp_path}", by_level(place, 0, 1)
    for given, message in (
        (
            (*CASCADE, by_level(place, 0, 1, 0)),
            "Expected 2 networks by level, one for each level of the scheme cascade",
        ),
        ((both,), "Expected no networks by level for the scheme gaussian, got 2: model.by_level"),
        (
            (*CASCADE, both, f"--config.model.weights={place / '0'}"),
            "Expected model.weights or model.by_level, got both",
        ),
        ((*CASCADE, both, "--config.model.factory=a:b"), "Expected model.factory or model.by_level, got both"),
        ((*CASCADE, both, "--config.model.consensus=2"), "Expected model.consensus = 0 with 1 network, got 2"),
        ((*CASCADE, f"{both},"), "Expected model.by_level to be a path, or several with commas between, got"),
        (
            (*CASCADE, f"--config.model.by_level=('{place / '0'}','{place / '1'}')"),
            "Expected model.by_level to be a path, or several with commas between as in A,B, got ('",
        ),
        ((*CASCADE, by_level(place, 0, "none")), "Expected trained weights at"),
    ):
        assert message in running.refused(certify.main, work, ONE, *given)
