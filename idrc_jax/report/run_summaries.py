"""What a report says about one run, as plain values: curves, classes, confusions, samples, settings, the command."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from idrc_jax.certificates import CERTIFICATES, confidence_bounds, sampling_plans, schemes, user_schemes
from idrc_jax.core.json_values import Json
from idrc_jax.report import class_names
from idrc_jax.results import Results, metrics
from idrc_jax.results.manifest import Manifest, flags, networks, told_by_level

MOST_CLASSES = 25  # that a page shows one by one
_WITHOUT_FILES = ("digits", "synthetic")  # data sets
_POINTS = 400  # of a curve: more than a screen tells apart


@dataclass(frozen=True)
class Curve:
    """Accuracy at or above each radius, with its 95 % interval: lists of equal length, radii ascending."""

    radius: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class ClassRadii:
    """The images of one true class: how many, how predicted, and the radii of those predicted rightly.

    `quantiles` are the 5, 25, 50, 75 and 95 % ones; None where no image is predicted rightly, or no radius is known.
    """

    name: str
    images: int
    right: int
    wrong: int
    abstained: int
    quantiles: tuple[float, ...] | None
    mean: float | None


@dataclass(frozen=True)
class Spending:
    """Samples and seconds of a run; None where the file does not say."""

    samples: int | None
    most: int | None
    quantiles: tuple[int, ...] | None
    seconds: float
    rate: float | None


def curve(results: Results, *, published: bool = False) -> Curve:
    """Accuracy against radius at every radius of an image; evenly spaced ones where those would be too many."""
    return _curve(metrics.correct_radii(results, published=published))


def probability_curve(results: Results) -> Curve | None:
    """The share of images that are predicted rightly with a p_lower of at least p, as a function of the probit of p.

    On that scale the neighbourhood of 1 is wide; under constant Gaussian noise it is the radius in units of σ. None for
    files without p_lower.
    """
    found = metrics.right_probabilities(results)
    return None if found is None else _curve(special.ndtri(found))


def _curve(values: np.ndarray) -> Curve:
    radii = np.sort(values)
    ends = np.unique(radii[radii >= 0])
    top = float(ends[-1]) if len(ends) else 0.0
    if len(ends) > _POINTS:
        ends = np.linspace(0, top, _POINTS)
    at = np.unique(np.concatenate([[0.0], ends, [top * 1.001 + 1e-3]]))
    counts = len(radii) - np.searchsorted(radii, at)
    low, high = confidence_bounds.proportion_interval(counts, len(radii))
    return Curve(at.tolist(), (counts / len(radii)).tolist(), low.tolist(), high.tolist())


def accuracies(
    results: Results, radii: Sequence[float], *, published: bool = False
) -> list[tuple[float, float, float]]:
    """(accuracy, low, high) at each radius, the last two a 95 % interval."""
    found = metrics.correct_radii(results, published=published)
    counts = np.asarray([np.sum(found >= radius) for radius in radii])
    low, high = confidence_bounds.proportion_interval(counts, len(found))
    return list(zip((counts / len(found)).tolist(), low.tolist(), high.tolist(), strict=True))


def probabilities(results: Results) -> Json | None:
    """What a report says of p_lower: (share, low, high) of the images at each of `metrics.PROBABILITIES`, None where n
    votes cannot show so much; and the part of the ACR that is from easy images. None for files without p_lower."""
    found = metrics.right_probabilities(results)
    if found is None:
        return None
    most = metrics.largest_probability(results) or 1.0
    counts = np.asarray([np.sum(found >= p) for p in metrics.PROBABILITIES])
    low, high = confidence_bounds.proportion_interval(counts, len(found))
    shares = zip((counts / len(found)).tolist(), low.tolist(), high.tolist(), strict=True)
    shown = [one if p <= most else None for p, one in zip(metrics.PROBABILITIES, shares, strict=True)]
    easy = metrics.radius_share(results, metrics.EASY) if most >= metrics.EASY else None
    return {"shares": shown, "easy": easy if metrics.has_certificates(results) else None}


def per_class(results: Results, names: Sequence[str], *, published: bool = False) -> list[ClassRadii]:
    """Each true class, by its number; of more than `MOST_CLASSES` those with most images."""
    radii = metrics.correct_radii(results, published=published)
    labels = np.asarray([row.label for row in results.rows])
    right = np.asarray([row.correct == 1 for row in results.rows])
    abstained = np.asarray([row.predict == confidence_bounds.ABSTAIN for row in results.rows])
    most = Counter(labels.tolist()).most_common(MOST_CLASSES)
    made = []
    for label in sorted(label for label, _ in most):
        own = labels == label
        known = radii[own & right & (radii >= 0)]
        quantiles = tuple(np.quantile(known, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()) if len(known) else None
        made.append(
            ClassRadii(
                class_names.name(names, label), int(own.sum()), int((own & right).sum()),
                int((own & ~right & ~abstained).sum()), int((own & abstained).sum()), quantiles,
                float(np.mean(np.maximum(radii[own], 0))),
            )
        )  # fmt: skip
    return made


def confusion(results: Results) -> tuple[list[int], list[int], list[list[int]]] | None:
    """True classes, predictions (-1, abstained, last) and counts `[true][predicted]`; None beyond `MOST_CLASSES`."""
    pairs = Counter((row.label, row.predict) for row in results.rows)
    classes = sorted({number for pair in pairs for number in pair if number != confidence_bounds.ABSTAIN})
    if len(classes) > MOST_CLASSES:
        return None
    columns = [*classes, confidence_bounds.ABSTAIN]
    present = [label for label in classes if any(pairs[label, number] for number in columns)]
    return present, columns, [[pairs[label, number] for number in columns] for label in present]


def mistakes(results: Results) -> list[tuple[int, int, int]]:
    """The most frequent (true class, wrong prediction, count), abstentions among them."""
    wrong = Counter((row.label, row.predict) for row in results.rows if not row.correct)
    return [(*pair, count) for pair, count in wrong.most_common(MOST_CLASSES)]


def spending(results: Results) -> Spending:
    """Samples drawn, the most that the plan allows, quantiles (5, 50, 95 %) of an image's, and seconds."""
    seconds = float(sum(row.time for row in results.rows))
    if not results.manifest:
        return Spending(None, None, None, seconds, None)
    drawn = np.asarray([row.samples for row in results.rows])
    made = results.manifest["guarantee"]
    levels = 1 if user_schemes.is_own(made) else schemes.level_count(schemes.from_description(made))
    most = len(drawn) * levels * (made["n"] + made["n0"])
    quantiles = tuple(np.quantile(drawn, (0.05, 0.5, 0.95), method="nearest").tolist())
    return Spending(int(drawn.sum()), most, quantiles, seconds, drawn.sum() / seconds if seconds > 0 else None)


