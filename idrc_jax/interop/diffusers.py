"""Denoisers in the folder layout of Hugging Face's diffusers: `UNet2DModel` and the noise schedule of its scheduler.

Every tensor is checked, and a setting that our U-Net does not have is refused, never ignored.
"""

import json
import re
from pathlib import Path
from typing import Any

from idrc_jax import models
from idrc_jax.core import files
from idrc_jax.interop import network_checks, torch_files
from idrc_jax.models import Arrays, Description

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_CLASS = "UNet2DModel"
# What a config that says nothing means, and what ours can be; dropout plays no part, as nothing here is trained on.
_DEFAULTS = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "num_train_timesteps": None,
}  # fmt: skip
_CHOICES = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,), "downsample_padding": (0, 1), "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"), "act_fn": ("silu", "swish"), "flip_sin_to_cos": (False, True),
    "resnet_time_scale_shift": ("default", "scale_shift"), "add_attention": (False, True),
    "class_embed_type": (None,), "num_class_embeds": (None,),
}  # fmt: skip
_NUMBERS = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
# Of each block: whether it has attention, and how it resamples (None: as downsample_type or upsample_type says).
_BLOCKS = {
    "down": {
        "DownBlock2D": (False, "conv"),
        "AttnDownBlock2D": (True, None),
        "ResnetDownsampleBlock2D": (False, "resnet"),
    },
    "up": {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "resnet")},
}
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}

_PLACES = (
    (r"(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2.resnets."),
    (r"(down|up)\.(\d+)\.attentions\.", r"\1_blocks.\2.attentions."),
    (r"(down|up)\.(\d+)\.resample\.", r"\1_blocks.\2.\1samplers.0."),
    (r"middle\.", "mid_block.resnets."),
    (r"middle_attention\.", "mid_block.attentions.0."),
)
_MODULES = {
    "stem": "conv_in", "time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2",
    "head_norm": "conv_norm_out", "head": "conv_out", "norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj",
    "norm2": "norm2", "conv2": "conv2", "shortcut": "conv_shortcut", "conv": "conv", "norm": "group_norm",
    "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0",
}  # fmt: skip
_OLD = {"query": "query", "key": "key", "value": "value", "out": "proj_attn"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def import_unet(folder: str | Path, *, size: int = 0) -> tuple[Arrays, Description]:
    """Read a `UNet2DModel` as the tensors and the description that `models.save_weights` takes.

    Args:
      folder: with config.json and weights, in it or in unet/, and scheduler_config.json, in it or in scheduler/.
      size: height and width of the images; 0 takes those of the config.

    Returns:
      (tensors, description); the description's "unet" holds every setting of `UNet`, its "diffusion" the settings of
      `diffusion.Schedule` and what is predicted. Twice the channels in the output hold a learned variance.

    Raises:
      ValueError: a file is missing or damaged, a setting is not one of ours, or tensors are missing, unexpected, of
        another shape, not floats or not finite.
    """
    folder = Path(folder)
    config_file = _one_of(folder, ("config.json", "unet/config.json"))
    weights = _one_of(config_file.parent, _WEIGHTS)
    settings, shape = _unet(files.read_json(config_file), size, config_file)
    channels, out = settings["channels"], settings["channels_out"]
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"Expected {channels} or {2 * channels} (with a learned variance) out_channels in {config_file}, got {out}."
        )
    description = {
        "architecture": "unet",
        "image_shape": [*shape, settings["channels"]],
        "unet": settings,
        "diffusion": _diffusion(_one_of(folder, ("scheduler_config.json", "scheduler/scheduler_config.json"))),
        "dtype": "float32",
        "imported": network_checks.origin(weights),
    }
    _, params, _ = models.abstract(description, dtype="float32")
    shapes = {name: value.shape for name, value in params.items()}
    tensors = torch_files.read(weights).tensors
    old = any(".proj_attn." in name for name in tensors)
    names = {name: their_name(name, old=old) for name in shapes}
    return network_checks.tensors(tensors, names, shapes, weights), description


def _one_of(folder: Path, names: tuple[str, str]) -> Path:
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(f"Expected {names[0]} or {names[1]} in {folder}, as diffusers writes them, got neither.")
    return found[0]


def their_name(name: str, *, old: bool = False) -> str:
    """Name in diffusers' files one of our tensors; the first files name attention otherwise."""
    *place, module, leaf = name.split(".")
    prefix = "".join(f"{part}." for part in place)
    for ours, theirs in _PLACES:
        prefix = re.sub(f"^{ours}", theirs, prefix)
    modules = _MODULES | _OLD if old else _MODULES
    return f"{prefix}{modules[module]}.{_LEAVES[leaf]}"


