"""Routers against known truths: routers and classifiers whose smoothed answers have formulas, votes of a known law."""

import itertools

import numpy as np
import pytest
from level_runs import simulated, votes_of
from scipy import optimize, special, stats

from idrc_jax import certificates, several_levels
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certificates.sampling_plans import Fixed, SelectionFree, ToPrecision, ToRadius
from idrc_jax.several_levels.routed import Bounds, RoutedCourse

ALPHA = 0.001


def bounds(plan=None, alpha=ALPHA, dim=48, **fields):
    scheme = schemes.Routed(**{"sigma": 0.5, "levels": (0.5, 1.0), "router_level": 0.8} | fields)
    return Bounds(scheme, plan or Fixed(n=1000), alpha, dim)


def truth_of(made, answers, classes):
    """Class and the three radii of the formula, the router's, the class's under its level and under the others, from
    the exact probabilities of the router's answers [K] and of classes [K levels, classes].

    Within 1e-8 of 0 and 1, where float64 rounds them too coarsely, that much is taken for the bound.
    """
    answer = int(np.argmax(answers))
    name = int(np.argmax(classes[answer]))
    p = np.clip([answers[answer], *classes[:, name]], 1e-8, 1 - 1e-8)
    of_router, *of_class = (float(made.radius_of(level, one)) for level, one in enumerate(p))
    return name, of_router, of_class.pop(answer), min(of_class)


def whole(of_router, of_class, of_others):
    return min(of_class, max(of_router, of_others))


class Plane:
    """A router and three classes on a plane in which an image is at 0: exact under any levels, at any x'.

    The router's two answers are those of a half-space, or of a strip; the classes are in random intervals along another
    direction. Noise across the plane changes nothing, so images in it are all there are.
    """

    def __init__(self, generator, strip):
        self.angle = generator.uniform(0, np.pi)
        self.router = np.sort(generator.normal(size=2)) if strip else generator.normal(size=1)
        self.ends = np.sort(generator.normal(size=generator.integers(1, 7)) * generator.choice([0.3, 1.0]))
        self.owners = generator.integers(0, 3, len(self.ends) + 1)

    def answers(self, places, level):
        """Of the router at places [P, 2]: [P, 2]."""
        inside = np.diff(special.ndtr((self.router - places[:, :1]) / level), axis=1, prepend=0.0)[:, -1]
        return np.stack([inside, 1 - inside], axis=1)

    def classes(self, places, levels):
        """Under each level: [P, levels, 3]."""
        along = places @ np.asarray([np.cos(self.angle), np.sin(self.angle)])
        below = special.ndtr((self.ends - along[:, None, None]) / levels[:, None])
        edges = np.concatenate([np.zeros((*below.shape[:2], 1)), below, np.ones((*below.shape[:2], 1))], axis=-1)
        return np.stack([np.diff(edges)[..., self.owners == name].sum(-1) for name in range(3)], axis=-1)


class Balls:
    """A router that answers 0 in a ball of 48 dimensions, and a class 0 in another ball with the same centre."""

    def __init__(self, generator, strip):
        self.away = generator.exponential(0.5)
        self.router, self.own = generator.uniform(0.05, 1.5, 2) * 48 * 0.25

    def answers(self, places, level):
        inside = self._inside(self.router, places, np.asarray([level]))
        return np.concatenate([inside, 1 - inside], axis=1)

    def classes(self, places, levels):
        inside = self._inside(self.own, places, levels)
        return np.stack([inside, 0.7 * (1 - inside), 0.3 * (1 - inside)], axis=-1)

    def _inside(self, square, places, levels):
        distance = np.hypot(self.away + places[:, 0], places[:, 1])[:, None]
        return special.chndtr(square / levels**2, 48, distance**2 / levels**2)


def refuted(kind, count, enlarge=whole):
    """Of so many random routers and classifiers: those certified above 0, and those with another class inside."""
    generator = np.random.default_rng(0)
    seen = wrong = 0
    for number in range(count):
        made = bounds(levels=tuple(generator.uniform(0.1, 1.5, 2)), router_level=generator.uniform(0.2, 1.5))
        truth, (router, *levels) = kind(generator, number % 2), schemes.least_levels(made.scheme)
        here = np.zeros((1, 2))
        name, *three = truth_of(made, truth.answers(here, router)[0], truth.classes(here, np.asarray(levels))[0])
        radius = enlarge(*three)
        if not whole(*three) > 1e-6:
            continue
        seen += 1
        around = np.linspace(0, 2 * np.pi, 49)
        ring = np.stack([np.cos(around), np.sin(around)], axis=1)
        places = radius * np.concatenate([factor * ring for factor in (1e-3, 0.4, 0.8, 1 - 1e-9)])
        answers = np.argmax(truth.answers(places, router), axis=1)
        classes = np.argmax(truth.classes(places, np.asarray(levels)), axis=2)
        wrong += np.any(classes[np.arange(len(places)), answers] != name)
    return seen, wrong


