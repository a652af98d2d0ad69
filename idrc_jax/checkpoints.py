"""Weights on disk: `weights.safetensors` with the model's description, and Orbax training checkpoints.

`weights.safetensors` holds every tensor of the network under its dotted path (`blocks.3.conv1.kernel`)
and, as metadata, one JSON text that rebuilds the network; it is what certification loads.
"""

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from idrc_jax import _files, _validate
from idrc_jax.diffusion import Denoiser, Schedule
from idrc_jax.implementations import Interchangeable
from idrc_jax.kernels import convolution_cpu, network_cpu, resnet_cpu
from idrc_jax.models import folding
from idrc_jax.models.resnet import ResNet
from idrc_jax.models.resnet50 import ResNet50
from idrc_jax.models.unet import UNet
from idrc_jax.models.vit import ViT
from idrc_jax.results import differences

WEIGHTS = "weights.safetensors"
_STATE = "state.sha256"
_FORMAT = 1
Tensors = dict[str, Any]
_DESCRIBED = {"architecture", "image_shape", "dtype"}
_SETTINGS = {
    "resnet": {"classes", "mean", "std", "depth", "shortcut"},
    "resnet50": {"classes", "mean", "std", "depth", "shortcut"},
    "vit": {"classes", "mean", "std", "vit"},
    "unet": {"unet", "diffusion"},
}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_TRACED_BATCH = 8


