"""The commands as a user runs them: training, certification and what ends a process in processes of their own."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import running
import safetensors.numpy
from conftest import ROOT

from idrc_jax import config, data, results
from idrc_jax.certification import job
from idrc_jax.commands import audit, certify, predict, train
from idrc_jax.config.command_fields import READS
from idrc_jax.core import command_line, time_budget
from idrc_jax.models import Classifier
from idrc_jax.results import gallery_file, runs
from idrc_jax.sampling.vote_counter import VoteCounter

SYNTHETIC = [
    "--config.data.name=synthetic", "--config.train.epochs=2", "--config.devices=1", "--config.data.skip=4",
    "--config.certify.n=400",
]  # fmt: skip
MAINS = {"train": train.main, "certify": certify.main, "predict": predict.main, "audit": audit.main}


def synthetic(command):
    """The flags of `SYNTHETIC` that a command reads."""
    return [one for one in SYNTHETIC if one.removeprefix("--config.").partition("=")[0] in READS[command]]


def environment():
    """Without the test session's own settings of JAX, and of the job it may run in."""
    own = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "SLURM_", "JOB_COMPLETION_INDEX")
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    return {key: value for key, value in os.environ.items() if not key.startswith(own)} | {"XLA_FLAGS": flags}


def start(script, workdir, *arguments, cue="", **variables):
    """One of the scripts; with a cue the same command as `processes.py` runs it."""
    program = [str(ROOT / script)]
    if cue:
        program = [
            str(ROOT / "tests/processes.py"),
            {"train.py": "train", "certify.py": "certify_command"}[script],
            cue,
        ]
        variables["JAX_NUM_CPU_DEVICES"] = "1"
    command = [
        sys.executable, *program, f"--workdir={workdir}", *[a for a in arguments if a.startswith("--config=")],
    ]  # fmt: skip
    command += [*synthetic(script.removesuffix(".py")), *[a for a in arguments if not a.startswith("--config=")]]
    own = environment() | variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own)


def run(script, workdir, *arguments, status=0, **variables):
    process = start(script, workdir, *arguments, **variables)
    out, error = process.communicate(timeout=900)  # a hang; not how long it takes on a busy machine
    assert process.returncode == status, error
    return out, error


def certify_here(workdir, *arguments):
    """What the command says, run in this process."""
    status, out, error = running.run(certify.main, f"--workdir={workdir}", *synthetic("certify"), *arguments)
    assert status == 0, error
    return out


def weights(workdir):
    return safetensors.numpy.load_file(workdir / "weights.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    out, _ = run("train.py", workdir)
    assert "weights.safetensors" in out
    return workdir


@pytest.fixture(scope="module")
def certified(trained):
    return run("certify.py", trained)[0]


def test_train_then_certify_prints_the_table_and_writes_rows_and_figure(trained, certified):
    assert "radius" in certified
    assert "ACR" in certified
    read = results.read_results(trained)
    assert [row.idx for row in read.rows] == list(range(0, 64, 4))
    assert np.mean([row.correct for row in read.rows]) > 0.4  # chance is .25
    assert (trained / "certified_accuracy.png").stat().st_size > 5000
    gallery = gallery_file.read(trained)
    assert gallery.index.tolist() == [row.idx for row in read.rows]
    assert json.loads((trained / "certify_status.json").read_text())["finished"]
    session = read.manifest["sessions"][0]
    assert {"versions", "device", "started", "python"} <= session.keys()
    assert session["training"] == json.loads((trained / "train_config.json").read_text())["training"]
    assert runs.trained_under(read).startswith("gaussian, σ = ")


@pytest.mark.evidence
def test_training_that_is_killed_goes_on_to_the_same_weights(trained, tmp_path):
    """SIGKILL in the middle of a run that saves after every step, twice."""
    every_step = "--config.train.checkpoint_minutes=0"
    for steps in (2, 4):
        run("train.py", tmp_path, every_step, cue=f"kill:{steps}", status=-9)
        saved = [int(path.name) for path in (tmp_path / "checkpoints").glob("*") if path.name.isdigit()]
        assert max(saved) == steps
        assert not (tmp_path / "weights.safetensors").exists()
    run("train.py", tmp_path, every_step)
    whole, resumed = weights(trained), weights(tmp_path)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name])


