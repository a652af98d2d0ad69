"""What a result file says about a data set: certified accuracy, average certified radius, abstentions."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from idrc_jax import certificates, several_levels
from idrc_jax.certificates import confidence_bounds, norms, sampling_plans, schemes, user_schemes
from idrc_jax.core import validate
from idrc_jax.core.json_values import Json
from idrc_jax.results.manifest import asked, indices_sha256
from idrc_jax.results.recertify import certificates_of
from idrc_jax.results.result_rows import Results
from idrc_jax.results.runs import norm_of

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
RADII_IN = {"l1": RADII, "l2": RADII, "linf": tuple(grey / 510 for grey in (0, 1, 2, 3, 4, 6, 8))}  # by norm
PLACES = {"l1": 3, "l2": 3, "linf": 5}  # of radii, by norm: those in linf are near .01
PROBABILITIES = (0.5, 0.75, 0.9, 0.99, 0.999)
EASY = 0.99  # the probability from which on an image is called easy


def correct_radii(results: Results, *, published: bool = False) -> np.ndarray:
    """Each image's radius where its prediction is right and certified, else -inf: float64 [images].

    Args:
      published: take the paper's radii, which are not valid except for `gaussian`, instead of the valid ones. A radius
        that is nan (no certificate) counts as not certified.

    Raises ValueError for a file without rows, of images without labels, or without published radii when they are asked
    for.
    """
    _require_labels(results)
    radii = []
    for row in results.rows:
        radius = row.radius_published if published else row.radius
        if radius is None:
            raise ValueError(f"Expected a file with radius_published, got the six columns of {results.path}.")
        radii.append(radius if row.correct and not math.isnan(radius) else -math.inf)
    return np.asarray(radii)


def has_certificates(results: Results) -> bool:
    """Whether the file's scheme has valid radii; False when every radius is nan."""
    return not all(math.isnan(row.radius) for row in results.rows)


def has_published(results: Results) -> bool:
    """Whether the file has the paper's radii: not other projects' logs, nor schemes that are not in the paper."""
    if results.manifest and user_schemes.is_own(results.manifest["guarantee"]):
        return False
    return any(row.radius_published is not None and not math.isnan(row.radius_published) for row in results.rows)


def published_is_valid(results: Results) -> bool:
    """Whether the published radii are the valid ones, by definition and in the file, so that one says it all."""
    if not results.manifest or not has_published(results):
        return False
    radii = np.asarray([(row.radius, row.radius_published) for row in results.rows], float)
    same = np.allclose(radii[:, 0], radii[:, 1], rtol=1e-6, atol=0)
    return same and certificates.published_is_valid(results.manifest["guarantee"])


def certified_accuracy(results: Results, radius: float, *, published: bool = False) -> float:
    """The fraction of images predicted rightly with a radius >= `radius` (pixel units)."""
    return float(np.mean(correct_radii(results, published=published) >= radius))


def certified_accuracy_lower(results: Results, radius: float, confidence: float = 0.95) -> float:
    """The share of these images that is robust: `certified_accuracy`, less the certificates that may be wrong.

    Cohen et al. (2019), appendix, with the binomial law in place of its tail bound: of m certificates at most the
    `confidence` quantile of Bin(m, alpha) are wrong. m are all images that the run was to certify, as far as its
    manifest says, also those that it has no row of yet: votes may have chosen which rows came first.

    Guarantee: with probability at least `confidence` over the sampling at least this share of the images has the right
    prediction of the smoothed classifier everywhere within `radius`. It needs noise that is independent across images,
    as a run's is where every image has an index of its own.
    """
    validate.in_open_unit_interval("confidence", confidence)
    if results.manifest is None:
        raise ValueError(f"Expected a manifest beside {results.path}, with alpha, got none.")
    radii = correct_radii(results)
    certified = asked(results.manifest, results.path) | {row.idx for row in results.rows}
    wrong = stats.binom.ppf(confidence, len(certified), results.manifest["guarantee"]["alpha"])
    return float(max(np.sum(radii >= radius) - wrong, 0) / len(radii))


def average_certified_radius(results: Results, *, published: bool = False) -> float:
    """ACR (Zhai et al. 2020): the mean over images of the radius, 0 where the prediction is wrong or uncertified."""
    return float(np.mean(np.maximum(correct_radii(results, published=published), 0.0)))