def spacing(indices: Sequence[int]) -> tuple[int, int, int] | None:
    """(start, stop, skip) of indices that are evenly spaced, None of others and of none."""
    ordered = sorted(indices)
    steps = {b - a for a, b in itertools.pairwise(ordered)}
    if not ordered or len(steps) > 1:
        return None
    return ordered[0], ordered[-1] + 1, steps.pop() if steps else 1


def command(results: Results) -> str | None:
    """The command that makes a run's rows anew, on the classifier that its manifest names; None where it cannot: for
    another project's file, images that were in memory, a scheme of the user's own, a part of a run's votes, a
    certificate that rests on another run, noise of no known seed, or networks by level that no `model.by_level` gives.

    FOLDER stands for the data set's place, WEIGHTS (WEIGHTS1, WEIGHTS2 ... by level), DENOISER and ROUTER for
    weights that no call named.
    """
    if results.manifest is None:
        return None
    made = results.manifest["guarantee"]
    if user_schemes.is_own(made) or "subsampled_from" in made or made["certificate"] not in CERTIFICATES:
        return None
    sessions = results.manifest["sessions"]
    plan, name = sampling_plans.from_description(made), made["data"].partition("/")[0]
    if name == "arrays" or "seed" not in made or not _alike(results.manifest):
        return None
    scheme = schemes.describe(schemes.from_description(made))
    fields = {"data.name": name} if name in _WITHOUT_FILES else {"data.name": name, "data.dir": "FOLDER"}
    sizes = [one["data_size"] for one in sessions if "data_size" in one]
    fields |= {"data.size": sizes[-1]} if sizes else {}
    where = spacing([row.idx for row in results.rows])
    if where:
        fields |= dict(zip(("data.start", "data.stop", "data.skip"), where, strict=True))
    fields |= {f"noise.{name}": value for name, value in scheme.items()}
    fields |= {"sampling.plan": plan.name, "seed": made["seed"]}
    fields |= {f"certify.{name}": made[name] for name in ("alpha", "certificate")}
    for key, value in sampling_plans.describe(plan).items():
        if key in ("n0", "n"):
            fields[f"certify.{key}"] = value
        elif key != "plan":
            fields[f"sampling.{key}"] = value
    config = "imagenet.py" if name == "imagenet" else "cifar10.py"
    return f"idrc-certify --config={config} --workdir=OUT {flags(fields | classifier_settings(results.manifest))}"


