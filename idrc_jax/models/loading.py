"""Loading a network for inference: its weights, checked, and each of the ways in which this machine can run it."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from idrc_jax.core import validate
from idrc_jax.kernels import attention_gpu, convolution_cpu, network_cpu, resnet_cpu
from idrc_jax.models import folding
from idrc_jax.models.classifier import ApplyFn, Classifier
from idrc_jax.models.diffusion import Denoiser, Schedule
from idrc_jax.models.ensembles import ensemble
from idrc_jax.models.registry import DTYPES, abstract, merge
from idrc_jax.models.resnet import Convolution
from idrc_jax.models.tensors import Arrays, Description, PyTree, Tensors, check_tensors, hash_tensors
from idrc_jax.models.vit import Attend
from idrc_jax.models.weights import read_weights, weights_file


def load_classifier(
    path: str | Path | Sequence[str | Path],
    *,
    dtype: str = "",
    kernel: str = "auto",
    expect: Description | None = None,
    consensus: int = 0,
) -> Classifier:
    """Load the classifier in a run's folder or a `.safetensors` file of this project, made for inference.

    Args:
      path: the file, or a folder holding `weights.safetensors`; several make an ensemble (see `models.ensemble`).
      dtype: compute type ("float32", "bfloat16"); empty takes the one it was trained in.
      kernel: "auto" takes a kernel where this machine can run one, with the plain network as its alternative
        (`sampling.implementation_choice` takes the faster); "xla" the plain network alone.
      expect: entries of the description (architecture, depth ...) that must agree.
      consensus: of several; see `models.ensemble`.

    Raises:
      ValueError: no such file, not a file of this project, another architecture than expected, tensors that are
        missing, unexpected, of another shape or not finite, or networks that are no ensemble.
    """
    paths = [path] if isinstance(path, str | Path) else path
    members = [_load_one(one, dtype=dtype, kernel=kernel, expect=expect) for one in paths]
    return ensemble(members, consensus=consensus)


def _load_one(path: str | Path, *, dtype: str, kernel: str, expect: Description | None) -> Classifier:
    file = weights_file(path)
    tensors, description = read_weights(file)
    if description["architecture"] == "unet":
        raise ValueError(f"Expected a classifier, got a denoiser in {file}: set denoiser.weights to it.")
    for name, value in (expect or {}).items():
        if description.get(name) != value:
            raise ValueError(
                f"Expected a checkpoint with {name} = {value}, got {name} = {description.get(name)} in {file}."
            )
    dtype = dtype or description["dtype"]
    _check(tensors, description, dtype, file)
    return classifier_of(tensors, description, dtype=dtype, kernel=kernel, sha256=hash_tensors(tensors))


def _check(tensors: Arrays, description: Description, dtype: str, file: Path) -> None:
    """ValueError unless a file's tensors are those of the network that its description names."""
    settings = (description, description.get("vit", {}), description.get("unet", {}))
    layers = max(one.get(name, 0) for one in settings for name in ("depth", "blocks"))
    if layers > len(tensors):
        raise ValueError(f"Expected a network of {layers} layers in {file}, got {len(tensors)} tensors.")
    try:
        _, params, stats = abstract(description, dtype=dtype)
    except (ArithmeticError, LookupError, TypeError) as error:  # what a network makes of settings that are none
        raise ValueError(f"Expected the settings of a network in {file}, got {description}: {error}.") from None
    check_tensors(tensors, params | stats, file)


def classifier_of(
    tensors: Arrays,
    description: Description,
    *,
    dtype: str,
    kernel: str = "auto",
    sha256: str = "",
    platform: str = "",
) -> Classifier:
    """Make the classifier of a network's tensors, for inference.

    Args:
      tensors: parameters and running statistics, under their dotted names.
      description: of the network (see `models.build`).
      dtype, kernel: as for `load_classifier`.
      sha256: of the tensors, where they are a file's.
      platform: that it is to run on, as JAX calls it; empty for the one that JAX runs on.

    Raises:
      ValueError: a value that is not finite once batch normalisation is folded in.
    """
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
        for name, apply_fn, weights in _for_inference(
            tensors, description, dtype=dtype, kernel=kernel, on_cpu=(platform or jax.default_backend()) == "cpu"
        )
    )
    return first.with_alternatives(*others)


