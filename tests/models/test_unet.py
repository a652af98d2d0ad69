"""The U-Net by itself; beside diffusers' it stands in test_diffusers.py."""

import functools

import built
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idrc_jax import models
from idrc_jax.kernels import convolution_cpu
from idrc_jax.models import unet
from idrc_jax.models.unet import UNet

SMALL = {"widths": (32, 64), "blocks": 1, "attention": (False, True), "groups": 8}
SETTINGS = {
    "plain": SMALL,
    "varied": SMALL | {"scale_shift": True, "resample": "resnet", "head_channels": 16, "middle_norm": False},
}


def abstract(settings, **more):
    """(graph, parameters as shapes)."""
    graph, params, _ = models.split(nnx.eval_shape(lambda: UNet(**settings, **more, rngs=nnx.Rngs(0))))
    return graph, params


def network(settings, **more):
    """(call, params): away from its initial values, where it predicts zero."""
    graph, shapes = abstract(settings, **more)
    generator = np.random.default_rng(0)
    params = {}
    for name, value in shapes.items():
        made = generator.normal(size=value.shape) / np.sqrt(max(value.size / value.shape[-1], 4))
        params[name] = jnp.asarray(made + (1 if name.endswith("scale") else 0), jnp.float32)
    return jax.jit(lambda params, x, t: models.merge(graph, params)(x, t)), params


def batch(count=2, height=8, width=8, channels=3):
    return jnp.asarray(np.random.default_rng(5).normal(size=(count, height, width, channels)), jnp.float32)


def test_the_parameters_of_ho_et_al_are_counted():
    """35.7 million for CIFAR-10 (appendix B); to the unit as counted in other implementations."""
    model = nnx.eval_shape(
        lambda: UNet(widths=(128, 256, 256, 256), blocks=2, attention=(False, True, False, False), rngs=nnx.Rngs(0))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 35_746_307


def test_a_new_network_predicts_zero_and_its_blocks_pass_on():
    settings = {"widths": (8,), "blocks": 1, "attention": (True,), "groups": 2}
    x = batch(channels=8)

    def made():
        model = UNet(**settings, rngs=nnx.Rngs(0))
        return model(batch(), 3.0), model.down[0].blocks[0](x, jnp.ones((1, 32))), model.down[0].attentions[0](x)

    prediction, *passed = jax.jit(made)()
    assert prediction.shape == (2, 8, 8, 3)
    assert not np.any(prediction)
    for one in passed:
        np.testing.assert_array_equal(one, x)


@pytest.mark.parametrize("name", SETTINGS)
def test_shapes_times_and_precisions(name):
    options = SETTINGS[name] | {"channels": 1, "channels_out": 2}
    (full, params), (half, _) = network(options), network(options, dtype=jnp.bfloat16)
    x = batch(3, 8, 12, 1)
    one, several = (full(params, x, jnp.asarray(t)) for t in ([250.5] * 3, [250.5, 0.0, 999.0]))
    assert (one.shape, one.dtype) == ((3, 8, 12, 2), jnp.float32)
    np.testing.assert_array_equal(several[0], one[0])
    assert np.abs(several[1:] - one[1:]).max() > 0.1 * one.std()
    rough = half(params, x, jnp.asarray([250.5] * 3))
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - one).max() < 0.05 * np.abs(one).max()


@functools.cache
def loss_and_gradients(name, convolution):
    call, params = network(SETTINGS[name], convolution=convolution)
    times = jnp.asarray([1.0, 700.0])
    return jax.jit(jax.value_and_grad(lambda params: jnp.mean(jnp.square(call(params, batch(), times)))))(params)


@pytest.mark.evidence
@pytest.mark.parametrize("name", SETTINGS)
def test_the_gradient_reaches_every_parameter(name):
    value, gradients = loss_and_gradients(name, jax.lax.conv_general_dilated)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        # One bias for all keys of a query shifts all its scores alike: the softmax does not see it.
        assert np.abs(gradient).max() > 1e-5 * value or name.endswith(".key.bias"), name


