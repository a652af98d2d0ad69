"""Error and power of the plans by exact computation: the law of the votes that have not stopped, look by look."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import signal, special, stats

from idrc_jax import certificates
from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes
from idrc_jax.certificates.sampling_plans import Fixed, SelectionFree, ToPrecision, ToRadius

ALPHA = 0.001
SCHEME = schemes.Gaussian(sigma=0.25)


def radius_of(p):
    return certificates.radius(SCHEME, 0.0, p, dim=3072)


def chance_of_an_error(plan, q, p, alpha):
    """P(at some look the bound of a class with probability q exceeds both p and 1/2), the class given beforehand."""
    looks = np.array(plan.looks())
    low, high = np.full(looks.shape, -1), looks + 1  # the fewest votes whose bound is too high, by bisection
    while np.any(high - low > 1):
        middle = np.clip((low + high) // 2, 0, looks)
        too_high = (plan.lower(middle, looks, alpha) > max(p, 0.5)) & (low + 1 <= looks)
        high, low = np.where(too_high, (low + high) // 2, high), np.where(too_high, low, (low + high) // 2)
    law, before, error = np.ones(1), 0, 0.0
    for n, limit in zip(looks, high, strict=True):
        law = signal.fftconvolve(law, stats.binom.pmf(np.arange(n - before + 1), n - before, q))
        law, before = np.clip(law, 0, 1), n
        error += law[limit:].sum()
        law[limit:] = 0
    return error


@pytest.mark.parametrize(
    "plan", [SelectionFree(n=10_000), ToRadius(n=10_000), ToRadius(n=10_000, sequence="union"), SelectionFree(n=60)]
)
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_plans_err_at_most_alpha_with_their_class_chosen_by_the_same_votes(plan, alpha):
    """All classes together: one of probability p > 1/2 and one of 1 - p; or equal ones of at most 1/2 each."""
    for p in (0.5001, 0.6, 0.84, 0.99, 0.9999):
        total = chance_of_an_error(plan, p, p, alpha) + chance_of_an_error(plan, 1 - p, 1 - p, alpha)
        assert total <= alpha
    for classes in (2, 3, 10):
        assert classes * chance_of_an_error(plan, 1 / classes, 1 / classes, alpha) <= alpha
    assert chance_of_an_error(plan, 0.84, 0.84, alpha) > alpha / 100


@pytest.mark.evidence
def test_coverage_of_a_whole_run_by_simulation():
    """10**5 images with three classes, stopped by the plan's own rule: how often the radius is too large."""
    runs, alpha, truth = 100_000, 0.05, np.array([0.7, 0.2, 0.1])
    plan = ToRadius(n=500, radii=(0.05, 0.1))
    stop = plan.stopping(radius_of, alpha)
    generator = np.random.default_rng(0)
    votes, alive, before = np.zeros((runs, 4), int), np.ones(runs, bool), 0
    cache = {}
    for n in plan.looks():
        votes[alive, :3] += generator.multinomial(n - before, truth, alive.sum())
        before = n
        for i in np.flatnonzero(alive):
            k = int(votes[i].max())
            if (k, n) not in cache:
                cache[k, n] = stop(np.array([k, n - k, 0]))
            alive[i] = not cache[k, n]
    selected = votes[:, :3].argmax(1)
    lower = plan.lower(votes[np.arange(runs), selected], votes.sum(1), alpha)
    wrong = np.mean((lower > 0.5) & (lower > truth[selected]))
    assert 0 < wrong <= alpha + 3 * np.sqrt(alpha / runs)


def samples_and_table(plan, p, correct, repetitions, generator):
    """Mean share of n drawn, and accuracy at the plan's radii, for images with these probabilities."""
    looks, total, reached = plan.looks(), 0, np.zeros(len(plan.radii))
    stop = plan.stopping(radius_of, ALPHA)
    cache = {}
    for _ in range(repetitions):
        k, n = np.zeros(len(p), int), np.zeros(len(p), int)
        alive, before = np.ones(len(p), bool), 0
        for look in looks:
            k[alive] += generator.binomial(look - before, p[alive])
            n[alive] = before = look
            for i in np.flatnonzero(alive):
                if (k[i], look) not in cache:
                    cache[k[i], look] = stop(np.array([k[i], 0, look - k[i]]))
                alive[i] = not cache[k[i], look]
        total += n.sum()
        radii = np.where(correct, radius_of(plan.lower(k, n, ALPHA)), 0)
        reached += (radii[:, None] >= plan.radii).mean(0)
    return total / repetitions / len(p) / plan.n, reached / repetitions


@pytest.mark.shared
def test_replay_of_cohens_log_gives_the_table_for_a_ninth_of_the_samples(shared):
    from idrc_jax import read_results

    log = read_results(shared / "published/cohen/cifar10/resnet110/noise_0.25/test/sigma_0.25")
    k = np.arange(50_000, 100_001)
    lower = confidence_bounds.clopper_pearson_lower(k, 100_000, ALPHA)
    p = np.array([k[np.argmin(abs(lower - special.ndtr(row.radius / 0.25)))] / 1e5 for row in log.rows])
    correct = np.array([row.correct for row in log.rows], bool) & np.array([row.predict >= 0 for row in log.rows])
    generator = np.random.default_rng(0)
    share, table = samples_and_table(ToRadius(), p, correct, 20, generator)
    fixed = np.zeros(6)
    for _ in range(20):
        radii = radius_of(confidence_bounds.clopper_pearson_lower(generator.binomial(100_000, p), 100_000, ALPHA))
        fixed += (np.where(correct, radii, 0)[:, None] >= ToRadius().radii).mean(0) / 20
    assert share <= 0.15
    np.testing.assert_allclose(table, fixed, atol=0.01)


