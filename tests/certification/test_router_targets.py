"""Routers in training: what levels are worth, from which images, and that the router learns to choose."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small_networks import RESNET as DESCRIPTION

from idrc_jax import data, losses, models, sampling, training
from idrc_jax.certificates import schemes
from idrc_jax.certification.router_targets import LevelWorth
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Classifier
from idrc_jax.sampling import random_keys
from idrc_jax.training import Recipe, validation

SCHEME = schemes.Routed(sigma=0.5, levels=(2.0, 0.5), router_level=1.0)


@pytest.fixture(scope="module")
def named(linear):
    return dataclasses.replace(linear, sha256="0" * 64)


def worth_of(classifier, **more):
    return LevelWorth(classifier, SCHEME, **{"samples": 50} | more)


def votes_in(folder):
    return np.load(folder / "level_votes.npz")["right"]


def test_a_level_is_worth_its_radius_or_how_many_of_some_radii_it_reaches(named):
    right = np.array([[50, 50], [25, 30], [0, 26]])
    by_radius = worth_of(named).of_votes(right)
    quantile = stats.norm.ppf((right + 0.5) / 51)
    expected = np.where(right > 25, quantile * [1.0, 0.25], 0)
    np.testing.assert_allclose(by_radius, expected, rtol=1e-6)
    by_accuracy = worth_of(named, worth="accuracy", radii=(0.05, 0.5, 2.0)).of_votes(right)
    np.testing.assert_allclose(by_accuracy, [[1, 2 / 3], [0, 1 / 3], [0, 0]], atol=1e-6)


def test_worths_are_by_votes_under_each_level_and_labels_are_the_best_of_them(named, dataset, tmp_path):
    worth = worth_of(named, samples=40)
    learned, worths = worth.learned(dataset, 3, tmp_path)
    kept = votes_in(tmp_path)
    images, every = data.to_unit(dataset.images), np.arange(len(dataset.images))
    stage = random_keys.stage(random_keys.root(3), random_keys.TRAINING)
    for number, level in enumerate((1.0, 0.25)):
        key = sampling.random_keys.jax.random.fold_in(stage, 4 + number)
        votes = sampling.count_votes(named, schemes.Gaussian(level), images, indices=every, n=40, key=key)
        np.testing.assert_array_equal(kept[:, number], votes[every, dataset.labels])
    assert learned.classes == 2
    assert len(learned) == len(dataset)
    clear = worths.values[:, 0] != worths.values[:, 1]
    assert clear.sum() > 10
    np.testing.assert_array_equal(learned.labels[clear], np.argmax(worths.values, axis=1)[clear])
    assert set(learned.labels[~clear]) <= {1}  # the smaller level of equals
    again, _ = worth.learned(dataset, 3, tmp_path)
    np.testing.assert_array_equal(again.labels, learned.labels)


def test_votes_of_anything_else_are_refused(named, dataset, tmp_path):
    """Where only votes were counted before: other networks, their order, images, labels, levels, samples, seed."""
    first, last = (
        dataclasses.replace(named, params=named.params[::turn], sha256=str(turn + 1) * 32) for turn in (-1, 1)
    )
    worth, file = worth_of(last.at_levels([first, last]), samples=8), tmp_path / "level_votes.npz"
    _, made = worth.learned(dataset, 3, tmp_path)
    kept = file.read_bytes()
    other = dataclasses.replace(dataset, images=255 - dataset.images)
    named_anew = dataclasses.replace(dataset, labels=(dataset.labels + 1) % 3)
    normalised = dataclasses.replace(last, description={"imported": True, "mean": [0.5]})
    levels = schemes.Routed(sigma=0.5, levels=(0.5, 2.0), router_level=1.0)
    for changed, images, seed, said in (
        (dataclasses.replace(worth, classifier=last.at_levels([last, first])), dataset, 3, "network.0.weights_sha256"),
        (dataclasses.replace(worth, classifier=last.at_levels([first, normalised])), dataset, 3, "network.1.mean"),
        (dataclasses.replace(worth, scheme=levels), dataset, 3, "levels was"),
        (dataclasses.replace(worth, samples=9), dataset, 3, "samples was 8, is 9"),
        (worth, dataset, 4, "seed was 3, is 4"),
        (worth, other, 3, "data_sha256 was"),
        (worth, named_anew, 3, "data_sha256 was"),
    ):
        with pytest.raises(
            ValueError, match=f"^Expected votes of the same networks.*got others: {said}.*remove the file"
        ):
            changed.learned(images, seed, tmp_path)
    for damaged in (kept[:-30], b"", b"no archive", np.arange(3).tobytes()):
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"^Expected the votes of each level in .*npz, which is damaged \(.*\): remove"
        ):
            worth.learned(dataset, 3, tmp_path)
    of = np.load(io.BytesIO(kept))["of"]
    for right in (np.zeros((60, 3), np.int64), np.zeros((60, 2))):
        np.savez(file, right=right, of=of)
        with pytest.raises(ValueError, match=r"damaged \(\w+64 \[60, \d\] in the place of int64 \[60, 2\]\): remove"):
            worth.learned(dataset, 3, tmp_path)
    file.write_bytes(kept)
    np.testing.assert_array_equal(worth.learned(dataset, 3, tmp_path)[1].values, made.values)


def test_a_router_learns_from_images_that_the_classifier_has_held_out(named, dataset, tmp_path):
    known = {"data_sha256": dataset.fingerprint(), "held_out": 20, "seed": 7}
    taught = dataclasses.replace(named, description={"training": known})
    learned, _ = worth_of(taught).learned(dataset, 0, tmp_path / "held out")
    out = validation.held_out(7, 20, len(dataset))
    np.testing.assert_array_equal(learned.images, dataset.images[out])
    greedy = dataclasses.replace(named, description={"training": known | {"held_out": 0}})
    with pytest.raises(ValueError, match=r"Expected a classifier that held images out .*train\.held_out.*images=all"):
        worth_of(greedy).learned(dataset, 0, tmp_path / "none")
    tuned = dataclasses.replace(named, description={"training": known | {"start": known | {"held_out": 0}}})
    with pytest.raises(ValueError, match=r"one trained on all of .*or by the weights that it started from"):
        worth_of(tuned).learned(dataset, 0, tmp_path / "none")
    for one in (taught, greedy):
        learned, worths = worth_of(one, images="all").learned(dataset, 0, tmp_path / f"all {one.description}")
        np.testing.assert_array_equal(learned.images, dataset.images)
        assert worths.described["images"] == "all"
    with pytest.raises(SettingError, match="images to be one of all, held_out"):
        worth_of(named, images="some")
    with pytest.raises(ValueError, match="loaded from a file, which names it"):
        worth_of(dataclasses.replace(named, sha256=""))
    with pytest.raises(SettingError, match="worth to be one of"):
        worth_of(named, worth="much")
    with pytest.raises(SettingError, match=r"^Expected radii for worth = accuracy, got none: give") as refused:
        worth_of(named, worth="accuracy")
    assert str(refused.value.renamed({"radii": "sampling.radii"})).startswith("Expected sampling.radii for worth")


def test_a_level_is_worth_what_its_own_network_makes_of_it(named, dataset, tmp_path):
    known = {"data_sha256": dataset.fingerprint(), "held_out": 40, "seed": 7}
    first, last = (
        dataclasses.replace(
            named, params=named.params[::turn], sha256=str(turn) * 32, description={"training": known | {"seed": seed}}
        )
        for turn, seed in ((-1, 7), (1, 8))
    )
    worth = worth_of(last.at_levels([first, last]), samples=20)
    learned, worths = worth.learned(dataset, 3, tmp_path / "both")
    out = np.intersect1d(*(validation.held_out(seed, 40, len(dataset)) for seed in (7, 8)))
    np.testing.assert_array_equal(learned.images, dataset.images[out])
    assert worths.described["by_level"] == [first.sha256, last.sha256]
    free = [dataclasses.replace(one, description={}) for one in (first, last)]
    worth_of(free[1].at_levels(free), samples=20).learned(dataset, 3, tmp_path / "all")
    both = votes_in(tmp_path / "all")
    for number, one in enumerate(free):
        worth_of(one, samples=20).learned(dataset, 3, tmp_path / str(number))
        np.testing.assert_array_equal(both[:, number], votes_in(tmp_path / str(number))[:, number])
    assert np.any(both[:, 0] != votes_in(tmp_path / "1")[:, 0])
    with pytest.raises(ValueError, match="one classifier, or one for each of 2 levels, got 1 by level"):
        worth_of(last.at_levels([first]))
    with pytest.raises(ValueError, match="without a hash"):
        worth_of(last.at_levels([first, dataclasses.replace(last, sha256="")]))
    few = dataclasses.replace(last, description={"training": known | {"held_out": 1, "seed": 14}})
    assert validation.held_out(14, 1, len(dataset))[0] not in validation.held_out(7, 40, len(dataset))
    with pytest.raises(ValueError, match="Expected networks that all held some of the same images"):
        worth_of(last.at_levels([first, few])).learned(dataset, 3, tmp_path / "none")


@pytest.fixture(scope="module")
def bright():
    """Images of two kinds, dark and bright, all of class 0."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 60, (400, 8, 8, 1)) + 190 * (np.arange(400) % 2)[:, None, None, None]
    return data.from_arrays(images.astype(np.uint8), np.zeros(400, int), name="made", split="train", classes=3)


