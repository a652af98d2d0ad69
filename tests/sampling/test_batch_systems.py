import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idrc_jax.sampling import processes
from idrc_jax.sampling.batch_systems import Worker, this_worker

INDICES = np.arange(0, 10_000, 20)


@given(st.sets(st.integers(0, 2**32 - 1), max_size=60), st.integers(1, 9), st.randoms())
def test_shares_are_disjoint_together_everything_and_equally_large(indices, count, shuffle):
    indices = list(indices)
    shares = [Worker(index, count).share(np.array(indices, np.int64)) for index in range(count)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    shuffle.shuffle(indices)  # in another order the same shares, each in the order given
    for index, share in enumerate(shares):
        again = Worker(index, count).share(np.array(indices, np.int64)).tolist()
        assert again == [one for one in indices if one in set(share.tolist())]


def test_shares_stay_what_they_are():
    """Workers of different machines and Python versions must agree."""
    assert Worker(1, 3).share(np.arange(12)).tolist() == [4, 7, 8, 11]
    assert Worker().share(INDICES).tolist() == INDICES.tolist()


def test_what_one_share_leaves_is_spread_over_those_of_another_count():
    """Also where one count divides the other, as with every N-th image it would not be."""
    for before, after in itertools.permutations((2, 3, 4, 8), 2):
        left = set(Worker(before - 1, before).share(INDICES).tolist())
        parts = [len(left & set(Worker(index, after).share(INDICES).tolist())) for index in range(after)]
        assert min(parts) > 0.5 * len(left) / after


ARRAY = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "6", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        ((), {}, (0, 1)),
        ((2, 5), {}, (2, 5)),
        ((2, 5), {"JOB_COMPLETION_INDEX": "1", "SLURM_ARRAY_TASK_ID": "?"}, (2, 5)),
        ((), {"SLURM_ARRAY_TASK_ID": "5", **ARRAY}, (2, 4)),
        ((), {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6"}, (6, 8)),
        ((), {"SLURM_ARRAY_TASK_ID": "5", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1", **ARRAY}, (7, 12)),
        ((), {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),
        ((), {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1)),  # a batch script that starts one process
        ((-1, 7), {"JOB_COMPLETION_INDEX": "4"}, (4, 7)),
        ((-1, 9), {"SLURM_ARRAY_TASK_ID": "5", **ARRAY}, (2, 9)),
    ],
)
def test_index_and_count_are_the_users_or_found(asked, environment, expected):
    worker = this_worker(*asked, environment=environment)
    assert (worker.index, worker.count) == expected


def test_all_tasks_of_an_array_of_job_steps_are_different_workers():
    found = [
        this_worker(
            environment={
                "SLURM_ARRAY_TASK_ID": str(task), "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), **ARRAY,
            }
        )
        for task in range(3, 7)
        for rank in range(2)
    ]  # fmt: skip
    assert found == [Worker(index, 8) for index in range(8)]


@pytest.mark.parametrize(
    ("asked", "environment", "message"),
    [
        ((2, 2), {}, "0 <= workers.index < workers.count, got 2 of 2"),
        ((-2, 2), {}, "0 <= workers.index"),
        ((-1, 4), {}, "got None and 4: set --config.workers.index"),
        ((1, 0), {}, "got 1 and None: set --config.workers.count"),
        ((), {"JOB_COMPLETION_INDEX": "4"}, "got 4 and None: set --config.workers.count"),
        ((-1, 4), {"JOB_COMPLETION_INDEX": "4"}, "got 4 of 4"),
        ((), {"SLURM_ARRAY_TASK_ID": "5", **ARRAY, "SLURM_ARRAY_TASK_COUNT": "3"}, "consecutive numbers, got 3"),
    ],
)
def test_an_index_or_count_that_is_unknown_or_does_not_fit_is_refused(asked, environment, message):
    with pytest.raises(ValueError, match=message):
        this_worker(*asked, environment=environment)


def test_a_process_alone_has_its_own_wishes_and_agrees_with_itself():
    assert processes.any_wishes(True, False) == [True, False]
    processes.require_same("settings", {"a": (1, 2.5, None)})
    with processes.joined(""):
        pass
