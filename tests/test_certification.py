import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import idrc_jax as idrc
from idrc_jax import certification, data, devices, prng, results, sampling, schemes, statistics
from idrc_jax.certification import Settings, certify_dataset
from idrc_jax.checkpoints import Classifier
from idrc_jax.plans import Fixed, SelectionFree, ToPrecision, ToRadius

SCHEME = schemes.Gaussian(sigma=0.5)
SETTINGS = Settings(Fixed(n0=20, n=300), alpha=0.001, seed=4)
INDICES = np.arange(0, 60, 3)


@pytest.fixture(scope="module")
def dataset():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
    return data.from_arrays(images, generator.integers(0, 3, 60), name="made", classes=3)


def run(linear, dataset, workdir, settings=SETTINGS, scheme=SCHEME, indices=INDICES, **more):
    workdir.mkdir(exist_ok=True)
    return certify_dataset(linear, scheme, dataset, indices, settings, workdir, chunk=16, **more)


def without_time(workdir, name="certificates.tsv"):
    rows = results.read_results(workdir / name).rows
    return {row.idx: dataclasses.replace(row, time=0.0) for row in rows}


def test_rows_are_the_certificates_in_memory(linear, dataset, tmp_path):
    """The host loop writes what `certify` and `count_votes` say, image by image."""
    assert run(linear, dataset, tmp_path)
    rows = without_time(tmp_path)
    assert list(rows) == INDICES.tolist()
    images = data.to_unit(dataset.images[INDICES])
    certificates = idrc.certify(
        linear, SCHEME, images, indices=INDICES, n0=20, n=300, alpha=0.001, key=prng.root(4), chunk=64
    )
    votes = sampling.count_votes(
        linear, SCHEME, images, indices=INDICES, n=300, key=prng.stage(prng.root(4), prng.ESTIMATION)
    )
    for idx, certificate, count in zip(INDICES, certificates, votes, strict=True):
        expected = results.Row.from_certificate(certificate, int(idx), int(dataset.labels[idx]), 0.0)
        assert rows[idx] == expected
        assert certificate.votes == tuple(count)
        assert certificate.p_lower == statistics.clopper_pearson_lower(count[certificate.selected], 300, 0.001)


def test_no_certificate_exceeds_the_truth(linear, dataset, tmp_path):
    """For a linear classifier the smoothed prediction is the unsmoothed one, and the true radius is its margin."""
    assert run(linear, dataset, tmp_path, Settings(Fixed(n0=100, n=3000), seed=1))
    weights = np.asarray(linear.params, np.float64)
    certified = 0
    for row in results.read_results(tmp_path).rows:
        logits = weights @ (dataset.images[row.idx].astype(np.float64) / 255).ravel()
        if row.predict == statistics.ABSTAIN:
            assert row.radius == 0
            continue
        certified += 1
        gaps = [
            (logits[row.predict] - logits[k]) / np.linalg.norm(weights[row.predict] - weights[k])
            for k in range(3)
            if k != row.predict
        ]
        assert row.radius <= min(gaps)
    assert certified > 5


def test_coverage_of_the_whole_chain_by_simulation(linear, dataset):
    """A half-space with known class probability: in 1500 runs the bound fails at most alpha of the time."""
    image = np.full((1, 4, 4, 1), 0.5, np.float32)
    sign = Classifier(
        lambda params, images: jnp.stack([images[:, 0, 0, 0] - 0.3, 0.3 - images[:, 0, 0, 0]], axis=1), (), 2, (4, 4, 1)
    )
    truth, runs, alpha = 0.2, 1500, 0.05  # the boundary is .2 away
    indices = np.arange(runs)
    certificates = idrc.certify(
        sign, SCHEME, np.repeat(image, runs, 0), indices=indices, n0=5, n=100, alpha=alpha, key=prng.root(0), chunk=2048
    )
    wrong = np.mean([certificate.radius > truth for certificate in certificates])
    assert wrong <= alpha + 3 * np.sqrt(alpha / runs)
    assert wrong > alpha / 5
    assert np.mean([c.radius for c in certificates]) > truth / 4


def test_going_on_gives_the_file_of_one_run_whatever_the_devices(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path / "whole")
    assert run(linear, dataset, tmp_path / "parts", indices=INDICES[:7], mesh=devices.mesh(1))
    assert run(linear, dataset, tmp_path / "parts", mesh=devices.mesh(3))
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")
    manifest = results.read_results(tmp_path / "parts").manifest
    assert [session["devices"] for session in manifest["sessions"]] == [1, 3]


