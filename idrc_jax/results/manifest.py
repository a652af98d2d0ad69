"""The manifest beside a result file, and what a resumed run compares with it."""

from pathlib import Path
from typing import Any

from idrc_jax.core import files
from idrc_jax.core.manifests import differences

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    return files.read_manifest(folder / MANIFEST, SCHEMA_VERSION, "a manifest of this project")


def same_guarantee(stored: dict[str, Any], asked: dict[str, Any], where: Path) -> None:
    changed = guarantee_differences(stored, asked)
    if changed:
        raise ValueError(f"Expected the settings of the certificates in {where}, got {changed}: use another workdir.")


def guarantee_differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """`differences` of two guarantees; one that names no generator is older than the naming of JAX's default."""
    return differences(*({"generator": "threefry2x32"} | one for one in (stored, asked)))
