"""Kill certification, training and audit at random moments, again and again: do they end as if nobody had?

Command:   make kills KILLS=100
Hardware:  any; about 4 seconds a kill on one core.

Each job runs whole once. Then it is begun in a folder of its own, killed (SIGKILL) at a moment that is uniform over the
time of the whole one, and begun again by the same command, until it comes to its end; and so on, until there were as
many kills as were asked for. After each kill what is on the disk must be readable and a part of what the whole job
wrote; in the end it must be the same, but for the seconds that each image took: every row once, weights to the last
byte. Processes are forked from one that has imported the commands, so that most kills fall into work.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idrc_jax import results
from idrc_jax.commands import audit, certify, train
from idrc_jax.results import audit_rows

_DATA = ("--config.data.name=synthetic", "--config.devices=1")
_TRAINING = (*_DATA, "--config.train.epochs=3", "--config.train.checkpoint_minutes=0")
_VOTES = ("--config.data.skip=1", "--config.certify.n=2000", "--config.chunk=256")
_JOBS = ("training", "certification", "audit")
_SEARCH = ("images=12", "votes=400", "steps=4", "screening=100", "fractions=1.0,4.0", "saved=4")


@dataclass(frozen=True)
class Job:
    """A command that goes on where it was stopped.

    Attributes:
      main: of the command.
      arguments: (its folder) -> its command line.
      lines: (its folder) -> what it has written so far that must be there once, and the same in every run.
      start: what its folder holds before, empty for nothing.
    """

    main: Callable[[], None]
    arguments: Callable[[Path], list[str]]
    lines: Callable[[Path], list[str]]
    start: Path | None = None


def jobs(trained: Path, certified: Path) -> dict[str, Job]:
    """The jobs, each of which needs those before it: a run that is trained, and one that is certified."""
    weights = f"--config.model.weights={trained}"
    return {
        "training": Job(train.main, lambda at: [f"--workdir={at}", *_TRAINING], _training),
        "certification": Job(certify.main, lambda at: [f"--workdir={at}", weights, *_DATA, *_VOTES], _rows),
        "audit": Job(
            audit.main,
            lambda at: [str(at), weights, "--config.devices=1", *(f"--config.audit.{one}" for one in _SEARCH)],
            _findings,
            certified,
        ),
    }


def _rows(folder: Path) -> list[str]:
    """The rows of a certification without their seconds."""
    if not (folder / results.NAME).is_file():
        return []
    lines = (line.split("\t") for line in _whole_lines(folder / results.NAME))
    return ["\t".join([*cells[:5], *cells[6:]]) for cells in lines]


def _training(folder: Path) -> list[str]:
    """The steps of the log, and the weights once they are there."""
    log = folder / "metrics.csv"
    lines = [",".join(line.split(",")[:3]) for line in _whole_lines(log)] if log.is_file() else []
    weights = folder / "weights.safetensors"
    return [*lines, *([weights.read_bytes().hex()] if weights.is_file() else [])]


def _findings(folder: Path) -> list[str]:
    """The rows of an audit, and its pictures once it has ended."""
    lines = _whole_lines(folder / audit_rows.NAME) if (folder / audit_rows.NAME).is_file() else []
    images = audit_rows.read_images(folder)
    if (audit_rows.read_manifest(folder) or {}).get("finished"):
        lines += sorted(f"{name} {np.asarray(value).tobytes().hex()}" for name, value in images.items())
    return lines


def _whole_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1]


def _start(job: Job, folder: Path) -> int:
    """Run the command in a process of its own: its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.argv = ["idrc", *job.arguments(folder)]
        job.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_whole(job: Job, folder: Path) -> float:
    """Run a job to its end: seconds."""
    _prepare(job, folder)
    started = time.monotonic()
    _, status = os.waitpid(_start(job, folder), 0)
    if status:
        raise RuntimeError(f"Expected {folder.name} to end well, got: {_log(folder)}")
    return time.monotonic() - started


def killed(job: Job, folder: Path, whole: list[str], seconds: float, draw: random.Random, most: int) -> int:
    """Kill a job, at most so often, until it has come to its end: how often it was killed."""
    _prepare(job, folder)
    kills = 0
    while True:
        number = _start(job, folder)
        if kills < most:
            time.sleep(draw.uniform(0, seconds))
            os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
        found = job.lines(folder)
        if status == 0:
            if sorted(found) != sorted(whole):
                raise RuntimeError(f"Expected in {folder} after {kills} kills what a whole run has, got another.")
            return kills
        if status != signal.SIGKILL:
            raise RuntimeError(f"Expected {folder} to go on after {kills} kills, got: {_log(folder)}")
        kills += 1
        lost = set(found) - set(whole)
        if lost or len(set(found)) != len(found):
            raise RuntimeError(f"Expected in {folder} after kill {kills} a part of a whole run, got another.")


def _prepare(job: Job, folder: Path) -> None:
    if job.start:
        shutil.copytree(job.start, folder)


def _log(folder: Path) -> str:
    return (folder.parent / f"{folder.name}.log").read_text()[-2000:]


def main() -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.partition("\n")[0])
    flags.add_argument("--kills", type=int, default=99, help="in all, as many of each job")
    flags.add_argument("--jobs", nargs="+", choices=_JOBS, default=_JOBS, help="which are killed")
    flags.add_argument("--seed", type=int, default=0, help="of the moments")
    flags.add_argument("--out", type=Path, help="folder for the runs, which stay there; by default they do not")
    asked = flags.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as made:
        out = asked.out or Path(made)
        out.mkdir(parents=True, exist_ok=True)
        wholes = {name: out / name for name in _JOBS}
        for name, job in jobs(wholes["training"], wholes["certification"]).items():
            seconds = run_whole(job, wholes[name])
            whole, draw = job.lines(wholes[name]), random.Random(f"{asked.seed} {name}")
            if name not in asked.jobs:
                continue
            wanted, kills, runs = (asked.kills + asked.jobs.index(name)) // len(asked.jobs), 0, 0
            while kills < wanted:
                runs += 1
                kills += killed(job, out / f"{name}-{runs}", whole, seconds, draw, wanted - kills)
                print(f"{name}: {kills} of {wanted} kills", file=sys.stderr, flush=True)
            told = f"{name}: killed {kills} times in {runs} runs of {seconds:.1f} s, each of which ended with all of"
            print(f"{told} the {len(whole)} lines of a run that was not killed.", flush=True)


if __name__ == "__main__":
    main()
