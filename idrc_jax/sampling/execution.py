"""How a network runs: by which implementation, on which devices, in which chunks.

That concerns speed and memory alone: votes are the same, up to ties that rounding breaks differently.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from idrc_jax.certificates.schemes import Routed, Scheme, Stepped, constant_levels, host_levels, level_count
from idrc_jax.core import validate
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices

_CPU_BYTES = 2**25  # of a chunk's largest intermediate result on a CPU


@dataclass(frozen=True)
class Execution:
    """A way to run a network.

    Attributes:
      classifier: one implementation.
      mesh: the devices.
      chunk: samples that a device takes at a time.
      rates: samples/s of every candidate that was measured, now or when this was remembered.
      left_out: why others were not: they failed, or their logits disagree.
    """

    classifier: Classifier
    mesh: Mesh
    chunk: int
    rates: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `rates` calls it."""
        count = f"{self.mesh.size} device{'s' * (self.mesh.size > 1)}"
        return f"{self.classifier.kernel} on {count}, chunk {self.chunk}"

    @property
    def stride(self) -> int:
        """Samples that all devices together take at a time."""
        return self.chunk * self.mesh.size

    def placed(self) -> Self:
        """The same with the params of all its networks on every device, once, so that no dispatch copies them."""
        made: dict[int, tuple[ArrayLike, jax.Array]] = {}  # the leaves, too, which keeps their ids their own

        def put_leaf(leaf: ArrayLike) -> jax.Array:
            if id(leaf) not in made:
                made[id(leaf)] = leaf, jax.device_put(leaf, devices.replicated(self.mesh))
            return made[id(leaf)][1]

        def put(classifier: Classifier) -> Classifier:
            return replace(classifier, params=jax.tree.map(put_leaf, classifier.params))

        own = self.classifier
        router = put(own.router) if own.router else None
        return replace(self, classifier=replace(put(own), router=router, by_level=tuple(map(put, own.by_level))))

    def voters(self, scheme: Scheme) -> list[Self]:
        """How each of the `voters` runs."""
        return [replace(self, classifier=one) for one in voters(self.classifier, scheme)]

    def describe(self) -> dict[str, Any]:
        """As a manifest's session holds it: of the classifier itself where others vote under some levels."""
        device = self.mesh.devices.flat[0].device_kind
        return {
            "devices": self.mesh.size,
            "device": device,
            "kernel": self.classifier.kernel,
            "chunk": self.chunk,
            **({"rates": self.rates} if self.rates else {}),
            **({"left_out": self.left_out} if self.left_out else {}),
        }


def voters(classifier: Classifier, scheme: Scheme) -> list[Classifier]:
    """The networks that vote: one for each level of `schemes.scales`, under the first one of `routed` the router, under
    others that of the level or the classifier that serves all of them; under `stepped` one for each bin, if there are
    networks by level."""
    check_networks(classifier, scheme)
    if isinstance(scheme, Stepped):
        return list(classifier.by_level) or [classifier]
    router = [classifier.router] if isinstance(scheme, Routed) and classifier.router else []
    return [*router, *(classifier.by_level or [classifier] * (level_count(scheme) - len(router)))]


def voter_numbers(classifier: Classifier, scheme: Scheme, images: np.ndarray) -> np.ndarray:
    """Which of the `voters` votes for each image under each level of `schemes.scales`.

    Guarantee: under `stepped` it is the bin from which the certificate measures its distance to other bins.

    Args:
      classifier, scheme: whose.
      images: float [N, H, W, C] in [0, 1].

    Returns:
      int [N, levels].
    """
    if isinstance(scheme, Stepped) and classifier.by_level:
        return np.asarray(scheme.bin_of(host_levels(scheme, images)[0]))[:, None]
    return np.broadcast_to(np.arange(level_count(scheme)), (len(images), level_count(scheme)))


def check_networks(classifier: Classifier, scheme: Scheme) -> None:
    """ValueError for a scheme `routed` and a classifier without a router, or with one of other answers; and for
    networks by level under a scheme that does not choose from constant levels, or from another number."""
    if classifier.by_level:
        check_level_networks(len(classifier.by_level), scheme)
    if not isinstance(scheme, Routed):
        return
    wanted = f"a router with an answer for each of {len(scheme.levels)} levels"
    if classifier.router is None:
        raise ValueError(f"Expected a classifier with {wanted} for the scheme routed, got none: classifier.routed_by.")
    if classifier.router.classes != len(scheme.levels):
        raise ValueError(f"Expected {wanted}, got one with {classifier.router.classes}.")


def check_level_networks(count: int, scheme: Scheme) -> None:
    """ValueError unless so many networks by level are one for each level that the scheme chooses from."""
    levels = len(constant_levels(scheme))
    if levels != count:
        wanted = f"{levels} networks by level, one for each level of" if levels else "no networks by level for"
        raise ValueError(
            f"Expected {wanted} the scheme {scheme.name}, got {count}: model.by_level and noise.levels, or "
            "classifier.at_levels in Python."
        )


def unmeasured(classifier: Classifier, mesh: Mesh | None = None, chunk: int = 0) -> Execution:
    """The classifier as it is, on all local devices and in the default chunk unless others are given."""
    mesh = mesh or devices.mesh()
    return Execution(classifier, mesh, chunk or default_chunk(classifier, mesh))


def default_chunk(classifier: Classifier, mesh: Mesh, memory: int = 0) -> int:
    """Samples a device takes at a time: few on the CPU, for the sake of its caches, and what fills an accelerator.

    Fewer, but at least 2, where four times the network's largest intermediate result would take more than half of the
    device's memory: a multiple of 64 then on accelerators, which work in tiles.

    Args:
      classifier: what classifies them.
      mesh: the devices.
      memory: bytes that a device can use; 0 asks it.
    """
    wanted = 4096
    if mesh.devices.flat[0].platform == "cpu":
        held = _CPU_BYTES // classifier.largest_intermediate
        wanted = min(32 if mesh.size > 1 else 128, max(4, 2 ** int(math.log2(max(held, 1)))))
        return min(wanted, largest_chunk(classifier, mesh, memory))
    most = largest_chunk(classifier, mesh, memory)
    return min(wanted, most - most % 64 if most > 64 else most)


def largest_chunk(classifier: Classifier, mesh: Mesh, memory: int = 0) -> int:
    """Samples, at least 2, whose intermediate results half of a device's memory holds, as far as can be told, whichever
    of the classifier's networks makes them."""
    return max(2, (memory or devices.memory(mesh)) // 2 // (4 * _largest_intermediate(classifier)))


def check_chunk(classifier: Classifier, mesh: Mesh | None, chunk: int) -> None:
    """ValueError unless a chunk is 0, to be chosen, or an integer >= 2 whose largest array one device can hold."""
    if not validate.integer("chunk", chunk):
        return
    validate.at_least("chunk", chunk, 2)
    memory = devices.memory(mesh or devices.mesh(1))
    most = memory // _largest_intermediate(classifier)
    if chunk > most:
        raise ValueError(
            f"Expected chunk <= {most:,}, as much of this network as {memory / 2**30:.1f} GiB of memory hold, got "
            f"{chunk:,}."
        )


def _largest_intermediate(classifier: Classifier) -> int:
    """Bytes a sample of the largest array that any of its networks computes: they run in chunks of one size."""
    return max(one.largest_intermediate for one in classifier.networks)
