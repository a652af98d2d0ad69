"""One self-contained HTML page about runs: `idrc-report RUNS... --out FOLDER`.

Whatever comes from files is text on the page: Jinja2 escapes it, and a content security policy admits only the page's
own scripts, by their hashes, and no network. What charts need, their library and their data, is on it packed (gzip,
base64): a third of their size, unpacked when the first chart comes into sight.
"""

import base64
import gzip
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from idrc_jax import __version__
from idrc_jax.certificates import norms
from idrc_jax.core import files
from idrc_jax.core.json_values import Json
from idrc_jax.report import class_names, interactive_charts, run_summaries
from idrc_jax.results import Results, Row, audit_rows, equal_terms, gallery_file, guarantee_differences, metrics, runs
from idrc_jax.results.runs import Run

NAME = "index.html"
KINDS = interactive_charts.KINDS
PICTURES = 12  # of each kind in a gallery
FIRST = 5  # runs whose curves are shown before any is chosen
ByKind = dict[str, list[run_summaries.ClassRadii] | None]  # by kind of radius
_KIND_NAMES = {"radius": "valid", "radius_published": "published", audit_rows.TABLE: "fixed radii"}


@dataclass(frozen=True)
class Page:
    """A run's part of the page, as the template takes it."""

    run: Run
    number: int
    summary: Json
    settings: Json
    classes: ByKind
    confusion: Json | None
    mistakes: list[tuple[str, str, int]]
    gallery: list[tuple[str, list[Json]]]
    spending: run_summaries.Spending
    audit: Json | None
    sessions: list[Json]
    command: str | None
    sha256: str


def render(
    several: Sequence[Run], *, names: Sequence[str] = (), pictures: int = PICTURES, notes: Sequence[str] = ()
) -> str:
    """The page, as HTML.

    Args:
      several: the runs, side by side in this order; each with at least one row.
      names: of the classes; by default those of data sets that the project knows, else numbers.
      pictures: most images shown of each kind in a gallery.
      notes: warnings, to be shown at the top.
    """
    norm = runs.norm_of([run.results for run in several])
    parts = []
    for number, run in enumerate(several):
        try:
            parts.append(_page(run, number, names, pictures))
        except KeyError as error:
            raise ValueError(
                f"Expected a whole manifest beside {run.results.path}, got one without {error}."
            ) from error
    radii = max((part.summary["radii"] for part in parts), key=len)
    data = {"curves": interactive_charts.curves([(part.run.name, part.summary["curves"]) for part in parts], norm)}
    sure = [(part.run.name, part.summary["sure"]) for part in parts]
    data |= {"probabilities": interactive_charts.probabilities(sure)} if any(one for _, one in sure) else {}
    data |= {
        f"classes-{part.number}": interactive_charts.classes(part.classes, norm)
        for part in parts
        if _any_quantiles(part.classes)
    }
    notes = [*notes, *_mixed(several), *_of_correct_alone(several), *filter(None, [equal_terms.warning(several)])]
    library, script = interactive_charts.library(), _file("report.js")
    return _template(norm).render(
        parts=parts,
        kinds=KINDS,
        published=any(part.summary["curves"]["published"] for part in parts),
        first=FIRST,
        norm=norms.SYMBOLS[norm],
        radii=radii,
        left_out=[radius for radius in metrics.RADII_IN[norm] if radius not in radii],
        probabilities=metrics.PROBABILITIES,
        easy=metrics.EASY,
        notes=notes,
        charts=data.keys(),
        packed={"library": _packed(library), "data": _packed(json.dumps(data))},
        script=Markup(script),
        policy=_policy([library, script]),
        style=Markup(_file("report.css")),
        version=__version__,
    )


def _mixed(several: Sequence[Run]) -> list[str]:
    """What to say of runs that are not of the first one's images."""
    reasons: dict[str, list[str]] = {}
    for run in several[1:]:
        if other := runs.other_images(several[0].results, run.results):
            reasons.setdefault(other, []).append(f"“{run.name}”")
    if not reasons:
        return []
    said = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return [f"Compare with care: not of the same images as “{several[0].name}” are {said}."]


