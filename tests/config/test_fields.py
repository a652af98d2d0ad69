import dataclasses
import re
from unittest import mock

import ml_collections
import numpy as np
import pytest
import running

from idrc_jax import certification, config, data, losses, models, training
from idrc_jax.audit import search
from idrc_jax.certificates import schemes
from idrc_jax.commands import audit, certify, merge, predict, train
from idrc_jax.config import command_fields, flags
from idrc_jax.models import diffusion
from idrc_jax.training import denoiser


def get(name, *arguments):
    return config.load(":".join((f"{name}.py", *arguments)))


@pytest.mark.parametrize("scheme", sorted(schemes.SCHEMES.keys() - {"cascade", "routed"}))
def test_cifar10_takes_the_scheme_and_is_the_papers_experiment(scheme):
    made = get("cifar10", scheme)
    made.noise.levels = (1.0,) if scheme == "stepped" else ()
    assert config.noise_scheme(made) == config.training_scheme(made) == schemes.make(scheme, sigma=0.25)
    assert data.SKIPS[made.data.name] == 20
    assert (made.model.depth, made.data.skip, made.certify.n0, made.certify.n, made.certify.alpha) == (
        110, 0, 100, 100_000, 0.001,
    )  # fmt: skip
    assert config.recipe(made).epochs == 90


def test_a_cascade_is_for_certification_and_training_needs_another_scheme():
    made = get("cifar10", "cascade")
    assert config.noise_scheme(made) == schemes.Cascade(sigma=0.25, levels=(1.0, 0.5))
    made.noise.levels, made.noise.thresholds, made.noise.shares = (2.0, 1.0, 0.5), (0.6, 0.7), (0.5, 0.25, 0.25)
    assert config.noise_scheme(made) == schemes.Cascade(0.25, (2.0, 1.0, 0.5), (0.6, 0.7), (0.5, 0.25, 0.25))
    with pytest.raises(ValueError, match=r"Expected train\.scheme, such as gaussian .* got cascade"):
        config.training_scheme(made)
    made.train.scheme = "gaussian"
    assert config.training_scheme(made) == schemes.Gaussian(sigma=0.25)
    made.noise.thresholds = (0.6, 0.4)
    with pytest.raises(ValueError, match=r"Expected noise\.thresholds in"):
        config.noise_scheme(made)
    made.noise.thresholds, made.noise.bins = (), 3
    with pytest.raises(ValueError, match=r"no noise\.edges, bins, router_level for the scheme cascade"):
        config.noise_scheme(made)
    made.noise.scheme = "gaussian"
    with pytest.raises(ValueError, match=r"no noise\.thresholds, shares or router_level for the scheme gaussian"):
        config.noise_scheme(made)


def test_a_router_is_for_certification_too():
    made = get("cifar10", "routed")
    assert config.noise_scheme(made) == schemes.Routed(sigma=0.25, levels=(0.5, 1.0))
    made.noise.levels, made.noise.router_level, made.noise.shares = (0.5, 2.0, 1.0), 1.5, (0.25, 0.75)
    assert config.noise_scheme(made) == schemes.Routed(0.25, (0.5, 2.0, 1.0), 1.5, (0.25, 0.75))
    with pytest.raises(ValueError, match=r"Expected train\.scheme, such as gaussian .* got routed"):
        config.training_scheme(made)
    made.noise.router_level = 0.0
    with pytest.raises(ValueError, match=r"noise\.router_level"):
        config.noise_scheme(made)
    made.noise.router_level, made.noise.thresholds = 1.0, (0.6,)
    with pytest.raises(ValueError, match=r"no noise\.edges, bins, thresholds for the scheme routed"):
        config.noise_scheme(made)
    made.noise.scheme, made.noise.thresholds, made.noise.router_level = "gaussian", (), 2.0
    with pytest.raises(ValueError, match=r"no noise\.thresholds, shares or router_level for the scheme gaussian"):
        config.noise_scheme(made)


