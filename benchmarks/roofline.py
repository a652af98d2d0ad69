"""What the hardware gives and what a network needs: measured ceilings, counted programs, parity with the CPU."""

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
from benchmarks.gpu_programs import counting, hlo
from idrc_jax import models, sampling
from idrc_jax.sampling import devices, random_keys, votes

_IMAGES = 8  # whose votes are compared


class Lab(ours.Host):
    """Measurements of one accelerator, beside those of `ours.Host`."""

    def __init__(self) -> None:
        super().__init__()
        self._truth: dict[str, np.ndarray] = {}

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

    def counted(self, weights: str, dtype: str, chunk: int) -> dict[str, float]:
        """The program of certification as this device's compiler makes it: kernels a chunk, and of a sample bytes
        that they move and operations of convolutions and products, counted as `gpu_programs` does."""
        classifier = models.load_classifier(weights, dtype=dtype, kernel="xla")
        lowered = votes.lower_votes(sampling.Execution(classifier, self._mesh, chunk), ours.SCHEME.law)
        count = counting.count_loop(hlo.parse(lowered.compile().as_text() or ""))
        dense = sum(count.by_class[name].flops for name in (counting.CONVOLUTIONS, counting.PRODUCTS))
        total = count.total
        return {"kernels": total.kernels, "bytes": total.bytes / chunk, "flops": dense / chunk}

    def parity(
        self,
        weights: str,
        description: networks.Description,
        *,
        dtype: str,
        precision: str,
        samples: int,
        chunk: int,
        folder: str,
    ) -> dict[str, Any]:
        """How many votes differ from the CPU's float32 votes on the same noise, sample by sample, on 8 images.

        Args:
          weights, description: a network as `ours.load` takes it.
          dtype: that the accelerator computes in.
          precision: of its products: "highest" is without TF32, "" JAX's default.
          samples: an image.
          chunk: of the accelerator.
          folder: of CIFAR-10, for its test images; empty for smooth random ones.
        """
        images, _, what = ours.images_to_classify(folder, _IMAGES, description["image_shape"][0])
        known = f"{weights} {description}"  # a pair's weights are its classifier's
        if known not in self._truth:
            cpu = jax.devices("cpu")
            with jax.default_device(cpu[0]):
                network = ours.load(weights, description, dtype="float32", kernel="auto")
                execution = sampling.Execution(network, _mesh(cpu), min(chunk, 32))
                self._truth[known] = _classes(execution, images, samples, slots=samples)
        truth = self._truth[known]
        with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
            network = ours.load(weights, description, dtype=dtype, kernel="auto")
            classes = _classes(sampling.Execution(network, self._mesh, chunk), images, samples)
        differ = int(np.sum(classes != truth))
        return {"images": what, "votes": len(truth), "differ": differ, "share": differ / len(truth)}


def _mesh(on: Sequence[Any]) -> Mesh:
    return jax.make_mesh((len(on),), (devices.AXIS,), axis_types=(AxisType.Auto,), devices=on)


def _classes(
    execution: sampling.Execution, images: np.ndarray, samples: int, slots: int = sampling.SLOTS
) -> np.ndarray:
    """The class of every sample, int [len(images) * samples]: a slot takes one sample, so that each can be compared.

    With as many slots as the commands have it is their program, which need not be compiled anew.
    """
    classes = []
    for index, image in enumerate(images):
        for first in range(0, samples, slots):
            numbers = first + np.arange(slots)
            counts = sampling.dispatch_votes(
                execution,
                ours.SCHEME,
                np.broadcast_to(image, (slots, *image.shape)),
                np.full(slots, ours.SCHEME.sigma),
                indices=np.full(slots, index),
                first=numbers,
                n=(numbers < samples).astype(int),
                key=random_keys.root(0),
            )
            classes.append(np.asarray(counts).sum(axis=0).argmax(axis=-1)[: samples - first])
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
