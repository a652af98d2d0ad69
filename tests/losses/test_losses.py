"""Each loss against NumPy in float64 on a small network: value, statistics, gradient by finite differences, passes."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from idrc_jax import losses
from idrc_jax.certificates import schemes
from idrc_jax.core.validate import SettingError
from idrc_jax.losses import catrs, consistency, hard_samples, macer, router, smoothadv, smoothmix, stability
from idrc_jax.losses.loss import warmed_up

PARAMS, STATS = exact.tensors()
KEY = jax.random.key(5)
EPOCH = 2  # of the epochs of warm-up, three tenths


def train(params, stats, images):
    h = images.reshape(images.shape[0], -1) @ params["in"]
    mean, var = h.mean(0), h.var(0)
    new = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    return jnp.tanh((h - mean) / jnp.sqrt(var + 1e-5)) @ params["out"] + params["bias"], new


def fixed(params, stats):
    def apply(images):
        h = (images.reshape(images.shape[0], -1) @ params["in"] - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)
        return jnp.tanh(h) @ params["out"] + params["bias"]

    return apply


NETWORK = losses.Network(train, fixed)


def floats(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def batch_of(case):
    images, noise, levels, teacher = floats((case.images, case.noise, case.levels, case.teacher))
    return losses.Batch(images, jnp.asarray(case.labels), noise, levels, teacher)


def value_of(loss, case, params=PARAMS, epoch=EPOCH, network=NETWORK):
    batch, stats = batch_of(case), floats(STATS)

    def total(params):
        return loss(network, params, stats, batch, KEY, jnp.asarray(epoch))

    return jax.jit(jax.value_and_grad(total, has_aux=True))(floats(params))


def shares(case):
    return np.asarray(jax.random.uniform(KEY, (len(case.labels),), maxval=0.5), np.float64)


def uniforms(case):
    return np.asarray(jax.random.uniform(KEY, (len(case.labels), case.m)), np.float64)


THREE = exact.Case(noises=3)
MANY = exact.Case(images=20, noises=4, sigma=0.2, seed=2)
CASES = {
    "gaussian": (losses.Gaussian(noises=3), THREE, lambda *a: exact.gaussian(*a)),
    "smoothed": (losses.Gaussian(noises=3, label_smoothing=0.1), THREE, lambda *a: exact.gaussian(*a, 0.1)),
    "stability": (stability.Stability(noises=3, weight=2.0), THREE, lambda *a: exact.stability(*a, 2.0)),
    "consistency": (
        consistency.Consistency(noises=3, weight=10.0, entropy=0.5), THREE, lambda *a: exact.consistency(*a, 10.0, 0.5),
    ),
    "smoothadv": (
        smoothadv.SmoothAdv(noises=3, epsilon=0.5, steps=5), THREE, lambda *a: exact.smoothadv(*a, 0.3 * 0.5, 5),
    ),
    "macer": (
        macer.Macer(noises=4, weight=3.0, beta=2.0, gamma=1.5), MANY, lambda *a: exact.macer(*a, 3.0, 2.0, 1.5),
    ),
    "smoothmix": (
        smoothmix.SmoothMix(noises=4, step_size=0.4, one_step=False), MANY,
        lambda *a: exact.smoothmix(*a, 5.0, 4, 0.4, False, 0.3, shares(MANY)),
    ),
    "one step": (
        smoothmix.SmoothMix(noises=4, step_size=0.4, one_step=True), MANY,
        lambda *a: exact.smoothmix(*a, 5.0, 4, 0.4, True, 0.3, shares(MANY)),
    ),
    "catrs": (
        catrs.CatRs(noises=4, weight=2.0, epsilon=0.4), MANY, lambda *a: exact.catrs(*a, 2.0, 0.4, 4, uniforms(MANY)),
    ),
    "router": (
        router.Router(noises=3, weight=2.0, entropy=0.3), THREE, lambda *a: exact.router(*a, 2.0, 0.3),
    ),
    "hard_samples": (
        hard_samples.HardSamples(noises=4, start_epoch=EPOCH, steps=4, step_size=0.15).at(EPOCH), MANY,
        lambda *a: exact.hard_samples(*a, 0.15, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_loss_is_that_of_numpy_and_its_gradient_that_of_finite_differences(name):
    loss, case, by_hand = CASES[name]
    (value, outcome), gradient = value_of(loss, case)
    expected, stats = by_hand(case, PARAMS, STATS, PARAMS)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    for part, array in stats.items():
        np.testing.assert_allclose(outcome.stats[part], array, rtol=1e-5, atol=1e-6)
    for part in PARAMS:
        direction = np.random.default_rng(3).normal(size=PARAMS[part].shape)

        def moved(step, part=part, direction=direction):
            return by_hand(case, PARAMS | {part: PARAMS[part] + step * direction}, STATS, PARAMS)[0]

        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert float(np.sum(gradient[part] * direction)) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        consistency.Consistency(noises=3, weight=0.0, entropy=0.0),
        smoothadv.SmoothAdv(noises=3, epsilon=1e-30),
        smoothmix.SmoothMix(noises=3, weight=0.0, one_step=False),
        hard_samples.HardSamples(noises=3, start_epoch=0, steps=0),
        hard_samples.HardSamples(noises=3, start_epoch=EPOCH + 1).at(EPOCH),
    ],
)
def test_without_its_term_a_loss_is_that_of_noise_augmentation_to_the_bit(loss):
    (value, outcome), gradient = value_of(loss, THREE)
    (plain, plainly), by_noise = value_of(losses.Gaussian(noises=3), THREE)
    assert float(value) == float(plain)
    assert float(outcome.accuracy) == float(plainly.accuracy)
    for part, array in by_noise.items():
        np.testing.assert_array_equal(gradient[part], array)


def test_macer_without_its_term_and_with_one_noise_is_noise_augmentation():
    one = exact.Case(images=9, noises=1)
    (value, _), gradient = value_of(macer.Macer(noises=1, weight=0.0), one)
    (plain, _), by_noise = value_of(losses.Gaussian(), one)
    assert float(value) == pytest.approx(float(plain), rel=1e-6)
    for part, array in by_noise.items():
        np.testing.assert_allclose(gradient[part], array, atol=1e-6)


def test_gaps_of_macer_that_are_infinite_or_too_large_have_no_gradient():
    sure = PARAMS | {"out": 1e3 * PARAMS["out"]}
    (value, _), gradient = value_of(macer.Macer(noises=4), MANY, sure)
    assert np.isfinite(value)
    assert all(np.isfinite(array).all() for array in gradient.values())


@pytest.mark.evidence
@pytest.mark.parametrize(
    ("name", "trained", "climbed"),
    [("gaussian", 1, 0), ("stability", 2, 0), ("consistency", 1, 0), ("smoothadv", 1, 5), ("macer", 1, 0),
     ("smoothmix", 2, 4), ("catrs", 2, 4), ("hard_samples", 1, 4), ("router", 1, 0)],
)  # fmt: skip
def test_a_loss_takes_as_many_passes_as_it_says(name, trained, climbed):
    """Each forward and backward; consistency as many as noise augmentation of the same rows, smoothadv T + 1."""
    loss, case, _ = CASES[name]
    rows = {"train": [], "fixed": []}

    def counted_train(params, stats, images):
        rows["train"].append(len(images))
        return train(params, stats, images)

    def counted_fixed(params, stats):
        def apply(images):
            rows["fixed"].append(len(images))
            return fixed(params, stats)(images)

        return apply

    network = losses.Network(counted_train, counted_fixed)
    with jax.disable_jit():
        value_of(loss, case, network=network)
    assert (len(rows["train"]), len(rows["fixed"])) == (trained, climbed)
    assert max(rows["train"] + rows["fixed"]) == len(case.noise)


def test_an_attack_stays_in_its_ball_and_in_the_cube_and_reaches_a_larger_loss():
    loss = smoothadv.SmoothAdv(noises=3, epsilon=0.5, warmup=0.0)
    seen = []

    def watched(params, stats, images):
        seen.append(np.asarray(images))
        return train(params, stats, images)

    with jax.disable_jit():
        value_of(loss, THREE, network=losses.Network(watched, fixed))
    moved = (seen[-1] - THREE.noise).reshape(len(THREE.labels), 3, 2, 3, 2)
    assert np.ptp(moved, axis=1).max() < 1e-5  # the same shift for each noise
    shifts = moved[:, 0] - THREE.images
    assert np.sqrt((shifts**2).sum((1, 2, 3))).max() <= 0.5 + 1e-5
    assert moved.min() > -1e-5
    assert moved.max() < 1 + 1e-5
    plain = -np.log(THREE.by_image(exact.softmax(exact.fixed(PARAMS, STATS, THREE.noisy()))).mean(1))
    after = -np.log(THREE.by_image(exact.softmax(exact.fixed(PARAMS, STATS, THREE.noisy(moved[:, 0])))).mean(1))
    own = np.arange(len(THREE.labels)), THREE.labels
    assert (after[own] > plain[own]).all()


def test_worst_noise_keeps_the_mean_and_size_of_the_noise():
    loss = catrs.CatRs(noises=4, epsilon=0.4)
    batch = batch_of(MANY)
    moved = np.asarray(loss.worst_noise(NETWORK, floats(PARAMS), floats(STATS), batch), np.float64)
    expected = exact.catrs_noise(MANY, PARAMS, STATS, 0.4, 4)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    assert np.abs(moved - MANY.noise).max() > 0.05


def test_attacked_noise_keeps_its_length_and_stays_where_the_network_is_wrong():
    loss = hard_samples.HardSamples(noises=4, steps=3, step_size=0.15)
    batch = batch_of(MANY)
    moved = np.asarray(loss.worse_noise(NETWORK, floats(PARAMS), floats(STATS), batch))
    np.testing.assert_allclose(exact.norms(moved), exact.norms(MANY.noise), rtol=1e-5)
    wrong = exact.fixed(PARAMS, STATS, MANY.noisy()).argmax(-1) != MANY.repeated
    apart = exact.norms(moved - MANY.noise)[:, 0, 0, 0]
    assert apart[wrong].max() < 1e-5 < 0.1 < apart[~wrong].min()


def test_noise_of_no_length_stays_none():
    """That of an image whose level is 0, as `l1` gives a black one."""
    batch = batch_of(MANY)._replace(noise=jnp.zeros_like(batch_of(MANY).noise))
    loss = hard_samples.HardSamples(noises=4, steps=2)
    assert not np.any(loss.worse_noise(NETWORK, floats(PARAMS), floats(STATS), batch))


def test_images_are_weighed_by_the_bound_on_their_right_answers():
    """By SciPy's distributions: the 10 % quantile of Beta(k, n - k + 1), in normal quantiles."""
    loss = hard_samples.HardSamples(weight_samples=16, threshold=0.4, threshold_samples=10)
    expected = [stats.norm.ppf(stats.beta.ppf(0.1, max(k, 12), 17 - max(k, 12))) for k in range(17)]
    np.testing.assert_allclose(loss.weights(np.arange(17)), expected, rtol=1e-6)
    assert loss.weights(np.arange(17)).min() > 0
    assert loss.kept(np.arange(11)).tolist() == [False] * 4 + [True] * 7
    assert hard_samples.HardSamples(threshold=0.07, threshold_samples=100).kept(np.asarray([6, 7])).tolist() == [
        False, True,
    ]  # fmt: skip
    assert (hard_samples.HardSamples(weight_samples=12).weights(np.arange(13)) > 0).all()


