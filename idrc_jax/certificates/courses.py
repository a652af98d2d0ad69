"""What one image gets of a sampling plan; of several levels the votes of one decide under which more are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class LevelVotes(NamedTuple):
    """What was drawn of an image under one noise level.

    Attributes:
      level: its place in `schemes.drawn_levels`.
      selected: the class that selection votes chose, or these votes under a plan without selection; -1 for none.
      votes: estimation votes, one count a class, then those whose logits were not finite.
    """

    level: int
    selected: int
    votes: tuple[int, ...]


class Course(Protocol):
    """The way of one image, which begins under level 0; what it says depends on that image's votes alone, and
    its label where the plan asks for it.

    `drawn` is what there is of the image, a level an entry, in the order in which they were begun.
    """

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        """The level to begin next, or to go on with if it is in `drawn`; None where the image is decided."""
        ...

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        """Whether to leave the level under way, whose votes so far are in `drawn`, at a look before the last."""
        ...


@dataclass(frozen=True)
class OneLevel:
    """The course under a scheme of one level: `stop` is the plan's rule (`Plan.stopping`)."""

    stop: Callable[[np.ndarray], bool]

    def next_level(self, drawn: Sequence[LevelVotes]) -> int | None:
        return None

    def stops(self, drawn: Sequence[LevelVotes], level: int) -> bool:
        return self.stop(np.asarray(drawn[0].votes))