def test_training_noise_can_differ_from_the_predictions():
    made = get("cifar10", "l1")
    made.noise.ref = 0.47
    assert config.training_scheme(made) == schemes.L1(sigma=0.25, ref=0.47)
    made.train.sigma = 0.5
    assert config.training_scheme(made) == schemes.L1(sigma=0.5, ref=0.47)
    assert config.noise_scheme(made) == schemes.L1(sigma=0.25, ref=0.47)
    made.train.scheme = "gaussian"
    assert config.training_scheme(made) == schemes.Gaussian(sigma=0.5)


def test_stepped_by_hand_and_fitted_to_the_training_images():
    made = get("quickstart")
    made.noise.scheme = "stepped"
    made.noise.by = "mean_abs"
    made.noise.bins = 3
    images = data.to_unit(data.load("digits", "train").images)
    fitted = schemes.fit_stepped(images, sigma=made.noise.sigma, by="mean_abs", bins=3)
    assert config.noise_scheme(made) == fitted
    made.noise.edges = fitted.edges
    with pytest.raises(ValueError, match="got both"):
        config.noise_scheme(made)
    made.noise.bins = 0
    made.noise.levels = fitted.levels
    assert config.noise_scheme(made) == fitted
    made.train.scheme = "gaussian"
    assert config.training_scheme(made) == schemes.Gaussian(sigma=made.noise.sigma)
    made.noise.scheme = "gaussian"
    with pytest.raises(ValueError, match=r"no noise\.edges, levels or bins"):
        config.noise_scheme(made)


def npz_config(folder, **noise):
    made = get("quickstart")
    made.data.name, made.data.dir, made.data.skip = "npz", str(folder), 2
    made.noise.scheme = "stepped"
    for name, value in noise.items():
        made.noise[name] = value
    return made


def test_bins_are_not_fitted_to_the_images_that_are_certified(tmp_path):
    """By their pixels: one file for both splits, a copy of it, floats of the same bytes; a part of it is left out."""
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1)).astype(np.uint8)
    labels = np.arange(300) % 3
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    np.savez(tmp_path / "train.npz", images=images[:280], labels=labels[:280])
    made = npz_config(tmp_path / "one.npz", bins=4)
    with pytest.raises(ValueError, match=r"all of whose images are in .*one\.npz"):
        config.noise_scheme(made)
    assert config.training_scheme(made).edges  # training may see them
    for same in (images, data.to_unit(images)):
        np.savez(tmp_path / "test.npz", images=same, labels=labels)
        with pytest.raises(ValueError, match="all of whose images"):
            config.noise_scheme(npz_config(tmp_path, bins=4))
    np.savez(tmp_path / "test.npz", images=images[100:290], labels=labels[100:290])
    with pytest.warns(UserWarning, match=r"fitted without 180 of .*train\.npz's 280 images, which are in .*test\.npz"):
        fitted = config.noise_scheme(npz_config(tmp_path, bins=4))
    assert fitted == schemes.fit_stepped(data.to_unit(images[:100]), sigma=made.noise.sigma, bins=4)
    np.savez(tmp_path / "test.npz", images=images[280:], labels=labels[280:])
    fitted = config.noise_scheme(npz_config(tmp_path, bins=4))
    assert fitted == schemes.fit_stepped(data.to_unit(images[:280]), sigma=made.noise.sigma, bins=4)
    others = np.random.default_rng(1).integers(0, 256, (400, 4, 4, 1)).astype(np.uint8)
    np.savez(tmp_path / "test.npz", images=np.concatenate([images[:1], others]), labels=np.zeros(401, int))
    with pytest.warns(UserWarning, match="fitted without 1 of"):
        fitted = config.noise_scheme(npz_config(tmp_path, bins=4))
    assert fitted == schemes.fit_stepped(data.to_unit(images[1:280]), sigma=made.noise.sigma, bins=4)


