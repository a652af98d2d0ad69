"""The text table that a certification ends with."""

import math
from collections.abc import Sequence

import numpy as np

from idrc_jax import certificates
from idrc_jax.certificates import confidence_bounds
from idrc_jax.results.metrics import (
    RADII,
    correct_radii,
    has_certificates,
    has_published,
    last_radius,
    published_is_valid,
    require_rows,
    too_low,
)
from idrc_jax.results.result_rows import Results


def summary_table(results: Results, radii: Sequence[float] = RADII) -> str:
    """A text table: certified and published accuracy with 95 % intervals at `radii`, ACR, abstentions.

    Accuracies are rounded to the nearest, ACR down. Where no radius is valid the certified column says so; where the
    published radii are the valid ones there is one column. Of images without labels only abstentions are told.
    """
    require_rows(results)
    if not results.labelled:
        return "\n".join([_title(results), "The images have no labels, so no accuracy is known.", *_counts(results)])
    certified = correct_radii(results) if has_certificates(results) else None
    published = correct_radii(results, published=True) if has_published(results) else None
    columns = {"certified": certified, "published": published}
    if published_is_valid(results):
        columns = {"valid = published": certified}
    lines = [_title(results), f"{'radius':>6}" + "".join(f"  {name:>22}" for name in columns)]
    for radius in radii:
        lines.append(f"{radius:6.2f}" + "".join(f"  {_accuracy(own, radius):>22}" for own in columns.values()))
    lines.append(f"{'ACR':>6}" + "".join(f"  {_acr(own):>22}" for own in columns.values()))
    lines += _counts(results)
    if results.manifest and math.isfinite(last_radius(results)):
        lines.append(f"The plan {too_low(results)}")
    if certified is None:
        lines.append("This file has no valid radii, and published ones are not certificates: see idrc-recertify.")
    elif results.manifest:
        lines.append(certificates.explain(results.manifest["guarantee"]["scheme"]))
    return "\n".join(lines)


def _counts(results: Results) -> list[str]:
    """How many images abstained and, where the file says so, how many samples were drawn."""
    images = len(results.rows)
    told = [f"Abstained: {sum(row.predict == confidence_bounds.ABSTAIN for row in results.rows)} of {images}."]
    if results.manifest:
        drawn = sum((row.n or 0) + (row.n0 or 0) for row in results.rows)
        plan = results.manifest["guarantee"]["plan"]
        told.append(f"Samples: {drawn:,}, {drawn / images:,.0f} an image (plan {plan}).")
    return told


def _title(results: Results) -> str:
    if not results.manifest:
        return f"{results.path}: {len(results.rows)} images"
    made = results.manifest["guarantee"]
    return (
        f"{made['scheme']}, sigma {made['sigma']:g}, ref {made['ref']:g}, {len(results.rows)} images of "
        f"{made['data']}, n0 {made['n0']:,}, n {made['n']:,}, alpha {made['alpha']:g}, {made['certificate']}"
    )


def _accuracy(radii: np.ndarray | None, radius: float) -> str:
    if radii is None:
        return "-"
    count = int(np.sum(radii >= radius))
    low, high = confidence_bounds.proportion_interval(count, len(radii))
    return f"{count / len(radii):.3f} [{low:.3f}, {high:.3f}]"


def _acr(radii: np.ndarray | None) -> str:
    return "-" if radii is None else f"{math.floor(1000 * np.mean(np.maximum(radii, 0))) / 1000:.3f}"
