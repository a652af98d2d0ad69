"""Training by other losses than that of noise augmentation: batches, kernels, devices, checkpoints, the average."""

import csv
import dataclasses
import json

import budgets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from small_networks import RESNET as DESCRIPTION

from idrc_jax import data, losses, models, training
from idrc_jax.certificates import schemes
from idrc_jax.sampling import devices, noise_laws
from idrc_jax.training import RunOptions, loop, moving_average, steps, training_votes
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State

SCHEME = schemes.L1(sigma=0.5)
RECIPE = Recipe(epochs=1, batch=128, lr=0.05, augment=False)
CONSISTENCY = losses.make("consistency", 0.5, noises=4, label_smoothing=0.1)


def train(synthetic, workdir, loss=CONSISTENCY, ema=0.9, **more):
    return training.train(synthetic, SCHEME, RECIPE, DESCRIPTION, workdir, loss=loss, ema=ema, **more)


@pytest.fixture(scope="module")
def trained(synthetic, tmp_path_factory):
    """The folder of 16 steps of 32 images with four noises each; what is kept is the average of the weights."""
    workdir = tmp_path_factory.mktemp("trained")
    assert train(synthetic, workdir)
    return workdir


def tensors(workdir):
    return safetensors.numpy.load_file(workdir / "weights.safetensors")


def test_a_batch_has_each_image_with_its_own_noises_at_its_own_level(synthetic):
    images, labels = jnp.asarray(synthetic.images), jnp.asarray(synthetic.labels)
    recipe = Recipe(batch=64, augment=False, sigma_low=0.1)
    batch = jax.jit(training.make_batch(recipe, SCHEME, 3, noises=4))(5, steps.epoch_order(3, 0, 512), images, labels)
    chosen = np.asarray(steps.epoch_order(3, 0, 512))[5 * 16 : 6 * 16]
    np.testing.assert_array_equal(batch.labels, synthetic.labels[chosen])
    np.testing.assert_allclose(batch.images, data.to_unit(synthetic.images[chosen]), rtol=1e-6)
    assert (batch.noise.shape, batch.noises) == ((64, 8, 8, 1), 4)
    sizes = np.asarray(batch.noise).reshape(16, 4, 64).std(-1)
    np.testing.assert_allclose(sizes / batch.levels[:, None], 1, atol=0.5)
    assert np.unique(np.asarray(batch.noise)[:, 0, 0, 0]).size == 64
    most = noise_laws.levels(SCHEME, batch.images)
    assert (batch.levels < most).all()
    assert (batch.levels > 0.2 * most * 0.999).all()