def test_stepped_without_bins_is_refused():
    made = get("quickstart")
    made.noise.scheme = "stepped"
    with pytest.raises(ValueError, match=r"Expected noise\.bins, .* or noise\.edges and noise\.levels .* got none"):
        config.noise_scheme(made)
    made.noise.levels = (1.0,)
    assert config.noise_scheme(made).levels == (1.0,)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mean", ("abc",), r"model\.mean to be a number for each of 1 channels or one for all, got \('abc',\)"),
        ("mean", (float("nan"),), r"model\.mean"),
        ("mean", (0.5, 0.5), r"model\.mean"),
        ("std", (0.0,), r"model\.std to be a number > 0"),
        ("std", (), r"model\.std"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(field, value, message):
    made = get("quickstart")
    made.model[field] = value
    with pytest.raises(ValueError, match=message):
        config.description(made, data.load("digits", "train"))


EVERY = ["quickstart", "cifar10", "cifar10_short", "cifar10_losses", "imagenet", "denoiser", "denoised_cifar10"]


@pytest.mark.parametrize("name", EVERY)
def test_every_config_makes_valid_settings(name):
    made = get(name)
    assert isinstance(made, ml_collections.ConfigDict)
    config.noise_scheme(made)
    config.recipe(made)
    assert config.settings(made).plan.n == made.certify.n
    assert (config.folder() / f"{name}.py").is_file()
    header = (config.folder() / f"{name}.py").read_text().split('"""')[1]
    assert "Command:" in header
    assert "Hardware:" in header


MAINS = {"train": train.main, "certify": certify.main, "predict": predict.main, "audit": audit.main}


def explained(command, *asked):
    """What a command's help says of each field, (value, told) in its order; and all of it."""
    status, out, _ = running.run(MAINS[command], "--config=denoised_cifar10.py", "--config.seed=7", *asked)
    assert status == 0
    lines = [re.fullmatch(r"  ([\w.]+) = (.+?) +# (\S.{3,})", line) for line in out.splitlines() if " = " in line]
    found = {line[1]: (line[2], line[3]) for line in lines}
    assert len(lines) == len(found)
    return found, out


@pytest.mark.parametrize("command", MAINS)
def test_help_explains_each_field_of_the_command_in_a_line(command):
    found, _ = explained(command, "--help=all")
    assert set(found) == set(command_fields.READS[command])
    assert found["seed"] == ("7", f"{config.FIELDS['seed'].help} (0 in a config that does not say)")
    made = get("denoised_cifar10")
    for name, (value, told) in found.items():
        default, about = config.FIELDS[name]
        same = config.get(made, name) == default
        if name != "seed":
            assert (value, told) == (
                repr(config.get(made, name)), about if same else f"{about} ({default!r} in a config that does not say)",
            )  # fmt: skip


@pytest.mark.parametrize("command", MAINS)
def test_help_begins_with_what_most_people_set_and_says_how_to_see_the_rest(command):
    found, out = explained(command, "--help")
    assert 5 <= len(found) <= 14
    assert list(found)[:2] == ["data.name", "data.dir"]
    assert "by --config.FIELD=VALUE, with the values of denoised_cifar10.py:" in out
    left = len(command_fields.READS[command]) - len(found)
    assert out.splitlines()[-1] == f"{left} more: idrc-{command} --help=all"
    assert list(explained(command, "--help=all")[0])[: len(found)] == list(found)
    assert "--help      Show this help; --help=all: with every field." in out


def test_help_of_a_command_without_fields_and_help_for_nothing():
    assert "--help=all" not in running.run(merge.main, "--help")[1]
    assert "flag --help=some" in running.refused(train.main, "--help=some")


@pytest.mark.parametrize("loss", sorted(losses.LOSSES.keys() - {"router"}))
def test_there_is_a_recipe_for_every_loss_on_two_cores_and_on_a_gpu(loss):
    for machine, depth in (("", 20), ("/gpu", 110)):
        made = get("cifar10_losses", f"{loss}{machine}")
        assert config.loss(made).name == loss
        assert config.recipe(made).batch % config.loss(made).noises == 0
        assert (made.model.depth, made.noise.sigma) == (depth, 0.5)
    assert config.loss(made) == losses.make(loss, 0.5)
    for unknown in ("consistent", f"{loss}/tpu"):
        with pytest.raises(
            ValueError, match=r"Expected configs/cifar10_losses\.py:LOSS or LOSS/gpu, LOSS one of gaussian"
        ):
            get("cifar10_losses", unknown)


@pytest.mark.parametrize("name", ["quickstart", "cifar10", "cifar10_short", "denoiser", "denoised_cifar10"])
def test_warm_up_is_shorter_than_any_training(name):
    """One epoch, as before, of all but the shortest."""
    for epochs, expected in ((1, 0.5), (2, 1.0), (12, 1.0)):
        made = get(name)
        made.train.epochs, made.train.schedule = epochs, "cosine"
        stated = made.train.warmup_epochs
        assert config.recipe(made).warmup_epochs == (expected if stated == -1 else stated) < epochs
    made.train.epochs, made.train.warmup_epochs = 1, 1.0
    with pytest.raises(ValueError, match=r"train\.warmup_epochs < train\.epochs = 1, got 1\.0"):
        config.recipe(made)
    made.train.warmup_epochs = -2.0
    with pytest.raises(ValueError, match=r"train\.warmup_epochs >= 0, got -2\.0"):
        config.recipe(made)


@pytest.mark.parametrize("written", ["1e4", "1E4", "10000", "10_000", "1.0e+4", "10000.0", "100000e-1"])
def test_whole_numbers_may_be_written_as_powers_of_ten(written):
    with mock.patch("sys.argv", ["x", f"--config.certify.n={written}", "--config.data.skip", written]):
        made = flags._parse("certify", None)[0].config
    with mock.patch("sys.argv", ["x", f"--n={written}"]):
        n = flags._parse("predict", predict._define_predict)[0].n
    for number in (made.certify.n, made.data.skip, n):
        assert (type(number), number) == (int, 10_000)


@pytest.mark.parametrize("written", ["1.5", "1e-1", "1e400", "1e999999999", "nan", "inf", "many", "", "1e4 1"])
def test_other_numbers_are_no_whole_numbers(written):
    error = running.refused(certify.main, f"--config.certify.n={written}")
    assert error == f"error: Expected certify.n to be of type int, got {written!r}.\n"
    assert f"Expected a whole number, got {written!r}." in running.refused(predict.main, f"--n={written}")


def test_the_fields_are_those_of_the_settings_that_they_make():
    made = config.base()
    assert set(made.train) - set(training.Recipe.__dataclass_fields__) == {
        "scheme", "sigma", "ref", "start", "held_out", "validate_epochs", "validate_samples", "checkpoint_minutes",
        "steps_per_dispatch", "tensorboard", "distributed", "loss", "ema", "statistics",
    }  # fmt: skip
    assert set(made.audit) == set(search.Settings.__dataclass_fields__)
    assert config.recipe(made) == training.Recipe()
    assert config.loss(made) == losses.Gaussian()
    settings = {field.name for kind in losses.LOSSES.values() for field in dataclasses.fields(kind)}
    assert set(made.train.loss) == settings | {"name", "teacher", "teacher_samples"}
    assert config.audit_settings(made) == search.Settings()
    assert config.settings(made) == certification.Settings()
    assert config.denoiser_target(made) == denoiser.Target(diffusion.Schedule())
    for name, field in config.FIELDS.items():
        assert config.get(made, name) == field.default


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (config.settings, "certify.n", 5),
        (config.settings, "certify.n0", 0),
        (config.settings, "certify.alpha", 1.5),
        (config.settings, "certify.certificate", "three_sided"),
        (config.settings, "sampling.plan", "to_the_end"),
        (config.noise_scheme, "noise.scheme", "gausian"),
        (config.audit_settings, "audit.level", 0.0),
        (config.audit_settings, "audit.radii", (0.5, 0.5)),
        (config.audit_settings, "audit.saved", 65),
        (config.denoiser_target, "denoiser.schedule", "quadratic"),
        (config.denoiser_target, "denoiser.times", 1),
        (config.denoiser_target, "denoiser.beta_start", 0.5),
        (config.denoiser_target, "denoiser.prediction", "noise"),
        (config.recipe, "train.batch", 0),
        (config.recipe, "train.momentum", 1.0),
        (config.recipe, "train.schedule", "linear"),
    ],
)
def test_errors_name_the_setting_that_the_command_line_knows(make, field, value):
    made = config.base()
    group, name = field.split(".")
    made[group][name] = value
    with pytest.raises(ValueError, match=rf"^Expected (0 < )?{field} "):
        make(made)


