"""Audits where each level has a network: whose gradients and votes count under which level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear_logits

from idrc_jax import sampling
from idrc_jax.audit import attacks, point_votes
from idrc_jax.audit.attacks import Attacker, Targets
from idrc_jax.certificates import schemes
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, noise_laws, random_keys

CASCADE = schemes.Cascade(sigma=0.4, levels=(1.0, 0.5))
ROUTED = schemes.Routed(sigma=0.4, levels=(1.0, 0.5), router_level=2.0)
STEPPED = schemes.Stepped(sigma=0.4, edges=(1.5,), levels=(1.0, 0.5))
LEVELS = (0.4, 0.2)
SAMPLES, KEY = 5, random_keys.root(3)


def network(seed, answers=3):
    params = np.random.default_rng(seed).normal(size=(answers, 16)).astype(np.float32)
    return Classifier(apply_fn=linear_logits, params=jnp.asarray(params), classes=answers, image_shape=(4, 4, 1))


NETWORKS = [network(1), network(2)]
BOTH = NETWORKS[1].at_levels(NETWORKS)


def attacker(classifier, scheme=CASCADE, samples=SAMPLES):
    return Attacker(classifier, scheme, KEY, steps=1, samples=samples, mesh=devices.mesh(1))


def margin(image, index, target, first):
    """log of the class's mean probability less that of its strongest rival, sample j by those of level j % 2."""

    def log_p(j):
        key = random_keys.sample(KEY, jnp.uint32(index), jnp.uint32(first + j))
        noisy = image + noise_laws.at("normal", key, jnp.float32(LEVELS[j % 2]), image)
        return jax.nn.log_softmax(NETWORKS[j % 2](noisy[None])[0])

    mean = jax.nn.logsumexp(jnp.stack([log_p(j) for j in range(SAMPLES)]), axis=0)
    return mean[target] - jnp.max(jnp.where(jnp.arange(3) == target, -jnp.inf, mean))


@pytest.mark.parametrize("scheme", [CASCADE, ROUTED], ids=["cascade", "routed"])
def test_gradients_of_a_level_are_those_of_its_network(pictures, scheme):
    images, indices, classes, first = pictures[:3], np.array([7, 8, 9]), np.array([0, 1, 2]), np.array([0, 5, 10])
    targets = Targets(images, indices, classes, np.full(3, 1.0))
    found, _ = attacker(BOTH, scheme)._directions(targets, jnp.asarray(images), first, False)
    for got, image, *of in zip(np.asarray(found), images, indices, classes, first, strict=True):
        gradient = np.asarray(jax.grad(margin)(jnp.asarray(image), *map(int, of)))
        np.testing.assert_allclose(got, -gradient / np.linalg.norm(gradient), atol=1e-4)


def test_gradients_in_a_bin_are_those_of_its_network(pictures):
    images = pictures[:3] * np.array([0.3, 1, 0.3], np.float32)[:, None, None, None]
    bins = np.linalg.norm(images.reshape(3, -1), axis=1) >= 1.5
    assert bins.tolist() == [False, True, False]
    indices, classes, first = np.array([7, 8, 9]), np.array([0, 1, 2]), np.array([0, 5, 10])
    targets = Targets(images, indices, classes, np.full(3, 1.0))
    found, lost = attacker(BOTH, STEPPED)._directions(targets, jnp.asarray(images), first, False)
    for number in (0, 1):
        own = bins == number
        alone = attacker(NETWORKS[number], STEPPED)._directions(targets, jnp.asarray(images), first, False)
        np.testing.assert_allclose(np.asarray(found)[own], np.asarray(alone[0])[own], atol=1e-6)
        assert np.array_equal(np.asarray(lost)[own], np.asarray(alone[1])[own])


def test_a_network_without_a_derivative_in_another_bin_hides_none(pictures):
    def endless(params, images):
        return linear_logits(params, images) + jnp.sqrt(jnp.sum(0 * images, axis=(1, 2, 3)))[:, None]  # of slope inf

    images = pictures[:3] * np.array([0.3, 0.2, 0.3], np.float32)[:, None, None, None]  # all in the first bin
    other = Classifier(apply_fn=endless, params=NETWORKS[1].params, classes=3, image_shape=(4, 4, 1))
    targets = Targets(images, np.arange(3), np.array([0, 1, 2]), np.full(3, 1.0))
    both = attacker(other.at_levels([NETWORKS[0], other]), STEPPED)
    found, _ = both._directions(targets, jnp.asarray(images), np.zeros(3, int), False)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(found).reshape(3, -1), axis=1), 1, atol=1e-5)


def test_an_edge_between_bins_of_one_level_is_met():
    scheme = schemes.Stepped(sigma=0.4, edges=(1.0,), levels=(1.0, 1.0))
    images = np.zeros((1, 4, 4, 1), np.float32)
    images[0, 0, 0, 0] = 0.7
    way = np.zeros((1, 4, 4, 1))
    way[0, 0, 0, 0] = 1
    far = attacks._to_edge(scheme, Targets(images, np.zeros(1, int), np.zeros(1, int), np.full(1, 0.7)), way)
    assert far[0] == pytest.approx(0.3, abs=1e-3)


def test_a_sample_serves_every_bin():
    many = NETWORKS[1].at_levels(NETWORKS * 3)
    scheme = schemes.Stepped(0.4, edges=(1, 2, 3, 4, 5), levels=(1.0,) * 6)
    assert attacker(many, scheme, samples=2).draws == 2


def test_votes_at_points_are_those_of_each_bins_network(pictures):
    """Of each point's own bin, wherever its image is."""
    points = pictures * np.linspace(0.2, 1, 5, dtype=np.float32)[:, None, None, None]
    bins = (np.linalg.norm(points.reshape(5, -1), axis=1) >= 1.5).astype(int)
    assert set(bins.tolist()) == {0, 1}
    given = {"indices": np.arange(5), "first": np.array([0, 3, 0, 3, 9]), "n": np.array([100, 100, 50, 60, 70])}
    votes = point_votes.count(sampling.unmeasured(BOTH, chunk=16), STEPPED, points, keys=[random_keys.root(4)], **given)
    for i, number in enumerate(bins):
        own = sampling.count_votes(
            NETWORKS[number], schemes.Gaussian(LEVELS[number]), points[[i]], indices=given["indices"][[i]],
            first=int(given["first"][i]), n=int(given["n"][i]), key=random_keys.root(4), chunk=16,
        )  # fmt: skip
        np.testing.assert_array_equal(votes[i, 0], own[0])


def test_a_step_has_a_sample_for_each_network():
    with pytest.raises(SettingError, match="Expected samples >= 2, networks by level, got 1"):
        attacker(BOTH, samples=1)


def test_votes_at_points_are_those_of_each_levels_network(pictures):
    classifier = BOTH.routed_by(network(3, 2))
    for scheme, networks in ((CASCADE, NETWORKS), (ROUTED, [classifier.router, *NETWORKS])):
        keys = [random_keys.root(level) for level in range(len(networks))]
        votes = point_votes.count(
            sampling.unmeasured(classifier, chunk=16), scheme, pictures, indices=np.arange(5), first=np.zeros(5, int),
            n=np.full(5, 100), keys=keys,
        )  # fmt: skip
        for level, (one, key) in enumerate(zip(networks, keys, strict=True)):
            noise = schemes.Gaussian(float(schemes.drawn_levels(scheme, 0.0)[level]))
            own = sampling.count_votes(one, noise, pictures, indices=np.arange(5), n=100, key=key, chunk=16)
            np.testing.assert_array_equal(votes[:, level, : one.classes], own[:, :-1])
