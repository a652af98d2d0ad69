"""Cascades against known truths: base classifiers whose smoothed decision has a formula, votes whose law has one."""

import dataclasses
import itertools

import numpy as np
import pytest
from level_runs import simulated, votes_of
from scipy import special, stats

from idrc_jax import certificates, several_levels
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certificates.sampling_plans import Fixed, SelectionFree, ToPrecision, ToRadius
from idrc_jax.several_levels.cascade import Bounds, CascadeCourse

ALPHA = 0.001


def bounds(plan=None, alpha=ALPHA, dim=48, **fields):
    return Bounds(schemes.Cascade(**{"sigma": 0.5, "levels": (1.0, 0.5)} | fields), plan or Fixed(n=1000), alpha, dim)


def answers(probabilities, thresholds):
    """The class that a cascade gives, -1 for none: probabilities [..., levels, K] -> [...]."""
    sure = probabilities > np.asarray([*thresholds, 0.5])[:, None]
    level = np.argmax(np.any(sure, axis=-1), axis=-1)
    at = np.take_along_axis(sure, level[..., None, None], axis=-2)[..., 0, :]
    return np.where(np.any(at, axis=-1), np.argmax(at, axis=-1), -1)


def certified(made, probabilities, *, thresholds=True, earlier=True):
    """Class and radius from exact probabilities [levels, K]; without a part of the formula, to be refuted.

    Within 1e-8 of 0 and 1, where float64 rounds them too coarsely, that much is taken for the bound.
    """
    probabilities = np.clip(probabilities, 1e-8, 1 - 1e-8)
    best, radius = -1, 0.0
    for level, own in enumerate(probabilities):
        for name, p in enumerate(own):
            rooms = [float(made.room(s, np.max(np.delete(probabilities[s], name)))) for s in range(level) if earlier]
            far = float(made.own(level, p)) if thresholds else float(made.levels[level] * special.ndtri(p))
            found = min(far, *rooms, np.inf)
            best, radius = (name, found) if found > radius else (best, radius)
    return best, radius


class Line:
    """Three classes in random intervals of a line on which an image is at 0: exact under any level, at any x'.

    Noise across the line changes nothing, so images along it are all there are.
    """

    def __init__(self, generator):
        self.ends = np.sort(generator.normal(size=generator.integers(1, 7)) * generator.choice([0.3, 1.0]))
        self.owners = generator.integers(0, 3, len(self.ends) + 1)

    def probabilities(self, places, levels):
        below = special.ndtr((self.ends - places[:, None, None]) / levels[:, None])
        edges = np.concatenate([np.zeros((*below.shape[:2], 1)), below, np.ones((*below.shape[:2], 1))], axis=-1)
        return np.stack([np.diff(edges)[..., self.owners == name].sum(-1) for name in range(3)], axis=-1)


class Sphere:
    """Class 0 within a distance of a centre in 48 dimensions; beyond it 1 or 2 by a plane through centre and image."""

    def __init__(self, generator):
        self.away, self.split = generator.exponential(0.5), generator.choice([1.0, 0.5])
        self.square = generator.uniform(0.05, 1.5) * 48 * 0.25

    def probabilities(self, places, levels):
        square = (self.away + places[:, None]) ** 2 / levels**2
        inside = special.chndtr(self.square / levels**2, 48, square)
        outside = 1 - inside
        return np.stack([inside, self.split * outside, (1 - self.split) * outside], axis=-1)


def refuted(kind, count, **without):
    """Of so many random classifiers and cascades: those certified above 0, and those with another answer inside."""
    generator = np.random.default_rng(0)
    seen = wrong = 0
    for _ in range(count):
        levels = tuple(np.sort(generator.uniform(0.1, 1.0, generator.integers(2, 4)))[::-1])
        thresholds = tuple(generator.choice([0.5, 0.6, 0.8], len(levels) - 1))
        made, truth = bounds(levels=levels, thresholds=thresholds), kind(generator)
        here = truth.probabilities(np.zeros(1), made.levels)[0]
        name, radius = certified(made, here, **without)
        if not radius > 1e-6:
            continue
        seen += 1
        places = radius * np.concatenate([[0], np.linspace(-1 + 1e-9, 1 - 1e-9, 41)])
        wrong += np.any(answers(truth.probabilities(places, made.levels), thresholds) != name)
    return seen, wrong


@pytest.mark.parametrize("kind", [Line, Sphere])
def test_no_image_inside_the_radius_has_another_answer(kind):
    seen, wrong = refuted(kind, 2000)
    assert seen > 1000
    assert wrong == 0


