"""The hot core: draw noise, classify, count, all on the device.

The primitive is a batch of slots (`slot_votes`); `sample_votes` loops it over many samples of some images in
one program; `count_votes` deals that to the devices and returns the counts to the host. The first two are
pure functions of arrays and also run under `jax.jit`, `vmap`, `pmap` and inside `jax.shard_map`.

A sample's noise is a function of (key, data-set index, sample index) alone, so votes do not depend on the
chunk, the number of devices, the order of the images or where a run was cut, up to ties that floating
point breaks differently when the batch shape changes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from idrc_jax.certificates.schemes import Scheme, Splitting, check_pixels, host_scale, level_count
from idrc_jax.core import validate
from idrc_jax.kernels.rounded_normal_cpu import Tables
from idrc_jax.models import Classifier, check_logits
from idrc_jax.sampling import devices, exact_noise, noise_laws, random_keys
from idrc_jax.sampling.execution import Execution, check_networks, unmeasured

PyTree = Any  # of arrays
ApplyFn = Callable[[PyTree, jax.Array], jax.Array]
SLOTS = 64  # images of a dispatch: always as many in a job, so that it compiles once


def slot_votes(
    apply_fn: ApplyFn,
    law: str,
    classes: int,
    params: PyTree,
    key: jax.Array,
    images: jax.Array,
    indices: jax.Array,
    scales: jax.Array | Tables,
    slot: jax.Array,
    sample: jax.Array,
    live: jax.Array,
) -> jax.Array:
    """Classify one noisy image a slot, and count the votes per image.

    Args:
      apply_fn: (params, images float32 [B, H, W, C]) -> logits [B, classes].
      law: a name in `noise_laws.LAWS`.
      key: the stage's typed key.
      images: float32 [N, H, W, C] in [0, 1].
      indices: uint32 [N], data-set indices: with `sample` they name the noise.
      scales: float32 [N], noise levels; or their `exact_noise.tables`, for exact noise of the law "normal".
      slot: int32 [B], which image.
      sample: uint32 [B], which sample of it.
      live: bool [B]; the votes of dead slots are not counted.

    Returns:
      int32 [N, classes + 1]; the last column counts the votes whose logits were not all finite.

    Raises:
      ValueError: logits of another shape, or that are no floats.
    """
    noisy = noise_laws.noisy(law, key, images, indices, scales, slot, sample)
    logits = check_logits(apply_fn(params, noisy), len(slot), classes)
    finite = jnp.isfinite(logits).all(axis=-1)
    vote = jnp.where(finite, jnp.argmax(logits, axis=-1), classes)
    counts = jnp.zeros((images.shape[0], classes + 1), jnp.int32)
    return counts.at[slot, vote].add(live.astype(jnp.int32))


def sample_votes(
    apply_fn: ApplyFn,
    law: str,
    classes: int,
    chunk: int,
    params: PyTree,
    key: jax.Array,
    images: jax.Array,
    indices: jax.Array,
    scales: jax.Array | Tables,
    first: jax.Array,
    n: jax.Array,
    shard: jax.Array,
    shards: int,
) -> jax.Array:
    """Votes of samples first[i] .. first[i] + n[i] - 1 of every image i, by a device loop over chunks.

    All images' samples stand in one row, which is dealt chunk by chunk to `shards` equal workers; this is worker
    `shard`. So images of different sample numbers share a batch, and only the last chunk is padded with dead slots.

    Args:
      chunk: samples that a worker takes at a time.
      first, n: uint32 [N] and int32 [N], >= 0, together below 2**31; traced, as is `shard`: no value compiles anew.
      shard: int32 [], which worker this is.
      shards: how many there are.
      Others: as for `slot_votes`.

    Returns:
      int32 [N, classes + 1], this worker's share.
    """
    ends = jnp.cumsum(n)
    total = ends[-1]
    stride = chunk * shards

    def body(step: jax.Array, counts: jax.Array) -> jax.Array:
        position = step * stride + shard * chunk + jnp.arange(chunk, dtype=jnp.int32)
        live = position < total
        slot = jnp.searchsorted(ends, position, side="right", method="compare_all")
        slot = jnp.minimum(slot, images.shape[0] - 1)
        sample = first[slot] + (position - (ends[slot] - n[slot])).astype(jnp.uint32)
        votes = slot_votes(apply_fn, law, classes, params, key, images, indices, scales, slot, sample, live)
        return counts + votes

    # Zeros that vary over the mesh as the votes will: a constant carry is refused inside shard_map.
    varying = (shard + n + first.astype(jnp.int32) + indices.astype(jnp.int32))[:, None]
    start = jnp.zeros((images.shape[0], classes + 1), jnp.int32) + 0 * varying
    return jax.lax.fori_loop(0, (total + stride - 1) // stride, body, start)


@partial(jax.jit, static_argnames=("apply_fn", "law", "classes", "chunk", "mesh"))
def _votes_on_mesh(
    params: PyTree,
    key: jax.Array,
    images: jax.Array,
    indices: jax.Array,
    scales: jax.Array | Tables,
    first: jax.Array,
    n: jax.Array,
    *,
    apply_fn: ApplyFn,
    law: str,
    classes: int,
    chunk: int,
    mesh: Mesh,
) -> jax.Array:
    def on_one_device(
        shard: jax.Array,
        params: PyTree,
        key: jax.Array,
        images: jax.Array,
        indices: jax.Array,
        scales: jax.Array | Tables,
        first: jax.Array,
        n: jax.Array,
    ) -> jax.Array:
        return sample_votes(
            apply_fn, law, classes, chunk, params, key, images, indices, scales, first, n, shard[0], mesh.size
        )[None]

    shards = jnp.arange(mesh.size, dtype=jnp.int32)
    split = jax.shard_map(on_one_device, mesh=mesh, in_specs=(P(devices.AXIS), *[P()] * 7), out_specs=P(devices.AXIS))
    return split(shards, params, key, images, indices, scales, first, n)


def dispatch_votes(
    execution: Execution,
    scheme: Scheme,
    images: np.ndarray,
    scales: np.ndarray,
    *,
    indices: np.ndarray,
    first: np.ndarray | int,
    n: np.ndarray | int,
    key: jax.Array,
) -> jax.Array:
    """Start counting votes and return at once.

    Args:
      execution: the classifier, its devices and its chunk.
      scheme: whose law the noise has.
      images: float32 [N, H, W, C] in [0, 1]; under exact noise they are rounded to 8 bits.
      scales: [N], their noise levels, values of float32.
      indices: integers [N], which name the noise.
      first, n: the samples first .. first + n - 1, those of each image, [N], or of all.
      key: the stage's typed key.

    Returns:
      int32 [devices, N, classes + 1], to be summed over the first axis.

    Raises:
      ValueError: a chunk below 2, indices or sample numbers outside 0 .. 2**32 - 1, or too many samples at once.
    """
    classifier, mesh, chunk = execution.classifier, execution.mesh, execution.chunk
    validate.count("chunk", chunk, 2)
    if chunk == classifier.classes:
        classifier.check()  # `slot_votes` could not tell an axis of images from one of classes
    first, n = (np.broadcast_to(np.asarray(value, np.int64), (len(images),)) for value in (first, n))
    if np.min(indices) < 0 or np.max(indices) >= 2**32 or np.min(first) < 0 or np.max(first + n) > 2**32:
        raise ValueError(f"Expected indices and sample numbers in 0 .. 2**32 - 1, got {indices}, {first} + {n}.")
    if execution.stride >= 2**30:
        raise ValueError(f"Expected chunk * devices < 2**30, got {chunk} on {mesh.size}.")
    if np.sum(n) + execution.stride >= 2**31:
        raise ValueError(f"Expected images * n < 2**31 in one dispatch, got {np.sum(n)}.")
    return _votes_on_mesh(
        classifier.params,
        key,
        jnp.asarray(images, jnp.float32),
        jnp.asarray(indices, jnp.uint32),
        exact_noise.tables(scales) if scheme.exact else jnp.asarray(scales, jnp.float32),
        jnp.asarray(first, jnp.uint32),
        jnp.asarray(n, jnp.int32),
        apply_fn=classifier.apply_fn,
        law=scheme.law,
        classes=classifier.classes,
        chunk=chunk,
        mesh=mesh,
    )


def count_votes(
    classifier: Classifier,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    n: int,
    key: jax.Array,
    first: int = 0,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Votes of the base classifier on n noisy copies of each image.

    Args:
      classifier: the base classifier.
      scheme: how much noise of which law an image gets.
      images: float32 [N, H, W, C] in [0, 1].
      indices: [N] data-set indices; images with the same index and key get the same noise.
      n: samples an image, numbered from `first`; under `splitting` all of its offsets.
      key: a typed key; use another for every stage (`random_keys.stage`).
      chunk: samples a device computes at a time (>= 2; 0 chooses); it sets the memory, not the votes.
      mesh: the devices (all local ones by default).

    Returns:
      int32 [N, classes + 1]: votes per class, then the votes whose logits were not all finite.

    Raises:
      ValueError: images, indices, n, first or chunk that cannot be.

    Guarantee: votes are independent draws of f(x + noise) given the image, as far as the pseudo-random
    generator and, unless the scheme's noise is exact, float32 normals are (see docs/explanation/caveats.md); under
    `splitting` they are all that there are.
    """
    images = check_images(images, classifier, scheme)
    indices = check_indices(indices, images)
    validate.count("n", n, 1)
    validate.integer("first", first)
    if level_count(scheme) > 1 or classifier.by_level:
        raise ValueError(
            f"Expected a scheme of one level and one network, got {scheme.name}"
            + (f" and {len(classifier.by_level)} networks by level" if classifier.by_level else "")
            + ": count each level's as gaussian's."
        )
    if isinstance(scheme, Splitting) and n != scheme.positions:
        raise ValueError(
            f"Expected n = {scheme.positions}, all offsets of splitting at sigma {scheme.sigma:g}, got {n}."
        )
    _, scales = host_scale(scheme, images)
    execution = unmeasured(classifier, mesh, chunk)
    votes = dispatch_votes(execution, scheme, images, scales, indices=indices, first=first, n=n, key=key)
    return np.asarray(votes).sum(axis=0)


