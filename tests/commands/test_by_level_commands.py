"""Commands with a network for each level: certified, predicted, audited, told in the manifest, and what is refused."""

import json
import re
import shlex

import pytest
import running
import trained_runs

from idrc_jax import models, results
from idrc_jax.commands import audit, certify, predict
from idrc_jax.report import page, run_summaries
from idrc_jax.results import runs

ONE = "--config.devices=1"
FEW = ("--config.data.skip=16", "--config.certify.n=200", ONE)
LIGHT = [f"--config.audit.{name}" for name in ("images=1", "votes=100", "screening=100", "steps=1", "samples=8")]
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
    assert " right under the noise of the level that certifies an image, else of its last (" in told
    assert " right on clean images (the last level's network).\n" in told
    assert "note: network 2 was trained at σ = 0.5, and votes at 0.25.\n" in error
    assert "network 1 was" not in error
    read = results.read_results(out)
    assert runs.trained_under(read) == "gaussian, σ = 0.5"
    assert runs.labels([read]) == ["cascade, σ = 0.5, 0.25, 2 networks"]
    networks = read.manifest["sessions"][0]["networks"]
    networks[0]["training"]["scheme"]["sigma"] = 0.25
    assert runs.trained_under(read) == "gaussian, σ = 0.25; gaussian, σ = 0.5"
    del networks[1]["training"]
    assert runs.trained_under(read) == ""
    command = run_summaries.command(read)
    assert by_level(place, 0, 1) in command
    assert "model.weights" not in command
    read.manifest["sessions"][0].pop("by_level")
    assert "--config.model.by_level=WEIGHTS1,WEIGHTS2" in run_summaries.command(read)
    assert "<dt>by_level.1.weights_sha256</dt>" in page.render(runs.read([str(out)]))


def test_they_go_on_with_themselves_alone_are_audited_and_predict(place, certified):
    out, _, _ = certified
    given = (by_level(place, 0, 1), ONE)
    status, told, error = running.run(audit.main, str(out), *given, *LIGHT)
    assert status == 0, error
    assert re.findall(r"^(\w+) +\d+ +\d+  ", told, re.MULTILINE) == ["radius"]  # none is published
    status, told, error = running.run(predict.main, *given, *CASCADE, "--config.data.count=2", "--n=100")
    assert status == 0, error
    assert len(told.splitlines()) == 3
    first, last = (models.load_classifier(place / f"{number}").sha256[:8] for number in range(2))
    second = (
        f"network 2's weights_sha256 was {last}..., is {first}...; the run was made with {by_level(place, 0, 1)}.\n"
    )
    line = running.refused(certify.main, f"--workdir={out}", *CASCADE, by_level(place, 0, 0), *FEW)
    assert line.endswith(f" in {out}; use another --workdir, or give these as they were: {second}")
    line = running.refused(audit.main, out, by_level(place, 1, 0), ONE, *LIGHT)
    assert line.startswith("error: Expected the classifier and data that")
    assert line.endswith(f"got network 1's weights_sha256 was {first}..., is {last}...; {second}")
    line = running.refused(audit.main, out, f"--config.model.weights={place / '0'}", ONE, *LIGHT)
    assert "got by_level was 2 networks, is unset; weights_sha256 was" in line


def test_in_the_folder_of_results_alone_their_networks_and_noise_are_named(place, certified, tmp_path):
    out, _, _ = certified
    named = f"Expected trained weights in {out}, got none: give what the results there were made with, "
    for main in (certify.main, predict.main):
        line = running.refused(main, f"--workdir={out}", ONE)
        assert line.startswith(f"error: {named}{by_level(place, 0, 1)} ")
        assert "--config.noise.scheme=cascade" in line
    flags = shlex.split(line.partition("were made with, ")[2])
    status, _, error = running.run(predict.main, *flags, "--config.data.count=2", "--n=100", ONE)
    assert status == 0, error
    status, _, error = running.run(certify.main, f"--workdir={out}", *flags, *FEW)
    assert status == 0, error
    line = running.refused(audit.main, str(out), ONE)
    assert line == f"error: {named}{by_level(place, 0, 1)} --config.model.dtype=float32\n"
    status, _, error = running.run(certify.main, f"--workdir={tmp_path}", f"--config.model.weights={place / '0'}", *FEW)
    assert status == 0, error
    line = running.refused(audit.main, str(tmp_path), ONE)
    assert f"with, --config.model.weights={place / '0'} --config.model.dtype=float32\n" in line
    made = json.loads((tmp_path / "manifest.json").read_text())
    made["sessions"][0] |= {"weights": "", "denoiser": "some.safetensors"}  # weights that were beside the results
    (tmp_path / "manifest.json").write_text(json.dumps(made))
    assert "Train first, or name another" in running.refused(audit.main, str(tmp_path), ONE)


def test_several_weights_under_several_levels_are_told_to_be_one_ensemble(place, tmp_path):
    several = f"--config.model.weights={place / '0'},{place / '1'}"
    told = "note: the 2 networks of model.weights vote together, as one ensemble, under every level; model.by_level"
    for given, count in (((*CASCADE, several), 1), ((several,), 0), ((*CASCADE, by_level(place, 0, 1)), 0)):
        status, _, error = running.run(predict.main, *given, "--config.data.count=1", "--n=20", ONE)
        assert status == 0, error
        assert error.count(told) == count


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
