"""The core against a slow twin in plain NumPy loops, and its independence of everything but seed, index and sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from idrc_jax import sampling
from idrc_jax.certificates import schemes
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, noise_laws, random_keys, votes

LAWS = ("l1", "l2", "uniform")  # one scheme for each law
INDICES = np.array([17, 3, 40_000, 0, 8])


def count(linear, pictures, name="gaussian", **changed):
    arguments = {
        "indices": INDICES,
        "n": 203,
        "key": random_keys.stage(random_keys.root(5), random_keys.ESTIMATION),
        "chunk": 32,
    } | changed
    return sampling.count_votes(linear, schemes.make(name, sigma=0.5), pictures, **arguments)


def one_by_one(linear, pictures, name, n):
    """Each sample drawn and classified alone."""
    scheme, key = schemes.make(name, sigma=0.5), random_keys.stage(random_keys.root(5), random_keys.ESTIMATION)
    _, scales = schemes.host_scale(scheme, pictures)
    votes = np.zeros((len(pictures), linear.classes + 1), int)

    @jax.jit
    def draw(index, number, scale):
        return noise_laws.draw(scheme.law, random_keys.sample(key, index, number), scale, linear.image_shape)

    weights = np.asarray(linear.params, np.float64)
    for i, image in enumerate(pictures):
        for number in range(n):
            noisy = image + np.asarray(draw(jnp.uint32(INDICES[i]), jnp.uint32(number), jnp.float32(scales[i])))
            votes[i, np.argmax(weights @ noisy.ravel())] += 1
    return votes


@pytest.mark.parametrize("name", sorted(schemes.SCHEMES.keys() - {"cascade", "routed", "splitting"}))
def test_votes_are_those_of_a_loop_over_samples(linear, pictures, name):
    votes = count(linear, pictures, name, n=61)
    assert votes.sum(axis=1).tolist() == [61] * 5
    # A logit tie that float32 breaks differently may move a vote; none is expected here.
    np.testing.assert_array_equal(votes, one_by_one(linear, pictures, name, 61))


@pytest.mark.parametrize("name", LAWS)
def test_votes_do_not_depend_on_chunk_devices_or_order(linear, pictures, name):
    expected = count(linear, pictures, name)
    for chunk in (2, 7, 512):
        np.testing.assert_array_equal(count(linear, pictures, name, chunk=chunk), expected)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(count(linear, pictures, name, mesh=devices.mesh(number)), expected)
    order = np.array([3, 0, 4, 1, 2])
    permuted = count(linear, pictures[order], name, indices=INDICES[order])
    np.testing.assert_array_equal(permuted, expected[order])
    alone = count(linear, pictures[2:3], name, indices=INDICES[2:3])
    np.testing.assert_array_equal(alone, expected[2:3])


def test_votes_add_up_over_resume_points(linear, pictures):
    first, rest = count(linear, pictures, n=90), count(linear, pictures, n=113, first=90)
    np.testing.assert_array_equal(first + rest, count(linear, pictures, n=203))


def test_seed_stage_and_index_change_the_votes(linear, pictures):
    expected = count(linear, pictures)
    assert not np.array_equal(expected, count(linear, pictures, indices=INDICES + 1))
    for key in (
        random_keys.stage(random_keys.root(6), random_keys.ESTIMATION),
        random_keys.stage(random_keys.root(5), random_keys.SELECTION),
    ):
        assert not np.array_equal(expected, count(linear, pictures, key=key))


def test_vote_shares_are_the_probabilities_of_the_classifier(linear, pictures):
    """Against float64 NumPy noise of another generator: four standard errors of the difference."""
    n = 20_000
    votes = count(linear, pictures, n=n, chunk=1000)
    noise_64 = np.random.default_rng(0).normal(scale=0.5, size=(n, 16))
    for image, row in zip(pictures, votes, strict=True):
        winners = np.argmax((image.ravel() + noise_64) @ np.asarray(linear.params, np.float64).T, axis=1)
        expected = np.bincount(winners, minlength=3) / n
        assert np.all(np.abs(row[:3] / n - expected) < 4 * np.sqrt(2 * expected * (1 - expected) / n) + 1e-12)


def test_logits_that_are_not_finite_count_for_no_class(linear, pictures):
    """One broken logit voids the vote, also when it is not the largest, or is +inf, or -inf."""

    def broken(params, images):
        logits = linear.apply_fn(params, images)
        first = images[:, 0, 0, 0]
        logits = logits.at[:, 2].set(jnp.where(first > 1.2, jnp.nan, logits[:, 2]))
        logits = logits.at[:, 0].set(jnp.where(first < -0.2, -jnp.inf, logits[:, 0]))
        return logits.at[:, 1].set(jnp.where((first > 0.4) & (first < 0.5), jnp.inf, logits[:, 1]))

    votes = count(Classifier(broken, linear.params, 3, (4, 4, 1)), pictures, n=2000)
    assert votes.sum(axis=1).tolist() == [2000] * 5
    z = pictures[:, 0, 0, 0, None] + 0.5 * np.random.default_rng(0).normal(size=100_000)
    share = np.mean((z > 1.2) | (z < -0.2) | ((z > 0.4) & (z < 0.5)), axis=1)
    np.testing.assert_allclose(votes[:, 3] / 2000, share, atol=0.05)
    all_broken = Classifier(lambda p, x: jnp.full((len(x), 3), jnp.nan), linear.params, 3, (4, 4, 1))
    assert count(all_broken, pictures)[:, 3].tolist() == [203] * 5


@pytest.mark.parametrize("name", LAWS)
def test_kernel_runs_under_jit_vmap_pmap_and_shard_map(linear, pictures, name):
    """Four ways to spread five images' samples give the votes of one."""
    expected = count(linear, pictures, name, n=64)
    scheme, key = schemes.make(name, sigma=0.5), random_keys.stage(random_keys.root(5), random_keys.ESTIMATION)
    _, scales = schemes.host_scale(scheme, pictures)
    scales, indices = jnp.asarray(scales, jnp.float32), jnp.asarray(INDICES, jnp.uint32)

    def votes(images, numbers, levels, first, n):
        """The samples first .. first + n - 1 of every image, on one worker."""
        firsts, counts = (jnp.broadcast_to(value, (len(images),)) for value in (first, n))
        return sampling.sample_votes(
            linear.apply_fn, scheme.law, 3, 16, linear.params, key, images, numbers, levels, firsts, counts,
            jnp.int32(0), 1,
        )  # fmt: skip

    images, zero, all_64 = jnp.asarray(pictures), jnp.uint32(0), jnp.int32(64)
    np.testing.assert_array_equal(jax.jit(votes)(images, indices, scales, zero, all_64), expected)
    each = jax.vmap(votes, in_axes=(0, 0, 0, None, None))
    by_image = each(images[:, None], indices[:, None], scales[:, None], zero, all_64)
    np.testing.assert_array_equal(by_image[:, 0], expected)
    firsts = jnp.arange(0, 64, 16, dtype=jnp.uint32)
    dealt = jax.pmap(votes, in_axes=(None, None, None, 0, None))(images, indices, scales, firsts, jnp.int32(16))
    np.testing.assert_array_equal(np.asarray(dealt).sum(axis=0), expected)
    sharded = jax.shard_map(
        lambda first: votes(images, indices, scales, first[0], jnp.int32(16))[None],
        mesh=devices.mesh(4),
        in_specs=P(devices.AXIS),
        out_specs=P(devices.AXIS),
    )
    np.testing.assert_array_equal(np.asarray(jax.jit(sharded)(firsts)).sum(axis=0), expected)


