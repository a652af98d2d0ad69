"""Votes on the training images under their noise, of a teacher or of the network in training, for losses that ask.

They are counted as certification counts them (`sampling.votes`), and kept in the run's folder for the calls that go on.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import data
from idrc_jax.certificates.schemes import Scheme, host_scale
from idrc_jax.core import files, validate
from idrc_jax.core.json_values import Json
from idrc_jax.core.progress import Progress
from idrc_jax.core.validate import SettingError
from idrc_jax.data.imagenet import Images
from idrc_jax.losses import HardSamples
from idrc_jax.models import Arrays, Classifier, Description
from idrc_jax.sampling import devices, execution, processes, random_keys, votes
from idrc_jax.training.steps import weighted_order

_BLOCK = 500


@dataclass(frozen=True)
class Teacher:
    """A network whose smoothed predictions are learned from.

    Attributes:
      classifier: loaded from a file, which names it; with its denoiser, if it needs one.
      samples: noisy copies of each image that it votes on.
    """

    classifier: Classifier
    samples: int = 100

    def __post_init__(self) -> None:
        validate.count("teacher_samples", self.samples, 1)
        if not self.classifier.sha256:
            raise ValueError("Expected a teacher loaded from a file, which names it, got one without a hash.")

    def check(self, description: Description) -> None:
        """SettingError unless it classifies the images of the network that is to be trained into the same classes."""
        for name, mine in (("classes", self.classifier.classes), ("image_shape", list(self.classifier.image_shape))):
            if mine != description[name]:
                raise SettingError(f"Expected a teacher with {name} = {description[name]}, got {mine}.", "teacher")

    def describe(self) -> Json:
        """What a description of training says of it."""
        return {"weights_sha256": self.classifier.sha256, "samples": self.samples}

    def predictions(self, images: np.ndarray, scheme: Scheme, seed: int, mesh: Mesh, workdir: Path) -> np.ndarray:
        """Predict or, where a call before has done it, read: float32 [N, classes] of images [N, H, W, C].

        Called by every process at the same point; each takes a share, and process 0 writes the file.
        """

        def count() -> np.ndarray:
            by = execution.unmeasured(self.classifier, devices.local(mesh))
            return _count("teacher", by, images, scheme, self.samples, _key(seed, 2))

        counts = _kept(workdir / "teacher_votes.npy", (len(images), self.classifier.classes), count)
        return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)


@dataclass(frozen=True)
class Worths:
    """What levels are worth at the images that a router is trained on (`certification.router_targets`), in a teacher's
    place.

    Attributes:
      values: float32 [N, levels].
      described: where they are from.
    """

    values: np.ndarray
    described: Json

    def check(self, description: Description) -> None:
        """SettingError unless the network has an answer for each level."""
        if description["classes"] != self.values.shape[1]:
            raise SettingError(
                f"Expected a router with {self.values.shape[1]} answers, got {description['classes']}.", "classifier"
            )

    def describe(self) -> Json:
        """What a description of training says of it."""
        return self.described

    def predictions(self, images: np.ndarray, scheme: Scheme, seed: int, mesh: Mesh, workdir: Path) -> np.ndarray:
        """The values, of all images; ValueError for others."""
        if len(images) != len(self.values):
            raise ValueError(f"Expected {len(self.values)} images, none held out, got {len(images)}.")
        return self.values


class Inference:
    """How to run a network in training for inference: as at the first call, so that it compiles once.

    Args:
      classifier_of: makes the network's tensors a classifier.
      mesh: the devices of this process.
    """

    def __init__(self, classifier_of: Callable[[Arrays], Classifier], mesh: Mesh) -> None:
        self._classifier_of, self._mesh = classifier_of, mesh
        self._execution: execution.Execution | None = None

    def __call__(self, tensors: Arrays) -> execution.Execution:
        """With these parameters and running statistics."""
        classifier = self._classifier_of(tensors)
        if self._execution is None:
            self._execution = execution.unmeasured(classifier, self._mesh)
        by = self._execution
        return dataclasses.replace(by, classifier=dataclasses.replace(by.classifier, params=classifier.params))


class WeightedDrawing:
    """Draws the images of an epoch by what the network in training makes of them, as `losses.HardSamples` asks.

    The counts that it goes by lie in the folder `own_votes` of the run, so every epoch's draw can be made again.

    Args:
      loss: which images are kept, and how often they are drawn.
      images, labels: [N, H, W, C] and int [N], those that are trained on.
      scheme, seed: the training's.
      workdir: of the run.
      inference: how to run the network.
    """

    def __init__(
        self,
        loss: HardSamples,
        images: np.ndarray | Images,
        labels: np.ndarray,
        scheme: Scheme,
        seed: int,
        workdir: Path,
        inference: Inference,
    ) -> None:
        self._loss, self._images, self._labels = loss, images, np.asarray(labels)
        self._scheme, self._seed, self._folder, self._inference = scheme, seed, workdir / "own_votes", inference

    def classifications(self, epoch: int) -> int:
        """How many noisy images are classified when an epoch begins."""
        return len(self._labels) * sum(self._due(epoch))

    def _due(self, epoch: int) -> set[int]:
        """By how many copies of each image votes are counted when an epoch begins."""
        loss, since = self._loss, epoch - self._loss.start_epoch
        if since < 0 or since % loss.redraw_epochs:
            return set()
        return {loss.weight_samples} | (set() if since else {loss.threshold_samples})

    def count(self, epoch: int, tensors: Arrays) -> None:
        """Count what an epoch that begins needs, or see that a call before has done it.

        Called by every process at the same point; each takes a share, and process 0 writes the files.

        Args:
          epoch: from 0.
          tensors: the network's before the epoch.
        """
        for samples in sorted(self._due(epoch)):

            def right(samples: int = samples) -> np.ndarray:
                key = jax.random.fold_in(jax.random.fold_in(_key(self._seed, 3), epoch), samples)
                by = self._inference(tensors)
                counts = _count(f"votes of epoch {epoch}", by, self._images, self._scheme, samples, key)
                return counts[np.arange(len(counts)), self._labels].astype(np.int32)

            if jax.process_index() == 0:
                files.make_folder(self._folder)
            _kept(self._file(epoch, samples), self._labels.shape, right)

    def order(self, epoch: int) -> np.ndarray | None:
        """The images that an epoch draws, int32 [N]; None for one before any is left out.

        Raises:
          ValueError: no image is left, or what was counted is no longer there.
        """
        loss, since = self._loss, epoch - self._loss.start_epoch
        if since < 0:
            return None
        kept = loss.kept(self._read(loss.start_epoch, loss.threshold_samples))
        if not kept.any():
            raise SettingError(
                f"Expected images of which the network classifies a share of threshold = {loss.threshold} of the noisy "
                f"copies rightly at epoch {loss.start_epoch}, got none: lower it, or train longer before.",
                "threshold",
            )
        weights = loss.weights(self._read(epoch - since % loss.redraw_epochs, loss.weight_samples))
        return weighted_order(self._seed, epoch, np.where(kept, weights, 0.0))

    def _file(self, epoch: int, samples: int) -> Path:
        return self._folder / f"epoch_{epoch}_of_{samples}.npy"

    def _read(self, epoch: int, samples: int) -> np.ndarray:
        return _load(self._file(epoch, samples), self._labels.shape)


def _key(seed: int, branch: int) -> jax.Array:
    """The key of a teacher's votes, 2, or of the network's own, 3."""
    return jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.TRAINING), branch)


def _kept(file: Path, shape: tuple[int, ...], count: Callable[[], np.ndarray]) -> np.ndarray:
    """Read what was counted or, where there is no such file, count: a process its share, whose sum process 0 writes."""
    (known,) = processes.any_wishes(file.is_file())
    if known:
        return _load(file, shape)
    counts = processes.total(count())
    if jax.process_index() == 0:
        with files.replacing(file) as fresh, fresh.open("wb") as stream:
            np.save(stream, counts)
    processes.any_wishes(False)  # all wait for process 0
    return counts


def _load(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read counts; ValueError for none, a damaged file or those of other images."""
    try:
        counts = np.array(np.load(file, mmap_mode="r"))  # mapped, an array is not larger than its file
    except (OSError, ValueError, EOFError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise ValueError(
            f"Expected the votes of this run in {file}, got: {why}. Restore the file, or train in another workdir."
        ) from None
    if counts.shape != shape or counts.dtype.kind != "i":
        raise ValueError(f"Expected votes {list(shape)} in {file}, got {counts.dtype} {list(counts.shape)}: remove it.")
    return counts


def _count(
    title: str, by: execution.Execution, images: np.ndarray | Images, scheme: Scheme, samples: int, key: jax.Array
) -> np.ndarray:
    """Votes on this process's share of the images, int64 [N, classes]; 0 for the others."""
    by, total, classes = by.placed(), images.shape[0], by.classifier.classes
    counts = np.zeros((total, classes), np.int64)
    own = np.arange(jax.process_index(), total, jax.process_count())
    progress = Progress(title, len(own), 0, unit="images", show=jax.process_index() == 0)
    for first in range(0, len(own), _BLOCK):
        block = own[first : first + _BLOCK]
        unit = data.to_unit(images[block])
        _, levels = host_scale(scheme, unit)
        found = votes.dispatch_votes(by, scheme, unit, levels, indices=block, first=0, n=samples, key=key)
        counts[block] = np.asarray(found).sum(axis=0)[:, :classes]
        progress.update(first + len(block))
    progress.close()
    return counts