def test_errors_of_bins_and_adaptive_plans_name_their_settings_too():
    made = config.base()
    made.noise.scheme, made.noise.edges, made.noise.levels = "stepped", (1.0,), (1.0,)
    with pytest.raises(ValueError, match=r"2 noise\.levels for 1 noise\.edges"):
        config.noise_scheme(made)
    made.noise.levels = (1.0, 1e40)
    with pytest.raises(ValueError, match=r"Expected sigma times each of noise\.levels from"):
        config.noise_scheme(made)
    made.sampling.plan, made.sampling.radii = "to_radius", (0.5, 0.25)
    with pytest.raises(ValueError, match=r"^Expected sampling\.radii to ascend"):
        config.settings(made)
    made.sampling.sequence = "bet"
    with pytest.raises(ValueError, match=r"^Expected sampling\.sequence to be one of"):
        config.settings(made)


def test_overrides_keep_the_type():
    made = config.base()
    with pytest.raises(TypeError):
        made.certify.n = "many"
    with pytest.raises(AttributeError):
        made.certify.samples = 5


def test_one_mean_serves_every_channel():
    made = get("quickstart")
    digits = data.load("digits", "train")
    assert config.description(made, digits)["mean"] == [0.3]
    made.data.name = "cifar10"
    three = data.from_arrays(digits.images.repeat(3, axis=-1), digits.labels)
    assert config.description(made, three)["mean"] == [0.3] * 3
    made.model.dtype = "float16"
    with pytest.raises(ValueError, match=r"model\.dtype"):
        config.description(made, three)