@pytest.mark.parametrize("kind", [Plane, Balls])
def test_no_image_inside_the_radius_has_another_class(kind):
    seen, wrong = refuted(kind, 3000)
    assert seen > 1500
    assert wrong == 0


def test_votes_under_the_other_level_serve_at_many_images():
    """Radii that the router alone, which is of the published certificate, would cut."""
    larger = []
    refuted(Plane, 400, lambda *three: larger.append(whole(*three) > min(three[:2]) + 0.01) or whole(*three))
    assert np.mean(larger) > 0.1


@pytest.mark.parametrize(
    "enlarge",
    [
        lambda of_router, of_class, of_others: of_class,
        lambda of_router, of_class, of_others: max(of_router, of_others),
        lambda of_router, of_class, of_others: max(min(of_router, of_class), of_others),
        lambda *three: 1.05 * whole(*three),
    ],
)
def test_the_truth_refutes_a_radius_without_the_router_without_the_class_or_one_that_is_too_large(enlarge):
    assert refuted(Plane, 600, enlarge)[1] > 5


def test_the_radius_is_the_distance_of_the_nearest_break_where_router_and_classifier_are_the_worst():
    """Half-spaces across one direction, or across two: lost just beyond in one of both, and just before in none."""
    generator, limits = np.random.default_rng(1), set()
    for _ in range(400):
        made = bounds(levels=(2.0, 0.4), router_level=generator.uniform(0.3, 2))
        levels = schemes.least_levels(made.scheme)
        q, p = generator.uniform(0.5, 0.99999, 2)
        other = generator.uniform(0.0, 0.99999)
        _, *three = truth_of(made, np.asarray([q, 1 - q]), np.asarray([[p, 1 - p], [other, 1 - other]]))
        radius = whole(*three)
        limits.add(three.index(radius))
        for place, kept in ((radius * (1 - 1e-9), True), (radius * (1 + 1e-9) + 1e-12, False)):
            router, own, others = special.ndtr(special.ndtri([q, p, other]) - place / levels) > 0.5
            assert (own and (router or others)) == kept
    assert limits == {0, 1, 2}


def test_the_certificate_is_the_formula_by_scipy():
    made = bounds(Fixed(n=1000), levels=(0.5, 1.0, 2.0), router_level=0.8, shares=(0.3, 0.7))
    quantile, beta = stats.norm.ppf, stats.beta.ppf
    router = votes_of(0, 20, 970, 9, 1)
    for top, limits in ((990, "router"), (900, "class")):
        chosen = votes_of(2, 5, top, 1000 - top - 8, 2, 1)
        one = several_levels.certificate(made, [router, chosen])
        p = beta(0.7 * ALPHA, top, 1000 - top + 1)
        two = {"router": 0.4 * quantile(beta(0.3 * ALPHA, 970, 31)), "class": 0.5 * quantile(p)}
        assert min(two, key=two.get) == limits
        assert one.radius == pytest.approx(two[limits], rel=1e-7)
        assert one.radius <= two[limits]
        assert (one.predict, one.selected, one.sigma_x, one.n, one.n0) == (1, 1, 0.5, 1000, 100)
        assert one.p_lower == pytest.approx(p, rel=1e-10)
        assert (one.votes, one.votes_by_level) == (chosen.votes, (router, chosen))
        assert np.isnan(one.radius_published)
    first, last = votes_of(1, 3, 995, 0, 1, 1), votes_of(3, 600, 390, 9, 1)  # the last one of another class
    assert several_levels.certificate(made, [router, chosen, first]).radius == one.radius  # one of them has no votes
    assert several_levels.certificate(made, [router, chosen, first, last]).radius == one.radius
    torn, sure = votes_of(0, 300, 400, 300, 0), votes_of(2, 0, 999, 0, 0, 1)
    assert several_levels.certificate(made, [torn, sure, first]).radius == 0
    last = votes_of(3, 100, 890, 9, 1)
    found = several_levels.certificate(made, [torn, sure, last, first])
    other = [factor * quantile(beta(0.7 * ALPHA, k, 1001 - k)) for factor, k in ((0.25, 995), (1.0, 890))]
    assert found.radius == pytest.approx(min(other), rel=1e-7)
    assert (found.predict, found.sigma_x, found.votes) == (1, 0.5, sure.votes)


