"""`make gpu-paper`: what it calls, when it stops, that it goes on after a kill. It is rehearsed on the CPU."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import gpu, gpu_paper
from idrc_jax import models, results

# Stands in for a command: writes what it was called with, and after SIGTERM, or at once, how far it got.
COMMAND = """
import json, signal, sys, time
from pathlib import Path

me = Path(sys.argv[0]).stem
folder = Path(next(one for one in sys.argv if one.startswith("--workdir=")).partition("=")[2])
folder.mkdir(exist_ok=True)
with open(folder / "calls", "a") as calls:
    print(json.dumps([me, *sys.argv[1:]]), file=calls)

def stop(*_):
    if MODE == "finish":
        (folder / {"train": "weights.safetensors", "certify": "certificates.tsv"}[me]).write_text("made")
    (folder / f"{me}_status.json").write_text(json.dumps({"finished": MODE == "finish"}))
    if MODE == "deaf":
        time.sleep(60)
    sys.exit(3 if MODE == "fail" else 0)

signal.signal(signal.SIGTERM, stop)
if MODE in ("hang", "deaf"):
    time.sleep(60)
stop()
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A call of it, with commands that behave as they are told."""
    monkeypatch.setattr(gpu_paper, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_paper, "_START", 0.1)
    monkeypatch.setattr(gpu_paper, "_GRACE", 1)
    monkeypatch.setattr(models, "save_half", lambda source, path: path.write_bytes(b"half"))
    out = tmp_path / "out"
    values = argparse.Namespace(
        out=out, data=tmp_path, sigma=0.5, depth=110, dtype="bfloat16", epochs=3, train="--config.seed=7", certify=""
    )

    def call(train, certify="finish", seconds=20.0):
        for command, mode in (("train", train), ("certify", certify)):
            (tmp_path / f"{command}.py").write_text(f"MODE = {mode!r}\n{COMMAND}")
        return gpu_paper.run(values, time.monotonic() + seconds)

    def calls():
        return [json.loads(line) for line in (out / "calls").read_text().splitlines()]

    call.calls, call.out, call.values = calls, out, values
    return call


def test_a_training_that_stopped_is_gone_on_with_before_anything_is_certified(job):
    assert not job(train="stop")
    assert not (job.out / gpu_paper.HALF).exists()
    assert not job(train="finish", certify="stop")
    assert (job.out / gpu_paper.HALF).read_bytes() == b"half"
    assert job(train="fail", certify="finish")  # training is done: it is not called
    assert [one for one, *_ in job.calls()] == ["train", "train", "certify", "certify"]
    first, last = job.calls()[0], job.calls()[-1]
    assert {"--config.noise.sigma=0.5", "--config.train.epochs=3", "--config.seed=7"} <= set(first)
    assert {f"--config.model.weights={job.out / gpu_paper.HALF}", "--config.sampling.plan=to_radius"} <= set(last)
    (limit,) = [one.partition("=")[2] for one in last if one.startswith("--config.max_minutes")]
    assert 0 < float(limit) * 60 < 20


def test_a_training_whose_weights_are_not_there_is_called_again(job):
    assert job(train="finish")
    (job.out / "weights.safetensors").unlink()
    assert job(train="finish")
    assert [one for one, *_ in job.calls()] == ["train", "certify", "train"]


def test_a_folder_is_of_one_set_of_settings(job):
    assert not job(train="stop")
    job.values.sigma = 0.25
    with pytest.raises(SystemExit, match=r"the settings that .* was begun with, .*'sigma': '0.5'"):
        job(train="finish")


def test_a_command_that_does_not_stop_in_time_is_asked_to(job):
    begun = time.monotonic()
    assert not job(train="hang", seconds=2.0)
    assert time.monotonic() - begun < 55
    assert json.loads((job.out / "train_status.json").read_text()) == {"finished": False}
    assert not job(train="finish", seconds=0.1)  # no time to start anything
    assert len(job.calls()) == 1


def test_a_command_that_fails_ends_it_with_its_status(job):
    with pytest.raises(SystemExit) as ended:
        job(train="fail")
    assert ended.value.code == 3


def test_a_run_that_is_told_to_stop_stops_its_command(tmp_path):
    (tmp_path / "train.py").write_text(f"MODE = 'hang'\n{COMMAND}")
    code = "import sys, pathlib; from benchmarks import gpu_paper; gpu_paper.ROOT = pathlib.Path(sys.argv.pop(1))"
    command = [sys.executable, "-c", f"{code}; gpu_paper.main()", str(tmp_path), "--data", str(tmp_path)]
    run = subprocess.Popen([*command, "--out", str(tmp_path / "out")], cwd=ROOT)
    while run.poll() is None and not (tmp_path / "out" / "calls").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    run.terminate()
    assert run.wait(30) == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "out" / "train_status.json").read_text()) == {"finished": False}


@pytest.mark.parametrize("mode", ["hang", "deaf"])
def test_a_command_is_killed_that_does_not_stop_when_the_run_is_told_to(job, monkeypatch, mode):
    """As by a signal, here in the midst of waiting."""
    waiting = subprocess.Popen.wait
    begun = []

    def wait(process, timeout=None):
        if not begun:
            while not (job.out / "calls").exists():
                time.sleep(0.05)
            begun.append(process)
            raise KeyboardInterrupt
        return waiting(process, 5 if timeout is None else timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        job(train=mode)
    assert begun[0].poll() is not None


def test_what_is_said_to_be_counted_is_what_the_table_says():
    rows = {one["program"]: one for one in json.loads(gpu.COUNTED.read_text()) if one["devices"] == 1}
    said = gpu_paper.counted(90)
    assert said.startswith("Counted, not measured: ")
    training, certification = (int(one) for one in re.findall(r"(\d+) s for", said))
    # Both are bound by memory: bytes of 90 epochs and of 500 images' samples at an H100's bandwidth.
    bandwidth = 3.35232e12
    by_kernel = rows["train, ResNet-110 (by kernel), bfloat16"]["megabytes"]
    assert by_kernel < rows["train, ResNet-110, bfloat16"]["megabytes"]
    assert training == round(90 * 50_000 * 1e6 * by_kernel / bandwidth)
    megabytes = rows["certify, ResNet-110, bfloat16"]["megabytes"]
    assert certification == round(500 * 100_000 * 1e6 * megabytes / bandwidth)


@pytest.mark.evidence
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_goes_on(tmp_path):
    """Tiny: ResNet-8, 512 images of 8 x 8 pixels, 3 certificates; killed between two checkpoints of its training."""
    generator, out = np.random.default_rng(0), tmp_path / "out"
    (tmp_path / "data").mkdir()
    for split, count in (("train", 512), ("test", 60)):
        images = generator.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        np.savez(tmp_path / "data" / f"{split}.npz", images=images, labels=generator.integers(0, 10, count))
    command = [
        sys.executable, "-m", "benchmarks.gpu_paper", "--data", str(tmp_path / "data"), "--out", str(out),
        "--minutes=20", "--depth=8", "--dtype=float32", "--epochs=8", f"--cache={tmp_path / 'xla'}",
        "--train=--config.train.batch=64 --config.train.checkpoint_minutes=0.01 --config.train.validate_epochs=8",
        "--certify=--config.certify.n=1000",
    ]  # fmt: skip
    killed = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    status = out / "train_status.json"
    while killed.poll() is None and not (status.is_file() and json.loads(status.read_text())["done"] > 2):
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() < 0
    done = json.loads(status.read_text())["done"]
    assert 2 < done < 64
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=True)
    assert f"Finished: {out}" in said.stdout
    assert int(re.search(r"(\d+)/64", said.stderr)[1]) >= done
    assert len(results.read_results(out).rows) == 3
    assert (out / gpu_paper.HALF).stat().st_size < 0.6 * (out / models.WEIGHTS).stat().st_size
    manifest = json.loads((out / "manifest.json").read_text())
    assert models.load_classifier(out / gpu_paper.HALF).sha256 in json.dumps(manifest)
