import dataclasses
import json

import budgets
import jax.numpy as jnp
import numpy as np
import pytest

import idrc_jax as idrc
from idrc_jax import certification, data, results, sampling
from idrc_jax.certificates import confidence_bounds, schemes
from idrc_jax.certificates.sampling_plans import Fixed, SelectionFree, ToPrecision, ToRadius
from idrc_jax.certification import Settings, certify_dataset, job
from idrc_jax.core.time_budget import Budget
from idrc_jax.models import Classifier
from idrc_jax.results import metrics, summary_table
from idrc_jax.sampling import devices, implementation_choice, random_keys
from idrc_jax.sampling.batch_systems import Worker

SCHEME = schemes.Gaussian(sigma=0.5)
SETTINGS = Settings(Fixed(n0=20, n=300), alpha=0.001, seed=4)
INDICES = np.arange(0, 60, 3)


def run(linear, dataset, workdir, settings=SETTINGS, scheme=SCHEME, indices=INDICES, **more):
    workdir.mkdir(exist_ok=True)
    return certify_dataset(linear, scheme, dataset, indices, settings, workdir, chunk=16, **more)


def counted(votes):
    """Votes [K + 1] as a row has them."""
    return {number if number < len(votes) - 1 else -1: int(count) for number, count in enumerate(votes) if count}


def without_time(workdir, name="certificates.tsv"):
    rows = results.read_results(workdir / name).rows
    return {row.idx: dataclasses.replace(row, time=0.0) for row in rows}


def test_rows_are_the_certificates_in_memory(linear, dataset, tmp_path):
    """The host loop writes what `certify` and `count_votes` say, image by image."""
    assert run(linear, dataset, tmp_path)
    rows = without_time(tmp_path)
    assert list(rows) == INDICES.tolist()
    images = data.to_unit(dataset.images[INDICES])
    labels = dataset.labels[INDICES]
    made = idrc.certify(
        linear, SCHEME, images, labels=labels, indices=INDICES, n0=20, n=300, alpha=0.001, seed=4, chunk=64
    )
    votes = sampling.count_votes(
        linear,
        SCHEME,
        images,
        indices=INDICES,
        n=300,
        key=random_keys.stage(random_keys.root(4), random_keys.ESTIMATION),
    )
    for idx, row, count in zip(INDICES, made.rows, votes, strict=True):
        assert rows[idx] == dataclasses.replace(row, time=0.0)
        assert row.votes == counted(count)
        assert row.p_lower == confidence_bounds.clopper_pearson_lower(count[row.selected], 300, 0.001)


def test_no_certificate_exceeds_the_truth(linear, dataset, tmp_path):
    """For a linear classifier the smoothed prediction is the unsmoothed one, and the true radius is its margin."""
    assert run(linear, dataset, tmp_path, Settings(Fixed(n0=100, n=3000), seed=1))
    weights = np.asarray(linear.params, np.float64)
    certified = 0
    for row in results.read_results(tmp_path).rows:
        logits = weights @ (dataset.images[row.idx].astype(np.float64) / 255).ravel()
        if row.predict == confidence_bounds.ABSTAIN:
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
    made = idrc.certify(
        sign,
        SCHEME,
        np.repeat(image, runs, 0),
        indices=indices,
        n0=5,
        n=100,
        alpha=alpha,
        seed=0,
        chunk=2048,
    )
    wrong = np.mean([row.radius > truth for row in made.rows])
    assert wrong <= alpha + 3 * np.sqrt(alpha / runs)
    assert wrong > alpha / 5
    assert np.mean([row.radius for row in made.rows]) > truth / 4


def test_going_on_gives_the_file_of_one_run_whatever_the_devices(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path / "whole")
    assert run(linear, dataset, tmp_path / "parts", indices=INDICES[:7], mesh=devices.mesh(1))
    assert run(linear, dataset, tmp_path / "parts", mesh=devices.mesh(3))
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")
    manifest = results.read_results(tmp_path / "parts").manifest
    assert [session["devices"] for session in manifest["sessions"]] == [1, 3]


