"""Several implementations of one network, among which `sampling.implementation_choice` takes the fastest."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Self, TypeVar


@dataclass(frozen=True)
class Interchangeable:
    """A network that other implementations can stand in for.

    Attributes:
      alternatives: other implementations of the same network, with the same results within rounding, the plainest of
        them first. `dataclasses.replace` drops them: they would still compute what was replaced.
    """

    alternatives: tuple[Self, ...] = field(default=(), init=False, repr=False, compare=False)

    def with_alternatives(self, *others: Self) -> Self:
        """Say that `others` implement this network, too: they take its sha256 and its description."""
        same = {name: getattr(self, name) for name in ("sha256", "description")}
        return _having(self, tuple(dataclasses.replace(one, **same) for one in others))

    @property
    def implementations(self) -> tuple[Self, ...]:
        """All of them, this one first, each without alternatives."""
        return (_having(self, ()), *self.alternatives)

    @property
    def reference(self) -> Self:
        """The plainest of them, by which the others are judged."""
        return self.alternatives[0] if self.alternatives else self


_Network = TypeVar("_Network", bound=Interchangeable)


def _having(network: _Network, alternatives: tuple[_Network, ...]) -> _Network:
    made = copy.copy(network)  # which keeps what it has cached, as `replace` would not
    object.__setattr__(made, "alternatives", alternatives)
    return made
