"""What a router learns from: how much each noise level is worth at training images."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from scipy import special

from idrc_jax import data, sampling
from idrc_jax.certificates.schemes import Gaussian, Routed, least_levels
from idrc_jax.certification.guarantee import check_fits, describe_network
from idrc_jax.core import arrays, files, validate
from idrc_jax.core.json_values import Json, as_json, differences, parsed, require
from idrc_jax.core.progress import Progress
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Classifier
from idrc_jax.sampling import random_keys
from idrc_jax.training import Worths, validation

WORTHS = ("radius", "accuracy")
IMAGES = ("held_out", "all")
_VOTES = "level_votes.npz"
_BLOCK = 500  # images
_BRANCH = 4  # of the stage of training, and those after it: the keys of votes under the levels


@dataclass(frozen=True)
class LevelWorth:
    """What each level of a scheme `routed` is worth at the images that a router learns from, by few votes of each.

    Attributes:
      classifier: that the router is to choose levels for, or its network of each level (`Classifier.at_levels`),
        loaded from files, which name them.
      scheme: whose levels these are.
      samples: votes of each image under each level.
      worth: "radius", s Phi^-1((k + 1/2) / (n + 1)) for k of n votes for the true class, 0 where these are not more
        than half; or "accuracy", the share of `radii` that this reaches.
      radii: in pixel units, of "accuracy", which needs some.
      images: "held_out", those that no network was trained on; or "all", for networks that are as sure of the images
        that they were trained on as of others. No certificate depends on it.
    """

    classifier: Classifier
    scheme: Routed
    samples: int = 100
    worth: str = "radius"
    radii: tuple[float, ...] = ()
    images: str = "held_out"

    def __post_init__(self) -> None:
        validate.count("samples", self.samples, 1)
        validate.one_of("worth", self.worth, WORTHS)
        validate.one_of("images", self.images, IMAGES)
        if self.worth == "accuracy" and not len(self.radii):
            raise SettingError("Expected radii for worth = accuracy, got none: give those to reach.", "radii", "worth")
        count, levels = len(self.classifier.by_level), len(self.scheme.levels)
        if count not in (0, levels):
            raise ValueError(
                f"Expected one classifier, or one for each of {levels} levels, got {count} by level: noise.levels."
            )
        if not all(one.sha256 for one in self._networks):
            raise ValueError("Expected a classifier loaded from a file, which names it, got one without a hash.")

    def of_votes(self, right: np.ndarray) -> np.ndarray:
        """Of int [N, levels] votes for the true class: float32 [N, levels]."""
        share = (right + 0.5) / (self.samples + 1)
        radii = np.where(2 * right > self.samples, self._levels * special.ndtri(share), 0.0)
        if self.worth == "accuracy":
            radii = np.mean(radii[..., None] >= np.asarray(self.radii), axis=-1)
        return radii.astype(np.float32)

    def learned(self, train_set: data.Dataset, seed: int, workdir: Path) -> tuple[data.Dataset, Worths]:
        """What a router learns from.

        Args:
          train_set: the training images and their labels.
          seed: of the votes' noise.
          workdir: the router's run, whose folder keeps the votes for the calls that go on.

        Returns:
          Those of `images`, all where the classifier was trained on another set, each labelled with its best level (the
          smallest of equals); and what the levels are worth at them.

        Raises:
          ValueError: a classifier that, with the weights that it started from, has held no images out where those are
            asked for, or images of another shape or other classes.
        """
        kept = self._held_out(train_set) if self.images == "held_out" else np.arange(len(train_set))
        images, labels = np.asarray(train_set.images[kept]), train_set.labels[kept]
        if images.shape[1:] != self.classifier.image_shape or not train_set.labelled:
            raise ValueError(
                f"Expected labelled images of shape {self.classifier.image_shape}, as the classifier takes, got "
                f"{images.shape[1:]} in {train_set.source}."
            )
        check_fits(self.classifier, train_set)
        worth = self.of_votes(self._right(images, labels, seed, workdir / _VOTES))
        order = np.argsort(self._levels, kind="stable")
        best = order[np.argmax(worth[:, order], axis=1)]
        learned = data.from_arrays(
            images, best, name=train_set.name, split="train", classes=len(order), source=train_set.source
        )
        return learned, Worths(worth, self.describe())

    def describe(self) -> Json:
        """What a description of training says of it."""
        return {
            "weights_sha256": self.classifier.sha256,
            **({"by_level": [one.sha256 for one in self.classifier.by_level]} if self.classifier.by_level else {}),
            "samples": self.samples,
            "worth": self.worth,
            "levels": self._levels.tolist(),
            **({"radii": list(self.radii)} if self.worth == "accuracy" else {}),
            **({"images": self.images} if self.images != "held_out" else {}),
        }

    @property
    def _networks(self) -> tuple[Classifier, ...]:
        """That of each level."""
        return self.classifier.by_level or (self.classifier,) * len(self.scheme.levels)

    @property
    def _levels(self) -> np.ndarray:
        return least_levels(self.scheme)[1:]

    def _held_out(self, train_set: data.Dataset) -> np.ndarray:
        """The indices of the images that no network has been trained on."""
        kept = np.arange(len(train_set))
        for network in self._networks:
            unseen = validation.unseen(network.description, train_set)
            if not len(unseen):
                raise ValueError(
                    "Expected a classifier that held images out in its training (train.held_out, half of them, say), "
                    f"for a router to learn from, got one trained on all of {train_set.source}, by itself or by the "
                    "weights that it started from: its radii there may say too much; router.images=all takes them as "
                    "they are."
                )
            kept = np.intersect1d(kept, unseen)
        if not len(kept):
            raise ValueError(
                f"Expected networks that all held some of the same images of {train_set.source} out in their training, "
                "for a router to learn from, got none: train them with one seed and train.held_out, or take all, "
                "router.images=all."
            )
        return kept

    def _right(self, images: np.ndarray, labels: np.ndarray, seed: int, file: Path) -> np.ndarray:
        """Votes for the true class under each level, int [N, levels]: counted, or read where a call before has."""
        shape, of = (len(images), len(self._levels)), self._votes_of(images, labels, seed)
        if file.is_file():
            return _read(file, shape, of)
        stage = random_keys.stage(random_keys.root(seed), random_keys.TRAINING)
        keys = [jax.random.fold_in(stage, _BRANCH + number) for number in range(shape[1])]
        right, progress = np.zeros(shape, np.int64), Progress("router targets", len(images), 0, unit="images")
        for first in range(0, len(images), _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, len(images)))
            unit = data.to_unit(images[rows])
            for number, (level, network, key) in enumerate(
                zip(self._levels.tolist(), self._networks, keys, strict=True)
            ):
                votes = sampling.count_votes(network, Gaussian(level), unit, indices=rows, n=self.samples, key=key)
                right[rows, number] = votes[np.arange(len(rows)), labels[rows]]
            progress.update(len(rows) + first)
        progress.close()
        files.make_folder(file.parent)
        with files.replacing(file) as fresh, fresh.open("wb") as stream:
            np.savez(stream, right=right, of=json.dumps(of))
        return right

    def _votes_of(self, images: np.ndarray, labels: np.ndarray, seed: int) -> Json:
        """All that the votes depend on, as JSON gives it back."""
        networks = [describe_network(network) for network in self._networks]
        return as_json(
            {
                **{f"network.{number}.{name}": one for number, of in enumerate(networks) for name, one in of.items()},
                "levels": self._levels.tolist(),
                "samples": self.samples,
                "seed": seed,
                "data_sha256": data.from_arrays(images, labels).fingerprint(),
            }
        )


def _read(file: Path, shape: tuple[int, int], of: Json) -> np.ndarray:
    """Votes that a call before has counted; ValueError for a damaged file, or votes of anything else."""
    try:
        found = arrays.read_npz(file, ("right", "of"))
        right, then = found["right"], parsed(str(found["of"]))
        require(then, dict, "of", file)
        if then == of and (right.shape, right.dtype) != (shape, np.int64):
            raise ValueError(f"{right.dtype} {list(right.shape)} in the place of int64 {list(shape)}")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"Expected the votes of each level in {file}, which is damaged ({error}): remove it."
        ) from None
    if then != of:
        raise ValueError(
            f"Expected votes of the same networks, images, levels, samples and seed in {file}, got others: "
            f"{differences(then, of)}; use another workdir, or remove the file."
        )
    return right
