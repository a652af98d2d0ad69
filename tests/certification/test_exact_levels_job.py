"""Exact noise under schemes of several levels, from images to rows, predictions and audits."""

import dataclasses
import json

import jax.numpy as jnp
import level_runs
import numpy as np
import pytest
import running
from level_runs import without_time

from idrc_jax import audit, certification, config, data, results, sampling
from idrc_jax.certificates import confidence_bounds, schemes
from idrc_jax.commands import certify
from idrc_jax.core import normal_thresholds
from idrc_jax.models import Classifier
from idrc_jax.results import audit_rows, recertify, runs
from idrc_jax.sampling import devices, exact_noise, random_keys, votes
from idrc_jax.sampling.vote_counter import Draw, VoteCounter

SCHEMES = {
    "cascade": schemes.Cascade(sigma=0.5, levels=(1.0, 0.3), thresholds=(0.6,), exact=True),
    "routed": schemes.Routed(sigma=0.5, levels=(0.3, 1.0), router_level=0.4, exact=True),
}
EDGES = (120.5, 90.5)  # grey levels at which class and router's answer change, of one value each


def class_logits(params, images):
    lead = params - 255 * images[:, 0, 0, 0]
    return jnp.stack([lead, -lead, jnp.full_like(lead, -1e4)], axis=1)


def router_logits(params, images):
    lead = params - 255 * images[:, 1, 1, 0]
    return jnp.stack([lead, -lead], axis=1)


def classifier():
    """Half-spaces: the class by one value of the image, the level by another."""
    own, router = (
        Classifier(logits, jnp.float32(edge), classes, (4, 4, 1))
        for logits, edge, classes in zip((class_logits, router_logits), EDGES, (3, 2), strict=True)
    )
    return own.routed_by(router)


def gaps(images):
    """How far class and router's answer are from changing, at 8-bit images: [N] each."""
    grey = images.astype(np.float64)
    return np.abs(grey[:, 0, 0, 0] - EDGES[0]) / 255, np.abs(grey[:, 1, 1, 0] - EDGES[1]) / 255


@pytest.fixture(scope="module")
def dataset():
    return level_runs.made_images()


@pytest.fixture(scope="module", params=list(SCHEMES))
def run(request, dataset, tmp_path_factory):
    """A scheme, and a run of half-spaces under it."""
    scheme = SCHEMES[request.param]
    return scheme, level_runs.certify(classifier(), scheme, dataset, tmp_path_factory.mktemp(request.param))


def test_votes_of_each_level_are_those_of_its_own_exact_noise(run, dataset):
    scheme, read = run
    assert read.manifest["guarantee"]["exact"] is True
    levels = {"cascade": "0.5, 0.15", "routed": "0.15, 0.5"}[scheme.name]
    assert runs.labels([read]) == [f"{scheme.name}, σ = {levels}, exact noise"]
    levels, images, seen = schemes.drawn_levels(scheme, 0.0), data.to_unit(dataset.images), set()
    for row in read.rows[:8]:
        for one in row.votes_by_level:
            seen.add(one.level)
            network = classifier().router if scheme.name == "routed" and one.level == 0 else classifier()
            stage = random_keys.stage_of_level(random_keys.ESTIMATION, one.level)
            counted = sampling.count_votes(
                network, schemes.Gaussian(levels[one.level], exact=True), images[[row.idx]],
                indices=np.array([row.idx]), n=sum(one.votes.values()), chunk=64,
                key=random_keys.stage(random_keys.root(5), stage),
            )[0]  # fmt: skip
            assert {k: int(v) for k, v in enumerate(counted[:-1]) if v} == one.votes
    assert len(seen) == len(levels)


def test_radii_end_before_the_half_spaces_do_and_not_far_before(run, dataset):
    """Under the rounded normal law a half-space of one value has the probability of its distance, to the last digit."""
    _, read = run
    truth, _ = gaps(dataset.images)  # under every level, so that no router changes it
    clean = (dataset.images[:, 0, 0, 0] > EDGES[0]).astype(int)
    certified = [row for row in read.rows if row.radius > 0]
    assert len(certified) > 12
    assert all(row.predict == clean[row.idx] and row.radius <= truth[row.idx] for row in certified)
    assert max(row.radius / truth[row.idx] for row in certified) > 0.6


def test_the_same_votes_of_float32_noise_have_radii_no_smaller(run):
    _, read = run
    assert repr(recertify.recertify(read).rows) == repr(read.rows)
    manifest = json.loads(json.dumps(read.manifest))
    del manifest["guarantee"]["exact"]
    other = recertify.recertify(dataclasses.replace(read, manifest=manifest))
    pairs = [(row, free) for row, free in zip(read.rows, other.rows, strict=True) if free.radius > 0]
    assert all(free.radius * (1 - 1e-9) < row.radius < free.radius for row, free in pairs)
    manifest["guarantee"] |= {"exact": True, "dim": 10**12}
    other = recertify.recertify(dataclasses.replace(read, manifest=manifest))
    pairs = [(row, paid) for row, paid in zip(read.rows, other.rows, strict=True) if paid.radius > 0]
    assert all(paid.radius <= row.radius for row, paid in pairs)
    assert max(row.radius / paid.radius for row, paid in pairs) > 1.0001


