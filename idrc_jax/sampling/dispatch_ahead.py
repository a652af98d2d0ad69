"""Many images in flight: whose samples share the next dispatch, until a plan has decided on each image.

A device batch holds samples of several images. An image that is decided gives its place to the next at once, so batches
stay full however differently plans stop; an image that waits for its votes is overtaken by others.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.courses import Course, LevelVotes
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.sampling import random_keys
from idrc_jax.sampling.vote_counter import Draw, VoteCounter

_AHEAD = 2  # dispatches that wait on the devices while the host reads another


class Drawn(NamedTuple):
    """A finished image: its position, and what was drawn of it, level by level."""

    position: int
    levels: tuple[LevelVotes, ...]


class _Kind(NamedTuple):
    """What all images of a dispatch have in common."""

    stage: int
    level: int
    voter: int


_Waiting = dict[_Kind, deque[tuple[int, int]]]  # images that have not begun, by kind: places in the order, positions


@dataclass(eq=False)
class _Image:
    """An image in flight, in one stage under one level; `looks` are the sample numbers at which it is still to be seen
    there, `drawn` what there is of the levels that it has left."""

    position: int
    course: Course
    kind: _Kind
    looks: list[int]
    votes: np.ndarray
    selected: int = confidence_bounds.ABSTAIN
    dispatched: int = 0
    counted: int = 0
    drawn: dict[int, LevelVotes] = field(default_factory=dict)

    def begin(self, kind: _Kind, looks: list[int], classes: int) -> None:
        """Start anew in another stage, in which a network of so many classes votes."""
        self.kind, self.looks = kind, looks
        self.votes = np.zeros(classes + 1, np.int64)
        self.dispatched = self.counted = 0

    def go_on(self, kind: _Kind, looks: list[int]) -> None:
        """Go on with the estimation under a level that the image has left, at those looks that are ahead."""
        before = self.drawn[kind.level]
        self.kind, self.votes, self.selected = kind, np.asarray(before.votes), before.selected
        self.dispatched = self.counted = sum(before.votes)
        self.looks = [look for look in looks if look > self.counted]

    def note(self, *, selects: bool) -> list[LevelVotes]:
        """Put down the votes so far; all there are of the image. Selection votes chose the class, or these do."""
        selected = self.selected if selects else confidence_bounds.select(self.votes)
        self.drawn[self.kind.level] = LevelVotes(self.kind.level, selected, tuple(self.votes.tolist()))
        return list(self.drawn.values())


class Scheduler:
    """Draws the votes of images by a plan, each on its own course.

    Args:
      counter: of the images' votes.
      plan: how many samples an image gets under a level.
      course: position -> the image's course.
      piece: samples of a dispatch, a multiple of the counter's stride.
      stage: of the samples that follow the selection.

    Attributes:
      drawn: samples of that stage counted so far.
      slots_used, slots_total: places in the batches dispatched so far that held a sample, and all of them.
    """

    def __init__(
        self,
        counter: VoteCounter,
        plan: Plan,
        course: Callable[[int], Course],
        *,
        piece: int,
        stage: int = random_keys.ESTIMATION,
    ) -> None:
        self._counter, self._plan, self._course = counter, plan, course
        self._piece, self._stage = piece, stage
        self._flight: list[_Image] = []
        self._pending: deque[tuple[list[_Image], list[int], jax.Array]] = deque()
        self.drawn = self.slots_used = self.slots_total = 0

    def run(self, positions: Sequence[int], *, over: Callable[[int], bool] = lambda images: False) -> Iterator[Drawn]:
        """Yield images as they are decided.

        Args:
          positions: of the images, in the order in which they begin.
          over: number of images -> whether it is too late to finish so many; asked before each dispatch. Once it is for
            those whose estimation has begun and one more, no other begins any more; once it is for none at all, the run
            ends, and what is in flight is lost.
        """
        waiting: _Waiting = {}
        for number, position in enumerate(positions):
            waiting.setdefault(self._first_kind(position, 0), deque()).append((number, position))
        while not over(0):
            if over(1 + sum(map(self._has_begun, self._flight))):
                waiting.clear()
                self._flight = [image for image in self._flight if self._has_begun(image)]
            images, takes = self._next_samples(waiting)
            if images:
                self._dispatch(images, takes)
            elif not self._pending:
                return
            if not images or len(self._pending) > _AHEAD:
                for image, take, votes in self._read():
                    if self._add(image, take, votes):
                        yield Drawn(image.position, tuple(image.drawn.values()))

    def _has_begun(self, image: _Image) -> bool:
        """Whether samples of an image's estimation are dispatched."""
        return bool(image.drawn) or (image.kind.stage == self._stage and image.dispatched > 0)

    def _next_samples(self, waiting: _Waiting) -> tuple[list[_Image], list[int]]:
        """Images of one kind, and how many samples each draws next: those in flight first, then some that wait."""
        kind = self._next_kind(waiting)
        if kind is None:
            return [], []
        ready = deque(image for image in self._flight if image.kind == kind and image.dispatched < image.looks[0])
        entering = waiting.get(kind, deque())
        images: list[_Image] = []
        takes: list[int] = []
        room = self._piece
        while room and len(images) < self._counter.slots and (ready or entering):
            image = ready.popleft() if ready else self._enter(entering.popleft()[1], kind)
            takes.append(min(room, image.looks[0] - image.dispatched))
            images.append(image)
            room -= takes[-1]
        takes = whole_strides(takes, self._counter.stride)
        return images[: len(takes)], takes

    def _next_kind(self, waiting: _Waiting) -> _Kind | None:
        """That of which most samples are ready; that in which the next image begins where no other fills a batch; None
        where nothing is left."""
        ready: dict[_Kind, int] = {}
        for image in self._flight:
            ready[image.kind] = ready.get(image.kind, 0) + image.looks[0] - image.dispatched
        fullest = max(ready, key=lambda kind: ready[kind], default=None)
        entering = [kind for kind, line in waiting.items() if line]
        if entering and (fullest is None or ready[fullest] < self._counter.stride):
            return min(entering, key=lambda kind: waiting[kind][0])
        return fullest

    def _kind(self, stage: int, position: int, level: int) -> _Kind:
        return _Kind(stage, level, self._counter.voter(position, level))

    def _first_kind(self, position: int, level: int) -> _Kind:
        """That in which an image begins a level."""
        return self._kind(random_keys.SELECTION if self._plan.selection else self._stage, position, level)

    def _first_looks(self) -> list[int]:
        """The looks of the stage in which images begin a level."""
        return [self._plan.selection] if self._plan.selection else self._plan.looks()

    def _enter(self, position: int, kind: _Kind) -> _Image:
        """Put a new image in flight."""
        votes = np.zeros(self._counter.classes(kind.voter) + 1, np.int64)
        image = _Image(position, self._course(position), kind, self._first_looks(), votes)
        self._flight.append(image)
        return image

    def _dispatch(self, images: list[_Image], takes: list[int]) -> None:
        positions, first = [image.position for image in images], [image.dispatched for image in images]
        stage, level, _ = images[0].kind
        votes = self._counter.start(Draw(stage, level, positions, first, takes))
        self._pending.append((images, takes, votes))
        for image, take in zip(images, takes, strict=True):
            image.dispatched += take
        total, stride = sum(takes), self._counter.stride
        self.slots_used += total
        self.slots_total += -(-total // stride) * stride

    def _read(self) -> list[tuple[_Image, int, np.ndarray]]:
        """The images of the oldest dispatch, their samples and their votes, once they are there."""
        images, takes, votes = self._pending.popleft()
        counts = np.asarray(votes).sum(axis=0, dtype=np.int64)
        return list(zip(images, takes, counts[: len(images)], strict=True))

    def _add(self, image: _Image, take: int, votes: np.ndarray) -> bool:
        """Count an image's new votes; whether it is decided."""
        image.votes += votes
        image.counted += take
        stage, level, voter = image.kind
        if stage == self._stage:
            self.drawn += take
        if image.counted < image.looks[0]:
            return False
        if stage == random_keys.SELECTION:
            image.selected = confidence_bounds.select(image.votes)
            image.begin(_Kind(self._stage, level, voter), self._plan.looks(), self._counter.classes(voter))
            return False
        drawn = image.note(selects=self._plan.selection > 0)
        if len(image.looks) > 1 and not image.course.stops(drawn, level):
            image.looks = image.looks[1:]
            return False
        level = image.course.next_level(drawn)
        if level is None:
            self._flight.remove(image)
            return True
        if level in image.drawn:
            image.go_on(self._kind(self._stage, image.position, level), self._plan.looks())
        else:
            kind = self._first_kind(image.position, level)
            image.begin(kind, self._first_looks(), self._counter.classes(kind.voter))
        return False


def whole_strides(takes: list[int], stride: int) -> list[int]:
    """What to take of each image, so that no new stride begins for a rest: the last ones give up what is too much.

    Images that have nothing left are at the end and are left out. Less than one stride stays as it is.
    """
    total = sum(takes)
    left = total if total <= stride else total - total % stride
    kept = []
    for take in takes:
        if left == 0:
            break
        kept.append(min(take, left))
        left -= kept[-1]
    return kept
