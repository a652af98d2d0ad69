"""Noise laws against their moments, norms and whole distributions, on draws that the seed fixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from idrc_jax.certificates import schemes
from idrc_jax.sampling import noise_laws, random_keys

SHAPE = (8, 8, 3)
DIM = 192
COUNT = 20_000


def draws(law, scale=1.0, count=COUNT):
    keys = jax.vmap(lambda number: random_keys.sample(random_keys.root(11), jnp.uint32(4), number))(
        jnp.arange(count, dtype=jnp.uint32)
    )
    made = jax.jit(jax.vmap(lambda key: noise_laws.draw(law, key, jnp.float32(scale), SHAPE)))(keys)
    assert made.dtype == jnp.float32
    return np.asarray(made, np.float64).reshape(count, DIM)


def test_normal_moments_and_distribution():
    z = draws("normal", 0.5)
    size = z.size
    assert abs(z.mean()) < 5 * 0.5 / np.sqrt(size)
    assert abs(z.var() / 0.25 - 1) < 5 * np.sqrt(2 / size)
    assert stats.kstest(z[:, 17] / 0.5, "norm").pvalue > 1e-4
    assert stats.kstest((z**2).sum(1) / 0.25, stats.chi2(DIM).cdf).pvalue > 1e-4
    correlation = np.corrcoef(z[:, :40].T) - np.eye(40)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(COUNT)


def test_l2_has_a_half_normal_length_in_a_uniform_direction():
    z = draws("half_normal_length", 0.25)
    length = np.linalg.norm(z, axis=1)
    assert stats.kstest(length / 0.25, stats.halfnorm.cdf).pvalue > 1e-4
    cosine = z[:, 5] / length
    assert stats.kstest((cosine + 1) / 2, stats.beta((DIM - 1) / 2, (DIM - 1) / 2).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(length, cosine)[0, 1]) < 5 / np.sqrt(COUNT)
    # No coordinate knows the length, nor its sign.
    cosines = z / length[:, None]
    assert np.abs(cosines.mean(0)).max() < 5.5 / np.sqrt(DIM * COUNT)
    assert np.abs(np.corrcoef(length, np.abs(cosines).T)[0, 1:]).max() < 5.5 / np.sqrt(COUNT)


def test_uniform_has_a_fixed_length_and_a_laplace_direction():
    z = draws("laplace_direction", 3.0)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 3.0, rtol=2e-6)
    # Of iid Laplace coordinates: E|z_i| / sqrt(E z_i^2) = 1/sqrt(2), E z_i^4 / (E z_i^2)^2 = 6, up to O(1/d).
    unit = z / 3.0 * np.sqrt(DIM)
    assert np.abs(unit).mean() == pytest.approx(1 / np.sqrt(2), rel=0.02)
    reference = np.random.default_rng(2).laplace(size=(COUNT, DIM))
    reference *= np.sqrt(DIM) / np.linalg.norm(reference, axis=1)[:, None]
    assert (unit**4).mean() == pytest.approx((reference**4).mean(), rel=0.02)
    assert stats.ks_2samp(unit[:, 7], reference[:, 7]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("law", "marginal"),
    [("box", stats.uniform(-np.sqrt(3), 2 * np.sqrt(3))), ("laplace", stats.laplace(scale=np.sqrt(0.5)))],
)
def test_box_and_laplace_have_independent_values_of_deviation_one(law, marginal):
    z = draws(law, 0.25) / 0.25
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt((marginal.stats("k") + 2) / z.size)
    for place in (0, 17, 191):
        assert stats.kstest(z[:, place], marginal.cdf).pvalue > 1e-4
    assert np.abs(np.corrcoef(z[:, :40].T) - np.eye(40)).max() < 5.5 / np.sqrt(COUNT)
    # Nor do values know each other's size.
    assert np.abs(np.corrcoef(np.abs(z[:, :40]).T) - np.eye(40)).max() < 5.5 / np.sqrt(COUNT)
    low, high = marginal.ppf([1e-6, 1 - 1e-6])
    assert z.min() < low * 0.99
    assert z.max() > high * 0.99
    if law == "box":
        assert np.abs(z).max() <= np.sqrt(3) * (1 + 1e-6)


def test_every_scheme_names_a_law():
    assert {scheme.law for scheme in schemes.SCHEMES.values()} == set(noise_laws.LAWS)


@pytest.mark.parametrize("name", sorted(schemes.SCHEMES.keys() - {"splitting"}))
def test_training_noise_has_each_images_own_level(name):
    scheme = schemes.make(name, sigma=0.25)
    images = jnp.asarray(np.random.default_rng(1).uniform(0.1, 1, (2, *SHAPE)), jnp.float32)
    images = images.at[1].multiply(0.3)
    many = jnp.concatenate([jnp.tile(images[i][None], (4000, 1, 1, 1)) for i in range(2)])
    noisy = np.asarray(noise_laws.of_images(scheme, many, random_keys.root(0)), np.float64).reshape(2, 4000, -1)
    level = np.asarray(scheme.scale(scheme.statistic(images)), np.float64)
    expected = level**2 * (1 if scheme.law in ("half_normal_length", "laplace_direction") else DIM)
    np.testing.assert_allclose((noisy**2).sum(-1).mean(1), expected, rtol=0.08)


def test_training_noise_is_scaled_by_the_factor_and_differs_between_images():
    images = jnp.full((2, *SHAPE), 0.5)
    scheme, key = schemes.Gaussian(sigma=0.25), random_keys.root(3)
    plain = noise_laws.of_images(scheme, images, key)
    halved = noise_laws.of_images(scheme, images, key, jnp.asarray([0.5, 1.0]))
    np.testing.assert_allclose(halved[0], plain[0] / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(halved[1], plain[1], rtol=1e-6)
    assert not np.allclose(plain[0], plain[1])


def test_keys_differ_in_stage_index_and_sample():
    def key(stage, index, sample):
        made = random_keys.sample(random_keys.stage(random_keys.root(0), stage), jnp.uint32(index), jnp.uint32(sample))
        return tuple(np.asarray(jax.random.key_data(made)))

    made = {key(stage, index, sample) for stage in range(3) for index in range(5) for sample in range(5)}
    assert len(made) == 75
    # Index and sample are not interchangeable.
    assert key(0, 1, 2) != key(0, 2, 1)


def test_stages_are_all_different():
    names = ("SELECTION", "ESTIMATION", "PREDICTION", "INITIALISATION", "TRAINING")
    assert len({getattr(random_keys, name) for name in names}) == len(names)
