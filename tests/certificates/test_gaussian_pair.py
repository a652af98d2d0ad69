import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from idrc_jax.certificates import gaussian_pair, schemes


def spread_of(alpha, beta, dim):
    return np.sqrt(2 * dim * alpha**2 + beta**2)


def by_ncx2(alpha, beta, dim, c):
    """S + dim * alpha + beta^2 / (4 alpha) is alpha times a non-central chi-square."""
    q, non_centrality = (c + beta**2 / (4 * alpha)) / alpha + dim, (beta / (2 * alpha)) ** 2
    lower, upper = stats.ncx2.cdf(q, dim, non_centrality), stats.ncx2.sf(q, dim, non_centrality)
    return np.where(alpha > 0, [lower, upper], [upper, lower])


def test_tails_are_scipys_non_central_chi_square_where_that_is_good():
    generator = np.random.default_rng(0)
    count = 3000
    dim = np.floor(np.exp(generator.uniform(0, np.log(200_000), count)))
    alpha = generator.choice([-1, 1], count) * np.exp(generator.uniform(np.log(1e-4), np.log(0.49), count))
    beta = np.exp(generator.uniform(np.log(1e-3), np.log(8), count))
    c = spread_of(alpha, beta, dim) * generator.uniform(-6.5, 6.5, count)
    expected = by_ncx2(alpha, beta, dim, c)
    smaller = np.argmin(expected, axis=0)
    truth = np.min(expected, axis=0)
    got = np.where(smaller == 0, *gaussian_pair.tails(alpha, beta, dim, c)[:2])
    seen = truth > 1e-14
    assert seen.sum() > 2000
    np.testing.assert_allclose(got[seen], truth[seen], rtol=5e-11)


@pytest.mark.parametrize("alpha", [-0.45, -1e-3, -1e-9, 0.0, 1e-12, 0.02, 0.49])
@pytest.mark.parametrize("c", [-3.0, -0.2, 0.0, 1e-9, 0.7, 4.0])
def test_tails_in_one_dimension_are_those_of_a_quadratic(alpha, c):
    """alpha (y^2 - 1) + beta y >= c by its roots, in 40 digits."""
    beta = 0.8
    with mpmath.workdps(40):
        a, b, rest = mpmath.mpf(alpha), mpmath.mpf(beta), -mpmath.mpf(alpha) - mpmath.mpf(c)
        below = lambda y: mpmath.erfc(-y / mpmath.sqrt(2)) / 2  # noqa: E731
        if alpha == 0:
            upper = 1 - below(c / b)
        else:
            inside = b * b - 4 * a * rest
            root = mpmath.sqrt(max(inside, 0))
            first, second = sorted([(-b - root) / (2 * a), (-b + root) / (2 * a)])
            between = below(second) - below(first)
            upper = 1 - between if alpha > 0 else between
    lower_got, upper_got, _ = gaussian_pair.tails(alpha, beta, 1, c)
    assert float(lower_got) == pytest.approx(float(1 - upper), rel=1e-11, abs=1e-16)
    assert float(upper_got) == pytest.approx(float(upper), rel=1e-11, abs=1e-16)


@pytest.mark.parametrize(
    ("alpha", "beta", "dim", "z"),
    [(1e-7, 0.3, 3072, 5.0), (-1e-10, 2.0, 200_000, -6.0), (1e-4, 0.01, 200_000, 7.0), (-3e-3, 1e-4, 50, 3.0)],
)
def test_tails_are_the_inversion_integral_in_30_digits(alpha, beta, dim, z):
    """Along a straight vertical line, where the code bends it."""
    c = z * float(spread_of(alpha, beta, dim))
    with mpmath.workdps(30):
        a, b = mpmath.mpf(alpha), mpmath.mpf(beta)

        def cumulants(s):
            return -mpmath.mpf(dim) / 2 * (mpmath.log1p(-2 * a * s) + 2 * a * s) + (b * s) ** 2 / (2 * (1 - 2 * a * s))

        width = 1 / mpmath.mpf(float(spread_of(alpha, beta, dim)))
        start = mpmath.findroot(lambda s: mpmath.diff(cumulants, s) - c, z * width)
        integrand = lambda t: mpmath.re(  # noqa: E731
            mpmath.exp(cumulants(start + 1j * t * width) - (start + 1j * t * width) * c) / (start + 1j * t * width)
        )
        expected = abs(mpmath.quad(integrand, [*mpmath.linspace(0, 16, 17), 32, 64, 256, 1024]) * width / mpmath.pi)
    lower, upper, _ = gaussian_pair.tails(alpha, beta, dim, c)
    assert float(upper if z > 0 else lower) == pytest.approx(float(expected), rel=1e-11)


