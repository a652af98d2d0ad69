"""The training kernels against float64 convolutions, and against XLA's gradients of a whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax.kernels import convolution_cpu

ONE, KEEP = (1, 1), ((1, 1), (1, 1))
OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.fixture(scope="module", autouse=True)
def _built():
    if not convolution_cpu.available():
        pytest.skip("needs a C++ compiler")


def arrays(count, height, width, channels):
    random = np.random.default_rng(channels + count)
    x, gradient = random.normal(size=(2, count, height, width, channels)).astype(np.float32)
    kernel = random.normal(size=(3, 3, channels, channels)).astype(np.float32) / np.float32(3 * np.sqrt(channels))
    return x, kernel, gradient


def exactly(x, kernel, gradient):
    """Result and both gradients, by the definition, in float64."""
    height, width = x.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    result, to_kernel = np.zeros(x.shape), np.zeros(kernel.shape)
    to_padded = np.zeros_like(padded)
    for ky in range(3):
        for kx in range(3):
            window = (slice(None), slice(ky, ky + height), slice(kx, kx + width))
            result += padded[window] @ kernel[ky, kx].astype(np.float64)
            to_kernel[ky, kx] = np.einsum("nyxk,nyxc->kc", padded[window], gradient.astype(np.float64))
            to_padded[window] += gradient.astype(np.float64) @ kernel[ky, kx].T.astype(np.float64)
    return result, to_padded[:, 1:-1, 1:-1], to_kernel


@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize(("count", "height", "width"), [(1, 4, 4), (3, 8, 12), (21, 16, 8), (40, 8, 8)])
def test_convolution_and_gradients(count, height, width, channels):
    x, kernel, gradient = arrays(count, height, width, channels)
    apply = jax.jit(lambda x, k: convolution_cpu.conv_general_dilated(x, k, ONE, KEEP, **OPTIONS))
    assert "idrc_convolution" in apply.lower(x, kernel).as_text()
    ours, pullback = jax.vjp(apply, x, kernel)
    for got, expected in zip((ours, *pullback(gradient)), exactly(x, kernel, gradient), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "changed",
    [{"stride": (2, 2)}, {"channels": 8}, {"size": 1}, {"height": 6}, {"out": 32}, {"dtype": np.float16}],
)
def test_other_convolutions_are_xlas(changed):
    case = {"stride": ONE, "channels": 16, "size": 3, "height": 8, "out": None, "dtype": np.float32} | changed
    random = np.random.default_rng(0)
    channels, size = case["channels"], case["size"]
    x = random.normal(size=(2, case["height"], 8, channels)).astype(case["dtype"])
    kernel = random.normal(size=(size, size, channels, case["out"] or channels)).astype(case["dtype"])
    padding = ((size // 2, size // 2),) * 2
    ours = convolution_cpu.conv_general_dilated(x, kernel, case["stride"], padding, **OPTIONS)
    np.testing.assert_array_equal(ours, jax.lax.conv_general_dilated(x, kernel, case["stride"], padding, **OPTIONS))


def test_gradients_do_not_depend_on_the_run():
    """Threads share the batch as they come; sums are made in a fixed order."""
    x, kernel, gradient = arrays(64, 16, 16, 32)
    run = jax.jit(
        lambda: jax.vjp(lambda k: convolution_cpu.conv_general_dilated(x, k, ONE, KEEP, **OPTIONS), kernel)[1](
            gradient
        )[0]
    )
    first = np.asarray(run())
    for _ in range(20):
        np.testing.assert_array_equal(run(), first)
    assert jnp.isfinite(first).all()
