"""`splitting` against counting: intervals, votes and decisions at every neighbouring image, by code of this test."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import idrc_jax as idrc
from idrc_jax import audit, certificates, certification, results
from idrc_jax.certificates import Exhaustive, Fixed, Pairs, ToRadius, confidence_bounds, schemes
from idrc_jax.results import audit_rows, metrics, recertify
from idrc_jax.sampling import noise_laws, random_keys

NOISY = jax.jit(noise_laws.noisy, static_argnums=0)
SIGMAS = {1: 0.001, 12: 0.0136, 221: 0.25, 300: 0.34, 3092: 3.5}  # by positions


def middle(grey, begin, width):
    """Twice the middle of the interval that a grey level falls into, by walking down to its beginning."""
    low = grey
    while (low - begin) % width:
        low -= 1
    return max(low, 0) + min(low + width - 1, 255)


def split(images, scheme, numbers):
    """What the package makes of uint8 images [N, H, W, C] at offsets numbered so: twice the grey levels [N, S, ...]."""
    keys, count = random_keys.root(0), len(numbers)
    slot = jnp.repeat(jnp.arange(len(images)), count)
    made = NOISY(
        "splitting",
        keys,
        jnp.asarray(images, jnp.float32) / 255,
        jnp.arange(len(images), dtype=jnp.uint32),
        jnp.full(len(images), scheme.scale(np.zeros(())), jnp.float32),
        slot,
        jnp.tile(jnp.asarray(numbers, jnp.uint32), len(images)),
    )
    doubled = np.asarray(made, np.float64) * 510
    assert np.abs(doubled - np.rint(doubled)).max() < 1e-3
    return np.rint(doubled).astype(int).reshape(len(images), count, *images.shape[1:])


@pytest.mark.parametrize("width", SIGMAS)
def test_every_interval_of_a_value_comes_once_and_is_as_wide_as_it_says(width):
    scheme = schemes.Splitting(sigma=SIGMAS[width])
    assert scheme.positions == width
    images = np.array([0, 1, 100, 254, 255], np.uint8)[:, None, None, None]
    made = split(images, scheme, range(width))[:, :, 0, 0, 0]
    for grey, own in zip(images.ravel().tolist(), made, strict=True):
        begins = range(width) if width < 1000 else range(0, width, 37)
        expected = [middle(grey, begin, width) for begin in begins]
        if width < 1000:
            assert sorted(own) == sorted(expected)
        else:
            assert set(expected) <= set(own)
    np.testing.assert_array_equal(split(images, scheme, range(width, 2 * width)), split(images, scheme, range(width)))


@pytest.mark.parametrize("width", [1, 12, 221, 300])
def test_an_image_changes_at_no_more_offsets_than_its_grey_levels_have_moved(width):
    """And a single value at just as many, up to all."""
    scheme, generator = schemes.Splitting(sigma=SIGMAS[width]), np.random.default_rng(width)
    images = generator.integers(0, 256, (40, 2, 2, 1)).astype(np.uint8)
    moved = np.clip(images + generator.integers(-20, 21, images.shape), 0, 255).astype(np.uint8)
    moved[:10, 1:], moved[:10, 0, 1] = images[:10, 1:], images[:10, 0, 1]  # one value alone
    differ = np.any(split(images, scheme, range(width)) != split(moved, scheme, range(width)), axis=(2, 3, 4))
    count, steps = differ.sum(axis=1), np.abs(images.astype(int) - moved).sum(axis=(1, 2, 3))
    assert np.all(count <= np.minimum(steps, width))
    np.testing.assert_array_equal(count[:10], np.minimum(steps[:10], width))


def test_values_have_intervals_that_begin_in_different_places():
    scheme = schemes.Splitting(sigma=0.25)
    made = split(np.full((1, 16, 16, 3), 128, np.uint8), scheme, range(3))[0]
    assert all(len(np.unique(one)) > 200 for one in made)


@pytest.mark.parametrize("cases", [150, pytest.param(500, marks=pytest.mark.evidence)])
def test_no_image_inside_the_radius_has_another_class_and_some_just_beyond_have(cases):
    """Classifiers of two values, random and worst: each of the 1,405 8-bit images around an image is decided by its own
    votes, 700,000 in the long test. None breaks a radius, and worst classifiers break many that are 2 % larger."""
    generator, scheme = np.random.default_rng(0), schemes.Splitting(sigma=0.0566)
    width, worst, broken = scheme.positions, 0, 0
    assert width == 50
    greys = np.repeat(np.arange(256, dtype=np.uint8), 2).reshape(256, 1, 2, 1)
    middles = split(greys, scheme, range(width)).reshape(256, width, 2)
    around = np.array([(i, j) for i in range(-26, 27) for j in range(-26, 27) if abs(i) + abs(j) <= 26])
    steps = np.abs(around).sum(axis=1)
    for number in range(cases):
        centre = generator.integers(27, 229, 2)
        first, second = (middles[centre[value] + around[:, value], :, value] for value in (0, 1))
        if number % 2:  # the rival has what is new at one of the images, and it is the one that wins ties
            here, there = np.argmin(steps), generator.choice(np.flatnonzero(steps == 25))
            new = (first[here] != first[there]) | (second[here] != second[there])
            tables = np.ones((511, 511), int)
            tables[first[there, new], second[there, new]] = 0
        else:
            tables = generator.choice(3, (511, 511), p=[0.8, 0.15, 0.05])
            tables[:: generator.integers(2, 9)] = generator.integers(3)
        voted = tables[first, second]
        votes = np.stack([(voted == one).sum(axis=1) for one in range(3)], axis=1)
        own = np.append(votes[np.argmin(steps)], 0)
        selected = confidence_bounds.select(own)
        lost = np.argmax(votes, axis=1) != selected
        for certificate in ("one_sided", "two_sided"):
            (found,) = certificates.from_votes(
                scheme, [0.0], [selected], own[None], plan=Exhaustive(width), alpha=0.001, dim=2,
                certificate=certificate,
            )  # fmt: skip
            assert not np.any(lost & (steps / 255 < found.radius))
        worst += number % 2
        broken += number % 2 and np.any(lost & (steps / 255 < 1.02 * found.radius))
    assert broken > 0.3 * worst


def test_at_real_images_the_offsets_at_which_an_interval_is_left_are_no_more_than_the_distance():
    """The lemma for images between the grey levels: offsets are real there. Lengths of offsets, by their ends."""
    generator = np.random.default_rng(1)
    for _ in range(300):
        width, dim = int(generator.integers(1, 60)), int(generator.integers(1, 5))
        begins = generator.integers(0, width, dim)
        one = generator.uniform(0, 255, dim)
        other = one + generator.normal(size=dim) * generator.choice([0.1, 3.0])
        ends = np.unique(np.concatenate([[0, width], (one - begins) % width, (other - begins) % width]))
        centres = (ends[1:] + ends[:-1]) / 2
        left = [np.any(np.floor((one - begins - u) / width) != np.floor((other - begins - u) / width)) for u in centres]
        assert np.sum(np.diff(ends) * left) <= np.sum(np.abs(one - other)) + 1e-9


VOTES = np.array([[200, 21, 0, 0], [90, 60, 60, 11], [110, 110, 1, 0], [221, 0, 0, 0]])
SCHEME = schemes.Splitting(sigma=0.25)


def made(certificate="one_sided", alpha=0.001, votes=VOTES):
    selected = [confidence_bounds.select(one) for one in votes]
    return certificates.from_votes(
        SCHEME,
        np.zeros(len(votes)),
        selected,
        votes,
        plan=Exhaustive(221),
        alpha=alpha,
        dim=48,
        certificate=certificate,
    )


def test_radii_are_counts_whatever_alpha():
    """Half the gap, in grey levels: to the rest (one-sided), or to the strongest rival."""
    for alpha in (0.001, 0.4):
        one, two = made(alpha=alpha), made("two_sided", alpha)
        np.testing.assert_allclose([255 * each.radius for each in one], [179 / 2, 0, 0, 221 / 2], rtol=1e-6)
        np.testing.assert_allclose([255 * each.radius for each in two], [179 / 2, 15, 0, 221 / 2], rtol=1e-6)
        assert all(each.radius <= half / 255 for each, half in zip(two, (89.5, 15, 0, 110.5), strict=True))
        assert [each.predict for each in one] == [0, -1, -1, 0]
        assert [each.predict for each in two] == [0, 0, -1, 0]
        assert [each.p_lower for each in one] == [200 / 221, 90 / 221, 110 / 221, 1 - 2.0**-53]
        assert {each.norm for each in one} == {"l1"}


def test_other_plans_and_certificates_are_refused():
    for plan, said in (
        (Fixed(), "plan exhaustive, all 221 offsets of splitting at sigma 0.25, got fixed."),
        (ToRadius(), "plan exhaustive, all 221 offsets of splitting at sigma 0.25, got to_radius."),
        (Exhaustive(220), "n = 221, all offsets of splitting at sigma 0.25, got 220."),
    ):
        with pytest.raises(ValueError, match=f"^Expected {re.escape(said)}$"):
            certificates.check_certificate("one_sided", SCHEME, plan)
    with pytest.raises(ValueError, match="another plan for gaussian, got exhaustive"):
        certificates.check_certificate("one_sided", schemes.Gaussian(sigma=0.25), Exhaustive(221))
    with pytest.raises(ValueError, match="runner_up"):
        certificates.check_certificate("runner_up", SCHEME, Exhaustive(221))
    with pytest.raises(ValueError, match="certify the variant itself"):
        certificates.from_votes(
            SCHEME, [0.0], [0], VOTES[:1], plan=Exhaustive(221), alpha=0.01, dim=4, certificate="incremental",
            lost=[0], pairs=Pairs(10),
        )  # fmt: skip
    with pytest.raises(ValueError, match="sigma <= 74"):
        schemes.Splitting(sigma=80)
    with pytest.raises(ValueError, match="exact"):
        schemes.Splitting(sigma=0.25, exact=True)


@pytest.mark.parametrize("certificate", ["one_sided", "two_sided"])
@pytest.mark.parametrize("other", [[60, 0, 0, 0], [221, 221, 0, 0], [0, 0, 0, 0]])
def test_votes_that_are_not_those_of_all_offsets_have_no_certificate(certificate, other):
    with pytest.raises(ValueError, match=r"^Expected votes of all 221 offsets, each once, got "):
        made(certificate, votes=np.array([VOTES[0], other]))


def test_all_offsets_are_counted_or_none(linear, dataset):
    """From wherever: whole turns are the same."""
    images = idrc.data.to_unit(dataset.images[:2])
    arguments = {"indices": np.arange(2), "key": random_keys.root(0), "chunk": 64}
    several = [idrc.count_votes(linear, SCHEME, images, n=221, first=first, **arguments) for first in (0, 100)]
    np.testing.assert_array_equal(*several)
    for part in (1, 220, 222, 1000):
        with pytest.raises(ValueError, match=f"Expected n = 221, all offsets of splitting at sigma 0.25, got {part}"):
            idrc.count_votes(linear, SCHEME, images, n=part, **arguments)


@pytest.fixture(scope="module")
def run(linear, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("splitting")
    settings = certification.Settings(plan=Exhaustive(221), certificate="two_sided")
    certification.certify_dataset(linear, SCHEME, dataset, np.arange(0, 60, 5), settings, folder, chunk=64)
    return results.read_results(folder)


def test_a_run_has_the_votes_of_all_offsets_and_predictions_are_its_classes(linear, dataset, run):
    indices = np.arange(0, 60, 5)
    images = dataset.images[indices]
    middles = split(images, SCHEME, range(221)) / 510
    logits = np.einsum("nshwc,khwc->nsk", middles, np.asarray(linear.params, np.float64).reshape(3, 4, 4, 1))
    expected = np.stack([(np.argmax(logits, axis=2) == one).sum(axis=1) for one in range(3)], axis=1)
    found = np.array([[row.votes.get(one, 0) for one in range(3)] for row in run])
    np.testing.assert_array_equal(found, expected)
    assert [row.predict for row in run] == np.argmax(expected, axis=1).tolist()
    assert {(row.n, row.n0, row.norm) for row in run} == {(221, 0, "l1")}
    shown = idrc.predict(linear, SCHEME, images, progress=False, n=7)
    assert shown.tolist() == np.argmax(expected, axis=1).tolist()
    smoothed = idrc.SmoothedClassifier(linear, SCHEME)
    assert smoothed.predict(images).classes.tolist() == shown.tolist()
    assert smoothed.certify(images[:1]).norm == "l1"
    again = idrc.certify(linear, SCHEME, images, certificate="two_sided", progress=False, seed=5)
    assert [row.radius for row in again] == [row.radius for row in run]  # no seed matters
    assert "two_sided" in results.summary_table(run)


def test_the_table_names_no_alpha_and_no_selection(run):
    said = results.summary_table(run)
    first, last = said.splitlines()[0], "of all 221 offsets and sigma 0.25, even if all votes agree."
    assert first.endswith(" images of made/test, exact: all 221 offsets, two_sided")
    assert last in said
    assert "alpha" not in said
    assert "n0" not in said


def test_alpha_changes_nothing_and_fewer_votes_are_refused(run):
    other = recertify.recertify(run, alpha=0.3)
    assert repr(other.rows) == repr(run.rows)  # nan is not itself
    with pytest.raises(ValueError, match=r"^Expected n = 221, all offsets of splitting at sigma 0\.25, got 100\.$"):
        recertify.recertify(run, n=100)
    assert metrics.largest_radius(run) == pytest.approx(110.5 / 255, rel=1e-6)
    assert metrics.largest_probability(run) == 1 - 2.0**-53


def test_images_that_are_not_of_8_bits_are_refused(linear):
    with pytest.raises(ValueError, match="8-bit"):
        idrc.certify(linear, SCHEME, np.full((1, 4, 4, 1), 0.501, np.float32), progress=False)


def test_an_audit_finds_no_break_inside_a_radius_and_breaks_far_out(linear, dataset, run, tmp_path):
    settings = audit.Settings(
        images=12, fractions=(0.9, 1.0, 4.0), radii=(), steps=6, samples=16, restarts=1, refinements=2
    )
    indices = np.arange(0, 60, 5)
    assert audit.audit_certificates(linear, dataset, indices, run, settings, tmp_path / "audit", chunk=64)
    found = audit_rows.read_audit(tmp_path / "audit")
    assert not [row for row in found.rows if row.broken and row.distance < row.radius]
    broken = [row for row in found.rows if row.broken]
    assert broken
    assert all(sum(row.votes.values()) == 221 for row in broken)
    assert all(confidence_bounds.select(np.array([row.votes.get(one, 0) for one in (0, 1, 2, -1)])) != row.predict
               for row in broken)  # fmt: skip
    kept = audit_rows.read_images(tmp_path / "audit")
    grey = kept["image"].astype(np.float64) * 255
    np.testing.assert_allclose(grey, np.rint(grey), atol=1e-3)
    shifts = np.abs(kept["image"].astype(np.float64) - kept["original"]).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(shifts, kept["distance"], rtol=1e-6)


def test_training_sees_one_random_offset_of_the_same_intervals():
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 1)).astype(np.uint8)
    scheme = schemes.Splitting(sigma=0.0136)
    known = {tuple(one.ravel()) for one in split(images, scheme, range(12))[0]}
    many = jnp.asarray(np.repeat(images, 3000, axis=0), jnp.float32) / 255
    noise = jax.jit(lambda x: noise_laws.of_images(scheme, x, random_keys.root(1)))(many)
    seen = np.rint(np.asarray(many + noise, np.float64) * 510).astype(int).reshape(3000, -1)
    places, count = np.unique(seen, axis=0, return_counts=True)
    assert {tuple(one) for one in places} == known
    assert np.all(np.abs(count - 250) < 5 * np.sqrt(250))
