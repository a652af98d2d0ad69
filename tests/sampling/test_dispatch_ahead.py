"""The scheduler with invented votes: what it draws, in what order, and how full its batches are."""

import itertools

import numpy as np
import pytest

from idrc_jax.certificates import confidence_bounds, sampling_plans
from idrc_jax.certificates.courses import OneLevel
from idrc_jax.sampling import random_keys
from idrc_jax.sampling.dispatch_ahead import Scheduler, whole_strides

CLASSES = 3


class Device:
    """A vote counter: votes of sample s of image i are a fixed function of (stage, i, s); remembers every draw.

    Of level l the stage is 100 l higher.
    """

    slots, stride = 64, 40

    def __init__(self, share):
        self.share, self.draws, self.samples = share, [], set()

    def voter(self, position, level):
        return level

    def classes(self, voter):
        return CLASSES

    def vote(self, stage, position, sample):
        generator = np.random.default_rng([stage, position, sample])
        return position % 2 if generator.uniform() < self.share(position) else 2

    def start(self, draw):
        self.draws.append(draw)
        votes = np.zeros((1, 64, CLASSES + 1), int)
        for slot, (position, first, n) in enumerate(zip(draw.positions, draw.first, draw.n, strict=True)):
            for sample in range(first, first + n):
                stage = draw.stage + 100 * draw.level
                assert (stage, position, sample) not in self.samples  # none is drawn twice
                self.samples.add((stage, position, sample))
                votes[0, slot, self.vote(stage, position, sample)] += 1
        return votes


def scheduler(device, plan, *, piece=400, stride=40, radius=lambda p: np.maximum(p - 0.5, 0), slots=64):
    device.stride, device.slots = stride, slots
    return Scheduler(device, plan, lambda position: OneLevel(plan.stopping(radius, 0.01)), piece=piece)


def test_fixed_draws_every_sample_once_and_the_class_first():
    device = Device(lambda position: 0.9)
    made = list(scheduler(device, sampling_plans.Fixed(n=300, n0=10)).run(range(5, 35)))
    assert [one.position for one in made] == list(range(5, 35))
    for one in made:
        assert (one.levels[0].selected, sum(one.levels[0].votes)) == (one.position % 2, 300)
    expected = {(random_keys.SELECTION, p, s) for p in range(5, 35) for s in range(10)}
    assert device.samples == expected | {(random_keys.ESTIMATION, p, s) for p in range(5, 35) for s in range(300)}
    chosen = set()
    for draw in device.draws:
        assert len(draw.positions) <= 64
        assert sum(draw.n) <= 400
        if draw.stage == random_keys.SELECTION:
            chosen |= set(draw.positions)
        assert set(draw.positions) <= chosen


def test_adaptive_images_stop_at_their_own_looks_and_make_place():
    plan = sampling_plans.ToRadius(n=3000, radii=(0.2, 0.4))
    device = Device(lambda position: (0.3, 0.65, 0.75, 0.95, 1.0)[position % 5])
    run = scheduler(device, plan)
    made = {one.position: one for one in run.run(range(60))}
    assert set(made) == set(range(60))
    numbers = [int(sum(one.levels[0].votes)) for one in made.values()]
    assert set(numbers) <= set(plan.looks())
    assert len(set(numbers)) > 4
    for one in made.values():
        assert one.levels[0].selected == confidence_bounds.select(np.array(one.levels[0].votes))
        # Its samples are 0 .. n - 1, no others.
        drawn = {s for stage, p, s in device.samples if p == one.position}
        assert drawn == set(range(sum(one.levels[0].votes)))
    assert run.drawn == sum(numbers)
    # The order in which they end is not that in which they begin.
    assert list(made) != sorted(made)


def test_batches_stay_full_until_the_queue_is_empty():
    plan = sampling_plans.ToRadius(n=3000, radii=(0.2, 0.4))
    device = Device(lambda position: (0.3, 0.65, 0.75, 0.95, 1.0)[position % 5])
    run = scheduler(device, plan, stride=100)
    left = iter(run.run(range(150)))
    useful = None
    for one in left:
        if one.position >= 140:  # the queue is empty about now
            useful = run.slots_used / run.slots_total
            break
    assert useful is not None
    assert useful >= 0.85
    list(left)
    assert run.slots_used / run.slots_total >= 0.8


@pytest.mark.parametrize("selection", [0, 10])
def test_a_dispatch_is_of_one_network(selection):
    class OfThree(Device):
        def voter(self, position, level):
            return position // 7 % 3

    device = OfThree(lambda position: (0.3, 0.65, 0.75, 0.95, 1.0)[position % 5])
    plan = sampling_plans.Fixed(n=300, n0=10) if selection else sampling_plans.ToRadius(n=3000, radii=(0.2, 0.4))
    run = scheduler(device, plan, stride=100)
    made = {one.position: one for one in run.run(range(150))}
    assert set(made) == set(range(150))
    for draw in device.draws:
        assert len({device.voter(position, draw.level) for position in draw.positions}) == 1
    for position, one in made.items():
        drawn = {s for stage, p, s in device.samples if (stage, p) == (random_keys.ESTIMATION, position)}
        assert drawn == set(range(sum(one.levels[0].votes)))
    assert run.slots_used / run.slots_total >= 0.8