@pytest.mark.parametrize("without", [{"thresholds": False}, {"earlier": False}])
def test_the_truth_refutes_a_formula_that_lacks_a_part(without):
    assert refuted(Line, 500, **without)[1] > 5


def test_the_radius_is_the_distance_of_the_nearest_break_where_every_level_has_its_worst_classifier():
    """Half-spaces across one direction, A's and its rival's under each level: lost just beyond, not just before."""
    generator = np.random.default_rng(1)
    certain = 0
    for _ in range(400):
        thresholds = tuple(generator.choice([0.5, 0.7], 2))
        made = bounds(levels=(2.0, 1.0, 0.4), thresholds=thresholds)
        own = generator.uniform(0.05, 0.99, 3)
        here = np.stack([own, (1 - own) * generator.uniform(0, 1, 3)], axis=1)
        name, radius = certified(made, here)
        if name != 0:
            continue
        certain += 1
        for place, kept in ((radius * (1 - 1e-9), True), (radius * (1 + 1e-9) + 1e-12, False)):
            shift = place / made.levels
            there = special.ndtr(special.ndtri(here) + np.stack([-shift, shift], axis=1))
            assert (answers(there, thresholds) == 0) == kept
    assert certain > 150


def test_the_certificate_is_the_formula_by_scipy():
    made = bounds(Fixed(n=1000), levels=(1.0, 0.5, 0.25), thresholds=(0.7, 0.6), shares=(0.5, 0.3, 0.2))
    done = [votes_of(0, 500, 300, 190, 10), votes_of(1, 520, 240, 240, 0), votes_of(2, 990, 5, 4, 1)]
    quantile = stats.norm.ppf
    p = stats.beta.ppf(0.2 * ALPHA, 990, 11)
    rooms = [
        0.5 * (quantile(0.7) - quantile(stats.beta.ppf(1 - 0.5 * ALPHA / 2 / 2, 301, 700))),
        0.25 * (quantile(0.6) - quantile(stats.beta.ppf(1 - 0.3 * ALPHA / 2 / 2, 241, 760))),
    ]
    one = several_levels.certificate(made, done)
    assert (one.predict, one.selected, one.sigma_x, one.n, one.votes) == (0, 0, 0.125, 1000, done[2].votes)
    assert one.p_lower == pytest.approx(p, rel=1e-10)
    assert one.radius == pytest.approx(min(0.125 * quantile(p), *rooms), rel=1e-9)
    assert one.votes_by_level == tuple(done)
    other = several_levels.certificate(
        made, [*done[:2], votes_of(2, 5, 990, 4, 1)]
    )  # of which class 0 is the strongest rival
    narrow = 0.25 * (quantile(0.6) - quantile(stats.beta.ppf(1 - 0.3 * ALPHA / 2 / 2, 521, 480)))
    assert (other.predict, other.radius) == (1, pytest.approx(narrow, rel=1e-9))


def test_the_radius_is_that_of_the_best_level_and_what_is_not_sure_abstains():
    made = bounds(Fixed(n=1000))
    first, second = votes_of(0, 600, 300, 100, 0), votes_of(1, 950, 30, 20, 0)
    alone, both = several_levels.certificate(made, [first]), several_levels.certificate(made, [first, second])
    assert 0 < alone.radius < both.radius
    assert (alone.sigma_x, both.sigma_x) == (0.5, 0.25)
    sure = several_levels.certificate(made, [votes_of(0, 1000, 0, 0, 0), second])
    assert sure.sigma_x == 0.5
    for done in ([votes_of(0, 500, 400, 100, 0)], [votes_of(0, 450, 500, 50, 0), votes_of(1, 990, 10, 0, 0)],
                 [votes_of(0, 0, 0, 0, 1000, selected=-1)], [votes_of(0, 600, 400, 0, 0, selected=1)]):  # fmt: skip
        one = several_levels.certificate(made, done)
        assert (one.predict, one.radius, one.n) == (-1, 0, 1000)
    assert np.isnan(both.radius_published)


def outcomes(made):
    """Class and radius of every pair of counts of class 0 under two levels, of two classes: [n + 1, n + 1] each."""
    n = made.plan.n
    found = np.zeros((2, n + 1, n + 1))
    for k, j in itertools.product(range(n + 1), repeat=2):
        done = [votes_of(0, k, n - k, 0)]
        if CascadeCourse(made).next_level(done) is not None:
            done.append(votes_of(1, j, n - j, 0))
        one = several_levels.certificate(made, done)
        found[:, k, j] = one.predict, one.radius
    return found


