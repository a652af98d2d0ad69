"""A plan that decides published radii, too."""

import numpy as np
import pytest
from scipy import special

from idrc_jax import certificates
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certificates.sampling_plans import LevelVotes, ToRadius
from idrc_jax.certification import Settings
from idrc_jax.certification.decisions import Decisions
from idrc_jax.certification.guarantee import check_settings
from idrc_jax.sampling.dispatch_ahead import Drawn

SIGMA, RADII, DIM, MOST = 0.25, (0.1, 0.25, 0.5), 3072, 200_000
# True probabilities of the class; the published radius is SIGMA times their quantiles.
TRUTHS = (0.5, 0.6, 0.75, 0.9, 0.99, 1 - 1e-9)
STATISTIC = {"gaussian": 0.0, "l1": 0.48, "l2": 30.0, "uniform": 30.0, "inverse_sqrt_norm": 30.0}


def decided(scheme, published, truth, generator):
    """The certificate of one image whose class has a known probability, with votes drawn by NumPy."""
    plan = ToRadius(n=MOST, radii=RADII, published=published)
    decisions = Decisions(scheme, Settings(plan), np.array([STATISTIC[scheme.name]]), DIM)
    course, drawn, votes = decisions.course(0), 0, np.zeros(3, np.int64)
    for look in plan.looks():
        votes += [*generator.multinomial(look - drawn, [truth, 1 - truth]), 0]
        drawn, levels = look, (LevelVotes(0, int(np.argmax(votes)), tuple(votes.tolist())),)
        if look < plan.n and course.stops(levels, 0):
            break
    return decisions.certificate(Drawn(0, levels)), drawn


@pytest.mark.parametrize("name", STATISTIC)
def test_accuracy_at_published_radii_is_that_of_the_true_probabilities(name):
    scheme, generator = schemes.make(name, sigma=SIGMA), np.random.default_rng(0)
    most = ToRadius(n=MOST).lower(MOST, MOST, Settings.alpha)
    for truth in TRUTHS:
        made, drawn = decided(scheme, True, truth, generator)
        valid = certificates.radius(scheme, STATISTIC[name], min(truth, most), dim=DIM)
        for radius in RADII:
            assert (made.radius_published >= radius) == (SIGMA * special.ndtri(truth) >= radius)
            assert (made.radius >= radius) == (valid >= radius)
        assert drawn < MOST


def test_without_it_votes_stop_where_the_valid_radius_is_decided():
    generator = np.random.default_rng(0)
    made, drawn = decided(schemes.Uniform(SIGMA), False, TRUTHS[-1], generator)
    assert drawn == 50  # there is no valid radius to decide
    assert made.radius_published < RADII[-1]
    made, more = decided(schemes.Uniform(SIGMA), True, TRUTHS[-1], generator)
    assert more > drawn
    assert made.radius_published >= RADII[-1]


def test_a_run_that_was_not_asked_is_described_as_before():
    assert "published" not in sampling_plans.describe(ToRadius())
    assert sampling_plans.describe(ToRadius(published=True))["published"] is True


def test_published_radii_are_of_the_schemes_of_the_paper(linear):
    settings = Settings(ToRadius(published=True))
    check_settings(linear, schemes.L1(SIGMA), settings)
    with pytest.raises(ValueError, match="a scheme of the paper for a plan that decides published radii, got box"):
        check_settings(linear, schemes.Box(SIGMA), settings)
