"""What a network in training is judged by: training images that it never sees, clean and under the training's noise.

They are classified as certification classifies (`sampling.votes`), by the network as it is made for inference. Which
images are held out, and the noise that each of them gets at every look, follow from the seed alone.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from scipy.special import ndtri

from idrc_jax import data
from idrc_jax.certificates.schemes import Scheme, check_pixels, host_scale
from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.data import Dataset
from idrc_jax.models import Arrays, Classifier, Description
from idrc_jax.sampling import devices, execution, processes, random_keys, votes
from idrc_jax.training.training_votes import Inference

_MOST = 500  # images, unless the user names a number


class Scores(NamedTuple):
    """What a look finds of the held-out images, and of p, the share of an image's noisy copies classified as labelled.

    Attributes:
      accuracy_clean: share of the images classified as labelled.
      accuracy_noisy: mean of p.
      above_half, above_99: shares of the images with p > 1/2 and p > .99.
      acr: an estimate, no certificate, of the average certified radius in pixel units: the mean of level times the
        standard normal quantile of (k + 1/2) / (n + 1), if that is > 0, for k of n copies. It grows with n, as p near 1
        can then be told, so compare it at the same n. 0 for noise that is not Gaussian.
    """

    accuracy_clean: float
    accuracy_noisy: float
    above_half: float
    above_99: float
    acr: float


def scores(clean: np.ndarray, noisy: np.ndarray, levels: np.ndarray, samples: int) -> Scores:
    """Score N images.

    Args:
      clean: int [N], 1 for an image that is classified as labelled, else 0.
      noisy: int [N], how many of its noisy copies are.
      levels: [N], its noise level; 0 where no radius is known.
      samples: copies of each image.
    """
    p = noisy / samples
    radii = levels * np.maximum(ndtri((noisy + 0.5) / (samples + 1)), 0)
    return Scores(*(float(np.mean(one)) for one in (clean, p, p > 0.5, p > 0.99, radii)))


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


def unseen(description: Description, train_set: Dataset) -> np.ndarray:
    """List the images of a set that a network, as its description says, was not trained on: ascending indices.

    They are those that its training held out, and that of all weights that it started from, where that was on this
    set; none where it does not say on what these were trained. Of an ensemble those that no member was trained on.
    """
    found, known = np.arange(len(train_set)), train_set.fingerprint()
    for network in description.get("members", [description]):
        training = network.get("training")
        while training:
            if training.get("data_sha256", known) == known:
                own = held_out(training.get("seed", 0), training.get("held_out", 0), len(train_set))
                found = np.intersect1d(found, own)
            training = training.get("start")
    return found


def warn_of_seen(who: str, description: Description, out: np.ndarray, train_set: Dataset) -> None:
    """Warn of those held-out images that a network (or one that it started from) may have been trained on."""
    seen = np.setdiff1d(out, unseen(description, train_set))
    if len(seen):
        told = f"{who} may have been trained on {len(seen)} of the {len(out)} images that are held out"
        warnings.warn(f"{told}: their scores are not those of unseen images.", stacklevel=2)


def _key(seed: int, branch: int) -> jax.Array:
    """The key of what is drawn for validation: 0, the choice of images, or 1, their noise."""
    return jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.VALIDATION), branch)


class Validator:
    """Scores a network in training on held-out images; called by every process at the same step, each takes a share.

    A look costs 1 + `samples` classifications an image and leaves the training's state alone.

    Args:
      images: uint8 or float32 [M, H, W, C], those held out.
      labels: int32 [M], theirs.
      indices: [M], of the same in the training set, which name their noise.
      scheme: the training's noise, at its level.
      seed: of the training.
      mesh: the training's devices.
      samples: noisy copies of each image.
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
        samples: int,
        classifier_of: Callable[[Arrays], Classifier],
    ) -> None:
        self._share = slice(jax.process_index(), None, jax.process_count())
        self._images, self._labels, self._indices = data.to_unit(images), labels, indices
        self._scheme, self._key, self._mesh = scheme, _key(seed, 1), devices.local(mesh)
        check_pixels(scheme, self._images)
        _, self._levels = host_scale(scheme, self._images)
        self._samples = validate.count("validate_samples", samples, 1)
        self._inference = Inference(classifier_of, self._mesh)

    def __call__(self, tensors: Arrays) -> Scores:
        """Score the network that has these parameters and running statistics.

        Raises:
          ValueError: a value that is not finite once batch normalisation is folded in.
        """
        right = np.zeros((2, len(self._labels)), int)
        labels = self._labels[self._share]
        if len(labels):
            by = self._inference(tensors)
            started = [self._votes(by, np.zeros_like(self._levels), 1), self._votes(by, self._levels, self._samples)]
            own = np.arange(len(labels)), labels
            right[:, self._share] = [np.asarray(one).sum(axis=0)[own] for one in started]
        clean, noisy = processes.total(right)
        levels = self._levels if self._scheme.law == "normal" else np.zeros_like(self._levels)
        return scores(clean, noisy, levels, self._samples)

    def _votes(self, by: execution.Execution, levels: np.ndarray, n: int) -> jax.Array:
        images, levels, indices = (one[self._share] for one in (self._images, levels, self._indices))
        return votes.dispatch_votes(by, self._scheme, images, levels, indices=indices, first=0, n=n, key=self._key)


def evaluate(classifier: Classifier, train_set: Dataset, scheme: Scheme, mesh: Mesh, samples: int) -> Scores:
    """Score a trained classifier on the images that its training held out, as the training's last look did.

    Warns of those that weights that it started from were trained on.

    Args:
      classifier: behind its denoiser, if it was trained behind one.
      train_set: the set that it was trained on, those held out among them.
      scheme: its training's noise.
      mesh: the devices.
      samples: noisy copies of each image.

    Raises:
      ValueError: a classifier that does not say which images its training held out, or those of another set.
    """
    training = classifier.description.get("training", {})
    if not training.get("held_out") or "seed" not in training:
        raise ValueError(
            "Expected a network whose training held images out (train.held_out), or several of one seed, got "
            f"{classifier!r}, of which no image is known that it was not trained on."
        )
    if training["data_sha256"] != train_set.fingerprint():
        raise ValueError(
            f"Expected the images that the network was trained on, of {training['data']}, got others in "
            f"{train_set.source}: set data.dir."
        )
    out = held_out(training["seed"], training["held_out"], len(train_set))
    warn_of_seen("Weights that the network started from", classifier.description, out, train_set)
    images, labels = train_set.images[out], train_set.labels[out]
    validator = Validator(images, labels, out, scheme, training["seed"], mesh, samples, lambda _: classifier)
    return validator({})
