"""The text table that a certification ends with."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import special

from idrc_jax.certificates import Exhaustive, confidence_bounds, schemes
from idrc_jax.core.json_values import Json
from idrc_jax.results.manifest import level_networks, told_by_level
from idrc_jax.results.metrics import (
    RADII_IN,
    asked_radii,
    base_accuracy,
    bound,
    clean_accuracy,
    correct_radii,
    explained,
    has_certificates,
    has_published,
    largest_radius,
    last_radius,
    published_is_valid,
    radius_text,
    require_rows,
    too_low,
    top_k,
    value_text,
    within_reach,
)
from idrc_jax.results.result_rows import Results, Row
from idrc_jax.results.runs import cut_short, norm_of

_LEVEL_OF_VOTES = {
    schemes.Cascade.name: " of the level that certifies an image, else of its last",
    schemes.Routed.name: " of the level that the router chose, if it did",
}


def summary_table(results: Results, radii: Sequence[float] | None = None) -> str:
    """A text table that says what its numbers are: certified accuracy with 95 % intervals at `radii`, ACR, accuracy of
    the smoothed and of the base classifier, the largest radius within reach, abstentions. `radii` are by default 0 and
    those that the plan asked for or, of one that asked for none, `metrics.RADII_IN` for the norm.

    Published radii have a column where they are others than the valid ones. Accuracies are rounded to the nearest, ACR
    down, the largest radius up. Radii that no image could get are left out, unless published ones have a column. Where
    no radius is valid the certified column says so. Of images without labels only abstentions are told.
    """
    require_rows(results)
    if not results.labelled:
        return "\n".join([_title(results), "The images have no labels, so no accuracy is known.", *_counts(results)])
    if radii is None:
        asked = asked_radii(results)
        radii = (0.0, *asked) if asked else RADII_IN[norm_of([results])]
    certified = correct_radii(results) if has_certificates(results) else None
    columns = {"certified": certified}
    if has_published(results) and not published_is_valid(results):
        columns["published"] = correct_radii(results, published=True)
    lines = [
        _title(results),
        *_meaning(results),
        f"{'r':>6}" + "".join(f"  {name:>22}" for name in columns),
    ]
    for radius in radii if "published" in columns else within_reach([results], radii):
        lines.append(
            f"{radius_text(radius):>6}" + "".join(f"  {_accuracy(own, radius):>22}" for own in columns.values())
        )
    lines.append(f"{'ACR':>6}" + "".join(f"  {_acr(own, norm_of([results])):>22}" for own in columns.values()))
    lines += [*_accuracies(results), *_reach(results), *_counts(results)]
    if results.manifest and math.isfinite(last_radius(results)):
        lines.append(f"The plan {too_low(results)}")
    if told := cut_short(results):
        lines.append(told)
    if certified is None:
        lines.append("This file has no valid radii, and published ones are not certificates: see idrc-recertify.")
    elif results.manifest:
        lines.append(explained(results))
    return "\n".join(lines)


def _meaning(results: Results) -> list[str]:
    """What the certified column counts."""
    k, norm = top_k(results), norm_of([results])
    if k:
        return [
            f"Certified accuracy at {norm} radius r: the share of images whose true class is among the {k} "
            "likeliest, certified up to r",
            "or more, and its 95 % interval. ACR: the mean certified radius, 0 for an image where that is not sure.",
        ]
    return [
        f"Certified accuracy at {norm} radius r: the share of images that are predicted rightly, certified up to "
        "r or more,",
        "and its 95 % interval. ACR: the mean certified radius, 0 for an image that is predicted wrongly or abstained.",
    ]


def _accuracies(results: Results) -> list[str]:
    """The smoothed classifier's accuracy, and the base classifier's as far as it is known."""
    right, k = np.mean([row.correct for row in results.rows]), top_k(results)
    lines = [
        f"Smoothed classifier: true class among the {k} likeliest for {right:.3f} of the images, for sure."
        if k
        else f"Smoothed classifier: {right:.3f} right, abstentions are not."
    ]
    noisy, clean = base_accuracy(results), clean_accuracy(results)
    made = results.manifest["guarantee"] if results.manifest else {}
    noise = f"the noise{_LEVEL_OF_VOTES.get(made.get('scheme', ''), '')}"
    told = [] if noisy is None else [f"{noisy:.3f} right under {noise} (mean share of votes for the true class)"]
    which = " (the last level's network)" if level_networks(made) else " (told the last level)" * _told_each(made)
    told += [] if clean is None else [f"{clean:.3f} right on clean images{which}"]
    return [*lines, f"Base classifier: {', '.join(told)}."] if told else lines


def _reach(results: Results) -> list[str]:
    """The largest radius that the settings allow, where it is known."""
    largest = largest_radius(results)
    if largest is None or results.manifest is None:
        return []
    made = results.manifest["guarantee"]
    exact = made["plan"] == Exhaustive.name
    votes = f"all {made['n']:,} offsets" if exact else f"n {made['n']:,}, alpha {made['alpha']:g}"
    norm = norm_of([results])
    noise = _noise(made) + " so near to the bins' edges" * (made["scheme"] == schemes.Stepped.name)
    return [
        f"No {norm} radius above {value_text(largest, norm, math.ceil)} is within reach of {votes} and {noise}, "
        "even if all votes agree."
    ]


def _counts(results: Results) -> list[str]:
    """How many images abstained and, where the file says so, how many samples were drawn."""
    images = len(results.rows)
    what = "Not sure" if top_k(results) else "Abstained"
    told = [f"{what}: {sum(row.predict == confidence_bounds.ABSTAIN for row in results.rows)} of {images}."]
    if results.manifest:
        made = results.manifest["guarantee"]
        drawn = sum(row.samples for row in results.rows)
        told.append(f"Samples: {drawn:,}, {drawn / images:,.0f} an image (plan {made['plan']}).")
        if "paired" in made:
            told[-1] = f"Votes: {drawn:,} of the network that it was paired with, {drawn / images:,.0f} an image."
            told.append(_agreement(results, made["paired"]["n"]))
        told += _levels(results)
    return told


def _levels(results: Results) -> list[str]:
    """Under a scheme of several levels: how many images each decides, and how many go on to how many; under a router
    at how many images that cuts the radius."""
    made = results.manifest["guarantee"] if results.manifest else {}
    if made.get("scheme") == schemes.Stepped.name and made["certificate"] == "one_sided" and "k" not in made:
        sure = [row for row in results.rows if row.radius > 0]
        return [f"Of {len(sure)} images certified an edge of the bins cuts the radius of {sum(map(_is_cut, sure))}."]
    certified = [row for row in results.rows if row.votes_by_level and row.radius > 0]
    if not any(row.votes_by_level for row in results.rows):
        return []
    levels = sorted(Counter(row.sigma_x for row in certified).items(), reverse=True)
    drawn = sum(len(row.votes_by_level or ()) for row in results.rows) / len(results.rows)
    if made.get("scheme") == schemes.Routed.name:
        told = ", ".join(f"{level:.4g} for {count} images" for level, count in levels)
        cut = sum(map(_is_cut, certified))
        told = f"Of those certified the router chose level {told or 'none'}, and cuts the radius of {cut}"
        return [f"{told}; votes for classes were under {drawn - 1:.2f} levels an image."]
    told = ", ".join(f"{level:.4g} of {count} images" for level, count in levels)
    return [f"The radius is from level {told or 'none'}; {drawn:.2f} levels an image had votes."]


def _is_cut(row: Row) -> bool:
    """Whether a radius is less than what the votes under the image's noise say."""
    return row.radius < (1 - 1e-6) * (row.sigma_x or 0) * special.ndtri(row.p_lower)


