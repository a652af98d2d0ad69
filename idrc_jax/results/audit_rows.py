"""What an audit found, on disk and as a table.

`audit.tsv` has one row for each image, radius claimed for it and distance tried; `audit.json` the settings (compared
when an audit goes on), one entry a call and, as far as the audit has come, its tables; `audit.npz` adversarial images.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from idrc_jax import certificates
from idrc_jax.core import append_only, arrays, files
from idrc_jax.core.json_values import Json, require
from idrc_jax.results.metrics import bound, radius_text
from idrc_jax.results.result_rows import parse_votes, votes_text

SCHEMA_VERSION = 1
NAME = "audit.tsv"
MANIFEST = "audit.json"
IMAGES = "audit.npz"
IMAGE_ARRAYS = ("idx", "predict", "rival", "distance", "image", "original")
TABLE = "table"
CLAIMS = ("radius", "radius_published")


@dataclass(frozen=True)
class Finding:
    """What became of one image at one distance.

    Attributes:
      idx, label, predict: of the certified row.
      kind: which radius of the row is tried, "radius" or "radius_published"; or "table", a fixed radius at which the
        robust accuracy is measured.
      radius, fraction: x' was searched for nearer than fraction * radius.
      distance: between x and the x' of this row in the norm of the radii, < fraction * radius.
      attack: that found x'.
      broken: 1 if it is claimed that `rival` is likelier than `predict` at x', else 0.
      votes: fresh votes at x' by class, -1 for those whose logits were not finite; empty if x' was not worth any.
      p_value: of these votes, 1 without.
      rival: the class that was expected to win at x', -1 for none.
      sigma_x: the noise level at x'.
    """

    idx: int
    label: int
    predict: int
    kind: str
    radius: float
    fraction: float
    distance: float
    attack: str
    broken: int
    votes: dict[int, int]
    p_value: float
    rival: int
    sigma_x: float


COLUMNS = tuple(field.name for field in dataclasses.fields(Finding))
# What a manifest must hold, and of what kind the rest is, where it is there.
_WHOLE = {
    "settings": {"level": float, "votes": int, "fractions?": [float]},
    "certificates": {"scheme": str, "sigma": float, "data": str, "certificate": str},
    "attempts": int,
    "threshold": float,
    "finished": bool,
    "sessions": [dict],
    "images?": {"seen": int, "certified": int, "abstained": int, "right?": int},
    "claims?": [{"kind": str, "images": int, "broken": int, "broken_within": dict}],
    "attacks?": dict,
    "robust_accuracy?": [{"radius": float, "certified": float, "empirical": float}],
}
_PARSE: dict[object, type] = {int: int, float: float, str: str}


@dataclass(frozen=True)
class Audit:
    """An audit on disk: its rows in file order, and its manifest."""

    rows: tuple[Finding, ...]
    manifest: Json
    path: Path


def read_audit(folder: str | Path) -> Audit:
    """Read the audit in a folder.

    Raises:
      ValueError: no audit there, another header or a malformed line. A last line without its newline was cut off by a
        crash and is left out.
    """
    path, manifest = Path(folder) / NAME, read_manifest(Path(folder))
    if not path.is_file() or manifest is None:
        raise ValueError(f"Expected an audit ({NAME} and {MANIFEST}) in {folder}, got none: run idrc-audit.")
    return Audit(read_rows(path), manifest, path)


def read_manifest(folder: Path) -> Json | None:
    """The manifest of the audit in a folder, None without one; ValueError for another file in its place."""
    found = files.read_manifest(folder / MANIFEST, SCHEMA_VERSION, "the manifest of an audit")
    if found is not None:
        require(found, _WHOLE, "", folder / MANIFEST)
    return found


def read_rows(path: Path) -> tuple[Finding, ...]:
    """The whole lines of `audit.tsv` as rows; ValueError for another header or a malformed line."""
    try:
        header, *body = files.read_text(path).split("\n")[:-1] or [""]
    except UnicodeDecodeError:
        raise ValueError(f"Expected a text file of findings, got {path}.") from None
    if tuple(header.split("\t")) != COLUMNS:
        raise ValueError(f"Expected a header {' '.join(COLUMNS)} in {path}, got {header[:80]!r}.")
    rows = []
    for number, line in enumerate(body, start=2):
        try:
            rows.append(_parse(line))
        except ValueError as error:
            raise ValueError(f"Expected {len(COLUMNS)} columns in {path}, line {number}: {error}.") from None
    seen = Counter((row.idx, row.kind, row.radius, row.fraction) for row in rows)
    for (idx, kind, radius, fraction), count in seen.items():
        if count > 1:
            raise ValueError(f"Expected {kind} {radius} * {fraction} of image {idx} once in {path}, got {count} lines.")
    return tuple(rows)


def read_images(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of `audit.npz`, named as in `IMAGE_ARRAYS`; none without the file, ValueError for a damaged one."""
    path = folder / IMAGES
    if not path.is_file():
        return {}
    try:
        found = arrays.read_npz(path, IMAGE_ARRAYS)
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected the images of an audit in {path}, got {error}.") from None
    *numbers, image, original = (found.get(name, np.zeros(())) for name in IMAGE_ARRAYS)
    if not (
        all(one.ndim == 1 and len(one) == len(numbers[0]) and one.dtype.kind in "if" for one in numbers)
        and image.dtype.kind == original.dtype.kind == "f"
        and image.shape == original.shape
        and (image.ndim, image.shape[:1]) == (4, numbers[0].shape)
    ):
        told = ", ".join(f"{name} {one.dtype} {list(one.shape)}" for name, one in found.items())
        raise ValueError(f"Expected numbers [N] and float images [N, H, W, C] in {path}, got {told or 'none'}.")
    return found