class Greedy(Bounds):
    """As if nothing else were uncertain, nor the class chosen by the same votes."""

    @property
    def errors(self):
        return np.full(2, 2 * self.alpha)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_errors_of_the_whole_procedure_add_up_to_at_most_alpha_exactly(threshold):
    """Two levels, two classes, every pair of probabilities of a grid, the worst classifier under each level: the chance
    that a radius is larger than the truth. Without alpha's parts it is above alpha."""
    alpha = 0.2
    made = bounds(SelectionFree(n=24), alpha, thresholds=(threshold,))
    greedy = Greedy(made.scheme, made.plan, alpha, made.dim)
    worst = {}
    for name, one in (("made", made), ("greedy", greedy)):
        predict, radius = outcomes(one)
        errors = []
        for p in itertools.product(np.linspace(0.02, 0.98, 33), repeat=2):
            here = np.asarray([[p[0], 1 - p[0]], [p[1], 1 - p[1]]])
            truth, far = certified(made, here)
            laws = [stats.binom.pmf(np.arange(25), 24, one) for one in p]
            errors.append(np.outer(*laws)[(radius > 0) & ((predict != truth) | (radius > far))].sum())
        worst[name] = max(errors)
    assert alpha / 20 < worst["made"] <= alpha
    assert worst["greedy"] > alpha


def drawn(made, probabilities, generator):
    return simulated(CascadeCourse(made), lambda level: probabilities[level], generator)


@pytest.mark.evidence
@pytest.mark.parametrize(
    "plan",
    [
        ToRadius(n=100, radii=(0.02, 0.1)),
        ToRadius(n=100, radii=(0.02, 0.1), sequence="union"),
        ToPrecision(n=100, precision=0.3),
        Fixed(n=60, n0=10),
    ],
)
def test_coverage_of_a_whole_run_by_simulation(plan):
    """Three classes, three levels, probabilities near those at which something is certified in vain."""
    alpha, generator, runs = 0.2, np.random.default_rng(0), 150
    made = bounds(plan, alpha, levels=(1.0, 0.5, 0.25), thresholds=(0.6, 0.5))
    for here in (
        [[0.58, 0.4, 0.02], [0.5, 0.3, 0.2], [0.49, 0.49, 0.02]],
        [[0.35, 0.6, 0.05], [0.45, 0.5, 0.05], [0.9, 0.1, 0]],
        [[0.62, 0.3, 0.08], [0.52, 0.4, 0.08], [0.6, 0.2, 0.2]],
    ):
        probabilities = np.asarray(here)
        truth, far = certified(made, probabilities)
        wrong = 0
        for _ in range(runs):
            one = several_levels.certificate(made, drawn(made, probabilities, generator)[0])
            wrong += one.radius > 0 and (one.predict != truth or one.radius > far)
        assert wrong / runs <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def test_levels_stop_and_follow_each_other_for_each_of_their_reasons():
    made = bounds(ToRadius(n=100_000, radii=(0.25, 0.5, 1.0)), thresholds=(0.6,))
    first = lambda *votes: votes_of(0, *votes, 0)  # noqa: E731
    second = lambda *votes: votes_of(1, *votes, 0)  # noqa: E731

    def stops(*done, level):
        return CascadeCourse(made).stops(done, level)

    def follows(*done):
        return CascadeCourse(made).next_level(done)

    assert not stops(first(40, 5, 5), level=0)
    assert stops(first(6_000, 0, 0), level=0)  # all radii are certified
    assert follows(first(6_000, 0, 0)) is None
    assert stops(first(500, 500, 0), level=0)  # none is in reach, and no room for another level's
    assert follows(first(500, 500, 0)) is None
    assert stops(first(300, 160, 40), level=0)  # none is in reach, but the next level may be surer
    assert follows(first(300, 160, 40)) == 1
    assert not stops(first(300, 160, 40), second(50, 0, 0), level=1)
    assert stops(first(300, 160, 40), second(6_000, 0, 0), level=1)  # .5 is certain there
    assert follows(first(300, 160, 40), second(6_000, 0, 0)) == 0  # and needs room here
    assert not stops(first(300, 160, 40), second(6_000, 0, 0), level=0)
    assert stops(first(30_000, 16_000, 4_000), second(6_000, 0, 0), level=0)  # .25 has it, .5 is out of reach
    assert follows(first(30_000, 16_000, 4_000), second(6_000, 0, 0)) is None
    assert follows(first(300, 160, 40), second(3_000, 3_000, 0)) is None  # there is nothing to make room for