def load_denoiser(path: str | Path, *, dtype: str = "", kernel: str = "auto") -> Denoiser:
    """Load the denoiser in a run's folder or a `.safetensors` file of this project.

    Args, errors: as for `load_classifier`.
    """
    file = weights_file(path)
    tensors, description = read_weights(file)
    if description["architecture"] != "unet":
        raise ValueError(
            f"Expected a denoiser, got a {description['architecture']} in {file}: set model.weights to it."
        )
    dtype = dtype or description["dtype"]
    _check(tensors, description, dtype, file)
    return denoiser_of(tensors, description, dtype=dtype, kernel=kernel)


def denoiser_of(tensors: Arrays, description: Description, *, dtype: str, kernel: str) -> Denoiser:
    """Make a denoiser of what a file of weights holds. Args: as for `load_classifier`."""
    validate.one_of("kernel", kernel, ("auto", "xla"))
    diffused = description["diffusion"]
    schedule = Schedule(**diffused["schedule"])
    low, high = schedule.sigmas
    weights = _rounded(tensors, dtype, exact=("time1", "time2"))

    def by(
        name: str, convolution: Convolution = jax.lax.conv_general_dilated, attend: Attend | None = None
    ) -> Denoiser:
        graph, _, _ = abstract(description, dtype=dtype, convolution=convolution, attend=attend)

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

    plain = by("xla")
    if kernel == "auto" and dtype == "float32" and jax.default_backend() == "cpu" and convolution_cpu.available():
        return by("convolution_cpu", convolution_cpu.conv_general_dilated).with_alternatives(plain)
    settings = description["unet"]
    channels = settings.get("head_channels") or max(settings["widths"])
    if kernel == "auto" and dtype == "bfloat16" and attention_gpu.available(channels):
        return by("attention_gpu", attend=attention_gpu.attend).with_alternatives(plain)
    return plain


def _rounded(tensors: Arrays, dtype: str, exact: tuple[str, ...]) -> Tensors:
    """Put tensors on the device, in `dtype` those of layers that would round them to it at every call.

    Those are all but the norms and the layers named `exact`.
    """

    def stored(name: str) -> DTypeLike:
        layer, _, part = name.rpartition(".")
        rounds = part in ("kernel", "bias") and "norm" not in layer.rpartition(".")[2] and layer not in exact
        return DTYPES[dtype] if rounds else jnp.float32

    return {name: jnp.asarray(value, stored(name)) for name, value in tensors.items()}


def _vit_by(attend: Attend | None, description: Description, dtype: str) -> ApplyFn:
    graph, _, _ = abstract(description, dtype=dtype, attend=attend)

    def apply_fn(weights: Tensors, images: jax.Array) -> jax.Array:
        return merge(graph, weights, {})(images)

    return apply_fn


def _for_inference(
    tensors: Arrays, description: Description, *, dtype: str, kernel: str, on_cpu: bool
) -> list[tuple[str, ApplyFn, PyTree]]:
    """List the kernel's name, apply_fn and params of each implementation of the network, a ResNet folded."""
    validate.one_of("kernel", kernel, ("auto", "xla"))
    if description["architecture"] == "vit":
        weights = _rounded(tensors, dtype, exact=("head",))
        plain = ("xla", _vit_by(None, description, dtype), weights)
        channels = description["vit"]["width"] // description["vit"]["heads"]
        if kernel == "auto" and dtype == "bfloat16" and not on_cpu and attention_gpu.available(channels):
            return [("attention_gpu", _vit_by(attention_gpu.attend, description, dtype), weights), plain]
        return [plain]
    folded = folding.fold(tensors, mean=tuple(description["mean"]), std=tuple(description["std"]))
    of_50 = description["architecture"] == "resnet50"
    if not on_cpu:
        apply_there = folding.apply_resnet50_on_accelerator if of_50 else folding.apply_on_accelerator
        return [("xla", apply_there, folding.cast(folded, DTYPES[dtype], biases=DTYPES[dtype]))]
    if of_50:
        if kernel == "auto" and dtype == "float32" and network_cpu.available():
            fast, params = folding.resnet50_by_kernel(folded, tuple(description["image_shape"]))
            return [("network_cpu", fast, params), ("xla", folding.apply_resnet50, params["plain"])]
        return [("xla", folding.apply_resnet50, folding.cast(folded, DTYPES[dtype]))]
    if kernel == "auto" and resnet_cpu.available():
        fast, params = folding.resnet_by_kernel(folded, half=dtype == "bfloat16")
        return [("resnet_cpu", fast, params), ("xla", folding.apply, params["plain"])]
    return [("xla", folding.apply, folding.cast(folded, DTYPES[dtype]))]
