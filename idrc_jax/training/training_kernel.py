"""What trains a network on these devices: a kernel for CPUs or GPUs or XLA, and on how many CPU devices."""

import logging
import os
import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from idrc_jax import models
from idrc_jax.core import validate
from idrc_jax.kernels import convolution_cpu, residual_gpu, resnet_cpu, resnet_training_cpu
from idrc_jax.losses import Network
from idrc_jax.models import Description, Tensors, folding
from idrc_jax.models.resnet import Chain

_TRIED_DEPTH, _TRIED_BATCH = 20, 256  # has each of the kernel's calls; on a GPU a network takes as long as its bytes
_WORSE, _FLOOR = 1.5, 1e-3  # than the plain network's may the kernel's gradients be
_ROUNDS, _CALLS = 5, 10
_MARGIN = 0.97  # of the plain network's time


def cpu_kernel(architecture: str, dtype: str, kernel: str = "auto") -> str:
    """Name what trains such a network on a CPU that is one device: a kernel of `idrc_jax.kernels`, or "xla".

    Args:
      architecture, dtype: of the network's description.
      kernel: "auto" takes the fastest that runs here, "xla" the plain network.
    """
    validate.one_of("kernel", kernel, ("auto", "xla"))
    if kernel == "auto" and dtype == "float32":
        if architecture == "resnet" and resnet_training_cpu.available():
            return "resnet_training_cpu"
        if architecture in ("resnet50", "unet") and convolution_cpu.available():
            return "convolution_cpu"
    return "xla"


def cpu_devices(architecture: str, dtype: str, batch: int, kernel: str = "auto") -> int:
    """Count the CPU devices that training is fastest on.

    One, if a kernel can spread it over the cores; else one a core, or fewer where cores do not divide the batch.

    Args:
      architecture, dtype: of the network's description.
      batch: images a step.
      kernel: as for `cpu_kernel`.
    """
    if cpu_kernel(architecture, dtype, kernel) != "xla":
        return 1
    return max(count for count in range(1, (os.cpu_count() or 1) + 1) if batch % count == 0)


def kernel_on(mesh: Mesh, description: Description, kernel: str = "auto") -> str:
    """Name what trains the network on those devices; see `cpu_kernel`.

    On one GPU "auto" tries "residual_gpu" on a ResNet in bfloat16, once a process (see `serves`).
    """
    validate.one_of("kernel", kernel, ("auto", "xla"))
    if mesh.size > 1 or kernel == "xla":
        return "xla"
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return cpu_kernel(description["architecture"], description["dtype"], kernel)
    if device.platform == "gpu" and (description["architecture"], description["dtype"]) == ("resnet", "bfloat16"):
        return "residual_gpu" if _serves_on(device, tuple(description["image_shape"])) else "xla"
    return "xla"


@cache
def _serves_on(device: Any, shape: tuple[int, ...]) -> bool:
    with jax.default_device(device):
        return serves(residual_gpu.blocks, shape)


def serves(chain: Chain, shape: tuple[int, ...], *, depth: int = _TRIED_DEPTH, batch: int = _TRIED_BATCH) -> bool:
    """Say whether a chain of residual blocks by a kernel agrees with the plain blocks here, and is faster.

    A ResNet on random images tries it in bfloat16: its gradients may be little farther from those in float32 than the
    plain network's, and a step is to take at most 97 % of the time. One line says why a kernel is left out.

    Args:
      chain: see `ResNet`.
      shape: of an image.
      depth, batch: of the trial.
    """
    try:
        plain, by_kernel, exact = (_tried(one, shape, depth, batch) for one in (None, chain, "exact"))
        wanted = exact()
        errors = [_distance(one(), wanted) for one in (plain, by_kernel)]
        if not errors[1] <= _WORSE * errors[0] + _FLOOR:
            raise RuntimeError(f"expected gradients within {errors[0]:.2g} as the plain network's, got {errors[1]:.2g}")
        times = [[_seconds(one) for one in (plain, by_kernel)] for _ in range(_ROUNDS)]
    except Exception as error:  # JAX, Triton and the driver raise several kinds
        said = (str(error) or type(error).__name__).splitlines()[0]
        logging.getLogger("idrc_jax").warning("No kernel for GPUs (%s): XLA does its work.", said)
        return False
    return median(by_kernel for _, by_kernel in times) <= _MARGIN * median(plain for plain, _ in times)


