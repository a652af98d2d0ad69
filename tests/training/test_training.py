import csv
import json
import shutil
from unittest import mock

import budgets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from scipy import stats
from small_networks import RESNET as DESCRIPTION

from idrc_jax import data, models, training
from idrc_jax.certificates import schemes
from idrc_jax.core import files
from idrc_jax.sampling import devices
from idrc_jax.training import RunOptions, loop, metrics_log, steps
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State

SCHEME = schemes.Gaussian(sigma=0.25)


def train(synthetic, workdir, recipe=None, scheme=SCHEME, seed=0, budget=None, **options):
    recipe, options = recipe or Recipe(epochs=1, batch=128, lr=0.05), RunOptions(**options)
    return training.train(synthetic, scheme, recipe, DESCRIPTION, workdir, seed=seed, options=options, budget=budget)


def fresh_state(recipe, mesh):
    graph, params, stats = models.split(models.build(DESCRIPTION, dtype="float32", rngs=nnx.Rngs(0)))
    optimiser = recipe.optimiser(4)
    return (
        graph,
        optimiser,
        jax.device_put(
            State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32)), devices.replicated(mesh)
        ),
    )


def order_of(count, epoch=0):
    return steps.epoch_order(0, epoch, count)


def loss_on(graph, state, images, labels):
    logits = models.merge(graph, state.params, state.stats)(images, train=True)
    return float(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)))


@pytest.mark.evidence
def test_steps_lower_the_loss_on_a_fixed_batch_the_same_on_one_and_four_devices(synthetic):
    """The loss is computed here from the weights, without the step's own report."""
    recipe = Recipe(batch=64, lr=0.05, augment=False)
    images, labels = jnp.asarray(synthetic.images[:64]), jnp.asarray(synthetic.labels[:64])
    after = {}
    for count in (1, 4):
        mesh = devices.mesh(count)
        graph, optimiser, state = fresh_state(recipe, mesh)
        network = training.network_on(mesh, DESCRIPTION, "xla")
        step = loop.dispatches(training.make_step(network, recipe, SCHEME, optimiser, 0, mesh), on_cpu=True)
        before = loss_on(graph, state, data.to_unit(images), labels)
        placed = [jax.device_put(array, devices.replicated(mesh)) for array in (images, labels)]
        for _ in range(5):
            state, metrics = step(state, order_of(64), *placed, count=1)
        assert int(state.step) == 5
        after[count] = state
        assert (
            loss_on(
                graph, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state), data.to_unit(images), labels
            )
            < 0.8 * before
        )
        assert np.isfinite(metrics.loss).all()
    for one, four in zip(jax.tree.leaves(after[1].params), jax.tree.leaves(after[4].params), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-3, atol=1e-4)


