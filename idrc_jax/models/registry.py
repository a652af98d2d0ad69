"""From a description to a network and its tensors, and back."""

import types
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from idrc_jax.core import validate
from idrc_jax.models.resnet import Chain, Convolution, ResNet
from idrc_jax.models.resnet50 import ResNet50
from idrc_jax.models.tensors import Description, Shapes, Tensors, flatten, unflatten
from idrc_jax.models.unet import UNet
from idrc_jax.models.vit import Attend, ViT

# What the description of each architecture must hold, beside what all hold.
SETTINGS = {
    "resnet": {"classes", "mean", "std", "depth", "shortcut"},
    "resnet50": {"classes", "mean", "std", "depth", "shortcut"},
    "vit": {"classes", "mean", "std", "vit"},
    "unet": {"unet", "diffusion"},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# For shapes alone: the keys that `nnx.Rngs` counts inside a trace take a time quadratic in the layers.
_ONE_KEY: Any = types.SimpleNamespace(params=lambda: jax.random.key(0))


def build(
    description: Description,
    *,
    dtype: str,
    rngs: nnx.Rngs,
    convolution: Convolution = jax.lax.conv_general_dilated,
    chain: Chain | None = None,
    attend: Attend | None = None,
) -> ResNet | ResNet50 | UNet | ViT:
    """Build the network that a description names, newly initialised.

    Args:
      description: its "architecture", and the settings of that.
      dtype: compute type, "float32" or "bfloat16".
      rngs: the keys of the initial values.
      convolution: what convolves, called like `jax.lax.conv_general_dilated`; a ViT takes its own.
      chain: what computes blocks of a CIFAR ResNet in training; see `ResNet`.
      attend: what attends in a ViT or a U-Net instead of XLA.

    Raises:
      ValueError: no such architecture, type or settings.
    """
    validate.one_of("architecture", description["architecture"], SETTINGS)
    validate.one_of("dtype", dtype, DTYPES)
    if description["architecture"] == "unet":
        return UNet(**description["unet"], dtype=DTYPES[dtype], convolution=convolution, attend=attend, rngs=rngs)
    validate.classes("a classifier", description["classes"])
    if description["architecture"] == "vit":
        return ViT(
            **description["vit"],
            classes=description["classes"],
            channels=description["image_shape"][-1],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            dtype=DTYPES[dtype],
            attend=attend,
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
        chain=chain,
        rngs=rngs,
    )


def abstract(
    description: Description,
    *,
    dtype: str,
    convolution: Convolution = jax.lax.conv_general_dilated,
    chain: Chain | None = None,
    attend: Attend | None = None,
) -> tuple[nnx.GraphDef, Shapes, Shapes]:
    """Split the network without computing its values: shapes and types in place of tensors."""
    options = {"dtype": dtype, "convolution": convolution, "chain": chain, "attend": attend}
    return _split(nnx.eval_shape(lambda: build(description, rngs=_ONE_KEY, **options)))


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Tensors, Tensors]:
    """Split a network into its graph, trained parameters and running statistics, tensors under their dotted names."""
    return _split(model)


def merge(graph: nnx.GraphDef, *tensors: Tensors) -> Any:
    """Put a network together again from what `split` gives."""
    return nnx.merge(graph, *(nnx.State(unflatten(flat)) for flat in tensors), copy=True)


def _split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, flatten(nnx.to_pure_dict(params)), flatten(nnx.to_pure_dict(stats))
