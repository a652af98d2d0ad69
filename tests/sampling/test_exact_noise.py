"""Votes under exact noise: their law, their images, and all that goes on to use them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import PartitionSpec as P
from scipy import stats

import idrc_jax as idrc
from idrc_jax import data, sampling
from idrc_jax.certificates import schemes
from idrc_jax.certification.gallery_selection import add_first_noise
from idrc_jax.core import normal_thresholds
from idrc_jax.kernels import rounded_normal_cpu
from idrc_jax.sampling import devices, exact_noise, noise_laws, random_keys

INDICES = np.array([17, 3, 40_000, 0, 8])
KEY = random_keys.stage(random_keys.root(5), random_keys.ESTIMATION)
SCHEMES = {
    "gaussian": schemes.Gaussian(sigma=0.5, exact=True),
    "l1": schemes.L1(sigma=0.5, exact=True),
    "inverse_sqrt_norm": schemes.InverseSqrtNorm(sigma=0.5, exact=True),
    "stepped": schemes.Stepped(sigma=0.5, edges=(2.2,), levels=(1.0, 1.5), exact=True),
}


@pytest.fixture(scope="module")
def pixels():
    """Five 8-bit images."""
    return np.random.default_rng(3).integers(0, 256, (5, 4, 4, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def images(pixels):
    return data.to_unit(pixels)


def count(linear, images, scheme, **changed):
    arguments = {"indices": INDICES, "n": 203, "key": KEY, "chunk": 32} | changed
    return sampling.count_votes(linear, scheme, images, **arguments)


def integers_of(index, sample, level, size):
    """A sample's integers by JAX's own hash and a search in the thresholds."""
    key = jax.random.key_data(random_keys.sample(KEY, jnp.uint32(index), jnp.uint32(sample)))
    counters = jnp.concatenate([jnp.full(size, 1, jnp.uint32), jnp.arange(size, dtype=jnp.uint32)])
    high, low = np.asarray(threefry_2x32(key, counters), np.uint64).reshape(2, size)
    words = (high << np.uint64(32)) | low
    rising = normal_thresholds.thresholds(float(np.float32(level)))[::-1]
    positive = words >= 2**63
    above = len(rising) - np.searchsorted(rising, np.where(positive, ~words, words), side="right")
    return np.where(positive, above, -above)


@pytest.mark.parametrize("name", ["gaussian", "inverse_sqrt_norm", "stepped"])
def test_votes_are_those_of_a_loop_over_samples(linear, pixels, images, name):
    scheme, n = SCHEMES[name], 40
    _, levels = schemes.host_scale(scheme, pixels / 255)
    weights = np.asarray(linear.params, np.float64)
    expected = np.zeros((5, 4), int)
    for i in range(5):
        for number in range(n):
            grey = pixels[i].ravel().astype(int) + integers_of(INDICES[i], number, levels[i], 16)
            expected[i, np.argmax(weights @ (grey / 255))] += 1
    np.testing.assert_array_equal(count(linear, images, scheme, n=n), expected)
    assert len(np.unique(expected[:, 0])) > 1


@pytest.mark.parametrize("name", ["l1"])
def test_votes_do_not_depend_on_chunk_devices_order_or_resume_point(linear, images, name):
    scheme = SCHEMES[name]
    expected = count(linear, images, scheme)
    for chunk in (2, 7):
        np.testing.assert_array_equal(count(linear, images, scheme, chunk=chunk), expected)
    np.testing.assert_array_equal(count(linear, images, scheme, mesh=devices.mesh(3)), expected)
    order = np.array([3, 0, 4, 1, 2])
    permuted = count(linear, images[order], scheme, indices=INDICES[order])
    np.testing.assert_array_equal(permuted, expected[order])
    alone = count(linear, images[2:3], scheme, indices=INDICES[2:3])
    np.testing.assert_array_equal(alone, expected[2:3])
    first, rest = count(linear, images, scheme, n=90), count(linear, images, scheme, n=113, first=90)
    np.testing.assert_array_equal(first + rest, expected)


@pytest.mark.evidence
def test_the_core_runs_under_jit_vmap_pmap_and_shard_map(linear, images):
    scheme = SCHEMES["l1"]
    expected = count(linear, images, scheme, n=64)
    made = exact_noise.tables(schemes.host_scale(scheme, images)[1])
    indices = jnp.asarray(INDICES, jnp.uint32)

    def votes(pictures, numbers, row, first, n):
        firsts, counts = (jnp.broadcast_to(value, (len(pictures),)) for value in (first, n))
        return sampling.sample_votes(
            linear.apply_fn, "normal", 3, 16, linear.params, KEY, pictures, numbers, made._replace(row=row), firsts,
            counts, jnp.int32(0), 1,
        )  # fmt: skip

    pictures, row, zero, n = jnp.asarray(images), jnp.asarray(made.row), jnp.uint32(0), jnp.int32(64)
    np.testing.assert_array_equal(jax.jit(votes)(pictures, indices, row, zero, n), expected)
    each = jax.vmap(votes, in_axes=(0, 0, 0, None, None))
    by_image = each(pictures[:, None], indices[:, None], row[:, None], zero, n)
    np.testing.assert_array_equal(by_image[:, 0], expected)
    firsts = jnp.arange(0, 64, 16, dtype=jnp.uint32)
    dealt = jax.pmap(votes, in_axes=(None, None, None, 0, None))(pictures, indices, row, firsts, jnp.int32(16))
    np.testing.assert_array_equal(np.asarray(dealt).sum(axis=0), expected)
    sharded = jax.shard_map(
        lambda first: votes(pictures, indices, row, first[0], jnp.int32(16))[None],
        mesh=devices.mesh(4),
        in_specs=P(devices.AXIS),
        out_specs=P(devices.AXIS),
    )
    np.testing.assert_array_equal(np.asarray(jax.jit(sharded)(firsts)).sum(axis=0), expected)


def test_without_a_kernel_the_votes_are_the_same(linear, images, monkeypatch):
    expected = count(linear, images, SCHEMES["l1"])
    monkeypatch.setattr(rounded_normal_cpu, "available", lambda: False)
    jax.clear_caches()
    np.testing.assert_array_equal(count(linear, images, SCHEMES["l1"]), expected)


def test_the_classifier_sees_integers_over_255_unclipped(pixels, images):
    scheme = SCHEMES["gaussian"]
    noisy = add_first_noise(scheme, images, np.full(5, 0.5), indices=INDICES, seed=5)
    for i, one in enumerate(noisy):
        grey = pixels[i].ravel().astype(int) + integers_of(INDICES[i], 0, 0.5, 16)
        np.testing.assert_array_equal(one.ravel(), grey.astype(np.float32) * np.float32(1 / 255))
    assert noisy.min() < 0
    assert noisy.max() > 1


def chi_square(counts, level):
    """p-value of counts of the integers -half .. half against the rounded normal law, by SciPy; rare ones together."""
    half = len(counts) // 2
    edges = (np.arange(-half, half) + 0.5) / (255 * level)
    probability = np.diff(stats.norm.cdf(np.concatenate([[-np.inf], np.minimum(edges, 0)])))[: half + 1]
    probability = np.concatenate([probability, probability[:half][::-1]])
    probability[half] = 1 - 2 * np.sum(probability[:half])
    expected = probability * counts.sum()
    group = np.concatenate(
        [np.cumsum(expected[:half]) // 20, [1e12], -np.cumsum(expected[half + 1 :][::-1])[::-1] // 20]
    )
    _, group = np.unique(group, return_inverse=True)
    seen, wanted = (np.bincount(group, weights=one) for one in (counts, expected))
    kept = wanted > 5
    return stats.chi2.sf(np.sum((seen - wanted)[kept] ** 2 / wanted[kept]), np.sum(kept) - 1)


def histogram(made, keys, values):
    """Counts of the integers that so many keys draw, and by which they are counted: -half .. half."""
    draw = jax.jit(lambda data: exact_noise.integers(jax.random.wrap_key_data(data), (values,), made))
    half = made.thresholds.shape[1]
    total = np.zeros(2 * half + 1, np.int64)
    for start in range(0, keys, len(made.row)):
        number = np.arange(start, start + len(made.row), dtype=np.uint32)
        drawn = np.asarray(draw(jnp.asarray(np.stack([number, number + np.uint32(7)], axis=1))))
        total += np.bincount(drawn.ravel() + half, minlength=len(total))
    return total


@pytest.mark.parametrize("level", [0.05, 0.25])
def test_draws_have_the_rounded_normal_law_and_a_wrong_threshold_is_seen(level):
    made = exact_noise.tables([level] * 100)
    counts = histogram(made, 400, 5000)
    assert counts.sum() == 2_000_000
    assert chi_square(counts, level) > 1e-4
    own = normal_thresholds.thresholds(level).copy()
    own[3] -= own[3] // np.uint64(50)  # one of them, by a fiftieth of itself
    words, guide = rounded_normal_cpu.table(np.sort(own)[::-1], 8)
    wrong = made._replace(thresholds=jnp.asarray(words)[None], guide=jnp.asarray(guide)[None])
    assert chi_square(histogram(wrong, 400, 5000), level) < 1e-6


@pytest.mark.evidence
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("level", [0.12, 1.0])
def test_a_thousand_million_draws_have_the_law_and_tails_beyond_what_float32_reaches(level):
    """6.7e-8 of them lie beyond 5.4 standard deviations, where float32 normals end."""
    counts = histogram(exact_noise.tables([level] * 256), 256 * 1250, 3200)
    assert counts.sum() == 1_024_000_000
    assert chi_square(counts, level) > 1e-4
    k = np.abs(np.arange(len(counts)) - len(counts) // 2)
    for reach in (3.0, 4.0, 5.0, 5.4, 5.6):
        far = np.ceil(reach * 255 * level)
        seen = counts[k >= far].sum()
        expected = counts.sum() * 2 * stats.norm.sf((far - 0.5) / (255 * level))
        assert abs(seen - expected) < 4 * np.sqrt(expected) + 1
    assert counts[k >= 5.5 * 255 * level].sum() > 10


def test_tables_are_few_and_one_serves_equal_levels():
    assert exact_noise.tables([0.25] * 64).thresholds.shape == (1, 1280, 2)
    assert exact_noise.tables([0.25, 0.5, 0.25]).thresholds.shape == (3, 1280, 2)
    assert exact_noise.tables([0.25, 1.0]).thresholds.shape == (2, 5120, 2)
    assert exact_noise.tables([0.0]).thresholds.shape == (1, 1280, 2)
    most = int(normal_thresholds.LARGEST * 255 * 9.09)  # Phi(-9.09) < 2^-64
    assert exact_noise._bits(most) == 14
    with pytest.raises(ValueError, match="levels up to 16"):
        exact_noise._bits(3 * most)


def test_levels_are_those_of_the_8_bit_image(images):
    scheme = SCHEMES["stepped"]
    moved = images + np.random.default_rng(0).uniform(-0.4, 0.4, images.shape).astype(np.float32) / 255
    for exact, same in ((True, True), (False, False)):
        own = dataclasses.replace(scheme, exact=exact)
        assert (schemes.host_scale(own, moved)[0].tolist() == schemes.host_scale(own, images)[0].tolist()) == same
    large = schemes.InverseSqrtNorm(sigma=0.5, ref=2000.0, exact=True)
    dim = np.zeros((1, 4, 4, 1), np.float32)
    dim[0, 0, 0] = 1 / 255
    assert schemes.host_scale(large, dim)[1] == 0  # as a level that float32 does not hold
    assert schemes.host_scale(dataclasses.replace(large, exact=False), dim)[1] > normal_thresholds.LARGEST


@pytest.mark.parametrize("divided", [lambda i: i / np.float32(255), lambda i: i * np.float32(1 / 255)])
def test_8_bit_images_pass_however_they_were_divided(linear, divided):
    every = divided(np.arange(256, dtype=np.float32)).reshape(16, 4, 4, 1)
    count(linear, np.minimum(every, 1), SCHEMES["gaussian"], indices=np.arange(16), n=2)


def test_other_images_and_schemes_are_refused(linear, images, tmp_path):
    off = images.copy()
    off[3, 1, 2, 0] = 0.3
    line = r"^Expected 8-bit images under exact noise, all values multiples of 1/255, got 0\.3\d* in image 3 of these: "
    scheme = SCHEMES["gaussian"]
    with pytest.raises(ValueError, match=line):
        count(linear, off, scheme)
    with pytest.raises(ValueError, match=line):
        idrc.certify(linear, scheme, off, n=100, progress=False)
    with pytest.raises(ValueError, match=line):
        idrc.predict(linear, scheme, off, n=100, progress=False)
    with pytest.raises(ValueError, match=line):
        idrc.SmoothedClassifier(linear, scheme, n=100).certify(off)
    count(linear, off, dataclasses.replace(scheme, exact=False))
    for name in ("l2", "uniform"):
        with pytest.raises(ValueError, match=rf"^Expected exact = False for the scheme {name}, whose law is \w+: "):
            schemes.make(name, sigma=0.5, exact=True)
    with pytest.raises(ValueError, match="sigma <= 16 under exact noise, got 17"):
        schemes.Gaussian(sigma=17, exact=True)


def test_training_noise_is_the_float_law():
    images = jnp.full((2, 4, 4, 1), 0.5)
    plain, exact = (
        noise_laws.of_images(schemes.Gaussian(sigma=0.5, exact=exact), images, KEY) for exact in (False, True)
    )
    np.testing.assert_array_equal(plain, exact)
