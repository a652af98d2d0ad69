"""Many images in flight: whose samples share the next dispatch, until a plan has decided on each image.

A device batch holds samples of several images. An image that is decided gives its place to the next at once, so batches
stay full however differently plans stop; an image that waits for its votes is overtaken by others.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.sampling import random_keys

_AHEAD = 2


class Draw(NamedTuple):
    """A dispatch: n[i] samples from first[i] on of the image at positions[i], all in one stage."""

    stage: int
    positions: list[int]
    first: list[int]
    n: list[int]


class Drawn(NamedTuple):
    """A finished image: its class, `ABSTAIN` for none, and its votes int64 [K + 1]."""

    position: int
    selected: int
    votes: np.ndarray


@dataclass
class _Image:
    position: int
    stage: int
    looks: list[int]
    finished: Callable[[np.ndarray], bool]
    selected: int = confidence_bounds.ABSTAIN
    dispatched: int = 0
    counted: int = 0
    votes: Any = 0
    started: bool = field(default=False)


class Scheduler:
    """Draws the votes of images by a plan.

    Args:
      dispatch: starts a `Draw` and returns at once int [devices, slots, K + 1], to be summed over the first axis.
      plan: how many samples an image gets.
      stopping: position -> the image's stop rule (see `Plan.stopping`).
      slots: images that a dispatch can hold.
      piece: samples of a dispatch, a multiple of `stride`.
      stride: samples of all devices' chunks together; dispatches of whole strides waste nothing.
      stage: of the samples that follow the selection.

    Attributes:
      drawn: estimation samples counted so far.
      slots_used, slots_total: places in the batches dispatched so far that held a sample, and all of them.
    """

    def __init__(
        self,
        dispatch: Callable[[Draw], Any],
        plan: Plan,
        stopping: Callable[[int], Callable[[np.ndarray], bool]],
        *,
        slots: int,
        piece: int,
        stride: int,
        stage: int = random_keys.ESTIMATION,
    ) -> None:
        self._dispatch, self._plan, self._stopping = dispatch, plan, stopping
        self._slots, self._piece, self._stride, self._stage = slots, piece, stride, stage
        self._flight: deque[_Image] = deque()
        self._pending: deque[tuple[list[_Image], list[int], Any]] = deque()
        self.drawn = self.slots_used = self.slots_total = 0

    @property
    def started(self) -> int:
        """Images in flight whose estimation has begun."""
        return sum(image.started for image in self._flight)

    def run(
        self,
        positions: Sequence[int],
        *,
        may_start: Callable[[], bool] = lambda: True,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Drawn]:
        """Yield images as they are decided.

        Args:
          positions: of the images, in the order in which they begin.
          may_start: asked before each dispatch; after a no, no image's estimation begins any more.
          must_stop: asked before each dispatch; a yes ends the run, and what is in flight is lost.
        """
        waiting = deque(positions)
        closed = False
        while not must_stop():
            if not closed and not may_start():
                closed = True
                waiting.clear()
                self._flight = deque(image for image in self._flight if image.started)
            sent = self._send(waiting)
            if not sent and not self._pending:
                return
            while self._pending and (not sent or len(self._pending) > _AHEAD):
                sent = True
                yield from self._read()

    def _send(self, waiting: deque[int]) -> bool:
        """Fill a dispatch from the images in flight, then from those that wait."""
        chosen: list[_Image] = []
        takes: list[int] = []
        room = self._piece
        for image in self._candidates(waiting):
            if room == 0 or len(chosen) == self._slots or (chosen and image.stage != chosen[0].stage):
                break
            takes.append(min(room, image.looks[0] - image.dispatched))
            chosen.append(image)
            room -= takes[-1]
        if not chosen:
            return False
        total = sum(takes)
        surplus = total % self._stride if total > self._stride else 0
        while surplus >= takes[-1]:  # the last images wait for the next dispatch rather than begin a new stride
            chosen.pop()
            total, surplus = total - takes[-1], surplus - takes.pop()
        takes[-1], total = takes[-1] - surplus, total - surplus
        draw = Draw(
            chosen[0].stage, [image.position for image in chosen], [image.dispatched for image in chosen], list(takes)
        )
        self._pending.append((chosen, takes, self._dispatch(draw)))
        for image, take in zip(chosen, takes, strict=True):
            image.dispatched += take
            image.started |= image.stage == self._stage
        self.slots_used += total
        self.slots_total += -(-total // self._stride) * self._stride
        return True

    def _candidates(self, waiting: deque[int]) -> Iterator[_Image]:
        """Images with samples to draw before their next look: those in flight first, then new ones."""
        yield from [image for image in self._flight if image.dispatched < image.looks[0]]
        while waiting:
            position = waiting.popleft()
            selection = self._plan.selection
            image = _Image(
                position,
                random_keys.SELECTION if selection else self._stage,
                [selection] if selection else self._plan.looks(),
                self._stopping(position),
            )
            self._flight.append(image)
            yield image

    def _read(self) -> Iterator[Drawn]:
        chosen, takes, votes = self._pending.popleft()
        counts = np.asarray(votes).sum(axis=0, dtype=np.int64)
        for image, take, count in zip(chosen, takes, counts[: len(chosen)], strict=True):
            image.votes = image.votes + count
            image.counted += take
            if image.stage == self._stage:
                self.drawn += take
            if image.counted < image.looks[0]:
                continue
            if image.stage == random_keys.SELECTION:
                self._begin_estimation(image)
            elif len(image.looks) == 1 or image.finished(image.votes):
                self._flight.remove(image)
                selected = image.selected if self._plan.selection else confidence_bounds.select(image.votes)
                yield Drawn(image.position, selected, image.votes)
            else:
                image.looks = image.looks[1:]

    def _begin_estimation(self, image: _Image) -> None:
        image.selected = confidence_bounds.select(image.votes)
        image.stage, image.looks = self._stage, self._plan.looks()
        image.dispatched, image.counted, image.votes = 0, 0, 0
