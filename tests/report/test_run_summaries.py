import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats
from test_metrics import SURE, results

from idrc_jax import config
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.config import flags
from idrc_jax.report import class_names, run_summaries
from idrc_jax.results import metrics, read_results

GENERATOR = np.random.default_rng(0)
MIXED = results(
    [0.5, 0.3, 0.0, 0.2, 0.4, float("nan")],
    correct=[1, 1, 0, 0, 1, 1],
    predict=[1, 1, -1, 2, 0, 1],
    published=[0.5, 0.3, 0.0, 0.2, 0.4, 0.1],
)


@pytest.mark.parametrize("count", [1, 30, 10_000])
@pytest.mark.parametrize("published", [False, True])
def test_curves_are_the_certified_accuracy_however_many_rows(count, published):
    radii = [float(radius) for radius in GENERATOR.uniform(0, 1, count)]
    made = results(radii, published=[2 * radius for radius in radii])
    curve = run_summaries.curve(made, published=published)
    assert len(curve.radius) <= 402
    assert curve.radius == sorted(curve.radius)
    for radius, accuracy in list(zip(curve.radius, curve.accuracy, strict=True))[:: len(curve.radius) // 10 + 1]:
        assert accuracy == metrics.certified_accuracy(made, radius, published=published)
    assert (curve.radius[0], curve.accuracy[0], curve.accuracy[-1]) == (0.0, 1.0, 0.0)
    k = round(curve.accuracy[-2] * count)
    low = stats.beta.ppf(0.025, k, count - k + 1)
    assert curve.low[-2] == pytest.approx(low)
    ((accuracy, low, high),) = run_summaries.accuracies(made, [curve.radius[-2]], published=published)
    assert (accuracy, low, high) == (curve.accuracy[-2], curve.low[-2], curve.high[-2])


def test_classes_count_what_became_of_their_images():
    labelled = dataclasses.replace(
        MIXED, rows=tuple(dataclasses.replace(row, label=k % 2) for k, row in enumerate(MIXED.rows))
    )
    zero, one = run_summaries.per_class(labelled, ("no", "yes"))
    assert (zero.name, zero.images, zero.right, zero.wrong, zero.abstained) == ("no", 3, 2, 0, 1)
    assert (one.name, one.images, one.right, one.wrong, one.abstained) == ("yes", 3, 2, 1, 0)
    assert zero.quantiles[2] == pytest.approx(0.45)
    assert zero.mean == pytest.approx(0.3)
    assert one.quantiles[2] == 0.3  # nan is no radius
    assert one.mean == pytest.approx(0.1)


def test_of_many_classes_the_most_frequent_are_shown():
    many = results([0.5] * 200)
    rows = tuple(dataclasses.replace(row, label=min(k // 2, 40), predict=k % 90) for k, row in enumerate(many.rows))
    many = dataclasses.replace(many, rows=rows)
    shown = run_summaries.per_class(many, ())
    assert len(shown) == run_summaries.MOST_CLASSES
    assert shown[-1].name == "40"
    assert run_summaries.confusion(many) is None


def test_confusions_and_mistakes_count_pairs():
    labels, columns, counts = run_summaries.confusion(MIXED)
    assert (labels, columns) == ([1], [0, 1, 2, -1])
    assert counts == [[1, 3, 1, 1]]
    assert sorted(run_summaries.mistakes(MIXED)) == [(1, -1, 1), (1, 2, 1)]


def test_samples_and_time():
    made = read_results(ROOT / "results/plans/to_radius")
    said = run_summaries.spending(made)
    drawn = [row.n + row.n0 for row in made.rows]
    assert (said.samples, said.most) == (sum(drawn), 100 * 100_000)
    assert said.quantiles[1] in (sorted(drawn)[49], sorted(drawn)[50])
    assert said.seconds == pytest.approx(sum(row.time for row in made.rows))
    assert run_summaries.spending(dataclasses.replace(made, manifest=None)).samples is None


def test_spacing():
    assert run_summaries.spacing([0, 20, 40]) == (0, 41, 20)
    assert run_summaries.spacing([40, 0, 20]) == (0, 41, 20)
    assert run_summaries.spacing([7]) == (7, 8, 1)
    assert run_summaries.spacing([0, 1, 3]) is None
    assert run_summaries.spacing([]) is None


RUNS = sorted(path.parent for path in (ROOT / "results").rglob("manifest.json"))
FLOAT32 = read_results(ROOT / "results/cifar10_resnet20_0.25/gaussian")


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_the_command_asks_for_the_same_certificates(folder, monkeypatch):
    """Parsed as the command line is, it gives the scheme, plan and settings of the manifest, and the images."""
    made = read_results(folder)
    program, *arguments = shlex.split(run_summaries.command(made))
    assert program == "idrc-certify"
    monkeypatch.setattr("sys.argv", [program, *arguments])
    values, rest = flags._parse("certify", None)
    assert rest == []
    asked, guarantee = values.config, made.manifest["guarantee"]
    settings = config.settings(asked)
    scheme = schemes.describe(config.noise_scheme(asked))
    described = {**scheme, **sampling_plans.describe(settings.plan), "alpha": settings.alpha, "seed": settings.seed}
    described |= {"certificate": settings.certificate, "dtype": asked.model.dtype}
    for name, value in described.items():
        assert (list(value) if isinstance(value, tuple) else value) == guarantee[name], name
    assert list(range(asked.data.start, asked.data.stop, asked.data.skip)) == sorted(row.idx for row in made.rows)
    assert asked.model.weights == made.manifest["sessions"][-1]["weights"]


def test_the_command_resizes_images_as_the_run_did():
    made = FLOAT32
    assert "data.size" not in run_summaries.command(made)
    manifest = made.manifest | {"sessions": [*made.manifest["sessions"], {"data_size": 32}]}
    assert "--config.data.size=32" in run_summaries.command(dataclasses.replace(made, manifest=manifest))


def told(session=None, **guarantee):
    """The fields of the command for a run like FLOAT32 but for these."""
    made = FLOAT32
    sessions = [*made.manifest["sessions"], session or {}]
    manifest = made.manifest | {"guarantee": made.manifest["guarantee"] | guarantee, "sessions": sessions}
    arguments = shlex.split(run_summaries.command(dataclasses.replace(made, manifest=manifest)))
    return [one.removeprefix("--config.") for one in arguments]


def test_the_command_names_a_place_of_data_that_have_one():
    assert "data.dir=FOLDER" in told(data="npz/test")
    for name in ("digits", "synthetic"):
        assert f"data.name={name}" in told(data=f"{name}/test")
        assert "data.dir=FOLDER" not in told(data=f"{name}/test")


def test_the_command_leaves_out_a_denoiser_that_the_run_would_remember():
    """One of the training that certification went without."""
    made = read_results(ROOT / "results/cifar10_resnet20_0.25/gaussian")
    assert "denoiser" not in run_summaries.command(made)
    behind = {"training": {"denoiser": {"sigma": 0.25, "steps": 1}}}
    manifest = made.manifest | {"sessions": [*made.manifest["sessions"], behind]}
    assert "--config.denoiser.weights= " in run_summaries.command(dataclasses.replace(made, manifest=manifest)) + " "


def test_no_command_for_others_files_and_schemes_of_ones_own():
    assert run_summaries.command(dataclasses.replace(MIXED, manifest=None)) is None
    assert run_summaries.command(results([0.5], scheme="my own")) is None


@pytest.mark.parametrize("place", [0, 1])
def test_no_command_for_networks_by_level_that_none_gives(place):
    """Ensembles, code, and levels of several compute types or denoisers, at either place."""
    made = FLOAT32

    def asked(networks, **more):
        guarantee = made.manifest["guarantee"] | {"by_level": networks, **more}
        return run_summaries.command(dataclasses.replace(made, manifest=made.manifest | {"guarantee": guarantee}))

    one = {"weights_sha256": "0" * 64, "dtype": made.manifest["guarantee"]["dtype"]}
    behind = one | {"denoiser": {"sigma": 0.5, "steps": 1}}
    for network, beside in (
        (one | {"members": [one, one]}, one),
        (one | {"members": [one, one, one], "consensus": 2}, one),
        (one | {"factory": "mine:make"}, one),
        (one | {"dtype": "bfloat16"}, one),
        (behind, one),
        (behind, one | {"denoiser": {"sigma": 1.0, "steps": 1}}),
    ):
        assert asked([network, beside] if place == 0 else [beside, network]) is None
    told = {"denoiser_sigma": 0.5, "denoiser_steps": 1}
    assert "--config.model.by_level=WEIGHTS1,WEIGHTS2" in asked([one, one])
    found = asked([behind, behind], **told)
    assert "--config.model.by_level=WEIGHTS1,WEIGHTS2" in found
    assert "--config.denoiser.sigma=0.5" in found
    assert asked([behind, behind]) is None  # the classifier itself is another: without a denoiser,
    assert asked([behind, behind], denoiser_sigma=0.25, denoiser_steps=1) is None  # or told another level


def test_class_names(tmp_path):
    assert class_names.known("cifar10/test")[3] == "cat"
    assert class_names.known("digits/test") == ()
    assert [class_names.name(("a",), number) for number in (0, 1, -1)] == ["a", "1", "abstained"]
    (tmp_path / "names").write_text("<b>one</b>\nzwei\n")
    assert class_names.read(tmp_path / "names") == ("<b>one</b>", "zwei")
    (tmp_path / "empty").touch()
    for path in ("empty", "nowhere"):
        with pytest.raises(ValueError, match=r"Expected a .*class name"):
            class_names.read(Path(tmp_path / path))


def test_the_distribution_of_probabilities():
    curve = run_summaries.probability_curve(SURE)
    for probit, share in zip(curve.radius, curve.accuracy, strict=True):
        assert share == np.mean(metrics.right_probabilities(SURE) >= stats.norm.cdf(probit) - 1e-12)
    said = run_summaries.probabilities(SURE)
    assert [share for share, _, _ in said["shares"]] == [0.8, 0.6, 0.6, 0.4, 0.2]
    assert said["shares"][0][1] == pytest.approx(stats.beta.ppf(0.025, 4, 2))
    assert said["easy"] == pytest.approx(0.75)
    assert run_summaries.probabilities(results([0.1])) == {"shares": [None] * 5, "easy": None}
    six = dataclasses.replace(SURE, rows=tuple(dataclasses.replace(row, p_lower=None) for row in SURE.rows))
    assert run_summaries.probability_curve(six) is run_summaries.probabilities(six) is None
