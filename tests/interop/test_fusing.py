"""Graphs by the kernels against the same graphs in plain JAX, written by hand as torch.export writes them."""

import operator

import built
import jax
import numpy as np
import pytest

from idrc_jax.interop import fusing, torch_operators
from idrc_jax.interop.graphs import Instruction, Program, Value
from idrc_jax.kernels import network_cpu


@pytest.fixture(scope="module", autouse=True)
def _built():
    built.require(network_cpu)


class Graph:
    """Writes a program: calls give `Value`s."""

    def __init__(self):
        self.tensors, self.instructions = {}, []
        self.random = np.random.default_rng(0)

    def tensor(self, *shape, low=None):
        value = (
            self.random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
            if low is None
            else low + self.random.random(shape)
        )
        name = f"tensor{len(self.tensors)}"
        self.tensors[name] = value.astype(np.float32)
        return name

    def __call__(self, name, *arguments, **options):
        run = operator.getitem if name == "operator.getitem" else torch_operators.OPERATIONS[name]
        full = name if name.startswith("operator") else f"aten.{name}"
        self.instructions.append((full, run, arguments, options))
        return ("made", len(self.instructions) - 1)

    def program(self, result):
        names = tuple(self.tensors)

        def number(one):
            if isinstance(one, str) and one in names:
                return Value(1 + names.index(one))
            if isinstance(one, tuple) and one[:1] == ("made",):
                return Value(1 + len(names) + one[1])
            if isinstance(one, tuple):
                return tuple(number(part) for part in one)
            return Value(0) if one == "images" else one

        made = [
            Instruction(name, run, number(arguments), options) for name, run, arguments, options in self.instructions
        ]
        return Program(names, tuple(made), number(result))

    def convolution(self, x, channels, features, size=3, stride=1, bias=False, groups=1):
        kernel = self.tensor(features, channels // groups, size, size)
        offset = self.tensor(features) if bias else None
        pads = (size // 2 if size % 2 else 0,) * 2
        return self("convolution.default", x, kernel, offset, (stride,) * 2, pads, (1, 1), False, (0, 0), groups)

    def batch_norm(self, x, features):
        moments = [self.tensor(features, low=low) for low in (0.5, -0.5, -0.5, 0.5)]
        return self("operator.getitem", self("_native_batch_norm_legit_no_training.default", x, *moments, 0.1, 1e-5), 0)

    def linear(self, x, depth, features):
        weight = self("permute.default", self.tensor(features, depth), (1, 0))
        return self("addmm.default", self.tensor(features), x, weight)


def residual(g):
    x = g("relu.default", g.batch_norm(g.convolution("images", 3, 16), 16))
    y = g.batch_norm(g.convolution(g("relu.default", g.batch_norm(g.convolution(x, 16, 32, stride=2), 32)), 32, 32), 32)
    short = g.batch_norm(g.convolution(x, 16, 32, size=1, stride=2), 32)
    x = g("relu.default", g("add.Tensor", y, short))
    return g.linear(g("mean.dim", x, (2, 3)), 32, 5)


def after_activation(g):
    """Normalised first: nothing of it belongs to the convolution that follows."""
    x = g("relu.default", g.batch_norm(g.convolution("images", 3, 16, bias=True), 16))
    y = g.convolution(g("relu.default", g.batch_norm(x, 16)), 16, 16)
    return g("mean.dim", g("add.Tensor", x, g("add.Tensor", y, y)), (2, 3))


def convnext(g):
    x = g.convolution("images", 3, 16, size=2, stride=2, bias=True)
    y = g.convolution(x, 16, 16, size=7, bias=True, groups=16)
    y = g("permute.default", y, (0, 2, 3, 1))
    y = g("view.default", g.linear(g("view.default", y, (-1, 16)), 16, 64), (-1, 4, 4, 64))
    y = g("gelu.default", y)
    y = g("view.default", g.linear(g("view.default", y, (-1, 64)), 64, 16), (-1, 4, 4, 16))
    y = g("permute.default", g("mul.Tensor", g.tensor(16), y), (0, 3, 1, 2))
    return g("mean.dim", g("add.Tensor", x, y), (-1, -2))


def tokens(g):
    x = g(
        "permute.default", g("view.default", g.convolution("images", 3, 16, size=1, bias=True), (-1, 16, 64)), (0, 2, 1)
    )
    weight = g("permute.default", g.tensor(16, 16), (1, 0))
    weight = g("expand.default", g("unsqueeze.default", weight, 0), (2, 16, 16))
    y = g("add.Tensor", g("bmm.default", x, weight), g.tensor(16))
    x = g("add.Tensor", y, x)
    rows = g("view.default", x, (-1, 16))
    y = g("view.default", g.linear(g("gelu.default", g.linear(rows, 16, 33)), 33, 16), (-1, 64, 16))
    x = g("add.Tensor", y, x)
    return g("select.int", x, 1, 3)


def pooled(g):
    x = g("relu.default", g.convolution("images", 3, 16))
    x = g("operator.getitem", g("max_pool2d_with_indices.default", x, (3, 3), (2, 2), (1, 1)), 0)
    x = g("cat.default", (x, g.convolution(x, 16, 16, size=1)), 1)
    x = g("constant_pad_nd.default", g("slice.Tensor", x, 2, 0, 9, 2), (0, 0, 0, 0, 2, 3))
    return g("mul.Tensor", g("mean.dim", x, (2, 3)), g.tensor(37))


def shared(g):
    """The sum before the activation is used twice, the product once more as a matrix that is no tensor."""
    y = g.convolution("images", 3, 16)
    x = g("mean.dim", g("mul.Tensor", g("relu.default", y), g("sigmoid.default", y)), (2, 3))
    return g("mm.default", x, g("permute.default", g("mul.Tensor", g.tensor(4, 16), 2.0), (1, 0)))


@pytest.mark.parametrize(
    ("write", "left"),
    [
        (residual, "mean.dim"),
        (after_activation, "mean.dim relu.default add.Tensor _native_batch_norm_legit_no_training.default"),
        (convnext, "mean.dim permute.default view.default"),
        (tokens, "permute.default view.default select.int"),
        (
            pooled,
            "max_pool2d_with_indices.default cat.default constant_pad_nd.default slice.Tensor mul.Tensor mean.dim",
        ),
        (shared, "relu.default sigmoid.default mul.Tensor mean.dim permute.default mm.default"),
    ],
)
def test_layers_take_what_follows_them_and_nothing_else(write, left):
    graph = Graph()
    program = graph.program(write(graph))
    fused, tensors = fusing.fuse(program, graph.tensors, (8, 8, 3))
    names = {one.name.removeprefix("aten.") for one in fused.instructions if one.run is not operator.getitem}
    assert names == {*left.split(), "network_cpu"}
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    expected = np.asarray(program(graph.tensors, images))
    assert np.abs(expected).max() > 0
    ours = jax.jit(fused.__call__)(tensors, images)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def agree(write, tolerance=2e-5):
    """Names of the fused graph's instructions; it gives what the graph gives, for another number of images too."""
    graph = Graph()
    program = graph.program(write(graph))
    fused, tensors = fusing.fuse(program, graph.tensors, (8, 8, 3))
    for count in (2, 3):
        images = np.random.default_rng(1).normal(size=(count, 8, 8, 3)).astype(np.float32)
        expected = np.asarray(jax.jit(program.__call__)(graph.tensors, images))
        ours = np.asarray(jax.jit(fused.__call__)(tensors, images))
        assert expected.std() > 0
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.ptp(expected))
    return [one.name.removeprefix("aten.") for one in fused.instructions]


def group_norm(g, x, channels=8):
    count = g("sym_size.int", x, 0)
    made = g("native_group_norm.default", x, g.tensor(channels), g.tensor(channels), count, channels, 64, 2, 1e-5)
    return g("operator.getitem", made, 0)


def rows(g, x):
    """A product of each pixel's channels, 8 of them on 8 x 8."""
    x = g("view.default", g("permute.default", x, (0, 2, 3, 1)), (-1, 8))
    return g("view.default", g.linear(x, 8, 8), (-1, 8, 8, 8))


def first(g, x):
    return g("permute.default", x, (0, 3, 1, 2))


def added_channels_first(g):
    """A plain array beside rows whose channels went to the front."""
    x = group_norm(g, g.convolution("images", 3, 8))
    x = g("relu.default", g("add.Tensor", x, first(g, rows(g, x))))
    x = g("mul.Tensor", g.linear(g("amax.default", x, (2, 3)), 8, 1000), 0.02)
    return g("_softmax.default", x, 1, False)


def added_pixels_first(g):
    x = g.convolution("images", 3, 8)
    return g("relu.default", g("add.Tensor", first(g, rows(g, x)), x))


def added_channels_last(g):
    """The sum, and only then the channels to the front."""
    x = group_norm(g, g.convolution("images", 3, 8))
    return first(g, g("add.Tensor", rows(g, x), g("permute.default", x, (0, 2, 3, 1))))


def added_plain_last(g):
    """Beside an array [N, 8, 8, 8] that is no permutation."""
    x = group_norm(g, g.convolution("images", 3, 8))
    return first(g, g("add.Tensor", rows(g, x), g("mul.Tensor", x, 2.0)))


def added_pixels_to_a_view(g):
    """Rows that a view makes [N, C, H, W] beside what a convolution made."""
    x = g.convolution("images", 3, 8)
    y = g.linear(g("view.default", g("relu.default", x), (-1, 512)), 512, 512)
    return g("relu.default", g("add.Tensor", g("view.default", y, (-1, 8, 8, 8)), x))


def added_plain_to_a_view(g):
    x = group_norm(g, g.convolution("images", 3, 8))
    y = g.linear(g("view.default", x, (-1, 512)), 512, 512)
    return g("add.Tensor", g("view.default", y, (-1, 8, 8, 8)), x)


def added_plain_to_pixels(g):
    x = group_norm(g, g.convolution("images", 3, 8))
    return g("add.Tensor", g.convolution(x, 8, 8), x)


@pytest.mark.parametrize(
    "write",
    [
        added_channels_first, added_pixels_first, added_channels_last, added_plain_last, added_pixels_to_a_view,
        added_plain_to_a_view, added_plain_to_pixels,
    ],
)  # fmt: skip
def test_a_shortcut_is_added_in_the_order_of_its_axes(write):
    assert "add.Tensor" not in agree(write, 1e-6)


def moved_twice(g):
    return first(g, first(g, rows(g, g.convolution("images", 3, 8))))


def viewed_moved(g):
    return g("view.default", first(g, rows(g, g.convolution("images", 3, 8))), (-1, 512))


def computed_scale(g):
    scale = g("mul.Tensor", g.tensor(8, low=0.5), 2.0)
    moments = scale, g.tensor(8), g.tensor(8), g.tensor(8, low=0.5)
    x = g("_native_batch_norm_legit_no_training.default", g.convolution("images", 3, 8), *moments, 0.1, 1e-5)
    return g("operator.getitem", x, 0)


def computed_offset(g):
    moments = None, g("mul.Tensor", g.tensor(8, low=0.5), 2.0), g.tensor(8), g.tensor(8, low=0.5)
    x = g("_native_batch_norm_legit_no_training.default", g.convolution("images", 3, 8), *moments, 0.1, 1e-5)
    return g("operator.getitem", x, 0)


def mask_beside(g):
    x = g("relu.default", g.convolution("images", 3, 8))
    return g("add.Tensor", g.convolution(x, 8, 8), g("gt.Scalar", x, 0.2))


def scale_of_width(g):
    """The rows' 8 columns are no channels of [N, 1, 16, 32]: the product has 8 channels."""
    x = first(g, g("view.default", rows(g, g.convolution("images", 3, 8)), (-1, 16, 32, 1)))
    return g("mul.Tensor", x, g.tensor(8, 1, 1))


def scale_with_more_axes(g):
    x = g.linear(g("amax.default", g.convolution("images", 3, 8), (2, 3)), 8, 8)
    return g("add.Tensor", g("mul.Tensor", x, g.tensor(1, 1, 8)), g.tensor(1, 8))


def product_of_whole_numbers(g):
    x = g("_to_copy.default", g("amax.default", g.convolution("images", 3, 8), (2, 3)), dtype=np.dtype("int32"))
    return g("mm.default", x, g.tensor(8, 8))


@pytest.mark.parametrize(
    ("write", "left"),
    [
        (moved_twice, "permute.default"), (viewed_moved, "view.default"),
        (computed_scale, "_native_batch_norm_legit_no_training.default"),
        (computed_offset, "_native_batch_norm_legit_no_training.default"),
        (mask_beside, "add.Tensor"), (scale_of_width, "mul.Tensor"), (scale_with_more_axes, "mul.Tensor"),
        (product_of_whole_numbers, "mm.default"),
    ],
)  # fmt: skip
def test_what_no_layer_can_take_stays(write, left):
    assert left in agree(write)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1,), (1, 1), ()])
def test_products_take_an_addend_of_each_column_or_of_all(shape):
    def write(g):
        x = g("amax.default", g.convolution("images", 3, 8), (2, 3))
        return g("addmm.default", g.tensor(*shape), x, g.tensor(8, 8))

    assert "addmm.default" not in agree(write)


def test_products_take_no_addend_of_each_row():
    def write(g):
        x = g("amax.default", g.convolution("images", 3, 8), (2, 3))
        x = g("mm.default", g("permute.default", x, (1, 0)), x)
        return g("addmm.default", g.tensor(8, 1), x, g.tensor(8, 8))

    assert "addmm.default" in agree(write)


def test_tensors_that_no_layer_needs_are_left_out():
    graph = Graph()
    program = graph.program(residual(graph))
    _, tensors = fusing.fuse(program, graph.tensors, (8, 8, 3))
    assert all(name.startswith("layer") for name in tensors)
    assert len(tensors) == 2 * 5