def line_of(row: Finding) -> str:
    """A row as it is in the file."""
    values = {**vars(row), "votes": votes_text(row.votes)}
    return append_only.line([repr(value) if isinstance(value, float) else str(value) for value in values.values()])


def _parse(line: str) -> Finding:
    texts = line.split("\t")
    if len(texts) != len(COLUMNS):
        raise ValueError(f"got {len(texts)} columns")
    values: dict[str, Any] = {}
    for field, text in zip(dataclasses.fields(Finding), texts, strict=True):
        values[field.name] = parse_votes(text) if field.name == "votes" else _PARSE[field.type](text)
    row = Finding(**values)
    integers = [value for value in vars(row).values() if isinstance(value, int)]
    if not all(-1 <= value < 2**63 for value in integers) or row.broken not in (0, 1):
        raise ValueError("got an integer that is not of 64 bits and >= -1, or broken that is neither 0 nor 1")
    for name in ("radius", "fraction", "distance", "p_value", "sigma_x"):
        if not 0 <= getattr(row, name) < math.inf:
            raise ValueError(f"got {name} = {getattr(row, name)}, which is not finite and >= 0")
    if row.p_value > 1 or row.distance > row.radius * row.fraction * (1 + 1e-6):
        raise ValueError(f"got p_value = {row.p_value}, distance {row.distance} of {row.radius} * {row.fraction}")
    return row


class Claim(TypedDict):
    """How a kind of radius fared.

    Attributes:
      kind: which radius of a row.
      images: tried.
      broken: images with a break inside the radius.
      smallest_fraction: of the radius at which there was a break; None: nowhere.
      broken_within: at each fraction tried, images with a break nearer than it.
    """

    kind: str
    images: int
    broken: int
    smallest_fraction: float | None
    broken_within: dict[str, int]


