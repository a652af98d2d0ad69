"""Certification by several workers and training over several processes: real ones, on the loopback address."""

import contextlib
import csv
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT

from idrc_jax import data, models, results
from idrc_jax.sampling.batch_systems import Worker
from idrc_jax.training import validation

TESTS = Path(__file__).parent.parent
INDICES = np.arange(60)
SECONDS = 250  # of one process; a fifth of that on two idle cores
pytestmark = [pytest.mark.evidence, pytest.mark.timeout(900)]
COMPILED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """The processes of these tests compile once for all."""
    COMPILED["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


def start(*arguments, devices=1):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JOB_", "JAX_", "XLA_"))
    }
    environment |= {
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        **COMPILED,
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(ROOT)])
    command = [sys.executable, str(TESTS / "processes.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(*processes):
    """Each one's (exit status, standard output, standard error); one that hangs fails the test, and none stays."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        answers = [process.communicate(timeout=SECONDS) for process in processes]
    return [(process.returncode, *answer) for process, answer in zip(processes, answers, strict=True)]


def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def certify(workdir, workers, kill_after=(), devices=1, joined=False):
    """Workers at the same time; all must succeed but those that are killed after some rows."""
    at = address() if joined else ""
    killed = dict(kill_after)
    started = [
        start("certify", workdir, worker.index, worker.count, killed.get(worker.index, 0), at, devices=devices)
        for worker in workers
    ]
    answers = finish(*started)
    for worker, (status, out, error) in zip(workers, answers, strict=True):
        assert status == (-9 if worker.index in killed else 0), error
        assert worker.index in killed or out.startswith(f"{worker.index} of {worker.count} on {devices} of")


def rows(workdir, name="certificates.tsv"):
    return {row.idx: dataclasses.replace(row, time=0.0) for row in results.read_results(workdir / name).rows}


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """The rows of one worker on one device."""
    workdir = tmp_path_factory.mktemp("certified")
    certify(workdir, [Worker()])
    assert list(rows(workdir)) == INDICES.tolist()
    return rows(workdir)


def test_four_devices_give_the_rows_of_one(certified, tmp_path):
    certify(tmp_path, [Worker()], devices=4)
    assert rows(tmp_path) == certified


def test_a_killed_worker_costs_its_unfinished_images_and_the_run_goes_on_with_another_number(certified, tmp_path):
    certify(tmp_path, [Worker(0, 2), Worker(1, 2)], kill_after={1: 4})
    first = {index: rows(tmp_path, f"certificates.{index}-of-2.tsv") for index in range(2)}
    assert set(first[0]) == set(Worker(0, 2).share(INDICES).tolist())
    assert len(first[1]) == 4
    certify(tmp_path, [Worker(0, 3), Worker(1, 3), Worker(2, 3)], kill_after={2: 3})
    second = [rows(tmp_path, f"certificates.{index}-of-3.tsv") for index in range(3)]
    assert len(second[2]) == 3
    certify(tmp_path, [Worker()])
    third = rows(tmp_path)
    parts = [*first.values(), *second, third]
    assert sum(map(len, parts)) == len(INDICES)  # each image once, by whichever worker
    results.merge(results.result_files(tmp_path), tmp_path)
    assert rows(tmp_path) == certified


def test_processes_of_jax_distributed_are_workers_of_their_own_devices(certified, tmp_path):
    certify(tmp_path, [Worker(0, 2), Worker(1, 2)], devices=2, joined=True)
    results.merge(results.result_files(tmp_path), tmp_path)
    assert rows(tmp_path) == certified


RECIPE = (
    "--config.data.name=digits", "--config.train.epochs=3", "--config.train.batch=512", "--config.seed=3",
    "--config.train.checkpoint_minutes=0", "--config.train.lr=0.05",
)  # fmt: skip


def train(workdir, cues=("none",), devices=1, settings=((),), together=True):
    """One process a cue, and what became of each; `together` joins them."""
    at = address()
    started = []
    for index, cue in enumerate(cues):
        joined = (
            f"--config.train.distributed={at}",
            f"--config.workers.index={index}",
            f"--config.workers.count={len(cues)}",
        )
        own = settings[index % len(settings)]
        arguments = (*RECIPE, *(joined if together else ()), *own)
        started.append(start("train", cue, f"--workdir={workdir}", *arguments, devices=devices))
    return finish(*started)


def assert_refused(answers, message):
    """All fail. The first to see the matter says so and leaves; JAX may end the others before they have come so far."""
    assert all(status != 0 for status, _, _ in answers), answers
    assert any(status == 1 and message in error for status, _, error in answers), answers


def weights(workdir):
    return safetensors.numpy.load_file(workdir / "weights.safetensors")


def steps(out):
    """step -> hash of the process's copy of the state, from what it printed."""
    return {int(line.split()[1]): line.split()[2] for line in out.splitlines() if line.startswith("step")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of two processes with a device each, and what they printed."""
    workdir = tmp_path_factory.mktemp("trained")
    answers = train(workdir, cues=("none", "none"))
    assert [status for status, _, _ in answers] == [0, 0], answers
    return workdir, [out for _, out, _ in answers]


def test_two_processes_hold_the_same_weights_to_the_last_bit_and_one_writes(trained):
    workdir, (lead, other) = trained
    assert list(steps(lead)) == list(range(1, 7))
    assert steps(lead) == steps(other)
    assert "Trained" in lead
    assert "Trained" not in other
    status = json.loads((workdir / "train_status.json").read_text())
    assert status == {"job": "train", "finished": True, "done": 6, "total": 6}
    *_, last = csv.DictReader((workdir / "metrics.csv").read_text().splitlines())
    assert last["epoch"] == "3"
    train_set = data.load("digits", "train")
    chosen = validation.held_out(3, 143, len(train_set))  # of which each process has classified every other one
    logits = models.load_classifier(workdir)(jnp.asarray(data.to_unit(train_set.images[chosen])))
    assert float(last["accuracy_clean"]) == np.mean(np.argmax(np.asarray(logits), 1) == train_set.labels[chosen])


def test_two_processes_train_as_two_devices_of_one(trained, tmp_path):
    ((status, _, error),) = train(tmp_path, devices=2, together=False)
    assert status == 0, error
    one, two = weights(tmp_path), weights(trained[0])
    for name, value in one.items():  # sums in another order, which six steps of training magnify
        assert np.linalg.norm(value - two[name]) <= 2e-3 * np.linalg.norm(value), name


def test_processes_stop_at_one_step_and_die_together_and_go_on_to_the_same_weights(trained, tmp_path):
    # Ctrl-C at one of them: both stop after the same step.
    (lead, told, _), (other, also, error) = train(tmp_path, cues=("none", "interrupt:1"))
    assert (lead, other) == (0, 130), error
    assert "goes on from here" in told
    assert steps(told) == steps(also)
    assert max(steps(told)) <= 3
    # One is killed: the other ends, too, and what was saved stays.
    (lead, told, _), (other, _, _) = train(tmp_path, cues=("none", "kill:4"))
    assert lead != 0
    assert other == -9
    assert not (tmp_path / "weights.safetensors").exists()
    # The next run goes on from there.
    answers = train(tmp_path, cues=("none", "none"))
    assert [status for status, _, _ in answers] == [0, 0], answers
    assert min(steps(answers[0][1])) > 4
    whole, parts = weights(trained[0]), weights(tmp_path)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name])


def test_processes_that_draw_by_their_votes_are_killed_and_go_on_to_the_same_weights(tmp_path):
    """Each counts its share of the votes; the kill is in an epoch that is drawn by them."""
    given = {"name": "hard_samples", "noises": 2, "start_epoch": 1, "redraw_epochs": 1, "steps": 1, "threshold": 0.1}
    given |= {"threshold_samples": 20}
    settings = (
        (*(f"--config.train.loss.{name}={value}" for name, value in given.items()), "--config.train.batch=1024"),
    )
    answers = train(tmp_path / "whole", cues=("none", "none"), settings=settings)
    assert [status for status, _, _ in answers] == [0, 0], answers
    assert steps(answers[0][1]) == steps(answers[1][1])
    (_, _, _), (other, _, error) = train(tmp_path / "parts", cues=("none", "kill:3"), settings=settings)
    assert other == -9, error
    answers = train(tmp_path / "parts", cues=("none", "none"), settings=settings)
    assert [status for status, _, _ in answers] == [0, 0], answers
    assert min(steps(answers[0][1])) > 3
    for name, value in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "parts")[name])
    votes = [np.load(tmp_path / part / "own_votes" / "epoch_1_of_20.npy") for part in ("whole", "parts")]
    np.testing.assert_array_equal(*votes)
    assert 0 < votes[0].mean() < 20
    assert len(list((tmp_path / "parts" / "own_votes").iterdir())) == 3


def test_a_process_that_fails_ends_the_others_at_once(tmp_path):
    (lead, _, _), (other, _, error) = train(tmp_path, cues=("none", "fail"))
    assert lead != 0
    assert (other, error.splitlines()[-1]) == (1, "error: No space left on device")


def test_processes_with_other_settings_are_refused(tmp_path):
    answers = train(
        tmp_path, cues=("none", "none"), settings=(("--config.train.momentum=0.9",), ("--config.train.momentum=0.8",))
    )
    assert_refused(answers, "Expected training settings and data to be the same on all processes")
    assert not (tmp_path / "train_config.json").exists()


def test_the_batch_is_split_over_all_processes(tmp_path):
    answers = train(tmp_path, cues=("none", "none"), settings=(("--config.train.batch=511",),))
    assert_refused(answers, "Expected train.batch to be a multiple of 2 devices, got 511")


def test_a_cluster_that_is_not_there_is_refused(tmp_path):
    ((status, _, error),) = train(tmp_path, settings=(("--config.train.distributed=auto",),), together=False)
    assert (status, error.count("\n")) == (1, 1)
    assert "Expected a Slurm, Open MPI or Kubernetes job" in error
