"""A variant certified from another network's run and pairs of both."""

import dataclasses
import re
from pathlib import Path

import budgets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_certification_job import without_time

from idrc_jax import certification, data, results
from idrc_jax.certificates import Pairs, schemes
from idrc_jax.certificates.sampling_plans import Fixed, ToRadius
from idrc_jax.certification import Settings, certify_variant, incremental, job
from idrc_jax.models import Classifier
from idrc_jax.results import metrics, recertify, summary_table
from idrc_jax.sampling import noise_laws, random_keys
from idrc_jax.sampling.batch_systems import Worker

SCHEME = schemes.Gaussian(sigma=0.5)
SETTINGS = Settings(Fixed(n0=20, n=3000), alpha=0.01, seed=4)
INDICES = np.arange(0, 60, 4)
PAIRS = Pairs(n=200, share=0.25)


@pytest.fixture(scope="module")
def variant(linear):
    """A network of nearly the same weights, whose answer is none for images with a large first value."""
    moved = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)

    def apply_fn(params, images):
        holes = images[:, :1, 0, 0] > 2.2
        return jnp.where(holes, jnp.nan, linear.apply_fn(params, images))

    return dataclasses.replace(linear, apply_fn=apply_fn, params=linear.params + 0.1 * moved)


@pytest.fixture(scope="module")
def read(linear, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    certification.certify_dataset(linear, SCHEME, dataset, INDICES, SETTINGS, folder, chunk=64)
    return results.read_results(folder)


def certify(variant, linear, read, dataset, workdir, settings=SETTINGS, indices=INDICES, scheme=SCHEME, **more):
    workdir.mkdir(exist_ok=True)
    return certify_variant(
        variant, linear, read, scheme, dataset, indices, settings, workdir, **{"pairs": PAIRS, "chunk": 64, **more}
    )


def answers(params, noisy, holes):
    """By float64 sums of products: the class, -1 for none."""
    logits = noisy.reshape(len(noisy), -1).astype(np.float64) @ np.asarray(params, np.float64).T
    return np.where(holes & (noisy[:, 0, 0, 0] > 2.2), -1, np.argmax(logits, axis=1))


def test_rows_are_what_both_networks_answer_to_the_same_noise(linear, variant, dataset, read, tmp_path):
    """Noise drawn here, sample by sample; answers and bounds by NumPy and SciPy."""
    assert certify(variant, linear, read, dataset, tmp_path)
    made = results.read_results(tmp_path)
    key, differed = random_keys.stage(random_keys.root(4), random_keys.PAIRING), 0
    for row, old in zip(made.rows, read.rows, strict=True):
        assert (row.idx, row.votes, row.selected, row.n) == (old.idx, old.votes, old.selected, 3000)
        keys = jax.vmap(lambda sample, idx=row.idx: random_keys.sample(key, idx, sample))(jnp.arange(200))
        noise = jax.vmap(lambda one: noise_laws.draw("normal", one, jnp.float32(0.5), (4, 4, 1)))(keys)
        noisy = data.to_unit(dataset.images[[row.idx]]) + np.asarray(noise)
        first, second = answers(linear.params, noisy, False), answers(variant.params, noisy, True)
        classes, counts = np.unique(first[first != second], return_counts=True)
        assert row.differing == dict(zip(classes.tolist(), counts.tolist(), strict=True))
        lost = row.differing.get(row.selected, 0)
        own = row.votes.get(row.selected, 0)
        lower = stats.beta.ppf(0.0075, own, 3001 - own) - stats.beta.ppf(1 - 0.0025, lost + 1, 200 - lost)
        assert row.p_lower == pytest.approx(max(lower, 0), rel=1e-9)
        assert row.radius == pytest.approx(0.5 * stats.norm.ppf(lower) if lower > 0.5 else 0, rel=1e-9)
        assert row.predict == (row.selected if lower > 0.5 else -1)
        differed += len(classes)
    assert differed > 5
    assert sum(row.radius > 0 for row in made.rows) > 3


def test_no_radius_exceeds_the_variants_truth(linear, dataset, read, tmp_path):
    """A variant that is linear, too, whose prediction is the unsmoothed one and whose true radius its margin."""
    moved = np.random.default_rng(5).normal(size=(3, 16)).astype(np.float32)
    other = dataclasses.replace(linear, params=linear.params + 0.05 * moved)
    assert certify(other, linear, read, dataset, tmp_path, pairs=Pairs(n=1000))
    weights, certified = np.asarray(other.params, np.float64), 0
    for row in results.read_results(tmp_path).rows:
        logits = weights @ (dataset.images[row.idx].astype(np.float64) / 255).ravel()
        gaps = [
            (logits[row.selected] - logits[k]) / np.linalg.norm(weights[row.selected] - weights[k])
            for k in range(3)
            if k != row.selected
        ]
        assert row.radius <= max(min(gaps), 0)
        certified += row.radius > 0
    assert certified > 3


def test_a_run_that_was_cut_or_shared_goes_on(linear, variant, dataset, read, tmp_path, monkeypatch):
    assert certify(variant, linear, read, dataset, tmp_path / "whole")
    monkeypatch.setattr(job, "_SECONDS_A_PIECE", 1e-9)  # a stride: an image is several dispatches
    assert not certify(variant, linear, read, dataset, tmp_path / "parts", budget=budgets.Three())
    assert 0 < len(without_time(tmp_path / "parts")) < len(INDICES)
    for index in range(2):
        assert certify(variant, linear, read, dataset, tmp_path / "parts", worker=Worker(index, 2))
    results.merge(results.result_files(tmp_path / "parts"), tmp_path / "parts")
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"'n': 200.*'n': 300"):
        certify(variant, linear, read, dataset, tmp_path / "parts", pairs=Pairs(n=300, share=0.25))
    with pytest.raises(ValueError, match="paired"):  # nor do votes of its own
        certification.certify_dataset(variant, SCHEME, dataset, INDICES, SETTINGS, tmp_path / "parts")