def test_a_run_goes_on_under_exact_noise_alone_in_any_order_and_chunk(run, dataset, tmp_path):
    scheme, read = run
    level_runs.certify(classifier(), scheme, dataset, tmp_path, indices=range(12)[::-1], chunk=32)
    with pytest.raises(ValueError, match="exact was True, is unset"):
        level_runs.certify(classifier(), schemes.with_exact_noise(scheme, False), dataset, tmp_path)
    path = tmp_path / "certificates.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:7])[:-3])  # killed within a row
    with pytest.warns(UserWarning, match="cut off"):
        results.read_results(tmp_path)
    assert without_time(level_runs.certify(classifier(), scheme, dataset, tmp_path, chunk=200)) == without_time(read)


def test_programs_of_all_levels_are_compiled_before_a_run_is_timed(dataset):
    scheme, images = schemes.Cascade(sigma=1.0, levels=(2.0, 0.3), exact=True), data.to_unit(dataset.images)
    tables = [exact_noise.tables([level]).thresholds.shape for level in schemes.drawn_levels(scheme, 0.0)]
    assert tables[0] != tables[1]
    counter = VoteCounter(
        sampling.unmeasured(classifier(), devices.mesh(1), 48), scheme, images, schemes.host_levels(scheme, images)[1],
        indices=np.arange(24), key=random_keys.root(0),
    )  # fmt: skip
    counter.rates()
    compiled = votes._votes_on_mesh._cache_size()
    for level in (0, 1):
        counter.start(Draw(random_keys.ESTIMATION, level, [0], [0], [48])).block_until_ready()
    assert votes._votes_on_mesh._cache_size() == compiled


@pytest.mark.parametrize("name", SCHEMES)
def test_predictions_are_the_half_spaces_or_abstentions_and_floats_are_refused(dataset, name):
    images = data.to_unit(dataset.images)
    clean = (dataset.images[:, 0, 0, 0] > EDGES[0]).astype(int)
    smoothed = certification.SmoothedClassifier(classifier(), SCHEMES[name], n=500, n_predict=500, alpha=0.01, chunk=64)
    made = smoothed.predict(images, seed=4).classes
    named = made != confidence_bounds.ABSTAIN
    assert named.sum() > 12
    np.testing.assert_array_equal(made[named], clean[named])
    with pytest.raises(ValueError, match="Expected 8-bit images under exact noise"):
        certification.predict(classifier(), SCHEMES[name], images * np.float32(0.99), n=500, progress=False)


@pytest.mark.evidence
@pytest.mark.parametrize("name", SCHEMES)
def test_an_audit_finds_breaks_on_the_grid_beyond_the_radii_alone(dataset, tmp_path, name):
    level_runs.certify(classifier(), SCHEMES[name], dataset, tmp_path / "run", "fixed")
    read = results.read_results(tmp_path / "run")
    settings = audit.Settings(
        images=8, fractions=(1.0, 6.0), radii=(), votes=400, screening=100, steps=4, samples=8, restarts=1
    )
    assert audit.audit_certificates(
        classifier(), dataset, np.arange(24), read, settings, tmp_path / "audit", chunk=512, mesh=devices.mesh(1)
    )
    audited = audit_rows.read_audit(tmp_path / "audit")
    assert audited.manifest["certificates"]["exact"] is True
    assert not any(row.broken for row in audited.rows if row.fraction == 1)
    assert any(row.broken for row in audited.rows if row.fraction == 6)
    saved = audit_rows.read_images(tmp_path / "audit")
    assert len(saved["idx"]) > 1
    for image, predict in zip(saved["image"], saved["predict"], strict=True):
        normal_thresholds.check_on_grid(image[None])
        assert (255 * image[0, 0, 0] > EDGES[0]) != predict


def test_the_setting_makes_either_scheme_exact_or_names_the_level_that_is_too_large():
    settings = config.load("quickstart.py")
    settings.noise.exact = True
    for name in SCHEMES:
        settings.noise.scheme = name
        made = config.noise_scheme(settings)
        assert made.exact
        assert schemes.from_description(schemes.describe(made)) == made
    line = running.refused(certify.main, "--config=configs/quickstart.py", "--config.noise.scheme=cascade",
                           "--config.noise.sigma=9", "--config.noise.levels=(2.0, 1.0)", "--config.noise.exact=true",
                           "--config.devices=1", "--workdir=/nowhere")  # fmt: skip
    assert "noise.sigma times each of noise.levels <= 16 under exact noise, got 18" in line