def right_probabilities(results: Results) -> np.ndarray | None:
    """Each image's p_lower, the lower bound on its class's probability under the noise, where the prediction is right,
    else 0: float64 [images]. None for six-column logs, which do not have it; errors as for `correct_radii`."""
    _require_labels(results)
    if any(row.p_lower is None for row in results.rows):
        return None
    return np.asarray([row.p_lower if row.correct else 0.0 for row in results.rows], np.float64)


def largest_probability(results: Results) -> float | None:
    """The largest p_lower within reach: that of votes for one class alone, at the plan's best look; None without a
    manifest."""
    if results.manifest is None:
        return None
    made = results.manifest["guarantee"]
    plan = sampling_plans.from_description(made)
    bounds = several_levels.bounds_of_results(made)
    if bounds is not None:
        return bounds.most_lower
    alpha = certificates.lower_alpha(made)
    looks = np.asarray(plan.looks())
    if made["certificate"] == certificates.TOP_K:  # whose class no votes choose
        return float(np.max(confidence_bounds.clopper_pearson_lower(looks, looks, alpha)))
    found = float(np.max(plan.lower(looks, looks, alpha)))
    if made["certificate"] != certificates.INCREMENTAL:
        return found
    paired = made["paired"]
    return found - float(confidence_bounds.clopper_pearson_upper(0, paired["n"], made["alpha"] * paired["share"]))


def radius_share(results: Results, probability: float) -> float | None:
    """The part of the ACR that comes from images with a p_lower of at least `probability`.

    ACR grows with these images' radii as much as with those of the others, which are the ones that can be gained (Sun
    et al. 2025). None where there is no p_lower, or the ACR is 0.
    """
    found, radii = right_probabilities(results), np.maximum(correct_radii(results), 0.0)
    if found is None or not radii.any():
        return None
    return float(np.sum(radii[found >= probability]) / np.sum(radii))


def abstention_rate(results: Results) -> float:
    """The fraction of images whose prediction is an abstention."""
    require_rows(results)
    return float(np.mean([row.predict == confidence_bounds.ABSTAIN for row in results.rows]))


def base_accuracy(results: Results) -> float | None:
    """Accuracy of the base classifier under the noise: the mean over images of the share of votes for the true class.

    None for images without labels, files without votes, and incremental runs, whose votes are another network's. Under
    a plan that stops early it is a little off, because where that stops depends on the votes; under a cascade it is of
    the level that an image's radius is from, or the last, and a router leaves out images without votes for a class.
    """
    require_rows(results)
    if results.manifest and "paired" in results.manifest["guarantee"]:
        return None
    voted = [row for row in results.rows if row.n or row.votes_by_level is None]
    if not results.labelled or not voted or any(row.votes is None or not row.n for row in voted):
        return None
    return float(np.mean([(row.votes or {}).get(row.label, 0) / (row.n or 1) for row in voted]))


def clean_accuracy(results: Results) -> float | None:
    """Accuracy of the base classifier on the images without noise, where certification measured it on these images."""
    measured = results.manifest.get("clean") if results.manifest else None
    if measured is None or measured.get("indices_sha256") != indices_sha256(row.idx for row in results.rows):
        return None
    return measured["right"] / measured["images"]


def largest_radius(results: Results) -> float | None:
    """The largest radius that any of the images could get: that of votes for one class alone, at the plan's best look.

    None without a manifest, for a scheme of the user's own, which the file does not hold, and where the file's radii
    are not valid.
    """
    require_rows(results)
    made = results.manifest["guarantee"] if results.manifest else {}
    if not made or user_schemes.is_own(made) or not has_certificates(results):
        return None
    plan = sampling_plans.from_description(made)
    bounds = several_levels.bounds_of_results(made)
    if bounds is not None:
        return float(norms.stated(bounds.largest_radius, bounds.scheme.norm, norm_of([results]), made["dim"]))
    statistic = np.unique(np.asarray([row.statistic for row in results.rows], np.float64))
    votes = np.zeros((len(statistic), made["classes"] + 1), np.int64)
    votes[:, 0] = max(plan.looks(), key=lambda n: float(plan.lower(n, n, made["alpha"])))
    none = np.zeros(len(statistic), np.int64)
    best = certificates_of(made, schemes.from_description(made), statistic, none, votes, labels=none, lost=none)
    return max(one.radius for one in best)


