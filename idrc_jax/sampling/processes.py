"""Processes that train one network together, and what they must agree on."""

import atexit
import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from idrc_jax.sampling.batch_systems import this_worker


@contextlib.contextmanager
def joined(cluster: str, index: int = -1, count: int = 0) -> Iterator[None]:
    """Be one of the processes of `jax.distributed`; for entry points only, before JAX is used.

    Args:
      cluster: empty for a process alone, "auto" for the Slurm, Open MPI or Kubernetes job that JAX finds, else
        HOST:PORT at which process 0 is to be reached.
      index, count: of the processes, as in `this_worker`.

    A process that fails leaves at once, and JAX ends the others; when all succeed they wait for each other.
    """
    if not cluster:
        yield
        return
    if cluster == "auto":
        try:
            jax.distributed.initialize(num_processes=count or None, process_id=None if index == -1 else index)
        except ValueError as error:
            raise ValueError(
                f"Expected a Slurm, Open MPI or Kubernetes job for train.distributed=auto, got none: {error} "
                "Set --config.train.distributed=HOST:PORT of process 0."
            ) from error
    else:
        worker = this_worker(index, count)
        jax.distributed.initialize(cluster, worker.count, worker.index)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has set a handler that only takes note
    try:
        yield
    except Exception:
        atexit.register(_leave)
        raise


def _leave() -> None:
    """End a failed process without JAX's farewell, which waits minutes for others that wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def any_wishes(*wishes: bool) -> list[bool]:
    """For each wish, whether any process has it; every process must ask at the same point, with no work in flight."""
    return multihost_utils.process_allgather(np.asarray(wishes)).any(axis=0).tolist()


def total(values: np.ndarray) -> np.ndarray:
    """Sum the values, of one shape, of all processes; every one must ask at the same point, with no work in flight."""
    return multihost_utils.process_allgather(np.asarray(values)[None], tiled=True).sum(axis=0)


def require_same(what: str, value: object) -> None:
    """ValueError on every process unless all have the same value, which is made of JSON's types."""
    text = json.dumps(value, sort_keys=True)
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    others = np.flatnonzero((digests != digests[0]).any(axis=1)).tolist()
    if others:
        raise ValueError(f"Expected {what} to be the same on all processes, got others than process 0's on {others}.")
