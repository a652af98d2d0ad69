"""What trains a network on these devices: a CPU kernel or XLA, and on how many CPU devices."""

import os
from typing import Any

import jax
from jax.sharding import Mesh

from idrc_jax import models
from idrc_jax.core import validate
from idrc_jax.kernels import convolution_cpu, resnet_training_cpu


def cpu_kernel(architecture: str, dtype: str, kernel: str = "auto") -> str:
    """What trains such a network on a CPU that is one device: a kernel of `idrc_jax.kernels`, or "xla".

    Args:
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
    """CPU devices that training is fastest on: one, if a kernel can spread it over the cores; else one a core.

    Fewer than cores where these do not divide the batch.
    """
    if cpu_kernel(architecture, dtype, kernel) != "xla":
        return 1
    return max(count for count in range(1, (os.cpu_count() or 1) + 1) if batch % count == 0)


def kernel_on(mesh: Mesh, description: dict[str, Any], kernel: str = "auto") -> str:
    """What trains the network on those devices; see `cpu_kernel`."""
    on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return cpu_kernel(description["architecture"], description["dtype"], kernel if on_one_cpu else "xla")


def graph_on(mesh: Mesh, description: dict[str, Any], kernel: str = "auto") -> Any:
    """The network's graph (see `checkpoints.split`), with the convolutions that are fastest on those devices."""
    by_kernel = kernel_on(mesh, description, kernel) == "convolution_cpu"
    convolution = convolution_cpu.conv_general_dilated if by_kernel else jax.lax.conv_general_dilated
    return models.abstract(description, dtype=description["dtype"], convolution=convolution)[0]
