"""Certification results on disk: one TSV row an image, and a manifest beside it.

`certificates.tsv` starts with the six columns of the field (`idx label predict radius correct time`, abstain =
-1), so that other projects' tools read it, and goes on with what recomputes every radius. Numbers are
written in full precision. `manifest.json` holds the settings that the certificates depend on (`guarantee`,
compared whenever a run goes on) and one entry a call (`sessions`: versions, devices, date; never compared).
"""

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np

from idrc_jax import several_levels
from idrc_jax.certificates import Certificate, confidence_bounds, norms, sampling_plans, schemes, user_schemes
from idrc_jax.core import append_only, files, validate
from idrc_jax.core.json_values import Json, as_json
from idrc_jax.results.manifest import MANIFEST, SCHEMA_VERSION, Manifest, read_manifest
from idrc_jax.results.resume_check import guarantee_differences

NAME = "certificates.tsv"
MEMORY = Path("<memory>", NAME)  # of results that are on no disk yet
UNLABELLED = -1


class LevelRow(NamedTuple):
    """What was drawn under one level: as `certificates.LevelVotes`, with votes as in a `Row`."""

    level: int
    selected: int
    votes: dict[int, int]


@dataclass(frozen=True)
class Row:
    """One image. The fields after `time` are None in other projects' six-column logs.

    Attributes:
      idx, label: of the image in its data set; label -1 where it is unknown.
      predict: the class, or -1 (abstain).
      radius: valid radius in pixel units, in `norm`; nan where the scheme has no certificate.
      correct: 1 where `predict` is the label, else 0, also where the label is unknown (see `is_correct`).
      time: seconds.
      radius_published: the paper's radius.
      selected: class chosen by the n0 selection votes, -1 for none.
      statistic: the image's statistic under the scheme.
      sigma_x: the noise level.
      p_lower: lower bound on the probability of `selected`.
      n, n0: estimation and selection samples.
      votes: estimation votes by class, zeros left out; -1 counts the votes with logits that were not finite.
      differing: in an incremental run, whose votes are those of the network f that it was paired with, the pairs in
        which the two answered differently, by f's answer; None elsewhere, where files have no such column.
      votes_by_level: under a scheme of several levels, what was drawn under each, in this order (as in a
        `Certificate`); None under others.
      norm: of both radii; a column of files whose radii are not l2.
    """

    idx: int
    label: int
    predict: int
    radius: float
    correct: int
    time: float
    radius_published: float | None = None
    selected: int | None = None
    statistic: float | None = None
    sigma_x: float | None = None
    p_lower: float | None = None
    n: int | None = None
    n0: int | None = None
    votes: dict[int, int] | None = None
    differing: dict[int, int] | None = None
    votes_by_level: tuple[LevelRow, ...] | None = None
    norm: str = "l2"

    @property
    def samples(self) -> int:
        """Drawn of the image, with those of selections; 0 where the file does not say."""
        if self.votes_by_level is None:
            return (self.n or 0) + (self.n0 or 0)
        return sum(sum(one.votes.values()) + (self.n0 or 0) for one in self.votes_by_level)

    @classmethod
    def from_certificate(
        cls, certificate: Certificate, idx: int, label: int, seconds: float, differing: dict[int, int] | None = None
    ) -> Self:
        """The row of a certificate."""
        levels = tuple(LevelRow(one.level, one.selected, by_class(one.votes)) for one in certificate.votes_by_level)
        return cls(
            idx=idx,
            label=label,
            correct=is_correct(label, certificate.predict),
            time=round(seconds, 3),
            **{name: getattr(certificate, name) for name in _SHARED},
            votes=by_class(certificate.votes),
            differing=differing,
            votes_by_level=levels or None,
            norm=certificate.norm,
        )


def by_class(votes: Sequence[int]) -> dict[int, int]:
    """Counts [K + 1] as a row has them: zeros left out, the last one under -1."""
    *classes, last = votes
    return {number: count for number, count in enumerate(classes) if count} | ({-1: last} if last else {})


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))[:-3]
PAIRED = (*COLUMNS, "differing")  # of incremental runs
LEVELLED = (*COLUMNS, "votes_by_level")  # under a scheme of several levels
OURS = tuple(columns + more for columns in (COLUMNS, PAIRED, LEVELLED) for more in ((), ("norm",)))
SIX = COLUMNS[:6]
_SHARED = [field.name for field in dataclasses.fields(Certificate) if field.name in COLUMNS and field.name != "votes"]
_INTEGERS = {"idx", "label", "predict", "correct", "selected", "n", "n0"}
_BOOLEANS = {"True": 1, "False": 0}
_LEAST = {"label": -1, "predict": -1, "selected": -1, "statistic": -sys.float_info.max}  # of others 0
_UNKNOWN = {"radius", "radius_published"}  # may be nan


