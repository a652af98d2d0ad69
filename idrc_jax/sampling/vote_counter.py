"""Votes of a job's images, draw by draw: started on the devices at once, read when they are needed."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.sampling import random_keys
from idrc_jax.sampling.execution import Execution, voter_numbers
from idrc_jax.sampling.votes import SLOTS, check_indices, dispatch_votes


class Draw(NamedTuple):
    """A dispatch: n[i] samples from first[i] on of the image at positions[i], all in one stage, under one level and of
    one network."""

    stage: int
    level: int
    positions: list[int]
    first: list[int]
    n: list[int]


class VoteCounter:
    """Counts votes of some images; knows nothing of plans.

    Args:
      execution: the classifier, its devices and its chunk.
      scheme: whose law the noise has.
      images: float32 [N, H, W, C] in [0, 1].
      levels: [N, levels], their noise levels (see `schemes.host_levels`).
      indices: integers [N], which name the noise.
      key: the run's typed key; each stage of each level uses a branch of its own.

    Attributes:
      slots: images that a draw can hold.
      stride: samples of all devices' chunks together; draws of whole strides waste nothing.
    """

    def __init__(
        self,
        execution: Execution,
        scheme: Scheme,
        images: np.ndarray,
        levels: np.ndarray,
        *,
        indices: np.ndarray,
        key: jax.Array,
    ) -> None:
        placed = execution.placed()
        self._voters, self._numbers = placed.voters(scheme), voter_numbers(placed.classifier, scheme, images)
        self._scheme = scheme
        self._images, self._levels, self._indices = images, levels, check_indices(indices, images)
        self._key, self._keys = key, {}
        self.slots, self.stride = SLOTS, execution.stride

    def voter(self, position: int, level: int) -> int:
        """Which network votes for the image at a position under a level."""
        return int(self._numbers[position, level])

    def classes(self, voter: int) -> int:
        """K, of a network that votes."""
        return self._voters[voter].classifier.classes

    def start(self, draw: Draw) -> jax.Array:
        """Start a draw and return at once int32 [devices, slots, K + 1], to be summed over the first axis.

        The slots that the draw leaves empty are filled with its first image and get no samples, so that every draw
        runs the same program.
        """
        empty = self.slots - len(draw.positions)
        chosen = draw.positions + [draw.positions[0]] * empty
        return dispatch_votes(
            self._voters[self.voter(draw.positions[0], draw.level)],
            self._scheme,
            self._images[chosen],
            self._levels[chosen, draw.level],
            indices=self._indices[chosen],
            first=np.asarray(draw.first + [0] * empty),
            n=np.asarray(draw.n + [0] * empty),
            key=self._key_of(random_keys.stage_of_level(draw.stage, draw.level)),
        )

    def _key_of(self, stage: int) -> jax.Array:
        """The key of a stage, made once."""
        if stage not in self._keys:
            self._keys[stage] = random_keys.stage(self._key, stage)
        return self._keys[stage]

    def samples_per_second(self) -> float:
        """Compile, then time a few chunks of the first image, of each network that votes for it."""
        every = range(self._numbers.shape[1])
        levels = {id(self._voters[self.voter(0, level)].classifier): level for level in every}.values()

        def draw(samples: int, levels: Iterable[int]) -> None:
            for level in levels:
                jax.block_until_ready(self.start(Draw(random_keys.ESTIMATION, level, [0], [0], [samples])))

        draw(self.stride, every)  # tables of exact noise differ in size, and so do programs
        begun = time.perf_counter()
        draw(4 * self.stride, levels)
        return 4 * self.stride * len(levels) / (time.perf_counter() - begun)