def test_an_epoch_has_as_many_images_as_ever_and_the_description_tells_the_loss(synthetic, trained):
    rows = list(csv.DictReader((trained / "metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "16")]
    described = json.loads((trained / "train_config.json").read_text())["training"]
    assert described["loss"] == {
        "name": "consistency", "noises": 4, "label_smoothing": 0.1, "weight": 10.0, "entropy": 0.5,
    }  # fmt: skip
    assert described["ema"] == 0.9
    assert models.load_classifier(trained).description["training"]["loss"] == described["loss"]


def test_other_settings_of_the_loss_in_the_same_folder_are_refused(synthetic, trained):
    other = losses.make("consistency", 0.5, noises=4, label_smoothing=0.1, weight=5.0)
    with pytest.raises(ValueError, match=r"training\.loss\.weight was 10\.0, is 5\.0\."):
        train(synthetic, trained, other)
    with pytest.raises(ValueError, match=r"training\.ema was 0\.9, is unset\."):
        train(synthetic, trained, ema=0.0)


def test_a_run_in_two_slices_ends_at_the_weights_of_one(synthetic, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_IN_FLIGHT", 0)
        assert not train(synthetic, tmp_path, budget=budgets.Three())
    assert train(synthetic, tmp_path)
    assert tensors(tmp_path).keys() == tensors(trained).keys()
    for name, value in tensors(trained).items():
        np.testing.assert_array_equal(tensors(tmp_path)[name], value)


def test_noise_augmentation_says_nothing_new_so_that_older_runs_go_on(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_IN_FLIGHT", 0)
    assert not train(synthetic, tmp_path, losses.Gaussian(), 0.0, budget=budgets.Three())
    described = json.loads((tmp_path / "train_config.json").read_text())["training"]
    assert list(described) == ["scheme", "recipe", "seed", "data", "data_sha256"]


def few_steps(synthetic, loss, count, kernel, ema=0.0):
    """The state and losses after three steps."""
    mesh = devices.mesh(count)
    _, params, stats = models.split(models.build(DESCRIPTION, dtype="float32", rngs=nnx.Rngs(0)))
    optimiser = RECIPE.optimiser(8)
    kept = moving_average.first(params, stats) if ema else stats
    state = jax.device_put(
        State(params, kept, optimiser.init(params), jnp.zeros((), jnp.int32)), devices.replicated(mesh)
    )
    network = training.network_on(mesh, DESCRIPTION, kernel)
    step = training.make_step(network, RECIPE, SCHEME, optimiser, 0, mesh, loss=loss, ema=ema)
    run = loop.dispatches(step, on_cpu=True)
    placed = [jax.device_put(array, devices.replicated(mesh)) for array in (synthetic.images, synthetic.labels)]
    order, found, states = steps.epoch_order(0, 0, len(synthetic)), [], []
    for _ in range(3):
        state, metrics = run(state, order, *placed, count=1)
        found += np.asarray(metrics.loss).tolist()
        states.append(jax.device_get(state))
    return states, found


@pytest.mark.parametrize(
    "loss",
    [
        losses.make("consistency", 0.5),
        pytest.param(losses.make("smoothadv", 0.5, noises=2, steps=2), marks=pytest.mark.evidence),
        pytest.param(losses.make("stability", 0.5), marks=pytest.mark.evidence),
        pytest.param(losses.make("macer", 0.5), marks=pytest.mark.evidence),
        pytest.param(losses.make("smoothmix", 0.5, steps=2), marks=pytest.mark.evidence),
        pytest.param(losses.make("hard_samples", 0.5, start_epoch=0, steps=2), marks=pytest.mark.evidence),
    ],
)
def test_the_kernel_trains_by_every_loss_as_xla_does_on_four_devices(synthetic, loss):
    (*_, ours), found = few_steps(synthetic, loss, 1, "auto")
    (*_, theirs), expected = few_steps(synthetic, loss, 4, "xla")
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    for group in ("params", "stats"):
        for name, value in getattr(theirs, group).items():
            np.testing.assert_allclose(getattr(ours, group)[name], value, atol=5e-3, err_msg=name)


@pytest.mark.evidence
def test_statistics_of_a_device_are_those_of_its_images_with_all_their_noises(synthetic):
    """The loss of a step on four devices is the mean of four networks' with a quarter of the images each."""
    mesh, loss = devices.mesh(4), losses.make("consistency", 0.5)
    _, params, stats = models.split(models.build(DESCRIPTION, dtype="float32", rngs=nnx.Rngs(0)))
    optimiser, order = RECIPE.optimiser(8), steps.epoch_order(0, 0, len(synthetic))
    network, images = training.network_on(mesh, DESCRIPTION), (synthetic.images, synthetic.labels)
    state = State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32))
    step = training.make_step(network, RECIPE, SCHEME, optimiser, 0, mesh, statistics="device", loss=loss)
    _, metrics = jax.jit(step)(state, order, *map(jnp.asarray, images))
    batch = jax.jit(training.make_batch(RECIPE, SCHEME, 0, noises=2, split=True))(0, order, *map(jnp.asarray, images))
    quarters = (jax.tree.map(lambda leaf, at=at: jnp.split(leaf, 4)[at], batch) for at in range(4))
    values = [loss(network, params, stats, one, jax.random.key(0), jnp.asarray(0))[0] for one in quarters]
    assert float(metrics.loss) == pytest.approx(float(np.mean(values)), rel=1e-4)


def test_the_average_is_of_weights_and_running_statistics(synthetic):
    states, _ = few_steps(synthetic, losses.Gaussian(), 1, "auto", ema=0.3)
    plain, _ = few_steps(synthetic, losses.Gaussian(), 1, "auto")
    _, params, stats = models.split(models.build(DESCRIPTION, dtype="float32", rngs=nnx.Rngs(0)))
    mean = {name: np.asarray(value) for name, value in (params | stats).items()}
    for step, (state, other) in enumerate(zip(states, plain, strict=True)):
        running, average = moving_average.parted(state.params, state.stats)
        keep = min(0.3, (1 + step) / (10 + step))
        mean = {name: keep * mean[name] + (1 - keep) * value for name, value in (state.params | running).items()}
        for name, value in mean.items():
            np.testing.assert_allclose(average[name], value, rtol=1e-5, atol=1e-6)
        for name, value in other.params.items():
            np.testing.assert_array_equal(state.params[name], value)  # which the average does not change


def test_a_network_without_running_statistics_is_averaged_too(synthetic):
    mesh, optimiser = devices.mesh(1), RECIPE.optimiser(4)

    def linear(params, stats, images):
        return images.reshape(len(images), -1) @ params["kernel"], stats

    network = losses.Network(linear, lambda params, stats: lambda images: linear(params, stats, images)[0])
    step = jax.jit(training.make_step(network, RECIPE, SCHEME, optimiser, 0, mesh, ema=0.3))
    params = {"kernel": jnp.ones((64, 4))}
    stats = moving_average.first(params, {})
    state, mean = State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32)), params["kernel"]
    for keep in (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3):
        state, _ = step(state, steps.epoch_order(0, 0, 512), synthetic.images, synthetic.labels)
        mean = keep * mean + (1 - keep) * state.params["kernel"]
        running, average = moving_average.parted(state.params, state.stats)
        np.testing.assert_allclose(average["kernel"], mean, rtol=1e-5)
        assert (running, set(average)) == ({}, {"kernel"})


def test_one_cycle_rises_and_falls_as_pytorchs_does():
    rate = Recipe(epochs=10, lr=0.2, schedule="onecycle").learning_rate(10)
    assert float(rate(0)) == pytest.approx(0.2 / 25)
    assert float(rate(15)) == pytest.approx((0.2 + 0.2 / 25) / 2)
    assert float(rate(30)) == pytest.approx(0.2)
    assert float(rate(65)) == pytest.approx(0.1, rel=1e-3)
    assert float(rate(100)) == pytest.approx(0.2 / 25e4, abs=1e-8)
    assert float(Recipe(epochs=10, lr=0.2, schedule="onecycle", warmup_epochs=1.0).learning_rate(10)(10)) == (
        pytest.approx(0.2)
    )


@pytest.mark.peers
def test_one_cycle_is_pytorchs():
    torch = pytest.importorskip("torch")
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=101, cycle_momentum=False)
    rate = Recipe(epochs=10, lr=0.2, schedule="onecycle").learning_rate(10)
    for step in range(0, 100):
        # PyTorch's peak lies at .3 * steps - 1.
        assert float(rate(step)) == pytest.approx(peer.get_last_lr()[0], rel=0.1, abs=2e-3)
        optimiser.step()
        peer.step()


