"""Cascades from images to rows: which votes are drawn, and that nothing but the image and the settings decides."""

import dataclasses
import json
import shlex

import level_runs
import numpy as np
import pytest
from level_runs import PLANS, without_time

import idrc_jax as idrc
from idrc_jax import certification, data, report, results, sampling
from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes
from idrc_jax.certification import Settings
from idrc_jax.certification.in_memory import predict
from idrc_jax.report import run_summaries
from idrc_jax.results import equal_terms
from idrc_jax.results.runs import Run
from idrc_jax.sampling import random_keys

SCHEME = schemes.Cascade(sigma=0.5, levels=(1.0, 0.3), thresholds=(0.6,))


@pytest.fixture(scope="module")
def dataset():
    return level_runs.made_images()


def certify(linear, dataset, workdir, plan="to_radius", **more):
    return level_runs.certify(linear, SCHEME, dataset, workdir, plan, **more)


def test_no_two_stages_of_any_levels_share_a_key():
    stages = [value for name, value in vars(random_keys).items() if name.isupper() and not name.startswith("_")]
    assert len(set(stages)) == len(stages) >= 10
    numbers = {random_keys.stage_of_level(stage, level) for stage in stages for level in range(4)}
    assert len(numbers) == 4 * len(stages)
    assert {random_keys.stage_of_level(stage, 0) for stage in stages} == set(stages)


@pytest.mark.parametrize("plan", PLANS)
def test_votes_of_each_level_are_those_of_constant_noise_under_keys_of_their_own(linear, dataset, tmp_path, plan):
    read = certify(linear, dataset, tmp_path, plan)
    root, images = random_keys.root(5), data.to_unit(dataset.images)
    several = 0
    for row in read.rows:
        several += len(row.votes_by_level) > 1
        for one in row.votes_by_level:
            n = sum(one.votes.values())
            stage = random_keys.stage_of_level(random_keys.ESTIMATION, one.level)
            votes = sampling.count_votes(
                linear, schemes.Gaussian(SCHEME.sigma * SCHEME.levels[one.level]), images[[row.idx]],
                indices=np.array([row.idx]), n=n, key=random_keys.stage(root, stage), chunk=64,
            )[0]  # fmt: skip
            assert {k: int(v) for k, v in enumerate(votes[:-1]) if v} == one.votes
        decided = [one for one in row.votes_by_level if one.votes == row.votes]
        assert len(decided) >= 1
        assert row.samples == sum(sum(one.votes.values()) + row.n0 for one in row.votes_by_level)
    assert several > 3
    assert sum(row.radius > 0 for row in read.rows) > 8
    assert {row.sigma_x for row in read.rows if row.radius > 0} == set(schemes.drawn_levels(SCHEME, 0.0))


def test_rows_do_not_depend_on_chunk_order_restarts_or_workers(linear, dataset, tmp_path):
    level_runs.require_rows_that_depend_on_nothing_else(linear, SCHEME, dataset, tmp_path)


def test_stored_votes_give_the_rows_again_and_other_settings_are_refused(linear, dataset, tmp_path):
    read = certify(linear, dataset, tmp_path)
    assert repr(idrc.recertify.recertify(read).rows) == repr(read.rows)
    other = idrc.recertify.recertify(read, alpha=0.1)
    assert sum(new.radius for new in other.rows) > sum(old.radius for old in read.rows)
    with pytest.raises(ValueError, match="one level to take fewer votes"):
        idrc.recertify.recertify(read, n=500)
    with pytest.raises(ValueError, match="two_sided"):
        idrc.recertify.recertify(read, certificate="two_sided")
    settings = Settings(PLANS["to_radius"], 0.01, seed=5)
    changed = schemes.Cascade(sigma=0.5, levels=(1.0, 0.3), thresholds=(0.7,))
    with pytest.raises(ValueError, match=r"thresholds.*0\.6.*0\.7"):
        certification.certify_dataset(linear, changed, dataset, np.arange(24), settings, tmp_path, chunk=64)
    few = Settings(sampling_plans.Fixed(n=8), 0.01)
    with pytest.raises(ValueError, match=r"threshold 0\.6 of level 0\.5"):
        certification.certify_dataset(linear, SCHEME, dataset, np.arange(24), few, tmp_path / "few", chunk=64)
    table = results.summary_table(read)
    assert "cascade, levels 0.5, 0.15, " in table
    assert "The radius is from level 0.5 of " in table
    assert run_summaries.spending(read).samples == sum(row.samples for row in read.rows)
    assert {"--config.noise.levels=(1.0, 0.3,)", "--config.noise.thresholds=(0.6,)"} <= set(
        shlex.split(run_summaries.command(read))
    )
    assert results.largest_radius(read) >= max(row.radius for row in read.rows)
    lines = (tmp_path / "certificates.tsv").read_text().splitlines()
    (tmp_path / "certificates.tsv").write_text("\n".join([lines[0], lines[1].replace("0/", "1/", 1), ""]))
    with pytest.raises(ValueError, match="votes_by_level of image"):
        results.read_results(tmp_path)