def test_the_manifest_says_how_it_ran_and_what_was_measured(linear, dataset, tmp_path, monkeypatch):
    """What a measurement has left in the cache is used and told; a call with nothing to do measures nothing."""
    chosen = sampling.Execution(
        linear, devices.mesh(2), 16, {"xla on 2 devices, chunk 16": 99.5}, {"ours": "it crashed"}
    )
    asked = []

    def told(classifier, scheme, **more):
        asked.append(more)
        return chosen

    monkeypatch.setattr(implementation_choice, "choose", told)
    assert run(linear, dataset, tmp_path, indices=INDICES[:4])
    assert run(linear, dataset, tmp_path, indices=INDICES[:6], max_minutes=30.0)
    assert run(linear, dataset, tmp_path, indices=INDICES[:6], mesh=devices.mesh(1))
    assert [(one["samples"], one["seconds"]) for one in asked] == [(4 * 320, 0), (2 * 320, 1800)]
    *ran, idle = results.read_results(tmp_path).manifest["sessions"]
    for session in ran:
        assert (session["devices"], session["kernel"], session["chunk"]) == (2, "xla", 16)
        assert session["rates"] == {"xla on 2 devices, chunk 16": 99.5}
        assert session["left_out"] == {"ours": "it crashed"}
    assert "rates" not in idle


def test_workers_share_the_images_and_merge_to_the_same_file(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path / "whole")
    many = tmp_path / "many"
    for index in (2, 0, 1):  # one after the other: what the first ones did changes nothing for the later ones
        worker = Worker(index, 3)
        assert run(linear, dataset, many, worker=worker)
        share = worker.share(INDICES).tolist()
        assert list(without_time(many, f"certificates.{index}-of-3.tsv")) == share
        status = json.loads((many / f"certify_status.{index}-of-3.json").read_text())
        assert (status["finished"], status["done"], status["total"]) == (True, len(share), len(share))
    results.merge(results.result_files(many), many)
    assert without_time(many) == without_time(tmp_path / "whole")
    sessions = results.read_results(many).manifest["sessions"]
    assert [(session["worker"], session["workers"]) for session in sessions] == [(2, 3), (0, 3), (1, 3)]
    assert [session["images"] for session in sessions] == 3 * [[[0, 58, 3]]]


@pytest.mark.parametrize("counts", [(2, 4, 1), (4, 2, 3), (3, 1)])
def test_a_run_goes_on_with_another_number_of_workers(linear, dataset, tmp_path, monkeypatch, counts):
    """All but the last worker of each number but the last are stopped after three images at least."""
    settings = dataclasses.replace(SETTINGS, plan=Fixed(n0=20, n=600))
    images = np.arange(60)
    assert run(linear, dataset, tmp_path / "whole", settings, indices=images)
    done = set()
    monkeypatch.setattr(job, "_SECONDS_A_PIECE", 1e-9)  # a stride: an image is several dispatches
    for count in counts:
        for index in range(count):
            worker = Worker(index, count)
            some = {"indices": images, "worker": worker}
            if count != counts[-1] and index != count - 1:
                assert not run(linear, dataset, tmp_path / "many", settings, budget=budgets.Three(), **some)
            else:
                assert run(linear, dataset, tmp_path / "many", settings, **some)
            rows = set(without_time(tmp_path / "many", results.worker_file(index, count)))
            assert not rows & done  # a finished image is never certified again
            assert rows <= set(worker.share(images).tolist())
            done |= rows
    assert done == set(images.tolist())
    results.merge(results.result_files(tmp_path / "many"), tmp_path / "many")
    assert without_time(tmp_path / "many") == without_time(tmp_path / "whole")


def test_more_workers_than_images_leave_some_without_work(linear, dataset, tmp_path):
    for index in range(5):
        assert run(linear, dataset, tmp_path, indices=INDICES[:3], worker=Worker(index, 5))
    rows = [len(without_time(tmp_path, path.name)) for path in results.result_files(tmp_path)]
    assert sorted(rows) == [0, 0, 1, 1, 1]