def test_goals_are_the_probabilities_of_the_radii():
    goals = sampling_plans.needed_probabilities(radius_of, (0.25, 0.5, 0.75, 1.0), 0.99993)
    np.testing.assert_allclose(goals, special.ndtr(np.array([0.25, 0.5, 0.75]) / 0.25), rtol=1e-7)
    assert np.all(radius_of(goals) >= (0.25, 0.5, 0.75))
    assert len(sampling_plans.needed_probabilities(radius_of, (5.0,), 0.99993)) == 0
    assert len(sampling_plans.needed_probabilities(radius_of, (0.1,), 0.4)) == 0
    edge = schemes.Stepped(sigma=0.25, edges=(28.0,), levels=(1.0, 1.0))
    near = lambda p: certificates.radius(edge, 27.6, p, dim=3072)  # noqa: E731
    assert (
        len(sampling_plans.needed_probabilities(near, (0.25, 0.5), 0.99993)) == 1
    )  # beyond the edge nothing is certified


def test_to_radius_stops_for_each_of_its_reasons():
    plan = ToRadius(n=100_000, radii=(0.25, 0.5))
    stop = plan.stopping(radius_of, ALPHA)
    assert not stop(np.array([50, 0, 0]))
    assert stop(np.array([500, 0, 0]))  # both radii are certified
    assert not stop(np.array([450, 50, 0]))  # the first is, the second is open
    assert stop(np.array([4500, 500, 0]))  # the second is out of reach
    assert stop(np.array([20, 30, 0]))  # hopeless
    last = dataclasses.replace(plan, n=60).stopping(radius_of, ALPHA)
    assert last(np.array([49, 1, 0]))  # not even ten more votes would do


def test_a_radius_that_is_reached_is_in_the_certificate():
    """The stop rule and the certificate agree on every count at a look."""
    plan = ToRadius(n=5000)
    goals = sampling_plans.needed_probabilities(radius_of, plan.radii, float(plan.lower(5000, 5000, ALPHA)))
    for sequence in ("betting", "union"):
        plan = ToRadius(n=5000, sequence=sequence)
        for n in plan.looks():
            k = np.arange(n // 2, n + 1)
            radii = radius_of(plan.lower(k, np.full(k.shape, n), ALPHA))
            for goal, radius in zip(goals, plan.radii, strict=False):
                reached = np.array([plan._reaches(int(one), n, goal, ALPHA) for one in k])
                assert np.all(radii[reached] >= radius)
                assert np.sum(~reached & (radii >= radius)) <= 1


def test_to_precision_stops_within_it():
    plan = ToPrecision(n=100_000, precision=0.1)
    stop = plan.stopping(radius_of, ALPHA)
    for q in (0.7, 0.95, 0.999):
        n = next(n for n in plan.looks() if n == plan.n or stop(np.array([round(q * n), n - round(q * n), 0])))
        assert radius_of(plan.lower(round(q * n), n, ALPHA)) >= 0.9 * radius_of(q)
        assert 100 < n < 100_000
    assert stop(np.array([200, 200, 100]))  # no majority: no radius


def test_descriptions_make_the_plan_again():
    for plan in (
        Fixed(n=7, n0=3),
        SelectionFree(n=9),
        ToRadius(n=99, radii=(0.1, 1 / 3), sequence="union"),
        ToRadius(n=99, published=True),
        ToPrecision(),
    ):
        described = sampling_plans.describe(plan) | {"alpha": 0.1}
        assert (
            sampling_plans.from_description({k: list(v) if isinstance(v, tuple) else v for k, v in described.items()})
            == plan
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(n0=0), r"Expected n0 >= 1"),
        (lambda: ToRadius(radii=()), "radii to ascend"),
        (lambda: ToRadius(radii=(0.5, 0.25)), "radii to ascend"),
        (lambda: ToRadius(radii=(0.0, 0.25)), "radii to ascend"),
        (lambda: ToRadius(radii=("x",)), r"radii to ascend from above 0, got \('x',\)"),
        (lambda: ToRadius(radii=(0.25, math.nan)), "radii to ascend"),
        (lambda: ToRadius(radii=(0.25, math.inf)), "radii to ascend"),
        (lambda: Fixed(n=10.5), r"Expected n to be an integer, got 10\.5"),
        (lambda: Fixed(n0=1.5), "Expected n0 to be an integer"),
        (lambda: SelectionFree(n="many"), "Expected n to be an integer"),
        (lambda: ToPrecision(n=True), "Expected n to be an integer"),
        (lambda: Fixed(n=2**33).check(0.001), "Expected n <= 4294967296"),
        (lambda: ToRadius(sequence="bet"), "Expected sequence"),
        (lambda: ToRadius(published="no"), "Expected published to be True or False, got 'no'"),
        (lambda: ToPrecision(precision=1.0), "0 < precision < 1"),
        (lambda: ToRadius(n=1000, sequence="union").lower(10, 55, 0.01), "one of the plan's looks"),
    ],
)
def test_bad_plans_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_radii_may_be_an_array():
    assert sampling_plans.ToRadius(radii=np.array([0.25, 0.5])) == sampling_plans.ToRadius(radii=(0.25, 0.5))
