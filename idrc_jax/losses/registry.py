"""The losses by their names, with the settings that were published for a noise level."""

import math
from dataclasses import fields
from typing import Any

from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.losses.catrs import CatRs
from idrc_jax.losses.consistency import Consistency
from idrc_jax.losses.gaussian import Gaussian
from idrc_jax.losses.hard_samples import HardSamples
from idrc_jax.losses.loss import Loss
from idrc_jax.losses.macer import Macer
from idrc_jax.losses.router import Router
from idrc_jax.losses.smoothadv import SmoothAdv
from idrc_jax.losses.smoothmix import SmoothMix
from idrc_jax.losses.stability import Stability

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (Gaussian, Stability, Consistency, SmoothAdv, SmoothMix, Macer, CatRs, HardSamples, Router)
}


def make(name: str, sigma: float, **settings: Any) -> Loss:
    """Make the loss called `name`; what is not given is as published for the level nearest to `sigma`.

    Raises SettingError for an unknown name (naming the near ones), a setting that the loss does not have, or a value
    that it cannot have.
    """
    kind = LOSSES[validate.one_of("name", name, LOSSES)]
    known = [field.name for field in fields(kind)]
    for setting, value in settings.items():
        if setting not in known:
            raise SettingError(
                f"Expected no {setting} for the loss {name}, whose settings are {', '.join(known)}, got {value}.",
                setting,
            )
    nearest = min(kind.published, key=lambda level: abs(math.log(level / sigma)), default=sigma)
    return kind(**kind.published.get(nearest, {}) | settings)
