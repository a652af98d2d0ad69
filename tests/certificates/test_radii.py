import math

import mpmath
import numpy as np
import pytest
from conftest import ROOT
from own_schemes import Own
from scipy import special, stats

from idrc_jax import certificates
from idrc_jax.certificates import confidence_bounds, gaussian_pair, schemes
from idrc_jax.certificates.sampling_plans import Fixed, SelectionFree, ToRadius

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


def test_uniform_certifies_nothing():
    assert certificates.radius(schemes.Uniform(sigma=0.25), 10.0, 0.999, dim=48) == 0.0
    assert "never overlap" in certificates.explain("uniform")


@pytest.mark.parametrize(
    ("sigma", "mean", "dim", "p", "expected"),
    [
        (0.25, 0.47, 3072, 0.9, 0.141958),
        (0.25, 0.47, 3072, 0.99, 0.257670),
        (0.25, 0.47, 3072, 0.99993, 0.421749),
        (0.5, 0.47, 3072, 0.99, 0.445964),
        (1.0, 0.3, 64, 0.9, 0.220409),
    ],
)
def test_l1_vectors(sigma, mean, dim, p, expected):
    radius = certificates.radius(schemes.L1(sigma=sigma), mean, p, dim=dim)
    assert expected - 1e-5 < radius <= expected + 1e-6


@pytest.mark.parametrize(("p", "expected"), [(0.9, 0.522824), (0.99, 0.945770)])
def test_inverse_sqrt_norm_vectors(p, expected):
    scheme = schemes.InverseSqrtNorm(sigma=0.5, ref=28.0)
    radius = certificates.radius(scheme, 28.0, p, dim=3072)
    assert expected - 1e-5 < radius <= expected + 1e-6


def test_l2_vectors_scale_with_sigma():
    radius = certificates.radius(schemes.L2(sigma=0.25), 0.0, np.array([0.9, 0.99, 0.999]), dim=3072)
    np.testing.assert_allclose(radius / 0.25, [0.0107076, 0.0230499, 0.0325574], atol=1e-7)


STEPPED = schemes.Stepped(sigma=0.5, by="norm", edges=(10.0, 12.0), levels=(0.5, 1.0, 2.0))


@pytest.mark.parametrize(
    ("statistic", "level", "edge"),
    [(3.0, 0.25, 7.0), (9.9, 0.25, 0.1), (10.0, 0.5, 0.0), (10.5, 0.5, 0.5), (11.9, 0.5, 0.1), (13.0, 1.0, 1.0)],
)
def test_stepped_is_cohens_radius_cut_at_the_edge(statistic, level, edge):
    for p in (0.4, 0.6, 0.999):
        cohen = certificates.radius(schemes.Gaussian(sigma=level), 0.0, p, dim=48)
        radius = certificates.radius(STEPPED, statistic, p, dim=48)
        assert radius <= min(cohen, edge)
        assert radius == pytest.approx(min(cohen, edge), abs=1e-9)


def test_stepped_by_mean_or_deviation_reaches_farther_for_the_dimension():
    for by in ("mean_abs", "std"):
        scheme = schemes.Stepped(sigma=9.0, by=by, edges=(0.5,), levels=(1.0, 1.0))
        assert certificates.radius(scheme, 0.49, 0.9, dim=3072) == pytest.approx(0.01 * math.sqrt(3072), rel=1e-9)


def test_published_radius_of_stepped_does_not_exist():
    assert math.isnan(certificates.published_radius(STEPPED, 0.9))
    votes = np.array([[100, 0, 0], [50, 50, 0]])  # certain, and an abstention
    made = certificates.from_votes(STEPPED, [3.0, 3.0], [0, 0], votes, plan=Fixed(n0=9), alpha=0.01, dim=48)
    assert [one.predict for one in made] == [0, -1]
    assert all(math.isnan(one.radius_published) for one in made)


