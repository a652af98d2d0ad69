"""What the sampling core adds to the bare jitted forward pass on the same batch: ResNet-20, interleaved medians.

Command:   make overhead
"""

import os
import statistics
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


def seconds(job) -> float:
    start = time.perf_counter()
    jax.block_until_ready(job())
    return time.perf_counter() - start


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
    for job in jobs.values():
        seconds(job)
    times = {name: [] for name in jobs}
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            times[name].append(seconds(job))
    medians = {name: statistics.median(values) for name, values in times.items()}
    samples = CHUNKS * chunk * mesh.size
    print(f"{mesh.size} devices, {chunk} samples each: bare {samples / medians['bare']:,.0f} samples/s")
    for name in list(jobs)[1:]:
        ratio = statistics.median(ours / theirs for ours, theirs in zip(times[name], times["bare"], strict=True))
        print(f"  {name:<9} {samples / medians[name]:,.0f} samples/s, time {ratio:.3f} of the bare pass")


def main() -> None:
    devices.configure_cpu(os.cpu_count() or 1)
    network = classifier()
    for count in sorted({1, jax.local_device_count()}):
        mesh = devices.mesh(count)
        compare(network, mesh, sampling.default_chunk(network, mesh))


if __name__ == "__main__":
    main()
