"""The manifest beside a result file, and what a resumed run compares with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

from idrc_jax.core import files
from idrc_jax.core.manifests import Json, differences

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class Manifest(TypedDict):
    """What stands in `manifest.json`.

    Attributes:
      guarantee: all that the certificates depend on, compared whenever a run goes on.
      sessions: provenance of each call, never compared.
    """

    schema_version: int
    guarantee: Json
    sessions: list[Json]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, None without one; ValueError for another file in its place."""
    found = files.read_manifest(folder / MANIFEST, SCHEMA_VERSION, "a manifest of this project")
    return cast("Manifest | None", found)


def same_guarantee(stored: Mapping[str, object], asked: Mapping[str, object], where: Path) -> None:
    """ValueError, which shows every difference, unless the guarantees are the same."""
    changed = guarantee_differences(stored, asked)
    if changed:
        raise ValueError(f"Expected the settings of the certificates in {where}, got {changed}: use another workdir.")


def guarantee_differences(stored: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """`differences` of two guarantees; one that names no generator is older than the naming of JAX's default."""
    return differences(*({"generator": "threefry2x32", **one} for one in (stored, asked)))
