"""The training kernel of the CIFAR ResNet against NumPy in float64, and against XLA's training."""

import os
import subprocess
import sys

import budgets
import built
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_convolution_cpu import exactly

from idrc_jax import data, models, training
from idrc_jax.certificates import schemes
from idrc_jax.kernels import resnet_training_cpu
from idrc_jax.sampling import devices
from idrc_jax.training import loop, steps, training_kernel
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State

MEAN, STD = (0.5, 0.4, 0.3, 0.45), (0.25, 0.2, 0.3, 0.22)


@pytest.fixture(scope="module", autouse=True)
def _built():
    built.require(resnet_training_cpu)


def describe(depth, shortcut, shape, classes=5):
    channels = shape[-1]
    return {
        "architecture": "resnet", "depth": depth, "classes": classes, "image_shape": list(shape), "dtype": "float32",
        "shortcut": shortcut, "mean": list(MEAN[:channels]), "std": list(STD[:channels]),
    }  # fmt: skip


def tensors_of(description, seed=0):
    """Params and stats, none of which is 0 or 1."""
    _, params, stats = models.abstract(description, dtype="float32")
    random = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith(("scale", "var")):
            return random.uniform(0.5, 1.5, shape)
        spread = 0.3 if name.endswith(("bias", "mean")) else np.sqrt(2 / np.prod(shape[:-1]))
        return random.normal(0, spread, shape)

    return tuple(
        {name: draw(name, leaf.shape).astype(np.float32) for name, leaf in group.items()} for group in (params, stats)
    )