def test_two_sided_radius_is_the_papers_formula():
    scheme = schemes.Gaussian(sigma=0.5)
    radius = certificates.two_sided_radius(scheme, 0.0, 0.7, 0.2, dim=48)
    assert radius == pytest.approx(0.25 * (stats.norm.ppf(0.7) - stats.norm.ppf(0.2)), rel=1e-9)
    assert radius < 0.25 * (stats.norm.ppf(0.7) - stats.norm.ppf(0.2))
    assert certificates.two_sided_radius(scheme, 0.0, 0.4, 0.3, dim=48) > 0
    assert certificates.two_sided_radius(scheme, 0.0, 0.3, 0.3, dim=48) == 0
    assert certificates.two_sided_radius(scheme, 0.0, 0.3, 1.0, dim=48) == 0
    assert certificates.two_sided_radius(scheme, 0.0, 0.0, 0.1, dim=48) == 0
    assert certificates.two_sided_radius(STEPPED, 9.9, 0.9, 0.01, dim=48) == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize("name", ["l1", "l2", "uniform", "inverse_sqrt_norm"])
def test_two_sided_is_refused_where_the_formula_does_not_hold(name):
    with pytest.raises(ValueError, match="gaussian, stepped, box, laplace or splitting for a two_sided certificate"):
        certificates.two_sided_radius(schemes.make(name, sigma=0.5), 0.4, 0.9, 0.05, dim=48)
    with pytest.raises(ValueError, match="one_sided, runner_up, two_sided, got 'both'"):
        certificates.check_certificate("both", schemes.Gaussian(sigma=0.5))


@pytest.mark.parametrize("name", sorted(schemes.SCHEMES.keys() - {"cascade", "routed", "box", "laplace", "splitting"}))
def test_radius_never_exceeds_cohens_at_the_images_own_level(name):
    scheme = schemes.make(name, sigma=0.25)
    statistic = np.asarray(scheme.statistic(IMAGE))
    p = np.array([0.0, 0.5, 0.51, 0.9, 0.999, 1 - 1e-12])
    radius = certificates.radius(scheme, statistic, p, dim=48)
    level = schemes.drawn_level(scheme, statistic)
    assert np.all(radius <= level * np.maximum(special.ndtri(p), 0))
    assert np.all(np.diff(radius) >= 0)
    assert np.all(radius[:2] == 0)


def test_the_level_that_was_drawn_counts_not_the_one_before_rounding():
    """At the radius, from the float32 level to levels rounded either way, the class is still safe."""
    scheme = schemes.L1(sigma=0.3)
    statistic = np.random.default_rng(0).uniform(0.1, 0.9, 300)
    radius = certificates.radius(scheme, statistic, 0.9, dim=3072) * (1 - 1e-12)
    drawn = schemes.drawn_level(scheme, statistic)
    assert np.any(drawn < scheme.scale(statistic))
    low, high = scheme.scale_bounds(statistic, radius, 3072)
    for level in (low * (1 - 2.0**-23), high * (1 + 2.0**-23)):
        assert np.all(gaussian_pair.worst_probability(0.9, radius, drawn, level, 3072) > 0.5)


def test_a_scheme_of_ones_own_is_certified_by_its_bounds():
    statistic = float(Own(sigma=0.25).statistic(IMAGE))
    radius = certificates.radius(Own(sigma=0.25), statistic, 0.99, dim=48)
    # The same levels and the same slope as an l1 scheme.
    like = schemes.L1(sigma=0.25)
    assert radius == pytest.approx(certificates.radius(like, 1 + statistic, 0.99, dim=48), rel=1e-7)
    assert 0 < radius < 0.25 * (1 + statistic) * stats.norm.ppf(0.99)


def test_a_subclass_whose_levels_its_parents_radius_would_not_notice_is_refused():
    class Brighter(schemes.Gaussian):
        def scale(self, statistic):
            return self.sigma * (1 + statistic)

    with pytest.raises(ValueError, match="subclass of Scheme itself, got one of Gaussian"):
        certificates.radius(Brighter(sigma=0.5), 1.0, 0.9, dim=48)
    with pytest.raises(ValueError, match="subclass of Scheme itself, got one of Gaussian"):
        certificates.two_sided_radius(Brighter(sigma=0.5), 1.0, 0.9, 0.1, dim=48)


def test_a_scheme_with_the_name_of_another_is_refused():
    class Largest(schemes.L1):
        def statistic(self, images):
            return np.max(images, axis=(-3, -2, -1))

    class Like(Own):
        name = "l1"

    for kind in (Largest, Like):
        with pytest.raises(ValueError, match=f"Expected {kind.__name__} to have a name of its own, .* got 'l1'"):
            certificates.radius(kind(sigma=0.5), 0.3, 0.9, dim=48)


