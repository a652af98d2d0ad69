"""What a manifest says of a call, and never compares: versions, the time, how the network was trained, checks."""

import importlib.metadata
import platform
from datetime import UTC, datetime
from typing import Any

import numpy as np

from idrc_jax import __version__, certificates, data
from idrc_jax.certificates import schemes
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core.json_values import Json
from idrc_jax.models import Classifier, common_training
from idrc_jax.report.run_summaries import spacing

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")
_CHECKED = 16  # images at most, near which the bounds of a user's scheme are searched


def versions() -> Json:
    """The versions of what computes, and when the call started."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES} | {"idrc_jax": __version__}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": found, "python": platform.python_version(), "started": started}


def asked(indices: np.ndarray) -> Json:
    """The images that a call of all workers is to certify, as ranges: one of indices that are evenly spaced."""
    listed = indices.tolist()
    evenly = spacing(listed)
    return {"images": [list(evenly)] if evenly else [[index, index + 1, 1] for index in listed]}


def training(classifier: Classifier) -> Json:
    """How the network was trained, where its weights say so; of an ensemble what its members have in common, and each
    member's description; of networks by level what they have in common, and the same of each."""
    if classifier.by_level:
        common = common_training([one.description for one in classifier.by_level])
        return {"training": common, "networks": [training(one) for one in classifier.by_level]}
    return {name: value for name, value in classifier.description.items() if name in ("training", "members")}


def trained_on(classifier: Classifier) -> set[str]:
    """The hashes of the data on which the network, any member of an ensemble or that of any level was trained, as far
    as weights say."""
    described = [network.description for network in (classifier, *classifier.by_level)]
    trainings = [one.get("training", {}) for of in described for one in of.get("members", [of])]
    return {one["data_sha256"] for one in trainings if "data_sha256" in one}


def checked_scheme(scheme: Scheme, images: Any, indices: np.ndarray) -> Json:
    """What a search of the bounds of a user's own scheme found; nothing for a scheme of `schemes.SCHEMES`, or where
    there is no image with a noise level.

    Args:
      scheme: the noise.
      images: uint8 or float32 in [0, 1], [N, H, W, C], or what gives them by indices.
      indices: of the images, near some of which is searched.

    Raises:
      ValueError: no certificate follows from the scheme, or an image whose level leaves its bounds was found.
    """
    if type(scheme) in schemes.SCHEMES.values() or not len(indices):
        return {}
    some = data.to_unit(images[indices[:: -(-len(indices) // _CHECKED)]])
    statistic, levels = schemes.host_scale(scheme, some)
    certificates.radius(scheme, statistic, 0.9, dim=int(np.prod(some.shape[1:])))  # refuses what has none
    if not np.any(levels):
        return {}
    found = schemes.check(scheme, some)
    if not found.ok:
        raise ValueError(str(found))
    return {"scheme_check": {"images": found.images, "points": found.points, "violation": max(found.violation, 0.0)}}
