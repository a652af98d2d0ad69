"""Certificates and predictions of images in memory."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import data, sampling
from idrc_jax.certificates import Certificate, Splitting, confidence_bounds, sampling_plans, usual_plan
from idrc_jax.certificates.courses import Course, OneLevel
from idrc_jax.certificates.level_schemes import Cascade, Routed
from idrc_jax.certificates.sampling_plans import Fixed, Plan, SelectionFree, ToRadius, ToSignificance
from idrc_jax.certificates.schemes import Scheme, check_pixels, host_levels, level_count, scales
from idrc_jax.certification import arguments, clean_accuracy, provenance
from idrc_jax.certification.decisions import Decisions
from idrc_jax.certification.guarantee import check_fits, check_settings, check_unique, describe_guarantee, labels_for
from idrc_jax.certification.settings import Settings
from idrc_jax.core import validate
from idrc_jax.core.json_values import as_json
from idrc_jax.core.progress import Progress
from idrc_jax.models import Classifier
from idrc_jax.results import Results, Row
from idrc_jax.sampling import implementation_choice, random_keys
from idrc_jax.sampling.dispatch_ahead import Drawn, Scheduler
from idrc_jax.sampling.execution import Execution
from idrc_jax.sampling.vote_counter import VoteCounter
from idrc_jax.several_levels import routed

PREDICTION_SAMPLES = 1000  # at most
_STRIDES = 100  # of a dispatch
_LEAST_RADIUS = 1e-6  # of the smallest level: that of a prediction under a cascade
_FEWEST = 10_000  # votes that are tried, to say how few can name a class

_Answer = TypeVar("_Answer")


def certify(
    classifier: Classifier,
    scheme: Scheme | str,
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    indices: np.ndarray | None = None,
    sigma: float | None = None,
    plan: Plan | None = None,
    n0: int = Fixed.n0,
    n: int = Fixed.n,
    alpha: float = Settings.alpha,
    certificate: str = Settings.certificate,
    seed: int | None = None,
    key: jax.Array | None = None,
    chunk: int = 0,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Results:
    """Certify each image, in memory: CERTIFY of Cohen et al. (2019), or another sampling plan.

    Args:
      classifier: the base classifier.
      scheme: how much noise of which law an image gets; or the name of a scheme that needs no more than `sigma`.
      images: [N, H, W, C], N >= 1, uint8 (which are divided by 255) or floats in [0, 1].
      labels: integers [N], the true classes; None, or -1 for all, where they are unknown.
      indices: integers [N], each once, which name the noise and the rows; 0, 1, ... by default.
      sigma: of a scheme that is given by its name, in pixel units.
      plan: instead of n0 selection and n estimation samples (all offsets, under `splitting`).
      alpha: error probability of each image's certificate.
      certificate: see `certificates.from_votes`.
      seed: of the noise, in 0 .. 2**64 - 1; 0 by default.
      key: instead of the seed, a typed key; manifests name it by its seed (`random_keys.seed_of`).
      chunk, mesh: as for `count_votes`, but chosen by measuring (see `implementation_choice.choose`).
      progress: show a bar on standard error.

    Returns:
      A row an image, in the order of the images, with the manifest that a result file has: what `read_results` gives.
      `save` writes it.

    Raises:
      ValueError: settings that could certify nothing, or arguments that cannot be, each with what to do.

    Guarantee: for each image on its own, with probability at least 1 - alpha over the sampling, no image nearer than
    `radius` (in the scheme's norm, pixel units) has another prediction of the smoothed classifier, under its own
    noise. It does not hold for images that were chosen with the noise of this seed in sight.
    """
    classifier, scheme = arguments.check_classifier(classifier), arguments.check_scheme(scheme, sigma)
    if plan is not None and (n0, n) != (Fixed.n0, Fixed.n):
        raise ValueError(f"Expected n0 and n in the plan alone, got {plan} and n0 = {n0}, n = {n}.")
    named = arguments.check_seed(seed, key)
    settings = Settings(
        plan or usual_plan(scheme, n0=n0, n=n), alpha, Settings.seed if named is None else named, certificate
    )
    check_settings(classifier, scheme, settings)
    pixels = data.to_unit(arguments.check_pixels(images, classifier))
    check_pixels(scheme, pixels)
    dataset = data.from_arrays(data.as_bytes(pixels), labels, split="memory")  # the hash is that of a file of them
    check_fits(classifier, dataset)
    indices = check_unique(np.arange(len(pixels)) if indices is None else sampling.check_indices(indices, pixels))
    every = np.arange(len(pixels))
    checked = provenance.checked_scheme(scheme, pixels, every)
    known = labels_for(settings.plan, dataset, every)
    guarantee = as_json(describe_guarantee(classifier, scheme, dataset, indices, settings))
    samples = len(pixels) * level_count(scheme) * settings.plan.most
    execution = implementation_choice.choose(classifier, scheme, samples=samples, mesh=mesh, chunk=chunk)
    session = provenance.versions() | provenance.training(classifier) | execution.describe() | checked
    made = certify_by(execution, scheme, pixels, settings, indices=indices, labels=known)
    rows: dict[int, Row] = {}
    since = time.perf_counter()
    for position, one in _shown(made, "certify", len(pixels), progress):
        now = time.perf_counter()
        rows[position] = Row.from_certificate(one, int(indices[position]), int(dataset.labels[position]), now - since)
        since = now
    clean = clean_accuracy.measure(classifier, dataset, every, indices) if dataset.labelled else None
    return Results.in_memory([rows[position] for position in range(len(pixels))], guarantee, session, clean)


def certify_by(
    execution: Execution,
    scheme: Scheme,
    images: np.ndarray,
    settings: Settings,
    *,
    indices: np.ndarray,
    labels: np.ndarray | None = None,
) -> Iterator[tuple[int, Certificate]]:
    """The certificates of images by a way to run the network that is already chosen: positions and certificates, as
    the images are decided.

    Args:
      execution: the base classifier, its devices and its chunk.
      scheme: how much noise of which law an image gets.
      images: float32 [N, H, W, C] in [0, 1].
      settings: what else the certificates depend on.
      indices: [N], which name the noise.
      labels: [N], for a plan that asks for them.
    """
    images = sampling.check_images(images, execution.classifier, scheme)
    statistic, levels = host_levels(scheme, images)
    decisions = Decisions(scheme, settings, statistic, int(np.prod(images.shape[1:])), labels)
    key = random_keys.root(settings.seed)
    counter = VoteCounter(execution, scheme, images, levels, indices=indices, key=key)
    scheduler = Scheduler(counter, settings.plan, decisions.course, piece=_STRIDES * counter.stride)
    for drawn in scheduler.run(range(len(images))):
        yield drawn.position, decisions.certificate(drawn)


def predict(
    classifier: Classifier,
    scheme: Scheme | str,
    images: np.ndarray,
    *,
    indices: np.ndarray | None = None,
    sigma: float | None = None,
    n: int = PREDICTION_SAMPLES,
    alpha: float = Settings.alpha,
    adaptive: bool = False,
    seed: int | None = None,
    key: jax.Array | None = None,
    chunk: int = 0,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Predict each image's class: PREDICT of Cohen et al. (2019), the smoothed classifier's class, or -1.

    Args:
      n: samples an image; under a cascade and a router, of each level, at most. `splitting` takes all of its offsets.
      alpha: probability with which an image's answer may be another class than the smoothed classifier's.
      adaptive: stop as soon as the class is clear (`confidence_bounds.predict_sequential`), after at most n samples.
      Others: as for `certify`; an index may come twice, and there may be no image.

    Guarantee: for each image on its own, with probability at least 1 - alpha it returns the smoothed classifier's
    prediction or abstains. Under exact noise at least 1 - alpha - n v, v being what the drawn law may be wrong by at
    the image's level (`normal_thresholds.total_variation`), under `routed` the router level's and the chosen level's
    together; a cascade's bounds have paid (docs/explanation/certificates.md).

    Returns:
      int64 [N]; -1 where the votes do not tell, or where noise of the image's level cannot be drawn
      (`schemes.drawn_levels`).

    Raises:
      ValueError: so few samples that not even unanimous votes could tell, or arguments that cannot be.
    """
    classifier, scheme = arguments.check_classifier(classifier), arguments.check_scheme(scheme, sigma)
    named = arguments.check_seed(seed, key)
    check_prediction(classifier, scheme, n, alpha, adaptive=adaptive)
    pixels = data.to_unit(arguments.check_pixels(images, classifier))
    check_pixels(scheme, pixels)
    samples = len(pixels) * level_count(scheme) * n
    execution = implementation_choice.choose(classifier, scheme, samples=samples, mesh=mesh, chunk=chunk)
    made = predict_by(
        execution,
        scheme,
        pixels,
        indices=np.arange(len(pixels)) if indices is None else indices,
        n=n,
        alpha=alpha,
        adaptive=adaptive,
        seed=Settings.seed if named is None else named,
    )
    classes = dict(_shown(made, "predict", len(pixels), progress))
    return np.asarray([classes[position] for position in range(len(pixels))], np.int64)


def predict_by(
    execution: Execution,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    n: int,
    alpha: float,
    adaptive: bool,
    seed: int,
) -> Iterator[tuple[int, int]]:
    """`predict` by a way to run the network that is already chosen, with an n that `check_prediction` has passed:
    positions and classes, as the images are decided.

    Args:
      execution: the base classifier, its devices and its chunk.
      Others: as for `predict`.
    """
    images = sampling.check_images(images, execution.classifier, scheme)
    statistic, levels = host_levels(scheme, images)
    counter = VoteCounter(execution, scheme, images, levels, indices=indices, key=random_keys.root(seed))
    plan, dim = prediction_plan(scheme, n, adaptive=adaptive), int(np.prod(images.shape[1:]))
    if isinstance(scheme, Routed):
        both = routed.PredictionCourse(routed.Bounds(scheme, plan, alpha, dim), _answer(adaptive))

        def course(position: int) -> Course:
            return both

        def answer(drawn: Drawn) -> int:
            return both.answer(drawn.levels)
    elif isinstance(scheme, Cascade):
        decisions = Decisions(scheme, Settings(plan, alpha, seed), statistic, dim)
        course = decisions.course

        def answer(drawn: Drawn) -> int:
            return decisions.certificate(drawn).predict
    else:
        only = OneLevel(plan.stopping(np.zeros_like, alpha))  # by the votes alone, whatever the radius
        name_class = _likeliest if isinstance(scheme, Splitting) else _answer(adaptive)

        def course(position: int) -> Course:
            return only

        def answer(drawn: Drawn) -> int:
            return name_class(np.asarray(drawn.levels[0].votes), alpha)

    scheduler = Scheduler(counter, plan, course, piece=_STRIDES * counter.stride, stage=random_keys.PREDICTION)
    without = _without_noise(scheme, statistic, levels)
    for drawn in scheduler.run(range(len(images))):
        yield drawn.position, confidence_bounds.ABSTAIN if without[drawn.position] else answer(drawn)


def _without_noise(scheme: Scheme, statistic: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """bool [N]: images that were voted on without noise, the levels drawn [N, levels] being 0, though the scheme has
    noise for them; not a black image under `l1`, which has none."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.any((levels == 0) & (scales(scheme, statistic) != 0), axis=1)


def _shown(made: Iterable[tuple[int, _Answer]], title: str, total: int, show: bool) -> Iterator[tuple[int, _Answer]]:
    """The same, with a bar that counts them."""
    bar = Progress(title, total, 0, unit="images", show=show)
    try:
        for done, one in enumerate(made, start=1):
            bar.update(done)
            yield one
    finally:
        bar.close()


def prediction_plan(scheme: Scheme, n: int, *, adaptive: bool) -> Plan:
    """How the votes of a prediction are drawn; arguments as for `predict`.

    The class of a cascade is that of a certificate, however small, so it is drawn for like one.
    """
    if isinstance(scheme, Splitting):
        return usual_plan(scheme, n0=0, n=n)
    if not adaptive:
        return SelectionFree(n=n)
    if isinstance(scheme, Cascade):
        return ToRadius(n=n, radii=(_LEAST_RADIUS * scheme.sigma * scheme.levels[-1],))
    return ToSignificance(n=n)


def check_prediction(classifier: Classifier, scheme: Scheme, n: int, alpha: float, *, adaptive: bool) -> None:
    """ValueError unless n votes, all for one class, name it.

    Args:
      classifier, scheme: whose smoothed classifier predicts.
      n: samples of a prediction.
      alpha: its error probability.
      adaptive: as for `predict`.
    """
    validate.in_open_unit_interval("alpha", alpha)
    if validate.count("n", n, 1) > sampling_plans.MOST:
        raise ValueError(f"Expected n <= {sampling_plans.MOST}, as many samples as an image has keys, got {n}.")
    if isinstance(scheme, Splitting):
        return
    if isinstance(scheme, Cascade):
        check_settings(classifier, scheme, Settings(prediction_plan(scheme, n, adaptive=adaptive), alpha))
        return
    answer, stages = _answer(adaptive), [(classifier.classes, alpha)]
    if isinstance(scheme, Routed):
        stages = list(zip((len(scheme.levels), classifier.classes), scheme.parts_of(alpha).tolist(), strict=True))

    def enough(votes: int) -> bool:
        return all(
            answer(np.asarray([votes, *[0] * number]), error) != confidence_bounds.ABSTAIN for number, error in stages
        )

    if not enough(n):
        least = next((votes for votes in range(n, _FEWEST) if enough(votes)), None)
        if least is None:
            raise ValueError(f"Expected an alpha for which {_FEWEST} votes can name a class, got {alpha}.")
        raise ValueError(
            f"Expected n >= {least}, the fewest samples that can name a class at alpha = {alpha}, got {n}."
        )


def _likeliest(votes: np.ndarray, alpha: float) -> int:
    """The class of all votes that there are, for sure."""
    return confidence_bounds.select(votes)


def _answer(adaptive: bool) -> Callable[[np.ndarray, float], int]:
    return confidence_bounds.predict_sequential if adaptive else confidence_bounds.predict