class Exact:
    """The network in training, in float64, with the gradients of `loss = sum(weights * logits)`, layer by layer."""

    def __init__(self, description, params, stats):
        self.params = {name: value.astype(np.float64) for name, value in params.items()}
        self.stats = {name: value.astype(np.float64) for name, value in stats.items()}
        self.description, self.gradients, self.new_stats, self.margin = description, {}, {}, np.inf
        self.kept = {}

    def conv(self, name, x, stride):
        kernel = self.params[f"{name}.kernel"]
        count, height, width, _ = x.shape
        empty = np.zeros((count, -(-height // stride), -(-width // stride), kernel.shape[-1]))
        self.kept[name] = x, stride
        return exactly(x, kernel, empty, stride)[0]

    def conv_back(self, name, gradient):
        x, stride = self.kept[name]
        _, to_x, self.gradients[f"{name}.kernel"] = exactly(x, self.params[f"{name}.kernel"], gradient, stride)
        return to_x

    def norm(self, name, x):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        for part, value in (("mean", mean), ("var", variance)):
            self.new_stats[f"{name}.{part}"] = 0.9 * self.stats[f"{name}.{part}"] + 0.1 * value
        inverse = 1 / np.sqrt(variance + 1e-5)
        self.kept[name] = (x - mean) * inverse, inverse
        return self.kept[name][0] * self.params[f"{name}.scale"] + self.params[f"{name}.bias"]

    def norm_back(self, name, gradient):
        normal, inverse = self.kept[name]
        self.gradients[f"{name}.bias"] = gradient.sum((0, 1, 2))
        self.gradients[f"{name}.scale"] = (gradient * normal).sum((0, 1, 2))
        scaled = gradient * self.params[f"{name}.scale"]
        centred = scaled - scaled.mean((0, 1, 2)) - normal * (scaled * normal).mean((0, 1, 2))
        return centred * inverse

    def relu(self, name, x):
        self.margin = min(self.margin, np.abs(x).min())
        self.kept[name] = x > 0
        return np.maximum(x, 0)

    def run(self, images, weights):
        """Logits and the gradient with respect to the images."""
        blocks = (self.description["depth"] - 2) // 2
        std = np.asarray(self.description["std"])
        x = (images.astype(np.float64) - self.description["mean"]) / std
        x = self.relu("stem_relu", self.norm("stem_norm", self.conv("stem", x, 1)))
        shortcuts = {}
        for b in range(blocks):
            name = f"blocks.{b}"
            stride = 2 if b in (blocks // 3, 2 * blocks // 3) else 1
            y = self.relu(f"{name}.relu1", self.norm(f"{name}.norm1", self.conv(f"{name}.conv1", x, stride)))
            y = self.norm(f"{name}.norm2", self.conv(f"{name}.conv2", y, 1))
            if f"{name}.projection.kernel" in self.params:
                shortcut = self.norm(f"{name}.projection_norm", self.conv(f"{name}.projection", x, stride))
                shortcuts[b] = "projection"
            elif stride == 2:
                more = x.shape[-1] // 2
                shortcut, shortcuts[b] = np.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((more, more),)), "zero_pad"
            else:
                shortcut, shortcuts[b] = x, "plain"
            x = self.relu(f"{name}.relu2", y + shortcut)
        features = x.mean((1, 2))
        logits = features @ self.params["head.kernel"] + self.params["head.bias"]
        self.gradients["head.kernel"], self.gradients["head.bias"] = features.T @ weights, weights.sum(0)
        to_features = weights @ self.params["head.kernel"].T
        g = np.broadcast_to(to_features[:, None, None] / (x.shape[1] * x.shape[2]), x.shape)
        for b in reversed(range(blocks)):
            name = f"blocks.{b}"
            g = g * self.kept[f"{name}.relu2"]
            y = self.conv_back(f"{name}.conv2", self.norm_back(f"{name}.norm2", g))
            to_x = self.conv_back(f"{name}.conv1", self.norm_back(f"{name}.norm1", y * self.kept[f"{name}.relu1"]))
            if shortcuts[b] == "projection":
                to_x += self.conv_back(f"{name}.projection", self.norm_back(f"{name}.projection_norm", g))
            elif shortcuts[b] == "zero_pad":
                more = to_x.shape[-1] // 2
                to_x[:, ::2, ::2] += g[..., more : more + to_x.shape[-1]]
            else:
                to_x += g
            g = to_x
        g = self.conv_back("stem", self.norm_back("stem_norm", g * self.kept["stem_relu"]))
        return logits, g / std


def exact_case(description, count):
    """Inputs, and what they give in float64, with no value so near to 0 that rounding could cut it."""
    for seed in range(50):
        random = np.random.default_rng(seed)
        params, stats = tensors_of(description, seed)
        images = random.normal(0.5, 0.3, (count, *description["image_shape"])).astype(np.float32)
        weights = random.normal(size=(count, description["classes"])).astype(np.float32)
        exact = Exact(description, params, stats)
        logits, to_images = exact.run(images, weights)
        if exact.margin > 5e-6:
            return (params, stats, images, weights), exact, logits, to_images
    raise AssertionError("no seed without a near tie")


def close(got, expected, tolerance=2e-5):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=tolerance * np.abs(value).max(), err_msg=name)


def differentiated(network, params, stats, images, weights):
    def loss(params, images):
        logits, new = network(params, stats, images)
        return jnp.sum(logits * weights), (logits, new)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, images)


@pytest.mark.parametrize(
    ("depth", "shortcut", "shape", "count"),
    [
        (8, "projection", (8, 8, 3), 5),
        (8, "zero_pad", (8, 8, 1), 3),
        (14, "projection", (16, 8, 3), 3),  # the last stage is 4 x 2: not by minimal filtering
        (14, "zero_pad", (9, 7, 4), 2),
        (8, "projection", (6, 10, 3), 1),
        (8, "zero_pad", (16, 16, 3), 5),
        (8, "projection", (8, 8, 3), 19),
    ],
)
def test_logits_statistics_and_gradients_are_those_of_float64(depth, shortcut, shape, count):
    description = describe(depth, shortcut, shape)
    arguments, exact, logits, to_images = exact_case(description, count)
    network = training.network_on(devices.mesh(1), description).train
    (_, (ours, new)), (gradients, pixels) = differentiated(network, *arguments)
    close({"logits": ours, "images": pixels}, {"logits": logits, "images": to_images})
    close(new, exact.new_stats)
    close(gradients, exact.gradients)


def test_gradients_of_images_are_computed_only_where_asked_for():
    description = describe(8, "projection", (8, 8, 3))
    params, stats = tensors_of(description)
    network = training.network_on(devices.mesh(1), description).train
    images = jnp.ones((2, 8, 8, 3))

    def loss(params, images):
        return jnp.sum(network(params, stats, images)[0])

    assert "to_images = false" in jax.jit(jax.grad(loss)).lower(params, images).as_text()
    assert "to_images = true" in jax.jit(jax.grad(loss, 1)).lower(params, images).as_text()


def test_many_forward_passes_before_their_gradients():
    """More than are kept: those of the others are made again, to the bit."""
    description = describe(8, "projection", (8, 8, 3))
    params, stats = tensors_of(description)
    network = training.network_on(devices.mesh(1), description).train
    images = [np.random.default_rng(i).uniform(size=(3, 8, 8, 3)).astype(np.float32) for i in range(5)]

    def pull(image):
        return jax.vjp(lambda params: network(params, stats, image)[0], params)

    alone = [pull(image)[1](jnp.ones((3, 5)))[0] for image in images]
    pullbacks = [pull(image)[1] for image in images]
    for repeat in range(2):
        for expected, pullback in zip(alone, pullbacks, strict=True):
            (again,) = pullback(jnp.ones((3, 5)))
            for name, value in expected.items():
                np.testing.assert_array_equal(again[name], value, err_msg=f"{name} {repeat}")


def test_under_vmap_each_network_is_its_own():
    description = describe(8, "zero_pad", (8, 8, 1))
    pairs = [tensors_of(description, seed) for seed in range(2)]
    network = training.network_on(devices.mesh(1), description).train
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    params, stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)

    def loss(params, stats):
        return jnp.sum(jnp.sin(network(params, stats, images)[0]))

    together = jax.jit(jax.vmap(jax.grad(loss)))(params, stats)
    for i, pair in enumerate(pairs):
        for name, value in jax.jit(jax.grad(loss))(*pair).items():
            np.testing.assert_allclose(together[name][i], value, atol=1e-5 * np.abs(value).max())


