"""Two runs on the same images, paired: does one certify more, or is it chance?

At each radius only the images that one run certifies and the other does not tell them apart (McNemar 1947). The test is
exact: if neither certified more, each of them would fall to either run with probability 1/2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from idrc_jax.certificates import confidence_bounds
from idrc_jax.core import validate
from idrc_jax.results import metrics, result_file, runs
from idrc_jax.results.result_rows import Results

# The 5 % by which an interval may err: for the share of differing images that fall to the second run, and for how many
# differ.
_SPLIT = (0.8, 0.2)


@dataclass(frozen=True)
class Difference:
    """The second run against the first at one radius.

    Attributes:
      first, second: certified accuracies.
      only_first, only_second: images that one alone certifies.
      low, high: confidence interval of second - first.
      p_value: of the exact two-sided test.
      p_holm: the same, corrected for all radii compared (Holm 1979).
    """

    radius: float
    first: float
    second: float
    only_first: int
    only_second: int
    low: float
    high: float
    p_value: float
    p_holm: float


def compare(
    first: Results,
    second: Results,
    radii: Sequence[float] | None = None,
    *,
    published: bool = False,
    confidence: float = 0.95,
) -> list[Difference]:
    """The difference in certified accuracy at each radius.

    Args:
      first, second: of the same images.
      radii: in pixel units; by default those of `metrics.RADII_IN` for the norm.
      published: compare the paper's radii, which are not certificates but for `gaussian`.

    Guarantee: over images drawn independently of both runs, each interval holds the true difference with probability
    at least `confidence`, and if nothing differs at any radius, one of the p_holm is <= a with probability at most a.

    Raises ValueError for runs of other images, in other norms, or without such radii, decided by their plans.
    """
    validate.in_open_unit_interval("confidence", confidence)
    a, b = paired_radii(first, second, published=published)
    p_values, made = [], []
    for radius in metrics.RADII_IN[runs.norm_of([first])] if radii is None else radii:
        only_first, only_second = int(np.sum((a >= radius) & (b < radius))), int(np.sum((b >= radius) & (a < radius)))
        p_values.append(_mcnemar(only_first, only_second))
        interval = difference_interval(only_first, only_second, len(a), confidence)
        accuracies = float(np.mean(a >= radius)), float(np.mean(b >= radius))
        made.append((radius, *accuracies, only_first, only_second, *interval, p_values[-1]))
    return [Difference(*one, p_holm=corrected) for one, corrected in zip(made, holm(p_values), strict=True)]


def on_common_images(first: Results, second: Results) -> tuple[Results, Results]:
    """Both runs, of the images alone that both have (by index): what chose them must not depend on votes.

    Raises ValueError where there is no such image; and for a run that was cut short so that votes or classes chose its
    images, or one worker's file of several: paired tests would not hold.
    """
    for one in (first, second):
        if told := runs.cut_short(one):
            raise ValueError(f"Expected whole runs, got {one.path}: {told}")
        if result_file.of_one_worker(one.path):
            raise ValueError(f"Expected whole runs, got one worker's of several, {one.path}: unite them (idrc-merge).")
    shared = {row.idx for row in first.rows} & {row.idx for row in second.rows}
    if not shared:
        raise ValueError(f"Expected runs with images in common in {first.path} and {second.path}, got none.")
    a, b = (replace(one, rows=tuple(row for row in one.rows if row.idx in shared)) for one in (first, second))
    return a, b


def _offer(first: Results, second: Results) -> str:
    """What can be done about runs of other images, if anything."""
    try:
        other = runs.other_images(*on_common_images(first, second))
    except ValueError:
        return ""
    return "" if other else ": idrc-compare --common compares those"


def usual_radii(first: Results, second: Results) -> tuple[float, ...]:
    """The radii that the plans asked for, in both runs if both plans ask for some; where there are none
    `metrics.RADII_IN`.

    At others accuracy under such a plan is too low to compare.
    """
    one, *others = [found for found in map(metrics.asked_radii, (first, second)) if found] or [()]
    kept = [radius for radius in one if all(any(math.isclose(radius, each) for each in other) for other in others)]
    return tuple(kept) or metrics.RADII_IN[runs.norm_of([first, second])]


def radii_to_compare(first: Results, second: Results, radii: Sequence[float]) -> tuple[float, ...]:
    """Those of the radii that either of two runs could certify: others would only make Holm's correction stricter.

    What a run could certify follows from its settings and images, not from its votes.

    Raises ValueError where there is none.
    """
    kept = metrics.within_reach([first, second], radii)
    if not kept:
        raise ValueError(f"Expected a radius that one of the runs could certify, got {', '.join(map(str, radii))}.")
    return kept


def paired_radii(first: Results, second: Results, *, published: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """`metrics.correct_radii` of both, in the order of the index; ValueError unless they are of the same images and
    their plans decided such radii."""
    runs.norm_of([first, second])
    other = runs.other_images(first, second)
    if other:
        told = f"{other}{_offer(first, second)}"
        raise ValueError(f"Expected runs of the same images in {first.path} and {second.path}, got {told}.")
    found = []
    for one in (first, second):
        there = metrics.has_published(one) if published else metrics.has_certificates(one)
        if one.rows and not there:
            raise ValueError(f"Expected {'published' if published else 'valid'} radii in {one.path}, got none.")
        if published and not metrics.published_decided(one):
            raise ValueError(
                f"Expected a plan that decides published radii, too, got that of {one.path}, where accuracy at them is "
                "too low to compare: certify with sampling.published=True."
            )
        found.append(metrics.correct_radii(one, published=published)[np.argsort([row.idx for row in one.rows])])
    return found[0], found[1]


def difference_interval(
    only_first: int, only_second: int, images: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of P(only second) - P(only first) = d (2q - 1), d the share of differing images, q that of the second's.

    Args:
      only_first, only_second: images that one run alone certifies.
      images: of all.
      confidence: probability with which the interval holds the difference.

    Guarantee: coverage at least `confidence`: the exact intervals of q given their number (at 4/5 of the error
    probability) and of d hold together at least so often, and the result spans all their combinations.
    """
    for_share, for_number = (1 - (1 - confidence) * part for part in _SPLIT)
    differing = only_first + only_second
    number = confidence_bounds.proportion_interval(differing, images, for_number)
    share = confidence_bounds.proportion_interval(only_second, differing, for_share) if differing else (0.0, 1.0)
    corners = [d * (2 * q - 1) for d in number for q in share]
    return float(min(corners)), float(max(corners))