def test_what_is_not_sure_abstains_and_an_undecided_router_has_no_votes_for_classes():
    made = bounds()
    sure, torn = votes_of(0, 990, 10, 0), votes_of(0, 510, 490, 0)
    alone = several_levels.certificate(made, [torn])
    assert (alone.predict, alone.radius, alone.selected, alone.n, alone.p_lower) == (-1, 0, -1, 0, 0)
    assert sum(alone.votes) == 0
    assert alone.sigma_x == pytest.approx(0.4)
    for drawn in (
        [sure, votes_of(1, 500, 490, 10, 0)],
        [torn, votes_of(1, 990, 10, 0, 0)],
        [sure, votes_of(1, 0, 0, 0, 1000, selected=-1)],
        [votes_of(0, 0, 0, 1000, selected=-1)],
    ):
        one = several_levels.certificate(made, drawn)
        assert (one.predict, one.radius) == (-1, 0)


def test_the_votes_of_the_answer_that_led_to_a_level_bound_it_though_another_leads_since():
    made = bounds(ToRadius(n=1000, radii=(0.1,)))
    chosen = votes_of(1, 990, 10, 0, 0)
    assert several_levels.certificate(made, [votes_of(0, 900, 100, 0), chosen]).radius > 0
    assert several_levels.certificate(made, [votes_of(0, 100, 900, 0), chosen]).radius == 0


def outcomes(made):
    """Class and radius by counts: of answer 0 of two, and of class 0 of two under each level, [n + 1] * 3 each."""
    n = made.plan.n
    found = np.zeros((2, n + 1, n + 1, n + 1))
    for k in range(n + 1):
        drawn = [votes_of(0, k, n - k, 0)]
        first = RoutedCourse(made).next_level(drawn)
        for j in range(n + 1):
            begun = [*drawn, votes_of(first, j, n - j, 0)]
            second = RoutedCourse(made).next_level(begun)
            for i in range(n + 1):
                more = [] if second is None else [votes_of(second, i, n - i, 0)]
                one = several_levels.certificate(made, [*begun, *more])
                where = (j, i) if first == 1 else (i, j)
                found[:, k, *where] = one.predict, one.radius
                if second is None:
                    where = (j, slice(None)) if first == 1 else (slice(None), j)
                    found[0, k, *where], found[1, k, *where] = one.predict, one.radius
                    break
    return found


class Greedy(Bounds):
    """As if each bound alone were uncertain, and the names not chosen by the same votes."""

    @property
    def errors(self):
        return 2 * self.alpha, 2 * self.alpha


def test_errors_of_the_whole_procedure_add_up_to_at_most_alpha_exactly():
    """Two answers, two classes, every triple of probabilities of a grid, the worst router and classifier: the chance
    that a radius is larger than the truth. Without alpha's parts it is above alpha."""
    alpha, grid = 0.2, np.linspace(0.05, 0.95, 13)
    made = bounds(SelectionFree(n=18), alpha, levels=(1.0, 1.0), router_level=1.0)
    worst = {}
    for name, one in (("made", made), ("greedy", Greedy(made.scheme, made.plan, alpha, made.dim))):
        predict, radius = outcomes(one)
        errors = []
        for q, *p in itertools.product(grid, repeat=3):
            truth, *three = truth_of(made, np.asarray([q, 1 - q]), np.asarray([[p[0], 1 - p[0]], [p[1], 1 - p[1]]]))
            wrong = (radius > 0) & ((predict != truth) | (radius > whole(*three)))
            each = [stats.binom.pmf(np.arange(19), 18, one) for one in (q, *p)]
            errors.append(np.einsum("kji,k,j,i->", wrong, *each, optimize=True))
        worst[name] = max(errors)
    assert alpha / 20 < worst["made"] <= alpha
    assert worst["greedy"] > alpha


