"""The layers of any network against float64, and networks made of them against their plain twins."""

import functools
import os
import subprocess
import sys

import built
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import special

from idrc_jax import models
from idrc_jax.kernels import network_cpu
from idrc_jax.models import folding
from idrc_jax.sampling import devices


@pytest.fixture(scope="module", autouse=True)
def _built():
    built.require(network_cpu)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exactly(x, kernel, bias, shortcut, *, stride, padding, groups, activation):
    """The layer in float64, by its definition."""
    height, width = kernel.shape[:2]
    x = np.pad(x.astype(np.float64), ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    rows, columns = (x.shape[1] - height) // stride[0] + 1, (x.shape[2] - width) // stride[1] + 1
    total = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for y in range(height):
        for z in range(width):
            down = slice(y, y + (rows - 1) * stride[0] + 1, stride[0])
            part = x[:, down, z : z + (columns - 1) * stride[1] + 1 : stride[1]]
            total += part @ kernel[y, z].astype(np.float64) if groups == 1 else part * kernel[y, z, 0]
    total = total + bias + shortcut
    return {
        "": lambda y: y,
        "relu": lambda y: np.maximum(y, 0),
        "gelu": lambda y: y * special.ndtr(y),
    }[activation](total)


# (images, height, width, channels, features, window, stride, padding, groups)
LAYERS = [
    (3, 8, 8, 16, 32, (3, 3), (1, 1), (1, 1), 1),
    (2, 7, 7, 48, 80, (3, 3), (1, 1), (1, 1), 1),
    (1, 13, 5, 80, 16, (3, 3), (1, 1), (1, 1), 1),
    (5, 2, 2, 32, 16, (3, 3), (1, 1), (1, 1), 1),
    (40, 4, 4, 64, 96, (3, 3), (1, 1), (1, 1), 1),
    (2, 1, 3, 16, 16, (3, 3), (1, 1), (1, 1), 1),
    (2, 6, 9, 17, 33, (3, 3), (1, 1), (1, 1), 1),
    (3, 9, 7, 3, 21, (7, 7), (2, 2), (3, 3), 1),
    (2, 16, 16, 3, 64, (4, 4), (4, 4), (0, 0), 1),
    (2, 5, 8, 10, 5, (2, 3), (1, 2), (1, 0), 1),
    (2, 9, 8, 130, 40, (3, 3), (2, 2), (1, 1), 1),
    (7, 1, 1, 100, 37, (1, 1), (1, 1), (0, 0), 1),
    (1, 1, 1, 700, 1, (1, 1), (1, 1), (0, 0), 1),
    (700, 1, 1, 1, 48, (1, 1), (1, 1), (0, 0), 1),
    (2, 6, 6, 24, 16, (1, 1), (2, 2), (0, 0), 1),
    (2, 9, 9, 32, 32, (7, 7), (1, 1), (3, 3), 32),
    (3, 14, 3, 48, 48, (7, 7), (1, 1), (3, 3), 48),
    (2, 5, 5, 64, 64, (3, 3), (2, 2), (1, 1), 64),
]


def layer_of(case, activation=""):
    """Layer, weights, and the arrays x, kernel, bias and shortcut."""
    count, height, width, channels, features, window, stride, padding, groups = case
    kernel = normal(*window, channels // groups, features, seed=1) / np.sqrt(np.prod(window) * channels / groups)
    x, bias = normal(count, height, width, channels), normal(features, seed=2)
    layer, packed = network_cpu.prepare(kernel, image=(height, width), stride=stride, padding=padding, groups=groups)
    options = {"stride": stride, "padding": padding, "groups": groups, "activation": activation}
    shape = jax.eval_shape(functools.partial(network_cpu.run, layer), x, packed).shape
    return layer._replace(activation=activation), packed, (x, kernel, bias, normal(*shape, seed=3)), options


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
def test_a_layer_is_what_its_definition_says(case, activation):
    layer, packed, (x, kernel, bias, shortcut), options = layer_of(case, activation)
    run = jax.jit(functools.partial(network_cpu.run, layer))
    for beside in (bias, None), (bias, shortcut), (None, shortcut):
        expected = exactly(x, kernel, *(0 if one is None else one for one in beside), **options)
        np.testing.assert_allclose(run(x, packed, *beside), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", LAYERS)
def test_the_plain_twin_is_the_same(case):
    _, _, arrays, options = layer_of(case, "gelu")
    expected = exactly(*arrays, **options)
    x, kernel, bias, shortcut = arrays
    np.testing.assert_allclose(
        network_cpu.plain(kernel, x, bias, shortcut, **options), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("channels", [3, 16, 37])
def test_a_pool_is_xlas(channels):
    x = normal(2, 9, 8, channels)
    x[1, 4, 4, 2] = np.nan
    window, stride, paddings = (3, 2), (2, 1), ((1, 2), (0, 0))
    ends = ((0, 0), *paddings, (0, 0))
    expected = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), ends)
    np.testing.assert_array_equal(network_cpu.max_pool(x, window, stride, paddings), expected)
    assert np.isnan(expected).sum() == 2


def test_winograds_filtering_and_its_like_are_chosen_by_counting():
    def target(side, channels=16, features=16):
        return network_cpu.prepare(normal(3, 3, channels, features), image=(side, side), padding=(1, 1))[0].target

    assert {target(side) for side in (2, 4, 7, 14, 28, 56)} == {"idrc_filtered"}
    assert {target(1), target(8, channels=24), target(8, features=3)} == {"idrc_product"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("case", [case for case in LAYERS if case[0] > 1])
def test_what_is_no_number_stays_with_its_image(case, value):
    layer, packed, (x, _, bias, shortcut), _ = layer_of(case, "relu")
    bad = x.copy()
    bad[1, 0, 0] = value
    run = jax.jit(functools.partial(network_cpu.run, layer))
    ours, clean = np.asarray(run(bad, packed, bias, shortcut)), np.asarray(run(x, packed, bias, shortcut))
    others = np.arange(len(x)) != 1
    np.testing.assert_array_equal(ours[others], clean[others])
    assert not np.isfinite(ours[1]).all()


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
def test_weights_that_are_no_numbers_are_seen_as_in_the_twin(case, activation):
    """A channel whose weights are not numbers is none in every pixel, behind every activation."""
    layer, _, (x, kernel, bias, shortcut), options = layer_of(case, activation)
    kernel = kernel.copy()
    kernel[..., 2 % kernel.shape[-1]] = np.nan
    places = {name: options[name] for name in ("stride", "padding", "groups")}
    _, packed = network_cpu.prepare(kernel, image=x.shape[1:3], **places)
    ours = jax.jit(functools.partial(network_cpu.run, layer))(x, packed, bias, shortcut)
    theirs = jax.jit(functools.partial(network_cpu.plain, **options))(kernel, x, bias, shortcut)
    expected = np.broadcast_to(np.arange(ours.shape[-1]) == 2 % ours.shape[-1], ours.shape)
    np.testing.assert_array_equal(np.isnan(ours), expected)
    np.testing.assert_array_equal(np.isnan(theirs), expected)


@pytest.mark.parametrize("case", LAYERS[:4] + LAYERS[7:8] + LAYERS[-1:])
def test_layers_run_under_vmap_and_shard_map(case):
    case = (8, *case[1:])
    layer, packed, (x, _, bias, shortcut), _ = layer_of(case, "relu")
    run = functools.partial(network_cpu.run, layer)
    expected = np.asarray(run(x, packed, bias, shortcut))
    pairs = [one.reshape(4, 2, *one.shape[1:]) for one in (x, shortcut)]
    stacked = jax.vmap(run, in_axes=(0, None, None, 0))(pairs[0], packed, bias, pairs[1])
    np.testing.assert_allclose(stacked.reshape(expected.shape), expected, atol=1e-6 * np.abs(expected).max())
    parts = (P(devices.AXIS), P(), P(), P(devices.AXIS))
    split = jax.shard_map(run, mesh=devices.mesh(4), in_specs=parts, out_specs=P(devices.AXIS))
    ours = jax.jit(split)(x, packed, bias, shortcut)
    np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


def test_weights_of_another_layer_are_refused():
    layer, packed, (x, *_), _ = layer_of(LAYERS[0])
    with pytest.raises(Exception, match="Expected weights that were packed for this layer"):
        network_cpu.run(layer, x, packed[:-1]).block_until_ready()
    with pytest.raises(Exception, match="Expected arrays of one layer"):
        network_cpu.run(layer, x, packed, np.zeros(3, np.float32)).block_until_ready()


DESCRIPTION = {
    "architecture": "resnet50", "classes": 7, "image_shape": [40, 36, 3], "mean": [0.4, 0.5, 0.6], "depth": 50,
    "std": [0.2, 0.25, 0.3], "dtype": "float32", "shortcut": "projection",
}  # fmt: skip


def resnet50_tensors():
    _, params, stats = models.abstract(DESCRIPTION, dtype="float32")
    random = np.random.default_rng(0)

    def drawn(name, shape):
        if name.endswith("kernel"):
            return random.normal(size=shape) * 1.4 / np.sqrt(np.prod(shape[:-1]))
        return random.uniform(0.5, 1, shape) if name.endswith(("scale", "var")) else random.normal(size=shape) * 0.2

    return {name: drawn(name, value.shape).astype(np.float32) for name, value in {**params, **stats}.items()}


@pytest.mark.evidence
def test_a_resnet50_from_a_file_is_its_plain_twin(tmp_path):
    models.save_weights(tmp_path / "weights.safetensors", resnet50_tensors(), DESCRIPTION)
    ours, plain = (models.load_classifier(tmp_path, kernel=kernel) for kernel in ("auto", "xla"))
    assert (ours.kernel, plain.kernel, [one.kernel for one in ours.alternatives]) == ("network_cpu", "xla", ["xla"])
    assert ours.sha256 == plain.sha256
    images = normal(3, 40, 36, 3)
    expected = np.asarray(plain(images))
    np.testing.assert_allclose(ours(images), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.evidence
def test_gradients_are_the_twins():
    folded = folding.fold(resnet50_tensors(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    apply_fn, params = folding.resnet50_by_kernel(folded, (40, 36, 3))
    images = normal(1, 40, 36, 3)

    def loss(function, weights, x):
        return jnp.sum(function(weights, x)[:, 1] ** 2)

    ours = jax.grad(functools.partial(loss, apply_fn), (0, 1))(params, images)
    theirs = jax.grad(functools.partial(loss, folding.apply_resnet50), (0, 1))(params["plain"], images)
    assert np.abs(theirs[1]).max() > 0
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4 * np.abs(theirs[1]).max())
    for name in ("stem.kernel", "blocks.3.conv2.kernel", "head.bias"):
        theirs_at = theirs[0][name]
        np.testing.assert_allclose(ours[0]["plain"][name], theirs_at, atol=1e-4 * np.abs(theirs_at).max())
    assert not any(np.any(one) for one in jax.tree.leaves(ours[0]["packed"]))


@pytest.mark.evidence
@pytest.mark.parametrize("bits", [128, 256, 512])
def test_vectors_of_every_width_give_the_same(tmp_path, bits):
    script = """
import numpy as np
from idrc_jax.kernels import network_cpu
import test_network_cpu as tests
assert network_cpu.available()
for case in tests.LAYERS:
    tests.test_a_layer_is_what_its_definition_says(case, "gelu")
    tests.test_weights_that_are_no_numbers_are_seen_as_in_the_twin(case, "relu")
for channels in (3, 16, 37):
    tests.test_a_pool_is_xlas(channels)
print("same")
"""
    environment = os.environ | {
        "IDRC_VECTOR_BITS": str(bits), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "same", done.stderr


# (images, heads, queries, keys, numbers of a query, of a value)
ATTENTION = [
    (2, 3, 197, 197, 64, 64),
    (1, 1, 1, 1, 1, 1),
    (3, 2, 70, 5, 8, 33),
    (1, 2, 3, 800, 17, 16),
    (2, 1, 9, 31, 790, 3),
]


def attended(queries, keys, values, scale):
    """In float64, by the definition."""
    queries, keys, values = (one.astype(np.float64) for one in (queries, keys, values))
    return special.softmax(scale * queries @ keys.swapaxes(2, 3), axis=3) @ values


@pytest.mark.parametrize("case", ATTENTION)
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_attention_is_its_definition(case, spread):
    images, heads, queries, keys, depth, features = case
    q, k = spread * normal(images, heads, queries, depth), normal(images, heads, keys, depth, seed=1)
    v, scale = normal(images, heads, keys, features, seed=2), depth**-0.5
    made = np.asarray(jax.jit(functools.partial(network_cpu.attention, scale=scale))(q, k, v))
    np.testing.assert_allclose(made, attended(q, k, v, scale), atol=2e-6 * spread)


@pytest.mark.parametrize(("bad", "at"), [(np.nan, 0), (np.nan, 20), (np.inf, 19)])
def test_a_score_that_is_no_number_makes_no_number_of_its_token_alone(bad, at):
    q, k, v = normal(1, 2, 21, 16), normal(1, 2, 21, 16, seed=1), normal(1, 2, 21, 16, seed=2)
    expected = attended(q, k, v, 0.25)
    q[0, 1, at, 3] = bad
    made = np.asarray(network_cpu.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), scale=0.25))
    wrong = np.zeros((1, 2, 21), bool)
    wrong[0, 1, at] = True
    assert np.isnan(made[wrong]).all()
    np.testing.assert_allclose(made[~wrong], expected[~wrong], atol=2e-6)