def test_images_with_different_sample_numbers_share_batches(linear, pictures):
    """Each image's votes are those of its own samples, whatever the others draw; 0 samples are no votes."""
    key, mesh = random_keys.stage(random_keys.root(5), random_keys.ESTIMATION), devices.mesh(2)
    _, scales = schemes.host_scale(schemes.Gaussian(sigma=0.5), pictures)
    first, n = np.array([0, 100, 7, 3, 50]), np.array([30, 0, 201, 1, 64])
    execution = sampling.Execution(linear, mesh, 16)
    votes = sampling.dispatch_votes(
        execution, schemes.Gaussian(sigma=0.5), pictures, scales, indices=INDICES, first=first, n=n, key=key
    )
    votes = np.asarray(votes).sum(axis=0)
    for i in range(5):
        alone = (
            count(linear, pictures[i : i + 1], indices=INDICES[i : i + 1], first=first[i], n=n[i])
            if n[i]
            else [[0] * 4]
        )
        assert votes[i].tolist() == list(alone[0])


def test_one_compilation_for_all_images_scales_and_counts(linear, pictures):
    traces = []

    def traced(params, images):
        traces.append(images.shape)
        return linear.apply_fn(params, images)

    classifier = Classifier(traced, linear.params, 3, (4, 4, 1))
    for position in range(5):
        for sigma, n, first in ((0.25, 10, 0), (0.5, 500, 0), (1.0, 33, 77)):
            sampling.count_votes(
                classifier, schemes.L1(sigma=sigma), pictures[position : position + 1],
                indices=INDICES[position : position + 1], n=n, first=first, key=random_keys.root(position), chunk=16,
            )  # fmt: skip
    assert len(set(traces)) == 1
    assert len(traces) <= 2  # a loop body may be traced twice in one compilation


def test_memory_does_not_grow_with_n(linear, pictures):
    """XLA's own account of the program's temporaries: n is a traced value, so there is one program for all n."""
    mesh = devices.mesh(1)
    small, large = (
        sampling.memory_estimate(sampling.Execution(linear, mesh, chunk), schemes.Gaussian(sigma=0.5))
        for chunk in (64, 4096)
    )
    assert small is not None
    assert large is not None
    assert 20 * small < large  # the chunk sets it
    before = votes._votes_on_mesh._cache_size()
    for n in (10, 10_000, 1_000_000):
        sampling.dispatch_votes(
            sampling.Execution(linear, mesh, 4096), schemes.Gaussian(sigma=0.5), pictures[:1], np.array([0.5]),
            indices=INDICES[:1], first=0, n=n, key=random_keys.root(0),
        ).block_until_ready()  # fmt: skip
    assert votes._votes_on_mesh._cache_size() <= before + 1