def claims(rows: Sequence[Finding]) -> list[Claim]:
    """How each kind of radius fared, valid ones first."""
    told: list[Claim] = []
    for kind in CLAIMS:
        own = [row for row in rows if row.kind == kind]
        broken = [row for row in own if row.broken]
        told.append(
            {
                "kind": kind,
                "images": len({row.idx for row in own}),
                "broken": len({row.idx for row in broken if row.distance < row.radius}),
                "smallest_fraction": min((row.distance / row.radius for row in broken), default=None),
                "broken_within": {
                    f"{fraction:g}": sum(row.broken for row in own if row.fraction == fraction)
                    for fraction in sorted({row.fraction for row in own})
                },
            }
        )
    return told


def distinct(told: Sequence[Claim], guarantee: Mapping[str, object]) -> list[Claim]:
    """`claims` to be shown: one where the run's published radii are, by definition and in the file, the valid ones, or
    where it has none, as under a scheme that is not in the paper."""
    valid, *others = ({name: value for name, value in claim.items() if name != "kind"} for claim in told)
    same = certificates.published_is_valid(guarantee) and all(other == valid for other in others)
    if same:
        return [{**told[0], "kind": "valid = published"}]
    return [told[0], *(one for one in told[1:] if one["images"])]


def robust_accuracy(rows: Sequence[Finding], radius: float, images: int, abstained: int) -> float:
    """The share of `images` that may be classified rightly at every image nearer than a table's radius: those predicted
    rightly without a break found there, and those of which too few votes were drawn to say."""
    unbroken = sum(not row.broken for row in rows if row.kind == TABLE and row.radius == radius)
    return (unbroken + abstained) / images


def attacks(rows: Sequence[Finding]) -> dict[str, int]:
    """How many images' nearest break each attack found."""
    return dict(Counter(attack for _, attack in sorted({(row.idx, row.attack) for row in rows if row.broken})))


def table(manifest: Json) -> str:
    """A text table of an audit's manifest."""
    made, asked, seen = manifest["certificates"], manifest["settings"], manifest["images"]
    votes = "votes of all offsets" if made["scheme"] == "splitting" else f"{asked['votes']:,} fresh votes"
    lines = [
        f"{made['scheme']}, sigma {made['sigma']:g}, radii in {made.get('norm', 'l2')}, {seen['seen']} images of "
        f"{made['data']}: {seen['certified']} "
        f"certified, {seen['abstained']} abstained" + (f", {seen['right']} right" if "right" in seen else ""),
        f"{manifest['attempts']:,} attempts at most, {votes} each, level {asked['level']:g} for all together: a claim "
        f"needs p <= {manifest['threshold']:.2g}",
    ]
    if not seen["certified"]:
        return "\n".join([*lines, "Nothing is certified, so there is nothing to break: every image abstained."])
    fractions = [f"{fraction:g}" for fraction in sorted(asked["fractions"])]
    heads = " ".join(f"{fraction:>5}" for fraction in fractions)
    lines.append(f"{'claimed':<17}  {'images':>6}  {'broken':>6}  {'smallest':>8}  broken nearer than fraction {heads}")
    for one in distinct(manifest["claims"], made):
        smallest = "-" if one["smallest_fraction"] is None else f"{_down(one['smallest_fraction']):.3f}"
        counts = " ".join(f"{one['broken_within'].get(fraction, '-'):>5}" for fraction in fractions)
        lines.append(f"{one['kind']:<17}  {one['images']:>6}  {one['broken']:>6}  {smallest:>8}  {'':<27} {counts}")
    if manifest.get("robust_accuracy"):
        lines.append(f"{'radius':>6}  {'certified':>9}  {'at most':>7}")
    for one in manifest.get("robust_accuracy", ()):
        lines.append(
            f"{radius_text(one['radius']):>6}  {bound(one['certified'], math.floor):9.3f}"
            f"  {bound(one['empirical'], math.ceil):7.3f}"
        )
    return "\n".join(lines)


def _down(value: float) -> float:
    return math.floor(1000 * value) / 1000