def drawn(made, answers, classes, generator):
    return simulated(RoutedCourse(made), lambda level: classes[level - 1] if level else answers, generator)


@pytest.mark.evidence
@pytest.mark.parametrize(
    "plan",
    [
        ToRadius(n=200, radii=(0.02, 0.1)),
        ToRadius(n=200, radii=(0.02, 0.1), sequence="union"),
        ToPrecision(n=200, precision=0.3),
        Fixed(n=60, n0=10),
        SelectionFree(n=60),
    ],
)
def test_coverage_of_a_whole_run_by_simulation(plan):
    """Both stages at the worst router and classifier, with probabilities near those at which something is certified in
    vain: the answers and classes that are nearly as likely are those under which all is lost."""
    alpha, generator, runs = 0.2, np.random.default_rng(0), 120
    made = bounds(plan, alpha, levels=(1.0, 0.5), router_level=1.0)
    for q, p in itertools.product((0.502, 0.6), repeat=2):
        answers, classes = np.asarray([q, 1 - q]), np.asarray([[p, 1 - p, 0], [0, p, 1 - p]])
        truth, *three = truth_of(made, answers, classes)
        wrong = 0
        for _ in range(runs):
            one = several_levels.certificate(made, drawn(made, answers, classes, generator)[0])
            wrong += one.radius > 0 and (one.predict != truth or one.radius > whole(*three))
        assert wrong / runs <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def test_stages_stop_and_follow_each_other_for_each_of_their_reasons():
    made = bounds(ToRadius(n=100_000, radii=(0.25, 0.5, 1.0)), levels=(0.5, 1.0), router_level=1.0)
    router = lambda *votes: votes_of(0, *votes, 0)  # noqa: E731
    small = lambda *votes: votes_of(1, *votes, 0)  # noqa: E731
    large = lambda *votes: votes_of(2, *votes, 0)  # noqa: E731

    def stops(*done, level):
        return RoutedCourse(made).stops(done, level)

    def follows(*done):
        return RoutedCourse(made).next_level(done)

    assert stops(router(50, 0), level=0)  # one answer is sure, be it how little
    assert follows(router(50, 0)) == 1
    assert follows(router(0, 50)) == 2
    assert not stops(router(30, 20), level=0)
    assert stops(router(500, 500), level=0)  # plainly none goes as far as the least of the radii
    assert follows(router(500, 500)) == 1  # but all levels may
    assert follows(votes_of(0, 0, 0, 1000, selected=-1)) is None
    assert not stops(router(0, 50), large(50, 0, 0), level=2)
    assert stops(router(0, 50), large(6_000, 0, 0), level=2)  # all radii are certified
    assert stops(router(100, 900), large(300, 8, 0), level=2)  # .5 is; 1. is out of the router's reach
    assert not stops(router(0, 50), large(300, 8, 0), level=2)
    assert follows(router(0, 50), large(6_000, 0, 0)) == 0  # has to come as far as the class has
    assert not stops(router(0, 90), large(6_000, 0, 0), level=0)
    assert stops(router(0, 6_000), large(6_000, 0, 0), level=0)
    assert follows(router(0, 6_000), large(6_000, 0, 0)) is None
    assert follows(router(50, 0), small(5_000, 5_000, 0)) is None  # there is nothing to come to
    assert stops(router(0, 60), large(500, 190, 0), level=2) == stops(router(0, 90), large(500, 190, 0), level=2)
    assert follows(router(0, 90), large(3_000, 600, 0)) is None  # .25 is what the class has, and the router, too
    torn, sure = router(500, 500), small(2_000, 0, 0)
    assert follows(torn, sure) == 2  # .5 is what the class has, and the router nothing
    assert follows(router(6_000, 4_000), sure) == 2
    assert follows(router(800, 200), sure) == 0
    assert follows(router(4_000, 1_000), sure) == 2  # the router has .25 and does not get .5
    assert not stops(router(4_000, 1_000), sure, large(200, 20, 0), level=2)
    assert stops(router(4_000, 1_000), sure, large(2_000, 200, 0), level=2)
    assert not stops(torn, sure, large(30, 20, 0), level=2)
    assert stops(torn, sure, large(10, 1_000, 0), level=2)  # sure of another class
    assert stops(torn, sure, large(6_000, 4_000, 0), level=2)
    assert follows(torn, sure, large(6_000, 4_000, 0)) is None