def test_the_density_is_the_slope_of_the_tail():
    alpha, beta, dim = np.array([0.1, -0.02, 0.0]), np.array([0.5, 1.0, 0.7]), np.array([1.0, 40.0, 3.0])
    for c in (-0.3, 0.4):
        density = gaussian_pair.tails(alpha, beta, dim, c)[2]
        slope = (
            gaussian_pair.tails(alpha, beta, dim, c + 1e-5)[0] - gaussian_pair.tails(alpha, beta, dim, c - 1e-5)[0]
        ) / 2e-5
        np.testing.assert_allclose(density, slope, rtol=1e-8)


def worst_by_ncx2(p, a, sigma0, sigma1, dim):
    """The closed form: the worst set is a ball or its complement."""
    gap = (sigma1**2 - sigma0**2) ** 2
    first, second = sigma0**2 * a**2 / gap, sigma1**2 * a**2 / gap
    ratio = (sigma0 / sigma1) ** 2
    if sigma1 > sigma0:
        return stats.ncx2.cdf(stats.ncx2.isf(1 - p, dim, first) * ratio, dim, second)
    return stats.ncx2.sf(stats.ncx2.ppf(1 - p, dim, first) * ratio, dim, second)


@pytest.mark.filterwarnings("ignore")
def test_worst_probability_is_the_closed_form_where_scipy_converges():
    generator = np.random.default_rng(1)
    count = 2500
    dim = np.floor(np.exp(generator.uniform(0, np.log(20_000), count)))
    sigma0 = generator.uniform(0.05, 1.5, count)
    sigma1 = sigma0 * (1 + generator.choice([-1, 1], count) * np.exp(generator.uniform(-7, -0.5, count)) / dim**0.5)
    a = sigma0 * np.exp(generator.uniform(-4, 1, count))
    p = np.where(np.arange(count) % 2, 1 - 10 ** generator.uniform(-12, -2, count), generator.uniform(0.3, 0.99, count))
    got = gaussian_pair.worst_probability(p, a, sigma0, sigma1, dim)
    expected = np.array([worst_by_ncx2(*case) for case in zip(p, a, sigma0, sigma1, dim, strict=True)])
    good = np.isfinite(expected)
    assert good.sum() >= 2000
    np.testing.assert_allclose(got[good], expected[good], atol=2e-7)
    # SciPy's quantile is good to about 1e-8 relatively; ours must not lie above the truth by more than that.
    assert np.all(got[good] <= expected[good] + 2e-7)
    assert np.sum((expected[good] > 0.01) & (expected[good] < 0.99)) > 800


@pytest.mark.parametrize(("dim", "sigma1"), [(2, 0.4), (2, 0.7), (3, 0.5), (5, 0.45), (20, 0.52), (20, 0.48)])
@pytest.mark.parametrize("p", [0.7, 0.95])
def test_worst_probability_by_brute_force(dim, sigma1, p):
    """Rank a million samples of each law by their likelihood ratio, from the two densities."""
    a, sigma0, count = 0.3, 0.5, 1_000_000
    generator = np.random.default_rng(dim)
    here, there = np.zeros(dim), np.full(dim, a / np.sqrt(dim))

    def ratio(z):
        log = lambda z, mean, sigma: -((z - mean) ** 2).sum(1) / (2 * sigma**2) - dim * np.log(sigma)  # noqa: E731
        return log(z, there, sigma1) - log(z, here, sigma0)

    threshold = np.quantile(ratio(here + sigma0 * generator.normal(size=(count, dim))), p)
    expected = np.mean(ratio(there + sigma1 * generator.normal(size=(count, dim))) < threshold)
    got = float(gaussian_pair.worst_probability(p, a, sigma0, sigma1, dim))
    assert got == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(
    ("sigma1", "expected"),
    [(0.249, 0.9295800), (0.2499, 0.9365379), (0.25001, 0.9365300), (0.251, 0.9280755), (0.26, 0.1933337)],
)
def test_worst_probability_vectors(sigma1, expected):
    assert float(gaussian_pair.worst_probability(0.99, 0.2, 0.25, sigma1, 3072)) == pytest.approx(expected, abs=1e-7)


