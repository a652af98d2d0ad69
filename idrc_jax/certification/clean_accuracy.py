"""How often the base classifier is right without noise: one forward pass of each image, kept in the manifest."""

import jax
import numpy as np

from idrc_jax import data, results
from idrc_jax.core import files
from idrc_jax.core.json_values import Json
from idrc_jax.models import Classifier
from idrc_jax.results import MANIFEST, Results, metrics
from idrc_jax.results.manifest import indices_sha256

_BATCH = 32


def with_clean_accuracy(read: Results, classifier: Classifier, dataset: data.Dataset) -> Results:
    """A run whose manifest says how often the base classifier is right on the run's images without noise.

    Measured once, and written into the manifest beside the rows; a run of images without labels stays as it is.

    Args:
      read: a run with its manifest, made by this classifier on images of this data set.
    """
    if read.manifest is None or not read.rows or not read.labelled or metrics.clean_accuracy(read) is not None:
        return read
    indices = np.asarray([row.idx for row in read.rows])
    clean = measure(classifier, dataset, indices, indices)
    with files.folder_lock(read.path.parent):
        manifest = results.read_manifest(read.path.parent) or read.manifest
        manifest["clean"] = clean
        files.write_json(read.path.parent / MANIFEST, manifest)
    return Results(read.rows, manifest, read.path)


def measure(classifier: Classifier, dataset: data.Dataset, positions: np.ndarray, indices: np.ndarray) -> Json:
    """What a manifest says of images of a labelled data set: how many the classifier gets right, of how many and which.

    Args:
      positions: int [N], of the images in the data set.
      indices: int [N], by which rows name them.
    """
    right = int(np.sum(_right(classifier, dataset, positions)))
    return {"right": right, "images": len(indices), "indices_sha256": indices_sha256(indices.tolist())}


def _right(classifier: Classifier, dataset: data.Dataset, indices: np.ndarray) -> np.ndarray:
    """bool [N]: whether the classifier, on the clean image, has finite logits and the true class on top."""
    run = jax.jit(classifier.apply_fn)
    found = []
    for start in range(0, len(indices), _BATCH):
        # The last batch is filled up, so that all of them run the same program.
        batch = np.resize(indices[start : start + _BATCH], _BATCH)
        logits = np.asarray(run(classifier.params, data.to_unit(dataset.images[batch])), np.float32)
        found.append(np.isfinite(logits).all(axis=-1) & (np.argmax(logits, axis=-1) == dataset.labels[batch]))
    return np.concatenate(found)[: len(indices)]
