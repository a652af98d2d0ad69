"""A smoothed classifier for applications: NumPy images in, classes and radii out."""

import secrets
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import data
from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.certification.in_memory import PREDICTION_SAMPLES, certify_by, check_prediction, predict_by
from idrc_jax.certification.settings import Settings
from idrc_jax.core import validate
from idrc_jax.models import Classifier
from idrc_jax.sampling import implementation_choice, random_keys
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
      radii: float64 [N], l2 in pixel units of [0, 1]; 0 where it abstains, and nan where the scheme has no certificate.
    """

    classes: np.ndarray
    abstained: np.ndarray
    radii: np.ndarray


class SmoothedClassifier:
    """The classifier that answers by the vote of a base classifier on noisy copies of an image.

    Args:
      classifier: the base classifier.
      scheme: the noise.
      n0, n: selection and estimation samples of a certificate.
      n_predict: samples of a prediction, at most: it stops where the class is clear.
      alpha: error probability of each image's answer.
      chunk, mesh: as for `idrc.certify`.

    Every call draws new noise, from the operating system's randomness, so that nobody can choose images for noise that
    will come. For answers that can be repeated pass `key`, another one in every call: the guarantee is over the noise,
    and does not hold for images that were chosen with it in sight.
    """

    def __init__(
        self,
        classifier: Classifier,
        scheme: Scheme,
        *,
        n0: int = Fixed.n0,
        n: int = Fixed.n,
        n_predict: int = PREDICTION_SAMPLES,
        alpha: float = Settings.alpha,
        chunk: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        if chunk:
            validate.count("chunk", chunk, 2)
        check_prediction(n_predict, alpha, classifier.classes, adaptive=True)
        self._settings = Settings(Fixed(n=n, n0=n0), alpha)
        self._classifier, self._scheme, self._n_predict = classifier, scheme, n_predict
        self._chunk, self._mesh = chunk, mesh
        self._execution: Execution | None = None
        self._longest = 0

    def predict(self, images: np.ndarray, *, key: jax.Array | None = None) -> Predictions:
        """Predict the class of each image.

        Args:
          images: uint8, or float32 in [0, 1], [N, H, W, C].
          key: a typed key that names the noise; None draws a new one.

        Guarantee: for each image on its own, with probability at least 1 - alpha over the noise, the class is that of
        the smoothed classifier, or it abstains.
        """
        classes = predict_by(
            self._choose(len(images) * self._n_predict),
            self._scheme,
            data.to_unit(np.asarray(images)),
            indices=np.arange(len(images)),
            n=self._n_predict,
            alpha=self._settings.alpha,
            adaptive=True,
            key=_key(key),
        )
        return Predictions(classes, classes == confidence_bounds.ABSTAIN)

    def certify(self, images: np.ndarray, *, key: jax.Array | None = None) -> Certified:
        """Certify each image: its class, and the l2 radius within which it stays; arguments as for `predict`.

        Guarantee: for each image on its own, with probability at least 1 - alpha over the noise, the smoothed
        classifier gives this class to every image nearer than the radius, or it abstains.
        """
        made = certify_by(
            self._choose(len(images) * self._settings.plan.most),
            self._scheme,
            data.to_unit(np.asarray(images)),
            self._settings,
            indices=np.arange(len(images)),
            key=_key(key),
        )
        classes = np.asarray([one.predict for one in made], np.int64)
        return Certified(
            classes, classes == confidence_bounds.ABSTAIN, np.asarray([one.radius for one in made], np.float64)
        )

    def _choose(self, samples: int) -> Execution:
        """How to run: looked into again where a call is longer than all before."""
        if self._execution is None or samples > self._longest:
            self._execution = implementation_choice.choose(
                self._classifier, self._scheme, samples=samples, mesh=self._mesh, chunk=self._chunk
            )
            self._longest = samples
        return self._execution


def _key(key: jax.Array | None) -> jax.Array:
    """The caller's, or one of 64 random bits."""
    if key is not None:
        return key
    return jax.random.fold_in(random_keys.root(secrets.randbits(32)), np.uint32(secrets.randbits(32)))
