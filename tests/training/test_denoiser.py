import csv
import dataclasses
import subprocess
import sys

import budgets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import nnx
from scipy import stats

from idrc_jax import data, models, training
from idrc_jax.certificates import schemes
from idrc_jax.models import diffusion
from idrc_jax.models.diffusion import Schedule
from idrc_jax.sampling import devices
from idrc_jax.training import denoiser, loop, steps, validation
from idrc_jax.training.denoiser import Target
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State

UNET = {
    "channels": 1, "channels_out": 1, "widths": [16, 16], "blocks": 1, "attention": [False, False],
    "middle_attention": False, "groups": 4,
}  # fmt: skip
DESCRIPTION = {"architecture": "unet", "image_shape": [8, 8, 1], "unet": UNET, "dtype": "float32"}
RECIPE = Recipe(epochs=12, batch=64, method="adam", lr=3e-3, weight_decay=0.0, schedule="cosine", warmup_epochs=1.0)
TARGET = Target(Schedule(), sigma_low=0.1, sigma_high=1.0, ema=0.98)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train")


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("denoiser")
    assert denoiser.train(digits, TARGET, RECIPE, DESCRIPTION, workdir, seed=1)
    return workdir


@pytest.mark.evidence
def test_a_trained_denoiser_takes_noise_off_at_every_level(finished):
    """Also more than a blur-free shrinkage towards the mean image can: it has learned what digits look like."""
    test_set = data.load("digits", "test")
    clean = data.to_unit(test_set.images[:200])
    train = data.to_unit(data.load("digits", "train").images)
    mean, variance = train.mean(0), train.var(0)
    denoiser = models.load_denoiser(finished)
    for sigma in (0.1, 0.25, 0.5, 1.0):
        noisy = clean + np.random.default_rng(0).normal(scale=sigma, size=clean.shape).astype(np.float32)
        error = np.mean((np.asarray(denoiser(noisy, sigma=sigma)) - clean) ** 2)
        shrunk = np.clip(mean + variance / (variance + sigma**2) * (noisy - mean), 0, 1)
        assert error < 0.9 * np.mean((np.clip(noisy, 0, 1) - clean) ** 2)
        if sigma >= 0.25:
            assert error < np.mean((shrunk - clean) ** 2)
    with pytest.raises(ValueError, match=r"in \[0\.1, 1\], for which the denoiser was trained, got 1\.5"):
        denoiser(clean, sigma=1.5)


@pytest.mark.evidence
def test_the_log_tells_loss_and_psnr(finished):
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "step", "lr", "loss", "psnr", "seconds"]
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert float(rows[-1]["psnr"]) > float(rows[0]["psnr"])