@pytest.mark.evidence
@pytest.mark.parametrize(("cue", "status"), [("interrupt:3", 130), ("kill:3", -9)])
def test_certification_that_is_stopped_goes_on(trained, certified, tmp_path, cue, status):
    arguments = (f"--config.model.weights={trained}", "--config.data.skip=1", "--config.chunk=64")
    _, error = run("certify.py", tmp_path, *arguments, cue=cue, status=status)
    path = tmp_path / "certificates.tsv"
    done = {row.idx: row for row in results.read_results(path).rows}
    assert 3 <= len(done) < 64
    if status == 130:
        assert "goes on from here" in error
        assert "Traceback" not in error
        assert not json.loads((tmp_path / "certify_status.json").read_text())["finished"]
    # The images that were done stay as they are, and the rest joins them.
    run("certify.py", tmp_path, *arguments, "--config.data.stop=12")
    after = {row.idx: row for row in results.read_results(path).rows}
    assert {idx: after[idx] for idx in done} == done
    assert set(after) >= set(range(12))


def test_a_time_limit_ends_in_status_zero_and_says_so(trained, tmp_path, monkeypatch):
    """By a clock on which a piece of 64 samples takes ten minutes: all 64 images would take 85 hours."""
    pieces, begin = 0, VoteCounter.start

    def counted(counter, draw):
        nonlocal pieces
        pieces += 1
        return begin(counter, draw)

    clock = types.SimpleNamespace(monotonic=lambda: 600.0 * pieces)
    monkeypatch.setattr(job, "_SECONDS_A_PIECE", 1e-9)
    monkeypatch.setattr(VoteCounter, "start", counted)
    monkeypatch.setattr(time_budget, "time", clock)
    arguments = ("--config.data.skip=1", f"--config.model.weights={trained}", "--config.chunk=64")
    out = certify_here(tmp_path, *arguments, "--config.max_minutes=600")
    assert "stopped before its time limit" in out
    assert 0 < 10 * pieces <= 600
    status = json.loads((tmp_path / "certify_status.json").read_text())
    assert not status["finished"]
    assert 0 < status["done"] == len(results.read_results(tmp_path).rows) < 64


def test_the_table_says_that_it_covers_more_images_than_this_call(trained, tmp_path):
    network = f"--config.model.weights={trained}"
    assert "other calls" not in certify_here(tmp_path, network, "--config.data.skip=16")
    out = certify_here(tmp_path, network, "--config.data.skip=32", "--config.data.start=1")
    assert (
        f"of 6 images: 2 of this call's data.start, stop and skip, and 4 that other calls certified in {tmp_path}"
        in out
    )
    assert json.loads((tmp_path / "certify_status.json").read_text())["total"] == 2


def test_a_dry_run_writes_nothing(trained, tmp_path):
    out = certify_here(tmp_path / "new", f"--config.model.weights={trained}", "--dry_run")
    assert "16 images, at most 8,000 samples (gaussian, sigma 0.5, n 400, plan fixed) at " in out
    assert "MiB" in out
    assert not (tmp_path / "new").exists()


def test_weights_that_are_named_say_themselves_what_they_are(trained, tmp_path):
    """Under a config of another depth; a depth on the command line must be theirs (see `BAD`)."""
    out = certify_here(tmp_path / "new", f"--config.model.weights={trained}", "--dry_run", "--config=cifar10.py")
    assert "16 images" in out


def test_predict_prints_a_line_an_image(trained):
    status, out, error = running.run(predict.main, f"--workdir={trained}", *synthetic("predict"), "--n=200")
    assert status == 0, error
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["idx", "label", "predict", "correct"]
    assert [int(line[0]) for line in lines[1:]] == list(range(0, 64, 4))
    assert sum(int(line[3]) for line in lines[1:]) > 4