@dataclass(frozen=True)
class Results:
    """What was certified: that of a result file, or of `idrc_jax.certify`. As a sequence it is that of its rows.

    Functions of `idrc_jax` tell what it says: `summary_table`, `certified_accuracy`, `average_certified_radius`,
    `abstention_rate`, `plot_certified_accuracy` (a list of them), `to_pandas`.

    Attributes:
      rows: an image each, in the order of the file or of the images.
      manifest: that beside the file; None for six-column logs.
      path: the file; `MEMORY` where there is none yet.
    """

    rows: tuple[Row, ...]
    manifest: Manifest | None
    path: Path

    @classmethod
    def in_memory(cls, rows: Iterable[Row], guarantee: Json, session: Json, clean: Json | None = None) -> Self:
        """Results that are on no disk yet; arguments as for `ResultsFile`, and `clean` of a `Manifest`."""
        manifest = Manifest(schema_version=SCHEMA_VERSION, guarantee=as_json(guarantee), sessions=[as_json(session)])
        if clean:
            manifest["clean"] = clean
        return cls(tuple(rows), manifest, MEMORY)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, place: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[place]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        count = f"{len(self.rows)} image{'s' * (len(self.rows) != 1)}"
        if not self.manifest:
            return f"Results({count}, {self.path})"
        made = self.manifest["guarantee"]
        certified = sum(row.radius > 0 for row in self.rows)
        abstained = sum(row.predict == confidence_bounds.ABSTAIN for row in self.rows)
        where = "in memory" if self.path == MEMORY else self.path
        return (
            f"Results({count} of {made['data']}: {certified} certified, {abstained} abstained; {made['scheme']}, "
            f"sigma={made['sigma']:g}, n={made['n']}, alpha={made['alpha']:g}; {where})"
        )

    @property
    def labelled(self) -> bool:
        """Whether the images' true classes are known."""
        return all(row.label != UNLABELLED for row in self.rows)

    def save(self, where: str | Path) -> Self:
        """Write a result file and its manifest, which every command and `read_results` read; the same as it is there.

        Args:
          where: a folder, made where it is missing, for `certificates.tsv`; or a file that ends in `.tsv`.

        Raises:
          ValueError: six-column results, another suffix of a table, a folder that holds results of another guarantee, a
            file of rows that these lack or whose guarantee is unknown, which would be lost, or one being written.
        """
        path = Path(where).expanduser()
        if self.manifest is None:
            raise ValueError(f"Expected results with a manifest to save, got a six-column log, {self.path}.")
        if path.suffix in (".csv", ".parquet"):
            raise ValueError(f"Expected a folder or a .tsv file, got {path}: idrc_jax.to_pandas makes other tables.")
        path = path if path.suffix == ".tsv" and not path.is_dir() else path / NAME
        files.make_folder(path.parent)
        with files.folder_lock(path.parent), contextlib.ExitStack() as held:
            stored, other = read_manifest(path.parent), False
            if path.is_file():
                files.lock_or_refuse(held.enter_context(path.open("r+b")).fileno(), path)
                there = read_rows(path)
                other = there.manifest is None or not {row.idx for row in there.rows} <= {row.idx for row in self.rows}
            if other or (stored and guarantee_differences(stored["guarantee"], self.manifest["guarantee"])):
                raise ValueError(f"Expected a place without other results, got {path.parent}: save them elsewhere.")
            own, before = self.manifest["sessions"], stored["sessions"] if stored else []
            manifest: Manifest = {**self.manifest, "sessions": [*(one for one in before if one not in own), *own]}
            write(self.rows, manifest, path.parent, path.name)
        return dataclasses.replace(self, manifest=manifest, path=path)


def read_rows(path: str | Path) -> Results:
    """`results.read_results`, but for whether what is certified follows from the votes."""
    path = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(f"Expected a result file at {path}, got no such file: give it, or a run's folder.")
    found, whole = read_as_it_is(path)
    if not whole:
        warnings.warn(f"The last line of {path} was cut off by a crash and is left out.", stacklevel=3)
    rows = tuple(dataclasses.replace(row, correct=is_correct(row.label, row.predict)) for row in found.rows)
    changed = sum(new.correct != old.correct for new, old in zip(rows, found.rows, strict=True))
    if changed:
        warnings.warn(
            f"In {changed} of the {len(rows)} rows of {path} the column correct contradicts label and predict: it is "
            "taken from these.",
            stacklevel=3,
        )
    return dataclasses.replace(found, rows=rows)