def test_a_router_costs_at_most_three_fifths_more_than_its_level_where_the_decisions_are_the_same():
    generator, radii = np.random.default_rng(0), (0.25, 0.5)
    made = bounds(ToRadius(n=10_000, radii=radii), levels=(0.5, 1.0), router_level=1.0)
    costs, same = np.zeros(2), 0
    for _ in range(24):
        p, q, answer = generator.beta(4, 1), generator.beta(6, 1), generator.integers(2)
        classes = np.stack([[p, 0.6 * (1 - p), 0.4 * (1 - p)]] * 2)
        done, total = drawn(made, np.eye(2)[answer] * q + np.eye(2)[1 - answer] * (1 - q), classes, generator)
        level = schemes.Gaussian(0.5 * made.scheme.levels[answer])
        stop = made.plan.stopping(lambda p, level=level: certificates.radius(level, 0.0, p, dim=1), ALPHA)
        votes, before = np.zeros(4, int), 0
        for n in made.plan.looks():
            votes[:-1] += generator.multinomial(n - before, classes[0])
            before = n
            if n == made.plan.n or stop(votes):
                break
        alone = certificates.radius(level, 0.0, made.plan.lower(votes.max(), before, ALPHA), dim=1)
        both = several_levels.certificate(made, done).radius
        if sum(alone >= r for r in radii) == sum(both >= r for r in radii):
            same += 1
            costs += total, before
    assert same > 12
    assert costs[0] <= 1.6 * costs[1]


def test_alpha_is_shared_so_that_the_larger_loss_is_least_and_no_more_than_alpha_is_spent():
    for router_level, levels in ((1.0, (0.5, 1.0)), (2.0, (0.5, 1.0)), (0.5, (1.0, 1.5, 0.25))):
        scheme = schemes.Routed(0.5, levels=levels, router_level=router_level)

        def loss(share, router_level=router_level, levels=levels):
            return max(router_level * np.log(1 / share), max(levels) * np.log(1 / (1 - share)))

        best = optimize.minimize_scalar(loss, bounds=(0.01, 0.99), method="bounded", options={"xatol": 1e-9})
        assert scheme.shares[0] == pytest.approx(best.x, abs=1e-6)
        assert sum(scheme.shares) == pytest.approx(1, abs=1e-15)
    assert schemes.Routed(0.5).shares[0] == pytest.approx(0.5)
    more = bounds(shares=(0.5, 0.5 + 9e-10)).errors  # taken for 1 together, and no more than alpha is spent
    assert sum(more) <= ALPHA * (1 + 1e-15)


def test_the_calculated_split_loses_less_than_others_at_its_worst_by_the_bounds_themselves():
    """Unanimous votes: what is lost of the larger radius, against all of alpha for either."""
    plan, levels, router_level = Fixed(n=10_000), (0.5, 1.0), 2.0

    def loss(shares):
        made = bounds(plan, levels=levels, router_level=router_level, shares=shares)
        return max(
            float(made.radius_of(level, plan.lower(9_900, 10_000, ALPHA)) - made.radius_of(level, p))
            for level in (0, 2)
            for p in [plan.lower(9_900, 10_000, made.error(level))]
        )

    best = loss(schemes.Routed(0.5, levels=levels, router_level=router_level).shares)
    assert best < min(loss((share, 1 - share)) for share in (0.1, 0.3, 0.5, 0.75, 0.9))


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="Expected n >= 12, the fewest samples that can certify anything"):
        bounds(Fixed(n=11)).check()
    bounds(Fixed(n=12)).check()


def test_other_schemes_have_no_such_bounds_and_a_router_no_radius_of_one_bound():
    scheme = schemes.Routed(0.5)
    described = schemes.describe(scheme) | sampling_plans.describe(ToRadius()) | {"alpha": ALPHA, "dim": 48}
    assert several_levels.bounds_of_results(described) == Bounds(scheme, ToRadius(), ALPHA, 48)
    with pytest.raises(ValueError, match="a scheme of one level, got routed"):
        certificates.radius(scheme, 0.0, 0.9, dim=48)
    with pytest.raises(ValueError, match="two_sided"):
        certificates.check_certificate("two_sided", scheme)
    made = bounds()
    router, small, large = made.reaches
    assert made.largest_radius == max(small, min(large, router))
    assert made.most_lower == pytest.approx(stats.beta.ppf(made.errors[1], 1000, 1), rel=1e-9)