def _of_correct_alone(several: Sequence[Run]) -> list[str]:
    """What to say of runs whose plans decided correct predictions alone."""
    names = [run.name for run in several if metrics.correct_only(run.results)]
    return [f"Wrong predictions got few votes, so abstentions say little, of {runs.quoted(names)}."] if names else []


def _page(run: Run, number: int, names: Sequence[str], pictures: int) -> Page:
    read = run.results
    made: Json = read.manifest["guarantee"] if read.manifest else {}
    names = names or class_names.known(made.get("data", ""))
    same = metrics.published_is_valid(read)
    there = {"valid": metrics.has_certificates(read), "published": metrics.has_published(read)}
    there = {kind: known and not same for kind, known in there.items()} | {"same": same}
    by_class = {
        kind: run_summaries.per_class(read, names, published=kind == "published") if there[kind] else None
        for kind in KINDS
    }
    confusion = run_summaries.confusion(read)
    if confusion:
        labels, columns, counts = confusion
        confusion = {
            "rows": [class_names.name(names, label) for label in labels],
            "columns": [class_names.name(names, column) for column in columns],
            "counts": counts,
            "right": [[label == column for column in columns] for label in labels],
        }
    return Page(
        run=run,
        number=number,
        summary=_summary(run, there),
        settings={
            "scheme": made["scheme"],
            "sigma": made["sigma"],
            "trained under": runs.trained_under(read) or "unknown",
        }
        | _flat({name: value for name, value in made.items() if name not in ("weights_sha256", "data_sha256")})
        if made
        else {},
        classes=by_class,
        confusion=confusion,
        mistakes=[
            (class_names.name(names, label), class_names.name(names, predict), count)
            for label, predict, count in run_summaries.mistakes(read)
        ],
        gallery=_gallery(read, names, pictures),
        spending=run_summaries.spending(read),
        audit=_audit(read, names, pictures),
        sessions=[_flat(session) for session in read.manifest["sessions"]] if read.manifest else [],
        command=run_summaries.command(read),
        sha256=hashlib.sha256(read.path.read_bytes()).hexdigest(),
    )


def _summary(run: Run, there: dict[str, bool]) -> Json:
    """What the overview says of a run: per kind of radius a curve, accuracies with intervals and ACR.

    Published radii that are not valid may go beyond what can be certified.
    """
    read = run.results
    known = metrics.RADII_IN[runs.norm_of([read])]
    radii = known if there["published"] else metrics.within_reach([read], known)
    curves: dict[str, run_summaries.Curve | None] = {}
    accuracies: dict[str, list[tuple[float, float, float]] | None] = {}
    acr: dict[str, float | None] = {}
    for kind in KINDS:
        published = kind == "published"
        curves[kind] = run_summaries.curve(read, published=published) if there[kind] else None
        accuracies[kind] = run_summaries.accuracies(read, known, published=published) if there[kind] else None
        acr[kind] = metrics.average_certified_radius(read, published=published) if there[kind] else None
    if there["same"]:
        acr["valid"] = acr["published"] = acr["same"]
    return {
        "radii": radii,
        "curves": curves,
        "accuracies": accuracies,
        "acr": acr,
        "sure": run_summaries.probability_curve(read),
        "probabilities": run_summaries.probabilities(read),
        "abstained": metrics.abstention_rate(read),
        "right": float(np.mean([row.correct for row in read.rows])),
        "explained": " ".join(told for told in (metrics.explained(read), _of_plan(read)) if told),
    }


def _of_plan(read: Results) -> str:
    """What accuracies do not compare, of a plan that stops at the radii that it was asked for."""
    return f"The plan {metrics.too_low(read)}" if metrics.asked_radii(read) else ""


