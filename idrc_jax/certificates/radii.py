"""From a lower bound on the top class's probability to a radius, in float64, rounded down.

`radius` and `two_sided_radius` are valid; `published_radius` is what the paper reports for every scheme, which for
input-dependent noise is not a certificate. Theorems, sources, numerical errors: docs/explanation/certificates.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from idrc_jax.certificates import confidence_bounds, gaussian_pair, norms, spherical, top_k
from idrc_jax.certificates.confidence_bounds import Numbers, Pairs
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.sampling_plans import Exhaustive, Fixed, Plan, SelectionFree
from idrc_jax.certificates.schemes import (
    L1,
    L2,
    Box,
    Gaussian,
    InverseSqrtNorm,
    Laplace,
    Scheme,
    Splitting,
    Stepped,
    Uniform,
    drawn_level,
    level_count,
)
from idrc_jax.certificates.user_schemes import check_own
from idrc_jax.core import normal_thresholds, validate

CERTIFICATES = ("one_sided", "two_sided", "runner_up")  # of a network's own votes, about the class that they choose
TOP_K = "top_k"
INCREMENTAL = "incremental"
_PLANS = {"two_sided": (Fixed,), "runner_up": (Fixed,), TOP_K: (Fixed, SelectionFree)}  # of others: all
_TWO_SIDED = (Gaussian, Stepped, Box, Laplace, Splitting)
_IN_L1 = {Box: norms.box, Laplace: norms.laplace, Splitting: norms.box}  # in units of the noise level
_OF_THE_PAPER = (Gaussian, L1, L2, Uniform, InverseSqrtNorm)

# SciPy's normal quantile is good to about 1e-15 of itself; radii lose 2**-40 (9e-13) of themselves.
_MARGIN = 2.0**-40


@dataclass(frozen=True)
class Certificate:
    """What is certified at one image, and what it rests on.

    Attributes:
      predict: the class, or -1 (abstain).
      radius: valid radius in pixel units, in `norm`; 0 when abstaining.
      radius_published: the paper's radius; 0 when abstaining, nan for a scheme that is not in the paper.
      selected: the class that the selection votes chose, -1 for none.
      statistic: the image's statistic under the scheme.
      sigma_x: the noise level that was used, a float32 value.
      p_lower: lower confidence bound on the probability of `selected`, or of the label ("top_k").
      n, n0: estimation and selection samples.
      votes: estimation votes, one count a class, then those whose logits were not finite.
      votes_by_level: of a scheme of several levels, all that was drawn of the image, in this order; sigma_x, selected,
        p_lower, n and votes are then of the level that the radius is from, or the last.
      norm: of both radii, a name in `norms.EXPONENTS`.
    """

    predict: int
    radius: float
    radius_published: float
    selected: int
    statistic: float
    sigma_x: float
    p_lower: float
    n: int
    n0: int
    votes: tuple[int, ...]
    votes_by_level: tuple[LevelVotes, ...] = ()
    norm: str = "l2"

    def in_norm(self, norm: str, dim: int) -> Self:
        """The same with what its radii say in another norm about images of `dim` values (see `norms.stated`)."""
        valid, published = norms.stated((self.radius, self.radius_published), self.norm, norm, dim).tolist()
        return replace(self, radius=valid, radius_published=published, norm=norm)


def radius(scheme: Scheme, statistic: ArrayLike, p_lower: ArrayLike, *, dim: int) -> Numbers:
    """The valid radius in pixel units, in the scheme's norm.

    Args:
      scheme: the noise that the votes were drawn under.
      statistic: the image's, `scheme.statistic(image)` in float64; scalar or [rows].
      p_lower: lower bound on the top class's probability, in [0, 1); broadcasts with statistic.
      dim: number of values of an image, H * W * C.

    Returns:
      float64 of the broadcast shape, 0 where p_lower <= 1/2 or the noise level is 0.
      `gaussian`: sigma * Phi^-1(p_lower) (Cohen et al. 2019).
      `stepped`: the same with the bin's level, cut at the distance to the bin's edge.
      `l2`: level sets of the likelihood ratio (`spherical`).
      `box`, `laplace`, `splitting`: in l1 (`norms`).
      `uniform`: 0; noise spheres around different images meet in a set of measure zero, so nothing carries over.
      Any other scheme with the law "normal" (`l1`, `inverse_sqrt_norm`, your own): Neyman and Pearson's worst case over
      all levels that `scale_bounds` allows (`gaussian_pair`).

    Raises:
      ValueError: p_lower outside [0, 1), dim < 1, a statistic that is not finite, `cascade` and `routed`, whose radii
        follow from several bounds (`several_levels`), a scheme without bounds, or a subclass of one whose radius does
        not ask them.

    Guarantee: a smoothed classifier whose class probability at the image is at least `p_lower` predicts that class at
    every image nearer than the result, each under its own noise. Rounding errs below; by how much is stated in
    `gaussian_pair.radius` and `spherical.radius`, and is at most 1e-12 of the radius for the others.
    """
    level, p = _prepare(scheme, statistic, p_lower, dim)
    rows = np.flatnonzero(level > 0)
    statistics_of = np.broadcast_to(np.asarray(statistic, np.float64), level.shape)
    found = np.zeros(level.shape)
    found.flat[rows] = _valid(scheme, statistics_of.flat[rows], level.flat[rows], p.flat[rows], dim)
    return found[()]


def two_sided_radius(
    scheme: Scheme, statistic: ArrayLike, p_lower: ArrayLike, p_upper: ArrayLike, *, dim: int
) -> Numbers:
    """The radius by bounds on all classes, where the level near the image is constant: the paper's formula, sigma / 2 *
    (Phi^-1(p_lower) - Phi^-1(p_upper)), for `gaussian` and `stepped`; `norms.box` and `norms.laplace`, in l1.

    Args:
      p_upper: upper bound on every other class's probability, in (0, 1]; both bounds hold at once.
      Others: as for `radius`.

    Returns:
      float64; 0 where p_lower <= p_upper.

    Raises:
      ValueError: another scheme than these, or arguments as for `radius`.

    Guarantee: as for `radius`, of a class that has at least `p_lower` where no other has more than `p_upper`.
    """
    check_certificate("two_sided", scheme)
    level, lower = _prepare(scheme, statistic, p_lower, dim)
    level = _constant_level(scheme, statistic, level)
    upper = np.asarray(p_upper, np.float64)
    if not (np.all(upper >= 0) and np.all(upper <= 1)) or (0 in upper and not isinstance(scheme, Splitting)):
        raise ValueError(f"Expected 0 < p_upper <= 1, got {p_upper}.")
    if type(scheme) in _IN_L1:
        return np.where(lower > upper, level * _IN_L1[type(scheme)](lower, upper), 0.0)[()]
    with np.errstate(divide="ignore"):
        low, high = special.ndtri(lower), special.ndtri(upper)
        gap = low - high - _MARGIN * (np.abs(low) + np.abs(high))
    found = np.where(lower > upper, np.maximum(level / 2 * gap, 0.0), 0.0)
    return _cut(scheme, statistic, found, dim)[()]


def published_radius(scheme: Scheme, p_lower: ArrayLike) -> Numbers:
    """The paper's radius sigma * Phi^-1(p_lower), whatever the scheme; 0 when p_lower <= 1/2.

    nan for `stepped`, `cascade`, `routed` and your own, which are not in the paper. Not a certificate except for
    `gaussian`: it ignores that the noise changes with the image.
    """
    _check(p_lower)
    published = _cohen(scheme.sigma, np.asarray(p_lower, np.float64))
    return (published if type(scheme) in _OF_THE_PAPER else np.full_like(published, np.nan))[()]


def published_is_valid(made: Mapping[str, object]) -> bool:
    """Whether results under these settings (a manifest's guarantee) have, by definition, published radii that are the
    valid ones."""
    return made.get("scheme") == Gaussian.name and made.get("certificate") in ("one_sided", INCREMENTAL)


def explain(scheme: str, certificate: str = "one_sided") -> str:
    """One sentence: what the radius of a scheme, named as in result files, is worth. Your own are like `l1`."""
    if certificate == TOP_K:
        return "The radius is that within which the true class is among the k likeliest (after Jia et al. 2020)."
    if certificate == INCREMENTAL:
        of_scheme = explain(scheme).removesuffix(".")
        return f"{of_scheme}, of the votes of another network less the noise on which this one loses the class."
    input_dependent = (
        "The radius is the Neyman-Pearson worst case over every noise level within reach; the published one ignores "
        "that the noise changes with the image and is not a certificate."
    )
    return {
        "gaussian": "The radius is Cohen et al.'s (2019), valid for constant Gaussian noise.",
        "l2": "The radius comes from the level sets of this noise's likelihood ratio; the published one is that of "
        "Gaussian noise, which this is not, and is not a certificate.",
        "uniform": "The radius is 0: under this noise the laws at two different images never overlap, so votes "
        "at one say nothing about the other.",
        "stepped": "The radius is Cohen et al.'s (2019) with the level of the image's bin, cut at the distance to the "
        "bin's edge.",
        "box": "The radius is Yang et al.'s (2020), valid in l1 for noise that is uniform on a box.",
        "laplace": "The radius is Teng et al.'s (2019), valid in l1 for Laplace noise.",
        "splitting": "The radius is Levine and Feizi's (2021), valid in l1 for sure: all offsets voted.",
        "cascade": "The radius is Cohen et al.'s (2019) with the level that decides, cut where a larger level could be "
        "sure of another class.",
        "routed": "The radius is Cohen et al.'s (2019) at the level chosen, cut where another may decide otherwise.",
    }.get(scheme, input_dependent)


def check_certificate(certificate: str, scheme: Scheme, plan: Plan | None = None) -> None:
    """ValueError unless this certificate, of a network's own votes, exists for this scheme and plan."""
    validate.one_of("certificate", certificate, CERTIFICATES)
    _check_terms(certificate, scheme, plan)


def _check_terms(certificate: str, scheme: Scheme, plan: Plan | None) -> None:
    able = _TWO_SIDED if certificate in CERTIFICATES else (Gaussian, Stepped)
    if certificate in _PLANS and not isinstance(scheme, able):
        *others, last = (one.name for one in able)
        raise ValueError(
            f"Expected the scheme {', '.join(others)} or {last} for a {certificate} certificate, got {scheme.name}: "
            "its formula needs the same noise at both images. Use one_sided."
        )
    if certificate == INCREMENTAL and isinstance(scheme, Splitting):
        raise ValueError(
            "Expected a scheme of drawn noise for pairs of votes, got splitting: certify the variant itself."
        )
    if plan is not None and isinstance(scheme, Splitting) and plan != Exhaustive(scheme.positions):
        name, got = ("n", plan.n) if isinstance(plan, Exhaustive) else ("plan", plan.name)
        wanted = {"n": f"n = {scheme.positions}, all", "plan": f"plan exhaustive, all {scheme.positions}"}[name]
        told = f"Expected {wanted} offsets of splitting at sigma {scheme.sigma:g}, got {got}."
        raise validate.SettingError(told, name)
    if isinstance(plan, Exhaustive) and not isinstance(scheme, Splitting):
        raise ValueError(f"Expected another plan for {scheme.name}, got exhaustive, which is of splitting's offsets.")
    plans = _PLANS.get(certificate, (Plan,))
    counted = certificate == "two_sided" and isinstance(scheme, Splitting)  # there are no bounds to pay for
    if plan is not None and not (counted or isinstance(plan, plans)):
        why = "a class chosen by other votes, and one look" if len(plans) == 1 else "one look at the votes"
        raise ValueError(
            f"Expected the plan {' or '.join(one.name for one in plans)} for a {certificate} certificate, got "
            f"{plan.name}: its bounds need {why}. Use one_sided."
        )


def usual_plan(scheme: Scheme, *, n0: int, n: int) -> Plan:
    """The plan of a scheme where no other is asked for: `fixed`, but all offsets of `splitting`."""
    return Exhaustive(scheme.positions) if isinstance(scheme, Splitting) else Fixed(n=n, n0=n0)


def lower_alpha(made: Mapping[str, Any]) -> float:
    """Of the alpha of results under these settings (a manifest's guarantee), the error of the bound `p_lower` alone."""
    return made["alpha"] * {
        "two_sided": 1 / made["classes"],
        "runner_up": confidence_bounds.OF_CLASS,
        TOP_K: confidence_bounds.OF_CLASS,
        INCREMENTAL: 1 - made.get("paired", {}).get("share", 0),
    }.get(made["certificate"], 1)


def from_votes(
    scheme: Scheme,
    statistic: Sequence[float] | np.ndarray,
    selected: Sequence[int] | np.ndarray,
    votes: np.ndarray,
    *,
    plan: Plan,
    alpha: float,
    dim: int,
    certificate: str = "one_sided",
    labels: Sequence[int] | np.ndarray = (),
    k: int = 1,
    lost: Sequence[int] | np.ndarray = (),
    pairs: Pairs | None = None,
) -> list[Certificate]:
    """The certificates of images from their votes.

    Args:
      statistic: float64 [rows], the images'.
      selected: int [rows], the classes that selection votes chose (`confidence_bounds.select`), or these votes under a
        plan without selection.
      votes: int [rows, K + 1], the estimation votes, of other samples than selection (see `confidence_bounds`).
      plan: by which they were drawn.
      alpha: error probability of each image.
      dim: number of values of an image.
      certificate: "one_sided" (p_lower against 1/2); "two_sided" (against the largest upper bound of the other
        classes, each of the K bounds at alpha / K); "runner_up" (the same by two bounds, see
        `confidence_bounds.rival_bounds`); "top_k" (that the label is among the k likeliest); or "incremental" (of
        another network than the votes', by pairs of both). All but "one_sided" and "incremental" are for `gaussian` and
        `stepped`, all but "top_k" for `box` and `laplace`, and for the plan `fixed`; "top_k" for `selection_free`, too.
      labels, k: of "top_k": int [rows], the classes it is about, and k. `predict` is then the label or -1.
      lost, pairs: of "incremental": see `Pairs.lower`.

    A noise level of 0 (a black image) abstains: no noise was drawn, so nothing is known.

    Guarantee: for each image on its own, with probability at least 1 - alpha over the votes, `radius` is valid.
    """
    validate.in_open_unit_interval("alpha", alpha)
    validate.one_of("certificate", certificate, (*CERTIFICATES, TOP_K, INCREMENTAL))
    _check_terms(certificate, scheme, plan)
    statistic, votes = np.asarray(statistic, np.float64), np.asarray(votes)
    level = drawn_level(scheme, statistic)
    selected = np.asarray(selected)
    about = np.asarray(labels) if certificate == TOP_K else selected
    own, n = votes[np.arange(len(votes)), about], np.sum(votes, axis=1)
    rivals = np.full((len(votes), 1), 0.5)
    if certificate == "two_sided" and isinstance(plan, Exhaustive):
        others = np.where(np.arange(votes.shape[1] - 1) == selected[:, None], 0, votes[:, :-1])
        p_lower, rivals = plan.lower(own, n, alpha), np.max(others, axis=1, keepdims=True) / n[:, None]
    elif certificate == "two_sided":
        bounds = [confidence_bounds.simultaneous_bounds(*row, alpha) for row in zip(selected, votes, strict=True)]
        p_lower, rivals = np.split(np.reshape(bounds, (-1, 2)), 2, axis=1)
        p_lower = p_lower[:, 0]
    elif certificate in ("runner_up", TOP_K):
        p_lower, rivals = top_k.bounds(about, votes, alpha, k)
    elif certificate == INCREMENTAL:
        p_lower = (pairs or Pairs()).lower(plan.lower, own, n, np.asarray(lost), alpha)
    else:
        p_lower = plan.lower(own, n, alpha)
    if scheme.exact:
        # Probabilities under the rounded normal law are within this of those under the law that was drawn.
        gap = normal_thresholds.total_variation(level, dim)
        p_lower = np.maximum(p_lower - gap, 0.0)
        rivals = np.minimum(rivals + gap[:, None], 1.0) if certificate in _PLANS else rivals
    p_lower = np.where((level > 0) & (about != confidence_bounds.ABSTAIN), p_lower, 0.0)
    if certificate == TOP_K:
        found = top_k.radius(p_lower, rivals) * _constant_level(scheme, statistic, level)
        radii = _cut(scheme, statistic, found, dim)
    elif certificate in _PLANS:
        radii = two_sided_radius(scheme, statistic, p_lower, rivals[:, 0], dim=dim)
    else:
        radii = radius(scheme, statistic, p_lower, dim=dim)
    sure = p_lower > top_k.strongest_rival(rivals)
    published = published_radius(scheme, np.where(sure, p_lower, 0.0))
    return [
        Certificate(
            predict=int(about[i]) if sure[i] else confidence_bounds.ABSTAIN,
            radius=float(radii[i]),
            radius_published=float("nan") if certificate == TOP_K else float(published[i]),
            selected=int(selected[i]),
            statistic=float(statistic[i]),
            sigma_x=float(level[i]),
            p_lower=float(p_lower[i]),
            n=int(n[i]),
            n0=plan.selection,
            votes=tuple(int(count) for count in votes[i]),
            norm=scheme.norm,
        )
        for i in range(len(votes))
    ]


def _prepare(scheme: Scheme, statistic: ArrayLike, p_lower: ArrayLike, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn level and p_lower, of one shape, checked."""
    check_own(scheme)
    if level_count(scheme) > 1:
        raise ValueError(
            f"Expected a scheme of one level, got {scheme.name}: several_levels.certificate takes the votes of each."
        )
    _check(p_lower)
    validate.at_least("dim", dim, 1)
    if not np.all(np.isfinite(np.asarray(statistic, np.float64))):
        raise ValueError(f"Expected finite statistics, got {statistic}.")
    level, p = np.broadcast_arrays(drawn_level(scheme, statistic), np.asarray(p_lower, np.float64))
    return level, p


def _valid(scheme: Scheme, statistic: np.ndarray, level: np.ndarray, p: np.ndarray, dim: int) -> np.ndarray:
    """`radius` for [rows] with a level above 0."""
    if isinstance(scheme, Uniform):
        return np.zeros(p.shape)
    if isinstance(scheme, L2):
        return level * spherical.radius(p, dim)
    if type(scheme) in _IN_L1:
        radii = _constant_level(scheme, statistic, level) * _IN_L1[type(scheme)](p, 1 - p)
        return np.where(p > 0.5, radii, 0.0)
    if isinstance(scheme, Gaussian | Stepped):
        return _cut(scheme, statistic, _cohen(_constant_level(scheme, statistic, level), p), dim)
    if scheme.law != "normal" or type(scheme).scale_bounds is Scheme.scale_bounds:
        raise ValueError(
            f"Expected the scheme {scheme.name} to have the law 'normal' and to give scale_bounds, from which its "
            "certificate follows."
        )

    def bounds(rows: np.ndarray, distance: np.ndarray) -> tuple:
        return scheme.scale_bounds(statistic[rows], distance, dim)

    return gaussian_pair.radius(p, level, bounds, dim)


def _constant_level(scheme: Scheme, statistic: ArrayLike, level: np.ndarray) -> np.ndarray:
    """The smaller of the level drawn and the level asked for, before it was rounded to float32."""
    return np.minimum(level, scheme.scale(np.asarray(statistic, np.float64)))


def _cut(scheme: Scheme, statistic: ArrayLike, radii: np.ndarray, dim: int) -> np.ndarray:
    """Radii end where the noise level changes."""
    if isinstance(scheme, Stepped):
        return np.minimum(radii, scheme.distance_to_edge(statistic, dim))
    return radii


def _cohen(sigma: float | np.ndarray, p_lower: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(p_lower > 0.5, sigma * special.ndtri(p_lower) * (1 - _MARGIN), 0.0)


def _check(p_lower: ArrayLike) -> None:
    p_lower = np.asarray(p_lower)
    if not (np.all(p_lower >= 0) and np.all(p_lower < 1)):
        raise ValueError(f"Expected 0 <= p_lower < 1, got {p_lower}.")
