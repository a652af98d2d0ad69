"""The layers of any network in inference on a CPU (`network_cpu.cc`), with weights that are packed once.

A layer is a convolution or a matrix product with its bias, a shortcut that is added and an activation. Its twin is
`plain`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax.kernels import build
from idrc_jax.kernels.activations import relu

Activation = Literal["", "relu", "gelu"]
_PANEL = 16  # columns of weights that lie together
_ACTIVATIONS = ("", "relu", "gelu")
_PRODUCT, _FILTERED, _APART = "idrc_product", "idrc_filtered", "idrc_apart"
# Winograd's minimal filtering for 4x4 outputs, and for the two rows of an image of two: weights' transforms.
_FOUR = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_TWO = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
_TRANSFORMS = 1.3  # what minimal filtering costs beside its products


def available() -> bool:
    """Say whether the kernel can be built here (it is, when this is first asked)."""
    layers = ((_PRODUCT, "IdrcProduct"), (_FILTERED, "IdrcFiltered"), (_APART, "IdrcApart"))
    targets = (*layers, ("idrc_largest", "IdrcLargest"), ("idrc_attention", "IdrcAttention"))
    return build.register("network_cpu.cc", targets)


class ByKernel(TypedDict):
    """Params of a network that kernels run: those of the plain network, and what the kernels take."""

    plain: dict[str, jax.Array]
    packed: dict[str, jax.Array]


class Layer(NamedTuple):
    """What is fixed of a layer; its weights and bias are arrays beside it."""

    target: str
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    features: int
    activation: Activation = ""


def serves(shape: Sequence[int], *, groups: int = 1, dilation: Sequence[int] = (1, 1)) -> bool:
    """Say whether a convolution with a kernel [h, w, in / groups, out] can be a layer."""
    apart = groups == shape[3] and shape[2] == 1 and groups % _PANEL == 0
    return len(shape) == 4 and all(one == 1 for one in dilation) and (groups == 1 or apart)


def prepare(
    kernel: np.ndarray, *, image: tuple[int, ...], stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0),
    groups: int = 1,
) -> tuple[Layer, np.ndarray]:  # fmt: skip
    """Make a layer for images of that height and width, and its packed weights, float32, computed in float64.

    Args:
      kernel: [h, w, in / groups, out], that `serves` accepts.
      image: height and width.
      stride: of height and width.
      padding: rows and columns of zeros on each side.
      groups: of channels: 1, or as many as there are.
    """
    height, width, depth, features = kernel.shape
    exact = kernel.astype(np.float64)
    layer = Layer(_PRODUCT, (height, width), tuple(stride), tuple(padding), features)
    if groups != 1:
        return layer._replace(target=_APART), exact[:, :, 0].astype(np.float32)
    square = (height, width) == (3, 3) and layer.stride == layer.padding == (1, 1)
    if square and depth % _PANEL == features % _PANEL == 0:
        tiles = -(-image[0] // 4) * -(-image[1] // 4)
        transform = _TWO if image == (2, 2) else _FOUR if 36 * tiles * _TRANSFORMS < 9 * image[0] * image[1] else None
        if transform is not None:
            filters = np.einsum("ay,bx,yxio->abio", transform, transform, exact, optimize=True)
            packed = np.stack([_pack(one) for one in filters.reshape(-1, depth, features)])
            return layer._replace(target=_FILTERED), packed
    return layer, _pack(exact.reshape(-1, features))


def _pack(matrix: np.ndarray) -> np.ndarray:
    """[depth, columns] -> float32 [panels, depth, 16], zeros behind the last column."""
    depth, columns = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -columns % _PANEL)))
    return np.ascontiguousarray(padded.reshape(depth, -1, _PANEL).swapaxes(0, 1), dtype=np.float32)


def run(
    layer: Layer, x: jax.Array, weights: jax.Array, bias: jax.Array | None = None, shortcut: jax.Array | None = None
) -> jax.Array:
    """Run the layer: images [N, H, W, in] -> [N, H', W', features].

    Args:
      layer, weights: by `prepare`.
      x: the images, float32.
      bias: [features].
      shortcut: what is added, of the shape of the result.
    """
    sides = zip(x.shape[1:3], layer.window, layer.stride, layer.padding, strict=True)
    height, width = ((side + 2 * pad - window) // stride + 1 for side, window, stride, pad in sides)
    result = jax.ShapeDtypeStruct((x.shape[0], height, width, layer.features), jnp.float32)
    none = jnp.zeros(0, jnp.float32)
    call = jax.ffi.ffi_call(layer.target, result, vmap_method="sequential")
    return call(
        x,
        weights,
        none if bias is None else bias,
        none if shortcut is None else shortcut,
        window=np.array((*layer.window, *layer.stride, *layer.padding), np.int64),
        activation=np.int64(_ACTIVATIONS.index(layer.activation)),
    )


def product(
    layer: Layer, x: jax.Array, weights: jax.Array, bias: jax.Array | None = None, shortcut: jax.Array | None = None
) -> jax.Array:
    """Run the layer of a matrix product: rows [..., in] -> [..., features]; arguments as for `run`."""
    rows = x.reshape(-1, 1, 1, x.shape[-1])
    beside = None if shortcut is None else shortcut.reshape(len(rows), 1, 1, layer.features)
    return run(layer, rows, weights, bias, beside).reshape(*x.shape[:-1], layer.features)


def max_pool(
    x: jax.Array, window: Sequence[int], stride: Sequence[int], paddings: Sequence[tuple[int, int]]
) -> jax.Array:
    """Take the largest of each window.

    Args:
      x: images [N, H, W, C], float32.
      window, stride: of height and width.
      paddings: rows and columns of -inf before and after.
    """
    sides = zip(x.shape[1:3], window, stride, paddings, strict=True)
    height, width = ((side + sum(pads) - size) // step + 1 for side, size, step, pads in sides)
    result = jax.ShapeDtypeStruct((x.shape[0], height, width, x.shape[3]), jnp.float32)
    call = jax.ffi.ffi_call("idrc_largest", result, vmap_method="sequential")
    return call(x, window=np.array((*window, *stride, *(before for before, _ in paddings)), np.int64))


def attention(queries: jax.Array, keys: jax.Array, values: jax.Array, *, scale: float) -> jax.Array:
    """Compute softmax(scale * queries keys') values of each head; arrays [N, heads, tokens, numbers].

    The kernel reads [N, tokens, heads, numbers], which most networks' products give: XLA then moves nothing.
    """
    queries, keys, values = (jnp.swapaxes(one, 1, 2) for one in (queries, keys, values))
    result = jax.ShapeDtypeStruct((*queries.shape[:3], values.shape[3]), jnp.float32)
    call = jax.ffi.ffi_call("idrc_attention", result, vmap_method="sequential")
    return jnp.swapaxes(call(queries, keys, values, scale=np.float32(scale)), 1, 2)


def with_gradients_of(
    plain: Callable[[dict[str, jax.Array], jax.Array], jax.Array], by_kernel: Callable[[ByKernel, jax.Array], jax.Array]
) -> Callable[[ByKernel, jax.Array], jax.Array]:
    """Give `by_kernel`, of params and images, the gradients of `plain`, of params["plain"] and images."""

    @jax.custom_vjp
    def apply_fn(params: ByKernel, images: jax.Array) -> jax.Array:
        return by_kernel(params, images)

    def forward(params: ByKernel, images: jax.Array) -> tuple[jax.Array, tuple[ByKernel, jax.Array]]:
        return by_kernel(params, images), (params, images)

    def backward(residuals: tuple[ByKernel, jax.Array], cotangent: jax.Array) -> tuple[ByKernel, jax.Array]:
        params, images = residuals
        _, pullback = jax.vjp(plain, params["plain"], images)
        to_plain, to_images = pullback(cotangent)
        return {"plain": to_plain, "packed": jax.tree.map(jnp.zeros_like, params["packed"])}, to_images

    apply_fn.defvjp(forward, backward)
    return apply_fn


def plain(
    kernel: jax.Array, x: jax.Array, bias: jax.Array | None, shortcut: jax.Array | None, *,
    stride: Sequence[int], padding: Sequence[int], groups: int = 1, activation: Activation = "",
) -> jax.Array:  # fmt: skip
    """Compute in plain JAX what a layer does.

    Args:
      kernel: [h, w, in / groups, out].
      x: images [N, H, W, in].
      bias: [out], if there is one.
      shortcut: what is added, of the shape of the result, if there is one.
      stride, padding, groups, activation: as in `Layer` and `prepare`.
    """
    made = jax.lax.conv_general_dilated(
        x, kernel, stride, [(pad, pad) for pad in padding], dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip
    made = made if bias is None else made + bias
    made = made if shortcut is None else made + shortcut
    return {"": lambda y: y, "relu": relu, "gelu": lambda y: jax.nn.gelu(y, approximate=False)}[activation](made)