@pytest.mark.evidence
def test_a_denoiser_and_a_classifier_are_told_apart(finished):
    with pytest.raises(ValueError, match="Expected a classifier, got a denoiser"):
        models.load_classifier(finished)
    kept = models.load_denoiser(finished)
    assert (kept.prediction, kept.sigmas, kept.schedule) == ("epsilon", (0.1, 1.0), Schedule())


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_batches_hold_noisy_images_of_uniform_times_and_their_targets(digits, prediction):
    target = Target(Schedule(), prediction, sigma_low=0.1, sigma_high=1.0)
    batch_of = jax.jit(denoiser.make_batch(Recipe(batch=256, augment=False), target, 0))
    order = steps.epoch_order(0, 0, len(digits))
    batches = [batch_of(step, order, jnp.asarray(digits.images)) for step in range(4)]
    low, high = (target.schedule.time(sigma) for sigma in (0.1, 1.0))
    times = np.concatenate([one.time for one in batches])
    assert stats.kstest(times, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    product = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for one in batches:
        a = np.exp(np.interp(one.time, np.arange(1000), np.log(product)))[:, None, None, None]
        np.testing.assert_allclose(one.a, a, rtol=1e-4)
        noise = (np.asarray(one.x) - np.sqrt(a) * np.asarray(one.clean)) / np.sqrt(1 - a)
        assert noise.mean() == pytest.approx(0, abs=5 / np.sqrt(noise.size))
        assert noise.var() == pytest.approx(1, abs=5 * np.sqrt(2 / noise.size))
        found = diffusion.clean_estimate(prediction, one.target, one.x, one.a)
        np.testing.assert_allclose(found, one.clean, atol=2e-5)
    wanted = {image.tobytes() for image in digits.images}
    found = np.round((np.asarray(batches[0].clean) + 1) * 255 / 2).astype(np.uint8)
    assert {image.tobytes() for image in found} <= wanted


@pytest.mark.evidence
def test_what_is_kept_is_the_moving_average_of_the_weights(digits):
    mesh = devices.mesh(1)
    graph, params, _ = models.split(models.build(DESCRIPTION, dtype="float32", rngs=nnx.Rngs(0)))
    optimiser = RECIPE.optimiser(4)
    step = jax.jit(denoiser.make_step(graph, RECIPE, TARGET, optimiser, 0, mesh))
    state = State(params, jax.tree.map(jnp.copy, params), optimiser.init(params), jnp.zeros((), jnp.int32))
    mean = {name: np.asarray(value, np.float64) for name, value in params.items()}
    order = steps.epoch_order(0, 0, len(digits))
    for k in range(8):
        state, _ = step(state, order, jnp.asarray(digits.images))
        keep = min(TARGET.ema, (1 + k) / (10 + k))
        mean = {name: keep * mean[name] + (1 - keep) * np.asarray(state.params[name]) for name in mean}
    for name, value in mean.items():
        np.testing.assert_allclose(state.stats[name], value, atol=1e-6)
    assert any(not np.allclose(state.stats[name], state.params[name], atol=1e-4) for name in mean)


@pytest.mark.evidence
def test_a_run_in_two_slices_ends_at_the_weights_of_one(digits, tmp_path, monkeypatch):
    recipe = Recipe(epochs=1, batch=128, method="adam", lr=1e-3)

    def run(folder, budget=None):
        return denoiser.train(digits, TARGET, recipe, DESCRIPTION, tmp_path / folder, budget=budget)

    assert run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_IN_FLIGHT", 0)
        assert not run("sliced", budgets.Three())
    assert run("sliced")
    whole, sliced = (models.read_weights(tmp_path / folder)[0] for folder in ("whole", "sliced"))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, sliced[name])


@pytest.mark.evidence
def test_a_classifier_is_tuned_on_denoised_images_from_given_weights(digits, finished, tmp_path):
    description = {
        "architecture": "resnet", "depth": 8, "classes": 10, "image_shape": [8, 8, 1], "shortcut": "projection",
        "mean": [0.3], "std": [0.38], "dtype": "float32",
    }  # fmt: skip
    scheme, denoiser = schemes.Gaussian(sigma=0.5), models.load_denoiser(finished)
    first = Recipe(epochs=3, batch=128, lr=0.1, augment=False)
    assert training.train(digits, schemes.Gaussian(sigma=0.01), first, description, tmp_path / "clean")

    def tune(folder, lr, **more):
        recipe = Recipe(epochs=1, batch=128, lr=lr, augment=False)
        more = {"start": str(tmp_path / "clean"), "denoiser": denoiser} | more
        assert training.train(digits, scheme, recipe, description, tmp_path / folder, **more)
        return models.read_weights(tmp_path / folder)

    # A rate of next to nothing: the weights are those that it started from, and the batch statistics are of
    # denoised images, whose spread is smaller than the noisy ones'.
    clean, _ = models.read_weights(tmp_path / "clean")
    tuned, told = tune("tuned", 1e-12)
    noisy, _ = tune("noisy", 1e-12, denoiser=None)
    np.testing.assert_allclose(tuned["head.kernel"], clean["head.kernel"], atol=1e-9)
    assert tuned["stem_norm.var"].sum() < 0.9 * noisy["stem_norm.var"].sum()
    assert told["training"]["denoiser"]["weights_sha256"] == denoiser.sha256
    # What is validated is the classifier behind the denoiser.
    with pytest.warns(UserWarning, match="clean may have been trained on 100 of the 100 images that are held out"):
        tune("scored", 0.01, held_out=100)
    (scores,) = csv.DictReader((tmp_path / "scored" / "metrics.csv").read_text().splitlines())
    behind = models.denoised(models.load_classifier(tmp_path / "scored"), denoiser, sigma=0.5)
    chosen = validation.held_out(0, 100, len(digits))
    right = np.asarray(behind(jnp.asarray(data.to_unit(digits.images[chosen])))).argmax(1) == digits.labels[chosen]
    assert 0.3 < right.mean() == float(scores["accuracy_clean"])
    with pytest.raises(ValueError, match=r"Expected start to be the network .* depth was 8, is 14"):
        training.train(
            digits, scheme, first, description | {"depth": 14}, tmp_path / "x", start=str(tmp_path / "clean")
        )
    # Of other classes all but the last layer, which is new.
    few = data.from_arrays(digits.images, digits.labels % 3, name="digits", classes=3)
    with pytest.warns(UserWarning, match=r"clean has another number of classes: the last layer is drawn anew"):
        assert training.train(
            few, scheme, dataclasses.replace(first, epochs=1, lr=1e-12), description | {"classes": 3},
            tmp_path / "few", start=str(tmp_path / "clean"),
        )  # fmt: skip
    other, _ = models.read_weights(tmp_path / "few")
    assert other["head.kernel"].shape == (64, 3)
    assert 0 < np.abs(other["head.kernel"]).max() < 1
    same = [name for name in clean if name.endswith("kernel") and not name.startswith("head")]
    assert all(np.abs(other[name] - clean[name]).max() < 1e-9 for name in same)
    with pytest.raises(ValueError, match=r"Expected scheme = gaussian with a denoiser, got l1"):
        training.train(digits, schemes.L1(sigma=0.5), first, description, tmp_path / "x", denoiser=denoiser)


