import json

import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax.certificates import schemes

IMAGES = np.random.default_rng(0).uniform(size=(6, 5, 4, 3))
FLAT = IMAGES.reshape(6, -1)
NORMS = np.linalg.norm(FLAT, axis=1)


def test_levels_are_the_definitions():
    sigma, ref = 0.25, 0.4
    expected = {
        "gaussian": np.full(6, sigma),
        "l1": sigma * np.abs(FLAT).mean(1) / ref,
        "inverse_sqrt_norm": sigma * np.sqrt(ref / NORMS),
        "l2": np.full(6, sigma),
        "uniform": sigma * NORMS,
        "stepped": np.full(6, sigma),
        "cascade": np.full(6, sigma),  # its largest
        "routed": np.full(6, sigma),  # the router's
        "box": np.full(6, sigma),
        "laplace": np.full(6, sigma),
        "splitting": np.full(6, 221 / (510 * np.sqrt(3))),  # the nearest whole number of grey levels
    }
    assert expected.keys() == schemes.SCHEMES.keys()
    for name, levels in expected.items():
        scheme = schemes.make(name, sigma=sigma, ref=ref if name in ("l1", "inverse_sqrt_norm") else 1.0)
        np.testing.assert_allclose(scheme.scale(scheme.statistic(IMAGES)), levels, rtol=1e-12)


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_device_and_host_agree(name):
    scheme = schemes.make(name, sigma=0.25)
    device = scheme.scale(scheme.statistic(jnp.asarray(IMAGES, jnp.float32)))
    np.testing.assert_allclose(device, schemes.host_scale(scheme, IMAGES)[1], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(schemes.SCHEMES.keys() - {"stepped", "cascade", "routed"}))
def test_scale_bounds_hold_for_images_at_that_distance(name):
    """Levels at 200 random images at distance a, and at the extreme ones, lie within the stated bounds."""
    scheme = schemes.make(name, sigma=0.3)
    image, dim = 0.2 + 0.6 * IMAGES[0], IMAGES[0].size  # far enough from 0 that |x| does not fold
    generator = np.random.default_rng(1)
    directions = generator.normal(size=(200, *image.shape))
    directions = np.concatenate([directions, [image, -image, np.ones_like(image), -np.ones_like(image)]])
    directions /= np.linalg.norm(directions.reshape(len(directions), -1), axis=1)[:, None, None, None]
    reached = []
    for distance in (0.0, 0.1, 0.5, 1.0):
        low, high = scheme.scale_bounds(float(scheme.statistic(image)), distance, dim)
        levels = scheme.scale(scheme.statistic(image + distance * directions))
        assert np.all(levels >= low - 1e-12)
        assert np.all(levels <= high + 1e-12)
        reached.append((levels.min() - low, high - levels.max()))
    assert np.max(np.abs(reached)) < 1e-3  # the bounds are attained: no looser than the truth


@pytest.mark.filterwarnings("error")
def test_bounds_beyond_the_norm_are_infinite():
    scheme = schemes.InverseSqrtNorm(sigma=0.3)
    np.testing.assert_array_equal(scheme.scale_bounds(2.0, np.array([2.0, 3.0]), 12)[1], np.inf)


BY_HAND = {"mean_abs": np.abs(FLAT).mean(1), "std": FLAT.std(1), "norm": NORMS}


@pytest.mark.parametrize("by", BY_HAND)
def test_stepped_takes_the_level_of_the_bin_on_host_and_device(by):
    values = np.sort(BY_HAND[by])
    edges = (float(values[1] + values[2]) / 2, float(values[3] + values[4]) / 2)
    scheme = schemes.Stepped(sigma=0.5, by=by, edges=edges, levels=(1.0, 2.0, 4.0))
    expected = np.where(BY_HAND[by] < edges[0], 0.5, np.where(BY_HAND[by] < edges[1], 1.0, 2.0))
    assert set(expected) == {0.5, 1.0, 2.0}
    np.testing.assert_array_equal(schemes.host_scale(scheme, IMAGES)[1], expected)
    device = scheme.scale(scheme.statistic(jnp.asarray(IMAGES, jnp.float32)))
    np.testing.assert_array_equal(device, expected)