def test_a_scheme_without_bounds_or_with_another_law_is_refused():
    class NoBounds(Own):
        scale_bounds = schemes.Scheme.scale_bounds

    class Laplace(Own):
        law = "laplace_direction"

    for scheme in (NoBounds(sigma=0.5), Laplace(sigma=0.5)):
        with pytest.raises(ValueError, match="law 'normal' and to give scale_bounds"):
            certificates.radius(scheme, 0.3, 0.9, dim=48)


@pytest.mark.filterwarnings("error")
def test_black_images_and_images_without_a_level_get_zero():
    for name in ("l1", "inverse_sqrt_norm", "uniform"):
        assert certificates.radius(schemes.make(name, sigma=0.5), 0.0, 0.999, dim=48) == 0.0
    rows = certificates.radius(schemes.L1(sigma=0.5), np.array([0.0, 0.4]), 0.9, dim=48)
    assert rows[0] == 0 < rows[1]


@pytest.mark.parametrize("bad", [{"p_lower": -0.1}, {"p_lower": np.nan}, {"dim": 0}, {"statistic": np.nan}])
@pytest.mark.parametrize("name", sorted(schemes.SCHEMES.keys() - {"cascade", "routed"}))
def test_bad_arguments_are_refused(name, bad):
    arguments = {"statistic": 0.4, "p_lower": 0.9, "dim": 48} | bad
    with pytest.raises(ValueError, match="Expected"):
        certificates.radius(schemes.make(name, sigma=0.5), **arguments)


@pytest.mark.parametrize("name", sorted(schemes.SCHEMES.keys() - {"cascade", "routed"}))
def test_rows_are_the_scalars_to_the_last_digit(name):
    scheme = schemes.make(name, sigma=0.25)
    generator = np.random.default_rng(0)
    statistic, p = generator.uniform(0.1, 0.9, 20), generator.uniform(0.4, 1, 20)
    rows = certificates.radius(scheme, statistic, p, dim=48)
    alone = [certificates.radius(scheme, statistic[i], p[i], dim=48) for i in range(20)]
    assert rows.tolist() == alone


@pytest.mark.parametrize(
    "name", sorted(schemes.SCHEMES.keys() - {"stepped", "cascade", "routed", "box", "laplace", "splitting"})
)
def test_published_radius_ignores_the_scheme(name):
    published = certificates.published_radius(schemes.make(name, sigma=0.25), 0.99)
    assert published == pytest.approx(0.25 * stats.norm.ppf(0.99), rel=1e-9)


def test_the_paper_has_no_radius_for_a_scheme_of_ones_own():
    assert math.isnan(certificates.published_radius(Own(sigma=0.25), 0.99))
    votes = np.array([[990, 5, 5]])
    (made,) = certificates.from_votes(Own(sigma=0.25), [0.3], [0], votes, plan=Fixed(n0=9), alpha=0.01, dim=48)
    assert made.radius > 0
    assert math.isnan(made.radius_published)


def test_certificate_from_votes():
    votes = np.array([[5, 990, 3, 2], [5, 990, 3, 2]])
    made, none = certificates.from_votes(
        schemes.Gaussian(sigma=0.5),
        [0.0, 0.0],
        [1, confidence_bounds.ABSTAIN],
        votes,
        plan=Fixed(n0=100),
        alpha=0.001,
        dim=48,
    )
    assert (made.predict, made.selected, made.n, made.n0, made.sigma_x) == (1, 1, 1000, 100, 0.5)
    assert made.p_lower == confidence_bounds.clopper_pearson_lower(990, 1000, 0.001)
    assert made.radius == pytest.approx(0.5 * stats.norm.ppf(made.p_lower), rel=1e-9)
    assert made.votes == (5, 990, 3, 2)
    assert (none.predict, none.selected, none.radius, none.p_lower) == (-1, -1, 0.0, 0.0)


