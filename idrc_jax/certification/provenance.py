"""What a manifest says of a call, and never compares: versions, the time, how the network was trained."""

import importlib.metadata
import platform
from datetime import UTC, datetime

from idrc_jax import __version__
from idrc_jax.core.json_values import Json
from idrc_jax.models import Classifier

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")


def versions() -> Json:
    """The versions of what computes, and when the call started."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES} | {"idrc_jax": __version__}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": found, "python": platform.python_version(), "started": started}


def training(classifier: Classifier) -> Json:
    """How the network was trained, where its weights say so."""
    described = classifier.description
    return {"training": described["training"]} if "training" in described else {}