def test_a_router_is_trained_to_choose_the_level_that_is_worth_most_and_goes_on_after_a_stop(bright, tmp_path):
    """Class 0 is lost on dark images under the larger noise, whose radius is larger on bright ones."""

    def logits(params, images):
        light = jnp.mean(images, axis=(1, 2, 3))
        spread = jnp.std(images, axis=(1, 2, 3))
        lost = (light < 0.4) & (spread > 0.5)
        return jnp.stack([jnp.where(lost, -1.0, 1.0), jnp.zeros_like(light), jnp.full_like(light, -9.0)], axis=1)

    classifier = Classifier(logits, params=(), classes=3, image_shape=(8, 8, 1), sha256="0" * 64)
    learned, worths = LevelWorth(classifier, SCHEME, samples=20).learned(bright, 0, tmp_path)
    np.testing.assert_array_equal(learned.labels, 1 - np.arange(400) % 2)
    described = DESCRIPTION | {"classes": 2, "image_shape": [8, 8, 1], "mean": [0.5], "std": [0.5]}
    recipe = Recipe(epochs=3, batch=80, lr=0.05, augment=False)
    loss = losses.make("router", 0.5)
    more = {"loss": loss, "teacher": worths, "kernel": "xla"}
    assert training.train(learned, schemes.Gaussian(0.5), recipe, described, tmp_path, **more)
    router = models.load_classifier(tmp_path)
    assert router.description["training"]["teacher"]["worth"] == "radius"
    votes = sampling.count_votes(
        router, schemes.Gaussian(0.5), data.to_unit(bright.images[:40]), indices=np.arange(40), n=50,
        key=random_keys.root(1),
    )  # fmt: skip
    chosen = np.argmax(votes[:, :2], axis=1)
    assert np.mean(chosen == learned.labels[:40]) > 0.9
    other = dataclasses.replace(worths, described={**worths.described, "samples": 30})
    with pytest.raises(ValueError, match="settings of the run"):
        training.train(learned, schemes.Gaussian(0.5), recipe, described, tmp_path, **more | {"teacher": other})


def test_networks_and_worths_that_do_not_fit_are_refused(named, dataset, tmp_path):
    _, worths = worth_of(named).learned(dataset, 0, tmp_path)
    with pytest.raises(SettingError, match="a router with 2 answers, got 3"):
        worths.check({"classes": 3})
    with pytest.raises(ValueError, match="Expected 60 images, none held out, got 50"):
        worths.predictions(dataset.images[:50], schemes.Gaussian(0.5), 0, None, tmp_path)
    with pytest.raises(SettingError, match="noises >= 2"):
        losses.make("router", 0.5, noises=1)
    with pytest.raises(SettingError, match="label_smoothing = 0"):
        losses.make("router", 0.5, label_smoothing=0.1)
