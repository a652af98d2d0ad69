"""The Vision Transformer by itself, beside one in NumPy; test_transformers_vit.py holds it against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from idrc_jax import certification, config, data, models, sampling
from idrc_jax.certificates import schemes
from idrc_jax.interop import exporting
from idrc_jax.sampling import random_keys

DESCRIPTION = {
    "architecture": "vit", "classes": 5, "image_shape": [12, 12, 3], "mean": [0.5, 0.4, 0.6], "std": [0.5, 0.4, 0.3],
    "vit": {"size": 12, "patch": 4, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "resize": "bilinear"},
    "dtype": "float32",
}  # fmt: skip
SMALL_IMAGES = DESCRIPTION | {"image_shape": [6, 6, 3]}


def change(**changed):
    return DESCRIPTION | {"vit": DESCRIPTION["vit"] | changed}


def random_tensors(description=DESCRIPTION, seed=0):
    """None of them all 0 or 1, logits of size one."""
    _, params, _ = models.abstract(description, dtype="float32")
    random = np.random.default_rng(seed)

    def draw(name, shape):
        spread = np.prod(shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.3
        return random.normal(float(name.endswith("scale")), spread, shape).astype(np.float32)

    return {name: draw(name, value.shape) for name, value in params.items()}


def network(tensors, description=DESCRIPTION, dtype="float32"):
    graph, _, _ = models.abstract(description, dtype=dtype)
    return jax.jit(lambda images: models.merge(graph, tensors, {})(images))


def noisy(count, size, seed=1):
    return np.random.default_rng(seed).normal(0.5, 0.4, (count, size, size, 3)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    models.save_weights(tmp_path / "weights.safetensors", random_tensors(), SMALL_IMAGES)
    return tmp_path


@pytest.mark.parametrize(("classes", "parameters"), [(1000, 86_567_656), (10, 85_806_346)])
def test_vit_b_16_has_the_literatures_parameter_count(classes, parameters):
    base = change(size=224, patch=16, width=768, depth=12, heads=12, mlp=3072) | {"classes": classes}
    _, params, stats = models.abstract(base, dtype="float32")
    assert sum(value.size for value in params.values()) == parameters
    assert not stats


def in_numpy(tensors, images):
    """The same network in float64, one image, patch and head after the other."""
    settings = DESCRIPTION["vit"]
    weights = {name: value.astype(np.float64) for name, value in tensors.items()}

    def linear(name, x):
        return x @ weights[f"{name}.kernel"] + weights[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / spread * weights[f"{name}.scale"] + weights[f"{name}.bias"]

    def attend(name, x):
        query, key, value = (linear(f"{name}.{part}", x) for part in ("query", "key", "value"))
        mixed = []
        for columns in np.split(np.arange(settings["width"]), settings["heads"]):
            scores = query[:, columns] @ key[:, columns].T / np.sqrt(len(columns))
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(chances / chances.sum(-1, keepdims=True) @ value[:, columns])
        return linear(f"{name}.out", np.concatenate(mixed, axis=1))

    def logits(image):
        patch, kernel = settings["patch"], weights["patches.kernel"]
        starts = range(0, settings["size"], patch)
        patches = [image[row : row + patch, column : column + patch] for row in starts for column in starts]
        tokens = [np.tensordot(one, kernel, 3) + weights["patches.bias"] for one in patches]
        x = np.stack([weights["class_token"][0, 0], *tokens]) + weights["positions"][0]
        for block in (f"blocks.{number}" for number in range(settings["depth"])):
            x = x + attend(f"{block}.attention", norm(f"{block}.norm1", x))
            y = linear(f"{block}.fc1", norm(f"{block}.norm2", x))
            x = x + linear(f"{block}.fc2", y * (1 + erf(y / np.sqrt(2))) / 2)
        return linear("head", norm("norm", x)[0])

    return np.stack([logits(image) for image in (images - DESCRIPTION["mean"]) / DESCRIPTION["std"]])


def test_logits_are_those_of_numpy_and_bfloat16_is_near():
    tensors, images = random_tensors(), noisy(3, 12)
    expected = in_numpy(tensors, images)
    assert expected.std() > 0.5
    full, half = (network(tensors, dtype=dtype)(images) for dtype in ("float32", "bfloat16"))
    assert full.shape == (3, 5)
    assert full.dtype == half.dtype == jnp.float32
    np.testing.assert_allclose(full, expected, atol=1e-5, rtol=0)
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.03 * np.abs(full).max(), rtol=0)


@pytest.mark.parametrize(("scale", "offset"), [(1, 30), (1e-3, 0)])
def test_layer_norms_are_exact(scale, offset):
    """Features whose mean is many times their spread, and features so small that the epsilon matters."""
    tensors, images = random_tensors(), noisy(3, 12)
    for name in ("class_token", "positions", "patches.kernel", "patches.bias"):
        tensors[name] = tensors[name] * np.float32(scale)
    tensors["positions"] += offset
    np.testing.assert_allclose(network(tensors)(images), in_numpy(tensors, images), atol=1e-4, rtol=0)


def test_only_the_position_embeddings_tell_the_order_of_patches():
    tensors, images = random_tensors(), noisy(2, 12)
    permuted = images.copy()
    permuted[:, 0:4, 4:8], permuted[:, 8:12, 0:4] = images[:, 8:12, 0:4], images[:, 0:4, 4:8]
    classify = network(tensors)
    assert np.abs(classify(permuted) - classify(images)).max() > 0.1
    without = network(tensors | {"positions": np.zeros_like(tensors["positions"])})
    np.testing.assert_allclose(without(permuted), without(images), atol=1e-5, rtol=0)


def test_smaller_images_are_resized_between_the_centres_of_pixels():
    tensors, images = random_tensors(), noisy(2, 6)
    centres = (np.arange(12) + 0.5) / 2 - 0.5

    def double(values):
        return np.interp(centres, np.arange(6), values)

    larger = np.apply_along_axis(double, 1, np.apply_along_axis(double, 2, images)).astype(np.float32)
    classify = network(tensors)
    np.testing.assert_allclose(classify(images), classify(larger), atol=1e-5, rtol=0)
    assert np.abs(network(tensors, change(resize="bicubic"))(images) - classify(images)).max() > 0.01


@pytest.mark.evidence
def test_votes(tmp_path):
    tensors, images = random_tensors(), np.random.default_rng(2).uniform(size=(4, 6, 6, 3)).astype(np.float32)
    tensors["head.bias"] -= np.mean(network(tensors, SMALL_IMAGES)(images), axis=0)  # so that several classes win
    models.save_weights(tmp_path / "weights.safetensors", tensors, SMALL_IMAGES)
    classifier = models.load_classifier(tmp_path)
    assert (classifier.image_shape, classifier.classes, classifier.kernel) == ((6, 6, 3), 5, "xla")

    def votes(sigma):
        scheme, key = schemes.Gaussian(sigma=sigma), random_keys.root(0)
        return sampling.count_votes(classifier, scheme, images, indices=np.arange(4), n=60, key=key, chunk=8)

    clean = np.asarray(classifier(images)).argmax(axis=1)
    assert len(set(clean)) > 1
    np.testing.assert_array_equal(votes(1e-4), 60 * np.eye(6, dtype=int)[clean])
    wide = votes(0.5)
    np.testing.assert_array_equal(wide.sum(axis=1), 60)
    assert np.all(wide.max(axis=1) < 60)


def test_weights_come_back_as_the_same_function(saved):
    images = noisy(3, 6)
    expected = network(random_tensors(), SMALL_IMAGES)(images)
    full = models.load_classifier(saved)
    np.testing.assert_allclose(jax.jit(full.apply_fn)(full.params, images), expected, atol=1e-5, rtol=0)
    half = models.load_classifier(saved, dtype="bfloat16")
    assert half.params["head.kernel"].dtype == half.params["positions"].dtype == jnp.float32
    assert half.params["blocks.1.fc1.kernel"].dtype == jnp.bfloat16
    expected = network(random_tensors(), SMALL_IMAGES, "bfloat16")(images)
    np.testing.assert_allclose(jax.jit(half.apply_fn)(half.params, images), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (change(size=14), "whole patches, got 14 with patches of 4"),
        (change(heads=3), "share equally, got 16 with 3 heads"),
        (change(resize="nearest"), "resize to be one of bicubic, bilinear"),
        (DESCRIPTION | {"mean": [0.5]}, "each of 3 channels"),
    ],
)
def test_bad_networks_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        models.abstract(description, dtype="float32")


def test_a_file_must_hold_its_settings(saved):
    without = {name: value for name, value in DESCRIPTION.items() if name != "vit"}
    models.save_weights(saved / "weights.safetensors", random_tensors(), without)
    with pytest.raises(ValueError, match="got none of vit"):
        models.load_classifier(saved)


def test_the_guarantee_holds_what_the_tensors_do_not_say(saved):
    """The number of heads and the resizing."""
    dataset, settings = data.load("synthetic", "test"), certification.Settings()
    made = []
    for changed in ({}, {"heads": 2}, {"resize": "bicubic"}):
        models.save_weights(saved / "weights.safetensors", random_tensors(), change(**changed))
        classifier, scheme = models.load_classifier(saved), schemes.Gaussian(sigma=0.5)
        made.append(certification.describe_guarantee(classifier, scheme, dataset, np.arange(3), settings))
    assert len({one["weights_sha256"] for one in made}) == 1
    assert made[0] != made[1]
    assert made[0] != made[2]


def test_it_is_neither_trained_nor_exported(saved):
    settings = config.base()
    settings.model.architecture = "vit"
    with pytest.raises(ValueError, match="to train, got vit: import a trained one"):
        config.description(settings, data.load("synthetic", "train"))
    with pytest.raises(ValueError, match="a ResNet to export, got the architecture vit"):
        exporting.export_weights(saved, saved / "vit.safetensors")
