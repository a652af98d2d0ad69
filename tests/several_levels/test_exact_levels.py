"""What several levels pay for exact noise, in images of so many values that it shows: every bound its own level's part,
against formulas by SciPy and against laws that are as wrong as they may be."""

import dataclasses
import math

import numpy as np
import pytest
from level_runs import votes_of
from scipy import special, stats

from idrc_jax import several_levels
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import Fixed, ToRadius
from idrc_jax.several_levels import cascade, routed

ALPHA, DIM = 0.001, 10**12
QUANTILE, BETA = stats.norm.ppf, stats.beta.ppf


def cascade_bounds(plan=None, dim=DIM, **fields):
    fields = {"sigma": 0.5, "levels": (8.0, 1.0), "thresholds": (0.7,), "exact": True} | fields
    return cascade.Bounds(schemes.Cascade(**fields), plan or Fixed(n=1000), ALPHA, dim)


def routed_bounds(plan=None, dim=DIM, **fields):
    fields = {"sigma": 0.5, "levels": (1.0, 4.0), "router_level": 8.0, "exact": True} | fields
    return routed.Bounds(schemes.Routed(**fields), plan or Fixed(n=1000), ALPHA, dim)


def plain(made):
    """The same bounds for float32 noise."""
    return dataclasses.replace(made, scheme=schemes.with_exact_noise(made.scheme, False))


def gap(level, dim=DIM):
    """Two for each threshold of either sign and what lies beyond them, in 2^-64, of every value."""
    return dim * 2 * (math.floor(9.09 * 255 * level + 0.5) + 1) / 2**64


def test_every_bound_of_a_cascade_pays_the_part_of_its_own_level():
    made = cascade_bounds()
    large, small = votes_of(0, 600, 250, 150, 0), votes_of(1, 995, 4, 1, 0)
    assert gap(4.0) == pytest.approx(1.0055e-3, rel=1e-3)
    room = 4.0 * (QUANTILE(0.7) - QUANTILE(BETA(1 - ALPHA / 8, 251, 750) + gap(4.0)))
    p = BETA(ALPHA / 2, 995, 6) - gap(0.5)
    one = several_levels.certificate(made, [large, small])
    assert one.p_lower == pytest.approx(p, rel=1e-10)
    assert 0.5 * QUANTILE(p) < room
    assert one.radius == pytest.approx(0.5 * QUANTILE(p), rel=1e-9)
    narrow = votes_of(0, 320, 580, 100, 0)  # leaves the class little room
    room = 4.0 * (QUANTILE(0.7) - QUANTILE(BETA(1 - ALPHA / 8, 581, 420) + gap(4.0)))
    assert several_levels.certificate(made, [narrow, small]).radius == pytest.approx(room, rel=1e-9)
    sure = votes_of(0, 900, 60, 40, 0)
    p = BETA(ALPHA / 4, 900, 101) - gap(4.0)
    first = several_levels.certificate(made, [sure])
    assert first.p_lower == pytest.approx(p, rel=1e-10)
    assert first.radius == pytest.approx(4.0 * (QUANTILE(p) - QUANTILE(0.7)), rel=1e-9)
    for drawn in ([large, small], [narrow, small], [sure]):
        assert (
            0 < several_levels.certificate(made, drawn).radius < several_levels.certificate(plain(made), drawn).radius
        )


def test_all_bounds_of_a_router_pay_the_part_of_their_own_level():
    made = routed_bounds()
    for top, chosen, limit in (
        (700, votes_of(2, 3, 990, 7, 0), 4.0 * QUANTILE(BETA(made.errors[0], 700, 301) - gap(4.0))),
        (990, votes_of(2, 30, 700, 270, 0), 2.0 * QUANTILE(BETA(made.errors[1], 700, 301) - gap(2.0))),
    ):
        drawn = [votes_of(0, 1000 - top, top, 0), chosen]
        one = several_levels.certificate(made, drawn)
        assert one.radius == pytest.approx(limit, rel=1e-9)
        assert one.p_lower == pytest.approx(BETA(made.errors[1], max(chosen.votes), 1001 - max(chosen.votes)) - gap(2))
        assert 0 < one.radius < several_levels.certificate(plain(made), drawn).radius
    drawn = [votes_of(0, 480, 520, 0), votes_of(2, 3, 990, 7, 0), votes_of(1, 3, 990, 7, 0)]
    limit = 0.5 * QUANTILE(BETA(made.errors[1], 990, 11) - gap(0.5))
    assert several_levels.certificate(made, drawn).radius == pytest.approx(limit, rel=1e-9)


@pytest.mark.parametrize("made", [cascade_bounds(), routed_bounds()])
def test_radii_are_those_of_float32_noise_in_images_that_there_are_and_none_where_all_is_paid(made):
    drawn = [votes_of(0, 620, 250, 130, 0), votes_of(1, 950, 30, 20, 0)]
    small, huge = (several_levels.certificate(dataclasses.replace(made, dim=dim), drawn) for dim in (3072, 10**15))
    other = several_levels.certificate(plain(made), drawn)
    assert other.radius * (1 - 1e-10) < small.radius < other.radius
    assert (huge.predict, huge.radius) == (-1, 0)
    assert small.votes_by_level == other.votes_by_level


def truly_kept(made, here, place):
    """Whether half-spaces of these true probabilities, all across one direction, keep class 0 at a place."""
    shift = place / made.levels
    own, rival = (special.ndtr(special.ndtri(here[:, i]) + sign * shift) for i, sign in ((0, -1), (1, 1)))
    for k, threshold in enumerate(made.thresholds):
        if own[k] > threshold or rival[k] > threshold:
            return own[k] > threshold
    return False


