"""When cuDNN's attention is used, with others in its place: there is no GPU here."""

import logging

import jax
import numpy as np
import pytest
from test_unet import SETTINGS, abstract, batch
from test_unet import network as unet_of
from test_vit import DESCRIPTION, noisy, random_tensors

from idrc_jax import models
from idrc_jax.kernels import attention_gpu
from idrc_jax.models import loading

XLA = jax.nn.dot_product_attention


@pytest.fixture
def ask(monkeypatch):
    """A function: whether the kernel is available on a GPU where it is this function."""

    def available(attend, backend="gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(attention_gpu, "attend", attend)
        attention_gpu.available.cache_clear()
        return attention_gpu.available(16)

    yield available
    attention_gpu.available.cache_clear()


def test_it_is_tried_on_gpus_alone(ask, caplog):
    assert not ask(None, backend="cpu")
    assert ask(XLA)
    assert not caplog.messages


def test_a_kernel_that_disagrees_or_fails_is_left_out_with_a_line(ask, caplog):
    def fail(*_):
        raise RuntimeError("cuDNN is not detected.\nand more")

    with caplog.at_level(logging.WARNING, "idrc_jax"):
        assert not ask(lambda query, key, value: XLA(query, key, value, scale=0.2))
        assert not ask(lambda query, key, value: XLA(query, key, value) * np.nan)
        assert not ask(fail)
    assert caplog.messages[0].startswith(
        "No fused attention (expected results and gradients within 0.02 of XLA's, got "
    )
    assert "got nan" in caplog.messages[1]
    assert caplog.messages[2] == "No fused attention (cuDNN is not detected.): XLA does its work."


@pytest.mark.parametrize(
    ("dtype", "platform", "kernel", "expected"),
    [
        ("bfloat16", "gpu", "auto", ["attention_gpu", "xla"]),
        ("bfloat16", "gpu", "xla", ["xla"]),
        ("float32", "gpu", "auto", ["xla"]),
        ("bfloat16", "cpu", "auto", ["xla"]),
    ],
)
def test_a_vit_has_it_beside_the_plain_one(monkeypatch, dtype, platform, kernel, expected):
    monkeypatch.setattr(attention_gpu, "available", lambda channels: channels == 4)
    made = loading.classifier_of(random_tensors(), DESCRIPTION, dtype=dtype, kernel=kernel, platform=platform)
    assert [one.kernel for one in made.implementations] == expected


@pytest.mark.evidence
@pytest.mark.parametrize("name", SETTINGS)
def test_a_unet_attends_by_what_it_is_given(name):
    """XLA's function of the same name, against the U-Net's own products, with one head and with several."""
    (own, params), (given, _) = unet_of(SETTINGS[name]), unet_of(SETTINGS[name], attend=XLA)
    expected = own(params, batch(), 3.0)
    np.testing.assert_allclose(given(params, batch(), 3.0), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_denoiser_has_it_beside_the_plain_one(monkeypatch):
    """Asked for heads of the channels that are set."""
    asked = []
    monkeypatch.setattr(attention_gpu, "available", lambda channels: not asked.append(channels))
    described = {
        "architecture": "unet", "unet": SETTINGS["varied"], "image_shape": [8, 8, 3],
        "diffusion": {"schedule": {}, "prediction": "epsilon"},
    }  # fmt: skip
    tensors = {name: np.zeros(leaf.shape, np.float32) for name, leaf in abstract(SETTINGS["varied"])[1].items()}
    made = loading.denoiser_of(tensors, described, dtype="bfloat16", kernel="auto")
    assert [one.kernel for one in made.implementations] == ["attention_gpu", "xla"]
    assert asked == [SETTINGS["varied"]["head_channels"]]


def test_it_attends_in_all_blocks_but_the_last_which_has_one_query():
    asked = []

    def attend(query, key, value):
        asked.append(query.shape)
        return XLA(query, key, value)

    tensors, images = random_tensors(), noisy(2, 12)
    plain, ours = (models.abstract(DESCRIPTION, dtype="float32", attend=one)[0] for one in (None, attend))
    made = [models.merge(graph, tensors, {})(images) for graph in (ours, plain)]
    np.testing.assert_array_equal(*made)
    assert len(asked) == DESCRIPTION["vit"]["depth"] - 1
    assert all(shape[1] == 10 for shape in asked)