def test_two_sided_certificate_from_votes():
    """It predicts where no class has half of the votes, and abstains where the bounds touch."""
    votes = np.array([[450, 100, 150, 150, 150, 0], [450, 100, 400, 25, 25, 0]])
    sure, unsure = certificates.from_votes(
        schemes.Gaussian(sigma=0.5),
        [0.0, 0.0],
        [0, 0],
        votes,
        plan=Fixed(n0=100),
        alpha=0.001,
        dim=48,
        certificate="two_sided",
    )
    lower, upper = confidence_bounds.simultaneous_bounds(0, votes[0], 0.001)
    assert (sure.predict, sure.p_lower, sure.radius_published) == (0, lower, 0.0)
    assert sure.radius == certificates.two_sided_radius(schemes.Gaussian(sigma=0.5), 0.0, lower, upper, dim=48) > 0
    assert (unsure.predict, unsure.radius) == (-1, 0.0)


def test_the_runner_up_certificate_from_votes():
    """By two bounds, and never by less than 1/2 where the class has more: the best of the one- and the two-sided."""
    votes = np.array([[450, 100, 150, 150, 150, 0], [990, 4, 3, 2, 1, 0], [450, 100, 420, 15, 15, 0]])
    spread, sure, unsure = certificates.from_votes(
        schemes.Gaussian(sigma=0.5),
        [0.0, 0.0, 0.0],
        [0, 0, 0],
        votes,
        plan=Fixed(n0=100),
        alpha=0.001,
        dim=48,
        certificate="runner_up",
    )
    lower, upper = stats.beta.ppf(0.0008, 450, 551), stats.beta.ppf(1 - 0.0002, 151, 850)
    assert spread.p_lower == pytest.approx(lower, rel=1e-9)
    assert spread.radius == pytest.approx(0.25 * (stats.norm.ppf(lower) - stats.norm.ppf(upper)), rel=1e-9)
    assert (spread.predict, unsure.predict, unsure.radius) == (0, -1, 0.0)
    one_sided = 0.5 * stats.norm.ppf(stats.beta.ppf(0.0008, 990, 11))
    assert one_sided * (1 - 1e-9) < sure.radius < one_sided * 1.1
    both = certificates.from_votes(
        schemes.Gaussian(sigma=0.5),
        [0.0],
        [0],
        np.array([[990, 10, 0]]),
        plan=Fixed(n0=100),
        alpha=0.001,
        dim=48,
        certificate="runner_up",
    )
    assert both[0].radius == pytest.approx(one_sided, rel=1e-9)  # of two classes the rival has the rest


@pytest.mark.parametrize("certificate", ["two_sided", "runner_up"])
def test_certificates_that_need_a_class_chosen_by_other_votes_refuse_other_plans(certificate):
    certificates.check_certificate(certificate, STEPPED, Fixed())
    for plan in (SelectionFree(), ToRadius()):
        with pytest.raises(ValueError, match=f"the plan fixed for a {certificate} certificate, got {plan.name}"):
            certificates.check_certificate(certificate, STEPPED, plan)


def test_abstention_keeps_the_selected_class():
    votes = np.array([[520, 480, 0]])
    (made,) = certificates.from_votes(
        schemes.Gaussian(sigma=0.5), [0.0], [0], votes, plan=Fixed(n0=9), alpha=0.001, dim=48
    )
    assert (made.predict, made.radius, made.radius_published, made.selected) == (-1, 0.0, 0.0, 0)


def test_a_black_image_without_noise_abstains():
    unanimous = np.array([[1000, 0, 0]])
    (made,) = certificates.from_votes(
        schemes.L1(sigma=0.5), [0.0], [0], unanimous, plan=Fixed(n0=9), alpha=0.001, dim=48
    )
    assert (made.predict, made.radius, made.radius_published, made.p_lower) == (-1, 0.0, 0.0, 0.0)


def test_the_documentations_tables_are_the_codes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import certificate_table

    assert certificate_table.tables() in (ROOT / "docs/explanation/certificates.md").read_text()


def test_a_probability_of_one_is_refused():
    with pytest.raises(ValueError, match="p_lower < 1"):
        certificates.radius(schemes.Gaussian(sigma=1.0), 0.0, 1.0, dim=4)


def test_a_bound_of_exactly_one_half_abstains():
    class Half(Fixed):
        def lower(self, k, n, alpha):
            return np.full(np.shape(k), 0.5)

    votes, plan = np.array([[60, 40, 0]]), Half(n=100, n0=10)
    (made,) = certificates.from_votes(schemes.Gaussian(sigma=1.0), [0.0], [0], votes, plan=plan, alpha=0.001, dim=3)
    assert (made.predict, made.radius, made.p_lower) == (-1, 0.0, 0.5)