def test_processes_share_the_images_and_merge_to_the_same_file(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path / "whole")
    for process in range(3):
        assert run(linear, dataset, tmp_path / "many", process=process, processes=3)
        status = json.loads((tmp_path / "many" / f"certify_status.{process}-of-3.json").read_text())
        assert status == {"job": "certify", "finished": True, "done": len(INDICES[process::3]), "total": status["done"]}
    results.merge(sorted((tmp_path / "many").glob("certificates.*.tsv")), tmp_path / "many")
    assert without_time(tmp_path / "many") == without_time(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": dataclasses.replace(SETTINGS, plan=Fixed(n0=20, n=400))}, "n was 300, is 400"),
        ({"settings": dataclasses.replace(SETTINGS, seed=5)}, "seed was 4, is 5"),
        ({"scheme": schemes.Gaussian(sigma=0.25)}, r"sigma was 0\.5, is 0\.25"),
        ({"scheme": schemes.L1(sigma=0.5)}, "scheme was gaussian, is l1"),
    ],
)
def test_going_on_under_another_guarantee_is_refused(linear, dataset, tmp_path, changed, message):
    assert run(linear, dataset, tmp_path, indices=INDICES[:2])
    with pytest.raises(ValueError, match=message):
        run(linear, dataset, tmp_path, **changed)
    assert len(without_time(tmp_path)) == 2


def test_going_on_with_other_pixels_or_weights_is_refused(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path, indices=INDICES[:2])
    images = dataset.images.copy()
    images[59] = 255 - images[59]
    with pytest.raises(ValueError, match="data_sha256"):
        run(linear, dataclasses.replace(dataset, images=images), tmp_path)
    with pytest.raises(ValueError, match="weights_sha256"):
        run(dataclasses.replace(linear, sha256="other"), dataset, tmp_path)


def test_a_time_limit_stops_between_images_and_says_how_far(linear, dataset, tmp_path, monkeypatch):
    class ThreeImages(certification.Deadline):
        ticks = 0

        def tick(self, count=1):
            self.ticks += count

        def over(self, *, margin_ticks=1):
            return self.ticks >= 3

    with monkeypatch.context() as patched:
        patched.setattr(certification, "Deadline", ThreeImages)
        assert not run(linear, dataset, tmp_path)
    done = len(without_time(tmp_path))
    assert 3 <= done < 20  # a dispatch holds many images of a few samples
    assert json.loads((tmp_path / "certify_status.json").read_text()) == {
        "job": "certify", "finished": False, "done": done, "total": 20,
    }  # fmt: skip
    assert run(linear, dataset, tmp_path)
    assert run(linear, dataset, tmp_path)
    assert len(without_time(tmp_path)) == 20


def test_a_limit_too_short_for_one_image_is_refused(linear, dataset, tmp_path):
    with pytest.raises(ValueError, match="the time of one image here"):
        run(linear, dataset, tmp_path, Settings(Fixed(n0=20, n=3_000_000)), max_minutes=0.001)


