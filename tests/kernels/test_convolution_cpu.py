"""The training kernels against float64 convolutions, and against XLA's gradients of a whole network."""

import built
import jax
import numpy as np
import pytest

from idrc_jax.kernels import convolution_cpu

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.fixture(scope="module", autouse=True)
def _built():
    built.require(convolution_cpu)


def padding(size):
    return ((size // 2, size // 2),) * 2


def convolve(x, kernel, stride=1):
    return convolution_cpu.conv_general_dilated(x, kernel, (stride, stride), padding(len(kernel)), **OPTIONS)


def exactly(x, kernel, gradient, stride):
    """Result and both gradients, by the definition, in float64."""
    x, kernel, gradient = (value.astype(np.float64) for value in (x, kernel, gradient))
    size = len(kernel)
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    result, to_kernel, to_padded = np.zeros(gradient.shape), np.zeros(kernel.shape), np.zeros_like(padded)
    _, height, width, _ = gradient.shape
    for ky in range(size):
        for kx in range(size):
            rows, columns = (slice(k, k + stride * (n - 1) + 1, stride) for k, n in ((ky, height), (kx, width)))
            window = (slice(None), rows, columns)
            result += padded[window] @ kernel[ky, kx]
            to_kernel[ky, kx] = np.einsum("nyxk,nyxc->kc", padded[window], gradient)
            to_padded[window] += gradient @ kernel[ky, kx].T
    return result, to_padded[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], to_kernel


@pytest.mark.parametrize(
    ("count", "height", "width", "channels", "features", "size", "stride"),
    [
        *[
            (count, height, width, channels, channels, 3, 1)
            for count, height, width in ((1, 4, 4), (3, 8, 12), (21, 16, 8), (40, 8, 8))
            for channels in (16, 32, 64)
        ],
        (5, 32, 32, 3, 16, 3, 1),
        (5, 8, 8, 1, 16, 3, 1),
        (9, 32, 32, 16, 32, 3, 2),
        (9, 9, 7, 16, 32, 3, 2),
        (9, 16, 16, 32, 64, 3, 2),
        (9, 16, 16, 16, 32, 1, 2),
        (9, 9, 7, 32, 64, 1, 2),
        (2, 6, 10, 32, 32, 3, 1),
        *[
            (count, height, width, channels, features, 3, 1)
            for count, height, width in ((1, 4, 4), (9, 8, 4), (5, 16, 16))
            for channels, features in ((16, 32), (96, 16), (32, 48), (48, 112), (112, 64), (176, 144))
        ],
        (3, 12, 10, 48, 112, 3, 1),
        (3, 12, 20, 48, 112, 3, 1),
        (0, 8, 8, 32, 48, 3, 1),
        (5, 9, 7, 32, 48, 3, 2),
        (5, 9, 7, 48, 80, 1, 2),
    ],
)
def test_convolution_and_gradients(count, height, width, channels, features, size, stride):
    random = np.random.default_rng(channels + count)
    x = random.normal(size=(count, height, width, channels)).astype(np.float32)
    kernel = random.normal(size=(size, size, channels, features)).astype(np.float32)
    gradient = random.normal(size=(count, -(-height // stride), -(-width // stride), features)).astype(np.float32)
    apply = jax.jit(lambda x, k: convolve(x, k, stride))
    assert "idrc_convolution" in apply.lower(x, kernel).as_text()
    ours, pullback = jax.vjp(apply, x, kernel)
    tolerance = 1e-5 if max(channels, features) <= 64 else 2e-5  # more products, more rounding
    for got, expected in zip((ours, *pullback(gradient)), exactly(x, kernel, gradient, stride), strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max(initial=0))


@pytest.mark.parametrize(
    "changed", [{"stride": 3}, {"size": 5}, {"features": 8}, {"features": 40}, {"dtype": "float16"}]
)
def test_other_convolutions_are_xlas(changed):
    case = {"stride": 1, "size": 3, "features": 16, "dtype": "float32"} | changed
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 8, 8, 16)).astype(case["dtype"])
    kernel = random.normal(size=(case["size"], case["size"], 16, case["features"])).astype(case["dtype"])
    strides = (case["stride"],) * 2
    expected = jax.lax.conv_general_dilated(x, kernel, strides, padding(case["size"]), **OPTIONS)
    np.testing.assert_array_equal(convolve(x, kernel, case["stride"]), expected)


@pytest.mark.parametrize(("features", "size", "stride"), [(16, 3, 1), (32, 3, 1), (32, 3, 2), (16, 1, 2)])
def test_weights_that_are_no_numbers_are_seen(features, size, stride):
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 8, 8, features)).astype(np.float32)
    kernel = random.normal(size=(size, size, features, features)).astype(np.float32)
    kernel[..., 5] = np.nan
    made = convolve(x, kernel, stride)
    np.testing.assert_array_equal(np.isnan(made), np.broadcast_to(np.arange(features) == 5, made.shape))


@pytest.mark.parametrize("channels", [32, 112])
def test_gradients_do_not_depend_on_the_run(channels):
    """Threads share the batch and the channels as they come; sums are made in a fixed order."""
    random = np.random.default_rng(0)
    x, gradient = random.normal(size=(2, 64, 16, 16, channels)).astype(np.float32)
    kernel = random.normal(size=(3, 3, channels, channels)).astype(np.float32)
    run = jax.jit(lambda: jax.vjp(lambda k: convolve(x, k), kernel)[1](gradient)[0])
    first = np.asarray(run())
    for _ in range(20):
        np.testing.assert_array_equal(run(), first)
    assert np.isfinite(first).all()