@dataclass(frozen=True)
class Classifier(Interchangeable):
    """A base classifier: a pure function of the noisy image alone.

    Attributes:
      apply_fn: (params, images float32 [N, H, W, C]) -> logits float32 [N, classes]; normalisation inside.
      params: the pytree that `apply_fn` takes.
      classes: number of classes, K >= 2. A network of one logit z, whose sigmoid is a probability, is to give the two
        logits [0, z].
      image_shape: (H, W, C) it was made for.
      dtype: compute type, part of what is certified.
      kernel: what runs the network: "xla", or a kernel of `idrc_jax.kernels`, with the same logits within rounding.
      sha256: of the tensors; empty for a network that was not loaded from a file, and to be emptied where `params` or
        `apply_fn` are replaced: results then name it by its `fingerprint`.
      description: what rebuilds the network, and how it was trained.
      alternatives: see `Interchangeable`; given by `with_alternatives`.

    Raises ValueError for fewer than 2 classes or an impossible shape, and when it is first used, with the shapes, for
    an `apply_fn` that gives anything but floats [N, classes].
    """

    apply_fn: Any
    params: Any = field(repr=False)
    classes: int
    image_shape: tuple[int, int, int]
    dtype: str = "float32"
    kernel: str = "xla"
    sha256: str = ""
    description: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3:
            raise ValueError(f"Expected image_shape (H, W, C), got {self.image_shape}.")
        shape = tuple(_validate.count("image_shape", side, 1) for side in self.image_shape)
        object.__setattr__(self, "image_shape", shape)
        object.__setattr__(self, "classes", _validate.classes("a classifier", self.classes))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.apply_fn(self.params, images)

    @property
    def _batch(self) -> int:
        """Images of the trace: not as many as classes, so that these cannot stand in the place of those."""
        return _TRACED_BATCH + (self.classes == _TRACED_BATCH)

    @functools.cached_property
    def _traced(self) -> Any:
        images = jax.ShapeDtypeStruct((self._batch, *self.image_shape), jnp.float32)
        jaxpr, logits = jax.make_jaxpr(self.apply_fn, return_shape=True)(self.params, images)
        check_logits(logits, self._batch, self.classes)
        return jaxpr

    def check(self) -> None:
        """ValueError unless `apply_fn` gives logits of its classes; traces the network once."""
        _ = self._traced

    @functools.cached_property
    def structure(self) -> str:
        """SHA-256 of what is computed, whatever the values of the params; traces the network once."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        shapes = [f"{jax.tree_util.keystr(path)} {jnp.shape(leaf)} {jnp.result_type(leaf)}" for path, leaf in leaves]
        text = "\n".join([_text(self._traced.jaxpr), *shapes, self.dtype])
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def largest_intermediate(self) -> int:
        """Bytes a sample of the largest array that the network computes; traces it once."""
        batch = self._batch

        def made(jaxpr: Any) -> Iterator[Any]:
            for equation in jaxpr.eqns:
                yield from (variable.aval for variable in equation.outvars)
                inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
                yield from itertools.chain.from_iterable(made(one) for one in inner if hasattr(one, "eqns"))

        results = made(self._traced.jaxpr)
        sizes = (one.size * one.dtype.itemsize for one in results if getattr(one, "shape", ())[:1] == (batch,))
        return max(4 * batch * math.prod(self.image_shape), *sizes) // batch


def check_logits(logits: Any, images: int, classes: int) -> jax.Array:
    """The logits of a batch if they are floats [images, classes], else ValueError.

    A wrong shape must not pass: indexing and broadcasting would make votes of it.
    """
    shape = getattr(logits, "shape", None)
    if shape == (images, classes) and jnp.issubdtype(logits.dtype, jnp.floating):
        return logits
    got = type(logits).__name__ if shape is None else f"{logits.dtype} {list(shape)}"
    single = " A single logit z is to be given as the two logits [0, z]." if shape in ((images,), (images, 1)) else ""
    raise ValueError(
        f"Expected apply_fn to give float logits [{images}, {classes}] for {images} images of {classes} classes, got "
        f"{got}.{single}"
    )


def build(
    description: dict[str, Any], *, dtype: str, rngs: nnx.Rngs, convolution: Any = jax.lax.conv_general_dilated
) -> ResNet | ResNet50 | UNet | ViT:
    """The network that a description names, newly initialised."""
    _validate.one_of("model.architecture", description["architecture"], _SETTINGS)
    _validate.one_of("model.dtype", dtype, _DTYPES)
    if description["architecture"] == "unet":
        return UNet(**description["unet"], dtype=_DTYPES[dtype], convolution=convolution, rngs=rngs)
    _validate.classes("a classifier", description["classes"])
    if description["architecture"] == "vit":
        return ViT(
            **description["vit"],
            classes=description["classes"],
            channels=description["image_shape"][-1],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            dtype=_DTYPES[dtype],
            rngs=rngs,
        )
    if description["architecture"] == "resnet50":
        return ResNet50(
            classes=description["classes"],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            dtype=_DTYPES[dtype],
            convolution=convolution,
            rngs=rngs,
        )
    return ResNet(
        depth=description["depth"],
        classes=description["classes"],
        channels=description["image_shape"][-1],
        shortcut=description["shortcut"],
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        dtype=_DTYPES[dtype],
        convolution=convolution,
        rngs=rngs,
    )


def split(model: nnx.Module) -> tuple[Any, Tensors, Tensors]:
    """A network as (graph, trained parameters, running statistics), tensors under their dotted names."""
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, flatten(nnx.to_pure_dict(params)), flatten(nnx.to_pure_dict(stats))


def merge(graph: Any, *tensors: Tensors) -> Any:
    """The inverse of `split`."""
    return nnx.merge(graph, *(nnx.State(_unflatten(flat)) for flat in tensors), copy=True)


def abstract(
    description: dict[str, Any], *, dtype: str, convolution: Any = jax.lax.conv_general_dilated
) -> tuple[Any, Tensors, Tensors]:
    """`split` of the network without computing its values: shapes and types only."""
    return split(nnx.eval_shape(lambda: build(description, dtype=dtype, rngs=nnx.Rngs(0), convolution=convolution)))


def save_weights(path: Path, tensors: Tensors, description: dict[str, Any]) -> None:
    """Write tensors and description to a `.safetensors` file, whole or not at all."""
    flat = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with _files.replacing(path) as partial:
        save_file(flat, partial, metadata={"idrc_jax": json.dumps({"format": _FORMAT, **description})})


def save_half(source: str | Path, path: Path) -> None:
    """Copy a run's weights in float16, half the size, for sharing: another classifier, to be certified anew."""
    tensors, description = read_weights(source)
    save_weights(path, {name: value.astype(np.float16) for name, value in tensors.items()}, description)


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and description in a run's folder or a `.safetensors` file of this project."""
    return _read(_weights_file(path))


def load_classifier(
    path: str | Path, *, dtype: str = "", kernel: str = "auto", expect: dict[str, Any] | None = None
) -> Classifier:
    """The classifier in a run's folder or a `.safetensors` file of this project, made for inference.

    Args:
      path: the file, or a folder holding `weights.safetensors`.
      dtype: compute type ("float32", "bfloat16"); empty takes the one it was trained in.
      kernel: "auto" takes a kernel where this machine can run one, with the plain network as its alternative (`choice`
        takes the faster); "xla" the plain network alone.
      expect: entries of the description (architecture, depth ...) that must agree.

    Raises:
      ValueError: no such file, not a file of this project, another architecture than expected, or tensors
        that are missing, unexpected, of another shape or not finite.
    """
    file = _weights_file(path)
    tensors, description = _read(file)
    if description["architecture"] == "unet":
        raise ValueError(f"Expected a classifier, got a denoiser in {file}: set denoiser.weights to it.")
    for name, value in (expect or {}).items():
        if description.get(name) != value:
            raise ValueError(
                f"Expected a checkpoint with {name} = {value}, got {name} = {description.get(name)} in {file}."
            )
    dtype = dtype or description["dtype"]
    _, params, stats = abstract(description, dtype=dtype)
    check_tensors(tensors, params | stats, file)
    sha256 = hash_tensors(tensors)
    first, *others = (
        Classifier(
            apply_fn=apply_fn,
            params=weights,
            classes=description["classes"],
            image_shape=tuple(description["image_shape"]),
            dtype=dtype,
            kernel=name,
            sha256=sha256,
            description=description,
        )
        for name, apply_fn, weights in _for_inference(tensors, description, dtype=dtype, kernel=kernel)
    )
    return first.with_alternatives(*others)