def _agreement(results: Results, n: int) -> str:
    """How often the two networks of an incremental run gave the same class under the same noise."""
    differing = [sum((row.differing or {}).values()) for row in results.rows]
    total = n * len(differing)
    _, most = confidence_bounds.proportion_interval(sum(differing), total)
    return (
        f"Agreement under the same noise: {_down(1 - sum(differing) / total)} of {total:,} pairs ({n:,} an image), at "
        f"97.5 % at least {_down(1 - most)} of all noise on these images; {sum(map(bool, differing))} images have a "
        "pair that differs."
    )


def _down(share: float) -> str:
    return f"{math.floor(1e5 * share) / 1e5:.5f}"


def _title(results: Results) -> str:
    if not results.manifest:
        return f"{results.path}: {len(results.rows)} images"
    made = results.manifest["guarantee"]
    ref = f", ref {made['ref']:g}" if hasattr(schemes.SCHEMES.get(made["scheme"]), "ref") else ""
    drawn = f" drawn from {made['subsampled_from']:,}" if "subsampled_from" in made else ""
    several = f", ensemble of {len(made['members'])}" if "members" in made else ""
    several = f", {level_networks(made)} networks, one a level" if level_networks(made) else several
    told = "each level" if _told_each(made) else f"{made.get('denoiser_sigma', 0):g}"
    several += f", denoised, told {told}" if "denoiser_sigma" in made else ""
    votes = f"n0 {made['n0']:,}, n {made['n']:,}{drawn}, alpha {made['alpha']:g}"
    if made["plan"] == Exhaustive.name:
        votes = f"exact: all {made['n']:,} offsets"
    exact = ", exact noise" if made.get("exact") else ""
    return (
        f"{made['scheme']}, {_noise(made)}{exact}{ref}{several}, {len(results.rows)} images of {made['data']}, "
        f"{votes}, {made['certificate']}" + (f", k {made['k']}" if "k" in made else "")
    )


def _told_each(made: Json) -> bool:
    """Whether a denoiser is told another level in front of each network by level."""
    return len(set(told_by_level(made))) > 1


def _noise(made: Json) -> str:
    """The parameter sigma or, under a scheme of several levels, these."""
    if made["scheme"] not in (schemes.Cascade.name, schemes.Routed.name):
        return f"sigma {made['sigma']:g}"
    levels = "levels " + ", ".join(f"{made['sigma'] * level:g}" for level in made["levels"])
    return levels + (f", router at {made['sigma'] * made['router_level']:g}" if "router_level" in made else "")


def _accuracy(radii: np.ndarray | None, radius: float) -> str:
    if radii is None:
        return "-"
    count = int(np.sum(radii >= radius))
    low, high = confidence_bounds.proportion_interval(count, len(radii))
    return f"{count / len(radii):.3f} [{bound(low, math.floor):.3f}, {bound(high, math.ceil):.3f}]"


def _acr(radii: np.ndarray | None, norm: str) -> str:
    return "-" if radii is None else value_text(float(np.mean(np.maximum(radii, 0))), norm)