def within_reach(several: Sequence[Results], radii: Sequence[float]) -> tuple[float, ...]:
    """Those of the radii that an image of any of the files could get (`largest_radius`) or has; all where one of the
    files does not say."""
    top = 0.0
    for one in several:
        largest = largest_radius(one)
        if largest is None:
            return tuple(radii)
        top = max(top, largest, *(row.radius for row in one.rows))
    return tuple(radius for radius in radii if radius <= top)


def asked_radii(results: Results) -> tuple[float, ...]:
    """The radii that the plan asked for, in the norm of the file, at which accuracies compare; none but for
    `to_radius`."""
    made = results.manifest["guarantee"] if results.manifest else {}
    if made.get("plan") != "to_radius":
        return ()
    norm = norm_of([results])
    return tuple(float(norms.stated(radius, _own_norm(made), norm, made["dim"])) for radius in made["radii"])


def published_decided(results: Results) -> bool:
    """Whether the plan let votes decide about published radii, too, where there are any beside the valid ones."""
    if not asked_radii(results) or not has_published(results) or published_is_valid(results):
        return True
    return results.manifest is None or results.manifest["guarantee"].get("published", False)


def correct_only(results: Results) -> bool:
    """Whether the plan decided radii of correct predictions alone, so that others, and abstentions, say little."""
    return bool(asked_radii(results)) and (results.manifest or {})["guarantee"].get("correct_only") is True


def last_radius(results: Results) -> float:
    """The largest radius that the plan asked for, as `asked_radii` has it; infinite without any."""
    return max(asked_radii(results), default=math.inf)


def top_k(results: Results) -> int:
    """k where the radii say that the true class is among the k likeliest; 0 where they are of the predicted class."""
    return results.manifest["guarantee"].get("k", 0) if results.manifest else 0


def too_low(results: Results) -> str:
    """What to say of a plan whose `last_radius` is finite."""
    last = rounded_down(last_radius(results))
    others = "others (0, too)" + ("" if published_decided(results) else " and at published radii")
    told = f"asked for radii up to {last:g}: the ACR, and accuracy at {others}, are too low to compare."
    alone = " It decided correct predictions alone: radii and abstentions of others are those of few votes."
    return told + (alone if correct_only(results) else "")


def explained(results: Results) -> str:
    """What the radii are worth, and whether they are stated in another norm than their certificate's; empty without a
    manifest."""
    made = results.manifest["guarantee"] if results.manifest else None
    if made is None:
        return ""
    said, norm = certificates.explain(made["scheme"], made["certificate"]), norm_of([results])
    own = _own_norm(made)
    return said if norm == own else f"{said} It is stated in {norm}, by what its {own} radius says there."


def rounded_down(radius: float) -> float:
    """A radius as labels tell it, to four places: never a larger one than that at which accuracies were counted."""
    nearest = round(float(radius), 4)
    return nearest if nearest <= radius else round(nearest - 1e-4, 4)


def radius_text(radius: float) -> str:
    """The label of a radius in a text table (`rounded_down`), to two places where no more are needed."""
    down = rounded_down(radius)
    return f"{down:.2f}" if down == round(down, 2) else f"{down:.4f}"


def value_text(radius: float, norm: str, rounding: Callable[[float], int] = math.floor) -> str:
    """A radius, or a mean of some, to the places of its norm."""
    places = PLACES[norm]
    return f"{rounding(10**places * radius) / 10**places:.{places}f}"


def bound(share: float, rounding: Callable[[float], int], places: int = 3) -> float:
    """A bound of a share to so many places: a lower one by `math.floor`, an upper one by `math.ceil`."""
    return rounding(round(10**places * share, 6)) / 10**places  # .57 is not quite 570 thousandths in floating point


def _own_norm(made: Json) -> str:
    """The norm of the scheme's certificate, whatever the radii are stated in."""
    return getattr(schemes.SCHEMES.get(made["scheme"]), "norm", "l2")


def require_rows(results: Results) -> None:
    if not results.rows:
        raise ValueError(f"Expected at least one row in {results.path}, got none.")


def _require_labels(results: Results) -> None:
    require_rows(results)
    if not results.labelled:
        raise ValueError(f"Expected labels in {results.path}, got -1: without them no accuracy is known.")
