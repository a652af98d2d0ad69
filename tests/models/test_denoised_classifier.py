import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import idrc_jax as idrc
from idrc_jax import certification, data, sampling
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.models import Classifier
from idrc_jax.models.diffusion import Denoiser, Schedule
from idrc_jax.sampling import devices, random_keys

SIGMA = 0.25
GAIN = 0.6
SCHEDULES = [{"kind": "cosine"}, {"steps": 900}, {"beta_start": 2e-4}, {"beta_end": 0.01}]


def shrink(params, x, time):
    """A denoiser that is linear: the clean image is the mean, plus a part of what the noisy one has beyond."""
    return params * (x * np.sqrt(1 + 4 * SIGMA**2))


def make(image_shape=(4, 4, 1), **more):
    settings = {"params": jnp.float32(GAIN), "prediction": "sample", "sha256": "d" * 64, "schedule": Schedule()}
    return Denoiser(apply_fn=shrink, image_shape=image_shape, **settings | more)


def first_pixel(params, images):
    """Class 1 where the first pixel is brighter than the parameter."""
    above = images[:, 0, 0, 0] - params
    return jnp.stack((-above, above), axis=1)


@pytest.fixture
def threshold():
    return Classifier(first_pixel, jnp.float32(0.4), classes=2, image_shape=(4, 4, 1), sha256="c" * 64)


def test_votes_are_those_of_the_composition_in_closed_form(threshold):
    """Denoised, the first pixel is .5 + GAIN (x - .5): it is above .4 where the noise is above .5 - .1 / GAIN - x."""
    images = np.full((3, 4, 4, 1), 0.5, np.float32)
    images[:, 0, 0, 0] = pixels = np.array([0.2, 0.35, 0.5])
    f = idrc.denoised(threshold, make(), sigma=SIGMA)
    votes = idrc.count_votes(
        f, schemes.Gaussian(SIGMA), images, indices=np.arange(3), n=20_000, key=random_keys.root(0)
    )
    wanted = stats.norm.sf((0.5 - 0.1 / GAIN - pixels) / SIGMA)
    for row, p in zip(votes, wanted, strict=True):
        assert stats.binomtest(int(row[1]), 20_000, p).pvalue > 1e-4
        assert row[2] == 0


def test_every_implementation_of_one_goes_with_every_one_of_the_other(threshold):
    """Each composition computes by its own parts, told apart here by their weights; all have one name."""
    classifier = dataclasses.replace(threshold, params=jnp.float32(0.6), kernel="c").with_alternatives(threshold)
    denoiser = make(kernel="d", params=jnp.float32(0.2)).with_alternatives(make())
    f = idrc.denoised(classifier, denoiser, sigma=SIGMA)
    assert [one.kernel for one in f.implementations] == ["d, c", "xla, xla", "d, xla", "xla, c"]
    assert f.reference.kernel == "xla, xla"
    assert {one.sha256 for one in f.implementations} == {"c" * 64}
    bright = jnp.full((1, 4, 4, 1), 0.9)
    found = [float(one(bright)[0, 1]) for one in f.implementations]
    wanted = [0.5 + 0.4 * gain - above for gain, above in ((0.2, 0.6), (GAIN, 0.4), (0.2, 0.4), (GAIN, 0.6))]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert idrc.denoised(threshold, make(), sigma=SIGMA).alternatives == ()