def test_a_run_that_is_finished_says_so(linear, dataset, tmp_path, capsys):
    assert run(linear, dataset, tmp_path, indices=INDICES[:2])
    assert "note" not in capsys.readouterr().err
    assert run(linear, dataset, tmp_path, indices=INDICES[:2])
    assert capsys.readouterr().err == f"note: all 2 images were certified already, in {tmp_path}.\n"


def test_workers_that_do_not_see_each_other_do_the_same_and_merge(linear, dataset, tmp_path):
    """As when a worker of an earlier number still runs: duplicates are identical and harmless."""
    assert run(linear, dataset, tmp_path / "a", worker=Worker(0, 2), mesh=devices.mesh(1))
    assert run(linear, dataset, tmp_path / "b")
    results.merge([tmp_path / "a" / "certificates.0-of-2.tsv", tmp_path / "b"], tmp_path / "out")
    assert without_time(tmp_path / "out") == without_time(tmp_path / "b")


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
    with pytest.raises(ValueError, match=r"data_sha256 was [0-9a-f]{8}\.\.\., is [0-9a-f]{8}\.\.\."):
        run(linear, dataclasses.replace(dataset, images=images), tmp_path)
    with pytest.raises(ValueError, match="weights_sha256"):
        run(dataclasses.replace(linear, sha256="other"), dataset, tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"idx": 60}, r"images 0 \.\. 59 of made/test in .*0-of-2\.tsv, got 60\."),
        ({"label": 1, "correct": 0}, r"image 6 of made/test in .*0-of-2\.tsv with its label 2, got 1\."),
    ],
)
def test_rows_of_images_that_are_not_there_are_not_gone_on_from(linear, dataset, tmp_path, changed, told):
    """Before any vote is drawn, whatever file of the folder has the row; those of other images of the data stay."""
    run(linear, dataset, tmp_path, indices=INDICES[:2])
    run(linear, dataset, tmp_path, indices=INDICES[2:3], worker=Worker(0, 2))
    assert run(linear, dataset, tmp_path, indices=INDICES[3:4])
    read = results.read_results(tmp_path / "certificates.0-of-2.tsv")
    (row,) = read.rows
    assert row.label == row.predict == 2
    results.write([dataclasses.replace(row, **changed)], read.manifest, tmp_path, read.path.name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"^Expected {told}$"):
        run(linear, dataset, tmp_path, indices=INDICES[4:5])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_guarantee_is_of_all_images_that_are_certified(linear, dataset, monkeypatch):
    monkeypatch.setattr(data.Dataset, "fingerprint", lambda self, indices: str(indices))
    made = certification.describe_guarantee(linear, SCHEME, dataset, INDICES, SETTINGS)
    assert made["data_sha256"] == str(INDICES)


