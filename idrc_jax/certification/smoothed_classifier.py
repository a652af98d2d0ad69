"""A smoothed classifier for applications: NumPy images in, classes and radii out."""

import secrets
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import data
from idrc_jax.certificates import confidence_bounds, usual_plan
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.certificates.schemes import Scheme, level_count
from idrc_jax.certification import arguments, provenance
from idrc_jax.certification.guarantee import check_settings
from idrc_jax.certification.in_memory import PREDICTION_SAMPLES, certify_by, check_prediction, predict_by
from idrc_jax.certification.settings import Settings
from idrc_jax.core import validate
from idrc_jax.models import Classifier
from idrc_jax.sampling import implementation_choice
from idrc_jax.sampling.execution import Execution


class Predictions(NamedTuple):
    """Of each image.

    Attributes:
      classes: int64 [N]; -1 where the classifier abstains.
      abstained: bool [N].
    """

    classes: np.ndarray
    abstained: np.ndarray


class Certified(NamedTuple):
    """Of each image.

    Attributes:
      classes: int64 [N]; -1 where the classifier abstains.
      abstained: bool [N].
      radii: float64 [N], in pixel units of [0, 1]; 0 where it abstains, and nan where the scheme has no certificate.
      norm: the scheme's, of the radii: "l1" or "l2".
    """

    classes: np.ndarray
    abstained: np.ndarray
    radii: np.ndarray
    norm: str


class SmoothedClassifier:
    """The classifier that answers by the vote of a base classifier on noisy copies of an image.

    Args:
      classifier: the base classifier.
      scheme: the noise; or the name of a scheme that needs no more than `sigma`.
      sigma: of a scheme that is given by its name, in pixel units.
      n0, n: selection and estimation samples of a certificate, under each level of a cascade or a router.
      n_predict: samples of a prediction, so too, at most: it stops where the class is clear.
      alpha: error probability of each image's answer.
      chunk, mesh: as for `idrc.certify`.

    Every call draws new noise, from the operating system's randomness, so that nobody can choose images for noise that
    will come. For answers that can be repeated pass `seed` (or `key`), another one in every call: the guarantee is over
    the noise, and does not hold for images that were chosen with it in sight.
    """

    def __init__(
        self,
        classifier: Classifier,
        scheme: Scheme | str,
        *,
        sigma: float | None = None,
        n0: int = Fixed.n0,
        n: int = Fixed.n,
        n_predict: int = PREDICTION_SAMPLES,
        alpha: float = Settings.alpha,
        chunk: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        self._classifier = arguments.check_classifier(classifier)
        self._scheme = arguments.check_scheme(scheme, sigma)
        if chunk:
            validate.count("chunk", chunk, 2)
        check_prediction(classifier, self._scheme, n_predict, alpha, adaptive=True)
        self._plan = usual_plan(self._scheme, n0=n0, n=n)
        self._settings, self._n_predict = Settings(self._plan, alpha), n_predict
        check_settings(classifier, self._scheme, self._settings)
        self._chunk, self._mesh = chunk, mesh
        self._execution: Execution | None = None
        self._longest = 0
        self._searched = False

    def __repr__(self) -> str:
        return (
            f"SmoothedClassifier({self._classifier!r}, {self._scheme!r}, n0={self._plan.selection}, n={self._plan.n}, "
            f"n_predict={self._n_predict}, alpha={self._settings.alpha:g})"
        )

    def predict(self, images: np.ndarray, *, seed: int | None = None, key: jax.Array | None = None) -> Predictions:
        """Predict the class of each image.

        Args:
          images: [N, H, W, C], uint8 or floats in [0, 1].
          seed: of the noise, in 0 .. 2**64 - 1; None draws new noise.
          key: instead of the seed, a typed key.

        Guarantee: for each image on its own, with probability at least 1 - alpha over the noise, the class is that of
        the smoothed classifier, or it abstains; under exact noise with that of
        `idrc.predict`, n = n_predict.
        """
        seed, pixels = _seed(seed, key), data.to_unit(arguments.check_pixels(images, self._classifier))
        made = predict_by(
            self._choose(len(pixels) * level_count(self._scheme) * self._n_predict),
            self._scheme,
            pixels,
            indices=np.arange(len(pixels)),
            n=self._n_predict,
            alpha=self._settings.alpha,
            adaptive=True,
            seed=seed,
        )
        classes = np.full(len(pixels), confidence_bounds.ABSTAIN)
        for position, one in made:
            classes[position] = one
        return Predictions(classes, classes == confidence_bounds.ABSTAIN)

    def certify(self, images: np.ndarray, *, seed: int | None = None, key: jax.Array | None = None) -> Certified:
        """Certify each image: its class, and the radius, in the scheme's norm, within which it stays; arguments as for
        `predict`.

        `idrc.certify` gives the same with all that a result file holds, to be saved and reported.

        Guarantee: for each image on its own, with probability at least 1 - alpha over the noise, the smoothed
        classifier gives this class to every image nearer than the radius, or it abstains. Of a scheme of your own it
        rests on `scale_bounds`, which the first call searches for violations (ValueError).
        """
        seed, pixels = _seed(seed, key), data.to_unit(arguments.check_pixels(images, self._classifier))
        if not self._searched:
            self._searched = bool(provenance.checked_scheme(self._scheme, pixels, np.arange(len(pixels))))
        made = certify_by(
            self._choose(len(pixels) * level_count(self._scheme) * self._plan.most),
            self._scheme,
            pixels,
            replace(self._settings, seed=seed),
            indices=np.arange(len(pixels)),
        )
        classes, radii = np.full(len(pixels), confidence_bounds.ABSTAIN), np.zeros(len(pixels))
        for position, one in made:
            classes[position], radii[position] = one.predict, one.radius
        return Certified(classes, classes == confidence_bounds.ABSTAIN, radii, self._scheme.norm)

    def _choose(self, samples: int) -> Execution:
        """How to run: looked into again where a call is longer than all before."""
        if self._execution is None or samples > self._longest:
            self._execution = implementation_choice.choose(
                self._classifier, self._scheme, samples=samples, mesh=self._mesh, chunk=self._chunk
            )
            self._longest = samples
        return self._execution


def _seed(seed: int | None, key: jax.Array | None) -> int:
    """The caller's, or one of 64 random bits."""
    named = arguments.check_seed(seed, key)
    return secrets.randbits(64) if named is None else named