def test_worst_probability_is_continuous_through_equal_levels():
    for p, a in ((0.6, 0.1), (0.99, 0.4), (1 - 1e-9, 1.0)):
        equal = stats.norm.cdf(stats.norm.ppf(p) - a / 0.5)
        for off in (0.0, 1e-16, 1e-12, -1e-12, 1e-9, -1e-9):
            got = float(gaussian_pair.worst_probability(p, a, 0.5, 0.5 * (1 + off), 3072))
            assert got == pytest.approx(equal, abs=1e-6)
            if off == 0:
                assert equal * (1 - 1e-8) <= got <= equal


def test_worst_probability_at_the_ends():
    assert float(gaussian_pair.worst_probability(0.0, 0.1, 1.0, 1.1, 5)) == 0
    assert float(gaussian_pair.worst_probability(0.9, 0.1, 1.0, 0.0, 5)) == 0
    assert float(gaussian_pair.worst_probability(0.9, 0.1, 1.0, np.inf, 5)) == 0
    assert float(gaussian_pair.worst_probability(0.9, 0.0, 1.0, 1.0, 5)) == pytest.approx(0.9, abs=1e-8)
    assert float(gaussian_pair.worst_probability(0.9, 0.0, 1.0, 1.0, 5)) <= 0.9


def linear_bounds(sigma, slope):
    return lambda rows, a: (sigma[rows] - slope * a, sigma[rows] + slope * a)


@pytest.mark.evidence
@settings(deadline=None, max_examples=150)
@given(
    st.floats(0.5, 1 - 1e-12, exclude_min=True),
    st.floats(0.05, 2.0),
    st.floats(0.0, 2.0),
    st.sampled_from([1, 2, 3, 10, 784, 3072, 200_000]),
)
def test_every_level_within_reach_of_the_radius_is_safe(p, sigma, slope, dim):
    slope /= np.sqrt(dim)
    sigmas = np.array([sigma])
    radius = gaussian_pair.radius(np.array([p]), sigmas, linear_bounds(sigmas, slope), dim)[0]
    assert 0 <= radius <= sigma * special.ndtri(p)
    if radius:
        a = radius * (1 - 1e-7) * np.linspace(0.0, 1.0, 9)[:, None]
        sigma1 = sigma + slope * a * np.linspace(-1, 1, 11)
        assert np.all(gaussian_pair.worst_probability(p, a, sigma, sigma1, dim) > 0.5)
    # It is the supremum, but for the float32 levels: a little farther an end of the bounds is not safe any more.
    a = radius * (1 + 1e-3) + 1e-5 * sigma
    ends = np.array([sigma - slope * a, sigma + slope * a])
    assert np.min(gaussian_pair.worst_probability(p, a, sigma, ends, dim)) <= 0.5 + 1e-7


@settings(deadline=None, max_examples=60)
@given(st.floats(0.5, 0.999999), st.floats(1e-9, 0.3), st.floats(0.0, 1.0), st.sampled_from([1, 3, 784, 3072]))
def test_radius_grows_with_the_probability(p, more, slope, dim):
    higher = p + (1 - p) * more
    sigma = np.array([0.5, 0.5])
    low, high = gaussian_pair.radius(np.array([p, higher]), sigma, linear_bounds(sigma, slope / np.sqrt(dim)), dim)
    assert low <= high * (1 + 3e-9)


def test_radius_tends_to_cohens_as_the_slope_vanishes():
    p = np.array([0.6, 0.9, 0.999, 1 - 1e-9])
    sigma = np.full(4, 0.25)
    cohen = 0.25 * special.ndtri(p)
    losses = []
    for slope in (1e-2, 1e-3, 1e-4, 0.0):
        radius = gaussian_pair.radius(p, sigma, linear_bounds(sigma, slope), 3072)
        assert np.all(radius <= cohen)
        losses.append(1 - radius / cohen)
    assert np.all(np.diff(losses, axis=0) < 0)
    assert np.all(losses[-1] < 3e-6)  # the float32 levels


