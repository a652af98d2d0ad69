"""Devices: the set-up that entry points make before JAX starts, and the mesh everything runs on."""

import contextlib
import os
import traceback
from collections.abc import Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from idrc_jax.core import validate

Tree = TypeVar("Tree")

AXIS = "data"
_MOST_CPU_DEVICES = 64  # that are made on request where there are fewer cores: each costs threads and memory


def configure_cpu(count: int) -> None:
    """Ask for `count` CPU devices; for entry points only, before JAX is used.

    A device count that the user has set himself (XLA_FLAGS, JAX_NUM_CPU_DEVICES) is left alone. One device
    keeps XLA's own thread pool; each of several computes on one thread of its own, which is faster on small
    images because a micro-batch stays in a core's cache.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ or count <= 1:
        return
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    jax.config.update("jax_num_cpu_devices", min(count, max(_MOST_CPU_DEVICES, os.cpu_count() or 1)))


@contextlib.contextmanager
def known_platforms() -> Iterator[None]:
    """For entry points: ValueError, with those that there are, where JAX_PLATFORMS names one that JAX does not have."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # of which the second is without a word
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if "JAX_PLATFORMS" not in os.environ or not raised_in.endswith("xla_bridge.py"):
            raise
        jax.config.update("jax_platforms", "")
        there = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(
            f"Expected JAX_PLATFORMS to name what this machine and this JAX have, {there}, got "
            f"{os.environ['JAX_PLATFORMS']!r}."
        ) from error


def mesh(count: int = 0) -> Mesh:
    """A one-axis mesh over the first `count` local devices (0: all of them).

    Raises ValueError when there are fewer, or for a negative count.
    """
    validate.count("devices", count, 0)
    devices = jax.local_devices()
    if count > len(devices):
        raise ValueError(f"Expected {count} devices, got {len(devices)} ({devices[0].platform}).")
    chosen = devices[: count or len(devices)]
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def global_mesh(count: int = 0) -> Mesh:
    """A one-axis mesh over the first `count` devices (0: all of them) of every process of `jax.distributed`."""
    local = len(mesh(count).devices)
    everywhere = [[one for one in jax.devices() if one.process_index == at] for at in range(jax.process_count())]
    chosen = [one for devices in everywhere for one in devices[:local]]
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def local(on: Mesh) -> Mesh:
    """A one-axis mesh over those of its devices that this process has."""
    own = [one for one in on.devices.flat if one.process_index == jax.process_index()]
    return jax.make_mesh((len(own),), (AXIS,), axis_types=(AxisType.Auto,), devices=own)


def replicate(tree: Tree, on: Mesh) -> Tree:
    """Put the arrays of a tree, which every process must have, whole on every device of the mesh."""
    whole = replicated(on)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(whole, np.asarray(leaf), leaf.shape), tree)


def replicated(on: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(on, P())


def split_first_axis(on: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is dealt to the devices."""
    return NamedSharding(on, P(AXIS))


def memory(on: Mesh) -> int:
    """Bytes that one device of the mesh can use: of all its own, or its share of the machine's on the CPU."""
    device = on.devices.flat[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // on.size
    return (device.memory_stats() or {}).get("bytes_limit", 8 * 2**30)


def is_cpu() -> bool:
    """Whether JAX computes on the CPU."""
    return jax.default_backend() == "cpu"