@pytest.mark.evidence
def test_a_denoiser_starts_from_given_weights(digits, finished, tmp_path):
    """At a rate of next to nothing it keeps them."""
    still = dataclasses.replace(RECIPE, epochs=1, lr=1e-12, warmup_epochs=0.0)
    assert denoiser.train(digits, TARGET, still, DESCRIPTION, tmp_path / "on", start=str(finished))
    before, after = (models.load_denoiser(folder) for folder in (finished, tmp_path / "on"))
    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-8)
    of = {"weights_sha256": before.sha256, "seed": 1, "data_sha256": digits.fingerprint()}
    assert after.description["training"]["start"] == of


@pytest.mark.evidence
def test_weights_of_another_denoiser_are_refused_as_a_start(digits, finished, tmp_path):
    def attempt(target=TARGET, description=DESCRIPTION, **more):
        denoiser.train(digits, target, RECIPE, description, tmp_path / "x", **more)

    with pytest.raises(ValueError, match=r"diffusion\.prediction was epsilon, is v"):
        attempt(Target(Schedule(), "v", sigma_low=0.1, sigma_high=1.0), start=str(finished))
    with pytest.raises(ValueError, match=r"of that in .* diffusion\.schedule\.kind was linear, is cosine"):
        attempt(Target(Schedule("cosine"), sigma_low=0.1, sigma_high=1.0), start=str(finished))
    with pytest.raises(ValueError, match=r"of that in .* unet\.groups was 4, is 2"):
        attempt(description=DESCRIPTION | {"unet": UNET | {"groups": 2}}, start=str(finished))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "noise"}, "Expected prediction to be one of"),
        ({"ema": 1.0}, "ema < 1"),
        ({"sigma_low": 0.5, "sigma_high": 0.25}, "sigma_low <= sigma_high"),
        ({"sigma_high": 200.0}, "which the diffusion schedule spans"),
    ],
)
def test_wrong_targets_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Target(Schedule(), **settings)


@pytest.mark.shared
def test_the_committed_denoiser_takes_noise_off_real_images_at_every_level(shared, tmp_path):
    unpack = [sys.executable, str(shared / "cifar10" / "unpack.py"), str(tmp_path)]
    subprocess.run(unpack, check=True, capture_output=True)
    clean = data.to_unit(data.load("cifar10", "test", directory=str(tmp_path)).images[:40])
    denoiser = models.load_denoiser(ROOT / "checkpoints" / "cifar10_denoiser_small.safetensors")
    assert denoiser.sigmas == pytest.approx((0.05, 1.0))
    for sigma, least in ((0.05, 1.0), (0.12, 2.0), (0.25, 5.0), (0.5, 7.0), (1.0, 7.0)):
        noisy = clean + np.random.default_rng(0).normal(scale=sigma, size=clean.shape).astype(np.float32)
        before, after = (np.mean((np.clip(x, 0, 1) - clean) ** 2) for x in (noisy, denoiser(noisy, sigma=sigma)))
        assert before > least * after
