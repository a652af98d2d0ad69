"""From a description to a network and its tensors, and back."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from idrc_jax.core import validate
from idrc_jax.models.resnet import ResNet
from idrc_jax.models.resnet50 import ResNet50
from idrc_jax.models.unet import UNet
from idrc_jax.models.vit import ViT

Tensors = dict[str, Any]
SETTINGS = {
    "resnet": {"classes", "mean", "std", "depth", "shortcut"},
    "resnet50": {"classes", "mean", "std", "depth", "shortcut"},
    "vit": {"classes", "mean", "std", "vit"},
    "unet": {"unet", "diffusion"},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(
    description: dict[str, Any], *, dtype: str, rngs: nnx.Rngs, convolution: Any = jax.lax.conv_general_dilated
) -> ResNet | ResNet50 | UNet | ViT:
    """The network that a description names, newly initialised."""
    validate.one_of("model.architecture", description["architecture"], SETTINGS)
    validate.one_of("model.dtype", dtype, DTYPES)
    if description["architecture"] == "unet":
        return UNet(**description["unet"], dtype=DTYPES[dtype], convolution=convolution, rngs=rngs)
    validate.classes("a classifier", description["classes"])
    if description["architecture"] == "vit":
        return ViT(
            **description["vit"],
            classes=description["classes"],
            channels=description["image_shape"][-1],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            dtype=DTYPES[dtype],
            rngs=rngs,
        )
    if description["architecture"] == "resnet50":
        return ResNet50(
            classes=description["classes"],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            dtype=DTYPES[dtype],
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
        dtype=DTYPES[dtype],
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
