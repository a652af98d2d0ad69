"""How an audit searches, and when it claims a break."""

from dataclasses import dataclass

from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError
from idrc_jax.results import metrics

_MOST_SAVED = 64


@dataclass(frozen=True)
class Settings:
    """How an audit searches, and when it claims a break.

    Attributes:
      images: rows of the file to look at, evenly spaced; 0 takes all.
      fractions: of each claimed radius.
      radii: at which the robust accuracy is measured.
      level: probability that anything at all is claimed wrongly.
      votes: fresh ones of each confirmation.
      screening: votes by which the search compares images, with the same noise for all x' of an image.
      steps, samples: gradient steps of an attack; noise samples of a step.
      restarts: of projected gradient descent at each distance. The first begins at the best x' so far and follows the
        mean softmax; the others begin at random and follow votes and softmax in turns.
      refinements: distances tried at last between the nearest break and the next distance, at which none was found:
        each halves that gap in the logarithm, until it is below 2 %.
      saved: adversarial images to keep.
    """

    images: int = 50
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
    radii: tuple[float, ...] = metrics.RADII[1:]
    level: float = 0.001
    votes: int = 2000
    screening: int = 200
    steps: int = 20
    samples: int = 16
    restarts: int = 2
    refinements: int = 4
    saved: int = _MOST_SAVED

    def __post_init__(self) -> None:
        validate.in_open_unit_interval("level", self.level)
        for name in ("images", "refinements", "saved"):
            validate.count(name, getattr(self, name), 0)
        for name in ("votes", "screening", "steps", "samples", "restarts"):
            validate.count(name, getattr(self, name), 1)
        for name in ("fractions", "radii"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise SettingError(f"Expected {name} that differ, got {values}.", name)
            for value in values:
                validate.positive(name, value)
        if self.saved > _MOST_SAVED:
            raise SettingError(f"Expected saved <= {_MOST_SAVED}, got {self.saved}.", "saved")

    def attempts(self, distances: int) -> int:
        """The most confirmations an image with so many distances to try gets."""
        return 1 + (distances + self.refinements) * self.restarts
