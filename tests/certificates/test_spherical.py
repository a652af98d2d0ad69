import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from idrc_jax.certificates import spherical


def log_density(z, dim):
    rho = np.linalg.norm(z, axis=1)
    return -(dim - 1) * np.log(rho) - rho**2 / 2


def draw(generator, count, dim):
    direction = generator.normal(size=(count, dim))
    return generator.normal(size=(count, 1)) * direction / np.linalg.norm(direction, axis=1, keepdims=True)


@pytest.mark.parametrize(("dim", "a"), [(2, 0.3), (2, 1.5), (3, 0.5), (5, 0.1), (20, 0.3)])
def test_the_needed_probability_by_brute_force(dim, a):
    """Rank a million samples by their likelihood ratio, from the two densities; no symmetry, no integral."""
    count = 1_000_000
    generator = np.random.default_rng(dim)
    shift = np.eye(dim)[0] * a
    here, there = draw(generator, count, dim), shift + draw(generator, count, dim)
    ratio = lambda z: log_density(z - shift, dim) - log_density(z, dim)  # noqa: E731
    threshold = np.quantile(ratio(there), 0.5)  # the likeliest half of the other image's noise
    needed = 1 - np.mean(ratio(here) >= threshold)
    assert spherical.radius(np.array([needed]), dim)[0] == pytest.approx(a, rel=0.02)


def tail_by_quadrature(t, a, dim):
    """P0(L >= t) by adaptive quadrature in 20 digits over rho, with the cosine's law as a hypergeometric function."""
    d = mpmath.mpf(dim)
    g = lambda r: (d - 1) * mpmath.log(r) + r * r / 2  # noqa: E731

    def tail(rho):
        goal = g(rho) - t
        r = mpmath.sqrt((d - 1) * mpmath.lambertw(mpmath.exp(2 * goal / (d - 1)) / (d - 1)).real)
        cosine = (rho * rho + a * a - r * r) / (2 * a * rho)
        if abs(cosine) >= 1:
            return mpmath.mpf(0 if cosine > 0 else 1)
        share = mpmath.betainc((d - 1) / 2, 0.5, 0, 1 - cosine**2, regularized=True) / 2
        return share if cosine > 0 else 1 - share

    def integrand(rho):
        return mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-rho * rho / 2) * tail(rho)

    scale = a * np.sqrt(dim)
    edges = sorted({a / 2, a, *(scale * factor for factor in (0.1, 0.3, 0.6, 1, 2, 4)), 1.0, 2.0, 4.0, 6.0, 9.0})
    return float(mpmath.quad(integrand, [mpmath.mpf("1e-12"), *edges], maxdegree=8))


@pytest.mark.parametrize(
    ("dim", "a", "t"),
    [(20, 0.3, 1.0), (20, 0.3, -0.4), (3072, 0.0230499, 2.0), (3072, 0.0230499, -1.5), (3072, 0.001, 0.01)],
)
def test_ratio_tail_is_the_integral_in_20_digits(dim, a, t):
    with mpmath.workdps(20):
        expected = tail_by_quadrature(t, a, dim)
    got = spherical.ratio_tail(np.array([t]), np.array([a]), dim)[0]
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("dim", "a", "t"),
    [(2, 0.5, 0.3), (2, 0.5, -0.3), (2, 3.0, 5.0), (3, 1.0, -2.0), (4, 2.0, 0.1), (2, 0.2, -1.5), (2, 0.1, -2.0)],
)
def test_ratio_tail_with_its_kinks_by_a_fine_sum(dim, a, t):
    """In few dimensions the cosine leaves [-1, 1] at kinks: a midpoint sum over rho with a million terms."""
    rho = (np.arange(2_000_000) + 0.5) * (9.5 / 2_000_000)
    goal = (dim - 1) * np.log(rho) + rho**2 / 2 - t
    square = (dim - 1) * special.lambertw(np.exp(2 * goal / (dim - 1)) / (dim - 1)).real
    cosine = np.clip((rho**2 + a**2 - square) / (2 * a * rho), -1, 1)
    tail = stats.beta((dim - 1) / 2, (dim - 1) / 2).sf((cosine + 1) / 2)
    expected = np.sum(2 * stats.norm.pdf(rho) * tail) * (9.5 / 2_000_000)
    got = spherical.ratio_tail(np.array([t]), np.array([a]), dim)[0]
    assert got == pytest.approx(expected, rel=1e-7)


