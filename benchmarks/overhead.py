"""What the sampling core adds to the bare jitted forward pass on the same batch: ResNet-20, interleaved medians.

Command:   make overhead, or with ARGS=WEIGHTS of a network that is then run by its kernel
"""

import os
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from idrc_jax import models, sampling
from idrc_jax.certificates import schemes
from idrc_jax.sampling import devices, random_keys

CHUNKS = 20
ROUNDS = 15
DESCRIPTION = {
    "architecture": "resnet", "depth": 20, "classes": 10, "image_shape": [32, 32, 3], "shortcut": "projection",
    "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.201], "dtype": "float32",
}  # fmt: skip


def classifier() -> models.Classifier:
    """A ResNet-20 with random weights: speed does not depend on them."""
    graph, params, stats = models.split(models.build(DESCRIPTION, dtype="float32", rngs=nnx.Rngs(0)))

    def apply_fn(weights, images):
        return models.merge(graph, weights["params"], weights["stats"])(images)

    return models.Classifier(apply_fn, {"params": params, "stats": stats}, 10, (32, 32, 3))


def seconds(job) -> tuple[float, float]:
    """By the clock, and of all cores."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(job())
    return time.perf_counter() - start[0], time.process_time() - start[1]


def compare(network: models.Classifier, mesh: jax.sharding.Mesh, chunk: int) -> None:
    batch = jax.device_put(jnp.full((chunk * mesh.size, 32, 32, 3), 0.5), devices.split_first_axis(mesh))
    execution = sampling.Execution(network, mesh, chunk)
    params = jax.device_put(network.params, devices.replicated(mesh))
    forward = jax.jit(
        jax.shard_map(network.apply_fn, mesh=mesh, in_specs=(P(), P(devices.AXIS)), out_specs=P(devices.AXIS))
    )
    image = np.full((1, 32, 32, 3), 0.5, np.float32)

    def bare():
        for _ in range(CHUNKS):
            logits = forward(params, batch)
        return logits

    def core(scheme):
        return sampling.dispatch_votes(
            execution, scheme, image, np.array([0.25]), indices=np.array([0]), first=0, n=CHUNKS * execution.stride,
            key=random_keys.root(0),
        )  # fmt: skip

    jobs = {"bare": bare} | {
        name: partial(core, schemes.make(name, sigma=0.25)) for name in ("gaussian", "l2", "uniform")
    }
    jobs["gaussian, exact"] = partial(core, schemes.Gaussian(sigma=0.25, exact=True))
    for job in jobs.values():
        seconds(job)
    times = {name: [] for name in jobs}
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            times[name].append(seconds(job))
    medians = {name: statistics.median(clock for clock, _ in values) for name, values in times.items()}
    samples = CHUNKS * chunk * mesh.size

    def ratio(name: str, other: str, of: int) -> float:
        return statistics.median(ours[of] / theirs[of] for ours, theirs in zip(times[name], times[other], strict=True))

    print(f"{mesh.size} devices, {chunk} samples each: bare {samples / medians['bare']:,.0f} samples/s")
    for name in list(jobs)[1:]:
        by_clock, of_cores = (ratio(name, "bare", of) for of in (0, 1))
        print(
            f"  {name:<15} {samples / medians[name]:,.0f} samples/s, time {by_clock:.3f} of the bare pass, "
            f"of all cores {of_cores:.3f}"
        )
    by_clock, of_cores = (ratio("gaussian, exact", "gaussian", of) for of in (0, 1))
    print(f"  exact against float32 normals: time {by_clock:.3f}, of all cores {of_cores:.3f}")


def main() -> None:
    devices.configure_cpu(os.cpu_count() or 1)
    network = classifier() if len(sys.argv) < 2 else models.load_classifier(sys.argv[1])  # by its first implementation
    for count in sorted({1, jax.local_device_count()}):
        mesh = devices.mesh(count)
        compare(network, mesh, sampling.default_chunk(network, mesh))


if __name__ == "__main__":
    main()
