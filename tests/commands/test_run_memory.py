"""A run remembers: what later commands take from it, what the command line overrules, and what they say of it."""

import json
import shutil

import pytest
import running
import trained_runs

from idrc_jax import config, models, results
from idrc_jax.certificates.sampling_plans import Exhaustive
from idrc_jax.commands import audit, certify, predict, train
from idrc_jax.config import run_memory

ONE = "--config.devices=1"
CONFIG = """
from idrc_jax.config import base

def get_config(scheme="gaussian"):
    config = base()
    config.data.name = "synthetic"
    config.data.skip = 16
    config.noise.scheme = scheme
    config.noise.sigma = 0.5
    config.model.depth = 8
    config.model.mean = (0.3,)
    config.model.std = (0.38,)
    config.train.scheme = "gaussian"
    config.train.epochs = 1
    config.train.warmup_epochs = 0.0
    config.certify.n = 200
    return config
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config file, and a run that was trained by it but for σ and the seed."""
    folder = tmp_path_factory.mktemp("memory")
    (folder / "mine.py").write_text(CONFIG)
    status, out, error = running.run(
        train.main, f"--config={folder / 'mine.py'}", f"--workdir={folder / 'run'}", "--config.noise.sigma=0.25",
        "--config.seed=5", ONE,
    )  # fmt: skip
    assert (status, out) == (0, f"Trained: {folder / 'run' / models.WEIGHTS}\n"), error
    return folder


@pytest.fixture
def run(place, tmp_path):
    """A copy of that run."""
    shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "run"


def certified(run, *arguments):
    """The guarantee in the manifest, and what was said on standard error."""
    status, _, error = running.run(certify.main, f"--workdir={run}", ONE, *arguments)
    assert status == 0, error
    return json.loads((run / "manifest.json").read_text())["guarantee"], error


def notes(error):
    return [line for line in error.splitlines() if line.startswith("note: ")]


def test_a_command_in_the_runs_folder_takes_everything_from_it(run):
    guarantee, error = certified(run)
    assert (guarantee["data"], guarantee["scheme"], guarantee["sigma"]) == ("synthetic/test", "gaussian", 0.25)
    assert (guarantee["n"], guarantee["seed"]) == (200, 5)
    assert [row.idx for row in results.read_results(run).rows] == [0, 16, 32, 48]
    assert notes(error) == [
        f"note: from {run}: seed = 5, data.name = synthetic, data.skip = 16, noise.scheme = gaussian, noise.sigma = "
        "0.25, certify.n = 200."
    ]
    # The other commands, too; and what was given again or taken is the same to the manifest.
    _, out, error = running.run(predict.main, f"--workdir={run}", "--n=50", ONE)
    assert [line.split("\t")[0] for line in out.splitlines()] == ["idx", "0", "16", "32", "48"]
    assert len(notes(error)) == 1
    small = ["--config.audit.votes=100", "--config.audit.steps=2", "--config.audit.fractions=(1.0,)"]
    status, out, error = running.run(audit.main, run, *small, ONE)
    assert status == 0, error
    assert notes(error) == [f"note: from {run}: seed = 5, data.name = synthetic, data.skip = 16."]
    again, _ = certified(run, "--config.noise.sigma=0.25", "--config.data.name=synthetic", "--config.seed=5")
    assert again == guarantee


def test_the_runs_config_file_given_again_says_nothing_new(run, place):
    guarantee, error = certified(run, f"--config={place / 'mine.py'}")
    assert (guarantee["sigma"], guarantee["seed"], guarantee["scheme"]) == (0.25, 5, "gaussian")
    assert "noise.sigma = 0.25 (the config file: 0.5)" in error