def is_correct(label: int, predict: int) -> int:
    """1 where the prediction is the label, 0 elsewhere and for every abstention, also of an image without a label."""
    return int(predict == label != confidence_bounds.ABSTAIN)


def write(rows: Iterable[Row], manifest: Manifest, out: Path, name: str = NAME) -> None:
    """Write rows and their manifest into a folder, replacing what is there."""
    files.make_folder(out)
    header = append_only.line(columns_of(manifest["guarantee"]))
    files.write_text(out / name, header + "".join(line_of(row) for row in rows))
    files.write_json(out / MANIFEST, manifest)


def columns_of(guarantee: Json) -> tuple[str, ...]:
    """The columns of a file under a manifest's guarantee."""
    levelled = guarantee["scheme"] in (schemes.Cascade.name, schemes.Routed.name)
    norm = () if guarantee.get("norm", "l2") == "l2" else ("norm",)
    return (PAIRED if "paired" in guarantee else LEVELLED if levelled else COLUMNS) + norm


def line_of(row: Row) -> str:
    """A row as it is in the file."""
    values = [repr(getattr(row, name)) for name in COLUMNS[:-1]]
    counts = [row.votes] if row.differing is None else [row.votes, row.differing]
    levels = [] if row.votes_by_level is None else [levels_text(row.votes_by_level)]
    return append_only.line([*values, *map(votes_text, counts), *levels, *([] if row.norm == "l2" else [row.norm])])


def levels_text(levels: Iterable[LevelRow] | None) -> str:
    """`level/selected/class:count,...;...`, as the column has it."""
    return ";".join(f"{one.level}/{one.selected}/{votes_text(one.votes)}" for one in levels or ())


def votes_text(votes: dict[int, int] | None) -> str:
    """`class:count,...`, as the column has it."""
    return ",".join(f"{number}:{count}" for number, count in (votes or {}).items())


def read_as_it_is(path: Path) -> tuple[Results, bool]:
    """The file as it is, and whether its last line was whole; ValueError for rows that contradict the manifest."""
    columns, rows, whole = _read_rows(path)
    manifest = read_manifest(path.parent) if columns != SIX else None
    if manifest is not None and rows:
        _check_rows(rows, columns, manifest, path)
    return Results(rows, manifest, path), whole


def _read_rows(path: Path) -> tuple[tuple[str, ...], tuple[Row, ...], bool]:
    """Header, rows, and whether the last line was whole."""
    try:
        lines = files.read_text(path).split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"Expected a text file of results, got {path}.") from None
    columns = tuple(lines[0].split("\t"))
    if columns not in (*OURS, SIX):
        raise ValueError(f"Expected a header {' '.join(SIX)} (and ours beyond) in {path}, got {lines[0][:80]!r}.")
    whole = columns == SIX or lines[-1] == ""
    body = lines[1:] if whole else lines[1:-1]
    while body and not body[-1].strip():
        body.pop()
    rows: dict[int, Row] = {}
    for number, line in enumerate(body, start=2):
        try:
            row = _parse(columns, line)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"Expected {len(columns)} columns of numbers in {path}, line {number}: {error}.") from None
        if row.idx in rows:
            raise ValueError(f"Expected each image once in {path}, got {row.idx} again in line {number}.")
        rows[row.idx] = row
    return columns, tuple(rows.values()), whole