def test_a_call_without_time_for_any_work_fails_rather_than_be_repeated_for_ever(
    linear, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(certification.Deadline, "over", lambda *_, **__: True)
    with pytest.raises(ValueError, match="room for any work"):
        run(linear, dataset, tmp_path, max_minutes=9)
    monkeypatch.undo()
    assert run(linear, dataset, tmp_path, max_minutes=9)


@pytest.mark.parametrize(
    "plan",
    [SelectionFree(n=300), ToRadius(n=20_000, radii=(0.1, 0.4)), ToPrecision(n=20_000), ToRadius(sequence="union")],
    ids=lambda plan: f"{plan.name}-{getattr(plan, 'sequence', '')}",
)
def test_every_plans_votes_are_the_first_of_the_fixed_ones_whatever_the_devices(linear, dataset, tmp_path, plan):
    settings = Settings(plan, seed=4)
    indices = INDICES[:12]
    assert run(linear, dataset, tmp_path / "a", settings, indices=indices[:5], mesh=devices.mesh(1))
    assert run(linear, dataset, tmp_path / "a", settings, indices=indices, mesh=devices.mesh(4))
    rows = without_time(tmp_path / "a")
    assert run(linear, dataset, tmp_path / "b", settings, indices=indices[::-1])
    assert without_time(tmp_path / "b") == rows
    certificates = idrc.certify(
        linear, SCHEME, data.to_unit(dataset.images[indices]), indices=indices, plan=plan, key=prng.root(4), chunk=64
    )
    assert len({row.n for row in rows.values()}) > (0 if plan.name == "selection_free" else 1)
    for index, certificate in zip(indices, certificates, strict=True):
        row = rows[index]
        assert row == results.Row.from_certificate(certificate, int(index), row.label, 0.0)
        assert (row.n0, row.n in plan.looks()) == (0, True)
        first = sampling.count_votes(
            linear,
            SCHEME,
            data.to_unit(dataset.images[index : index + 1]),
            indices=np.array([index]),
            n=row.n,
            key=prng.stage(prng.root(4), prng.ESTIMATION),
        )
        assert certificate.votes == tuple(first[0])
        assert row.selected == statistics.select(first[0])
        assert row.p_lower == plan.lower(max(first[0][:-1]), row.n, 0.001)


def test_a_plan_without_selection_refuses_the_two_sided_certificate(linear, dataset, tmp_path):
    with pytest.raises(ValueError, match="plan fixed for a two_sided certificate, got to_radius"):
        run(linear, dataset, tmp_path, Settings(ToRadius(), certificate="two_sided"))


def test_selection_and_estimation_use_different_noise(linear, dataset, tmp_path):
    image, index = data.to_unit(dataset.images[:1]), np.array([0])
    (certificate,) = idrc.certify(linear, SCHEME, image, indices=index, n0=300, n=300, key=prng.root(0))
    selection = sampling.count_votes(
        linear, SCHEME, image, indices=index, n=300, key=prng.stage(prng.root(0), prng.SELECTION)
    )
    assert certificate.votes != tuple(selection[0])


def test_input_dependent_noise_gets_its_level_and_a_radius_below_the_published(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path, scheme=schemes.L1(sigma=1.0))
    rows = results.read_results(tmp_path).rows
    assert any(row.radius > 0 for row in rows)
    for row in rows:
        assert 0 <= row.radius <= 0.6 * row.radius_published
        level = np.float32(dataset.images[row.idx].astype(np.float64).mean() / 255)
        assert row.sigma_x == pytest.approx(float(level), rel=1e-6)


def test_predict_returns_classes_or_abstains(linear, dataset):
    images = data.to_unit(dataset.images[INDICES])
    many = idrc.predict(linear, SCHEME, images, indices=INDICES, n=2000, key=prng.root(0))
    few = idrc.predict(linear, SCHEME, images, indices=INDICES, n=5, key=prng.root(0))
    truth = np.argmax(images.reshape(20, -1) @ np.asarray(linear.params).T, axis=1)
    assert set(few) == {-1}
    assert np.all((many == truth) | (many == -1))
    assert np.mean(many == truth) > 0.5


def test_adaptive_prediction_stops_early_and_agrees(linear, dataset):
    images = data.to_unit(dataset.images[INDICES])
    fixed = idrc.predict(linear, SCHEME, images, indices=INDICES, n=3000, key=prng.root(0))
    adaptive = idrc.predict(linear, SCHEME, images, indices=INDICES, n=3000, adaptive=True, key=prng.root(0))
    both = (fixed >= 0) & (adaptive >= 0)
    assert np.array_equal(fixed[both], adaptive[both])
    assert np.mean(both) > 0.5


def test_a_dry_run_counts_and_writes_nothing(linear, dataset, tmp_path):
    said = certification.estimate(linear, SCHEME, dataset, INDICES, SETTINGS, chunk=16)
    assert (said.images, said.samples) == (20, 20 * 320)
    assert said.seconds == pytest.approx(said.samples / said.samples_per_second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"plan": Fixed(n=9)},
            r"certify\.n >= 10, the fewest samples that can certify anything at alpha = 0\.001, got 9",
        ),
        ({"alpha": 0.0}, "0 < certify.alpha < 1"),
        ({"alpha": 1.0}, "0 < certify.alpha < 1"),
        ({"plan": SelectionFree(n=10)}, r"certify\.n >= 11"),
        ({"plan": ToRadius(n=12)}, r"certify\.n >= 13"),
        ({"plan": Fixed(n=0)}, r"certify\.n >= 1, got 0"),
    ],
)
def test_settings_that_cannot_certify_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_images_without_an_index_each_are_refused(linear, dataset):
    images = data.to_unit(dataset.images[INDICES])
    for function in (idrc.certify, idrc.predict):
        with pytest.raises(ValueError, match="one index an image"):
            function(linear, SCHEME, images, indices=INDICES[:3], n=100, key=prng.root(0))


def test_data_that_do_not_fit_are_refused(linear, dataset, tmp_path):
    with pytest.raises(ValueError, match=r"images of shape \(4, 4, 1\)"):
        run(linear, dataclasses.replace(dataset, images=dataset.images[:, :3]), tmp_path)
    with pytest.raises(ValueError, match="below the classifier's 3 classes, got 7"):
        run(linear, dataclasses.replace(dataset, labels=dataset.labels + 5), tmp_path)
    with pytest.raises(ValueError, match="0 <= process < processes"):
        run(linear, dataset, tmp_path, process=2, processes=2)
    assert list(tmp_path.iterdir()) == []