@pytest.mark.parametrize("adaptive", [False, True])
def test_predictions_are_the_classes_of_certificates_or_abstentions(linear, dataset, tmp_path, adaptive):
    """Against the exact answers of the cascade, by many votes."""
    images, every = data.to_unit(dataset.images), np.arange(24)
    shares = np.stack([
        sampling.count_votes(linear, schemes.Gaussian(SCHEME.sigma * level), images, indices=every, n=20_000,
                             key=random_keys.root(9))[:, :3] / 20_000
        for level in SCHEME.levels
    ], axis=1)  # fmt: skip
    sure = shares > np.array([0.6, 0.5])[:, None]
    first = np.argmax(sure.any(axis=2), axis=1)
    truth = np.where(sure[every, first].any(axis=1), np.argmax(shares[every, first], axis=1), -1)
    made = predict(linear, SCHEME, images, n=1000, alpha=0.01, adaptive=adaptive, seed=3, progress=False)
    named = made != confidence_bounds.ABSTAIN
    assert named.sum() > 15
    np.testing.assert_array_equal(made[named], truth[named])
    smoothed = idrc.SmoothedClassifier(linear, SCHEME, n=500, n_predict=1000, alpha=0.01, chunk=64)
    known = smoothed.predict(images, seed=4).classes
    np.testing.assert_array_equal(known[known >= 0], truth[known >= 0])
    assert np.all(smoothed.certify(images[:4], seed=4).radii >= 0)
    with pytest.raises(ValueError, match=r"Expected n >= \d+, the fewest samples that can exceed"):
        predict(linear, SCHEME, images, n=10, alpha=0.01, adaptive=adaptive, progress=False)


def test_reports_and_comparisons_take_cascades(linear, dataset, tmp_path):
    read = certify(linear, dataset, tmp_path / "run")
    text = report.render([Run("mine", read)])
    assert "cut where a larger level could be sure of another class" in text
    gaussian = dataclasses.replace(read, manifest=json.loads(json.dumps(read.manifest)))
    gaussian.manifest["guarantee"] |= {"alpha": 0.1}
    said = equal_terms.offer(Run("a", read), Run("b", gaussian))
    assert said.endswith("which levels an image's votes go on to under cascade depends on n and alpha.")
    assert equal_terms.offer(Run("a", read), Run("b", read)) == ""


def test_votes_of_a_cascade_are_not_counted_as_if_it_had_one_level(linear, dataset):
    with pytest.raises(ValueError, match="a scheme of one level and one network, got cascade"):
        sampling.count_votes(
            linear, SCHEME, data.to_unit(dataset.images), indices=np.arange(24), n=10, key=random_keys.root(0)
        )


def test_the_same_in_memory_with_a_table_that_other_tools_read(linear, dataset, tmp_path):
    read = idrc.certify(
        linear, SCHEME, dataset.images, labels=dataset.labels, plan=PLANS["to_radius"], alpha=0.01, seed=5, chunk=64,
        progress=False,
    )  # fmt: skip
    certify(linear, dataset, tmp_path / "a")
    assert without_time(read) == without_time(results.read_results(tmp_path / "a"))
    assert without_time(results.read_results(read.save(tmp_path / "b").path)) == without_time(read)
