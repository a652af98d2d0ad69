"""Which kernel trains where, and the trial of the one for GPUs."""

import logging
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax.training import training_kernel

SHAPE = (8, 8, 3)


def plain_chain(x, layers, shortcut=1.0):
    """Residual blocks in bfloat16 by the textbook; another share of the shortcut makes others."""
    found = []

    def normalised(y, scale, bias):
        y = y.astype(jnp.float32)
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        found.append((mean, variance))
        return (y - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=numbers)

    for (first, *one), (second, *two) in layers:
        y = jnp.maximum(normalised(convolve(x, first), *one), 0).astype(x.dtype)
        x = jnp.maximum(normalised(convolve(y, second), *two) + shortcut * x, 0).astype(x.dtype)
    return x, [found[at : at + 2] for at in range(0, len(found), 2)]


@pytest.mark.evidence
def test_a_trial_tells_a_right_chain_from_a_wrong_one(monkeypatch, caplog):
    monkeypatch.setattr(training_kernel, "_MARGIN", 1e9)
    with caplog.at_level(logging.WARNING, "idrc_jax"):
        assert training_kernel.serves(plain_chain, SHAPE, depth=8, batch=4)
        assert not caplog.messages
        wrong = partial(plain_chain, shortcut=0.5)
        assert not training_kernel.serves(wrong, SHAPE, depth=8, batch=4)
    assert "expected gradients within" in caplog.messages[0]


EXACT = {"one": np.array([3.0, 0.0]), "other": np.array([[4.0]])}  # of length 5


def serve(monkeypatch, errors, seconds=(1.0, 0.1)):
    """What a trial says where gradients of the plain network and the kernel's are so far off and take so long."""
    made = [lambda error=error: EXACT | {"one": np.array([3.0, 5 * error])} for error in (*errors, 0.0)]
    order = iter(made)
    monkeypatch.setattr(training_kernel, "_tried", lambda *_: next(order))
    monkeypatch.setattr(training_kernel, "_seconds", lambda compute: seconds[made.index(compute)])
    return training_kernel.serves(plain_chain, SHAPE)


def test_a_chain_that_agrees_serves_where_it_is_faster(monkeypatch, caplog):
    assert serve(monkeypatch, (0.02, 0.03), (1.0, 0.96))
    assert not serve(monkeypatch, (0.02, 0.03), (1.0, 0.98))
    assert not caplog.messages


@pytest.mark.parametrize("error", [0.032, np.nan, np.inf])
def test_a_chain_that_disagrees_is_left_out_with_a_line(monkeypatch, caplog, error):
    with caplog.at_level(logging.WARNING, "idrc_jax"):
        assert not serve(monkeypatch, (0.02, error))
    said = f"expected gradients within 0.02 as the plain network's, got {error:.2g}"
    assert caplog.messages == [f"No kernel for GPUs ({said}): XLA does its work."]


def test_a_chain_that_fails_is_left_out_with_a_line(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no such card\nand more")

    monkeypatch.setattr(training_kernel, "_tried", fail)
    with caplog.at_level(logging.WARNING, "idrc_jax"):
        assert not training_kernel.serves(plain_chain, SHAPE)
    assert caplog.messages == ["No kernel for GPUs (no such card): XLA does its work."]


@pytest.mark.parametrize(
    ("changes", "count", "kernel", "expected"),
    [
        ({}, 1, "auto", "residual_gpu"),
        ({}, 1, "xla", "xla"),
        ({}, 2, "auto", "xla"),
        ({"dtype": "float32"}, 1, "auto", "xla"),
        ({"architecture": "resnet50"}, 1, "auto", "xla"),
    ],
)
def test_on_a_gpu_the_kernel_trains_resnets_in_bfloat16(monkeypatch, changes, count, kernel, expected):
    tried = []
    monkeypatch.setattr(training_kernel, "_serves_on", lambda *asked: not tried.append(asked))
    card = SimpleNamespace(platform="gpu")
    mesh = SimpleNamespace(size=count, devices=np.array([card] * count))
    description = {"architecture": "resnet", "dtype": "bfloat16", "image_shape": [32, 32, 3]} | changes
    assert training_kernel.kernel_on(mesh, description, kernel) == expected
    assert tried == [(card, (32, 32, 3))] * (expected == "residual_gpu")
