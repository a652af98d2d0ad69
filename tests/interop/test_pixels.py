import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax.interop import torch_operators
from idrc_jax.interop.pixels import Pixels, as_torch, channels_first, channels_last
from idrc_jax.interop.torch_operators import OPERATIONS


def images(channels=3, height=4, width=5):
    return jnp.asarray(np.random.default_rng(channels).normal(size=(2, channels, height, width)), jnp.float32)


def test_every_operation_stands_in_the_table_once():
    groups = [
        torch_operators._ON_ARRAYS, torch_operators._ON_PIXELS, torch_operators._ELEMENTWISE,
        torch_operators._REDUCTIONS, torch_operators._VIEWS,
    ]  # fmt: skip
    names = [name for group in groups for name in group]
    alone = {"permute.default", "cat.default", "slice.Tensor", "constant_pad_nd.default"}
    assert len(names) == len(set(names))
    assert set(names) | alone == OPERATIONS.keys()
    assert not set(names) & alone


CALLS = [
    ("relu.default", (), {}, True),
    ("add.Tensor", (images(),), {"alpha": 2}, True),
    ("mul.Tensor", (jnp.arange(1.0, 4).reshape(3, 1, 1),), {}, True),
    ("add.Tensor", (jnp.zeros((1, 2, 3, 4, 5)),), {}, False),  # more axes than pixels have
    ("mean.dim", ([2, 3],), {}, False),
    ("mean.dim", ([-1, -2], True), {}, True),
    ("amax.default", ([1], True), {}, True),
    ("amax.default", ([1],), {}, False),
    ("sum.dim_IntList", ([0, 1],), {}, False),
    ("mean.dim", ([2],), {}, False),
    ("var.correction", ([2, 3],), {"correction": 0}, False),
    ("permute.default", ([0, 2, 3, 1],), {}, False),
    ("permute.default", ([0, 1, 3, 2],), {}, False),
    ("slice.Tensor", (1, 1, 3), {}, True),
    ("slice.Tensor", (), {}, True),
    ("constant_pad_nd.default", ([1, 2, 0, 1], 7.0), {}, True),
    ("constant_pad_nd.default", ([-1, 0], 0.0), {}, True),
    ("select.int", (1, 0), {}, False),
    ("where.self", (0.0, images()), {}, False),
    ("_softmax.default", (1, False), {}, False),
]


@pytest.mark.parametrize(("name", "arguments", "options", "stays"), CALLS)
def test_operations_give_pixels_the_results_of_arrays(name, arguments, options, stays):
    x = images() > 0 if name == "where.self" else images()
    expected = OPERATIONS[name](x, *arguments, **options)
    made = OPERATIONS[name](Pixels(channels_last(x)), *arguments, **options)
    assert isinstance(made, Pixels) == stays
    assert made.shape == expected.shape
    np.testing.assert_allclose(as_torch(made), expected, rtol=1e-6, atol=1e-6)


def test_pixels_and_arrays_are_concatenated_along_any_axis():
    x, y = images(), images(2)
    made = OPERATIONS["cat.default"]((Pixels(channels_last(x)), y), 1)
    assert isinstance(made, Pixels)
    np.testing.assert_array_equal(as_torch(made), jnp.concatenate([x, y], 1))
    np.testing.assert_array_equal(OPERATIONS["cat.default"]((x, y), 1), jnp.concatenate([x, y], 1))


def test_views_keep_the_order_of_the_numbers():
    for height, width in ((4, 5), (1, 1)):
        x = images(3, height, width)
        made = OPERATIONS["view.default"](Pixels(channels_last(x)), (2, 3 * height * width))
        np.testing.assert_array_equal(made, x.reshape(2, -1))


def test_channels_are_moved_there_and_back():
    for x in (images(), images()[..., 0]):
        assert channels_last(x).shape == (2, *x.shape[2:], 3)
        np.testing.assert_array_equal(as_torch(channels_first(channels_last(x))), x)
