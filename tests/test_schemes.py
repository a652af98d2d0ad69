import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax import schemes

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


@pytest.mark.parametrize("name", schemes.SCHEMES)
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


def test_bounds_beyond_the_norm_are_infinite():
    scheme = schemes.InverseSqrtNorm(sigma=0.3)
    assert scheme.scale_bounds(2.0, 2.0, 12)[1] == np.inf


def test_recorded_level_is_a_float32():
    _, level = schemes.host_scale(schemes.L1(sigma=0.1), IMAGES)
    assert level.dtype == np.float64
    np.testing.assert_array_equal(level, level.astype(np.float32))


@pytest.mark.filterwarnings("error")
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
    ],
)
def test_bad_parameters_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        schemes.make(name, **arguments)