def classifier_settings(manifest: Manifest) -> Json:
    """The settings of a run's classifier; of weights that no call named WEIGHTS and the like (see `command`)."""
    made, named = manifest["guarantee"], networks(manifest)
    dtype = {"model.dtype": made["dtype"]} if "dtype" in made else {}
    if _named_by_level(manifest):
        unknown = ",".join(f"WEIGHTS{number}" for number, _ in enumerate(made["by_level"], 1))
        fields = {"model.by_level": named.get("model.by_level", unknown), **dtype}
    elif "factory" in made:
        fields = {"model.factory": made["factory"]}
    else:
        fields = {"model.weights": named.get("model.weights", "WEIGHTS"), **dtype}
    fields |= {"model.consensus": made["consensus"]} if "consensus" in made else {}
    if "denoiser_sigma" in made:
        fields |= {"denoiser.weights": named.get("denoiser.weights", "DENOISER")}
        fields |= {f"denoiser.{name}": made[f"denoiser_{name}"] for name in ("sigma", "steps")}
        fields |= {"denoiser.sigma": 0.0} if _told_levels(manifest) else {}
    elif any("denoiser" in one.get("training", {}) for one in manifest["sessions"]):  # which the run would remember
        fields |= {"denoiser.weights": ""}
    if "router" in made:
        fields["router.weights"] = named.get("router.weights", "ROUTER")
    return fields


def _named_by_level(manifest: Manifest) -> bool:
    """Whether `model.by_level` gives a run's networks: one behind a denoiser that is told each level is several."""
    found = manifest["guarantee"].get("by_level", [])
    one = all(_but_for_sigma(network) == _but_for_sigma(found[0]) for network in found)
    return bool(found) and not (one and _told_levels(manifest) and "model.by_level" not in networks(manifest))


def _told_levels(manifest: Manifest) -> bool:
    """Whether the denoiser in front of each network by level is told that level."""
    made = manifest["guarantee"]
    levels = () if user_schemes.is_own(made) else schemes.constant_levels(schemes.from_description(made))
    return bool(levels) and told_by_level(made) == list(levels)


def _but_for_sigma(network: Json) -> Json:
    told = {name: value for name, value in network.get("denoiser", {}).items() if name != "sigma"}
    return network | {"denoiser": told}


def _alike(manifest: Manifest) -> bool:
    """Whether a manifest's networks by level, if there are any, are as the settings make them: single ones from files,
    or one, of one compute type, behind no denoiser or one that is told the same or its level everywhere; and the
    classifier itself the last of them."""
    made = manifest["guarantee"]
    found, told = made.get("by_level", []), told_by_level(made)
    rest = [(one.get("dtype"), _but_for_sigma(one)["denoiser"]) for one in found]
    return (
        all(one == rest[0] for one in rest)
        and (len(set(told)) < 2 or _told_levels(manifest))
        and (not found or told[-1] == made.get("denoiser_sigma"))
        and not (_named_by_level(manifest) and any(one.keys() & {"members", "factory"} for one in found))
    )
