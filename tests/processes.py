"""What tests start as processes of their own, with ways to die on cue, so that no test depends on when it looks:
`python processes.py certify|certify_command|train ...`.
"""

import functools
import hashlib
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from conftest import linear_logits

from idrc_jax import certification, data, results, training
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.certification import job
from idrc_jax.commands import certify as certify_main
from idrc_jax.commands import train as train_main
from idrc_jax.models import Classifier
from idrc_jax.sampling import batch_systems, processes
from idrc_jax.training import loop

INDICES = np.arange(60)
SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}


def die_after(count, function, number=signal.SIGKILL):
    """The function, but after `count` calls the process sends itself a signal."""
    calls = 0

    def counted(*arguments, **more):
        nonlocal calls
        answer = function(*arguments, **more)
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return answer

    return counted


def certify(workdir, index="-1", count="0", kill_after="0", address=""):
    """Certify 60 images of a linear classifier, some rows at a time, as worker `index` of `count`."""
    job._SECONDS_A_PIECE = 1e-9
    if int(kill_after):
        results.ResultsFile.append = die_after(int(kill_after), results.ResultsFile.append)
    with processes.joined(address, int(index), int(count)):
        worker = batch_systems.this_worker() if address else batch_systems.this_worker(int(index), int(count))
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
        dataset = data.from_arrays(images, generator.integers(0, 3, 60), name="made", classes=3)
        params = np.random.default_rng(7).normal(size=(3, 16)).astype(np.float32)
        classifier = Classifier(linear_logits, jax.numpy.asarray(params), 3, (4, 4, 1))
        settings = certification.Settings(Fixed(n0=20, n=300), seed=4)
        scheme = schemes.Gaussian(sigma=0.5)
        Path(workdir).mkdir(exist_ok=True)
        certification.certify_dataset(
            classifier, scheme, dataset, INDICES, settings, Path(workdir), chunk=16, worker=worker
        )
        print(f"{worker.index} of {worker.count} on {jax.local_device_count()} of {jax.device_count()}")


def certify_command(cue, *arguments):
    """`certify.py`, in pieces of a chunk.

    Args:
      cue: how to end and after how many rows, kill:K or interrupt:K.
    """
    how, _, count = cue.partition(":")
    job._SECONDS_A_PIECE = 1e-9
    results.ResultsFile.append = die_after(int(count), results.ResultsFile.append, SIGNALS[how])
    sys.argv = ["certify.py", *arguments]
    certify_main.main()


def train(cue, *arguments):
    """`train.py` that talks and saves after each step and prints a hash of this process's copy of the state.

    Args:
      cue: none, fail (before the first step), or how to end and after which step: kill:K or interrupt:K.
    """
    how, _, when = cue.partition(":")
    loop._IN_FLIGHT = 1
    jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=10)
    save = training.TrainingCheckpoints.save

    def watched(self, step, state):
        save(self, step, state)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(state):
            digest.update(np.asarray(leaf.addressable_shards[-1].data).tobytes())
        print(f"step {step} {digest.hexdigest()}", flush=True)
        if when and step == int(when):
            os.kill(os.getpid(), SIGNALS[how])

    def failing(self):
        raise OSError("No space left on device")

    training.TrainingCheckpoints.save = watched
    if how == "fail":
        training.TrainingCheckpoints.latest = failing
    sys.argv = ["train.py", *arguments]
    train_main.main()


if __name__ == "__main__":
    {"certify": certify, "certify_command": certify_command, "train": train}[sys.argv[1]](*sys.argv[2:])