def test_what_is_certified_is_named_by_both_networks_level_and_steps(threshold):
    f = idrc.denoised(threshold, make(), sigma=SIGMA)
    dataset = data.from_arrays(np.zeros((5, 4, 4, 1), np.uint8), np.zeros(5, int), name="x", split="test", classes=2)

    def guarantee(classifier):
        settings = certification.Settings()
        scheme = schemes.Gaussian(SIGMA)
        return certification.describe_guarantee(classifier, scheme, dataset, np.arange(5), settings)

    told = guarantee(f)
    assert (told["weights_sha256"], told["denoiser_weights_sha256"]) == ("c" * 64, "d" * 64)
    assert (told["denoiser_sigma"], told["denoiser_steps"], told["denoiser_dtype"]) == (SIGMA, 1, "float32")
    for other in (idrc.denoised(threshold, make(), sigma=0.3), idrc.denoised(threshold, make(), sigma=SIGMA, steps=2)):
        assert guarantee(other) != told
    others = [
        make(prediction="epsilon"),
        make(dtype="bfloat16"),
        *(make(schedule=Schedule(**one)) for one in SCHEDULES),
        *(make(description={"unet": {"groups": groups}}) for groups in (2, 4)),
    ]
    found = [told, *(guarantee(idrc.denoised(threshold, other, sigma=SIGMA)) for other in others)]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    resized = dataclasses.replace(threshold, image_shape=(8, 8, 1))
    assert guarantee(idrc.denoised(resized, make(), sigma=SIGMA)) != told
    # A network in memory has no hash: the composition is known by its own fingerprint, which holds both.
    nameless = [idrc.denoised(threshold, make(sha256="", params=jnp.float32(g)), sigma=SIGMA) for g in (0.6, 0.7)]
    assert len({guarantee(one)["weights_sha256"] for one in nameless}) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *(({"schedule": Schedule(**one)}, "denoiser_schedule was ") for one in SCHEDULES),
        ({"description": {"unet": {"groups": 2}}}, "denoiser_unet was .*4.*, is .*2"),
        ({}, r"denoiser_classifier_shape was \[4, 4, 1\], is \[8, 8, 1\]"),
    ],
)
def test_rows_do_not_go_on_under_another_denoiser(threshold, tmp_path, change, named):
    images = np.zeros((4, 4, 4, 1), np.uint8)
    dataset = data.from_arrays(images, np.zeros(4, int), name="x", split="test", classes=2)
    settings = certification.Settings(sampling_plans.Fixed(n=20, n0=10))
    unet = {"description": {"unet": {"groups": 4}}}

    def certify(classifier, count, **more):
        f = idrc.denoised(classifier, make(**unet | more), sigma=SIGMA)
        chosen = (dataset, np.arange(4)[:count], settings, tmp_path)
        return certification.certify_dataset(f, schemes.Gaussian(SIGMA), *chosen, chunk=2, mesh=devices.mesh(1))

    assert certify(threshold, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tsv")}
    other = threshold if change else dataclasses.replace(threshold, image_shape=(8, 8, 1))
    with pytest.raises(ValueError, match=named):
        certify(other, 4, **change)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tsv")} == before
    assert certify(threshold, 4)
    assert [row.idx for row in idrc.read_results(tmp_path).rows] == [0, 1, 2, 3]


def test_images_of_another_size_are_resized_for_the_classifier():
    seen = []

    def classify(params, images):
        seen.append(images.shape)
        return jnp.zeros((images.shape[0], 2))

    classifier = Classifier(classify, (), classes=2, image_shape=(16, 16, 1))
    f = idrc.denoised(classifier, make(), sigma=SIGMA)
    assert f.image_shape == (4, 4, 1)
    assert f(jnp.zeros((3, 4, 4, 1))).shape == (3, 2)
    assert seen == [(3, 16, 16, 1)]


def test_a_denoised_classifier_is_jitted_as_one_program_whose_chunk_knows_the_denoiser(threshold):
    wide = make()
    wide = dataclasses.replace(wide, apply_fn=lambda params, x, time: jnp.tile(shrink(params, x, time), 500))
    f, plain = idrc.denoised(threshold, wide, sigma=SIGMA), idrc.denoised(threshold, make(), sigma=SIGMA)
    assert f.largest_intermediate >= 500 * plain.largest_intermediate
    assert jax.jit(f.apply_fn)(f.params, jnp.zeros((2, 4, 4, 1))).shape == (2, 2)


def test_what_does_not_fit_is_refused(threshold):
    with pytest.raises(
        ValueError, match=r"denoiser of images with 1 channels, as the classifier takes, got \(4, 4, 3\)"
    ):
        idrc.denoised(threshold, make(image_shape=(4, 4, 3)), sigma=SIGMA)
    with pytest.raises(ValueError, match="noise level"):
        idrc.denoised(threshold, make(), sigma=1e-4)
    f = idrc.denoised(threshold, make(), sigma=SIGMA)
    with pytest.raises(ValueError, match="one that has one in front already"):
        idrc.denoised(f, make(), sigma=SIGMA)
    for images in (np.full((1, 4, 4, 1), -1, np.float32), np.full((1, 4, 4, 1), 255, np.float32)):
        with pytest.raises(ValueError, match=r"float32 images within \[0, 1\]"):
            sampling.check_images(images, f)