def load_denoiser(path: str | Path, *, dtype: str = "", kernel: str = "auto") -> Denoiser:
    """The denoiser in a run's folder or a `.safetensors` file of this project.

    Args, errors: as for `load_classifier`.
    """
    file = _weights_file(path)
    tensors, description = _read(file)
    if description["architecture"] != "unet":
        raise ValueError(
            f"Expected a denoiser, got a {description['architecture']} in {file}: set model.weights to it."
        )
    _validate.one_of("kernel", kernel, ("auto", "xla"))
    dtype, diffused = dtype or description["dtype"], description["diffusion"]
    schedule = Schedule(**diffused["schedule"])
    low, high = schedule.sigmas
    _, params, _ = abstract(description, dtype=dtype)
    check_tensors(tensors, params, file)
    weights = {name: jnp.asarray(value, jnp.float32) for name, value in tensors.items()}

    def by(name: str, convolution: Any) -> Denoiser:
        graph, _, _ = abstract(description, dtype=dtype, convolution=convolution)

        def apply_fn(weights: Tensors, x: jax.Array, time: jax.Array) -> jax.Array:
            return merge(graph, weights)(x, time)

        return Denoiser(
            apply_fn=apply_fn,
            params=weights,
            image_shape=tuple(description["image_shape"]),
            schedule=schedule,
            prediction=diffused["prediction"],
            sigmas=(diffused.get("sigma_low", low), diffused.get("sigma_high", high)),
            dtype=dtype,
            kernel=name,
            sha256=hash_tensors(tensors),
            description=description,
        )

    plain = by("xla", jax.lax.conv_general_dilated)
    if kernel == "auto" and dtype == "float32" and jax.default_backend() == "cpu" and convolution_cpu.available():
        return by("convolution_cpu", convolution_cpu.conv_general_dilated).with_alternatives(plain)
    return plain


def _for_inference(
    tensors: Tensors, description: dict[str, Any], *, dtype: str, kernel: str
) -> list[tuple[str, Callable[[Any, jax.Array], jax.Array], Any]]:
    """The kernel's name, apply_fn and params of each implementation of the network, a ResNet folded."""
    _validate.one_of("kernel", kernel, ("auto", "xla"))
    if description["architecture"] == "vit":
        graph, _, _ = abstract(description, dtype=dtype)

        def apply_fn(weights: Tensors, images: jax.Array) -> jax.Array:
            return merge(graph, weights, {})(images)

        return [("xla", apply_fn, folding.cast(tensors, _DTYPES[dtype]))]
    folded = folding.fold(tensors, mean=tuple(description["mean"]), std=tuple(description["std"]))
    if description["architecture"] == "resnet50":
        if kernel == "auto" and dtype == "float32" and jax.default_backend() == "cpu" and network_cpu.available():
            fast, params = folding.resnet50_by_kernel(folded, tuple(description["image_shape"]))
            return [("network_cpu", fast, params), ("xla", folding.apply_resnet50, params["plain"])]
        return [("xla", folding.apply_resnet50, folding.cast(folded, _DTYPES[dtype]))]
    if kernel == "auto" and jax.default_backend() == "cpu" and resnet_cpu.available():
        fast, params = resnet_cpu.classifier(folded, half=dtype == "bfloat16")
        return [("resnet_cpu", fast, params), ("xla", folding.apply, params["plain"])]
    return [("xla", folding.apply, folding.cast(folded, _DTYPES[dtype]))]


def fingerprint(classifier: Classifier) -> str:
    """SHA-256 of the function itself: its jaxpr with all constants, and its params; of the plainest implementation.

    Another release of JAX may write the same function differently; then it counts as another one.
    """
    digest = hashlib.sha256()

    def add(leaf: Any) -> None:
        value = np.ascontiguousarray(leaf)
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())

    def add_constants(closed: Any) -> None:
        for constant in closed.consts:
            add(constant)
        for equation in closed.jaxpr.eqns:
            for value in equation.params.values():
                if hasattr(value, "consts"):
                    add_constants(value)

    classifier = classifier.reference
    images = jax.ShapeDtypeStruct((2, *classifier.image_shape), jnp.float32)
    closed = jax.make_jaxpr(classifier.apply_fn)(classifier.params, images)
    digest.update(_text(closed.jaxpr).encode())
    add_constants(closed)
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier.params):
        digest.update(jax.tree_util.keystr(path).encode())
        add(leaf)
    return digest.hexdigest()


