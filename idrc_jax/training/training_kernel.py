"""What trains a network on these devices: a CPU kernel or XLA, and on how many CPU devices."""

import os
from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jax.sharding import Mesh

from idrc_jax import models
from idrc_jax.core import validate
from idrc_jax.kernels import convolution_cpu, resnet_cpu, resnet_training_cpu
from idrc_jax.losses import Network
from idrc_jax.models import Description, Tensors, folding


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
    """Name what trains the network on those devices; see `cpu_kernel`."""
    on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return cpu_kernel(description["architecture"], description["dtype"], kernel if on_one_cpu else "xla")


def graph_on(mesh: Mesh, description: Description, kernel: str = "auto") -> nnx.GraphDef:
    """Make the network's graph (see `models.split`), with the convolutions that are fastest on those devices."""
    by_kernel = kernel_on(mesh, description, kernel) == "convolution_cpu"
    convolution = convolution_cpu.conv_general_dilated if by_kernel else jax.lax.conv_general_dilated
    return models.abstract(description, dtype=description["dtype"], convolution=convolution)[0]


def network_on(mesh: Mesh, description: Description, kernel: str = "auto") -> Network:
    """Make the network in training, by the fastest that runs on those devices ("auto") or plainly ("xla")."""
    graph = graph_on(mesh, description, kernel)

    def train(params: Tensors, stats: Tensors, images: jax.Array) -> tuple[jax.Array, Tensors]:
        model = models.merge(graph, params, stats)
        return model(images, train=True), models.split(model)[2]

    def fixed(params: Tensors, stats: Tensors) -> Callable[[jax.Array], jax.Array]:
        return partial(models.merge(graph, params, stats), train=False)

    if kernel_on(mesh, description, kernel) != "resnet_training_cpu":
        return Network(train, fixed)
    pixels = {name: tuple(description[name]) for name in ("mean", "std")}
    by_kernel = resnet_training_cpu.network(depth=description["depth"], shortcut=description["shortcut"], **pixels)

    def fixed_by_kernel(params: Tensors, stats: Tensors) -> Callable[[jax.Array], jax.Array]:
        return partial(*folding.resnet_by_kernel(folding.fold_traced(params | stats, **pixels), half=False))

    return Network(by_kernel, fixed_by_kernel if resnet_cpu.available() else fixed)
