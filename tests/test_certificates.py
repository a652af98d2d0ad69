import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from idrc_jax import certificates, schemes, statistics

IMAGE = np.linspace(0, 1, 48).reshape(4, 4, 3)


def exact_radius(sigma, p):
    with mpmath.workdps(40):
        return mpmath.mpf(sigma) * mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1)


@pytest.mark.parametrize("sigma", [0.1, 0.12, 0.25, 1.0])
@pytest.mark.parametrize("p", [0.5 + 1e-12, 0.51, 0.9, 0.99993, 1 - 1e-12])
def test_gaussian_radius_is_cohens_rounded_down(sigma, p):
    scheme = schemes.Gaussian(sigma=sigma)
    radius = certificates.radius(scheme, 0.0, p, dim=48)
    drawn = float(np.float32(sigma))  # the level the noise really has
    assert radius <= exact_radius(sigma, p)
    assert radius <= exact_radius(drawn, p)
    assert radius == pytest.approx(float(exact_radius(sigma, p)), rel=1e-7)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_radius_is_zero_up_to_one_half(p):
    scheme = schemes.Gaussian(sigma=1.0)
    assert certificates.radius(scheme, 0.0, p, dim=4) == 0.0
    assert certificates.published_radius(scheme, p) == 0.0


def test_gaussian_radius_holds_for_a_half_space_and_is_tight():
    """For a linear base classifier the truth is known: the boundary is sigma * Phi^-1(p) away."""
    sigma, distance = 0.5, 0.8
    p = stats.norm.cdf(distance / sigma)
    radius = certificates.radius(schemes.Gaussian(sigma=sigma), 0.0, p, dim=2)
    assert radius <= distance
    assert radius == pytest.approx(distance, rel=1e-9)


def test_uniform_certifies_nothing_and_the_others_claim_nothing():
    assert certificates.radius(schemes.Uniform(sigma=0.25), 10.0, 0.999, dim=48) == 0.0
    for name in ("l1", "l2", "inverse_sqrt_norm"):
        scheme = schemes.make(name, sigma=0.25)
        statistic = float(scheme.statistic(IMAGE))
        assert math.isnan(certificates.radius(scheme, statistic, 0.999, dim=48))
        assert "No certificate" in certificates.explain(name)


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_published_radius_ignores_the_scheme(name):
    published = certificates.published_radius(schemes.make(name, sigma=0.25), 0.99)
    assert published == pytest.approx(0.25 * stats.norm.ppf(0.99), rel=1e-9)


def test_certificate_from_votes():
    selection, estimation = np.array([0, 100, 0, 0]), np.array([5, 990, 3, 2])
    made = certificates.from_votes(schemes.Gaussian(sigma=0.5), 0.0, 0.5, selection, estimation, alpha=0.001, dim=48)
    assert (made.predict, made.selected, made.n, made.n0) == (1, 1, 1000, 100)
    assert made.p_lower == statistics.clopper_pearson_lower(990, 1000, 0.001)
    assert made.radius == pytest.approx(0.5 * stats.norm.ppf(made.p_lower), rel=1e-9)
    assert made.votes == (5, 990, 3, 2)


def test_abstention_keeps_the_selected_class():
    selection, estimation = np.array([51, 49, 0]), np.array([520, 480, 0])
    made = certificates.from_votes(schemes.Gaussian(sigma=0.5), 0.0, 0.5, selection, estimation, alpha=0.001, dim=48)
    assert (made.predict, made.radius, made.radius_published, made.selected) == (-1, 0.0, 0.0, 0)


def test_a_black_image_without_noise_abstains():
    unanimous = np.array([1000, 0, 0])
    made = certificates.from_votes(schemes.L1(sigma=0.5), 0.0, 0.0, unanimous, unanimous, alpha=0.001, dim=48)
    assert (made.predict, made.radius_published, made.p_lower) == (-1, 0.0, 0.0)


def test_a_probability_of_one_is_refused():
    with pytest.raises(ValueError, match="p_lower < 1"):
        certificates.radius(schemes.Gaussian(sigma=1.0), 0.0, 1.0, dim=4)