def test_denoisers_are_small_for_a_cpu_and_full_for_a_gpu():
    digits = data.load("digits", "train")
    three = data.from_arrays(np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, int))
    counts = {}
    for size in ("small", "full"):
        made = get("denoiser", size)
        described = config.denoiser_description(made, three)
        _, params, _ = models.abstract(described, dtype="float32")
        counts[size] = sum(value.size for value in params.values())
        assert config.denoiser_target(made).schedule == diffusion.Schedule()
        assert config.denoiser_description(made, digits)["unet"]["channels"] == 1
    assert counts["full"] == 35_746_307  # of google/ddpm-cifar10-32
    assert counts["small"] < 1_000_000
    with pytest.raises(ValueError, match=r"denoiser\.py:small or :full"):
        get("denoiser", "huge")


def test_one_level_for_all_images_is_asked_for_where_the_noise_has_many():
    made = get("denoised_cifar10")
    assert config.denoiser_sigmas(made, config.noise_scheme(made)) == (made.noise.sigma,)
    made.noise.scheme = "l1"
    with pytest.raises(ValueError, match=r"denoiser\.sigma, one level for all images, as l1 has a level of its own"):
        config.denoiser_sigmas(made, config.noise_scheme(made))
    made.denoiser.sigma = 0.12
    assert config.denoiser_sigmas(made, config.noise_scheme(made)) == (0.12,)
    made.noise.scheme, made.noise.sigma, made.noise.levels = "cascade", 0.5, (1.0, 0.5)
    assert config.denoiser_sigmas(made, config.noise_scheme(made)) == (0.12,)
    made.denoiser.sigma = 0.0
    assert config.denoiser_sigmas(made, config.noise_scheme(made)) == (0.5, 0.25)


BASE = "from idrc_jax.config import base\ndef get_config():\n    c = base()\n"


