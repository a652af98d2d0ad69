"""The manifest beside a result file."""

import hashlib
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from idrc_jax.certificates import user_schemes
from idrc_jax.core import files
from idrc_jax.core.json_values import Json, require

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_MOST_IMAGES = 2**22


# What a manifest must hold, and of what kind the rest is, where it is there. Schemes and plans check their own.
_GUARANTEE = {
    "scheme": str, "sigma": float, "plan": str, "n": int, "n0": int, "alpha": float, "certificate": str, "classes": int,
    "dim": int, "data": str, "exact?": bool, "dtype?": str, "weights_sha256?": str, "data_sha256?": str,
    "paired?": {"n": int, "share": float},
}  # fmt: skip
# Names that fields of a scheme of the user's own may have, of any kind, but for what its plan has written there.
_MORE = {
    "ref?": float, "k?": int, "subsampled_from?": int, "consensus?": int, "factory?": str,
    "radii?": [float], "levels?": [float], "edges?": [float], "thresholds?": [float], "shares?": [float],
    "precision?": float, "published?": bool, "correct_only?": bool, "members?": [dict],
    "by_level?": [{"weights_sha256?": str, "denoiser?": {"sigma": float}}],
    "denoiser_sigma?": float, "denoiser_steps?": int,
}  # fmt: skip
_OF_PLANS = {"to_radius": {"radii": [float]}, "to_precision": {"precision": float}}
TRAINING = {"scheme?": {"name": str, "sigma": float}, "recipe?": {"sigma_low?": float}, "data?": str}
_SESSION = {
    "training?": TRAINING, "networks?": [{"training?": TRAINING}],
    "weights?": str, "by_level?": str, "denoiser?": str, "router?": str, "data_size?": int,
    "images?": [(int, int, int)],
}  # fmt: skip
_NETWORKS = {
    "weights": "model.weights",
    "by_level": "model.by_level",
    "denoiser": "denoiser.weights",
    "router": "router.weights",
}
_WHOLE = {
    "guarantee": _GUARANTEE,
    "sessions": [_SESSION],
    "clean?": {"right": int, "images": int, "indices_sha256?": str},
}


class Manifest(TypedDict):
    """What stands in `manifest.json`.

    Attributes:
      guarantee: all that the certificates depend on, compared whenever a run goes on.
      sessions: provenance of each call, never compared.
      clean: on how many `images` without noise how many times the base classifier was `right`, and which images these
        are, by `indices_sha256`.
    """

    schema_version: int
    guarantee: Json
    sessions: list[Json]
    clean: NotRequired[Json]


def indices_sha256(indices: Iterable[int]) -> str:
    """What names a set of images, in any order: the SHA-256 of their indices."""
    return hashlib.sha256(repr(sorted(indices)).encode()).hexdigest()


def asked(manifest: Manifest, where: Path) -> set[int]:
    """The images that the calls which added rows were to certify, as far as they said so; ValueError for ranges that
    no data set has."""
    spans = {tuple(span) for one in manifest["sessions"] for span in one.get("images", [])}
    for start, stop, skip in spans:
        if not (0 <= start < stop <= _MOST_IMAGES and skip > 0):
            raise ValueError(f"Expected ranges of images in {MANIFEST} of {where}, got {start}, {stop}, {skip}.")
    return {index for span in spans for index in range(*span)}


def networks(manifest: Manifest) -> dict[str, str]:
    """The settings that name a run's networks, as the last call that named files said; none that no call named."""
    last = {name: said for one in manifest["sessions"] for name in _NETWORKS if (said := one.get(name))}
    return {_NETWORKS[name]: said for name, said in last.items()}


def level_networks(made: Json) -> int:
    """How many networks a guarantee has by level; 0 where one and the same votes under all of them."""
    found = made.get("by_level", [])
    return len(found) if len({one.get("weights_sha256") for one in found}) > 1 else 0


def told_by_level(made: Json) -> list[float | None]:
    """What the denoiser in front of each of a guarantee's networks by level is told; None where there is none."""
    return [one.get("denoiser", {}).get("sigma") for one in made.get("by_level", [])]


def flags(settings: Mapping[str, object]) -> str:
    """Settings as flags of a command line, quoted for a shell; without those that are an empty tuple."""
    return shlex.join(f"--config.{path}={_text(value)}" for path, value in settings.items() if value != ())


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(repr(one) for one in value)},)"
    return repr(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def seed_of(made: Json, where: Path) -> int:
    """The seed of results at `where`, by their guarantee; ValueError for none in 0 .. 2**64 - 1."""
    seed = made.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(f"Expected guarantee.seed in 0 .. 2**64 - 1 in {MANIFEST} of {where}, got {seed!r:.60}.")
    return seed


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, None without one; ValueError for another file in its place, or a damaged one."""
    found = files.read_manifest(folder / MANIFEST, SCHEMA_VERSION, "a manifest of this project")
    if found is not None:
        require(found, _WHOLE, "", folder / MANIFEST)
        made = found["guarantee"]
        more = _OF_PLANS.get(made["plan"], {}) if user_schemes.is_own(made) else _MORE
        require(made, more, "guarantee", folder / MANIFEST)
        if "seed" in made and not user_schemes.is_own(made):
            seed_of(made, folder)
    return cast("Manifest | None", found)