def _tried(chain: Any, shape: tuple[int, ...], depth: int, batch: int) -> Callable[[], Tensors]:
    """A function that computes gradients of a new network's loss on random images, "exact" ones in float32."""
    dtype = "float32" if chain == "exact" else "bfloat16"
    described = {
        "architecture": "resnet", "depth": depth, "classes": 10, "image_shape": list(shape), "shortcut": "projection",
        "mean": [0.5] * shape[-1], "std": [0.25] * shape[-1],
    }  # fmt: skip
    model = models.build(described, dtype=dtype, rngs=nnx.Rngs(0), chain=None if chain == "exact" else chain)
    graph, params, stats = models.split(model)
    random = np.random.default_rng(0)
    images = jnp.asarray(random.uniform(size=(batch, *shape)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 10, batch))

    def loss_of(params: Tensors, images: jax.Array) -> jax.Array:
        logits = models.merge(graph, params, stats)(images, train=True)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    with jax.default_matmul_precision("highest" if chain == "exact" else "default"):
        compiled = jax.jit(jax.grad(loss_of)).lower(params, images).compile()
    return lambda: compiled(params, images)


def _distance(found: Tensors, wanted: Tensors) -> float:
    """Of two gradients, in units of the second one's length."""
    square = sum(float(jnp.sum(jnp.square(found[name] - wanted[name]))) for name in wanted)
    return float(np.sqrt(square / sum(float(jnp.sum(jnp.square(one))) for one in wanted.values())))


def _seconds(compute: Callable[[], Tensors]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready([compute() for _ in range(_CALLS)])
    return time.perf_counter() - begun


def graph_on(mesh: Mesh, description: Description, kernel: str = "auto") -> nnx.GraphDef:
    """Make the network's graph (see `models.split`), with what is fastest on those devices."""
    chosen = kernel_on(mesh, description, kernel)
    options = {
        "convolution_cpu": {"convolution": convolution_cpu.conv_general_dilated},
        "residual_gpu": {"chain": residual_gpu.blocks},
    }
    return models.abstract(description, dtype=description["dtype"], **options.get(chosen, {}))[0]


def network_of(graph: nnx.GraphDef) -> Network:
    """Make the network in training of its graph."""

    def train(params: Tensors, stats: Tensors, images: jax.Array) -> tuple[jax.Array, Tensors]:
        model = models.merge(graph, params, stats)
        return model(images, train=True), models.split(model)[2]

    def fixed(params: Tensors, stats: Tensors) -> Callable[[jax.Array], jax.Array]:
        return partial(models.merge(graph, params, stats), train=False)

    return Network(train, fixed)


def network_on(mesh: Mesh, description: Description, kernel: str = "auto") -> Network:
    """Make the network in training, by the fastest that runs on those devices ("auto") or plainly ("xla")."""
    plain = network_of(graph_on(mesh, description, kernel))
    if kernel_on(mesh, description, kernel) != "resnet_training_cpu":
        return plain
    pixels = {name: tuple(description[name]) for name in ("mean", "std")}
    by_kernel = resnet_training_cpu.network(depth=description["depth"], shortcut=description["shortcut"], **pixels)

    def fixed_by_kernel(params: Tensors, stats: Tensors) -> Callable[[jax.Array], jax.Array]:
        return partial(*folding.resnet_by_kernel(folding.fold_traced(params | stats, **pixels), half=False))

    return Network(by_kernel, fixed_by_kernel if resnet_cpu.available() else plain.fixed)
