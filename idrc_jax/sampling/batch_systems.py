"""Which worker this process is, by the variables of a batch system, and which images are its share.

Workers exchange nothing. Who certifies which image follows from the images' indices and the worker's number, so they
may start, die and start again at any moment.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True)
class Worker:
    """Worker `index` of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"Expected 0 <= workers.index < workers.count, got {self.index} of {self.count}.")

    def share(self, indices: np.ndarray) -> np.ndarray:
        """Its part of the images with these data-set indices, in their order.

        Guarantee: a function of the set of indices, `index` and `count` alone. The shares of one count are disjoint,
        together everything, and as large as each other up to one image. What a share of another count left undone is
        spread over all of them, as by lot.
        """
        lots = {index: hashlib.sha256(f"{self.count} {index}".encode()).digest() for index in indices.tolist()}
        return indices[np.isin(indices, sorted(lots, key=lots.__getitem__)[self.index :: self.count])]


ALONE = Worker()


def this_worker(index: int = -1, count: int = 0, environment: Mapping[str, str] = os.environ) -> Worker:
    """The worker that this process is.

    Args:
      index, count: -1 and 0 are found: in `jax.distributed` where it is initialised; else in the variables of a Slurm
        array, of a Slurm job step, or of both (each task of each element of the array is a worker); else the index in
        those of an indexed Kubernetes job, which do not tell the count; else there is one worker.

    Raises:
      ValueError: only one of the two is known, they do not fit, or the array's numbers are not consecutive.
    """
    found_index, found_count = _found(environment) if index == -1 or count == 0 else (None, None)
    if index == -1 and count == 0 and found_index is None:
        return ALONE
    known_index, known_count = found_index if index == -1 else index, count or found_count
    if known_index is None or known_count is None:
        missing = "index" if known_index is None else "count"
        raise ValueError(
            f"Expected workers.index and workers.count, got {known_index} and {known_count}: set "
            f"--config.workers.{missing}, which nothing here tells."
        )
    return Worker(known_index, known_count)


def _found(environment: Mapping[str, str]) -> tuple[int | None, int | None]:
    if jax.distributed.is_initialized():
        return jax.process_index(), jax.process_count()
    if "SLURM_ARRAY_TASK_ID" in environment or "SLURM_STEP_NUM_TASKS" in environment:
        return _slurm(environment)
    if "JOB_COMPLETION_INDEX" in environment:
        return int(environment["JOB_COMPLETION_INDEX"]), None
    return None, None


def _slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    """SLURM_NTASKS is not asked: a batch script that starts one process has it, too."""
    index, count = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        task, first, last, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
        )
        if last - first != count - 1:
            raise ValueError(
                f"Expected a Slurm array of consecutive numbers, got {count} from {first} to {last}: submit "
                "--array=0-7, say, or set --config.workers.index and --config.workers.count."
            )
        index = task - first
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    return index * tasks + (int(environment["SLURM_PROCID"]) if tasks > 1 else 0), count * tasks
