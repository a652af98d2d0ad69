"""The folded network against the NNX network it was made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idrc_jax import models
from idrc_jax.models import folding, loading


def network(depth=8, classes=5, shape=(8, 8, 3), shortcut="projection", seed=0):
    """A ResNet with random weights and running statistics far from 0 and 1, its tensors and its description."""
    channels = shape[-1]
    description = {
        "architecture": "resnet", "depth": depth, "classes": classes, "image_shape": list(shape), "shortcut": shortcut,
        "mean": [0.45] * channels, "std": [0.22] * channels, "dtype": "float32",
    }  # fmt: skip
    graph, params, stats = models.split(models.build(description, dtype="float32", rngs=nnx.Rngs(seed)))
    random = np.random.default_rng(seed)
    tensors = {name: np.asarray(value) for name, value in (params | stats).items()}
    for name, value in tensors.items():
        if name.endswith((".scale", ".var")):
            tensors[name] = random.uniform(0.6, 1.4, value.shape).astype(np.float32)
        elif name.endswith((".mean", "norm1.bias", "norm2.bias", "norm.bias")):
            tensors[name] = random.normal(0, 0.3, value.shape).astype(np.float32)
    model = models.merge(graph, {n: tensors[n] for n in params}, {n: tensors[n] for n in stats})
    return model, tensors, description


def fold(tensors, description):
    return folding.fold(tensors, mean=tuple(description["mean"]), std=tuple(description["std"]))


def noisy(count, shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(0.5, 0.4, (count, *shape)), jnp.float32)


@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
@pytest.mark.parametrize(("depth", "shape"), [(8, (8, 8, 1)), (8, (9, 7, 3)), (20, (16, 16, 3))])
def test_the_folded_network_is_the_same_function(depth, shape, shortcut):
    model, tensors, description = network(depth, 5, shape, shortcut)
    images = noisy(6, shape)
    expected = np.asarray(model(images))
    got = folding.apply(folding.cast(fold(tensors, description), jnp.float32), images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=2e-6 * np.abs(expected).max())


def test_bfloat16_is_near_and_not_the_same():
    _, tensors, description = network(20, 5, (16, 16, 3))
    folded = fold(tensors, description)
    images = noisy(6, (16, 16, 3))
    full, half = (folding.apply(folding.cast(folded, dtype), images) for dtype in (jnp.float32, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    types = {name: value.dtype for name, value in folding.cast(folded, jnp.bfloat16).items()}
    assert {name for name, dtype in types.items() if dtype == jnp.bfloat16} == {
        name for name in folded if name.endswith(".kernel") and name != "head.kernel"
    }


@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
def test_the_form_for_accelerators_is_the_same_function(shortcut):
    _, tensors, description = network(20, 5, (16, 16, 3), shortcut)
    folded, images = fold(tensors, description), noisy(6, (16, 16, 3))
    expected = np.asarray(folding.apply(folding.cast(folded, jnp.float32), images))
    for dtype, error in ((jnp.float32, 2e-6), (jnp.bfloat16, 0.05)):
        weights = folding.cast(folded, dtype, biases=dtype)
        got = folding.apply_on_accelerator(weights, images)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=error * np.abs(expected).max())
        kept = {name for name, value in weights.items() if value.dtype != dtype}
        assert kept == (set() if dtype == jnp.float32 else {"mean", "std", "head.kernel", "head.bias"})


def test_what_does_not_run_on_a_cpu_is_loaded_in_the_form_for_accelerators():
    _, tensors, description = network()
    made = (
        loading.classifier_of(tensors, description, dtype="bfloat16", kernel="xla", platform=platform)
        for platform in ("cpu", "gpu", "")
    )
    on_cpu, on_gpu, here = ((one.apply_fn, one.params["stem.bias"].dtype) for one in made)
    assert on_cpu == here == (folding.apply, jnp.float32)
    assert on_gpu == (folding.apply_on_accelerator, jnp.bfloat16)


def network_50(classes=6, seed=0):
    """A ResNet-50 with random tensors, in both precisions, and its folded weights."""
    description = {
        "architecture": "resnet50", "depth": 50, "classes": classes, "image_shape": [64, 64, 3],
        "shortcut": "projection", "mean": [0.5, 0.4, 0.6], "std": [0.2, 0.3, 0.25], "dtype": "float32",
    }  # fmt: skip
    random = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("kernel"):
            return random.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)
        if name.endswith((".scale", ".var")):
            return random.uniform(0.6, 1.4, shape).astype(np.float32)
        return random.normal(0, 0.3, shape).astype(np.float32)

    graph, params, stats = models.abstract(description, dtype="float32")
    tensors = {name: draw(name, value.shape) for name, value in (params | stats).items()}
    parts = [{name: tensors[name] for name in part} for part in (params, stats)]
    return jax.jit(lambda images: models.merge(graph, *parts)(images)), fold(tensors, description)


@pytest.mark.evidence
def test_the_folded_resnet50_is_the_same_function():
    """Odd sizes too: strides, the pool's padding and the border see the same pixels."""
    model, folded = network_50()
    weights, classify = folding.cast(folded, jnp.float32), jax.jit(folding.apply_resnet50)
    for shape in ((64, 64, 3), (45, 51, 3)):
        images = noisy(3, shape)
        expected = np.asarray(model(images))
        assert expected.std(axis=0).min() > 0.01
        np.testing.assert_allclose(classify(weights, images), expected, atol=1e-5 * np.abs(expected).max())
    images = noisy(3, (64, 64, 3))
    full, half = (np.asarray(classify(folding.cast(folded, kind), images)) for kind in (jnp.float32, jnp.bfloat16))
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