def test_the_likelihood_ratio_integrates_to_one():
    """E0[exp(min(L, 12))] = P1(L < 12) + exp(12) P0(L >= 12), the left from the tails of P0 below 12 alone."""
    for dim, a in ((2, 0.5), (10, 0.2), (3072, 0.01)):
        t = np.linspace(-40, 12, 4001)
        tails = spherical.ratio_tail(t, np.full(t.shape, a), dim)
        total = np.trapezoid(np.exp(t) * tails, t)
        missing = 1 - spherical.ratio_tail(np.array([-12.0]), np.array([a]), dim)[0]
        assert total == pytest.approx(1 - missing + np.exp(12) * tails[-1], abs=1e-5)


def test_vectors():
    radii = spherical.radius(np.array([0.9, 0.99, 0.999]), 3072)
    np.testing.assert_allclose(radii, [0.0107076, 0.0230499, 0.0325574], atol=1e-7)


def test_one_dimension_is_gaussian():
    p = np.array([0.3, 0.5, 0.6, 0.99, 1 - 1e-12])
    np.testing.assert_allclose(spherical.radius(p, 1), np.maximum(special.ndtri(p), 0), rtol=1e-11)
    assert np.all(spherical.radius(p, 1) <= np.maximum(special.ndtri(p), 0))


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5, 1 - 1e-12), st.sampled_from([2, 3, 20, 784, 3072, 200_000]))
def test_the_radius_is_proven_and_nearly_the_supremum(p, dim):
    """At the radius the other class has at most 1/2 in the worst case; a little farther it has more."""
    radius = spherical.radius(np.array([p]), dim)[0]
    threshold = _threshold(1 - p, max(radius, 1e-9), dim) if radius else 0.0
    if radius:
        assert _worst(threshold, radius, dim) > 0.5
    if p > 0.505:  # nearer to 1/2 the safe side, 1e-8 of a probability, is more than 1e-5 of the radius
        beyond = radius * (1 + 1e-5)
        assert _worst(_threshold(1 - p, beyond, dim), beyond, dim) < 0.5


def _threshold(mass, a, dim):
    """t with P0(L >= t) = mass, by plain bisection."""
    low, high = -50.0, 100.0
    for _ in range(50):
        t = (low + high) / 2
        low, high = (t, high) if spherical.ratio_tail(np.array([t]), np.array([a]), dim)[0] > mass else (low, t)
    return low


def _worst(t, a, dim):
    """1 - P1(L >= t) = P0(L > -t)."""
    return spherical.ratio_tail(np.array([-t]), np.array([a]), dim)[0]


@settings(deadline=None, max_examples=60)
@given(st.floats(0.5, 0.999999), st.floats(1e-6, 0.5), st.sampled_from([2, 3072]))
def test_radius_grows_with_the_probability(p, more, dim):
    low, high = spherical.radius(np.array([p, p + (1 - p) * more]), dim)
    assert low <= high * (1 + 1e-7)


def test_rows_do_not_depend_on_each_other():
    p = np.random.default_rng(2).uniform(0.4, 1, 50)
    whole = spherical.radius(p, 3072)
    assert [spherical.radius(p[i : i + 1], 3072)[0] for i in range(50)] == whole.tolist()


def test_probabilities_up_to_one_half_certify_nothing():
    np.testing.assert_array_equal(spherical.radius(np.array([0.0, 0.3, 0.5]), 3072), 0.0)


def test_a_table_that_proposes_too_much_is_not_believed(monkeypatch):
    p, distance = np.array([0.6, 0.9, 0.99]), spherical._Table.distance
    honest = spherical.radius(p, 48)
    monkeypatch.setattr(spherical._Table, "distance", lambda self, needed: 1.0002 * distance(self, needed))
    assert np.all(spherical.radius(p, 48) <= honest * (1 + 1e-7))


def test_a_threshold_that_leaves_the_other_class_more_than_half_is_not_believed(monkeypatch):
    p, threshold = np.array([0.6, 0.9, 0.99]), spherical._Table.threshold
    monkeypatch.setattr(spherical._Table, "threshold", lambda self, a: 0.9999 * threshold(self, a))
    np.testing.assert_array_equal(spherical.radius(p, 48), 0.0)


def test_what_a_class_may_lack_is_rounded_down():
    a = np.array([0.3])
    tau = spherical._table(20).threshold(a)
    with mpmath.workdps(20):
        exact = tail_by_quadrature(tau[0], a[0], 20)
    assert exact * (1 - 2e-8) < spherical._slack(a, tau, 20)[0] < exact * (1 - 5e-9)
