"""What the loop trains, and how one call of it goes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import optax
from jax.sharding import Mesh

from idrc_jax.core import validate
from idrc_jax.data import Dataset
from idrc_jax.models import Description, Tensors
from idrc_jax.training import moving_average
from idrc_jax.training.metrics_log import summary_writer
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State, Step
from idrc_jax.training.training_votes import WeightedDrawing
from idrc_jax.training.validation import Validator

_SEEN = ("seed", "data_sha256", "held_out", "start")  # what a training tells of the images that it has seen


class Facts(TypedDict, total=False):
    """What weights follow from: the entry "training" of their network's description, in the order of the file."""

    scheme: dict[str, object]
    loss: dict[str, object]
    teacher: dict[str, object]
    recipe: dict[str, object]
    ema: float
    seed: int
    data: str
    data_sha256: str
    held_out: int
    start: dict[str, object]
    denoiser: dict[str, object]
    statistics: dict[str, object]


@dataclass(frozen=True)
class Job:
    """What the loop trains: a network, images and a loss.

    Attributes:
      description: of the network (see `models.build`), with its compute `dtype`.
      train_set: the images, those held out among them.
      recipe: how long, how fast.
      seed: of all that is drawn.
      start: weights to start from (a file or a run's folder) instead of new ones; empty for none.
      comparable: entries of the description, "a.b" for one within another, in which those weights' must agree.
      facts: what the weights follow from beside these.
      data: what every step reads: arrays of the images that are not held out, and other networks' params.
      make_step: (optimiser, mesh, epoch) -> the step in that epoch, not jitted.
      metrics: names of what a step measures; the first is the loss.
      late_data: (mesh, workdir) -> what else every step reads, last; made when the run's folder is open.
      make_drawing: (mesh, workdir) -> what draws the images of an epoch; made when the run's folder is open; None where
        every epoch takes each image once.
      step_changes: the epochs from which on `make_step` makes another than before.
      averaged: whether the state's stats hold the `moving_average` of the weights, which then is what is kept.
      noises: noisy copies of an image in a batch.
      held_out: which images training never sees, [M] indices.
      make_validator: (mesh) -> what classifies those; None where none are.
    """

    description: Description
    train_set: Dataset
    recipe: Recipe
    seed: int
    start: str
    comparable: tuple[str, ...]
    facts: Facts
    data: tuple[object, ...]
    make_step: Callable[[optax.GradientTransformation, Mesh, int], Step]
    metrics: tuple[str, ...]
    late_data: Callable[[Mesh, Path], tuple[object, ...]] = lambda mesh, workdir: ()
    make_drawing: Callable[[Mesh, Path], WeightedDrawing] | None = None
    step_changes: tuple[int, ...] = ()
    averaged: bool = False
    noises: int = 1
    held_out: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    make_validator: Callable[[Mesh], Validator] | None = None

    @property
    def images(self) -> int:
        """Images of an epoch: all that are not held out."""
        return len(self.train_set) - len(self.held_out)

    @property
    def step_images(self) -> int:
        """Images of a step, each `noises` times in its batch."""
        return self.recipe.batch // self.noises

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return self.images // self.step_images

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.recipe.epochs * self.epoch_steps

    def describe(self, start_sha256: str, start_training: Description | None = None) -> Description:
        """Describe the trained network.

        Args:
          start_sha256: names the weights that it starts from, if it does.
          start_training: what those weights' description says of their training. Runs that go on are compared without
            it, as those that were begun before it was told do not know it.
        """
        facts: Facts = {
            **self.facts,
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "data": self.train_set.name,
            "data_sha256": self.train_set.fingerprint(),
        }
        if len(self.held_out):  # runs that were begun before any were say nothing of it
            facts["held_out"] = len(self.held_out)
        if start_sha256:
            seen = {name: value for name, value in (start_training or {}).items() if name in _SEEN}
            facts["start"] = {"weights_sha256": start_sha256, **seen}
        unknown = facts.keys() - Facts.__annotations__.keys()
        if unknown:  # it would neither be compared when a run goes on nor be told
            raise ValueError(
                f"Expected facts among {', '.join(Facts.__annotations__)}, got {', '.join(sorted(unknown))}."
            )
        return self.description | {"training": {name: facts[name] for name in Facts.__annotations__ if name in facts}}

    def kept(self, state: State) -> Tensors:
        """The tensors that are the result of training."""
        if not self.averaged:
            return state.params | state.stats
        _, average = moving_average.parted(state.params, state.stats)
        return average


@dataclass(frozen=True)
class RunOptions:
    """How one call of training goes; the weights do not follow from it.

    Attributes:
      max_minutes: the call stops cleanly before; 0 for no limit.
      checkpoint_minutes: between two checkpoints.
      validate_epochs: between two looks at the held-out images; the last epoch always ends with one.
      validate_samples: noisy copies of each held-out image.
      steps_per_dispatch: on accelerators; on the CPU a dispatch is one step.
      tensorboard: whether to write the metrics for TensorBoard, too.
    """

    max_minutes: float = 0.0
    checkpoint_minutes: float = 5.0
    validate_epochs: int = 1
    validate_samples: int = 16
    steps_per_dispatch: int = 50
    tensorboard: bool = False

    def __post_init__(self) -> None:
        validate.at_least("checkpoint_minutes", self.checkpoint_minutes, 0)
        validate.count("validate_epochs", self.validate_epochs, 1)
        validate.count("validate_samples", self.validate_samples, 1)
        validate.count("steps_per_dispatch", self.steps_per_dispatch, 1)
        if self.tensorboard:
            summary_writer()