def acr_difference(first: Results, second: Results, *, published: bool = False) -> tuple[float, float]:
    """Difference of the average certified radii, second - first, and half its 95 % interval (normal approximation)."""
    a, b = (np.maximum(one, 0) for one in paired_radii(first, second, published=published))
    return float(np.mean(b - a)), float(1.96 * np.std(b - a, ddof=1) / np.sqrt(len(a))) if len(a) > 1 else np.inf


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's (1979) step-down procedure, in the given order."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return corrected[np.argsort(order, kind="stable")].tolist()


def table(
    first: str, second: str, differences: Sequence[Difference], acr: tuple[float, float] | None, kind: str
) -> str:
    """A text table of the differences, and what they say.

    Args:
      first, second: names of the runs.
      differences: of the second against the first, a row each.
      acr: difference of the average certified radii and half its interval (`acr_difference`); None where radii
        are decided up to different ones, which the average follows.
      kind: which radii these are, for the head.
    """
    lines = [
        f"A: {first}\nB: {second}\n{kind}, paired by image; B - A with exact 95 % intervals, each for one radius.",
        f"{'radius':>6}  {'A':>5}  {'B':>5}  {'only A':>6}  {'only B':>6}  {'B - A':>7}  {'95 % interval':>18}  "
        f"{'p':>7}  {'p (Holm)':>8}",
    ]
    for one in differences:
        low, high = metrics.bound(one.low, math.floor, 4), metrics.bound(one.high, math.ceil, 4)
        interval = f"[{low:+.4f}, {high:+.4f}]"
        lines.append(
            f"{metrics.radius_text(one.radius):>6}  {one.first:5.3f}  {one.second:5.3f}  {one.only_first:6d}  "
            f"{one.only_second:6d}  "
            f"{one.second - one.first:+7.3f}  {interval:>18}  {one.p_value:7.2g}  {one.p_holm:8.2g}"
        )
    if acr is None:
        lines.append("ACR: not compared, as radii are decided up to different ones in A and B.")
    else:
        lines.append(f"ACR: B - A = {acr[0]:+.4f} ± {acr[1]:.4f} (95 %, normal approximation)")
    return "\n".join([*lines, verdict(differences), *explanations(differences, acr)])


def verdict(differences: Sequence[Difference]) -> str:
    """In a sentence, at which radii one run certifies more, at 5 % for all radii together."""
    said = []
    for name, sign in (("A", -1), ("B", 1)):
        radii = [one for one in differences if _told_apart(one) and sign * (one.only_second - one.only_first) > 0]
        if radii:
            said.append(f"{name} certifies more at {_radii(radii)}")
    what = "; ".join(said) if said else "the runs are not told apart at any radius"
    return f"At 5 % for the {len(differences)} radii together (Holm): {what}."


def explanations(differences: Sequence[Difference], acr: tuple[float, float] | None) -> list[str]:
    """A line for each way in which an interval seems to contradict the verdict; none where all agree."""
    alone = [one for one in differences if not _told_apart(one) and not one.low <= 0 <= one.high]
    wide = [one for one in differences if _told_apart(one) and one.low <= 0 <= one.high]
    lines = []
    if alone:
        lines.append(
            f"At {_radii(alone)} the interval leaves out 0 but the verdict names no run: an interval errs in 5 % of "
            f"cases at its one radius, the verdict in 5 % at all {len(differences)} together."
        )
    if wide:
        lines.append(
            f"At {_radii(wide)} the interval holds 0 but the verdict names a run: the interval also allows for chance "
            "in how many images differ."
        )
    mean, half = acr or (0.0, 0.0)
    agree = any(_told_apart(one) and (one.only_second - one.only_first) * mean > 0 for one in differences)
    if abs(mean) > half and not agree:
        lines.append(
            f"The ACR's interval leaves out 0 but the verdict does not name {'A' if mean < 0 else 'B'}: the ACR adds "
            "up all radii, also differences too small to be told at any one."
        )
    return lines


def _told_apart(one: Difference) -> bool:
    return one.p_holm <= 0.05


def _radii(several: Sequence[Difference]) -> str:
    return ", ".join(f"{metrics.rounded_down(one.radius):g}" for one in several)


def _mcnemar(only_first: int, only_second: int) -> float:
    differing = only_first + only_second
    return float(stats.binomtest(only_second, differing, 0.5).pvalue) if differing else 1.0
