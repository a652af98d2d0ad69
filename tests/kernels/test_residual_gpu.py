"""The residual blocks for GPUs, interpreted on a CPU, against the textbook's formulas and the plain network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idrc_jax import models
from idrc_jax.kernels import convolution_gpu, residual_gpu
from idrc_jax.kernels.residual_gpu import Layer

BLOCKS = partial(residual_gpu.blocks, interpret=True)


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def textbook(x, layers):
    """Ioffe & Szegedy's normalisation and He's blocks, with the means and variances of every layer."""
    found = []

    def normalised(y, layer):
        mean = y.mean((0, 1, 2))
        variance = jnp.square(y - mean).mean((0, 1, 2))
        found.append((mean, variance))
        return (y - mean) / jnp.sqrt(variance + 1e-5) * layer.scale + layer.bias

    for one, two in layers:
        y = jnp.maximum(normalised(convolve(x, one.kernel), one), 0)
        x = jnp.maximum(normalised(convolve(y, two.kernel), two) + x, 0)
    return x, found


def draw(count, features, shape, seed=0):
    """Layers of some blocks, whose means are not small, a ReLU's output and weights of a loss."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    layers = tuple(
        tuple(
            Layer(normal(3, 3, features, features) * np.sqrt(2 / 9 / features), 1 + 0.3 * normal(features),
                  0.3 * normal(features))
            for _ in range(2)
        )
        for _ in range(count)
    )  # fmt: skip
    return np.maximum(normal(*shape, features) + 1, 0), layers, normal(*shape, features)


def of_loss(chain, weights):
    """A function of x and layers: ((loss, statistics), gradients)."""

    def loss(x, layers):
        out, found = chain(x, layers)
        return jnp.sum(out * weights), jax.tree.leaves(found)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def compare(shape, features, count):
    x, layers, weights = draw(count, features, shape)
    found, wanted = (of_loss(chain, weights)(x, layers) for chain in (BLOCKS, textbook))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_a_chain_and_its_gradients_are_the_textbooks():
    """Three images of 9 x 11 pixels: two tiles, the second one not full, neither of whole images."""
    assert 3 * 9 * 11 % convolution_gpu._tile(16)
    compare((3, 9, 11), 16, 2)


@pytest.mark.evidence
@pytest.mark.parametrize(
    ("shape", "features", "count"),
    [((1, 3, 2), 16, 1), ((5, 8, 8), 32, 3), ((7, 4, 5), 64, 2), ((2, 32, 32), 16, 1)],
)
def test_chains_of_other_sizes(shape, features, count):
    compare(shape, features, count)


def test_moments_are_exact_where_means_are_large():
    """Means a thousand times the spread, in tiles of which the last is not full."""
    values = np.random.default_rng(0).normal(1000, 1, (150, 64)).astype(np.float32)
    tile = convolution_gpu._tile(64)
    parts = np.split(values.astype(np.float64), range(tile, 150, tile))
    partials = np.stack([[part.mean(0), np.square(part - part.mean(0)).sum(0)] for part in parts]).astype(np.float32)
    mean, variance = convolution_gpu.moments(jnp.asarray(partials), 150)
    np.testing.assert_allclose(mean, values.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(variance, values.var(0, dtype=np.float64), rtol=1e-4)


def network(depth, dtype, chain=None):
    """A function (params, images) of a network in training: ((loss, stats), gradients), and its params."""
    description = {
        "architecture": "resnet", "depth": depth, "classes": 5, "image_shape": [9, 7, 3], "shortcut": "projection",
        "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    graph, params, stats = models.split(models.build(description, dtype=dtype, rngs=nnx.Rngs(0), chain=chain))

    def loss(params, images):
        model = models.merge(graph, params, stats)
        logits = model(images, train=True)
        return jnp.sum(jnp.square(logits - jnp.arange(5.0))), models.split(model)[2]

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), params


@pytest.mark.evidence
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_trains_as_by_its_plain_blocks(dtype):
    """Loss, running statistics and gradients; in bfloat16 as near to float32's as the plain network's are."""
    images = np.random.default_rng(1).uniform(size=(5, 9, 7, 3)).astype(np.float32)
    plain, params = network(8, "float32")
    wanted = plain(params, images)
    if dtype == "float32":
        found = network(8, dtype, BLOCKS)[0](params, images)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
        return

    def distance(found):
        pairs = [(np.asarray(found[1][name]), np.asarray(wanted[1][name])) for name in params]
        return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs) / sum(np.sum(b**2) for _, b in pairs))

    ours, theirs = (distance(network(8, dtype, chain)[0](params, images)) for chain in (BLOCKS, None))
    assert 0 < ours < 1.5 * theirs