def test_a_time_limit_stops_between_images_and_says_how_far(linear, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_SECONDS_A_PIECE", 0)  # a dispatch is one stride, and holds no image
    assert not run(linear, dataset, tmp_path, budget=budgets.Three())
    done = len(without_time(tmp_path))
    assert 3 <= done < 20
    status = json.loads((tmp_path / "certify_status.json").read_text())
    assert (status["job"], status["finished"], status["done"], status["total"]) == ("certify", False, done, 20)
    assert run(linear, dataset, tmp_path)
    assert run(linear, dataset, tmp_path)
    assert len(without_time(tmp_path)) == 20


def test_a_limit_too_short_for_one_image_is_refused(linear, dataset, tmp_path):
    with pytest.raises(ValueError, match=r"enough for one image, about .* minutes here, got 0\.001"):
        run(linear, dataset, tmp_path, Settings(Fixed(n0=20, n=3_000_000)), max_minutes=0.001)


def test_a_call_without_time_for_any_work_fails_rather_than_be_repeated_for_ever(
    linear, dataset, tmp_path, monkeypatch
):
    used = Budget()
    monkeypatch.setattr(used, "over", lambda *_, **__: True)
    with pytest.raises(ValueError, match="room for any work"):
        run(linear, dataset, tmp_path, max_minutes=9, budget=used)
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
    made = idrc.certify(linear, SCHEME, dataset.images[indices], indices=indices, plan=plan, seed=4, chunk=64)
    assert len({row.n for row in rows.values()}) > (0 if plan.name == "selection_free" else 1)
    for index, one in zip(indices, made.rows, strict=True):
        row = rows[index]
        assert row == dataclasses.replace(one, label=row.label, correct=row.correct, time=0.0)
        assert (row.n0, row.n in plan.looks()) == (0, True)
        first = sampling.count_votes(
            linear,
            SCHEME,
            data.to_unit(dataset.images[index : index + 1]),
            indices=np.array([index]),
            n=row.n,
            key=random_keys.stage(random_keys.root(4), random_keys.ESTIMATION),
        )
        assert row.votes == counted(first[0])
        assert row.selected == confidence_bounds.select(first[0])
        assert row.p_lower == plan.lower(max(first[0][:-1]), row.n, 0.001)


def test_a_plan_without_selection_refuses_the_two_sided_certificate(linear, dataset, tmp_path):
    with pytest.raises(ValueError, match="plan fixed for a two_sided certificate, got to_radius"):
        run(linear, dataset, tmp_path, Settings(ToRadius(), certificate="two_sided"))


def test_selection_and_estimation_use_different_noise(linear, dataset, tmp_path):
    image, index = data.to_unit(dataset.images[:1]), np.array([0])
    (row,) = idrc.certify(linear, SCHEME, image, n0=300, n=300, seed=0).rows
    selection = sampling.count_votes(
        linear, SCHEME, image, indices=index, n=300, key=random_keys.stage(random_keys.root(0), random_keys.SELECTION)
    )
    assert row.votes != counted(selection[0])


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
    many = idrc.predict(linear, SCHEME, images, indices=INDICES, n=2000, key=random_keys.root(0))
    few = idrc.predict(linear, SCHEME, images, indices=INDICES, n=11, key=random_keys.root(0))
    truth = np.argmax(images.reshape(20, -1) @ np.asarray(linear.params).T, axis=1)
    assert np.mean(few == -1) > 0.5
    assert np.all((many == truth) | (many == -1))
    assert np.mean(many == truth) > 0.5


@pytest.mark.parametrize(("adaptive", "least"), [(False, 11), (True, 13)])
def test_predictions_that_no_votes_could_make_are_refused(linear, dataset, adaptive, least):
    images = data.to_unit(dataset.images[INDICES])
    given = {"indices": INDICES, "adaptive": adaptive, "key": random_keys.root(0)}
    with pytest.raises(
        ValueError, match=f"n >= {least}, the fewest samples that can name a class at alpha = 0.001, got"
    ):
        idrc.predict(linear, SCHEME, images, n=least - 1, **given)
    certain = dataclasses.replace(linear, apply_fn=lambda params, x: jnp.zeros((len(x), 3)).at[:, 1].set(1), sha256="")
    assert set(idrc.predict(certain, SCHEME, images, n=least, **given)) == {1}
    with pytest.raises(ValueError, match="n <= 4294967296"):
        idrc.predict(linear, SCHEME, images, n=2**33, **given)
    with pytest.raises(ValueError, match="Expected an alpha for which 10000 votes can name a class"):
        idrc.predict(linear, SCHEME, images, n=1000, alpha=5e-324, **(given | {"adaptive": True}))


def test_images_without_labels_are_certified_and_no_accuracy_is_claimed(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path / "known")
    unknown = data.from_arrays(dataset.images, name="made")
    assert run(linear, unknown, tmp_path / "unknown")
    known, rows = (without_time(tmp_path / name) for name in ("known", "unknown"))
    for idx, row in rows.items():
        assert row == dataclasses.replace(known[idx], label=-1, correct=0)
    assert -1 in {row.predict for row in rows.values()}  # an abstention is not the unknown label
    read = results.read_results(tmp_path / "unknown")
    table = summary_table(read)
    assert "The images have no labels, so no accuracy is known." in table
    assert f"Abstained: {sum(row.predict == -1 for row in rows.values())} of 20." in table
    assert "ACR" not in table
    for claim in (metrics.certified_accuracy, metrics.certified_accuracy_lower):
        with pytest.raises(ValueError, match=r"Expected labels in .*certificates\.tsv, got -1"):
            claim(read, 0.5)
    with pytest.raises(ValueError, match="Expected labels in"):
        metrics.average_certified_radius(read)


def test_it_is_said_that_the_network_was_trained_on_the_very_images(linear, dataset, tmp_path):
    trained = {"training": {"data_sha256": dataset.fingerprint()}}
    with pytest.warns(UserWarning, match="trained on the very images of made to certify"):
        run(dataclasses.replace(linear, description=trained), dataset, tmp_path, indices=INDICES[:1])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (INDICES / 2, "indices to be integers"),
        (INDICES > 5, "indices to be integers"),
        (np.array([0, 60]), "indices in 0 .. 59, the images of made, got 0 to 60"),
        (np.array([-1, 3]), "indices in 0 .. 59"),
    ],
)
def test_indices_that_name_no_image_are_refused_before_anything_is_written(linear, dataset, tmp_path, indices, message):
    for attempt in (
        lambda: run(linear, dataset, tmp_path, indices=indices),
        lambda: certification.estimate(linear, SCHEME, dataset, indices, SETTINGS),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("chunk", "message"), [(-5, "chunk >= 2"), (16.0, "integer"), (3_000_000_000_000, "chunk <= ")]
)
def test_chunks_that_cannot_be_are_refused_before_anything_is_written(linear, dataset, tmp_path, chunk, message):
    with pytest.raises(ValueError, match=message):
        certify_dataset(linear, SCHEME, dataset, INDICES, SETTINGS, tmp_path, chunk=chunk)
    with pytest.raises(ValueError, match=message):
        certification.estimate(linear, SCHEME, dataset, INDICES, SETTINGS, chunk=chunk)
    assert not list(tmp_path.iterdir())