@pytest.mark.parametrize("by", BY_HAND)
def test_no_image_nearer_than_the_distance_to_the_edge_is_in_another_bin(by):
    """Random directions, and the one that moves the statistic fastest, which just reaches the edge."""
    image = 0.2 + 0.6 * IMAGES[0]  # far enough from 0 that |x| does not fold
    statistic = schemes.STATISTICS[by](image)
    generator = np.random.default_rng(0)
    fastest = {"mean_abs": np.ones_like(image), "std": image - image.mean(), "norm": image}[by]
    directions = np.concatenate([generator.normal(size=(300, *image.shape)), [fastest, -fastest]])
    directions /= np.linalg.norm(directions.reshape(len(directions), -1), axis=1)[:, None, None, None]
    for edge in (statistic * 1.02, statistic * 0.98):
        scheme = schemes.Stepped(sigma=1.0, by=by, edges=(edge,), levels=(1.0, 2.0))
        distance = scheme.distance_to_edge(statistic, image.size)
        assert distance > 0
        inside = scheme.scale(scheme.statistic(image + distance * directions))
        assert np.all(inside == scheme.scale(np.asarray(statistic)))
        beyond = scheme.scale(scheme.statistic(image + (distance * (1 + 1e-6) + 1e-9) * directions))
        assert np.any(beyond != inside)


def test_an_edge_belongs_to_the_bin_above():
    scheme = schemes.Stepped(sigma=1.0, edges=(3.0, 5.0), levels=(1.0, 2.0, 3.0))
    np.testing.assert_array_equal(scheme.scale(np.array([2.9, 3.0, 5.0])), [1.0, 2.0, 3.0])


def test_distance_to_edge_at_an_edge_and_without_edges():
    assert schemes.Stepped(sigma=1.0, edges=(3.0,), levels=(1.0, 2.0)).distance_to_edge(3.0, 48) == 0
    assert schemes.Stepped(sigma=1.0).distance_to_edge(3.0, 48) == np.inf


@pytest.mark.parametrize("by", BY_HAND)
def test_fitted_bins_hold_equally_many_images_and_levels_have_mean_one(by):
    images = np.random.default_rng(1).uniform(size=(2400, 4, 4, 1)) * np.linspace(0.2, 1, 2400)[:, None, None, None]
    scheme = schemes.fit_stepped(images, sigma=0.3, by=by, bins=4)
    levels = scheme.scale(scheme.statistic(images))
    assert [np.sum(levels == 0.3 * level) for level in scheme.levels] == [600] * 4
    assert np.mean(levels) == pytest.approx(0.3)
    assert list(scheme.levels) == sorted(scheme.levels)
    with pytest.raises(ValueError, match="fewer bins"):
        schemes.fit_stepped(np.ones((10, 4, 4, 1)), sigma=0.3, by=by, bins=4)
    with pytest.raises(ValueError, match="Expected bins <= 10, one for each training image at most, got 11"):
        schemes.fit_stepped(images[:10], sigma=0.3, by=by, bins=11)
    with pytest.raises(ValueError, match="fewer bins: one of 3 holds no training image"):
        schemes.fit_stepped(np.repeat(images[[5, 2000]], 5, axis=0), sigma=0.3, by=by, bins=3)


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_a_description_makes_the_scheme_again(name):
    scheme = schemes.make(name, sigma=0.25)
    if name == "stepped":
        scheme = schemes.Stepped(sigma=0.25, by="std", edges=(0.1, 1 / 3), levels=(1.0, 2.0, 0.7))
    if name == "l1":
        scheme = schemes.L1(sigma=0.1, ref=0.47658)
    if name == "cascade":
        scheme = schemes.Cascade(sigma=0.5, levels=(2.0, 1.0, 1 / 3), thresholds=(0.6, 0.7), shares=(0.2, 0.3, 0.5))
    if name == "routed":
        scheme = schemes.Routed(sigma=0.5, levels=(0.5, 1 / 3, 2.0), router_level=1.5, shares=(0.3, 0.7))
    described = json.loads(json.dumps(schemes.describe(scheme) | {"alpha": 0.001}))
    assert schemes.from_description(described) == scheme


def test_recorded_level_is_a_float32():
    _, level = schemes.host_scale(schemes.L1(sigma=0.1), IMAGES)
    assert level.dtype == np.float64
    np.testing.assert_array_equal(level, level.astype(np.float32))


@pytest.mark.filterwarnings("error")
def test_levels_that_a_device_takes_for_zero_are_zero():
    low, high = schemes.drawn_level(schemes.L1(sigma=2e-38), np.array([0.1, 0.9]))
    assert (low, high) == (0, np.float32(1.8e-38))
    assert schemes.drawn_level(schemes.L1(sigma=3e38, ref=0.1), np.array([0.9])) == 0


def test_black_images_get_level_zero():
    black = np.zeros((1, 4, 4, 3))
    for name in ("l1", "uniform", "inverse_sqrt_norm"):
        assert schemes.host_scale(schemes.make(name, sigma=0.25), black)[1] == 0