def test_images_begin_in_their_order_as_far_as_networks_share_batches():
    class OfTwo(Device):
        def voter(self, position, level):
            return int(position % 4 == 0)

    device = OfTwo(lambda position: 0.9)
    run = scheduler(device, sampling_plans.Fixed(n=100), slots=8)
    first: dict[int, int] = {}
    for _ in run.run(range(200)):
        pass
    for number, draw in enumerate(device.draws):
        for position in draw.positions:
            first.setdefault(position, number)
    order = sorted(first, key=lambda position: first[position])
    assert max(abs(place - position) for place, position in enumerate(order)) < 4 * 8 + 8


class UpAndBack:
    """Level 0 to 60, level 1 to 70, level 0 on to 80; images of odd positions only the first."""

    def __init__(self, position):
        self.odd = position % 2

    def next_level(self, drawn):
        return None if self.odd else {(60,): 1, (60, 70): 0, (80, 70): None}[tuple(sum(one.votes) for one in drawn)]

    def stops(self, drawn, level):
        assert [one.level for one in drawn] == [0, 1][: len(drawn)]
        n = sum(drawn[level].votes)
        return n == 70 if level == 1 else n == (60 if len(drawn) == 1 else 80)


@pytest.mark.parametrize("n0", [0, 10])
def test_levels_have_samples_of_their_own_and_go_on_where_they_stopped(n0):
    class Plan(sampling_plans.SelectionFree):
        selection = n0

        def looks(self):
            return [50, 60, 70, 80, 90]

    device = Device(lambda position: 0.9)
    device.stride, device.slots = 40, 64
    run = Scheduler(device, Plan(n=90), UpAndBack, piece=400)
    made = {one.position: one.levels for one in run.run(range(60))}
    assert set(made) == set(range(60))
    for position, levels in made.items():
        expected = {0: 60} if position % 2 else {0: 80, 1: 70}
        assert {one.level: sum(one.votes) for one in levels} == expected
        for level, n in expected.items():
            stages = {random_keys.ESTIMATION + 100 * level: n} | (
                {random_keys.SELECTION + 100 * level: n0} if n0 else {}
            )
            for stage, count in stages.items():
                own = {s for t, p, s in device.samples if (t, p) == (stage, position)}
                assert own == set(range(count))
        votes = np.bincount([device.vote(random_keys.ESTIMATION, position, s) for s in range(expected[0])], minlength=4)
        assert levels[0].votes == tuple(votes)
    assert run.drawn == 30 * 60 + 30 * 150
    assert run.slots_used / run.slots_total > 0.8


def test_a_bounded_number_of_dispatches_is_ahead():
    class Lazy(Device):
        read = 0

        def start(self, draw):
            votes = super().start(draw)
            outer = self

            class Array:
                def __array__(self, dtype=None, copy=None):
                    outer.read += 1
                    return votes

            assert len(outer.draws) - outer.read <= 3
            return Array()

    assert len(list(scheduler(Lazy(lambda p: 0.9), sampling_plans.Fixed(n=1000, n0=10)).run(range(9)))) == 9


def test_no_image_starts_after_the_time_is_up_and_those_begun_are_finished():
    device = Device(lambda position: 0.9)
    answers = itertools.chain([False] * 4, itertools.repeat(True))
    run = scheduler(device, sampling_plans.Fixed(n=1000, n0=10), slots=4)
    made = list(run.run(range(50), over=lambda images: images > 0 and next(answers)))
    begun = {position for draw in device.draws if draw.stage == random_keys.ESTIMATION for position in draw.positions}
    assert 0 < len(begun) < 10
    assert {one.position for one in made} == begun


def test_it_stops_at_once_when_told_to():
    device = Device(lambda position: 0.9)
    run = scheduler(device, sampling_plans.Fixed(n=1000, n0=10))
    made = list(run.run(range(50), over=lambda images: images == 0 and len(device.draws) >= 8))
    assert len(device.draws) == 8
    assert len(made) < 8


@pytest.mark.parametrize(
    "stride", [pytest.param(1, marks=pytest.mark.evidence), 37, pytest.param(400, marks=pytest.mark.evidence)]
)
def test_the_stride_changes_no_votes(stride):
    plan = sampling_plans.ToPrecision(n=2000, precision=0.1)
    made = {}
    for size in (40, stride):
        device = Device(lambda position: 0.6 + 0.004 * position)
        run = scheduler(device, plan, piece=400 // size * size or size, stride=size)
        made[size] = {one.position: one.levels[0].votes for one in run.run(range(30))}
    assert made[40] == made[stride]


def test_time_is_asked_for_those_that_have_begun_and_one_more():
    asked = []
    run = scheduler(Device(lambda position: 0.9), sampling_plans.Fixed(n=1000, n0=10), slots=4)
    assert len(list(run.run(range(9), over=lambda images: asked.append(images) or False))) == 9
    assert asked[:2] == [0, 1]
    begun = asked[1::2]
    assert asked[::2] == [0] * len(begun)
    assert 2 < max(begun) <= 1 + 9
    assert begun[-1] == 1  # none is left


@pytest.mark.parametrize(
    ("takes", "kept"),
    [
        ([], []),
        ([3], [3]),
        ([10], [10]),
        ([14], [10]),
        ([7, 7], [7, 3]),
        ([10, 1, 2], [10]),
        ([2, 5, 2], [2, 5, 2]),
        ([12, 8], [12, 8]),
        ([5, 6, 1, 1], [5, 5]),
    ],
)
def test_a_rest_begins_no_new_stride(takes, kept):
    assert whole_strides(takes, 10) == kept