@pytest.mark.parametrize(
    ("content", "argument", "message"),
    [
        ("def get_config():\n    raise ValueError('Expected a, got b.')", "", "{file}, line 2: Expected a, got b."),
        ("def get_config(size):\n    raise ValueError(size)", ":full", "{file}, line 2: full"),
        (f"{BASE}    c.noise.sgma = 1.0", "", "{file}, line 4: Expected a known config field, got sgma. Near: "),
        (f"{BASE}    c.noise.sigma = 'loud'", "", "Expected sigma to be of type float, got loud of type str."),
        ("import nowhere_at_all", "", "{file}, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("open('nowhere at all')", "", "{file}, line 1: FileNotFoundError: "),
        ("def get_config(:", "", "{file}: SyntaxError: invalid syntax"),
        ("x = 3", "", "{file}: Expected a function get_config, got none."),
        (BASE, ":l1", "{file}: Expected no argument after FILE:, got one."),
        ("def get_config(scheme):\n    return scheme", "", "{file}: Expected --config=FILE:ARGUMENT, got no argument."),
        (BASE, "", "{file}: Expected get_config to return idrc_jax.config.base() with changes, got NoneType without"),
        (f"{BASE}    return dict(seed=c.seed)", "", "got dict without max_minutes."),
    ],
)
def test_a_config_file_that_does_not_load_is_one_line(tmp_path, content, argument, message):
    file = tmp_path / "mine.py"
    file.write_text(content)
    for given in ([f"--config={file}{argument}"], ["--config", f"{file}{argument}"]):
        error = running.refused(train.main, *given, f"--workdir={tmp_path / 'run'}")
        assert message.format(file=file) in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ([], "runs/quickstart"),
        (["--config=configs/cifar10.py"], "runs/cifar10"),
        (["--config", "cifar10.py:l1"], "runs/cifar10-l1"),
        (["--config=configs/denoiser.py:small"], "runs/denoiser-small"),
        (["--config=cifar10.py", "--config=cifar10.py:l2", "--config.seed=3"], "runs/cifar10-l2"),
    ],
)
def test_each_config_has_a_workdir_of_its_own(given, folder):
    for main in (train.main, certify.main):
        _, out, _ = running.run(main, *given, "--help")
        assert f"Folder of the run, {folder} by default." in out
    with mock.patch.object(train, "_train", lambda values: print(values.workdir) or 0):
        assert running.run(train.main, *given)[1].strip() == folder
        assert running.run(train.main, *given, "--workdir=mine")[1].strip() == "mine"


def test_home_stands_for_the_tilde_of_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((config.folder() / "cifar10.py").read_text())
    for command, define in (("train", None), ("audit", audit._define_audit)):
        paths = [one for one in config.PATHS if one in command_fields.READS[command]]
        given = ["--config=~/mine.py:l1", "--workdir=~/run", *(f"--config.{one}=~/x" for one in paths)]
        with mock.patch("sys.argv", ["x", *given, *(["--out=~/found"] if define else [])]):
            values, rest = flags._parse(command, define)
        assert (values.workdir, rest) == (tmp_path / "run", [])
        assert {config.get(values.config, one) for one in paths} == {str(tmp_path / "x")}
        assert values.config.noise.scheme == "l1"
    assert values.out == tmp_path / "found"


def test_each_field_is_read_by_a_command():
    assert set().union(*command_fields.READS.values()) == set(config.FIELDS)
    assert {"data.skip", "certify.n", "sampling.plan", "model.factory"} <= set(command_fields.READS["certify"])
    assert not {"data.skip", "chunk", "model.weights", "certify.n"} & set(command_fields.READS["train"])
    for declared in command_fields._DECLARED.values():
        assert all(one in config.FIELDS or f"{one}." in "".join(config.FIELDS) for one in declared)


NETWORK = ("--config.devices=1", "--config.model.factory=a:b", "--config.noise.sigma=0.25")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["sampling.precision=0.01"], "under the plan fixed, which does not read it: to_precision would"),
        (["sampling.radii=(0.1,)"], "under the plan fixed, which does not read it: to_radius would"),
        (["sampling.plan=to_precision", "sampling.radii=(0.1,)"], "plan to_precision, which does not read it: to_r"),
        (["sampling.plan=selection_free", "sampling.sequence=union"], "read it: to_radius and to_precision would"),
        (["noise.scheme=splitting", "sampling.sequence=union"], "under the plan exhaustive"),
        (["noise.by=std"], "under the scheme gaussian, which does not read it: stepped would"),
        (["noise.scheme=l1", "noise.by=std"], "under the scheme l1, which does not read it"),
    ],
)
def test_a_flag_that_nothing_reads_under_what_is_chosen_is_refused(tmp_path, flags, told):
    given = [f"--config.{flag}" for flag in flags]
    assert told in running.refused(certify.main, f"--workdir={tmp_path}", *NETWORK, *given)


