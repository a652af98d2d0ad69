import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idrc_jax import models
from idrc_jax.models.resnet import ResNet


def count(depth, shortcut, **more):
    model = nnx.eval_shape(lambda: ResNet(depth=depth, classes=10, shortcut=shortcut, rngs=nnx.Rngs(0), **more))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_parameter_counts_are_the_literatures():
    """He et al. (2016), table 6: 0.27 M, 0.85 M and 1.7 M with option A; the 1x1 projections and norms come on top."""
    assert count(20, "zero_pad") == 269_722
    assert count(56, "zero_pad") == 853_018
    assert count(110, "zero_pad") == 1_727_962
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert count(110, "projection") == 1_727_962 + projections


@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3)])
def test_any_size_and_class_count_in_both_precisions(shortcut, shape):
    options = {"depth": 8, "classes": 7, "channels": shape[-1], "shortcut": shortcut}
    moments = {"mean": (0.5,) * shape[-1], "std": (0.25,) * shape[-1]}
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(3, *shape)), jnp.float32)
    full = ResNet(**options, **moments, rngs=nnx.Rngs(0))(images)
    half = ResNet(**options, **moments, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(images)
    assert full.shape == half.shape == (3, 7)
    assert full.dtype == half.dtype == jnp.float32
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(full, half, atol=0.05 * np.abs(full).max())


def test_normalisation_is_inside():
    options = {"depth": 8, "classes": 3, "channels": 1, "rngs": nnx.Rngs(0)}
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 1)), jnp.float32)
    inside = ResNet(**options, mean=(0.4,), std=(0.2,))
    state = nnx.split(inside)[1]
    plain = nnx.merge(nnx.split(ResNet(**options, mean=(0.0,), std=(1.0,)))[0], state)
    np.testing.assert_allclose(inside(images), plain((images - 0.4) / 0.2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 21}, "6n \\+ 2"),
        ({"depth": 2}, "6n \\+ 2"),
        ({"shortcut": "none"}, "shortcut"),
        ({"mean": (0.5,)}, "3 channels"),
    ],
)
def test_bad_networks_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**({"depth": 8, "classes": 10, "rngs": nnx.Rngs(0)} | changed))


def torch_twin(model, torch):
    """The same network written with PyTorch's layers, on the same weights."""
    functional = torch.nn.functional

    def tensor(value):
        return torch.tensor(np.asarray(value))

    class Layer:
        """A convolution and its normalisation, in training mode, updating PyTorch's running statistics."""

        def __init__(self, conv, norm, stride):
            self.kernel = tensor(conv.kernel[...]).permute(3, 2, 0, 1).contiguous()
            self.norm = torch.nn.BatchNorm2d(self.kernel.shape[0])
            self.norm.weight.data, self.norm.bias.data = tensor(norm.scale[...]), tensor(norm.bias[...])
            self.stride, self.flax = stride, norm

        def __call__(self, x):
            return self.norm(functional.conv2d(x, self.kernel, stride=self.stride, padding=self.kernel.shape[-1] // 2))

    stem = Layer(model.stem, model.stem_norm, 1)
    layers = [stem]
    blocks = []
    for block in model.blocks:
        first, second = Layer(block.conv1, block.norm1, block.stride), Layer(block.conv2, block.norm2, 1)
        shortcut = None
        if block.projection is not None:
            shortcut = Layer(block.projection, block.projection_norm, block.stride)
            layers.append(shortcut)
        layers += [first, second]
        blocks.append((block, first, second, shortcut))

    def forward(images):
        x = (torch.tensor(images) - tensor(np.float32(model.mean))) / tensor(np.float32(model.std))
        x = torch.relu(stem(x.permute(0, 3, 1, 2)))
        for block, first, second, shortcut in blocks:
            short = x
            if shortcut is not None:
                short = shortcut(x)
            elif block.stride != 1:
                pad = second.kernel.shape[0] // 4
                short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
            x = torch.relu(second(torch.relu(first(x))) + short)
        pooled = x.mean((2, 3))
        return pooled @ tensor(model.head.kernel[...]) + tensor(model.head.bias[...])

    return forward, layers


@pytest.mark.peers
@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
@pytest.mark.parametrize("size", [8, 11])
def test_forward_pass_and_running_statistics_are_pytorchs(shortcut, size):
    """Padding of strided convolutions, batch normalisation and its momentum, in training and inference mode."""
    torch = pytest.importorskip("torch")
    model = ResNet(depth=8, classes=5, shortcut=shortcut, rngs=nnx.Rngs(3))
    images = np.random.default_rng(0).uniform(size=(6, size, size, 3)).astype(np.float32)
    forward, layers = torch_twin(model, torch)
    with torch.no_grad():
        for _ in range(3):
            expected = forward(images).numpy()
            np.testing.assert_allclose(model(images, train=True), expected, rtol=1e-4, atol=1e-4)
        for layer in layers:
            np.testing.assert_allclose(layer.flax.mean[...], layer.norm.running_mean.numpy(), rtol=1e-4, atol=1e-5)
            # PyTorch's running variance is the unbiased one: n / (n - 1) times Flax's, n = N * H * W.
            ratio = layer.norm.running_var.numpy() / np.asarray(layer.flax.var[...])
            assert np.all((ratio > 0.999) & (ratio < 1.2))
            layer.norm.running_var.data = torch.tensor(np.asarray(layer.flax.var[...]))
            layer.norm.eval()
        np.testing.assert_allclose(model(images), forward(images).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.peers
def test_initial_values_have_pytorchs_spread():
    """He initialisation (fan out) of convolutions, PyTorch's default of the linear layer."""
    torch = pytest.importorskip("torch")
    model = ResNet(depth=8, classes=1000, rngs=nnx.Rngs(0))
    kernel = np.asarray(model.blocks[-1].conv2.kernel[...])
    peer = torch.nn.Conv2d(64, 64, 3)
    torch.nn.init.kaiming_normal_(peer.weight, mode="fan_out", nonlinearity="relu")
    assert kernel.std() == pytest.approx(float(peer.weight.detach().std()), rel=0.02)
    linear = torch.nn.Linear(64, 1000)
    for ours, theirs in ((model.head.kernel[...], linear.weight), (model.head.bias[...], linear.bias)):
        assert float(np.std(ours)) == pytest.approx(float(theirs.detach().std()), rel=0.1)
        assert float(np.abs(ours).max()) <= 1 / 8


@pytest.mark.parametrize("depth", [2, 9, 10_004, 2**31])
def test_depths_that_are_none_are_refused_before_anything_is_built(depth):
    with pytest.raises(ValueError, match=r"Expected a ResNet depth of 6n \+ 2 .* got"):
        ResNet(depth=depth, classes=3, mean=(0.5,), std=(0.5,), channels=1, rngs=nnx.Rngs(0))


def test_the_shapes_of_a_deep_network_take_work_that_is_linear_in_its_depth():
    """A description says how deep: 434 layers take 4 times the calls that 110 take, not 16."""
    described = {"architecture": "resnet", "classes": 3, "image_shape": (8, 8, 1), "shortcut": "projection"}
    described |= {"mean": (0.5,), "std": (0.25,)}

    def calls(depth):
        count = itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            _, params, _ = models.abstract(described | {"depth": depth}, dtype="float32")
        finally:
            sys.setprofile(None)
        assert sum(name.endswith("kernel") for name in params) > depth
        return next(count)

    calls(8)  # what a first call pays once
    assert calls(434) < 5 * calls(110)
