"""Compiles for a GPU that is not there: XLA's CUDA compiler runs on any machine, given a card's description."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple
from unittest import mock

import numpy as np

# Read when JAX loads its CUDA plugin: no driver is there to be asked for its version.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks.gpu_programs.cards import CARDS, Card
from idrc_jax.kernels import attention_gpu
from idrc_jax.sampling import devices

CUDNN = 91200  # version 9.12, which the descriptions of cards name


@contextmanager
def cudnn_of(card: Card) -> Iterator[None]:
    """Use fused attention where the card has it, though JAX and the library ask the machine's GPU and cuDNN."""
    capability = tuple(int(re.findall(rf"{part}: (\d+)", card.text)[0]) for part in ("major", "minor"))

    def at_least(wanted: str) -> bool:
        return capability >= tuple(int(part) for part in wanted.split("."))

    def takes(channels: int) -> bool:
        return channels <= (256 if at_least("9.0") else 128)

    asked = "jax._src.cudnn.fused_attention_stablehlo"
    with (
        mock.patch.object(attention_gpu, "available", takes),
        mock.patch(f"{asked}.check_cudnn_version", return_value=CUDNN),
        mock.patch(f"{asked}.check_compute_capability", at_least),
        mock.patch(f"{asked}.is_cuda_compute_capability_equal", return_value=False),
    ):
        yield


class Compiled(NamedTuple):
    """A program for one card.

    Attributes:
      text: the optimised HLO.
      scratch: bytes of temporaries on each device.
      arguments: bytes of arguments on each device.
    """

    text: str
    scratch: int
    arguments: int


def available() -> bool:
    """Whether JAX's CUDA compiler is installed."""
    try:
        _topology("h100", 1)
    except (RuntimeError, ValueError):
        return False
    return True


def mesh_of(card: Card, count: int = 1) -> Mesh:
    """A mesh as `sampling.devices.mesh` makes it, over `count` such cards."""
    found = np.array(_topology(card.name, count).devices)
    return Mesh(found, (devices.AXIS,), axis_types=(AxisType.Auto,))


@cache
def _topology(name: str, count: int) -> topologies.TopologyDescription:
    return topologies.get_topology_desc(name, "cuda", target_config=CARDS[name].text, topology=f"1x1x{count}")


def compiled(lowered: jax.stages.Lowered, options: Mapping[str, bool] | None = None) -> Compiled:
    """Compile a program for the devices of its mesh, with options of XLA's by name."""
    program = lowered.compile(compiler_options=dict(options) if options else None)
    memory = program.memory_analysis()
    return Compiled(program.as_text() or "", memory.temp_size_in_bytes, memory.argument_size_in_bytes)
