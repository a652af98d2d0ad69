"""What a network in training is judged by: training images that it never sees, clean and under the training's noise.

They are classified as certification classifies (`sampling.votes`), by the network as it is made for inference. Which
images are held out, and the noise that each of them gets at every look, follow from the seed alone.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import data
from idrc_jax.certificates.schemes import Scheme, host_scale
from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Arrays, Classifier
from idrc_jax.sampling import devices, execution, processes, random_keys, votes

SAMPLES = 4  # noisy copies of an image

_MOST = 500  # images, unless the user names a number


class Scores(NamedTuple):
    """Shares of the held-out images, or of their noisy copies, that are classified as labelled."""

    accuracy_clean: float
    accuracy_noisy: float


def usual_count(images: int) -> int:
    """How many of a training set to hold out unless the user names a number: 500, or a tenth where that is fewer."""
    return min(_MOST, images // 10)


def held_out(seed: int, count: int, images: int) -> np.ndarray:
    """Choose the images to hold out: [count] ascending indices, drawn by the seed.

    Raises SettingError unless some of the `images` are left to train on.
    """
    if validate.count("held_out", count, 0) >= images:
        raise SettingError(f"Expected held_out < the {images} training images, got {count}.", "held_out")
    if not count:
        return np.empty(0, int)
    return np.sort(np.asarray(jax.random.permutation(_key(seed, 0), images))[:count])


def _key(seed: int, branch: int) -> jax.Array:
    """The key of what is drawn for validation: 0, the choice of images, or 1, their noise."""
    return jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.VALIDATION), branch)


class Validator:
    """Scores a network in training on held-out images; called by every process at the same step, each takes a share.

    A look costs 1 + `SAMPLES` classifications an image and leaves the training's state alone.

    Args:
      images: uint8 or float32 [M, H, W, C], those held out.
      labels: int32 [M], theirs.
      indices: [M], of the same in the training set, which name their noise.
      scheme: the training's noise, at its level.
      seed: of the training.
      mesh: the training's devices.
      classifier_of: makes the network's tensors the classifier that is judged.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        scheme: Scheme,
        seed: int,
        mesh: Mesh,
        classifier_of: Callable[[Arrays], Classifier],
    ) -> None:
        share = slice(jax.process_index(), None, jax.process_count())
        self._images, self._labels = data.to_unit(images[share]), labels[share]
        self._indices, self._count = indices[share], len(indices)
        self._scheme, self._key, self._mesh = scheme, _key(seed, 1), devices.local(mesh)
        _, self._levels = host_scale(scheme, self._images)
        self._classifier_of = classifier_of
        self._execution: execution.Execution | None = None

    def __call__(self, tensors: Arrays) -> Scores:
        """Score the network that has these parameters and running statistics.

        Raises:
          ValueError: a value that is not finite once batch normalisation is folded in.
        """
        right = np.zeros(2, int)
        if len(self._labels):
            by = self._executed(tensors)
            started = [self._votes(by, np.zeros_like(self._levels), 1), self._votes(by, self._levels, SAMPLES)]
            own = np.arange(len(self._labels)), self._labels
            right = np.asarray([np.asarray(one).sum(axis=0)[own].sum() for one in started])
        clean, noisy = processes.total(right).tolist()
        return Scores(clean / self._count, noisy / (SAMPLES * self._count))

    def _votes(self, by: execution.Execution, levels: np.ndarray, n: int) -> jax.Array:
        return votes.dispatch_votes(
            by, self._scheme, self._images, levels, indices=self._indices, first=0, n=n, key=self._key
        )

    def _executed(self, tensors: Arrays) -> execution.Execution:
        """How to run the network: as at the first look, with the params of this one, so that it compiles once."""
        classifier = self._classifier_of(tensors)
        if self._execution is None:
            self._execution = execution.unmeasured(classifier, self._mesh)
        by = self._execution
        return dataclasses.replace(by, classifier=dataclasses.replace(by.classifier, params=classifier.params))
