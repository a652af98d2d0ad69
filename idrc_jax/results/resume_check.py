"""What a resumed run compares: its guarantee, with that of the rows that are there."""

from collections.abc import Mapping
from pathlib import Path

from idrc_jax.certificates.schemes import SCHEMES
from idrc_jax.core.json_values import differences


def same_guarantee(
    stored: Mapping[str, object],
    asked: Mapping[str, object],
    where: Path,
    *,
    what: str = "certificates",
    advice: str = "use another --workdir, or give these as they were",
) -> None:
    """ValueError, which shows every difference, unless the guarantees are the same.

    Args:
      stored, asked: the guarantees.
      where: the file or folder of the stored one.
      what: is there.
      advice: what to do where they differ.
    """
    changed = guarantee_differences(stored, asked)
    if changed:
        raise ValueError(f"Expected the settings of the {what} in {where}; {advice}: {changed}.")


def guarantee_differences(stored: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """`differences` of two guarantees; one that names no generator, or no code of a user's scheme, is older than that:
    its generator is JAX's default, and its code any, unless its scheme has the name of one of this package. One that
    names no norm has l2 radii."""
    code = {name: one[name] for name in ("scheme_class", "scheme_sha256") for one in (stored, asked) if name in one}
    if stored.get("scheme") in SCHEMES:
        code = {}
    older = {"generator": "threefry2x32", "norm": "l2"}
    return differences(*(older | (code if "scheme_class" not in one else {}) | {**one} for one in (stored, asked)))