@pytest.mark.evidence
def test_the_kernel_for_cpus_is_the_same_network():
    built.require(convolution_cpu)
    value, gradients = loss_and_gradients("plain", jax.lax.conv_general_dilated)
    other, others = loss_and_gradients("plain", convolution_cpu.conv_general_dilated)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(others[name], gradient, rtol=1e-3, atol=1e-5 * largest, err_msg=name)


def test_group_norm_is_exact_far_from_zero():
    generator = np.random.default_rng(0)
    x = generator.normal(3, 0.5, size=(2, 16, 16, 12)) + 10 * generator.normal(size=(1, 1, 1, 12))
    scale, bias, more, shift = generator.normal(size=(4, 12))
    grouped = x.reshape(2, 16, 16, 3, 4)
    axes = {"axis": (1, 2, 4), "keepdims": True}
    expected = ((grouped - grouped.mean(**axes)) / np.sqrt(grouped.var(**axes) + 1e-2)).reshape(x.shape) * scale + bias
    layers = unet.Layers(3, 1e-2, 0, False, 0, jnp.float32, None, None, nnx.Rngs(0))
    norm = unet.GroupNorm(12, layers)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    single = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(norm(single), expected, atol=1e-4)
    told = norm(single, jnp.asarray(more[None], jnp.float32), jnp.asarray(shift[None], jnp.float32))
    np.testing.assert_allclose(told, expected * (1 + more) + shift, atol=2e-4)


def test_resizing_repeats_and_averages():
    x = np.asarray(batch(2, 4, 6, 3))
    np.testing.assert_array_equal(unet.enlarge(x), x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(unet.shrink(x)[1, 1, 2], x[1, 2:4, 4:6].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(unet.shrink(unet.enlarge(x)), x, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (32, 60)}, "multiples of 8 groups"),
        ({"widths": (32, 64, 64)}, "an attention flag for each width"),
        ({"widths": (), "attention": ()}, "an attention flag for each width"),
        ({"widths": (31, 62), "groups": 31}, "the first one even"),
        ({"blocks": 0}, "blocks >= 1"),
        ({"groups": 0}, "groups >= 1"),
        ({"epsilon": 0.0}, "epsilon > 0"),
        ({"head_channels": 24}, "multiples of 24 per head"),
        ({"head_channels": -8}, "head_channels >= 0"),
        ({"resample": "fir"}, "resample to be one of conv, resnet"),
        ({"downsample_padding": 2}, "downsample_padding 0 or 1"),
        ({"frequency_shift": 16.0}, "frequency_shift < 16"),
    ],
)
def test_settings_that_make_no_network_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: UNet(**(SMALL | change), rngs=nnx.Rngs(0)))


def test_odd_sizes_are_refused():
    call, params = network(SMALL)
    with pytest.raises(ValueError, match=r"multiples of 2, got \(8, 7\)"):
        call(params, batch(2, 8, 7), 0.0)


def test_a_checkpoint_holds_it(tmp_path):
    description = {
        "architecture": "unet", "image_shape": [8, 8, 3], "unet": SMALL, "dtype": "float32",
        "diffusion": {"schedule": {}, "prediction": "v"},
    }  # fmt: skip
    call, params = network(SMALL)
    models.save_weights(tmp_path / "weights.safetensors", params, description)
    tensors, said = models.read_weights(tmp_path)
    graph, shapes, stats = models.abstract(said, dtype="float32")
    assert shapes.keys() == tensors.keys()
    assert not stats
    again = jax.jit(lambda params, x, t: models.merge(graph, params)(x, t))
    np.testing.assert_array_equal(again(tensors, batch(), 5.0), call(params, batch(), 5.0))
    with pytest.raises(ValueError, match="Expected a classifier, got a denoiser in"):
        models.load_classifier(tmp_path)
