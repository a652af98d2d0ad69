from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from idrc_jax.audit import attacks
from idrc_jax.audit.attacks import Attacker, Targets
from idrc_jax.certificates import schemes
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, noise_laws, random_keys

SHAPE = (4, 4, 1)
NORMAL = np.random.default_rng(1).normal(size=16)
NORMAL /= np.linalg.norm(NORMAL)
SCHEMES = {
    "gaussian": schemes.Gaussian(sigma=0.3),
    "l1": schemes.L1(sigma=0.3, ref=0.5),
    "inverse_sqrt_norm": schemes.InverseSqrtNorm(sigma=0.3, ref=2.0),
    "l2": schemes.L2(sigma=0.6),
    "uniform": schemes.Uniform(sigma=0.3),
    "stepped": schemes.Stepped(sigma=0.3, by="mean_abs", edges=(0.4, 0.5), levels=(0.5, 1.0, 1.5)),
}


def half_space(params, images):
    lead = 8 * (jnp.sum(images.reshape(-1, 16) * params[None], axis=1) - 0.4 * float(NORMAL.sum()))
    return jnp.stack([lead, -lead, jnp.full_like(lead, -9)], axis=1)


def rough(params, images):
    """Class 1 where neighbours differ: a matter of the noise alone, whatever constant is added to the image."""
    difference = images[:, 1:, :, 0] - images[:, :-1, :, 0]
    energy = jnp.mean(difference * difference, axis=(1, 2))
    return 20 * jnp.stack([jnp.zeros_like(energy), energy - params], axis=1)


def classifier(apply_fn=half_space, params=NORMAL, classes=3):
    return Classifier(apply_fn=apply_fn, params=jnp.asarray(params, jnp.float32), classes=classes, image_shape=SHAPE)


@pytest.fixture
def targets():
    images = np.random.default_rng(0).uniform(size=(8, *SHAPE)).astype(np.float32)
    leads = images.reshape(8, 16) @ NORMAL - 0.4 * NORMAL.sum()
    return Targets(images, np.arange(8), (leads < 0).astype(int), np.full(8, 0.7))


def attacker(scheme, apply_fn=half_space, params=NORMAL, *, classes=3, steps=15, samples=64, mesh=None):
    made = classifier(apply_fn, params, classes)
    return Attacker(
        made, scheme, random_keys.stage(random_keys.root(0), random_keys.SEARCH), steps, samples, mesh or devices.mesh()
    )


@partial(jax.jit, static_argnums=0)
def draws_of(law, key, indices, numbers):
    def one(index, number):
        return noise_laws.draw(law, random_keys.sample(key, index, number), jnp.float32(1), SHAPE)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(indices, numbers)


def cosine(a, b):
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("budget", [1e-9, 1e-6, 2e-3, 0.5, 100.0])
@pytest.mark.parametrize("stretch", [False, True])
def test_within_is_strictly_inside_and_no_farther_in_than_need_be(budget, stretch):
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(50, 32, 32, 3)).astype(np.float32)
    targets = Targets(images, np.arange(50), np.zeros(50, int), np.full(50, budget))
    directions = generator.normal(size=images.shape)
    directions /= np.linalg.norm(directions.reshape(50, -1), axis=1)[:, None, None, None]
    far, near = images + 2 * budget * directions, images + 0.3 * budget * directions
    for moved, lengths in ((far, budget), (near, budget if stretch else 0.3 * budget)):
        points = attacks.within(targets, moved, stretch=stretch)
        assert points.dtype == np.float32
        exact = np.linalg.norm((points.astype(np.float64) - images).reshape(50, -1), axis=1)
        assert np.all(exact < budget)
        if budget > 1e-3:  # below, float32 has no images there
            np.testing.assert_allclose(exact, lengths, rtol=1e-4)
            np.testing.assert_allclose(cosine(points - images, directions), 1, atol=1e-3)


def test_the_law_changes_fastest_along_these_directions():
    images = np.random.default_rng(0).uniform(size=(4, *SHAPE)).astype(np.float32)
    images[0, 0] = 0  # |x| has no derivative there
    flat = images.reshape(4, 16)
    assert not np.any(attacks.law_directions(SCHEMES["gaussian"], images))
    assert not np.any(attacks.law_directions(SCHEMES["l2"], images))
    along = attacks.law_directions(SCHEMES["l1"], images).reshape(4, 16)
    np.testing.assert_allclose(along, np.full((4, 16), 0.25), rtol=1e-5)
    for name in ("inverse_sqrt_norm", "uniform"):
        along = attacks.law_directions(SCHEMES[name], images).reshape(4, 16)
        np.testing.assert_allclose(along, flat / np.linalg.norm(flat, axis=1, keepdims=True), atol=1e-5)
    by_std = schemes.Stepped(sigma=0.3, by="std", edges=(0.2,), levels=(1, 2))
    centred = flat - flat.mean(axis=1, keepdims=True)
    along = attacks.law_directions(by_std, images).reshape(4, 16)
    np.testing.assert_allclose(along, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-5)
    grey = np.full((1, *SHAPE), 0.5, np.float32)  # its std has no gradient
    assert np.all(np.isfinite(attacks.law_directions(by_std, grey)))