def test_flags_overrule_the_run_and_the_line_says_how(run):
    guarantee, error = certified(run, "--config.noise.sigma=0.5", "--config.data.skip=32")
    assert guarantee["sigma"] == 0.5
    assert [row.idx for row in results.read_results(run).rows] == [0, 32]
    (note,) = notes(error)
    assert note.endswith("; trained at σ = 0.25, certified at 0.5.")
    assert "noise.sigma" not in note
    assert "skip" not in note
    error = running.run(certify.main, f"--workdir={run}", ONE)[2]
    # What is taken is compared like what is given.
    assert "use another --workdir, or give these as they were: sigma was 0.5, is 0.25." in error


def test_a_config_file_overrules_where_it_says_something_else_than_the_runs(run, place):
    guarantee, error = certified(run, f"--config={place / 'mine.py'}:l1")
    assert (guarantee["scheme"], guarantee["sigma"], guarantee["seed"]) == ("l1", 0.25, 5)
    assert notes(error)[0].endswith("; trained under gaussian, certified under l1.")


def test_weights_alone_know_data_and_noise(run, tmp_path):
    (run / run_memory.NAME).unlink()
    given = ["--config.seed=5", "--config.certify.n=200", "--config.data.skip=32"]
    guarantee, error = certified(run, *given)
    assert (guarantee["data"], guarantee["sigma"]) == ("synthetic/test", 0.25)
    assert notes(error)[0].startswith(f"note: from {run}: data.name = synthetic, noise.scheme = gaussian, noise.sigma")
    # Elsewhere, under a config that sets neither data nor noise and one that sets the noise's scheme.
    for argument, scheme in (("", "gaussian"), (":l1", "l1")):
        file = run / models.WEIGHTS
        out = tmp_path / scheme
        guarantee, error = certified(out, f"--config=cifar10.py{argument}", f"--config.model.weights={file}", *given)
        assert (guarantee["data"], guarantee["scheme"], guarantee["sigma"]) == ("synthetic/test", scheme, 0.25)
        assert "data.name = synthetic (the config file: cifar10)" in error


def test_weights_that_know_nothing_leave_all_to_the_config(run):
    tensors, description = models.read_weights(run)
    del description["training"]
    models.save_weights(run / models.WEIGHTS, tensors, description)
    assert run_memory.read(run) is None
    assert run_memory.read(run / "nowhere") is None
    assert "Expected --config.noise.sigma, in pixel units" in running.refused(certify.main, f"--workdir={run}", ONE)
    error = running.refused(certify.main, f"--workdir={run}", ONE, "--config.noise.sigma=0.5")
    assert "4 classes, got 9 in digits" in error
    for name in ("model.by_level", "model.weights"):  # of several, too
        error = running.refused(certify.main, f"--workdir={run / 'out'}", ONE, f"--config.{name}={run},{run}")
        assert "Expected --config.noise.sigma, in pixel units" in error


def test_data_that_are_gone_are_one_line_that_names_them(run):
    kept = json.loads((run / run_memory.NAME).read_text())
    kept["settings"] |= {"data.name": "npz", "data.dir": "/nowhere/images.npz"}
    (run / run_memory.NAME).write_text(json.dumps(kept))
    error = running.refused(certify.main, f"--workdir={run}", ONE)
    assert error == (
        f"error: Expected data.dir of the run in {run}, /nowhere/images.npz, to be there still, got no such path: set "
        "--config.data.dir.\n"
    )
    error = running.refused(certify.main, f"--workdir={run}", ONE, "--config.data.dir=/elsewhere.npz")
    assert error.startswith("error: Expected data.dir to be an .npz file")


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: {},
        lambda kept: {"schema_version": 1},
        lambda kept: kept | {"settings": None},
        lambda kept: kept | {"file": []},
        lambda kept: kept | {"settings": kept["settings"] | {"noise.edges": 3}},
        lambda kept: kept | {"settings": kept["settings"] | {"noise.sigma": "loud"}},
    ],
)
def test_damaged_settings_are_one_line_that_names_the_file(run, damage):
    file = run / run_memory.NAME
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    error = running.refused(certify.main, f"--workdir={run}", ONE)
    assert error.startswith(f"error: Expected a run's settings, got {file}")