@pytest.mark.evidence
def test_workers_by_hand_and_of_a_slurm_array_merge_by_command_or_by_one_more_call(trained, certified, tmp_path):
    network = f"--config.model.weights={trained}"
    out, _ = run("certify.py", tmp_path, network, "--config.workers.index=0", "--config.workers.count=2")
    assert "idrc-merge" in out
    array = {"ID": 8, "MIN": 7, "MAX": 8, "COUNT": 2}
    out, _ = run(
        "certify.py", tmp_path, network, **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
    )
    assert "idrc-merge" in out
    code = "from idrc_jax.commands import merge; merge.main()"
    files = sorted(str(path) for path in tmp_path.glob("certificates.*-of-2.tsv"))
    answer = subprocess.run(
        [sys.executable, "-c", code, "--out", str(tmp_path), *files],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "ACR" in answer.stdout
    single = [row.votes for row in results.read_results(trained).rows]
    assert [row.votes for row in results.read_results(tmp_path).rows] == single
    (tmp_path / "certificates.tsv").unlink()
    out, _ = run("certify.py", tmp_path, network)
    assert out.splitlines()[1:-2] == certified.splitlines()[1:-2]  # the table, between lines that name the folder
    assert [row.votes for row in results.read_results(tmp_path).rows] == single
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (refused.returncode, refused.stderr[:24]) == (1, "error: Expected result f")


BAD = [
    ("train.py", ["--config.nosie.sigma=1"], "got nosie.sigma. Near: noise.sigma"),
    ("train.py", ["--config.noise.sigma=0"], "Expected sigma > 0, got 0.0"),
    ("train.py", ["--config.noise.sigma=loud"], "noise.sigma"),
    ("train.py", ["--config.noise.scheme=gausian"], "Did you mean 'gaussian'"),
    ("train.py", ["--config.model.depth=21"], "6n + 2"),
    ("train.py", ["--config.data.name=npz", "--config.data.dir=/nowhere.npz"], ".npz file"),
    ("train.py", ["--config.data.name=cifar10", "--config.data.dir=/nowhere"], "Expected the binary version"),
    (
        "train.py",
        ["--config=nowhere.py"],
        "denoised_cifar10.py, denoiser.py, imagenet.py, quickstart.py, router.py, got 'nowhere.py'",
    ),
    ("train.py", ["--unknown=3"], "unknown"),
    ("train.py", ["stray"], "Expected only --flags, got 'stray'"),
    ("train.py", ["--config.max_minutes=-1"], "max_minutes >= 0"),
    ("certify.py", [], "Train first"),
    ("certify.py", ["--config.workers.count=3"], "set --config.workers.index"),
    ("certify.py", ["--config.certify.n=5"], "Expected certify.n >= 10, the fewest samples"),
    ("certify.py", ["--config.certify.alpha=1.5"], "0 < certify.alpha < 1"),
    ("certify.py", ["--config.model.weights={trained}", "--config.model.dtype=half"], "Expected model.dtype to be one"),
    ("train.py", ["--config.model.shortcut=none"], "Expected model.shortcut to be one of"),
    ("train.py", ["--config.train.checkpoint_minutes=-1"], "Expected train.checkpoint_minutes >= 0"),
    (
        "certify.py",
        ["--config.model.weights={trained}", "--config.model.depth=20"],
        "Expected a checkpoint with depth = 20",
    ),
    ("certify.py", ["--config.model.weights={trained}", "--config.data.name=digits"], "4 classes, got 9"),
    ("certify.py", ["--config.model.weights={trained}", "--config.data.start=64"], "got none"),
    ("certify.py", ["--config.model.weights={trained}", "--config.devices=1", "--config.chunk=1"], "chunk >= 2"),
]


@pytest.mark.parametrize(("script", "arguments", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(trained, tmp_path, script, arguments, message):
    command = script.removesuffix(".py")
    arguments = [argument.format(trained=trained) for argument in arguments]
    error = running.refused(MAINS[command], f"--workdir={tmp_path / 'run'}", *synthetic(command), *arguments)
    assert message in error
    assert not (tmp_path / "run").exists()


SEED = "Expected a seed in 0 .. 2**64 - 1, got"
REFUSED = [
    (train.main, ["--config.seed=36893488147419103232"], SEED),
    (train.main, ["--config.seed=18446744073709551616"], SEED),
    (certify.main, ["--config.seed=-1"], SEED),
    (predict.main, ["--config.seed=-1"], SEED),
    (train.main, ["--config.devices=-1"], "Expected devices >= 0, got -1."),
    (certify.main, ["--config.devices=-1"], "Expected devices >= 0, got -1."),
    (certify.main, ["--config.chunk=3000000000000"], "Expected chunk <= "),
    (predict.main, ["--config.chunk=-4"], "Expected chunk >= 2, got -4."),
    (predict.main, ["--n=10"], "Expected n >= 11, the fewest samples that can name a class at alpha = 0.001, got 10."),
    (predict.main, ["--n=0"], "Expected n >= 1, got 0."),
    (predict.main, ["--config.data.name=digits"], "below the classifier's 4 classes, got 9 in digits"),
    (certify.main, ["--config.sampling.plan=to_radius", "--config.sampling.radii=('x',)"], "sampling.radii to ascend"),
    (certify.main, ["--config.sampling.plan=to_radius", "--config.sampling.radii=(.5,nan)"], "sampling.radii"),
    (certify.main, ["--config.noise.scheme=stepped", "--config.noise.edges=nan"], "noise.edges to ascend"),
    (certify.main, ["--config.noise.scheme=stepped"], "Expected noise.bins, to fit bins to the training images, or"),
    (train.main, ["--config.noise.scheme=stepped"], "Expected noise.bins, to fit bins to the training images, or"),
    (
        certify.main,
        ["--config.sampling.radii=" + "(0.5," * 500 + ")" * 500],
        "Expected fields without deep nesting, got",
    ),
    (certify.main, ["--config.noise.levels=" + "1+" * 20000 + "1"], "nesting, got --config.noise.levels=1+1"),
    (audit.main, ["--config.audit.fractions=('x',)"], "Expected audit.fractions > 0, got x."),
    (train.main, ["--config.model.mean=abc"], "Expected model.mean to be a number"),
    (
        train.main,
        ["--config.noise.sigma=1e-50"],
        "Expected sigma from 1.2e-38 to 3.4e38, the range of float32, got 1e-50.",
    ),
    (certify.main, ["--config.noise.sigma=1e39"], "Expected sigma from 1.2e-38"),
    (certify.main, ["--config.certify.n=10000000000"], "Expected certify.n <= 4294967296"),
    (certify.main, ["--config.certify.n=many"], "Expected certify.n to be of type int, got 'many'."),
    (train.main, ["--config.train.augment=maybe"], "Expected train.augment to be of type bool, got 'maybe'."),
    (certify.main, ["--noise.sigma=1"], "Expected a known flag, got --noise.sigma. Did you mean --config.noise.sigma?"),
    (predict.main, ["--sigma=0.25"], "got --sigma. Did you mean --config.noise.sigma?"),
    (certify.main, ["--n=1000"], "got --n. Did you mean --config.certify.n?"),
    (certify.main, ["--factory=a:b"], "got --factory. Did you mean --config.model.factory?"),
    (train.main, ["--lr=0.1"], "got --lr. Did you mean --config.train.lr?"),
    (certify.main, ["--noise.sgma=1"], "got --noise.sgma. Did you mean --config.noise.sigma?"),
    (train.main, ["--config.train.start={trained}", "--config.model.depth=14"], "depth was 8, is 14."),
    (
        predict.main,
        ["--config.certify.n=5"],
        "Expected a field that idrc-predict reads, got --config.certify.n, which is for idrc-certify. idrc-predict "
        "--help=all lists its own.",
    ),
    (certify.main, ["--noconfig.train.augment"], "got --config.train.augment, which is for idrc-train."),
    (train.main, ["--config.data.skip=1"], "which is for idrc-certify, idrc-predict, idrc-audit."),
    (audit.main, ["--config.noise.sigma=1.0"], "which is for idrc-train, idrc-certify, idrc-predict."),
]


@pytest.mark.parametrize(("main", "arguments", "message"), REFUSED)
def test_more_bad_input_is_one_line_and_leaves_nothing(trained, tmp_path, main, arguments, message):
    given = [f"--config.model.weights={trained}"] if main in (certify.main, predict.main) else []
    (command,) = (name for name, other in MAINS.items() if other is main)
    more = [argument.format(trained=trained) for argument in arguments]
    error = running.refused(main, f"--workdir={tmp_path / 'run'}", *synthetic(command), *given, *more)
    assert message in error
    assert len(error) < 400
    assert not (tmp_path / "run").exists()


def test_memory_that_does_not_suffice_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\n9 bytes.")
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Expected enough memory, got too little: set a smaller --config.chunk.")
    assert error.count("\n") == 1
    with pytest.raises(RuntimeError, match="another"), command_line.one_line_errors():
        raise RuntimeError("another")


@pytest.mark.parametrize("platform", ["foo", "cuda"])
def test_platforms_that_are_not_there_are_refused_with_those_that_are(trained, tmp_path, platform):
    _, error = run(
        "certify.py", tmp_path / "run", f"--config.model.weights={trained}", status=1, JAX_PLATFORMS=platform
    )
    assert error.splitlines()[-1] == (
        f"error: Expected JAX_PLATFORMS to name what this machine and this JAX have, cpu, got '{platform}'."
    )
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_images_without_labels_are_predicted_and_certified(trained, tmp_path):
    images = data.load("synthetic", "test").images[:8]
    np.savez(tmp_path / "test.npz", images=images)
    given = [f"--config.model.weights={trained}", "--config.data.name=npz", f"--config.data.dir={tmp_path}"]
    status, out, error = running.run(predict.main, *synthetic("predict"), *given, "--n=200")
    assert status == 0, error
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["idx", "predict"]
    assert [len(line) for line in lines] == [2] * 3
    status, out, error = running.run(certify.main, f"--workdir={tmp_path / 'run'}", *synthetic("certify"), *given)
    assert status == 0, error
    assert "no labels" in out
    assert "accuracy" not in out.replace("no accuracy is known", "")
    assert not (tmp_path / "run" / "certified_accuracy.png").exists()
    assert [row.label for row in results.read_results(tmp_path / "run").rows] == [-1, -1]


def test_a_workdir_that_cannot_be_made_or_written(trained, tmp_path):
    (tmp_path / "file").write_text("x")
    error = running.refused(train.main, f"--workdir={tmp_path / 'file' / 'run'}", *synthetic("train"))
    assert error.startswith("error: Expected")
    assert "workdir" in error


def test_a_shipped_config_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "noise.scheme = 'l1'" in certify_here(tmp_path, "--config=cifar10.py:l1", "--help")


def test_help_and_debug(tmp_path):
    _, out, _ = running.run(certify.main, f"--workdir={tmp_path / 'run'}", "--help")
    for word in ("--config", "--workdir", "--dry_run", "noise.sigma"):
        assert word in out
    with pytest.raises(ValueError, match="Expected sigma > 0"):  # and so its traceback
        running.run(train.main, f"--workdir={tmp_path / 'run'}", "--debug", "--config.noise.sigma=0")


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    """A tiny U-Net, hardly trained, on the synthetic images."""
    workdir = tmp_path_factory.mktemp("denoiser")
    sizes = [
        "--config.denoiser.widths=(4,8)", "--config.denoiser.attention=(False,False)", "--config.denoiser.groups=2",
        "--config.train.batch=128",
    ]  # fmt: skip
    out, _ = run("train.py", workdir, f"--config={ROOT}/configs/denoiser.py", *sizes)
    assert "weights.safetensors" in out
    return workdir


@pytest.mark.evidence
def test_a_denoiser_is_trained_put_in_front_and_named_in_the_manifest(trained, denoiser, tmp_path):
    given = [f"--config.model.weights={trained}", f"--config.denoiser.weights={denoiser}", "--config.certify.n=200"]
    run("certify.py", tmp_path, *given, "--config.denoiser.steps=2")
    guarantee = json.loads((tmp_path / "manifest.json").read_text())["guarantee"]
    assert (guarantee["denoiser_sigma"], guarantee["denoiser_steps"]) == (0.5, 2)
    gallery = gallery_file.read(tmp_path)
    assert gallery.denoised.shape == gallery.noisy.shape
    assert gallery.denoised.std() < gallery.noisy.std()
    assert len(results.read_results(tmp_path).rows) > 0
    _, error = run("certify.py", tmp_path, *given, status=1)
    assert "denoiser_steps was 2, is 1" in error


@pytest.mark.evidence
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.noise.scheme=l1"], "Expected denoiser.sigma, one level for all images, as l1 has"),
        (["--config.denoiser.sigma=3.0"], "for which the denoiser was trained, got 3.0"),
        (["--config.denoiser.sigma=0.001"], "got 0.001"),
        (["--config.denoiser.steps=0"], "Expected denoiser.steps >= 1"),
        (["--config.denoiser.weights={trained}"], "Expected a denoiser, got a resnet"),
        (["--config.model.weights={denoiser}"], "Expected a classifier, got a denoiser"),
        (["--config.denoiser.weights=nowhere"], "Expected trained weights at nowhere"),
        (
            ["--config.denoiser.weights=", "--config.denoiser.steps=4"],
            "Expected denoiser.weights with denoiser.steps = 4",
        ),
    ],
)
def test_a_denoiser_that_does_not_fit_is_refused_in_one_line(trained, denoiser, tmp_path, arguments, message):
    given = [f"--config.model.weights={trained}", f"--config.denoiser.weights={denoiser}"]
    more = [one.format(trained=trained, denoiser=denoiser) for one in arguments]
    _, error = run("certify.py", tmp_path, *given, *more, status=1)
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_images_that_the_network_was_trained_on_are_counted(tmp_path):
    """Where the training set is at hand, whatever part of it and whatever else is certified."""
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    others = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(20) % 3)
    np.savez(tmp_path / "test.npz", images=np.concatenate([images[:4], others]), labels=np.zeros(10, int))
    train_set, dataset = (data.load("npz", split, directory=str(tmp_path)) for split in ("train", "test"))
    described = {"training": {"data_sha256": train_set.fingerprint()}}
    classifier = Classifier(lambda p, x: x, (), 3, (4, 4, 1), description=described)
    settings = config.base()
    settings.data.name, settings.data.dir = "npz", str(tmp_path)
    with pytest.warns(UserWarning, match=r"trained on 3 of the 8 images of .*test\.npz to certify"):
        certify._warn_of_training_images(classifier, dataset, np.arange(1, 9), settings)
    certify._warn_of_training_images(classifier, dataset, np.arange(4, 9), settings)  # without a word