@pytest.mark.evidence
def test_statistics_of_a_device_are_those_of_its_share(synthetic):
    """A step on four devices against four networks, each with a quarter of the very same noisy batch."""
    recipe, mesh = Recipe(batch=64, lr=0.05, augment=False), devices.mesh(4)
    images, labels = jnp.asarray(synthetic.images[:64]), jnp.asarray(synthetic.labels[:64])
    _, optimiser, state = fresh_state(recipe, mesh)
    network = training.network_on(mesh, DESCRIPTION)
    batch = jax.jit(training.make_batch(recipe, SCHEME, 0, split=True))(0, order_of(64), images, labels)
    noisy, targets = batch.images + batch.noise, batch.labels

    @jax.jit
    @jax.value_and_grad
    def loss_of(params, images, labels):
        logits = network.train(params, state.stats, images)[0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    quarters = [(noisy[at : at + 16], targets[at : at + 16]) for at in range(0, 64, 16)]
    losses, gradients = zip(*(loss_of(state.params, *one) for one in quarters), strict=True)
    seen = [jax.jit(network.train)(state.params, state.stats, one)[1] for one, _ in quarters]
    gradients, stats = (jax.tree.map(lambda *leaves: sum(leaves) / 4, *trees) for trees in (gradients, seen))
    expected = steps.descend(state, optimiser, gradients, stats)

    step = training.make_step(network, recipe, SCHEME, optimiser, 0, mesh, statistics="device")
    got, metrics = jax.jit(step)(state, order_of(64), images, labels)
    np.testing.assert_allclose(metrics.loss, np.mean(losses), rtol=1e-5)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    whole = jax.jit(network.train)(state.params, state.stats, noisy)[1]
    assert any(not np.allclose(got.stats[name], whole[name], rtol=1e-3, atol=1e-4) for name in whole)


@pytest.mark.evidence
def test_statistics_of_a_device_are_told_by_the_weights_and_kept_by_a_run(synthetic, tmp_path):
    recipe = Recipe(epochs=1, batch=256, augment=False)
    arguments = (synthetic, SCHEME, recipe, DESCRIPTION, tmp_path)
    assert training.train(*arguments, statistics="device")
    told = models.read_weights(tmp_path / "weights.safetensors")[1]["training"]
    assert told["statistics"] == {"of": "device", "devices": 4}
    with pytest.raises(ValueError, match=r"statistics\.of was device, is unset"):
        training.train(*arguments)
    with pytest.raises(ValueError, match="Expected statistics to be one of batch, device, got 'devices'"):
        training.train(*arguments, statistics="devices")


def test_a_scan_of_steps_is_the_loop_of_steps(synthetic):
    recipe = Recipe(batch=64, lr=0.05)
    mesh = devices.mesh(1)
    images, labels = jnp.asarray(synthetic.images[:192]), jnp.asarray(synthetic.labels[:192])
    results = []
    for on_cpu, calls, count in ((True, 3, 1), (False, 1, 3)):
        _, optimiser, state = fresh_state(recipe, mesh)
        network = training.network_on(mesh, DESCRIPTION)
        run = loop.dispatches(training.make_step(network, recipe, SCHEME, optimiser, 0, mesh), on_cpu=on_cpu)
        losses = []
        for _ in range(calls):
            state, metrics = run(state, order_of(192), images, labels, count=count)
            losses += np.asarray(metrics.loss).tolist()
        results.append((losses, state))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    for one, other in zip(jax.tree.leaves(results[0][1].params), jax.tree.leaves(results[1][1].params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


def test_default_recipe_is_cohens():
    recipe, steps = Recipe(), 195
    rate = recipe.learning_rate(steps)
    assert (recipe.epochs, recipe.batch, recipe.momentum, recipe.weight_decay) == (90, 256, 0.9, 1e-4)
    for epoch, expected in ((0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (89, 0.001)):
        assert float(rate(epoch * steps)) == pytest.approx(expected)
        assert float(rate((epoch + 1) * steps - 1)) == pytest.approx(expected)


def test_cosine_schedule_warms_up_and_ends_at_zero():
    rate = Recipe(epochs=4, lr=0.2, schedule="cosine", warmup_epochs=1.0).learning_rate(10)
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(0.1)
    assert float(rate(10)) == pytest.approx(0.2)
    assert float(rate(25)) == pytest.approx(0.1)
    assert float(rate(40)) == pytest.approx(0, abs=1e-9)


def test_decay_joins_the_gradient_before_the_momentum():
    """By hand, as PyTorch has it: buffer = momentum * buffer + gradient + decay * weights, weights -= rate * buffer."""
    optimiser = Recipe(lr=0.1, momentum=0.9, weight_decay=0.5).optimiser(steps_per_epoch=10)
    weights, buffer, by_hand = jnp.asarray([1.0, -2.0]), np.zeros(2), np.array([1.0, -2.0])
    state = optimiser.init(weights)
    for gradient in (np.array([0.3, 0.1]), np.array([-0.2, 0.4]), np.array([0.0, 0.0])):
        updates, state = optimiser.update(jnp.asarray(gradient), state, weights)
        weights = weights + updates
        buffer = 0.9 * buffer + gradient + 0.5 * by_hand
        by_hand = by_hand - 0.1 * buffer
    np.testing.assert_allclose(weights, by_hand, rtol=1e-5)


@pytest.mark.peers
def test_optimiser_is_pytorchs_sgd():
    """Weight decay inside the gradient, momentum without damping, the rate outside the momentum."""
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    start, gradients = generator.normal(size=5), generator.normal(size=(6, 5))
    recipe = Recipe(epochs=6, batch=1, lr=0.1, weight_decay=0.05, step_epochs=2)
    optimiser = recipe.optimiser(1)
    params = {"w": jnp.asarray(start, jnp.float32)}
    state = optimiser.init(params)
    peer = torch.nn.Parameter(torch.tensor(start))
    sgd = torch.optim.SGD([peer], lr=0.1, momentum=0.9, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.StepLR(sgd, 2, gamma=0.1)
    for gradient in gradients:
        updates, state = optimiser.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        peer.grad = torch.tensor(gradient)
        sgd.step()
        schedule.step()
    np.testing.assert_allclose(params["w"], peer.detach().numpy(), rtol=1e-5)


def test_every_image_comes_once_an_epoch_in_a_new_order_with_its_label_and_its_own_sigma():
    values = np.arange(96, dtype=np.uint8)
    images = jnp.asarray(np.broadcast_to(values[:, None, None, None] * 2, (96, 32, 32, 3)))
    labels = jnp.arange(96)
    recipe = Recipe(batch=32, augment=False, sigma_low=0.05)
    batch = jax.jit(training.make_batch(recipe, schemes.Gaussian(sigma=0.4), 0))
    orders, sigmas = [], []
    for step in range(6):
        drawn = batch(step, order_of(96, step // 3), images, labels)
        noisy, targets = drawn.images + drawn.noise, drawn.labels
        means = np.asarray(noisy).mean((1, 2, 3)) * 255 / 2
        np.testing.assert_allclose(means, targets, atol=5)  # five standard errors of 3072 pixels at .4
        orders += np.asarray(targets).tolist()
        sigmas += np.asarray(noisy).std((1, 2, 3)).tolist()
    assert sorted(orders[:96]) == sorted(orders[96:]) == list(range(96))
    assert orders[:96] != orders[96:]
    assert stats.kstest(sigmas, stats.uniform(0.05, 0.35).cdf).pvalue > 1e-3


def test_orders_are_those_that_runs_have_always_had():
    """A run that was begun before orders were made once an epoch goes on with the same images."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 4), 0)
    for step in (0, 1, 4, 7):
        epoch, position = divmod(step, 3)
        expected = jax.random.permutation(jax.random.fold_in(key, epoch), 100)[position * 32 : (position + 1) * 32]
        got = steps.images_of_step(steps.epoch_order(5, epoch, 100), jnp.asarray(step), 32)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.evidence
@pytest.mark.parametrize("steps_per_dispatch", [3, 50])
def test_a_dispatch_of_many_steps_ends_with_the_epoch(synthetic, tmp_path, monkeypatch, steps_per_dispatch):
    """Five steps an epoch: scanned a few at a time, as on accelerators, they see what single steps see."""
    recipe, counts, rows = Recipe(epochs=2, batch=100, lr=0.05), [], {}
    dispatches = loop.dispatches

    def watched(step, *, on_cpu):
        run = dispatches(step, on_cpu=on_cpu)

        def counted(*arguments, count):
            counts.append(count)
            return run(*arguments, count=count)

        return counted

    monkeypatch.setattr(loop, "dispatches", watched)
    for on_cpu in (True, False):
        counts.clear()
        monkeypatch.setattr(devices, "is_cpu", lambda on_cpu=on_cpu: on_cpu)
        assert train(synthetic, tmp_path / str(on_cpu), recipe, steps_per_dispatch=steps_per_dispatch)
        rows[on_cpu] = list(csv.DictReader((tmp_path / str(on_cpu) / "metrics.csv").read_text().splitlines()))
    assert counts == ([3, 2] if steps_per_dispatch == 3 else [5]) * 2
    for one, other in zip(rows[True], rows[False], strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)


SHORT = Recipe(epochs=2, batch=128, lr=0.05)


@pytest.fixture(scope="module")
def finished(synthetic, tmp_path_factory):
    """The folder of a whole run of eight steps under `l1`."""
    workdir = tmp_path_factory.mktemp("finished")
    assert train(synthetic, workdir, SHORT, scheme=schemes.L1(sigma=0.5), tensorboard=True)
    return workdir


def test_run_writes_weights_metrics_and_status(synthetic, finished):
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert json.loads((finished / "train_status.json").read_text()) == {
        "job": "train", "finished": True, "done": 8, "total": 8,
    }  # fmt: skip
    classifier = models.load_classifier(finished)
    assert classifier.description["training"]["scheme"] == {"name": "l1", "sigma": 0.5, "ref": 1.0}
    assert classifier.description["training"]["recipe"]["epochs"] == 2
    assert list((finished / "tensorboard").glob("events*"))
    before = (finished / "weights.safetensors").read_bytes()
    assert train(synthetic, finished, SHORT, scheme=schemes.L1(sigma=0.5))  # nothing left to do
    assert load(before) == load((finished / "weights.safetensors").read_bytes())


def load(content):
    return {name: value.tobytes() for name, value in safetensors.numpy.load(content).items()}


def test_a_run_in_two_slices_ends_at_the_weights_of_one(synthetic, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_IN_FLIGHT", 0)
        assert not train(synthetic, tmp_path, SHORT, scheme=schemes.L1(sigma=0.5), budget=budgets.Three())
    status = json.loads((tmp_path / "train_status.json").read_text())
    assert status == {"job": "train", "finished": False, "done": 3, "total": 8}
    assert not (tmp_path / "weights.safetensors").exists()
    assert train(synthetic, tmp_path, SHORT, scheme=schemes.L1(sigma=0.5))
    whole, sliced = (load((folder / "weights.safetensors").read_bytes()) for folder in (finished, tmp_path))
    assert whole == sliced
    cut, after = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    _, whole = csv.DictReader((finished / "metrics.csv").read_text().splitlines())
    assert [cut[name] for name in ("epoch", "step", "loss", "accuracy", "seconds")] == ["1", "4", "", "", ""]
    assert (after["loss"], after["accuracy"]) == (whole["loss"], whole["accuracy"])


@pytest.fixture(scope="module")
def sliced(synthetic, tmp_path_factory):
    """The folder of the same run that was killed in the middle of its second epoch: checkpoints after 5 and 6 steps."""

    def killed(self, step, state, save=training.TrainingCheckpoints.save):
        save(self, step, state)
        if step == 6:
            raise ZeroDivisionError

    workdir = tmp_path_factory.mktemp("sliced")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.TrainingCheckpoints, "save", killed)
        patched.setattr(loop, "_IN_FLIGHT", 0)
        with pytest.raises(ZeroDivisionError):
            train(synthetic, workdir, SHORT, scheme=schemes.L1(sigma=0.5), checkpoint_minutes=0)
    return workdir


def steps_kept(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def cut(folder):
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:100])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def without_data(folder):
    for file in folder.rglob("d/*"):
        file.unlink()


def without_metadata(folder):
    (file,) = folder.rglob("_METADATA")
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, empty, without_data, without_metadata])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(synthetic, finished, sliced, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(sliced, workdir)
    damage(workdir / "checkpoints" / "6")
    said = rf"Expected a whole checkpoint in {workdir}/checkpoints/6, got: .* Training goes on from step 5\."
    with pytest.warns(UserWarning, match=said):
        assert train(synthetic, workdir, SHORT, scheme=schemes.L1(sigma=0.5))
    assert steps_kept(workdir) == ["5", "6.damaged", "8"]
    whole, resumed = (load((folder / "weights.safetensors").read_bytes()) for folder in (finished, workdir))
    assert whole == resumed


def test_damaged_checkpoints_alone_are_refused_and_stay(synthetic, sliced, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(sliced, workdir)
    for step in ("5", "6"):
        cut(workdir / "checkpoints" / step)
    with pytest.raises(
        ValueError, match=r"checkpoints/6, got: .*checkpoints/5, got: .* No other is left: restore one, or"
    ):
        train(synthetic, workdir, SHORT, scheme=schemes.L1(sigma=0.5))
    assert steps_kept(workdir) == ["5", "6"]


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda content: content[:-7], 0),
        (lambda content: content + b"2,8,0.0", 1),
        (lambda content: content + b"2\x00,,\xff\r\n", 1),
        (lambda content: b"", 0),
    ],
)
def test_lines_of_the_metrics_that_are_not_whole_are_left_out(sliced, tmp_path, damage, kept):
    path = tmp_path / "metrics.csv"
    path.write_bytes(damage((sliced / "metrics.csv").read_bytes()))
    rate = SHORT.learning_rate(4)
    with pytest.warns(UserWarning, match=r"Lines of .*metrics\.csv that are not whole"):
        log = metrics_log.MetricsLog(tmp_path, training.Metrics._fields, (), 5, 4, rate)
    log.flush()
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines == (sliced / "metrics.csv").read_bytes().splitlines(keepends=True)[: 1 + kept]


def test_an_epoch_whose_beginning_was_not_seen_has_a_row_and_a_score_but_no_means(tmp_path, monkeypatch):
    written = []
    board = mock.Mock(add_scalar=lambda *told: written.append(told))
    monkeypatch.setattr(metrics_log, "summary_writer", lambda: lambda folder: board)

    def log(step):
        return metrics_log.MetricsLog(tmp_path, ("loss",), ("acr",), step, 2, lambda step: 0.5, tensorboard=True)

    one = log(1)
    for loss in (3.0, 1.0, 2.0):
        one.add([loss])
    assert one.shown == {"loss": 1.5}
    one.add_scores([0.25])
    assert written == [("lr", 0.5, 1), ("lr", 0.5, 2), ("loss", 1.5, 2), ("acr", 0.25, 2)]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[:2] == ["epoch,step,lr,loss,acr,seconds", "1,2,0.5,,,"]
    log(4).flush()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == lines


def test_a_disk_that_is_full_leaves_the_metrics_as_they_were(sliced, tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    before = (sliced / "metrics.csv").read_bytes()
    path.write_bytes(before)
    log = metrics_log.MetricsLog(tmp_path, training.Metrics._fields, (), 5, 4, SHORT.learning_rate(4))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        log.flush()
    assert path.read_bytes() == before


def test_a_call_without_time_for_a_step_fails_rather_than_be_repeated_for_ever(synthetic, tmp_path):
    with pytest.raises(ValueError, match="room for any work"):
        train(synthetic, tmp_path, max_minutes=1e-6)


def test_another_recipe_in_the_same_folder_is_refused(synthetic, tmp_path):
    training.same_or_refuse(tmp_path / "train_config.json", {"depth": 8})
    with pytest.raises(ValueError, match="use another --workdir"):
        train(synthetic, tmp_path)


OVERFLOWS = {"lr": 0.9, "weight_decay": 5.0, "step_epochs": 1, "step_factor": 3e38}  # while the loss still is a number


@pytest.mark.parametrize(
    ("checkpoint_minutes", "rate", "message"),
    [(5.0, {"lr": 1e30}, "finite loss"), (0.0, {"lr": 1e30}, "finite loss"), (0.0, OVERFLOWS, "finite weights")],
)
def test_values_that_are_not_finite_stop_the_run_and_keep_the_last_good_checkpoint(
    synthetic, tmp_path, checkpoint_minutes, rate, message
):
    recipe = Recipe(epochs=6, batch=128, **rate)
    with pytest.raises(FloatingPointError, match=f"Expected .*{message}.* The checkpoint of step . is kept"):
        train(synthetic, tmp_path, recipe, checkpoint_minutes=checkpoint_minutes)
    store = training.TrainingCheckpoints(tmp_path / "checkpoints")
    kept = store.latest()
    if checkpoint_minutes == 0:
        state = fresh_state(recipe, devices.mesh(1))[2]
        restored = store.restore(kept, state)
        assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), restored.params))
    else:
        assert kept is None
    store.close()
    assert not (tmp_path / "weights.safetensors").exists()


def test_images_without_labels_train_no_classifier(synthetic, tmp_path):
    unknown = data.from_arrays(synthetic.images, name="mine")
    with pytest.raises(ValueError, match=r"Expected labels to train a classifier, got none .* in mine"):
        train(unknown, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seed": 2**64}, "seed in"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch >= 1"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes >= 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(synthetic, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        train(synthetic, tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"batch": 1024}, "Expected batch <= the 512"),
        ({"batch": 126}, "multiple of 4 devices"),
        ({"batch": 128, "sigma_low": 0.5}, "sigma_low <= sigma = "),
        ({"epochs": 0}, "Expected epochs >= 1"),
        ({"lr": 0.0}, "Expected lr > 0"),
        ({"schedule": "cosine", "epochs": 1, "warmup_epochs": 1.0}, "Expected warmup_epochs < epochs = 1"),
        ({"schedule": "linear"}, "Expected schedule to be one of cosine, onecycle, step"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_anything_is_written(synthetic, tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message):
        train(synthetic, tmp_path / "run", Recipe(**recipe))
    assert not (tmp_path / "run").exists()
