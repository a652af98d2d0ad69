"""The manifest beside a result file."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from idrc_jax.core import files
from idrc_jax.core.json_values import Json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


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


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, None without one; ValueError for another file in its place."""
    found = files.read_manifest(folder / MANIFEST, SCHEMA_VERSION, "a manifest of this project")
    return cast("Manifest | None", found)