def test_warm_up_rises_to_one_in_its_epochs():
    assert [round(float(warmed_up(jnp.asarray(epoch), 4.0)), 6) for epoch in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert float(warmed_up(jnp.asarray(0), 0.0)) == 1


@pytest.mark.parametrize(
    ("name", "sigma", "expected"),
    [
        ("consistency", 0.25, {"noises": 2, "weight": 20.0, "entropy": 0.5}),
        ("consistency", 0.5, {"weight": 10.0}),
        ("consistency", 0.12, {"weight": 20.0}),
        ("smoothadv", 0.25, {"noises": 4, "epsilon": 1.0, "steps": 10, "warmup": 10.0}),
        ("smoothadv", 0.5, {"noises": 8, "epsilon": 1.0}),
        ("smoothadv", 1.2, {"noises": 2, "epsilon": 2.0}),
        ("smoothmix", 0.25, {"noises": 2, "weight": 5.0, "steps": 4, "step_size": 0.5, "one_step": False}),
        ("smoothmix", 1.0, {"step_size": 2.0, "one_step": True}),
        ("macer", 0.5, {"noises": 16, "weight": 12.0, "beta": 16.0, "gamma": 8.0}),
        ("stability", 0.25, {"noises": 1, "weight": 2.0}),
        ("stability", 1.0, {"weight": 1.0}),
        ("hard_samples", 0.25, {"noises": 4, "start_epoch": 60, "threshold": 0.5, "steps": 3, "step_size": 0.25}),
        ("hard_samples", 0.5, {"start_epoch": 70, "threshold": 0.4, "steps": 6, "step_size": 0.25}),
        ("hard_samples", 1.0, {"start_epoch": 60, "threshold": 0.4, "steps": 4, "step_size": 0.5}),
        ("hard_samples", 2.0, {"threshold_samples": 100, "redraw_epochs": 10, "weight_samples": 16}),
        ("gaussian", 0.5, {"noises": 1, "label_smoothing": 0.0}),
    ],
)
def test_settings_are_those_published_for_the_nearest_level(name, sigma, expected):
    made = losses.make(name, sigma)
    assert {key: getattr(made, key) for key in expected} == expected
    assert made.describe()["name"] == name
    assert losses.make(name, sigma, noises=3).noises == 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("consistent", {}, "Expected name to be one of .*, got 'consistent'. Did you mean 'consistency'?"),
        ("consistency", {"weight": -0.5}, "Expected weight >= 0, got -0.5."),
        ("consistency", {"noises": 1}, "Expected noises >= 2 for the loss consistency, as one copy agrees with itself"),
        ("consistency", {"epsilon": 0.5}, "Expected no epsilon for the loss consistency, whose settings are noises, "),
        ("smoothadv", {"epsilon": 0.0}, "Expected epsilon > 0, got 0.0."),
        ("smoothadv", {"steps": 0}, "Expected steps >= 1, got 0."),
        ("macer", {"beta": 0.0}, "Expected beta > 0, got 0.0."),
        ("smoothmix", {"step_size": -2.0}, "Expected step_size > 0, got -2.0."),
        ("hard_samples", {"threshold": 1.0}, "Expected 0 <= threshold < 1, got 1.0."),
        ("hard_samples", {"weight_samples": 14}, "Expected weight_samples to be a multiple of 4 and at least 12, of"),
        ("hard_samples", {"weight_samples": 8}, "Expected weight_samples to be a multiple of 4 and at least 12, of"),
        ("hard_samples", {"redraw_epochs": 0}, "Expected redraw_epochs >= 1, got 0."),
        ("hard_samples", {"step_size": 0.0}, "Expected step_size > 0, got 0.0."),
        ("gaussian", {"noises": 0}, "Expected noises >= 1, got 0."),
        ("gaussian", {"label_smoothing": 1.0}, "Expected 0 <= label_smoothing < 1, got 1.0."),
    ],
)
def test_settings_that_cannot_be_are_one_line(name, settings, message):
    with pytest.raises(SettingError) as refused:
        losses.make(name, 0.5, **settings)
    assert str(refused.value).startswith(message.partition(".*")[0])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["l2", "uniform"])
