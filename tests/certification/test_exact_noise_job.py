"""Exact noise from end to end: rows, manifest, resumption, certificates anew, prediction, audit, settings."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import own_schemes
import pytest
import running

from idrc_jax import audit, certification, config, data, results, sampling
from idrc_jax.audit import attacks
from idrc_jax.certificates import schemes, user_schemes
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.certification import Settings, certify_dataset
from idrc_jax.commands import certify
from idrc_jax.config import run_memory
from idrc_jax.core import normal_thresholds
from idrc_jax.models import Classifier
from idrc_jax.results import audit_rows, recertify, runs
from idrc_jax.sampling import devices, random_keys
from idrc_jax.training import validation

SCHEME = schemes.L1(sigma=0.5, ref=0.5, exact=True)
SETTINGS = Settings(Fixed(n0=20, n=300), seed=4)
INDICES = np.arange(0, 60, 6)


@pytest.fixture(scope="module")
def certified(linear, dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("exact")
    assert certify_dataset(linear, SCHEME, dataset, INDICES, SETTINGS, workdir, chunk=64)
    return results.read_results(workdir)


def test_the_manifest_says_so_and_rows_are_the_votes(linear, dataset, certified):
    assert certified.manifest["guarantee"]["exact"] is True
    key = random_keys.stage(random_keys.root(4), random_keys.ESTIMATION)
    images = data.to_unit(dataset.images[INDICES])
    votes = sampling.count_votes(linear, SCHEME, images, indices=INDICES, n=300, key=key)
    plain = sampling.count_votes(
        linear, dataclasses.replace(SCHEME, exact=False), images, indices=INDICES, n=300, key=key
    )
    for row, count, other in zip(certified.rows, votes, plain, strict=True):
        assert [row.votes.get(k, 0) for k in (0, 1, 2, -1)] == count.tolist()
        assert np.abs(count - other).max() < 60  # the law is nearly the same, the draws are others
    assert not np.array_equal(votes, plain)
    assert runs.labels([certified]) == ["l1, σ = 0.5, exact noise"]
    assert not config.base().noise.exact
    assert "exact" not in schemes.describe(schemes.Gaussian(sigma=0.5))  # as in manifests before


def test_a_run_goes_on_under_exact_noise_alone(linear, dataset, tmp_path):
    half = INDICES[:4]
    assert certify_dataset(linear, SCHEME, dataset, half, SETTINGS, tmp_path, chunk=64)
    first = results.read_results(tmp_path).rows
    with pytest.raises(ValueError, match="exact was True, is unset"):
        certify_dataset(linear, dataclasses.replace(SCHEME, exact=False), dataset, INDICES, SETTINGS, tmp_path)
    assert certify_dataset(linear, SCHEME, dataset, INDICES, SETTINGS, tmp_path, chunk=16)
    assert results.read_results(tmp_path).rows[:4] == first


def test_certificates_anew_are_the_same(certified):
    assert recertify.recertify(certified).rows == certified.rows
    made = recertify.recertify(certified, alpha=0.05)
    assert made.manifest["guarantee"]["exact"] is True
    assert any(new.radius > old.radius for new, old in zip(made.rows, certified.rows, strict=True))


@pytest.mark.evidence
def test_an_audit_looks_at_images_of_the_grid(linear, dataset, certified, tmp_path):
    settings = audit.Settings(
        images=6, fractions=(1.0, 4.0), radii=(0.3,), votes=400, screening=100, steps=4, samples=8, restarts=1
    )
    assert audit.audit_certificates(
        linear, dataset, INDICES, certified, settings, tmp_path, chunk=512, mesh=devices.mesh(1)
    )
    audited = audit_rows.read_audit(tmp_path)
    assert audited.manifest["certificates"]["exact"] is True
    assert not any(row.broken for row in audited.rows if row.kind == "radius" and row.fraction == 1)
    assert any(row.broken for row in audited.rows if row.fraction == 4)
    saved = audit_rows.read_images(tmp_path)
    weights = np.asarray(linear.params, np.float64)
    assert len(saved["idx"]) > 2
    for i, image in enumerate(saved["image"]):
        normal_thresholds.check_on_grid(image[None])
        logits = weights @ image.astype(float).ravel()
        assert logits[saved["rival"][i]] > logits[saved["predict"][i]]


@pytest.mark.parametrize("reach", [0.001, 0.05, 0.3, 2.0])
def test_points_of_the_grid_fill_their_balls(reach):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 8, 8, 3)).astype(np.float32) / np.float32(255)
    shifts = random.normal(size=images.shape)
    shifts[0] = 1  # all values alike
    shifts[1] = 0
    targets = attacks.Targets(images, np.arange(6), np.zeros(6, int), np.full(6, reach), exact=True)
    found = attacks.within(targets, images + shifts, stretch=True)
    normal_thresholds.check_on_grid(found)
    reached = attacks.distances(images, found)
    assert np.all(reached < reach)
    assert reached[1] == 0
    if reach > 1 / 255:
        assert np.all(reached[[0, 2, 3, 4, 5]] > 0.85 * reach)
        moved = (found - images)[2:].reshape(4, -1)
        along = np.sum(moved * shifts[2:].reshape(4, -1), axis=1)
        lengths = np.linalg.norm(moved, axis=1) * np.linalg.norm(shifts[2:].reshape(4, -1), axis=1)
        assert np.all(along > 0.5 * lengths)
    near = attacks.within(targets, images + 0.5 * reach * shifts / np.linalg.norm(shifts[2]))
    assert np.all(attacks.distances(images, near)[2:] < 0.7 * reach)


def test_validation_draws_exact_noise_of_8_bit_images():
    def bright(params, images):
        return jnp.stack([0.5 - images.mean((1, 2, 3)), images.mean((1, 2, 3)) - 0.5], axis=1)

    images, labels = np.full((9, 2, 2, 1), 140, np.uint8), np.ones(9, int)

    def scored(scheme, images=images):
        validator = validation.Validator(
            images, labels, np.arange(9), scheme, 0, devices.mesh(1), 64, lambda _: Classifier(bright, (), 2, (2, 2, 1))
        )
        return validator({})

    plain, exact = (scored(schemes.Gaussian(sigma=1.0, exact=exact)) for exact in (False, True))
    assert exact.accuracy_clean == 1
    assert exact.accuracy_noisy == pytest.approx(plain.accuracy_noisy, abs=0.1)
    assert exact.accuracy_noisy != plain.accuracy_noisy
    with pytest.raises(ValueError, match="Expected 8-bit images under exact noise"):
        scored(schemes.Gaussian(sigma=1.0, exact=True), np.full((9, 2, 2, 1), 0.3, np.float32))


def test_the_setting_makes_the_scheme_exact_or_is_refused_by_name():
    settings = config.load("quickstart.py")
    settings.noise.exact = True
    assert config.noise_scheme(settings) == config.training_scheme(settings)
    assert config.noise_scheme(settings).exact
    settings.train.scheme = "l2"  # another law than that of the votes
    assert not config.training_scheme(settings).exact
    settings.noise.scheme = "l2"
    with pytest.raises(ValueError, match=r"^Expected noise\.exact = False for the scheme l2, whose law is half_normal"):
        config.noise_scheme(settings)
    assert "noise.exact" in run_memory.REMEMBERED
    line = running.refused(certify.main, "--config=configs/quickstart.py", "--config.noise.scheme=uniform",
                           "--config.noise.exact=true", "--config.devices=1", "--workdir=/nowhere")  # fmt: skip
    assert "noise.exact" in line


def test_schemes_of_the_users_own_can_be_exact():
    made = schemes.with_exact_noise(own_schemes.Own(sigma=0.3))
    described = json.loads(json.dumps(schemes.describe(made)))
    assert described["exact"] is True
    found = user_schemes.of_results(described, "own_schemes:Own")
    assert found == made
    assert found.exact


@pytest.mark.evidence
def test_predictions_are_of_the_exact_law(linear, dataset):
    images = data.to_unit(dataset.images[INDICES])
    made = certification.predict(linear, SCHEME, images, n=400, seed=3, progress=False)
    weights = np.asarray(linear.params, np.float64)
    clean = np.argmax(images.reshape(10, -1) @ weights.T, axis=1)
    assert np.mean(made >= 0) > 0.5
    assert all(one in (-1, truth) for one, truth in zip(made.tolist(), clean.tolist(), strict=True))