def _text(jaxpr: Any) -> str:
    """A jaxpr as text, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(jaxpr))


def same_or_refuse(path: Path, description: dict[str, Any]) -> None:
    """Write a run's description as JSON at the first call; refuse another one, or a damaged file, ever after."""
    description = json.loads(json.dumps(description))
    if not path.is_file():
        _files.write_json(path, description)
        return
    try:
        kept = _files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} Restore the settings of this run, or use another workdir.") from None
    changed = differences(flatten(kept), flatten(description))
    if changed:
        raise ValueError(f"Expected the settings of the run in {path.parent}, got {changed}: use another workdir.")


class TrainingCheckpoints:
    """Orbax checkpoints of a training state, the newest two kept; a save that was cut off is never seen."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.folder = folder
        with _quiet_orbax():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The step of the newest checkpoint whose save was finished, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all of them, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any) -> None:
        """Store the state of a step, unless it is stored already."""
        if step != self.latest():
            self._manager.save(step, args=ocp.args.StandardSave(state))
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                _files.write_text(self.folder / str(step) / _STATE, _hash_state(state))

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step; `like` is the same tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        with _quiet_orbax():
            try:
                # Not by the manager, which after a damaged checkpoint takes all others for what it took that one for.
                with ocp.StandardCheckpointer() as reader:
                    state = reader.restore(self.folder.absolute() / str(step) / "default", like)
                stored = self.folder / str(step) / _STATE  # of no checkpoint that was made before there was one
                if not stored.is_file() or stored.read_text() == _hash_state(state):
                    return state
                why = "other values than were saved"
            except Exception as error:  # Orbax raises many kinds
                if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
                    raise
                why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"Expected a whole checkpoint in {self.folder / str(step)}, got: {why.rstrip('.')}.")

    def set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, `9` to `9.damaged`, so that it is not taken for one; by one process alone."""
        damaged = self.folder / f"{step}.damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        os.replace(self.folder / str(step), damaged)

    def reload(self) -> None:
        """Look again at what is in the folder."""
        self._manager.reload()

    def close(self) -> None:
        self._manager.close()


def _hash_state(state: Any) -> str:
    """SHA-256 of a tree of arrays, every process having the whole of each."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        value = np.ascontiguousarray(leaf.addressable_data(0))
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without the warnings of Orbax's log, and what Python says of tasks that a failed one left unfinished."""
    log, hook = logging.getLogger("absl"), sys.unraisablehook
    disabled = log.disabled
    log.disabled, sys.unraisablehook = True, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        log.disabled, sys.unraisablehook = disabled, hook


def _weights_file(path: str | Path) -> Path:
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"Expected trained weights at {file}, got no such file. Train first, or name another.")
    return file


def _read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(file, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            ours = "idrc_jax" in metadata  # others' may be of types that NumPy does not have
            tensors = {name: handle.get_tensor(name) for name in handle.keys()} if ours else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        hint = "" if file.suffix == ".safetensors" else " A PyTorch checkpoint is to be imported first: idrc-import."
        raise ValueError(f"Expected a whole .safetensors file, got {file}: {error}.{hint}") from None
    if not ours:
        raise ValueError(f"Expected weights written by idrc_jax, got {file} without its description.")
    try:
        description = json.loads(metadata["idrc_jax"])
        version = description.pop("format")
    except (ValueError, KeyError):
        raise ValueError(f"Expected a readable description in {file}, got {metadata['idrc_jax'][:80]!r}.") from None
    if version != _FORMAT:
        raise ValueError(
            f"Expected weights of format {_FORMAT} in {file}, got {version}: use the release that wrote it."
        )
    wanted = _DESCRIBED | _SETTINGS.get(description.get("architecture", ""), set())
    missing = sorted(wanted - description.keys())
    if missing:
        raise ValueError(f"Expected a whole description in {file}, got none of {', '.join(missing)}.")
    return tensors, description


def check_tensors(tensors: dict[str, np.ndarray], wanted: Tensors, file: str | Path) -> None:
    """ValueError unless a file's tensors have the names and shapes of those wanted and values that can be theirs."""
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(f"Expected the network's tensors in {file}, got missing {missing}, unexpected {unexpected}.")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"Expected {name} of shape {value.shape} in {file}, got {tensors[name].shape}.")
        _validate.weights(name, tensors[name], file)


def hash_tensors(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one level with dotted names."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _unflatten(flat: dict[str, Any]) -> dict:
    """The inverse of `flatten`; digits become integers, as NNX lists have them."""
    tree: dict = {}
    for name, value in flat.items():
        *path, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree
