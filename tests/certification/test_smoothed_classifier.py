import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import idrc_jax as idrc
from idrc_jax.certification import smoothed_classifier as module
from idrc_jax.sampling import implementation_choice

ABSENT = -1


def brightness(params, images):
    """Class 1 where the mean exceeds a half: under Gaussian noise the smoothed decision has a formula."""
    mean = images.mean((1, 2, 3)) - params
    return jnp.stack([-mean, mean], 1)


@pytest.fixture(scope="module")
def smoothed():
    base = idrc.Classifier(apply_fn=brightness, params=jnp.float32(0.5), classes=2, image_shape=(4, 4, 1))
    return idrc.SmoothedClassifier(base, idrc.schemes.make("gaussian", sigma=0.5), n=2000, chunk=500)


def greys(*values):
    return np.stack([np.full((4, 4, 1), value, np.float32) for value in values])


def test_classes_and_radii_are_the_truths(smoothed):
    """The distance to the plane bounds the radius; on the plane it abstains."""
    images = greys(0.1, 0.5, 0.7, 0.9)
    classes, abstained = smoothed.predict(images)
    assert classes.tolist() == [0, ABSENT, 1, 1]
    assert abstained.tolist() == [False, True, False, False]
    made = smoothed.certify(images)
    assert made.classes.tolist() == [0, ABSENT, 1, 1]
    assert made.abstained.tolist() == [False, True, False, False]
    assert made.norm == "l2"
    distances = 4 * np.abs(images[:, 0, 0, 0] - 0.5)
    assert made.radii[1] == 0
    assert np.all(made.radii <= distances)
    cap = 0.5 * stats.norm.ppf(0.001 ** (1 / 2000))
    assert np.all(made.radii[[0, 2, 3]] > 0.8 * np.minimum(distances, cap)[[0, 2, 3]])


def test_bytes_are_images_too(smoothed):
    images = greys(0.2, 0.8)
    grey = np.uint8(255 * images)
    several = [smoothed.certify(one, seed=1) for one in (grey, grey / np.float32(255), grey / 255.0)]
    for one in several:
        np.testing.assert_array_equal(one.radii, several[0].radii)
    assert several[0].classes.tolist() == [0, 1]
    for wrong in (2 * images, images[0]):
        with pytest.raises(ValueError, match="Expected"):
            smoothed.predict(wrong)


def test_a_key_repeats_and_none_does_not(smoothed):
    images = greys(*np.linspace(0.52, 0.6, 8))
    key = jax.random.key(3)
    np.testing.assert_array_equal(smoothed.certify(images, key=key).radii, smoothed.certify(images, seed=3).radii)
    np.testing.assert_array_equal(smoothed.predict(images, key=key).classes, smoothed.predict(images, seed=3).classes)
    drawn = [smoothed.certify(images).radii for _ in range(2)]
    assert not np.array_equal(*drawn)
    assert not np.array_equal(drawn[0], smoothed.certify(images, key=key).radii)


def test_how_to_run_is_chosen_once_unless_calls_get_longer(monkeypatch):
    base = idrc.Classifier(apply_fn=brightness, params=jnp.float32(0.5), classes=2, image_shape=(4, 4, 1))
    answer = idrc.SmoothedClassifier(base, idrc.schemes.make("gaussian", sigma=0.5), n=2000, chunk=500)
    asked, real = [], implementation_choice.choose

    def counted(*given, **more):
        asked.append(more["samples"])
        return real(*given, **more)

    monkeypatch.setattr(module.implementation_choice, "choose", counted)
    for count in (1, 2, 1, 2):
        answer.predict(greys(*[0.9] * count))
    assert asked == [1000, 2000]
    for _ in range(2):
        answer.certify(greys(0.9, 0.9))
    assert asked == [1000, 2000, 2 * 2100]


def test_bad_settings_are_refused_at_once(smoothed):
    base = smoothed._classifier
    with pytest.raises(ValueError, match="Expected seed or key, got both"):
        smoothed.predict(greys(0.1), seed=1, key=jax.random.key(1))
    for wrong in ({"alpha": 2.0}, {"n": 1}, {"n_predict": 0}, {"n_predict": 5}, {"chunk": -5}, {"n": 500.5}):
        with pytest.raises(ValueError, match="Expected"):
            idrc.SmoothedClassifier(base, idrc.schemes.make("gaussian", sigma=0.5), **wrong)