def test_paths_are_kept_whole(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = config.base()
    made.data.dir = "images"
    run_memory.save(tmp_path, config.base(), made)
    kept = json.loads((tmp_path / run_memory.NAME).read_text())
    assert (kept["file"]["data.dir"], kept["settings"]["data.dir"]) == ("", str(tmp_path / "images"))


@pytest.mark.parametrize(
    ("file", "trained", "taken"),
    [("fixed", "fixed", ""), ("fixed", "to_radius", "to_radius"), ("", "fixed", "fixed")],
)
def test_a_plan_that_was_the_default_once_is_not_one_that_was_named(tmp_path, file, trained, taken):
    """Under splitting all offsets are drawn where nobody named a plan; a config file without one changes nothing."""
    trained_runs.save(tmp_path / "run", 0)
    kept = json.loads((tmp_path / "run" / run_memory.NAME).read_text())
    kept["file"]["sampling.plan"], kept["settings"]["sampling.plan"] = file, trained
    (tmp_path / "run" / run_memory.NAME).write_text(json.dumps(kept))
    made, run = config.base(), run_memory.read(tmp_path / "run")
    assert run_memory.taken(run, ["sampling.plan"], {}, config.base()) == {"sampling.plan": taken}
    told = run_memory.take(made, run, "certify", ["noise.scheme"], None)
    assert made.sampling.plan == taken
    assert ("sampling.plan" in told) == bool(taken)
    made.noise.scheme, made.noise.sigma = "splitting", 0.1
    if not taken:
        assert config.settings(made).plan == Exhaustive(88)


RUN = run_memory.Run(
    "x",
    {"data.name": "npz", "data.dir": "/", "noise.scheme": "l1", "noise.sigma": 0.25, "noise.ref": 0.477,
     "noise.bins": 4, "denoiser.weights": "/", "denoiser.sigma": 0.25},
    {"data.name": "cifar10", "data.dir": "", "noise.scheme": "l1", "noise.sigma": 0.25, "noise.ref": 1.0,
     "noise.bins": 0, "denoiser.weights": "", "denoiser.sigma": 0.0},
    {},
)  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "gone"),
    [
        ({}, set()),
        ({"data.name": "digits"}, {"data.name", "data.dir"}),
        ({"data.name": "npz"}, {"data.name"}),
        ({"data.dir": "/tmp"}, {"data.dir", "data.name"}),  # a folder says what it holds
        ({"noise.sigma": 0.5}, {"noise.sigma"}),
        ({"noise.scheme": "gaussian"}, {"noise.scheme", "noise.ref", "noise.bins"}),
        ({"noise.edges": (1.0,)}, {"noise.bins"}),
        ({"denoiser.weights": ""}, {"denoiser.weights", "denoiser.sigma"}),
    ],
)
def test_what_hangs_together_is_taken_together(flags, gone):
    found = run_memory.taken(RUN, config.FIELDS, flags, None)
    assert found == {path: value for path, value in RUN.settings.items() if path not in gone}


OWN = run_memory.Run(
    "x",
    {"noise.scheme": "gaussian", "noise.factory": "mine:Own", "noise.sigma": 0.25, "noise.ref": 0.5},
    {"noise.scheme": "gaussian", "noise.factory": "", "noise.sigma": 0.25, "noise.ref": 1.0},
    {},
)


@pytest.mark.parametrize("scheme", ["gaussian", "l1"])
@pytest.mark.parametrize("named", ["", "mine:Own"])
def test_a_scheme_that_a_flag_names_takes_the_place_of_the_users_own(scheme, named):
    """The default name, too, and whether or not the config file names the own one."""
    file = config.base()
    file.noise.factory = named
    assert run_memory.taken(OWN, config.FIELDS, {"noise.scheme": scheme}, file) == {"noise.sigma": 0.25}