@pytest.mark.parametrize("name", ["l1", "inverse_sqrt_norm"])
def test_law_moves_reach_the_levels_that_certificates_reckon_with(name, targets):
    scheme = SCHEMES[name]
    targets = targets._replace(images=(0.3 + 0.7 * targets.images).astype(np.float32))  # no value becomes negative
    moves = attacks.law_moves(scheme, targets, attacks.law_directions(scheme, targets.images))
    levels = np.sort([schemes.host_scale(scheme, moved)[1] for moved in moves], axis=0)
    statistic = scheme.statistic(targets.images.astype(np.float64))
    low, high = scheme.scale_bounds(statistic, targets.budgets, 16)
    np.testing.assert_allclose(levels[1], high, rtol=1e-4)
    np.testing.assert_allclose(levels[0], low, rtol=1e-4)


def test_law_moves_cross_the_nearest_edge_or_go_as_far_as_they_may():
    scheme = SCHEMES["stepped"]
    images = np.stack([np.full(SHAPE, grey, np.float32) for grey in (0.42, 0.48, 0.45, 0.3)])
    targets = Targets(images, np.arange(4), np.zeros(4, int), np.array([0.16, 0.16, 0.16, 0.16]))
    down, up = attacks.law_moves(scheme, targets, attacks.law_directions(scheme, images))
    # sqrt(16) * the gap to .4 and .5; the third is .2 from both, the fourth has an edge only above, .4 away.
    np.testing.assert_allclose(attacks.distances(images, down), [0.08, 0.16, 0.16, 0.16], rtol=1e-3)
    np.testing.assert_allclose(attacks.distances(images, up), [0.16, 0.08, 0.16, 0.16], rtol=1e-3)
    levels = [schemes.host_scale(scheme, moved)[1] / 0.3 for moved in (down, up)]
    np.testing.assert_allclose(levels, [[0.5, 1, 1, 0.5], [1, 1.5, 1, 0.5]], rtol=1e-6)


def test_a_move_across_keeps_the_new_level_and_spends_the_rest_of_the_budget():
    scheme = SCHEMES["stepped"]
    generator = np.random.default_rng(0)
    images = (0.48 + generator.uniform(-0.2, 0.2, (5, *SHAPE))).astype(np.float32)
    images -= np.mean(images, axis=(1, 2, 3), keepdims=True) - np.float32(0.48)
    targets = Targets(images, np.arange(5), np.zeros(5, int), np.full(5, 0.15))
    _, up = attacks.law_moves(scheme, targets, attacks.law_directions(scheme, images))
    aim = (images + generator.normal(size=images.shape)).astype(np.float32)
    further = attacks.move_across(targets, up, aim)
    np.testing.assert_allclose(attacks.distances(images, up), 0.08, rtol=1e-3)
    np.testing.assert_allclose(attacks.distances(images, further), 0.15, rtol=1e-4)
    np.testing.assert_allclose(schemes.host_scale(scheme, further)[1], 0.3 * 1.5, rtol=1e-6)
    across, wanted = (further - up).reshape(5, 16).astype(np.float64), (aim - images).reshape(5, 16)
    np.testing.assert_allclose(across.sum(axis=1), 0, atol=1e-4)
    wanted -= wanted.mean(axis=1, keepdims=True)
    cosines = np.sum(across * wanted, axis=1) / np.linalg.norm(across, axis=1) / np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=1e-4)


def test_random_moves_are_far_out_and_differ_by_image_and_number(targets):
    key = random_keys.stage(random_keys.root(0), random_keys.DIRECTION)
    moves = [attacks.random_moves(targets, key, np.full(8, number)) for number in (0, 1)]
    for moved in moves:
        np.testing.assert_allclose(attacks.distances(targets.images, moved), 0.7, rtol=1e-4)
    shifts = np.concatenate([moved - targets.images for moved in moves]).reshape(16, 16)
    assert np.abs(np.corrcoef(shifts) - np.eye(16)).max() < 0.9
    again = attacks.random_moves(targets._replace(images=targets.images + 1), key, np.zeros(8, int))
    np.testing.assert_allclose(again - 1, moves[0], atol=1e-6)