@pytest.mark.evidence
def test_a_few_steps_by_kernel_and_by_xla_agree():
    train_set = data.load("synthetic", "train")
    description = describe(8, "projection", (8, 8, 1), 4)
    recipe, mesh = Recipe(batch=64, lr=0.05), devices.mesh(1)
    _, params, stats = models.split(models.build(description, dtype="float32", rngs=nnx.Rngs(0)))
    optimiser, order = recipe.optimiser(8), steps.epoch_order(0, 0, len(train_set))
    found = {}
    for kernel in ("auto", "xla"):
        network = training.network_on(mesh, description, kernel)
        step = jax.jit(training.make_step(network, recipe, schemes.Gaussian(sigma=0.25), optimiser, 0, mesh))
        assert ("idrc_training" in step.lower(*start(params, stats, optimiser), order, *pair(train_set)).as_text()) == (
            kernel == "auto"
        )
        (state,) = start(params, stats, optimiser)
        losses = []
        for _ in range(3):
            state, metrics = step(state, order, *pair(train_set))
            losses.append(float(metrics.loss))
        found[kernel] = losses, state
    np.testing.assert_allclose(found["auto"][0], found["xla"][0], rtol=1e-3)
    for group in ("params", "stats"):
        ours, theirs = (getattr(found[kernel][1], group) for kernel in ("auto", "xla"))
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, atol=2e-3, err_msg=name)


def start(params, stats, optimiser):
    return (State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32)),)


def pair(train_set):
    return jnp.asarray(train_set.images), jnp.asarray(train_set.labels)


def test_the_default_trains_an_eligible_network_by_the_kernel_and_others_by_xla():
    description, mesh = describe(8, "projection", (8, 8, 3)), devices.mesh(1)
    assert training_kernel.kernel_on(mesh, description) == "resnet_training_cpu"
    assert training_kernel.kernel_on(mesh, description, "xla") == "xla"
    assert training_kernel.kernel_on(mesh, description | {"dtype": "bfloat16"}) == "xla"
    assert training_kernel.kernel_on(devices.mesh(2), description) == "xla"
    assert training_kernel.cpu_devices("resnet", "float32", 256) == 1
    assert training_kernel.cpu_devices("resnet", "float32", 8 * (os.cpu_count() or 1), "xla") == os.cpu_count()
    assert training_kernel.cpu_devices("resnet", "float32", 1, "xla") == 1
    with pytest.raises(ValueError, match="kernel to be one of auto, xla"):
        training_kernel.kernel_on(mesh, description, "fast")