def test_a_law_that_is_as_wrong_as_it_may_be_refutes_a_cascade_whose_bounds_do_not_all_pay():
    """Votes without number of laws that favour the class under each level: only what is paid brings its radius back to
    the truth."""
    generator = np.random.default_rng(0)
    made = cascade_bounds(levels=(8.0, 4.0, 1.0), thresholds=(0.6, 0.5), dim=10**13)
    gaps = np.asarray([gap(level, 10**13) for level in made.levels])
    wrong = dict.fromkeys(("paid", "own", "rooms"), 0)
    seen = 0
    for _ in range(300):
        own = generator.uniform(0.05, 0.9, 3)
        here = np.stack([own, (1 - own) * generator.uniform(0.1, 0.9, 3)], axis=1)
        seem_own, seem_rival = here[:, 0] + gaps, np.maximum(here[:, 1] - gaps, 1e-6)  # by the law drawn
        for name in wrong:
            radii = []
            for k in range(3):
                p = made.paid(k, seem_own[k]) if name != "own" else seem_own[k]
                q = [made.risen(s, seem_rival[s]) if name != "rooms" else seem_rival[s] for s in range(k)]
                radii.append(min(float(made.own(k, p)), *(float(made.room(s, q[s])) for s in range(k)), math.inf))
            radius = max(radii)
            if radius > 1e-3:
                seen += name == "paid"
                wrong[name] += not all(truly_kept(made, here, f * radius) for f in (0.5, 1 - 1e-7))
    assert seen > 100
    assert wrong["paid"] == 0
    assert wrong["own"] > 20
    assert wrong["rooms"] > 20


def test_a_law_that_is_as_wrong_as_it_may_be_refutes_a_router_whose_bounds_do_not_both_pay():
    generator, made = np.random.default_rng(0), routed_bounds(dim=10**13)
    wrong = dict.fromkeys(((True, True), (False, True), (True, False)), 0)
    for _ in range(200):
        q, p = generator.uniform(0.55, 0.95, 2)
        seem = {0: q + gap(4.0, 10**13), 2: p + gap(2.0, 10**13)}
        for pays in wrong:
            radius = min(
                float(made.radius_of(level, made.paid(level, own) if paid else np.asarray(own)))
                for (level, own), paid in zip(seem.items(), pays, strict=True)
            )
            place = radius * (1 - 1e-7)
            wrong[pays] += not (
                special.ndtr(special.ndtri(q) - place / 4.0) > 0.5
                and special.ndtr(special.ndtri(p) - place / 2.0) > 0.5
            )
    assert wrong[True, True] == 0
    assert min(wrong[False, True], wrong[True, False]) > 30


@pytest.mark.parametrize("many", [cascade_bounds, routed_bounds])
def test_a_plan_that_stops_at_a_radius_has_it(many):
    """Of votes all alike, the first look at which the rule stops and what is certified there. Without exact noise that
    is some looks earlier."""
    made = many(ToRadius(n=10_000, radii=(1.0,)), 10**14, **({"thresholds": (0.5,)} if many is cascade_bounds else {}))
    stopped = []
    for one in (made, plain(made)):
        for n in one.plan.looks():
            if many is cascade_bounds:
                level, drawn = 0, [votes_of(0, n * 8 // 10, n - n * 8 // 10, 0, 0)]
            else:
                level, drawn = 2, [votes_of(0, 0, 10_000, 0), votes_of(2, n * 8 // 10, n - n * 8 // 10, 0, 0)]
            if several_levels.course(one).stops(drawn, level):
                break
        stopped.append(n)
        assert n < 10_000
        assert several_levels.certificate(one, drawn).radius >= 1.0
    assert stopped[0] > stopped[1]


def test_the_largest_that_votes_can_give_is_paid_for():
    for made in (cascade_bounds(), routed_bounds()):
        unanimous = [votes_of(0, 0, 1000, 0)] if isinstance(made, routed.Bounds) else []
        level = 2 if unanimous else 0
        best = several_levels.certificate(made, [*unanimous, votes_of(level, 1000, 0, 0, 0)])
        assert made.largest_radius == pytest.approx(best.radius, rel=1e-12)
        assert made.most_lower >= best.p_lower
        assert made.most_lower < plain(made).most_lower
        assert made.largest_radius < plain(made).largest_radius


def test_samples_that_exceed_a_threshold_by_less_than_is_paid_are_too_few():
    made = cascade_bounds(Fixed(n=24), thresholds=(0.7,), dim=10**13)
    plain(made).check()
    with pytest.raises(ValueError, match=r"Expected n >= 25, .* threshold 0.7 of level 4 .*, got 24"):
        made.check()


def test_levels_too_large_for_tables_are_refused_by_name():
    with pytest.raises(ValueError, match="sigma times each of levels <= 16 under exact noise, got 20") as error:
        schemes.Cascade(sigma=10.0, levels=(2.0, 1.0), exact=True)
    schemes.Cascade(sigma=10.0, levels=(2.0, 1.0))
    schemes.Cascade(sigma=10.0, levels=(1.6, 1.0), exact=True)
    assert error.value.names[0] == "levels"
    with pytest.raises(ValueError, match="sigma times router_level <= 16 under exact noise, got 30") as error:
        schemes.Routed(sigma=10.0, levels=(1.0, 0.5), router_level=3.0, exact=True)
    assert error.value.names[0] == "router_level"