def _unet(said: dict[str, Any], size: int, path: Path) -> tuple[dict[str, Any], tuple[int, int]]:
    """The settings of `UNet`, and height and width."""
    if said.get("_class_name") != _CLASS:
        raise ValueError(f"Expected a {_CLASS} in {path}, got {said.get('_class_name')}.")
    unknown = sorted(name for name in said.keys() - _DEFAULTS.keys() if not name.startswith("_"))
    if unknown:
        raise ValueError(f"Expected the settings of {_CLASS} in {path}, got also {', '.join(unknown)}.")
    config = _DEFAULTS | said
    for name, choices in _CHOICES.items():
        _choice(config, name, choices, path)
    for name in _NUMBERS:
        if not _is_count(config[name]):
            raise ValueError(f"Expected {name} >= 1 in {path}, got {config[name]!r}.")
    for name in ("freq_shift", "norm_eps"):
        if not isinstance(config[name], int | float):
            raise ValueError(f"Expected a number as {name} in {path}, got {config[name]!r}.")
    widths, groups, heads = (config[name] for name in ("block_out_channels", "norm_num_groups", "attention_head_dim"))
    if not isinstance(widths, list) or not widths or not all(map(_is_count, widths)):
        raise ValueError(f"Expected a list of numbers >= 1 as block_out_channels in {path}, got {widths!r}.")
    if heads is not None and not _is_count(heads):
        raise ValueError(f"Expected attention_head_dim >= 1 or null in {path}, got {heads!r}.")
    _choice(config, "attn_norm_num_groups", (None, groups), path)
    _choice(config, "time_embedding_dim", (None, 4 * widths[0]), path)
    scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
    attention, resample = _levels(config, len(widths), path)
    settings = {
        "channels": config["in_channels"],
        "channels_out": config["out_channels"],
        "widths": widths,
        "blocks": config["layers_per_block"],
        "attention": attention,
        "middle_attention": config["add_attention"],
        "middle_norm": not scale_shift or config["attn_norm_num_groups"] is not None,
        "head_channels": heads or 0,
        "groups": groups,
        "epsilon": config["norm_eps"],
        "scale_shift": scale_shift,
        "resample": resample,
        "downsample_padding": config["downsample_padding"],
        "flip_sin_to_cos": config["flip_sin_to_cos"],
        "frequency_shift": config["freq_shift"],
    }
    sides = size or config["sample_size"]
    sides = sides if isinstance(sides, list) else [sides, sides]
    if len(sides) != 2 or not all(map(_is_count, sides)):
        raise ValueError(f"Expected sample_size in {path}, got {config['sample_size']!r}: give --size.")
    multiple = 2 ** (len(widths) - 1)
    if any(side % multiple for side in sides):
        raise ValueError(f"Expected images with sides in multiples of {multiple} for {path}, got {sides}: give --size.")
    return settings, (sides[0], sides[1])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _choice(config: dict[str, Any], name: str, choices: tuple[object, ...], path: Path) -> None:
    if config[name] not in choices:
        asked = " or ".join(json.dumps(one) for one in dict.fromkeys(choices))
        raise ValueError(f"Expected {name} {asked} in {path}, got {json.dumps(config[name])}: no other is supported.")


def _levels(config: dict[str, Any], count: int, path: Path) -> tuple[list[bool], str]:
    """Attention of each resolution from the full one down, and how all of them resample."""
    attention, ways = {}, set()
    for way, known in _BLOCKS.items():
        name = f"{way}_block_types"
        types = config[name]
        if not isinstance(types, list) or len(types) != count or not all(one in known for one in types):
            raise ValueError(f"Expected {count} of {', '.join(known)} as {name} in {path}, got {types!r}.")
        attention[way] = [known[one][0] for one in types]
        ways |= {known[one][1] or config[f"{way}sample_type"] for one in types[:-1]}
    if attention["down"] != attention["up"][::-1]:
        raise ValueError(
            f"Expected attention at the same resolutions on the way down and up in {path}, got {attention}."
        )
    if len(ways) > 1:
        raise ValueError(f"Expected one way to resample in {path}, got {' and '.join(sorted(ways))}.")
    return attention["down"], ways.pop() if ways else "conv"


def _diffusion(path: Path) -> dict[str, Any]:
    """The noise schedule that the network was trained with."""
    config = {
        "_class_name": None, "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
        "beta_schedule": "linear", "trained_betas": None, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
    } | files.read_json(path)  # fmt: skip
    _choice(config, "_class_name", _SCHEDULERS, path)
    _choice(config, "beta_schedule", tuple(_SCHEDULES), path)
    _choice(config, "prediction_type", tuple(_PREDICTIONS), path)
    _choice(config, "trained_betas", (None,), path)
    _choice(config, "rescale_betas_zero_snr", (False,), path)
    steps, start, end = (config[name] for name in ("num_train_timesteps", "beta_start", "beta_end"))
    if not _is_count(steps) or steps < 2:
        raise ValueError(f"Expected num_train_timesteps >= 2 in {path}, got {steps!r}.")
    if not (isinstance(start, int | float) and isinstance(end, int | float) and 0 < start <= end < 1):
        raise ValueError(f"Expected 0 < beta_start <= beta_end < 1 in {path}, got {start!r} and {end!r}.")
    schedule = {"kind": _SCHEDULES[config["beta_schedule"]], "steps": steps, "beta_start": start, "beta_end": end}
    return {"schedule": schedule, "prediction": _PREDICTIONS[config["prediction_type"]]}