def test_what_it_is_stands_in_rows_manifest_and_table(linear, variant, dataset, read, tmp_path):
    assert certify(variant, linear, read, dataset, tmp_path)
    made = results.read_results(tmp_path)
    guarantee, of_run = made.manifest["guarantee"], read.manifest["guarantee"]
    assert (guarantee["certificate"], guarantee["paired"]["n"], guarantee["paired"]["share"]) == (
        "incremental",
        200,
        0.25,
    )
    assert guarantee["paired"]["of"] == {"weights_sha256": of_run["weights_sha256"]}
    assert guarantee["weights_sha256"] != of_run["weights_sha256"]
    told = summary_table(made)
    differing = sum(sum(row.differing.values()) for row in made.rows)
    (agreement,) = re.findall(r"noise: (\S+) of 3,000 pairs", told)
    assert 0 <= 1 - differing / 3000 - float(agreement) < 1e-5
    assert "incremental" in told
    assert "of the votes of another network" in told
    assert "published" not in told  # it is the same, by definition
    assert "right under the noise" not in told  # its votes are the other network's
    assert metrics.base_accuracy(made) is None
    assert metrics.largest_probability(made) == pytest.approx(
        stats.beta.ppf(0.0075, 3000, 1) - stats.beta.ppf(1 - 0.0025, 1, 200), rel=1e-9
    )
    assert max(row.p_lower for row in made.rows) <= metrics.largest_probability(made)
    again = recertify.recertify(made)
    assert again.rows == made.rows
    lenient = recertify.recertify(made, alpha=0.1)
    assert all(a.p_lower >= b.p_lower for a, b in zip(lenient.rows, made.rows, strict=True))
    assert results.read_results(lenient.save(tmp_path / "lenient").path).rows == lenient.rows
    for arguments in ({"certificate": "one_sided"}, {"k": 1}):
        with pytest.raises(ValueError, match="Expected a network's own votes for another certificate"):
            recertify.recertify(made, **arguments)