def test_schemes_are_hashable_values():
    assert schemes.L1(sigma=0.5, ref=2.0) == schemes.make("l1", sigma=0.5, ref=2.0)
    assert len({schemes.L1(sigma=0.5), schemes.L1(sigma=0.5), schemes.Gaussian(sigma=0.5)}) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gausian", {"sigma": 1.0}, "Did you mean 'gaussian'"),
        ("l1", {"sigma": 0.0}, "sigma > 0, got 0.0"),
        ("l1", {"sigma": float("nan")}, "sigma > 0, got nan"),
        ("l1", {"sigma": 1.0, "ref": -1.0}, "ref > 0"),
        ("uniform", {"sigma": 1.0, "ref": 2.0}, "ref = 1 for the scheme 'uniform'"),
        ("stepped", {"sigma": 1.0, "edges": (2.0, 1.0), "levels": (1.0, 1.0, 1.0)}, "Expected edges to ascend"),
        ("stepped", {"sigma": 1.0, "edges": (1.0, 1.0), "levels": (1.0, 1.0, 1.0)}, "Expected edges to ascend"),
        ("stepped", {"sigma": 1.0, "edges": (float("nan"),), "levels": (1.0, 1.0)}, "Expected edges to ascend"),
        ("stepped", {"sigma": 1.0, "edges": (1.0,), "levels": (1.0,)}, "2 levels for 1 edges"),
        ("stepped", {"sigma": 1.0, "edges": (1.0,), "levels": (1.0, 0.0)}, "Expected levels > 0"),
        ("stepped", {"sigma": 1.0, "edges": ("x",), "levels": (1.0, 1.0)}, "Expected edges to ascend"),
        ("stepped", {"sigma": 1.0, "edges": (1.0,), "levels": (1.0, "x")}, "Expected levels > 0, got x"),
        ("stepped", {"sigma": 1.0, "edges": (1.0,), "levels": (1.0, 1e39)}, "sigma times each of levels from 1.2e-38"),
        ("stepped", {"sigma": 1.0, "by": "l3"}, "Expected by to be one of"),
        ("cascade", {"sigma": 1.0, "levels": (1.0,)}, "levels, at least 2, to descend"),
        ("cascade", {"sigma": 1.0, "levels": (1.0, 2.0)}, "levels, at least 2, to descend"),
        ("cascade", {"sigma": 1.0, "levels": (1.0, 0.0)}, "levels, at least 2, to descend"),
        ("cascade", {"sigma": 1.0, "levels": (1e39, 1.0)}, "sigma times each of levels from 1.2e-38"),
        ("cascade", {"sigma": 1.0, "thresholds": (0.4,)}, r"thresholds in \[.5, 1\), one for each level but the last"),
        ("cascade", {"sigma": 1.0, "thresholds": (1.0,)}, "thresholds in"),
        ("cascade", {"sigma": 1.0, "thresholds": (0.5, 0.5)}, "thresholds in"),
        ("cascade", {"sigma": 1.0, "shares": (0.5, 0.6)}, "shares > 0 of alpha, one for each of 2 levels"),
        ("cascade", {"sigma": 1.0, "shares": (1.0, 0.0)}, "shares > 0"),
        ("cascade", {"sigma": 1.0, "shares": (1.0,)}, "shares > 0"),
        ("routed", {"sigma": 1.0, "levels": (1.0,)}, "at least 2 levels for a router to choose from"),
        ("routed", {"sigma": 1.0, "levels": (1.0, 0.0)}, "levels"),
        ("routed", {"sigma": 1.0, "router_level": -1.0}, "router_level"),
        ("routed", {"sigma": 1.0, "router_level": 1e39}, "sigma times router_level from 1.2e-38"),
        ("routed", {"sigma": 1.0, "shares": (0.5, 0.6)}, "shares > 0 of alpha, one for the router and one for the"),
        ("routed", {"sigma": 1.0, "shares": (1.0, 0.0)}, "shares > 0"),
        ("routed", {"sigma": 9.0, "levels": (1.0, 2.0), "exact": True}, "sigma times each of levels <= 16 under exact"),
        ("stepped", {"sigma": 10.0, "levels": (2.0,), "exact": True}, "each of levels <= 16 under exact noise, got 20"),
        ("cascade", {"sigma": 17.0, "levels": (0.2, 0.1), "exact": True}, "sigma <= 16 under exact noise, got 17"),
        ("gaussian", {"sigma": 1e-50}, "sigma from 1.2e-38 to 3.4e38, the range of float32, got 1e-50"),
        ("l1", {"sigma": 1e39}, "sigma from 1.2e-38"),
        ("l1", {"sigma": 2.0**128 - 2.0**103}, "sigma from 1.2e-38"),  # infinite in float32
        ("l2", {"sigma": "loud"}, "sigma > 0, got loud"),
    ],
)
def test_bad_parameters_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        schemes.make(name, **arguments)
