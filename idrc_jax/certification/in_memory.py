"""Certificates and predictions of images in memory."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import certificates, sampling
from idrc_jax.certificates import Certificate, confidence_bounds, sampling_plans
from idrc_jax.certificates.sampling_plans import Fixed, Plan, SelectionFree, ToSignificance
from idrc_jax.certificates.schemes import Scheme, host_scale
from idrc_jax.certification.decisions import Decisions
from idrc_jax.certification.settings import Settings
from idrc_jax.core import validate
from idrc_jax.models import Classifier
from idrc_jax.sampling import implementation_choice, random_keys
from idrc_jax.sampling.dispatch_ahead import Scheduler
from idrc_jax.sampling.execution import Execution
from idrc_jax.sampling.vote_counter import VoteCounter

PREDICTION_SAMPLES = 1000  # at most
_STRIDES = 1000  # of a dispatch
_FEWEST = 10_000  # votes that are tried, to say how few can name a class


def certify(
    classifier: Classifier,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    plan: Plan | None = None,
    n0: int = Fixed.n0,
    n: int = Fixed.n,
    alpha: float = Settings.alpha,
    certificate: str = Settings.certificate,
    key: jax.Array,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> list[Certificate]:
    """Certify each image, in memory: CERTIFY of Cohen et al. (2019), or another sampling plan.

    Args:
      classifier: the base classifier.
      scheme: how much noise of which law an image gets.
      images: float32 [N, H, W, C] in [0, 1].
      indices: [N] data-set indices, which name the noise.
      plan: instead of n0 selection and n estimation samples.
      alpha: error probability of each image's certificate.
      certificate: see `certificates.from_votes`.
      key: the run's typed key, `random_keys.root(seed)`; selection and estimation use branches of their own.
      chunk, mesh: as for `count_votes`, but chosen by measuring (see `implementation_choice.choose`).

    Returns:
      A certificate an image, in the order of the images.

    Raises:
      ValueError: settings that could certify nothing, or images, indices, key or chunk that cannot be.

    Guarantee: for each image on its own, with probability at least 1 - alpha over the sampling, no image nearer than
    `radius` (l2, pixel units) has another prediction of the smoothed classifier, under its own noise.
    """
    settings = Settings(plan or Fixed(n=n, n0=n0), alpha, certificate=certificate)
    certificates.check_certificate(certificate, scheme, settings.plan)
    images = sampling.check_images(images, classifier)
    samples = len(images) * settings.plan.most
    execution = implementation_choice.choose(classifier, scheme, samples=samples, mesh=mesh, chunk=chunk)
    return certify_by(execution, scheme, images, settings, indices=indices, key=key)


def certify_by(
    execution: Execution,
    scheme: Scheme,
    images: np.ndarray,
    settings: Settings,
    *,
    indices: np.ndarray,
    key: jax.Array,
) -> list[Certificate]:
    """`certify` by a way to run the network that is already chosen.

    Args:
      execution: the base classifier, its devices and its chunk.
      settings: of which the key stands in for the seed.
      Others: as for `certify`.
    """
    images = sampling.check_images(images, execution.classifier)
    statistic, levels = host_scale(scheme, images)
    decisions = Decisions(scheme, settings, statistic, int(np.prod(images.shape[1:])))
    counter = VoteCounter(execution, scheme, images, levels, indices=indices, key=key)
    scheduler = Scheduler(counter, settings.plan, decisions.stop_rule, piece=_STRIDES * counter.stride)
    made = {drawn.position: decisions.certificate(drawn) for drawn in scheduler.run(range(len(images)))}
    return [made[position] for position in range(len(images))]


def predict(
    classifier: Classifier,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    n: int = PREDICTION_SAMPLES,
    alpha: float = Settings.alpha,
    adaptive: bool = False,
    key: jax.Array,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Predict each image's class: PREDICT of Cohen et al. (2019), the smoothed classifier's class, or -1.

    Args:
      n: samples an image.
      alpha: probability with which an image's answer may be another class than the smoothed classifier's.
      adaptive: stop as soon as the class is clear (`confidence_bounds.predict_sequential`), after at most n samples.
      Others: as for `certify`.

    Guarantee: for each image on its own, with probability at least 1 - alpha it returns the smoothed
    classifier's prediction or abstains.

    Returns:
      int64 [N]; -1 where the votes do not tell.

    Raises:
      ValueError: so few samples that not even unanimous votes could tell, or images and classifier do not fit.
    """
    check_prediction(n, alpha, classifier.classes, adaptive=adaptive)
    images = sampling.check_images(images, classifier)
    execution = implementation_choice.choose(classifier, scheme, samples=len(images) * n, mesh=mesh, chunk=chunk)
    return predict_by(execution, scheme, images, indices=indices, n=n, alpha=alpha, adaptive=adaptive, key=key)


def predict_by(
    execution: Execution,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    n: int,
    alpha: float,
    adaptive: bool,
    key: jax.Array,
) -> np.ndarray:
    """`predict` by a way to run the network that is already chosen, with an n that `check_prediction` has passed.

    Args:
      execution: the base classifier, its devices and its chunk.
      Others: as for `predict`.
    """
    images = sampling.check_images(images, execution.classifier)
    _, levels = host_scale(scheme, images)
    counter = VoteCounter(execution, scheme, images, levels, indices=indices, key=key)
    plan = ToSignificance(n=n) if adaptive else SelectionFree(n=n)
    stop = plan.stopping(np.zeros_like, alpha)  # by the votes alone, whatever the radius
    piece = _STRIDES * counter.stride
    scheduler = Scheduler(counter, plan, lambda position: stop, piece=piece, stage=random_keys.PREDICTION)
    answer = _answer(adaptive)
    predictions = np.full(len(images), confidence_bounds.ABSTAIN)
    for drawn in scheduler.run(range(len(images))):
        predictions[drawn.position] = answer(drawn.votes, alpha)
    return predictions


def check_prediction(n: int, alpha: float, classes: int, *, adaptive: bool) -> None:
    """ValueError unless n votes, all for one class, name it.

    Args:
      n: samples of a prediction.
      alpha: its error probability.
      classes: K, of the classifier.
      adaptive: as for `predict`.
    """
    validate.in_open_unit_interval("alpha", alpha)
    if validate.count("n", n, 1) > sampling_plans.MOST:
        raise ValueError(f"Expected n <= {sampling_plans.MOST}, as many samples as an image has keys, got {n}.")
    answer = _answer(adaptive)

    def enough(votes: int) -> bool:
        return answer(np.asarray([votes, *[0] * classes]), alpha) != confidence_bounds.ABSTAIN

    if not enough(n):
        least = next((votes for votes in range(n, _FEWEST) if enough(votes)), None)
        if least is None:
            raise ValueError(f"Expected an alpha for which {_FEWEST} votes can name a class, got {alpha}.")
        raise ValueError(
            f"Expected n >= {least}, the fewest samples that can name a class at alpha = {alpha}, got {n}."
        )


def _answer(adaptive: bool) -> Callable[[np.ndarray, float], int]:
    return confidence_bounds.predict_sequential if adaptive else confidence_bounds.predict