def test_a_cascade_costs_at_most_twice_as_much_as_its_first_level():
    generator = np.random.default_rng(0)
    plan = ToRadius(n=10_000, radii=(0.25, 0.5))
    made = bounds(plan)
    costs = np.zeros(2)
    for _ in range(40):
        top = generator.beta(2, 1)
        rest = (1 - top) * np.asarray([0.6, 0.3, 0.1])
        first = np.asarray([top, *rest])
        second = np.asarray([1 - (1 - top) ** 2, *rest * (1 - top)])
        costs[0] += drawn(made, np.stack([first, second / second.sum()]), generator)[1]
        alone = dataclasses.replace(plan)
        stop = alone.stopping(lambda p: certificates.radius(schemes.Gaussian(0.5), 0.0, p, dim=48), ALPHA)
        votes, before = np.zeros(5, int), 0
        for n in alone.looks():
            votes[:-1] += generator.multinomial(n - before, first)
            before = n
            if n == alone.n or stop(votes):
                break
        costs[1] += before
    assert costs[0] <= 2 * costs[1]


def test_too_few_samples_are_refused_and_the_number_that_is_told_is_the_least():
    made = bounds(Fixed(n=20), thresholds=(0.9,))
    with pytest.raises(ValueError, match=r"Expected n >= (\d+), .* threshold 0.9 of level 0.5") as error:
        made.check()
    least = int(str(error.value).split(">= ")[1].split(",")[0])
    bounds(Fixed(n=least), thresholds=(0.9,)).check()
    with pytest.raises(ValueError, match="Expected n >= "):
        bounds(Fixed(n=least - 1), thresholds=(0.9,)).check()
    with pytest.raises(ValueError, match=r"Expected thresholds that votes can exceed, got 0\.9999999999999"):
        bounds(Fixed(n=1000), thresholds=(1 - 1e-13,)).check()


@pytest.mark.parametrize(
    "plan", [Fixed(n=300), SelectionFree(n=300), ToRadius(n=300), ToRadius(n=300, sequence="union")]
)
def test_the_bound_on_the_rivals_holds_whichever_class_is_left_out(plan):
    """Three classes, the one left out chosen by the votes so as to make the bound fail."""
    alpha, generator = 0.1, np.random.default_rng(2)
    n = plan.looks()[-1]
    for p in ([0.5, 0.5, 0.0], [0.4, 0.35, 0.25], [0.9, 0.05, 0.05]):
        votes = generator.multinomial(n, p, 1000)
        failed = np.zeros(1000, bool)
        for left_out in range(3):
            others = np.delete(votes, left_out, axis=1).max(axis=1)
            failed |= plan.rival_upper(others, n, alpha) < np.max(np.delete(p, left_out))
        assert failed.mean() <= alpha + 3 * np.sqrt(alpha / 1000)


def test_the_error_probabilities_add_up_to_alpha():
    made = bounds(levels=(3.0, 2.0, 1.0), shares=(0.2, 0.3, 0.5))
    assert 2 * made.errors[:-1].sum() + made.errors[-1] == pytest.approx(ALPHA, rel=1e-12)
    np.testing.assert_allclose(bounds().errors, [ALPHA / 4, ALPHA / 2], rtol=1e-12)
    more = bounds(shares=(0.5, 0.5 + 9e-10)).errors  # taken for 1 together, and no more than alpha is spent
    assert 2 * more[:-1].sum() + more[-1] <= ALPHA * (1 + 1e-15)
    assert bounds().reaches[0] == pytest.approx(0.5 * special.ndtri(stats.beta.ppf(ALPHA / 4, 1000, 1)), rel=1e-9)
    assert bounds().reaches[-1] == 0


def test_other_schemes_have_no_such_bounds_and_a_cascade_no_radius_of_one_bound():
    assert several_levels.bounds_of(schemes.Gaussian(0.5), Fixed(), ALPHA, 48) is None
    described = schemes.describe(schemes.Cascade(0.5)) | sampling_plans.describe(ToRadius())
    described |= {"alpha": ALPHA, "dim": 48}
    assert several_levels.bounds_of_results(described) == Bounds(schemes.Cascade(0.5), ToRadius(), ALPHA, 48)
    with pytest.raises(ValueError, match="a scheme of one level, got cascade"):
        certificates.radius(schemes.Cascade(0.5), 0.0, 0.9, dim=48)
    with pytest.raises(ValueError, match="two_sided"):
        certificates.check_certificate("two_sided", schemes.Cascade(0.5))