def test_a_scheme_that_a_flag_names_is_the_one_that_certifies(run, place):
    """Also where the config file names one of the user's own: here one that is not even there."""
    (place / "own.py").write_text(
        CONFIG.replace("return", "config.noise.factory = 'no:Own'\n    config.noise.ref = 0.5\n    return")
    )
    given = [f"--config={place / 'own.py'}", "--config.certify.n=20"]
    assert "noise.factory=no:Own" in running.refused(certify.main, f"--workdir={run}", ONE, *given)
    guarantee, error = certified(run, *given, "--config.noise.scheme=gaussian")
    assert (guarantee["scheme"], guarantee["ref"]) == ("gaussian", 1.0)
    assert "trained under" not in error
    both = ["--config.noise.scheme=gaussian", "--config.noise.factory=no:Own"]
    error = running.refused(certify.main, f"--workdir={run}", ONE, *both)
    assert error == "error: Expected no noise.scheme beside noise.factory, got gaussian.\n"


def test_bins_are_not_taken_from_weights_alone(run):
    """Those of the training may be fitted to images that are to be certified; `noise.bins` fits them to others."""
    tensors, description = models.read_weights(run)
    description["training"]["scheme"] = {
        "name": "stepped",
        "sigma": 0.3,
        "by": "norm",
        "edges": [1.0],
        "levels": [1, 2],
    }
    models.save_weights(run / models.WEIGHTS, tensors, description)
    (run / run_memory.NAME).unlink()
    assert "Expected noise.bins" in running.refused(certify.main, f"--workdir={run}", ONE)


def test_all_of_a_scheme_but_its_sigma_is_compared():
    stepped = {"name": "stepped", "sigma": 0.25, "by": "norm", "edges": [24.0], "levels": [0.5, 1.5]}
    asked, run = config.base(), run_memory.Run("x", {}, {}, {"scheme": stepped})
    asked.noise.scheme, asked.noise.edges, asked.noise.levels = "stepped", (24.0,), (0.5, 1.5)
    assert run_memory._differences(run, asked, "certify") == []
    asked.noise.by, asked.noise.levels = "std", (0.75, 1.5)
    assert run_memory._differences(run, asked, "certify") == [
        "trained at by = norm, certified at std",
        "trained at levels = (0.5, 1.5), certified at (0.75, 1.5)",
    ]
    asked.noise.by, asked.noise.edges, asked.noise.levels, asked.noise.bins = "norm", (), (), 2
    assert run_memory._differences(run, asked, "certify") == []  # fitted, as those of the training
    asked.noise.bins = 4
    assert run_memory._differences(run, asked, "certify") == ["trained at bins = 2, certified at 4"]


def test_what_the_run_changes_of_the_settings_is_told():
    """Beside a config file that says something else than the fields' defaults: the defaults, too."""
    settings = {"certify.n": config.FIELDS["certify.n"].default, "data.skip": 3, "data.start": 2}
    asked, run = config.load("quickstart.py"), run_memory.Run("x", settings, settings, {})
    asked.data.skip = 3
    assert asked.certify.n != settings["certify.n"]
    assert run_memory.take(asked, run, "certify", (), None) == "from x: certify.n = 100000, data.start = 2"


def test_a_range_of_noise_is_told():
    training = {"scheme": {"name": "gaussian", "sigma": 0.45}, "recipe": {"sigma_low": 0.1}, "data": "cifar10"}
    asked, run = config.base(), run_memory.Run("x", {}, {}, training)
    assert run_memory._differences(run, asked, "certify") == []
    asked.noise.sigma = 0.5
    assert run_memory._differences(run, asked, "predict") == ["trained at σ = 0.1 to 0.45, predicted at 0.5"]
    other = run_memory.Run("x", {}, {}, training | {"data": "npz"})
    assert run_memory._differences(other, asked, "audit") == ["trained on npz, audited on cifar10"]