def test_adaptive_prediction_stops_early_and_agrees(linear, dataset):
    images = data.to_unit(dataset.images[INDICES])
    fixed = idrc.predict(linear, SCHEME, images, indices=INDICES, n=3000, key=random_keys.root(0))
    adaptive = idrc.predict(linear, SCHEME, images, indices=INDICES, n=3000, adaptive=True, key=random_keys.root(0))
    both = (fixed >= 0) & (adaptive >= 0)
    assert np.array_equal(fixed[both], adaptive[both])
    assert np.mean(both) > 0.5


def test_a_dry_run_counts_and_writes_nothing(linear, dataset, tmp_path):
    said = certification.estimate(linear, SCHEME, dataset, INDICES, SETTINGS, chunk=16)
    assert (said.images, said.samples) == (20, 20 * 320)
    assert said.seconds == pytest.approx(said.samples / said.samples_per_second)


def test_a_dry_run_refuses_what_certification_refuses(linear, dataset, tmp_path):
    published = Settings(ToRadius(n=320, published=True))
    for scheme, indices, settings, message in (
        (schemes.Box(0.5), INDICES, published, r"Expected sampling\.published=False for box, got True"),
        (SCHEME, [0, 0], SETTINGS, "Expected each image once"),
    ):
        with pytest.raises(ValueError, match=message):
            certification.estimate(linear, scheme, dataset, np.array(indices), settings)
        with pytest.raises(ValueError, match=message):
            certification.certify_dataset(linear, scheme, dataset, np.array(indices), settings, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"plan": Fixed(n=9)},
            r"Expected n >= 10, the fewest samples that can certify anything at alpha = 0\.001, got 9",
        ),
        ({"alpha": 0.0}, "0 < alpha < 1"),
        ({"alpha": 1.0}, "0 < alpha < 1"),
        ({"plan": SelectionFree(n=10)}, "Expected n >= 11"),
        ({"plan": ToRadius(n=12)}, "Expected n >= 13"),
        ({"plan": Fixed(n=0)}, "Expected n >= 1, got 0"),
    ],
)
def test_settings_that_cannot_certify_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_images_without_an_index_each_are_refused(linear, dataset):
    images = data.to_unit(dataset.images[INDICES])
    for function in (idrc.certify, idrc.predict):
        with pytest.raises(ValueError, match="one index an image"):
            function(linear, SCHEME, images, indices=INDICES[:3], n=100, key=random_keys.root(0))


