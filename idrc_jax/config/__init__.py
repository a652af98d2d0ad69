"""Every setting of the commands: its default and help, the files in `configs/`, and the objects that it stands for.

Imports all rooms above.
"""

from idrc_jax.config.builders import (
    AUDIT,
    NETWORK,
    TRAIN,
    audit_settings,
    dataset,
    denoiser_description,
    denoiser_sigmas,
    denoiser_target,
    description,
    loss,
    named,
    noise_scheme,
    pairs,
    recipe,
    selection,
    settings,
    training_scheme,
)
from idrc_jax.config.fields import FIELDS, PATHS, Config, base, get, several
from idrc_jax.config.files import folder, load

__all__ = [
    "AUDIT",
    "FIELDS",
    "NETWORK",
    "PATHS",
    "TRAIN",
    "Config",
    "audit_settings",
    "base",
    "dataset",
    "denoiser_description",
    "denoiser_sigmas",
    "denoiser_target",
    "description",
    "folder",
    "get",
    "load",
    "loss",
    "named",
    "noise_scheme",
    "pairs",
    "recipe",
    "selection",
    "settings",
    "several",
    "training_scheme",
]
