"""What a loss is: settings, and a pure function of the network, its tensors and a noisy batch."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core import validate
from idrc_jax.core.json_values import Json
from idrc_jax.models import Tensors

BySigma = Mapping[float, dict[str, Any]]  # settings by noise level


class Network(NamedTuple):
    """The network that is trained, as a loss calls it, of noisy images float32 [R, H, W, C].

    Attributes:
      train: (params, stats, images) -> (logits float32 [R, classes], new running statistics), by the statistics of
        these very images.
      fixed: (params, stats) -> (images -> logits), each image's by the running statistics alone: what attacks climb.
    """

    train: Callable[[Tensors, Tensors, jax.Array], tuple[jax.Array, Tensors]]
    fixed: Callable[[Tensors, Tensors], Callable[[jax.Array], jax.Array]]


class Batch(NamedTuple):
    """N images and m noises of each.

    Attributes:
      images: float32 [N, H, W, C] in [0, 1], augmented.
      labels: int32 [N].
      noise: float32 [N * m, H, W, C]; rows i * m to i * m + m - 1 are image i's.
      levels: float32 [N], each image's noise level in pixel units.
      teacher: float32 [N, classes], a smoothed network's prediction of each image; None for losses without a teacher.
    """

    images: jax.Array
    labels: jax.Array
    noise: jax.Array
    levels: jax.Array
    teacher: jax.Array | None = None

    @property
    def noises(self) -> int:
        """m."""
        return self.noise.shape[0] // self.images.shape[0]


class Outcome(NamedTuple):
    """What a loss finds beside its value: new running statistics, and the accuracy on its noisy images."""

    stats: Tensors
    accuracy: jax.Array


@dataclass(frozen=True)
class Loss:
    """Settings of a loss; a call computes it.

    Attributes:
      name: what configs and descriptions call it.
      published: by noise level, the settings published for it where they depend on it.
      needs_teacher: whether a batch must have a teacher's predictions.
      noises: noisy copies m of each image.
      label_smoothing: share of each label's weight that goes to all classes alike, in [0, 1).
    """

    name: ClassVar[str]
    published: ClassVar[BySigma] = {}
    needs_teacher: ClassVar[bool] = False
    noises: int = 1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        validate.count("noises", self.noises, 1)
        validate.fraction("label_smoothing", self.label_smoothing)

    def __call__(
        self, network: Network, params: Tensors, stats: Tensors, batch: Batch, key: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        """Compute the batch's loss, float32 [], and what else it finds.

        Args:
          network, params, stats: what is trained.
          batch: with `noises` of each image.
          key: a typed key of this step.
          epoch: int32 [], the epoch's number from 0, which schedules follow.
        """
        raise NotImplementedError

    def check(self, scheme: Scheme, sigma_low: float) -> None:
        """SettingError for a scheme, or a range of levels down to `sigma_low`, for which the loss makes no sense."""

    @property
    def changes(self) -> tuple[int, ...]:
        """The epochs, from 0 and ascending, from which on `at` gives another loss than before."""
        return ()

    def at(self, epoch: int) -> "Loss":
        """Give the loss that is computed in an epoch: another where an epoch asks for other passes."""
        return self

    def describe(self) -> Json:
        """The name and all settings, as a network's description has them."""
        return {"name": self.name, **asdict(self)}


def warmed_up(epoch: jax.Array, epochs: float) -> jax.Array:
    """Rise from 1 / `epochs` in the first epoch to 1, float32 []; 1 for none."""
    return jnp.minimum((epoch + 1) / epochs, 1.0) if epochs else jnp.ones(())