def _gallery(read: Results, names: Sequence[str], pictures: int) -> list[tuple[str, list[Json]]]:
    """The gallery's images by kind; nothing without a gallery."""
    gallery = gallery_file.read(read.path.parent) if read.manifest else None
    if gallery is None:
        return []
    place = {int(index): position for position, index in enumerate(gallery.index)}
    shown = gallery_file.by_kind([row for row in read.rows if row.idx in place], pictures)

    def picture(row: Row) -> Json:
        at = place[row.idx]
        versions = {"clean": gallery.images[at], "noisy": gallery.noisy[at]}
        if gallery.denoised is not None:
            versions["denoised"] = gallery.denoised[at]
        return {
            "row": row,
            "label": class_names.name(names, row.label),
            "predict": class_names.name(names, row.predict),
            "versions": {name: data_uri(pixels) for name, pixels in versions.items()},
        }

    return [(kind, [picture(row) for row in rows]) for kind, rows in shown.items()]


def _audit(read: Results, names: Sequence[str], pictures: int) -> Json | None:
    """What the audit beside a run found; None where there was none."""
    folder = read.path.parent
    if not read.manifest or not (folder / audit_rows.NAME).is_file():
        return None
    audit = audit_rows.read_audit(folder)
    changed = guarantee_differences(audit.manifest["certificates"], read.manifest["guarantee"])
    if changed:
        raise ValueError(
            f"Expected an audit of the certificates in {read.path}, got one of others in {audit.path}, of which "
            f"{changed}: move it away, or audit again."
        )
    images = audit_rows.read_images(folder)
    labels = {row.idx: row.label for row in read.rows}
    shown = [
        {
            "idx": int(images["idx"][k]),
            "label": class_names.name(names, labels.get(int(images["idx"][k]), -2)),
            "predict": class_names.name(names, int(images["predict"][k])),
            "rival": class_names.name(names, int(images["rival"][k])),
            "distance": float(images["distance"][k]),
            "versions": {
                "original": data_uri(images["original"][k]),
                "adversarial": data_uri(images["image"][k]),
            },
        }
        for k in range(min(len(images["idx"]), 2 * pictures) if images else 0)
    ]
    return {
        "manifest": audit.manifest,
        "claims": [
            {**claim, "name": _KIND_NAMES.get(claim["kind"], claim["kind"])}
            for claim in audit_rows.distinct(audit_rows.claims(audit.rows), read.manifest["guarantee"])
        ],
        "images": shown,
        "sha256": hashlib.sha256(audit.path.read_bytes()).hexdigest(),
    }


def data_uri(pixels: np.ndarray) -> str:
    """An image [H, W, C], uint8 or floats in [0, 1] (clipped), as the address of a PNG inside a page (see
    `gallery_file.visible`)."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * np.clip(np.asarray(pixels, np.float32), 0, 1)).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(gallery_file.visible(pixels))).save(packed, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"


def _any_quantiles(by_class: ByKind) -> bool:
    return any(one.quantiles for rows in by_class.values() for one in rows or ())


def _flat(node: Json, prefix: str = "") -> Json:
    """Nested entries, those of an ensemble's members and of each level's network too, under dotted names."""
    flat: Json = {}
    for name, value in node.items():
        listed = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
        value = dict(zip(map(str, range(len(value))), value, strict=True)) if listed else value
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: no network, no script but these."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _template(norm: str) -> jinja2.Template:
    """The page's, for radii of this norm."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("idrc_jax.report", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"places": _places, "label": metrics.rounded_down, "duration": _duration}
    environment.filters |= {"at_least": _at_least, "at_most": _at_most}
    environment.filters["down"] = partial(_down, norm=norm)
    return environment.get_template("report.html")


def _places(value: float | None) -> str:
    """To the nearest thousandth."""
    return "–" if value is None else f"{value:.3f}"


def _at_least(share: float) -> str:
    return f"{metrics.bound(share, math.floor):.3f}"


def _at_most(share: float) -> str:
    return f"{metrics.bound(share, math.ceil):.3f}"


def _down(radius: float | None, norm: str) -> str:
    return "–" if radius is None or math.isnan(radius) else metrics.value_text(radius, norm)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _file(name: str) -> str:
    return files.read_text(Path(__file__).parent / "pages" / name)
