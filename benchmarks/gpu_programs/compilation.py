"""Compiles for a GPU that is not there: XLA's CUDA compiler runs on any machine, given a card's description."""

import os
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

# Read when JAX loads its CUDA plugin: no driver is there to be asked for its version.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks.gpu_programs.cards import CARDS, Card
from idrc_jax.sampling import devices


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