def test_noises_that_do_not_divide_the_batch_are_refused(synthetic, tmp_path):
    with pytest.raises(ValueError, match=r"Expected batch, all noisy copies of a step, .* noises = 3, got 128"):
        train(synthetic, tmp_path / "run", losses.Gaussian(noises=3))
    with pytest.raises(ValueError, match="Expected batch, 64 noises an image, to be a multiple of 4 devices, got 128"):
        train(synthetic, tmp_path / "run", losses.Gaussian(noises=64), mesh=devices.mesh(4))
    with pytest.raises(ValueError, match="Expected 0 <= ema < 1, got 1"):
        train(synthetic, tmp_path / "run", ema=1.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.evidence
def test_looks_at_held_out_images_are_of_the_average(synthetic, tmp_path):
    assert train(synthetic, tmp_path, losses.Gaussian(), 0.5, held_out=60, options=RunOptions())
    (row,) = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    out = training.validation.held_out(0, 60, len(synthetic))
    classifier = models.load_classifier(tmp_path, kernel="xla")
    right = np.asarray(classifier(jnp.asarray(data.to_unit(synthetic.images[out])))).argmax(-1) == synthetic.labels[out]
    assert float(row["accuracy_clean"]) == pytest.approx(right.mean())


@pytest.mark.evidence
def test_catrs_learns_from_the_votes_of_a_teacher_which_are_kept(synthetic, trained, tmp_path, monkeypatch):
    teacher = training.Teacher(models.load_classifier(trained, kernel="xla"), samples=5)
    loss = losses.make("catrs", 0.5, noises=2, steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_IN_FLIGHT", 0)
        assert not train(synthetic, tmp_path, loss, 0.0, teacher=teacher, budget=budgets.Three())
    counts = np.load(tmp_path / "teacher_votes.npy")
    assert counts.shape == (512, 4)
    assert (counts.sum(1) == 5).all()
    assert (counts.argmax(1) == synthetic.labels).mean() > 0.5
    described = json.loads((tmp_path / "train_config.json").read_text())["training"]
    assert described["teacher"] == {"weights_sha256": teacher.classifier.sha256, "samples": 5}
    with monkeypatch.context() as patched:  # read, not counted again
        patched.setattr(training_votes, "_count", None)
        assert train(synthetic, tmp_path, loss, 0.0, teacher=teacher)
    with pytest.raises(ValueError, match=r"training\.teacher\.samples was 5, is 6\."):
        train(synthetic, tmp_path, loss, 0.0, teacher=training.Teacher(teacher.classifier, 6))


def test_a_teacher_is_for_the_losses_that_need_one_and_of_the_same_classes(synthetic, trained, tmp_path):
    classifier = models.load_classifier(trained, kernel="xla")
    with pytest.raises(ValueError, match="Expected no teacher for the loss consistency, which learns from labels"):
        train(synthetic, tmp_path / "run", teacher=training.Teacher(classifier))
    with pytest.raises(
        ValueError, match="Expected teacher, a network trained under Gaussian noise, for the loss catrs"
    ):
        train(synthetic, tmp_path / "run", losses.make("catrs", 0.5))
    other = dataclasses.replace(classifier, classes=5)
    with pytest.raises(ValueError, match="Expected a teacher with classes = 4, got 5"):
        train(synthetic, tmp_path / "run", losses.make("catrs", 0.5), teacher=training.Teacher(other))
    with pytest.raises(ValueError, match="teacher_samples >= 1"):
        training.Teacher(classifier, 0)
    assert not (tmp_path / "run").exists()
