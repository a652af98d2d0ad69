"""Small programs whose costs are counted by hand, to hold the counter against.

Their compiled texts are committed for tests on machines without JAX's CUDA compiler
(`tests/gpu_programs/NAME.hlo`, made by `python -m benchmarks.gpu_programs --examples FOLDER`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks.gpu_programs import counting
from benchmarks.gpu_programs.counting import Count
from idrc_jax.sampling import devices, noise_laws, threefry


class Hand(NamedTuple):
    """What the hand counts, of one class: kernels, bytes, and operations unless None."""

    kind: str
    kernels: int
    bytes: int
    flops: int | None = None


class Example(NamedTuple):
    """A program, the shapes of its arguments, the devices that it runs on, and what it costs."""

    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    expected: tuple[Hand, ...]
    count: int = 1

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """Lower it for the devices of a mesh."""
        function = self.function
        if self.count > 1:
            function = jax.shard_map(function, mesh=mesh, in_specs=P(devices.AXIS), out_specs=P())
        whole = devices.replicated(mesh)
        like = (jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=whole) for one in self.arguments)
        return jax.jit(function).lower(*like)


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _convolution(stride: int, pad: int) -> Callable[..., jax.Array]:
    """A convolution with weights in cuDNN's layout, its bias and its ReLU."""

    def run(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "OHWI", "NHWC")
        )
        return jax.nn.relu(y + bias)

    return run


def _loop(n: jax.Array, x: jax.Array, table: jax.Array) -> jax.Array:
    def body(step: jax.Array, x: jax.Array) -> jax.Array:
        return x + jnp.sin(x) * jax.lax.dynamic_index_in_dim(table, step % 8, keepdims=False)

    return jax.lax.fori_loop(0, n, body, x)


def _noise(keys: jax.Array, image: jax.Array) -> jax.Array:
    def noisy(key: jax.Array) -> jax.Array:
        return image + noise_laws.draw("normal", threefry.key(key), jnp.float32(0.5), image.shape)

    return jax.vmap(noisy)(keys).astype(jnp.bfloat16)


_X, _Y = 8 * 32 * 32 * 16 * 2, 8 * 32 * 32 * 32 * 2  # bytes of the convolutions' input and output at stride 1
_HALF = _Y // 4  # of their output at stride 2

EXAMPLES = {
    "convolution": Example(
        _convolution(1, 1),
        (_array(jnp.bfloat16, 8, 32, 32, 16), _array(jnp.bfloat16, 32, 3, 3, 16), _array(jnp.bfloat16, 32)),
        (Hand(counting.CONVOLUTIONS, 1, _X + 32 * 9 * 16 * 2 + 32 * 2 + _Y, 2 * 8 * 32 * 32 * 32 * 9 * 16),),
    ),
    # A quarter of the pixels lies in the windows.
    "projection": Example(
        _convolution(2, 0),
        (_array(jnp.bfloat16, 8, 32, 32, 16), _array(jnp.bfloat16, 32, 1, 1, 16), _array(jnp.bfloat16, 32)),
        (Hand(counting.CONVOLUTIONS, 1, _X // 4 + 32 * 16 * 2 + 32 * 2 + _HALF, 2 * 8 * 16 * 16 * 32 * 16),),
    ),
    "product": Example(
        jnp.matmul,
        (_array(jnp.bfloat16, 512, 256), _array(jnp.bfloat16, 256, 1024)),
        (Hand(counting.PRODUCTS, 1, 2 * (512 * 256 + 256 * 1024 + 512 * 1024), 2 * 512 * 256 * 1024),),
    ),
    # A turn reads x, one row of the table and the counter, and writes x.
    "loop": Example(
        _loop,
        (_array(jnp.int32), _array(jnp.float32, 4096, 512), _array(jnp.float32, 8, 512)),
        (Hand(counting.PASSES, 2, 2 * 4 * 4096 * 512 + 4 * 512 + 4 + 8),),
    ),
    "transpose": Example(
        jnp.transpose, (_array(jnp.float32, 512, 1024),), (Hand(counting.LAYOUT, 1, 2 * 4 * 512 * 1024, 0),)
    ),
    # Keys are read; keys and their positions, which keep equal ones in order, are written.
    "sort": Example(jnp.sort, (_array(jnp.float32, 4096),), (Hand(counting.SORTS, 1, 3 * 4 * 4096),)),
    "sum of devices": Example(
        lambda x: jax.lax.psum(x, devices.AXIS),
        (_array(jnp.float32, 2, 1024),),
        (Hand(counting.COLLECTIVES, 1, 2 * 4 * 1024),),
        count=2,
    ),
    # Keys and image are read and all copies are written, in half precision, by the kernel that draws the noise.
    "noise": Example(
        _noise,
        (_array(jnp.uint32, 64, 2), _array(jnp.float32, 32, 32, 3)),
        (Hand(counting.NOISE, 1, 4 * 64 * 2 + 4 * 3072 + 2 * 64 * 3072),),
    ),
}


def differences(name: str, count: Count) -> list[str]:
    """Say in which classes a count of an example is not the hand's."""
    told = []
    for hand in EXAMPLES[name].expected:
        found = count.by_class[hand.kind]
        wanted = (hand.kernels, hand.bytes, found.flops if hand.flops is None else hand.flops)
        if (found.kernels, found.bytes, found.flops) != wanted:
            told.append(
                f"{name}, {hand.kind}: Expected kernels, bytes, operations {wanted}, got "
                f"{(found.kernels, found.bytes, found.flops)}."
            )
    return told