def test_the_radius_itself_is_safe_with_its_widened_levels():
    """Not only the distances below it: the number returned is the end of the bracket that was proven."""
    p, sigma = np.linspace(0.51, 0.9999, 200), np.full(200, 0.25)
    radius = gaussian_pair.radius(p, sigma, linear_bounds(sigma, 0.01), 3072) * (1 - 1e-12)
    for level in ((sigma - 0.01 * radius) * (1 - 2.0**-23), (sigma + 0.01 * radius) * (1 + 2.0**-23)):
        assert np.all(gaussian_pair.worst_probability(p, radius, sigma, level, 3072) > 0.5)


@pytest.mark.parametrize("p", [0.2, 0.9])
def test_a_threshold_that_is_not_proven_gives_zero(monkeypatch, p):
    """Were the quantile a little off, to the unsafe side, no probability would be claimed."""
    exact = gaussian_pair._quantile

    def off(alpha, beta, dim, normal):
        return exact(alpha, beta, dim, normal + 1e-7)

    assert gaussian_pair.worst_probability(p, 0.1, 0.25, 0.251, 48) > 0
    monkeypatch.setattr(gaussian_pair, "_quantile", off)
    assert gaussian_pair.worst_probability(p, 0.1, 0.25, 0.251, 48) == 0


def test_rows_do_not_depend_on_each_other():
    generator = np.random.default_rng(2)
    p, sigma = generator.uniform(0.4, 1, 40), generator.uniform(0.1, 1, 40)
    whole = gaussian_pair.radius(p, sigma, linear_bounds(sigma, 0.01), 3072)
    for i in range(40):
        alone = gaussian_pair.radius(p[i : i + 1], sigma[i : i + 1], linear_bounds(sigma[i : i + 1], 0.01), 3072)
        assert alone[0] == whole[i]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p_lower": 1.0}, "p_lower < 1"),
        ({"p_lower": -0.1}, "0 <= p_lower"),
        ({"p_lower": np.nan}, "0 <= p_lower"),
        ({"distance": -1.0}, "distance >= 0"),
        ({"sigma0": 0.0}, "noise level > 0"),
        ({"sigma0": np.nan}, "noise level > 0"),
        ({"dim": 0}, "dim >= 1"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    arguments = {"p_lower": 0.9, "distance": 0.1, "sigma0": 1.0, "sigma1": 1.0, "dim": 3} | changed
    with pytest.raises(ValueError, match=message):
        gaussian_pair.worst_probability(**arguments)


def test_bounds_that_do_not_hold_the_level_are_refused():
    with pytest.raises(ValueError, match="enclose the level"):
        gaussian_pair.radius(np.array([0.9]), np.array([1.0]), lambda rows, a: (a * 0 + 1.1, a * 0 + 1.2), 3)
    with pytest.raises(ValueError, match="enclose the level"):
        gaussian_pair.radius(np.array([0.9]), np.array([1.0]), lambda rows, a: (a * np.nan, a * 0 + 1.2), 3)


def test_images_near_black_under_their_schemes_have_small_radii_not_wrong_ones():
    """The upper level runs to infinity as the distance reaches the norm, the lower level to 0 at a dark image."""
    scheme = schemes.InverseSqrtNorm(sigma=0.5)
    bounds = lambda rows, a: scheme.scale_bounds(np.array([0.01])[rows], a, 3072)  # noqa: E731
    level = scheme.scale(np.array([0.01]))
    assert 0 < gaussian_pair.radius(np.array([1 - 1e-9]), level, bounds, 3072)[0] < 0.01
    dark = schemes.L1(sigma=0.5)
    bounds = lambda rows, a: dark.scale_bounds(np.array([1e-4])[rows], a, 3072)  # noqa: E731
    assert 0 < gaussian_pair.radius(np.array([1 - 1e-9]), dark.scale(np.array([1e-4])), bounds, 3072)[0] < 1e-4 * 55.5
