"""Several files of weights, one network: certified, predicted, audited, remembered, told in the manifest."""

import json

import numpy as np
import pytest
import running
import trained_runs

from idrc_jax import certification, config, models, results
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.commands import audit, certify, export, predict
from idrc_jax.report import page, run_summaries
from idrc_jax.results import runs

ONE = "--config.devices=1"
FEW = ("--config.data.skip=16", "--config.certify.n=200", ONE)
SYNTHETIC = ("--config=cifar10.py", "--config.data.name=synthetic", "--config.noise.sigma=0.5")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with three runs, `0`, `1` and `2`, as if trained alike but for their seeds."""
    folder = tmp_path_factory.mktemp("ensembles")
    for number in range(3):
        trained_runs.save(folder / f"{number}", number)
    return folder


def synthetic():
    settings = config.base()
    settings.data.name = "synthetic"
    return config.dataset(settings, "test")


def members(place, count=3):
    return "--config.model.weights=" + ",".join(str(place / f"{number}") for number in range(count))


@pytest.fixture(scope="module")
def certified(place):
    """A run that the three networks, their first two by consensus, certified."""
    out = place / "certified"
    given = (f"--workdir={out}", members(place), "--config.model.consensus=2", *FEW)
    status, told, error = running.run(certify.main, *given)
    assert status == 0, error
    return out, told, error


def test_a_certified_ensemble_is_told_like_one_network(place, certified):
    out, told, error = certified
    made = json.loads((out / "manifest.json").read_text())
    guarantee, session = made["guarantee"], made["sessions"][0]
    single = [models.load_classifier(place / f"{number}") for number in range(3)]
    assert guarantee["members"] == [{"weights_sha256": one.sha256} for one in single]
    assert guarantee["consensus"] == 2
    assert guarantee["weights_sha256"] == models.ensemble(single).sha256
    assert guarantee["sigma"] == 0.5  # what the runs have in common is remembered; their seeds differ
    assert (guarantee["seed"], guarantee["data"]) == (0, "synthetic/test")
    assert "noise.sigma = 0.5" in error
    assert [one["training"]["seed"] for one in session["members"]] == [0, 1, 2]
    assert session["weights"] == ",".join(str(place / f"{number}") for number in range(3))
    assert "seed" not in session["training"]
    assert "ensemble of 3" in told
    read = results.read_results(out)
    assert runs.trained_under(read) == "gaussian, σ = 0.5"
    command = run_summaries.command(read)
    assert f"{members(place)} " in command
    assert "--config.model.consensus=2" in command
    shown = page.render(runs.read([str(out)]))
    assert "gaussian, σ = 0.5, ensemble of 3" in shown
    assert "<dt>members.2.weights_sha256</dt>" in shown


def test_another_ensemble_does_not_go_on_with_it(place, certified):
    out, _, _ = certified
    given = (f"--workdir={out}", *FEW)
    for other, field in ((members(place), "consensus"), (members(place, 2), "members")):
        status, _, error = running.run(certify.main, *given, other)
        assert status == 1
        assert error.splitlines()[-1].startswith("error: Expected")
        assert field in error


def test_it_is_audited_and_predicts(place, certified):
    out, _, _ = certified
    given = (members(place), "--config.model.consensus=2", ONE)
    light = [f"--config.audit.{name}" for name in ("images=1", "votes=100", "screening=100", "steps=1", "samples=8")]
    status, _, error = running.run(audit.main, str(out), *given, *light)
    assert status == 0, error
    status, told, error = running.run(predict.main, *given, "--config.data.count=2", "--n=100")
    assert status == 0, error
    assert len(told.splitlines()) == 3


def test_a_tuple_in_a_config_file_is_several(place, tmp_path):
    paths = tuple(str(place / f"{number}") for number in range(2))
    (tmp_path / "mine.py").write_text(
        f"from idrc_jax.config import base\n\ndef get_config():\n    config = base()\n"
        f"    config.model.weights = {paths}\n"
        '    config.data.name = "synthetic"\n    config.data.count = 1\n    config.certify.n = 200\n    return config\n'
    )
    given = (f"--config={tmp_path / 'mine.py'}", ONE)
    status, _, error = running.run(certify.main, *given, f"--workdir={tmp_path / 'run'}")
    assert status == 0, error
    assert len(results.read_results(tmp_path / "run").manifest["guarantee"]["members"]) == 2
    one = (f"--workdir={tmp_path / 'one'}", f"--config.model.weights={paths[0]}")
    status, _, error = running.run(certify.main, *given, *one)  # a flag overrules a tuple
    assert status == 0, error
    assert "members" not in results.read_results(tmp_path / "one").manifest["guarantee"]


def test_runs_that_differ_in_what_is_to_be_remembered(place, tmp_path):
    tensors, described = models.read_weights(place / "0")
    training = described["training"]
    noise = training["scheme"] | {"sigma": 0.25}
    models.save_weights(
        tmp_path / "other.safetensors",
        {name: 2 * value for name, value in tensors.items()},
        described | {"training": training | {"scheme": noise}},
    )
    given = (f"{members(place, 1)},{tmp_path / 'other.safetensors'}", "--config.data.count=1", "--n=100", ONE)
    line = running.refused(predict.main, *given)
    assert line.startswith("error: Expected runs that agree in noise.sigma, got 0.5, 0.25 in ")
    assert line.endswith(": set --config.noise.sigma.\n")
    status, _, error = running.run(predict.main, *given, "--config.noise.sigma=0.3")
    assert status == 0, error


def test_images_of_any_members_training_are_warned_of(place, tmp_path):
    tensors, described = models.read_weights(place / "0")
    test_set, few = synthetic(), sampling_plans.Fixed(n=10, n0=1)
    known = described["training"] | {"data_sha256": test_set.fingerprint()}
    other = {name: 2 * value for name, value in tensors.items()}
    models.save_weights(tmp_path / "other.safetensors", other, described | {"training": known})
    classifier = models.load_classifier([place / "0", tmp_path / "other.safetensors"])
    with pytest.warns(UserWarning, match="trained on the very images"):
        certification.certify_dataset(
            classifier, schemes.Gaussian(0.5), test_set, np.arange(len(test_set)), certification.Settings(few),
            tmp_path / "out",
        )  # fmt: skip


def test_what_cannot_be_is_one_line(place, tmp_path):
    work = f"--workdir={tmp_path}"
    for given, message in (
        ((members(place, 2), "--config.model.consensus=2"), "Expected model.consensus = 0 with 2 networks, got 2."),
        ((f"{members(place, 1)},{place / '0'}",), "Expected each network once in an ensemble"),
        ((f"{members(place, 1)},",), "Expected model.weights to be a path, or several with commas between, got"),
        ((f"{members(place, 1)},{tmp_path / 'none'}",), "Expected trained weights at"),
        (("--config.model.factory=a:b", "--config.model.consensus=2"), "Expected several model.weights with"),
    ):
        assert message in running.refused(certify.main, *SYNTHETIC, work, ONE, *given)
    source = members(place).partition("=")[2]
    assert running.refused(export.main, source, str(tmp_path / "x.safetensors")).startswith(
        "error: Expected one network to export, got several, "
    )


def test_a_name_with_commas_is_one(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert config.several(f"{tmp_path}/a,b") == (f"{tmp_path}/a,b",)
    assert config.several(f"{tmp_path}/a,c") == (f"{tmp_path}/a", "c")
    assert config.several(("a", "b")) == ("a", "b")
    assert config.several("") == ()
    with pytest.raises(ValueError, match=r"Expected model\.weights to be a path, or several .* got 5\."):
        config.several(5)


def test_an_ensemble_is_certified_in_memory(place):
    classifier = models.load_classifier([place / "0", place / "1"])
    made = certification.certify(classifier, "gaussian", synthetic().images[:2], sigma=0.5, n=200, progress=False)
    assert len(made.manifest["guarantee"]["members"]) == 2