def test_macer_is_for_gaussian_noise(scheme):
    loss = macer.Macer()
    with pytest.raises(SettingError, match=f"of Gaussian noise for the loss macer, .*, got {scheme}"):
        loss.check(schemes.make(scheme, sigma=0.5), 0.0)
    for fit in ("gaussian", "l1", "stepped", "inverse_sqrt_norm"):
        loss.check(schemes.make(fit, sigma=0.5), 0.1)


def test_hard_samples_are_for_gaussian_noise_at_one_level():
    loss = hard_samples.HardSamples()
    with pytest.raises(SettingError, match=r"of Gaussian noise for the loss hard_samples, .*, got uniform"):
        loss.check(schemes.make("uniform", sigma=0.5), 0.0)
    with pytest.raises(SettingError, match=r"sigma_low = 0 for the loss hard_samples, .*, got 0\.1"):
        loss.check(schemes.make("gaussian", sigma=0.5), 0.1)
    loss.check(schemes.make("l1", sigma=0.5), 0.0)


def test_a_router_that_is_sure_of_the_wrong_level_is_pushed_away_from_it():
    """As hard as the choice is worth; the expected loss of the soft choice has next to no gradient there."""
    constant = losses.Network(lambda logits, stats, images: (jnp.tile(logits, (len(images), 1)), stats), fixed)
    teacher = jnp.asarray([[0.1, 0.9], [0.3, 0.3]])
    batch = losses.Batch(jnp.zeros((2, 4, 4, 1)), jnp.asarray([1, 0]), jnp.zeros((4, 4, 4, 1)), jnp.ones(2), teacher)

    def total(logits):
        return router.Router()(constant, logits, {}, batch, KEY, jnp.asarray(0.0))[0]

    value, gradient = jax.value_and_grad(total)(jnp.asarray([12.0, -12.0]))
    assert float(value) == pytest.approx(0.8 * 24 / 2, rel=1e-5)  # the other image does not care
    np.testing.assert_allclose(gradient, [0.4, -0.4], rtol=1e-5)
