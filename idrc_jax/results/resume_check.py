"""What a resumed run compares: its guarantee, with that of the rows that are there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idrc_jax.certificates.schemes import SCHEMES
from idrc_jax.core.json_values import Json, differences


def same_guarantee(
    stored: Mapping[str, object],
    asked: Mapping[str, object],
    where: Path,
    *,
    networks: str = "",
    what: str = "certificates",
    advice: str = "use another --workdir, or give these as they were",
) -> None:
    """ValueError, which shows every difference, unless the guarantees are the same.

    Args:
      stored, asked: the guarantees.
      where: the file or folder of the stored one.
      networks: see `guarantee_differences`.
      what: is there.
      advice: what to do where they differ.
    """
    changed = guarantee_differences(stored, asked, networks)
    if changed:
        raise ValueError(f"Expected the settings of the {what} in {where}; {advice}: {changed}.")


def guarantee_differences(stored: Mapping[str, object], asked: Mapping[str, object], networks: str = "") -> str:
    """`differences` of two guarantees, those of several networks network by network; one that names no generator, or no
    code of a user's scheme, is older than that: its generator is JAX's default, and its code any, unless its scheme has
    the name of one of this package. One that names no norm has l2 radii.

    Args:
      stored, asked: the guarantees.
      networks: flags that named the files of the stored one's networks, told where networks differ; empty: unknown.
    """
    code = {name: one[name] for name in ("scheme_class", "scheme_sha256") for one in (stored, asked) if name in one}
    if stored.get("scheme") in SCHEMES:
        code = {}
    apart = _network_by_network(stored, asked)
    older = {"generator": "threefry2x32", "norm": "l2"}
    changed = differences(*(older | (code if "scheme_class" not in one else {}) | one for one in apart))
    others = any(stored.get(name) != asked.get(name) for name in ("weights_sha256", "by_level", "router"))
    return f"{changed}; the run was made with {networks}" if networks and others else changed


def _network_by_network(stored: Mapping[str, object], asked: Mapping[str, object]) -> list[dict[str, object]]:
    """Both guarantees, with an entry for each of what they say of every network by level, member of an ensemble or
    router; of networks that are not as many, how many. The classifier's own weights are not told again where they are
    those of the last level's network."""
    both = [dict(stored), dict(asked)]
    for name, called in (("by_level", "network {}"), ("members", "member {}"), ("router", "router")):
        listed = [_networks(one.get(name)) for one in both]
        pairs = list(zip(both, listed, strict=True))
        if len(listed[0]) != len(listed[1]):
            for one, networks in pairs:
                one |= {name: f"{len(networks)} networks"} if networks and name != "router" else {}
            continue
        own = [networks[-1].get("weights_sha256") == one.get("weights_sha256") for one, networks in pairs if networks]
        for one, networks in pairs:
            if networks:
                del one[name]
            if name == "by_level" and own == [True, True]:
                one.pop("weights_sha256", None)
            for number, network in enumerate(networks, 1):
                one |= {f"{called.format(number)}'s {key}": value for key, value in network.items()}
    return both


def _networks(described: Any) -> list[Json]:
    """The networks that an entry of a guarantee describes, one or a list of some; none where it is something else."""
    listed = described if isinstance(described, list) else [described]
    return listed if all(isinstance(one, dict) for one in listed) else []
