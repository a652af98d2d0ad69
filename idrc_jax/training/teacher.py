"""What a teacher says of the training images, for losses that need it: its smoothed predictions under their noise.

They are shares of votes, counted as certification counts them (`sampling.votes`), once before the first step, and kept
in the run's folder for the calls that go on.
"""

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
from idrc_jax.models import Classifier, Description
from idrc_jax.sampling import devices, execution, processes, random_keys, votes

_FILE, _BLOCK = "teacher_votes.npy", 500


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
        file, wanted = workdir / _FILE, (len(images), self.classifier.classes)
        (known,) = processes.any_wishes(file.is_file())
        if known:
            counts = np.load(file)
            if counts.shape != wanted:
                raise ValueError(f"Expected votes {list(wanted)} in {file}, got {list(counts.shape)}: remove it.")
        else:
            counts = processes.total(self._count(images, scheme, seed, mesh))
            if jax.process_index() == 0:
                with files.replacing(file) as fresh, fresh.open("wb") as stream:
                    np.save(stream, counts)
        return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)

    def _count(self, images: np.ndarray, scheme: Scheme, seed: int, mesh: Mesh) -> np.ndarray:
        """Votes of this process's share of the images, int64 [N, classes]; 0 for the others."""
        by = execution.unmeasured(self.classifier, devices.local(mesh)).placed()
        key = jax.random.fold_in(random_keys.stage(random_keys.root(seed), random_keys.TRAINING), 2)
        counts = np.zeros((len(images), self.classifier.classes), np.int64)
        own = np.arange(jax.process_index(), len(images), jax.process_count())
        progress = Progress("teacher", len(own), 0, unit="images", show=jax.process_index() == 0)
        for first in range(0, len(own), _BLOCK):
            block = own[first : first + _BLOCK]
            unit = data.to_unit(images[block])
            _, levels = host_scale(scheme, unit)
            found = votes.dispatch_votes(
                by, scheme, unit, levels, indices=block, first=0, n=self.samples, key=key
            )  # fmt: skip
            counts[block] = np.asarray(found).sum(axis=0)[:, : self.classifier.classes]
            progress.update(first + len(block))
        progress.close()
        return counts