def check_images(images: np.ndarray, classifier: Classifier, scheme: Scheme | None = None) -> np.ndarray:
    """Float32 images that the classifier can take, of 8 bits if the scheme's noise is exact, or ValueError; also for a
    scheme whose router, or networks by level, the classifier has not."""
    images = np.asarray(images)
    if images.shape[1:] != classifier.image_shape:
        raise ValueError(
            f"Expected images of shape {classifier.image_shape} as the classifier takes, got {images.shape[1:]}."
        )
    if images.dtype != np.float32 or not (images.min(initial=0) >= 0 and images.max(initial=0) <= 1):
        raise ValueError(
            f"Expected float32 images within [0, 1], got {images.dtype} from {images.min()} to {images.max()}."
        )
    if scheme is not None:
        check_pixels(scheme, images)
        check_networks(classifier, scheme)
    return images


def check_indices(indices: np.ndarray, images: np.ndarray) -> np.ndarray:
    """One integer an image, or ValueError."""
    indices = np.asarray(indices)
    if not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"Expected indices to be integers, got {indices.dtype}.")
    if indices.shape != (len(images),):
        raise ValueError(f"Expected one index an image, got {indices.shape} for {len(images)} images.")
    return indices


def lower_votes(execution: Execution, law: str, slots: int = SLOTS, *, exact: bool = False) -> jax.stages.Lowered:
    """Lower the program that `dispatch_votes` runs, for the mesh's devices, which need not be there."""
    classifier, whole = execution.classifier, devices.replicated(execution.mesh)

    def like(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    levels = like((slots,), jnp.float32)
    if exact:
        levels = jax.tree.map(lambda one: like(one.shape, one.dtype), exact_noise.like(slots))
    return _votes_on_mesh.lower(
        jax.tree.map(lambda leaf: like(jnp.shape(leaf), jnp.result_type(leaf)), classifier.params),
        like((), random_keys.root(0).dtype),
        like((slots, *classifier.image_shape), jnp.float32),
        like((slots,), jnp.uint32),
        levels,
        like((slots,), jnp.uint32),
        like((slots,), jnp.int32),
        apply_fn=classifier.apply_fn,
        law=law,
        classes=classifier.classes,
        chunk=execution.chunk,
        mesh=execution.mesh,
    )


def memory_estimate(execution: Execution, scheme: Scheme) -> int | None:
    """Bytes of temporaries a device needs for one chunk, as XLA's compiler reports them; None if it does not."""
    analysis = lower_votes(execution, scheme.law, slots=1, exact=scheme.exact).compile().memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
