"""What the hardware gives and what a network needs: measured ceilings, XLA's counts, parity with the CPU."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from benchmarks import networks, ours
from idrc_jax import models, sampling
from idrc_jax.sampling import devices, random_keys


class Lab(ours.Host):
    """Measurements of one accelerator, beside those of `ours.Host`."""

    def ceilings(self, side: int, values: int) -> dict[str, float]:
        """TFLOP/s of a dense product of `side` x `side` matrices in both types, and GB/s of a pass over an array.

        The float32 product runs at JAX's default precision, as the networks do. A pass reads and writes `values`
        float32 numbers.
        """
        key = jax.random.key(0)
        found = {}
        for dtype in (jnp.bfloat16, jnp.float32):
            left, right = jax.random.normal(key, (2, side, side), jnp.float32).astype(dtype)
            product = jax.jit(jnp.matmul)
            seconds = _seconds(lambda: product(left, right))  # noqa: B023
            found[f"{jnp.dtype(dtype).name}_product_tflops"] = 2 * side**3 / seconds / 1e12
        array = jax.random.normal(key, (values,), jnp.float32)
        negative = jax.jit(jnp.negative)
        found["copy_gb_s"] = 2 * 4 * values / _seconds(lambda: negative(array)) / 1e9
        return found

    def count(self, weights: str, dtype: str, chunk: int) -> dict[str, float]:
        """XLA's cost analysis of the plain network's compiled forward pass, per sample."""
        classifier = models.load_classifier(weights, dtype=dtype, kernel="xla")
        images = jax.ShapeDtypeStruct((chunk, *classifier.image_shape), jnp.float32)
        said = jax.jit(classifier.apply_fn).lower(classifier.params, images).compile().cost_analysis() or {}
        return {"flops": said.get("flops", 0.0) / chunk, "bytes": said.get("bytes accessed", 0.0) / chunk}

    def parity(self, weights: str, samples: int, chunk: int) -> dict[str, Any]:
        """The share of votes that differ from the CPU's float32 votes on the same noise, sample by sample.

        On 8 images; the accelerator in float32 at JAX's default precision and at the highest, and in bfloat16.
        """
        cpu = jax.devices("cpu")
        with jax.default_device(cpu[0]):
            truth = _votes(weights, "float32", samples, min(chunk, 32), _mesh(cpu))
        found: dict[str, Any] = {"votes": len(truth)}
        for name, dtype, precision in (
            ("float32", "float32", None),
            ("float32_highest_precision", "float32", "highest"),
            ("bfloat16", "bfloat16", None),
        ):
            with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
                votes = _votes(weights, dtype, samples, chunk, self._mesh)
            found[f"{name}_differ"] = int(np.sum(votes != truth))
            found[f"{name}_share"] = float(np.mean(votes != truth))
        return found


def _mesh(on: Sequence[Any]) -> Mesh:
    return jax.make_mesh((len(on),), (devices.AXIS,), axis_types=(AxisType.Auto,), devices=on)


def _votes(weights: str, dtype: str, samples: int, chunk: int, mesh: Mesh) -> np.ndarray:
    """The class of every sample, int [8 * samples]: a slot takes one sample, so that each can be compared."""
    classifier = models.load_classifier(weights, dtype=dtype)
    classes = []
    for index, image in enumerate(networks.images(8, classifier.image_shape[0])):
        votes = sampling.dispatch_votes(
            sampling.Execution(classifier, mesh, chunk),
            ours.SCHEME,
            np.broadcast_to(image, (samples, *image.shape)),
            np.full(samples, ours.SCHEME.sigma),
            indices=np.full(samples, index),
            first=np.arange(samples),
            n=1,
            key=random_keys.root(0),
        )
        classes.append(np.asarray(votes).sum(axis=0).argmax(axis=-1))
    return np.concatenate(classes)


def _seconds(job: Callable[[], jax.Array], enough: float = 0.1) -> float:
    """Of one run: the median of 5 series, each of as many runs as last `enough`."""

    def series(runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs - 1):
            job()
        jax.block_until_ready(job())
        return time.perf_counter() - start

    series(1)
    runs = max(1, round(enough / series(2) * 2))
    return statistics.median(series(runs) / runs for _ in range(5))
