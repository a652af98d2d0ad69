import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear_logits
from test_certification_job import SCHEME, SETTINGS

from idrc_jax import certification, data, results
from idrc_jax.certification.clean_accuracy import with_clean_accuracy
from idrc_jax.models import Classifier

INDICES = np.arange(0, 60, 2)[::-1]


@pytest.fixture(scope="module")
def dataset():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (70, 4, 4, 1)).astype(np.uint8)
    return data.from_arrays(images, generator.integers(0, 3, 70), name="made", classes=3)


def certify(classifier, dataset, folder, indices=INDICES):
    assert certification.certify_dataset(classifier, SCHEME, dataset, indices, SETTINGS, folder, chunk=64)
    return results.read_results(folder)


def test_it_is_the_share_of_clean_images_that_the_base_classifier_gets_right(linear, dataset, tmp_path):
    made = with_clean_accuracy(certify(linear, dataset, tmp_path), linear, dataset)
    logits = data.to_unit(dataset.images[INDICES]).reshape(len(INDICES), -1) @ np.asarray(linear.params).T
    right = int(np.sum(np.argmax(logits, axis=1) == dataset.labels[INDICES]))
    assert made.manifest["clean"].items() >= {"right": right, "images": 30}.items()
    read = results.read_results(tmp_path)
    assert read.manifest == made.manifest
    assert results.clean_accuracy(read) == right / 30
    assert f"{right / 30:.3f} right on clean images" in results.summary_table(read)


def test_it_is_measured_once_and_anew_for_other_images(linear, dataset, tmp_path):
    read = with_clean_accuracy(certify(linear, dataset, tmp_path), linear, dataset)
    assert with_clean_accuracy(read, None, None) is read
    more = certify(linear, dataset, tmp_path, np.arange(70))  # more than two batches
    assert results.clean_accuracy(more) is None
    assert with_clean_accuracy(more, linear, dataset).manifest["clean"]["images"] == 70
    sessions = json.loads((tmp_path / "manifest.json").read_text())["sessions"]
    assert len(sessions) == 2


def test_as_many_other_images_are_others(linear, dataset, tmp_path):
    before = with_clean_accuracy(certify(linear, dataset, tmp_path, np.arange(10)), linear, dataset)
    (tmp_path / results.NAME).unlink()
    read = certify(linear, dataset, tmp_path, np.arange(10, 20))
    assert read.manifest["clean"] == before.manifest["clean"]
    assert results.clean_accuracy(read) is None
    assert with_clean_accuracy(read, linear, dataset).manifest["clean"] != before.manifest["clean"]


def test_logits_that_are_not_finite_are_not_right(dataset, tmp_path):
    params = jnp.zeros((3, 16)).at[1].set(jnp.inf)
    broken = Classifier(apply_fn=linear_logits, params=params, classes=3, image_shape=(4, 4, 1))
    read = certify(broken, dataset, tmp_path, INDICES[:2])
    assert with_clean_accuracy(read, broken, dataset).manifest["clean"]["right"] == 0


def test_images_without_labels_are_left_as_they_are(linear, dataset, tmp_path):
    unknown = data.from_arrays(dataset.images, name="made")
    read = certify(linear, unknown, tmp_path, INDICES[:2])
    assert with_clean_accuracy(read, linear, unknown) is read
    assert "clean" not in results.read_results(tmp_path).manifest