@pytest.mark.parametrize(
    ("scheme", "plan"), [(SCHEME, ToRadius(n=2000, radii=(0.1, 0.2))), (schemes.L1(sigma=0.8), Fixed(n0=20, n=500))]
)
def test_other_plans_and_schemes_will_do(linear, variant, dataset, tmp_path, scheme, plan):
    """The bound at the look where the plan stopped, at its share of alpha; the radius by the scheme's own theorem."""
    settings = Settings(plan, alpha=0.01)
    certification.certify_dataset(linear, scheme, dataset, INDICES, settings, tmp_path / "run", chunk=64)
    read = results.read_results(tmp_path / "run")
    assert certify(variant, linear, read, dataset, tmp_path / "variant", settings, scheme=scheme)
    made = results.read_results(tmp_path / "variant")
    assert len({row.n for row in made.rows}) == (1 if plan.name == "fixed" else len({row.n for row in read.rows})) > 0
    for row in made.rows:
        of_run = plan.lower(row.votes.get(row.selected, 0), row.n, 0.0075)
        lost = row.differing.get(row.selected, 0)
        lower = of_run - stats.beta.ppf(1 - 0.0025, lost + 1, 200 - lost)
        assert row.p_lower == pytest.approx(max(lower, 0), rel=1e-9)
        assert row.radius <= row.sigma_x * max(stats.norm.ppf(row.p_lower), 0)
    assert any(row.radius > 0 for row in made.rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"linear": "variant"}, "weights_sha256 was"),
        ({"settings": dataclasses.replace(SETTINGS, seed=5)}, "seed was 4, is 5"),
        ({"settings": dataclasses.replace(SETTINGS, plan=Fixed(n0=20, n=400))}, "n was 3000, is 400"),
        ({"scheme": schemes.Gaussian(sigma=0.25)}, r"sigma was 0\.5, is 0\.25"),
        ({"indices": np.arange(0, 60, 3)}, "a row of each image in .*, got none of 15 of them, 3 first"),
        ({"read": "manifest"}, r"Expected manifest\.json beside"),
        ({"read": "paired"}, "a network's own votes in .*, got an incremental one"),
        ({"read": "label"}, r"Expected image 4 of made/test in .* with its label \d, got \d"),
        ({"read": "k"}, ""),
    ],
)
def test_what_is_no_variant_of_the_run_is_refused(linear, variant, dataset, read, tmp_path, changed, message):
    given = {"linear": linear, "read": read} | changed
    guarantee = read.manifest["guarantee"]
    if given["linear"] == "variant":
        given["linear"] = variant
    if given["read"] == "manifest":
        given["read"] = dataclasses.replace(read, manifest=None)
    elif given["read"] == "paired":
        made = {**read.manifest, "guarantee": guarantee | {"paired": {}}}
        given["read"] = dataclasses.replace(read, manifest=made)
    elif given["read"] == "label":
        rows = tuple(dataclasses.replace(row, label=(row.label + (row.idx == 4)) % 3) for row in read.rows)
        given["read"] = dataclasses.replace(read, rows=rows)
    elif given["read"] == "k":  # another certificate of the same votes is none the worse
        given["read"] = recertify.recertify(read, k=2)
    if message:
        with pytest.raises(ValueError, match=message):
            certify(variant, dataset=dataset, workdir=tmp_path, **given)
        assert not (tmp_path / "certificates.tsv").exists()
    else:
        assert certify(variant, dataset=dataset, workdir=tmp_path, indices=INDICES[:2], **given)


def test_pairs_that_can_certify_nothing_are_refused(linear, variant, dataset, read, tmp_path):
    with pytest.raises(ValueError, match=r"more pairs than 1 .* only show a probability of 0\.\d+"):
        certify(variant, linear, read, dataset, tmp_path, pairs=Pairs(n=1))


def test_fewer_votes_that_name_another_class_count_the_pairs_that_lose_that_one():
    made = {
        "scheme": "gaussian", "sigma": 1.0, "ref": 1.0, "plan": "selection_free", "n": 200, "n0": 0, "alpha": 0.9,
        "dim": 3, "classes": 2, "certificate": "incremental", "seed": 0, "paired": {"n": 100, "share": 0.5, "of": {}},
    }  # fmt: skip
    rows = [
        results.Row(idx, 0, 0, 0.0, 1, 0.0, 0.0, 0, 1.0, 1.0, 0.4, 200, 0, {0: 100, 1: 100}, {1: 100})
        for idx in range(50)
    ]
    read = results.Results(
        tuple(rows), {"schema_version": 1, "guarantee": made, "sessions": []}, Path("certificates.tsv")
    )
    fewer = recertify.recertify(read, n=20)
    assert {row.selected for row in fewer.rows} == {0, 1}
    assert all(row.predict == -1 for row in fewer.rows if row.selected == 1)  # all pairs lose class 1


def test_networks_of_other_images_are_refused(linear, dataset, read, tmp_path):
    other = dataclasses.replace(linear, classes=4)
    with pytest.raises(ValueError, match=r"logits \[\d+, 4\]"):
        certify(other, linear, read, dataset, tmp_path)


def test_the_outcome_of_a_pair():
    """Every combination of two answers, none among them."""
    logits = {-1: [0.0, jnp.inf], 0: [1.0, 0.0], 1: [0.0, 1.0]}
    names = list(logits)
    table = jnp.asarray([logits[name] for name in names])

    def looking_at(place):
        return Classifier(lambda params, images: table[images[:, place, 0, 0].astype(jnp.int32)], (), 2, (2, 1, 1))

    both = np.array([(a, b) for a in range(3) for b in range(3)], np.float32).reshape(9, 2, 1, 1)
    outcome = np.argmax(incremental.paired(looking_at(0), looking_at(1))(jnp.asarray(both)), axis=1)
    expected = [3 if names[a] == -1 else 2 if a == b else names[a] for a in range(3) for b in range(3)]
    assert outcome.tolist() == expected