SCRIPT = """
import hashlib, sys
import numpy as np
from idrc_jax import devices, training
from idrc_jax.kernels import resnet_training_cpu
from test_resnet_training_cpu import describe, differentiated, tensors_of
assert resnet_training_cpu.available()
description = describe(14, "projection", (16, 12, 3))
random = np.random.default_rng(0)
images = random.uniform(size=(21, 16, 12, 3)).astype(np.float32)
weights = random.normal(size=(21, 5)).astype(np.float32)
import jax
network = training.network_on(devices.mesh(1), description).train
for _ in range(3):
    found = jax.tree.leaves(differentiated(network, *tensors_of(description), images, weights))
    print(hashlib.sha256(b"".join(np.asarray(one).tobytes() for one in found)).hexdigest())
"""


@pytest.mark.evidence
def test_results_are_the_same_on_any_number_of_threads():
    lines = []
    cores = list(range(os.cpu_count() or 1)) if hasattr(os, "sched_setaffinity") else []  # a test worker has one
    if len(cores) < 2:
        pytest.skip("needs two cores")
    paths = os.pathsep.join(sys.path)
    for some in (cores[:1], cores):
        setting = f"import os; os.sched_setaffinity(0, {some})\n"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", setting + SCRIPT], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        lines += done.stdout.split()
    assert len(lines) == 6
    assert len(set(lines)) == 1


@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
def test_attacks_climb_the_folded_network_by_the_kernel_of_inference(shortcut):
    """Logits and the gradient of images by running statistics, those of XLA; in one program with changing weights."""
    description = describe(8, shortcut, (8, 8, 3))
    images = np.random.default_rng(1).uniform(size=(6, 8, 8, 3)).astype(np.float32)

    def climbed(kernel):
        network = training.network_on(devices.mesh(1), description, kernel)

        def total(images, params, stats):
            logits = network.fixed(params, stats)(images)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    ours, theirs = climbed("auto"), climbed("xla")
    params, stats = tensors_of(description)
    assert "idrc_resnet_gradient" in ours.lower(images, params, stats).as_text()
    for seed in range(2):
        tensors = tensors_of(description, seed)
        ((_, logits), gradient), ((_, other), expected) = ours(images, *tensors), theirs(images, *tensors)
        np.testing.assert_allclose(logits, other, atol=1e-4 * np.abs(other).max())
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


def test_what_is_no_number_is_not_lost_in_a_cut():
    description = describe(8, "projection", (8, 8, 1))
    params, stats = tensors_of(description)
    network = training.network_on(devices.mesh(1), description).train
    images = np.zeros((2, 8, 8, 1), np.float32)
    images[0, 3, 3] = np.nan
    logits, new = network(params, stats, images)
    assert np.isnan(logits).all()
    assert np.isnan(new["stem_norm.mean"]).all()
    labels = jnp.zeros(2, jnp.int32)
    assert np.isnan(optax.softmax_cross_entropy_with_integer_labels(logits, labels)).all()


def test_a_resumed_run_ends_at_the_very_weights_of_one(tmp_path, monkeypatch):
    def run(folder, budget=None):
        recipe, scheme = Recipe(epochs=2, batch=256, lr=0.05), schemes.Gaussian(sigma=0.25)
        description, mesh = describe(8, "zero_pad", (8, 8, 1), 4), devices.mesh(1)
        return training.train(
            data.load("synthetic", "train"), scheme, recipe, description, tmp_path / folder, mesh=mesh, budget=budget
        )

    assert run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_IN_FLIGHT", 0)
        assert not run("sliced", budgets.Three())
    assert run("sliced")
    whole, sliced = (models.read_weights(tmp_path / folder)[0] for folder in ("whole", "sliced"))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, sliced[name], err_msg=name)