def _check_rows(rows: tuple[Row, ...], columns: tuple[str, ...], manifest: Manifest, path: Path) -> None:
    """ValueError unless columns, noise levels and numbers of samples are those of the manifest's scheme and plan."""
    try:
        made = manifest["guarantee"]
        plan = sampling_plans.from_description(made)
        # The level of a user's own scheme is known to that scheme alone.
        scheme = None if user_schemes.is_own(made) else schemes.from_description(made)
        bounds = several_levels.bounds_of_results(made)
    except (KeyError, TypeError) as error:
        raise ValueError(f"Expected a whole manifest beside {path}, got one without {error}.") from None
    wanted, norm = columns_of(made), made.get("norm", "l2")
    if columns != wanted or {row.norm for row in rows} != {norm}:
        raise ValueError(
            f"Expected {len(wanted)} columns of {norm} radii in {path}, as {MANIFEST} beside it says, got "
            f"{len(columns)} of {rows[0].norm} radii: it is a file of another run."
        )
    looks = set(plan.looks())
    levels = [[row.sigma_x] for row in rows]
    if scheme is not None:
        levels = schemes.drawn_levels(scheme, np.asarray([row.statistic for row in rows], np.float64)).tolist()
    for row, own in zip(rows, levels, strict=True):
        told = ", ".join(map(str, own))
        if max(row.label, row.predict, row.selected or 0) >= made["classes"]:
            raise ValueError(f"Expected {made['classes']} classes in {path}, got another at image {row.idx}.")
        seen = looks | {0} if isinstance(scheme, schemes.Routed) else looks  # 0 without votes for a class
        if row.n not in seen or row.n0 != plan.selection or row.sigma_x not in own:
            raise ValueError(
                f"Expected rows under {MANIFEST} in {path}, with n at most {plan.n}, n0 = {plan.selection} (plan "
                f"{plan.name}) and sigma_x = {told}, got n = {row.n}, n0 = {row.n0}, sigma_x = {row.sigma_x} for "
                f"image {row.idx}: it is a file of another run."
            )
        if bounds is not None and not _fits(row, bounds, own, looks, made["classes"]):
            raise ValueError(
                f"Expected votes_by_level of image {row.idx} in {path} under {told} in turn, one of them with the "
                f"row's votes, got {levels_text(row.votes_by_level)}: the row was changed."
            )


def _fits(row: Row, bounds: several_levels.Bounds, levels: Sequence[Any], looks: set[int], classes: int) -> bool:
    """Whether a row's votes by level, at looks, are of levels as they follow each other, the row's own among them."""
    drawn = row.votes_by_level or ()
    if not several_levels.follow(bounds, drawn):
        return False
    for one in drawn:
        if sum(one.votes.values()) not in looks or max([one.selected, *one.votes]) >= bounds.classes(
            one.level, classes
        ):
            return False
    own = [(levels[one.level], one.selected, one.votes) for one in several_levels.deciding(bounds.scheme, drawn)]
    own = own or [(levels[0], confidence_bounds.ABSTAIN, {})]
    return (row.sigma_x, row.selected, row.votes) in own and row.n == sum((row.votes or {}).values())


def _parse(columns: tuple[str, ...], line: str) -> Row:
    texts = line.split("\t")
    if len(texts) != len(columns):
        raise ValueError(f"got {len(texts)} columns")
    values: dict[str, Any] = {}
    for name, text in zip(columns, texts, strict=True):
        if name in ("votes", "differing"):
            values[name] = parse_votes(text)
        elif name == "votes_by_level":
            parts = (level.split("/") for level in text.split(";"))
            values[name] = tuple(LevelRow(int(level), int(first), parse_votes(own)) for level, first, own in parts)
        elif name == "norm":
            values[name] = validate.one_of("norm", text, norms.EXPONENTS)
        elif name in _INTEGERS:
            values[name] = _BOOLEANS[text] if text in _BOOLEANS and name == "correct" else int(text)
        else:
            values[name] = _seconds(text) if name == "time" else float(text)
    for name, value in values.items():
        unknown = name in _UNKNOWN and value != value
        if isinstance(value, float) and not (unknown or _LEAST.get(name, 0) <= value < 2.0**200):  # sums stay finite
            raise ValueError(f"got {name} = {value}, which is not finite and >= 0, or beyond all use")
        if isinstance(value, int) and not _LEAST.get(name, 0) <= value < 2**63:
            raise ValueError(f"got {name} = {value}, which is not from {_LEAST.get(name, 0)} to 2^63 - 1")
    return Row(**values)


def parse_votes(text: str) -> dict[int, int]:
    """What `votes_text` wrote; ValueError for anything but one count a class."""
    texts = (pair.split(":") for pair in text.split(",") if pair)
    pairs = [(int(number), int(count)) for number, count in texts]
    votes = dict(pairs)
    if len(votes) < len(pairs) or not all(-1 <= number < 2**63 and 0 <= votes[number] < 2**63 for number in votes):
        raise ValueError(f"got votes {text[:80]}, which are not one count >= 0 a class")
    return votes


def _seconds(text: str) -> float:
    """Seconds, or h:mm:ss with a fraction and, where there are any, days: `1 day, 2:03:04`."""
    days, _, clock = text.rpartition(", ")
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return 86_400 * int(days.removesuffix("s").removesuffix(" day") or 0) + total