@pytest.mark.parametrize(("name", "straight_through"), [*((name, False) for name in SCHEMES), ("l1", True)])
def test_directions_are_those_of_a_float64_difference_quotient(name, straight_through, targets):
    """Same draws, mean probability and level computed in NumPy. Straight through: the votes' share is what counts, and
    what is added to it has the softmax's slope."""
    scheme = SCHEMES[name]
    made = attacker(scheme, samples=32, steps=1)
    images = targets.images[:4].astype(np.float64)
    numbers = np.arange(32) + 5
    draws = np.asarray(draws_of(scheme.law, made.key, jnp.arange(4), jnp.asarray(numbers)), np.float64)

    def probabilities(moved):
        scale = scheme.scale(scheme.statistic(moved))
        noisy = (moved[:, None] + scale[:, None, None, None, None] * draws).reshape(4, 32, 16)
        lead = 8 * (noisy @ np.asarray(NORMAL, np.float32).astype(float) - 0.4 * NORMAL.sum())
        logits = np.stack([lead, -lead, np.full_like(lead, -9)], axis=-1)
        return special.softmax(logits, axis=-1).mean(axis=1), np.eye(3)[logits.argmax(axis=-1)].mean(axis=1)

    soft, votes = probabilities(images)
    own = targets.classes[:4]

    def margin(moved):
        p = probabilities(moved)[0]
        if straight_through:
            p = votes + p - soft + 1 / 32
        p = np.log(p)
        return p[np.arange(4), own] - p[np.arange(4), 1 - own]

    slopes = np.zeros((4, 16))
    for pixel in range(16):
        shift = 1e-6 * np.eye(16)[pixel].reshape(SHAPE)
        slopes[:, pixel] = (margin(images + shift) - margin(images - shift)) / 2e-6
    padded = targets._replace(images=targets.images[[0, 1, 2, 3] * 2], indices=targets.indices[[0, 1, 2, 3] * 2])
    padded = padded._replace(classes=np.tile(own, 2))
    directions, lost = made._directions(padded, jnp.asarray(padded.images), np.full(8, 5), straight_through)
    np.testing.assert_allclose(cosine(np.asarray(directions)[:4], -slopes), 1, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(lost)[:4], votes[np.arange(4), own] < votes[np.arange(4), 1 - own])


@pytest.mark.parametrize("straight_through", [False, True])
def test_pgd_goes_straight_across_a_plane(straight_through, targets):
    moved = attacker(SCHEMES["gaussian"]).pgd(
        targets, targets.images, first=np.zeros(8, int), straight_through=straight_through
    )
    assert np.all(attacks.distances(targets.images, moved) < 0.7)
    assert np.all(attacks.distances(targets.images, moved) > 0.69)
    way = np.where(targets.classes == 0, -1, 1)[:, None] * NORMAL
    assert np.all(cosine(moved - targets.images, way) > 0.99)


def test_the_minimal_norm_attack_ends_at_the_plane(targets):
    moved = attacker(SCHEMES["gaussian"], steps=40).minimal_norm(
        targets._replace(budgets=np.full(8, 2.0)), first=np.zeros(8, int)
    )
    truth = np.abs(targets.images.reshape(8, 16) @ NORMAL - 0.4 * NORMAL.sum())
    far = truth > 0.1  # nearer, the votes of a step cannot tell the sides apart
    assert far.sum() >= 4
    np.testing.assert_allclose(attacks.distances(targets.images, moved)[far], truth[far], rtol=0.3)


def test_brightness_breaks_a_flat_image_under_l1_alone():
    """Only the noise decides whether a flat image looks rough, and only its level can be moved."""
    flat = np.full((4, *SHAPE), 0.5, np.float32)
    targets = Targets(flat, np.arange(4), np.zeros(4, int), np.full(4, 0.8))
    brighter = np.ones((4, 16))
    moved = attacker(SCHEMES["l1"], rough, 0.3, classes=2).pgd(targets, flat, first=np.zeros(4, int))
    assert np.all(cosine(moved - flat, brighter) > 0.8)
    moved = attacker(SCHEMES["gaussian"], rough, 0.3, classes=2).pgd(targets, flat, first=np.zeros(4, int))
    assert np.all(np.abs(cosine(moved - flat, brighter)) < 0.1)


def test_the_number_of_devices_changes_nothing(targets):
    moved = [
        attacker(SCHEMES["l1"], steps=5, mesh=devices.mesh(count)).pgd(targets, targets.images, first=np.arange(8))
        for count in (1, 4)
    ]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)


def test_logits_that_are_not_finite_leave_x_where_it_is(targets):
    def broken(params, images):
        return jnp.full((len(images), 3), jnp.nan) * params[0] * images[:, 0, 0]

    moved = attacker(SCHEMES["l1"], broken).pgd(targets, targets.images, first=np.zeros(8, int))
    np.testing.assert_array_equal(moved, targets.images)
