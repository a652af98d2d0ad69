"""Votes of a job's images, draw by draw: started on the devices at once, read when they are needed."""

import time
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
        return self._start(draw, self.voter(draw.positions[0], draw.level))

    def _start(self, draw: Draw, voter: int) -> jax.Array:
        empty = self.slots - len(draw.positions)
        chosen = draw.positions + [draw.positions[0]] * empty
        return dispatch_votes(
            self._voters[voter],
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

    def rates(self) -> list[float]:
        """Samples/s of each network that votes: a few chunks, timed when it is compiled; of one image of its own, or
        of the first if none of the images here is."""
        networks = list({id(one.classifier): voter for voter, one in enumerate(self._voters)}.values())

        def draw(samples: int, voter: int) -> None:
            own = np.argwhere(self._numbers == voter)
            position, level = map(int, own[0] if len(own) else (0, 0))
            jax.block_until_ready(self._start(Draw(random_keys.ESTIMATION, level, [position], [0], [samples]), voter))

        for voter in range(len(self._voters)):  # tables of exact noise differ in size, and so do programs
            draw(self.stride, voter)
        found = []
        for voter in networks:
            begun = time.perf_counter()
            draw(4 * self.stride, voter)
            found.append(4 * self.stride / (time.perf_counter() - begun))
        return found
