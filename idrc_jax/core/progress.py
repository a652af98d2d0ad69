"""What a long job tells its user and its job queue: a bar with an ETA, a status file."""

import sys
from pathlib import Path

from tqdm import tqdm

from idrc_jax.core import files


class Progress:
    """A progress bar on standard error: rate and time left; a line now and then when that is not a terminal."""

    def __init__(self, title: str, total: int, done: int, *, unit: str, show: bool = True) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit=f" {unit}",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=not show,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def update(self, done: int, **shown: float) -> None:
        """Set the work done so far and what to show beside it."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def write_status(path: Path, job: str, *, done: int, total: int, **measured: float) -> None:
    """Write the machine-readable status of a job.

    Args:
      path: replaced whole.
      job: what the job is called.
      done, total: units of work; it is finished where they are the same.
      measured: what its last call measured.
    """
    files.write_json(path, {"job": job, "finished": done >= total, "done": done, "total": total, **measured})


def require_progress(before: int, after: int, max_minutes: float) -> None:
    """ValueError if a call's time limit left no room for any work: called again and again, it would never end."""
    if after == before:
        raise ValueError(f"Expected max_minutes to leave room for any work after start-up, got {max_minutes}.")