def test_a_flag_that_something_reads_or_that_says_what_holds_anyway_is_no_mistake():
    made = get("quickstart")
    command_fields.check_choices(made, ["sampling.sequence", "sampling.radii", "noise.by"])
    made.sampling.plan, made.sampling.radii, made.noise.scheme, made.noise.by = "to_radius", (9.0,), "stepped", "std"
    command_fields.check_choices(made, ["sampling.plan", "sampling.radii", "noise.by", "model.depth"])
    made.model.factory, made.denoiser.weights = "a:b", "x"
    command_fields.check_choices(made, ["model.dtype"])
    with pytest.raises(ValueError, match=r"no --config\.model\.depth beside model\.factory"):
        command_fields.check_choices(made, ["model.dtype", "model.depth"])


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for main, flag in ((train.main, "workdir"), (certify.main, "workdir"), (merge.main, "out")):
        assert running.refused(main, f"--{flag}=") == f"error: flag --{flag}=: Expected a path, got nothing.\n"
    assert not list(tmp_path.iterdir())


def test_an_audit_of_a_log_says_what_a_log_lacks(tmp_path):
    log = tmp_path / "log"
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t1\n")
    error = running.refused(audit.main, log, "--config.devices=1")
    assert error.startswith(
        f"error: Expected a run with its manifest to audit, got {log}: a log has neither the network"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train.scheme", "l1"),
        ("train.sigma", "0.5"),
        ("train.sigma_low", "0.1"),
        ("train.held_out", "5"),
        ("train.validate_epochs", "2"),
        ("train.loss.name", "consistency"),
        ("train.loss.weight", "2.0"),
        ("train.ema", "0.9"),
        ("denoiser.weights", "runs/x"),
        ("denoiser.sigma", "0.25"),
        ("denoiser.steps", "2"),
    ],
)
def test_what_training_a_denoiser_would_ignore_is_refused(tmp_path, field, value):
    given = ["--config=denoiser.py:small", "--config.data.name=synthetic", f"--workdir={tmp_path / 'run'}"]
    error = running.refused(train.main, *given, f"--config.{field}={value}")
    assert error == f"error: Expected no {field} to train a denoiser, got {value}.\n"
    assert not (tmp_path / "run").exists()


def test_a_loss_takes_what_the_config_gives_and_else_what_was_published_for_the_level():
    made = config.base()
    made.train.loss.name, made.noise.sigma = "smoothmix", 0.25
    assert config.loss(made) == losses.make("smoothmix", 0.25)
    made.train.sigma = 1.0
    assert config.loss(made) == losses.make("smoothmix", 1.0)
    made.train.loss.weight, made.train.loss.one_step, made.train.loss.noises = 0.0, 0, 4
    assert config.loss(made) == losses.make("smoothmix", 1.0, weight=0.0, one_step=False, noises=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["name=consistent"], "Expected train.loss.name to be one of "),
        (["name=consistency", "weight=-2"], "Expected train.loss.weight >= 0, got -2.0."),
        (["name=consistency", "epsilon=1"], "Expected no train.loss.epsilon for the loss consistency, whose settings"),
        (["name=smoothadv", "epsilon=0"], "Expected train.loss.epsilon > 0, got 0.0."),
        (
            ["weight=1"],
            "Expected no train.loss.weight for the loss gaussian, whose settings are noises, label_smoothing",
        ),
        (["name=smoothmix", "one_step=-3"], "Expected train.loss.one_step >= 0, got -3."),
        (
            ["name=consistency", "noises=5"],
            "Expected train.batch, all noisy copies of a step, to be a multiple of train.loss.noises = 5, got 64.",
        ),
        (
            ["name=catrs"],
            "Expected train.loss.teacher, a network trained under Gaussian noise, for the loss catrs, got",
        ),
        (["name=macer", "noises=4"], "Expected train.scheme to be of Gaussian noise for the loss macer"),
    ],
)
def test_a_loss_that_cannot_be_is_one_line(tmp_path, given, message):
    arguments = [f"--config.train.loss.{one}" for one in given]
    arguments += ["--config.data.name=synthetic", "--config.noise.scheme=uniform", "--config.train.held_out=0"]
    workdir = tmp_path / "run"
    error = running.refused(train.main, f"--workdir={workdir}", "--config.devices=1", *arguments)
    assert error.startswith(f"error: {message}")
    assert not workdir.exists()
