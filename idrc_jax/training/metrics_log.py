"""What training measures: `metrics.csv` and TensorBoard."""

import csv
import io
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import optax

from idrc_jax.core import extras, files

METRICS = "metrics.csv"
_ALWAYS = ("epoch", "step", "lr")  # what every row has


class Board(Protocol):
    """What is used of tensorboardX's `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """The means of each epoch and the scores on held-out images, in `metrics.csv` and for TensorBoard.

    An epoch in which training went on from a checkpoint has no means and no seconds: its first steps are not known.

    Args:
      workdir: the run's folder; None writes nothing.
      names: of the metrics; the first is the loss.
      scores: names of the scores on held-out images, which an epoch may lack.
      step: steps done; rows of later ones are dropped.
      epoch_steps: steps of an epoch.
      lr: the learning rate of each step.
      tensorboard: whether to write for TensorBoard, too, in the folder `tensorboard`.
    """

    def __init__(
        self,
        workdir: Path | None,
        names: Sequence[str],
        scores: Sequence[str],
        step: int,
        epoch_steps: int,
        lr: optax.Schedule,
        tensorboard: bool = False,
    ) -> None:
        self._names, self._scores = names, scores
        self._path = workdir / METRICS if workdir else None
        self._columns = (*_ALWAYS, *names, *scores, "seconds")
        self._rows = [row for row in self._read() if row["step"] <= step]
        self._epoch_steps, self._lr, self.step = epoch_steps, lr, step
        self._values: list[Sequence[float]] = []
        self._last_loss = math.nan
        self._started = time.monotonic()
        self._board = summary_writer()(str(workdir / "tensorboard")) if workdir and tensorboard else None

    @property
    def shown(self) -> dict[str, float]:
        """What to show beside the work done: the mean loss of this epoch so far (or of the last), the last scores."""
        loss = float(np.mean([values[0] for values in self._values])) if self._values else self._last_loss
        scored = [row for row in self._rows if row.keys() >= set(self._scores)]
        return {"loss": loss, **({name: scored[-1][name] for name in self._scores} if scored else {})}

    def add(self, values: Sequence[float]) -> None:
        """Note what a step has measured."""
        self.step += 1
        self._values.append(values)
        if self.step % self._epoch_steps == 0:
            self._end_epoch()

    def _end_epoch(self) -> None:
        epoch, rate = self.step // self._epoch_steps, float(np.asarray(self._lr(self.step - 1)))
        row: dict[str, float] = dict(zip(_ALWAYS, (epoch, self.step, rate), strict=True))
        means = np.mean(self._values, axis=0).tolist()
        if len(self._values) == self._epoch_steps:
            row |= dict(zip(self._names, means, strict=True)) | {"seconds": time.monotonic() - self._started}
        self._rows.append(row)
        self._last_loss = means[0]
        self._tell(("lr", *self._names))
        self._values, self._started = [], time.monotonic()

    def add_scores(self, scores: Sequence[float]) -> None:
        """Note the scores after the epoch that has just ended."""
        self._rows[-1] |= dict(zip(self._scores, scores, strict=True))
        self._tell(self._scores)
        self._started = time.monotonic()

    def _tell(self, names: Sequence[str]) -> None:
        """Write the file, and those of these values that the last epoch has for TensorBoard."""
        self.flush()
        row = self._rows[-1]
        if self._board:
            for name in [one for one in names if one in row]:
                self._board.add_scalar(name, row[name], int(row["epoch"]))

    def flush(self) -> None:
        """Write the CSV file anew, whole or not at all."""
        if self._path is None:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        files.write_text(self._path, text.getvalue())

    def _read(self) -> list[dict[str, float]]:
        """The rows of the file, whose columns may be fewer; one that is not whole is left out, with one warning."""
        if self._path is None or not self._path.is_file():
            return []
        head, *lines = self._path.read_text(errors="replace").splitlines(keepends=True) or [""]
        columns = head.rstrip().split(",")
        least, most = set(_ALWAYS), set(self._columns)
        rows = [row for line in lines if (row := _row(columns, line)) and least <= row.keys() <= most]
        if not head.endswith("\n") or len(rows) != len(lines):
            warnings.warn(f"Lines of {self._path} that are not whole are left out.", stacklevel=2)
        return rows

    def close(self) -> None:
        if self._board:
            self._board.close()


def _row(columns: Sequence[str], line: str) -> dict[str, float] | None:
    """A line of the log without its empty cells, None for one that is cut off or holds something else than numbers."""
    try:
        cells = dict(zip(columns, line.removesuffix("\n").split(","), strict=True))
        values = {name: int(cell) if name in ("epoch", "step") else float(cell) for name, cell in cells.items() if cell}
    except ValueError:
        return None
    return values if line.endswith("\n") else None


def summary_writer() -> Callable[[str], Board]:
    """Import tensorboardX's writer, which is made of a folder's name; ValueError where it is not installed."""
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"Expected tensorboardX for train.tensorboard, got none: {extras.how_to_get('tensorboard')}."
        ) from None
    return SummaryWriter