def test_black_images_are_sampled_without_noise(linear):
    """Level 0, not nan: the votes are unanimous (and the certificate refuses them)."""
    black = np.zeros((1, 4, 4, 1), np.float32)
    votes = sampling.count_votes(
        linear, schemes.InverseSqrtNorm(sigma=0.5), black, indices=np.array([0]), n=50, key=random_keys.root(0)
    )
    assert votes.max() == 50
    assert votes[0, 3] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk": 1}, "chunk >= 2"),
        ({"n": 0}, "n >= 1"),
        ({"n": 10.5}, "n to be an integer, got 10.5"),
        ({"chunk": -5}, "chunk >= 2, got -5"),
        ({"chunk": 8.0}, "chunk to be an integer"),
        ({"chunk": 2**31}, r"chunk \* devices < 2\*\*30"),
        ({"first": 0.5}, "first to be an integer"),
        ({"indices": INDICES + 0.5}, "indices to be integers, got float64"),
        ({"indices": INDICES > 3}, "indices to be integers, got bool"),
        ({"indices": INDICES[:2]}, "one index an image"),
        ({"n": 2**29}, r"images \* n < 2\*\*31"),
        ({"indices": -INDICES}, "indices and sample numbers"),
        ({"indices": INDICES + 2**32}, "indices and sample numbers"),
        ({"first": 2**32 - 100}, "indices and sample numbers"),
    ],
)
def test_bad_arguments_are_refused(linear, pictures, changed, message):
    with pytest.raises(ValueError, match=message):
        count(linear, pictures, **changed)


def wrong_logits(shape):
    """Functions whose logits have other shapes or types than [B, 3], by what they give."""
    return {
        "too many": lambda p, x: jnp.zeros((len(x), 20)),
        "too few": lambda p, x: jnp.zeros((len(x), 2)),
        "one image's": lambda p, x: jnp.zeros((1, 3)),
        "another axis": lambda p, x: jnp.zeros((len(x), 1, 3)),
        "transposed": lambda p, x: jnp.zeros((3, len(x))),
        "one logit": lambda p, x: jnp.zeros((len(x), 1)),
        "flat": lambda p, x: jnp.zeros(len(x)),
        "class numbers": lambda p, x: jnp.zeros(len(x), jnp.int32),
        "votes": lambda p, x: jnp.zeros((len(x), 3), jnp.int32),
        "pair": lambda p, x: (jnp.zeros((len(x), 3)), p),
    }[shape]


WRONG = (
    "too many", "too few", "one image's", "another axis", "transposed", "one logit", "flat", "class numbers", "votes",
    "pair",
)  # fmt: skip


@pytest.mark.parametrize("shape", WRONG)
def test_logits_of_another_shape_are_refused(linear, pictures, shape):
    wrong = Classifier(wrong_logits(shape), linear.params, 3, (4, 4, 1))
    with pytest.raises(ValueError, match=r"float logits \[\d+, 3\] for \d+ images of 3 classes, got "):
        count(wrong, pictures)
    with pytest.raises(ValueError, match="float logits"):
        wrong.check()
    hint = shape in ("one logit", "flat", "class numbers")
    with pytest.raises(ValueError, match=r"two logits \[0, z\]" if hint else r"got [^.]+\.(\n|$)"):
        count(wrong, pictures, chunk=8)


def test_as_many_images_as_classes_do_not_hide_a_wrong_axis():
    transposed = Classifier(lambda p, x: jnp.zeros((8, len(x))), (), 8, (4, 4, 1))
    with pytest.raises(ValueError, match=r"logits \[9, 8\]"):
        transposed.check()
    with pytest.raises(ValueError, match=r"logits \[9, 8\]"):
        count(transposed, np.zeros((1, 4, 4, 1), np.float32), indices=np.arange(1), n=8, chunk=8, mesh=devices.mesh(1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": 1}, r"at least 2 classes in a classifier, got 1: .* \[0, z\]"),
        ({"classes": 0}, "at least 2 classes"),
        ({"classes": 3.0}, "classes to be an integer"),
        ({"image_shape": (4, 4)}, r"image_shape \(H, W, C\)"),
        ({"image_shape": (4, 4, 0)}, "image_shape >= 1, got 0"),
        ({"image_shape": (4, 4.0, 1)}, "image_shape to be an integer"),
    ],
)
def test_impossible_classifiers_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**({"apply_fn": abs, "params": (), "classes": 3, "image_shape": (4, 4, 1)} | changed))


def test_a_shape_may_be_a_list(linear, pictures):
    listed = Classifier(linear.apply_fn, linear.params, 3, [4, 4, 1])
    np.testing.assert_array_equal(count(listed, pictures), count(linear, pictures))


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
def test_images_outside_the_unit_interval_are_refused(linear, pictures, value):
    wrong = pictures.copy()
    wrong[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        count(linear, wrong)
    with pytest.raises(ValueError, match="shape"):
        count(linear, pictures[:, :3])