def test_data_that_do_not_fit_are_refused(linear, dataset, tmp_path):
    with pytest.raises(ValueError, match=r"images of shape \(4, 4, 1\)"):
        run(linear, dataclasses.replace(dataset, images=dataset.images[:, :3]), tmp_path)
    with pytest.raises(ValueError, match="below the classifier's 3 classes, got 7"):
        run(linear, dataclasses.replace(dataset, labels=dataset.labels + 5), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plan", [Fixed(n=100), SelectionFree(n=100), ToRadius(n=100), ToPrecision(n=100)])
def test_logits_of_another_shape_are_refused_before_anything_is_written(linear, dataset, tmp_path, plan):
    wrong = dataclasses.replace(linear, apply_fn=lambda params, images: jnp.zeros((len(images), 1, 3)), sha256="0" * 64)
    with pytest.raises(ValueError, match=r"float logits \[\d+, 3\]"):
        run(wrong, dataset, tmp_path, Settings(plan))
    assert not list(tmp_path.iterdir())
    images = data.to_unit(dataset.images[INDICES])
    for chunk in (0, 16):
        with pytest.raises(ValueError, match=r"float logits \[\d+, 3\]"):
            idrc.certify(wrong, SCHEME, images, plan=plan, chunk=chunk)
        with pytest.raises(ValueError, match=r"float logits \[\d+, 3\]"):
            idrc.predict(wrong, SCHEME, images, chunk=chunk)
        with pytest.raises(ValueError, match=r"float logits \[\d+, 3\]"):
            idrc.SmoothedClassifier(wrong, SCHEME, chunk=chunk).certify(images)


def test_a_sigmoids_logit_as_two_gives_its_votes(dataset):
    """[0, z]: class 1 where the probability is above 1/2."""

    def two(params, images):
        z = images.mean(axis=(1, 2, 3)) - 0.5
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    images = np.full((2, 4, 4, 1), 0.9, np.float32) * np.array([1, 0.1], np.float32)[:, None, None, None]
    classes = idrc.predict(
        Classifier(two, (), 2, (4, 4, 1)), SCHEME, images, indices=np.arange(2), n=200, key=random_keys.root(0)
    )
    assert classes.tolist() == [1, 0]


def test_the_guarantee_names_the_generator_and_goes_on_from_one_that_did_not(linear, dataset, tmp_path):
    assert run(linear, dataset, tmp_path, indices=INDICES[:2])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["guarantee"].pop("generator") == "threefry2x32"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert run(linear, dataset, tmp_path, indices=INDICES[:2])
    manifest["guarantee"]["generator"] = "rbg"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="generator was rbg, is threefry2x32"):
        run(linear, dataset, tmp_path, indices=INDICES[:2])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_are_another_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed in"):
        Settings(Fixed(n=100), seed=seed)


def test_a_network_without_a_hash_is_known_by_what_it_computes(linear, dataset, tmp_path):
    assert run(dataclasses.replace(linear, sha256=""), dataset, tmp_path, indices=INDICES[:2])
    other = dataclasses.replace(linear, apply_fn=lambda params, images: -linear.apply_fn(params, images), sha256="")
    with pytest.raises(ValueError, match="weights_sha256"):
        run(other, dataset, tmp_path)


def test_an_image_twice_is_refused_before_anything_is_written(linear, dataset, tmp_path):
    with pytest.raises(ValueError, match="each image once"):
        run(linear, dataset, tmp_path, indices=np.array([3, 9, 3]))
    assert not list(tmp_path.iterdir())
