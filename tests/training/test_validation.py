import csv
import json
from unittest import mock

import budgets
import jax.numpy as jnp
import numpy as np
import pytest
import running
import safetensors.numpy
from scipy import stats
from small_networks import RESNET as DESCRIPTION

from idrc_jax import config, data, models, training
from idrc_jax.certificates import schemes
from idrc_jax.commands import train
from idrc_jax.config import run_memory
from idrc_jax.core.time_budget import Budget
from idrc_jax.core.validate import SettingError
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, noise_laws, random_keys
from idrc_jax.training import RunOptions, loop, metrics_log, validation
from idrc_jax.training.recipe import Recipe

SCHEME = schemes.L1(sigma=3.0)
RECIPE = Recipe(epochs=2, batch=32, lr=0.02, augment=False)
HELD_OUT, SAMPLES = 40, 16


@pytest.fixture(scope="module")
def validated(synthetic, tmp_path_factory):
    """The folder of a run that looks at held-out images after each of two epochs."""
    workdir = tmp_path_factory.mktemp("validated")
    options = RunOptions(tensorboard=True)
    assert training.train(synthetic, SCHEME, RECIPE, DESCRIPTION, workdir, held_out=HELD_OUT, options=options)
    return workdir


def tensors(workdir):
    return safetensors.numpy.load_file(workdir / "weights.safetensors")


def rows(workdir):
    return list(csv.DictReader((workdir / "metrics.csv").read_text().splitlines()))


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_the_images_held_out_are_drawn_by_the_seed_and_spread_over_the_set():
    chosen = validation.held_out(0, 500, 50_000)
    assert len(set(chosen.tolist())) == 500
    assert chosen.tolist() == sorted(chosen.tolist()) == validation.held_out(0, 500, 50_000).tolist()
    assert 0 <= chosen.min() < chosen.max() < 50_000
    assert chosen.mean() == pytest.approx(25_000, abs=5 * 50_000 / np.sqrt(12 * 500))
    assert chosen.tolist() != validation.held_out(1, 500, 50_000).tolist()
    assert validation.held_out(0, 0, 10).tolist() == []


@pytest.mark.parametrize("count", [-1, 10, 11])
def test_some_images_are_left_to_train_on(count):
    with pytest.raises(SettingError, match="held_out"):
        validation.held_out(0, count, 10)


def test_usually_500_or_a_tenth_is_held_out():
    assert [validation.usual_count(images) for images in (50_000, 5_000, 4_999, 1_437, 9)] == [500, 500, 499, 143, 0]


def trained_on(synthetic, **more):
    return {"seed": 0, "data_sha256": synthetic.fingerprint()} | more


def test_a_network_has_seen_what_any_training_of_its_weights_has(synthetic):
    of, every = trained_on(synthetic), np.arange(512)
    first, second, few = (validation.held_out(*drawn, 512) for drawn in ((0, 40), (1, 90), (0, 10)))
    out, other, elsewhere = of | {"held_out": 40}, of | {"held_out": 90, "seed": 1}, {"data_sha256": "x", "seed": 0}
    for training_of, expected in (
        (out, first),
        (out | {"start": of}, []),
        (out | {"start": elsewhere}, first),
        (out | {"start": {"weights_sha256": "of before"}}, []),
        (out | {"start": other}, np.intersect1d(first, second)),
        (out | {"start": of | {"held_out": 10}}, few),
        (out | {"start": elsewhere | {"start": other}}, np.intersect1d(first, second)),
        (elsewhere | {"start": out}, first),
        (of, []),
        (elsewhere, every),
        ({}, every),
    ):
        np.testing.assert_array_equal(validation.unseen({"training": training_of}, synthetic), expected)
    np.testing.assert_array_equal(validation.unseen({}, synthetic), every)
    members = {"training": of, "members": [{"training": out}, {"training": out | {"start": other}}, {}]}
    np.testing.assert_array_equal(validation.unseen(members, synthetic), np.intersect1d(first, second))


@pytest.mark.filterwarnings("always:Weights that")
def test_images_that_the_start_was_trained_on_are_told_at_once_and_of_the_weights(
    synthetic, validated, tmp_path, monkeypatch
):
    """A run that goes on is not compared by it: those of before do not know it."""
    described = models.read_description(validated) | {"training": trained_on(synthetic, data="synthetic")}
    models.save_weights(tmp_path / "start", tensors(validated), described)
    once = Recipe(epochs=1, batch=64, lr=0.01, augment=False)

    def fine_tune(start, **more):
        return training.train(
            synthetic, SCHEME, once, DESCRIPTION, tmp_path / "on", held_out=HELD_OUT, start=str(start), **more
        )

    monkeypatch.setattr(loop, "_IN_FLIGHT", 0)
    with pytest.warns(UserWarning, match="start may have been trained on 40 of the 40 images"):
        assert not fine_tune(tmp_path / "start", budget=budgets.Three())
    start = json.loads((tmp_path / "on" / "train_config.json").read_text())["training"]["start"]
    assert list(start) == ["weights_sha256"]
    assert fine_tune(tmp_path / "start")
    made = models.read_description(tmp_path / "on")
    assert made["training"]["start"] == start | trained_on(synthetic)
    status, _, said = running.run(train.main, "--eval_only", f"--workdir={tmp_path / 'on'}", *GIVEN)
    assert (status, said.count("\n")) == (0, 1)
    assert said.startswith("warning: Weights that the network started from may have been trained on 40 of the 40")


def test_a_start_that_held_the_same_images_out_needs_no_word(synthetic, validated, tmp_path):
    once = Recipe(epochs=1, batch=256, lr=0.01, augment=False)
    assert training.train(synthetic, SCHEME, once, DESCRIPTION, tmp_path, held_out=10, start=str(validated))
    start = models.read_description(tmp_path)["training"]["start"]
    assert {name: start[name] for name in start if name != "weights_sha256"} == trained_on(synthetic, held_out=HELD_OUT)
    status, _, said = running.run(train.main, "--eval_only", f"--workdir={tmp_path}", *GIVEN)
    assert (status, said) == (0, "")


def test_weights_are_those_of_training_on_the_other_images_without_any_validation(synthetic, validated, tmp_path):
    """To the last bit; so no look changes them, and no image that is held out is trained on."""
    others = np.delete(np.arange(len(synthetic)), validation.held_out(0, HELD_OUT, len(synthetic)))
    kept = data.from_arrays(synthetic.images[others], synthetic.labels[others])
    assert training.train(kept, SCHEME, RECIPE, DESCRIPTION, tmp_path)
    assert_same_weights(tensors(validated), tensors(tmp_path))
    assert list(rows(tmp_path)[0]) == ["epoch", "step", "lr", "loss", "accuracy", "seconds"]
    for one, other in zip(rows(tmp_path), rows(validated), strict=True):
        assert (one["loss"], one["accuracy"]) == (other["loss"], other["accuracy"])
    described = models.load_classifier(validated).description["training"]
    assert (described["held_out"], described["data_sha256"]) == (HELD_OUT, synthetic.fingerprint())
    assert "held_out" not in models.load_classifier(tmp_path).description["training"]


def test_the_scores_are_the_accuracy_of_the_saved_network(synthetic, validated):
    """Computed here by the plain network, an image's noise drawn by its own key."""
    classifier = models.load_classifier(validated, kernel="xla")
    chosen = validation.held_out(0, HELD_OUT, len(synthetic))
    images, labels = data.to_unit(synthetic.images[chosen]), synthetic.labels[chosen]
    clean = np.asarray(classifier(jnp.asarray(images))).argmax(-1) == labels
    key = validation._key(0, 1)
    _, levels = schemes.host_scale(SCHEME, images)
    noise = [
        [
            noise_laws.draw(SCHEME.law, random_keys.sample(key, index, sample), np.float32(level), images.shape[1:])
            for sample in range(SAMPLES)
        ]
        for index, level in zip(chosen, levels, strict=True)
    ]
    noisy = (images[:, None] + np.asarray(noise)).reshape(-1, *images.shape[1:])
    right = np.asarray(classifier(jnp.asarray(noisy))).argmax(-1) == np.repeat(labels, SAMPLES)
    last = rows(validated)[-1]
    assert float(last["accuracy_clean"]) == clean.mean()
    assert 0.5 < right.mean() < clean.mean()
    assert float(last["accuracy_noisy"]) == pytest.approx(right.mean(), abs=1 / 640)  # a tie that rounding breaks
    p = right.reshape(HELD_OUT, SAMPLES).mean(axis=1)
    for name, bound in (("above_half", 0.5), ("above_99", 0.99)):
        assert float(last[name]) == pytest.approx((p > bound).mean(), abs=1 / HELD_OUT)
    quantiles = stats.norm.ppf((SAMPLES * p + 0.5) / (SAMPLES + 1))
    assert float(last["acr"]) == pytest.approx((levels * np.maximum(quantiles, 0)).mean(), rel=0.01)


def bright(params, images):
    """Two classes: dark and bright images."""
    return jnp.stack([0.5 - images.mean((1, 2, 3)), images.mean((1, 2, 3)) - 0.5], axis=1) * params


@pytest.mark.parametrize("count", [1, 4])
def test_scores_are_shares_of_right_answers_on_any_number_of_devices(count):
    images = np.full((7, 2, 2, 1), 0.9, np.float32)
    images[:3] = 0.1
    labels = np.asarray([0, 0, 1, 1, 1, 1, 0])
    validator = validation.Validator(
        images, labels, np.arange(7), schemes.Gaussian(sigma=100.0), 0, devices.mesh(count), 4,
        lambda tensors: Classifier(bright, tensors["scale"], 2, (2, 2, 1)),
    )  # fmt: skip
    scores = validator({"scale": np.float32(1)})
    assert scores.accuracy_clean == 5 / 7
    assert 0.1 < scores.accuracy_noisy < 0.9
    assert validator({"scale": np.float32(1)}) == scores  # the same noise at every look
    assert validator({"scale": np.float32(-1)}).accuracy_clean == 2 / 7


def test_shares_of_images_and_the_radius_by_hand():
    found = validation.scores(np.asarray([1, 0, 1, 1]), np.asarray([200, 100, 101, 0]), np.asarray([2.0, 1, 1, 1]), 200)
    assert found[:4] == (0.75, 401 / 800, 0.5, 0.25)
    assert found.acr == pytest.approx((2 * stats.norm.ppf(200.5 / 201) + stats.norm.ppf(101.5 / 201)) / 4)


def test_noise_that_is_not_gaussian_has_no_radius():
    images, labels = np.full((3, 2, 2, 1), 0.9, np.float32), np.ones(3, int)
    for scheme, known in ((schemes.Gaussian(sigma=0.01), True), (schemes.L2(sigma=0.01), False)):
        validator = validation.Validator(
            images, labels, np.arange(3), scheme, 0, devices.mesh(1), 8,
            lambda tensors: Classifier(bright, tensors["scale"], 2, (2, 2, 1)),
        )  # fmt: skip
        scores = validator({"scale": np.float32(1)})
        assert scores[:4] == (1, 1, 1, 1)
        assert (scores.acr > 0) == known


@pytest.mark.evidence
def test_every_epoch_is_scored_or_every_few_and_the_last(synthetic, validated, tmp_path):
    assert [row["accuracy_clean"] != "" for row in rows(validated)] == [True, True]
    options = RunOptions(validate_epochs=2)
    recipe = Recipe(epochs=3, batch=256, lr=0.05)
    assert training.train(synthetic, SCHEME, recipe, DESCRIPTION, tmp_path, held_out=HELD_OUT, options=options)
    scores = ["accuracy_clean", "accuracy_noisy", "above_half", "above_99", "acr"]
    assert list(rows(tmp_path)[0]) == ["epoch", "step", "lr", "loss", "accuracy", *scores, "seconds"]
    assert [row["accuracy_noisy"] != "" for row in rows(tmp_path)] == [False, True, True]
    before = rows(tmp_path)
    assert training.train(synthetic, SCHEME, recipe, DESCRIPTION, tmp_path, held_out=HELD_OUT, options=options)
    assert rows(tmp_path) == before  # whose empty cells are read, too


def test_time_is_left_for_the_first_look_before_one_was_timed(synthetic, tmp_path):
    """As if each of its classifications took as long as an image of a step."""
    margins = []

    class Watched(Budget):
        def over(self, *, margin_ticks=1, margin_seconds=0.0):
            margins.append((margin_ticks, margin_seconds))
            return False

    recipe = Recipe(epochs=2, batch=256, lr=0.05)  # of a step each
    assert training.train(
        synthetic, SCHEME, recipe, DESCRIPTION, tmp_path, held_out=HELD_OUT, options=RunOptions(), budget=Watched()
    )
    (ticks, _), *_, (later, seconds) = margins
    assert ticks - later == -(-(1 + RunOptions().validate_samples) * HELD_OUT // 256)
    assert seconds > 0


def test_the_board_and_the_bar_show_the_scores(validated, tmp_path):
    events = b"".join(path.read_bytes() for path in (validated / "tensorboard").glob("events*"))
    assert b"accuracy_clean" in events
    assert b"accuracy_noisy" in events
    (tmp_path / "metrics.csv").write_bytes((validated / "metrics.csv").read_bytes())
    log = metrics_log.MetricsLog(
        tmp_path, training.Metrics._fields, validation.Scores._fields, 28, 14, RECIPE.learning_rate(14)
    )
    last = rows(validated)[-1]
    assert {name: log.shown[name] for name in validation.Scores._fields} == {
        name: float(last[name]) for name in validation.Scores._fields
    }


def test_a_log_with_fewer_columns_goes_on_with_all(validated, tmp_path):
    """So that a score that is added some day does not end the runs of today."""
    (tmp_path / "metrics.csv").write_bytes((validated / "metrics.csv").read_bytes())
    scores = (*validation.Scores._fields, "more")
    log = metrics_log.MetricsLog(tmp_path, training.Metrics._fields, scores, 28, 14, RECIPE.learning_rate(14))
    log.flush()
    assert [row.pop("more") for row in rows(tmp_path)] == ["", ""]
    kept = [{name: value for name, value in row.items() if name != "more"} for row in rows(tmp_path)]
    assert kept == rows(validated)


def test_another_number_in_the_same_folder_is_refused(synthetic, validated):
    with pytest.raises(ValueError, match=r"use another --workdir, .*: training\.held_out was 40, is 41\."):
        training.train(synthetic, SCHEME, RECIPE, DESCRIPTION, validated, held_out=HELD_OUT + 1)


GIVEN = ("--config.data.name=synthetic", "--config.devices=1")


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [
        (None, [], 51),
        (None, ["--config.train.held_out=0"], 0),
        ({"training": {"seed": 0}}, [], 0),  # of a run that was begun before there was validation
        ({"training": {"held_out": 7}}, [], 7),
        ({"training": {"held_out": 7}}, ["--config.train.held_out=9"], 9),  # which training will refuse
    ],
)
def test_a_new_run_holds_a_tenth_out_and_goes_on_with_as_many_as_it_began_with(tmp_path, recorded, given, expected):
    if recorded:
        (tmp_path / "train_config.json").write_text(json.dumps(recorded))
    with mock.patch.object(training, "train", return_value=True) as called:
        assert running.run(train.main, f"--workdir={tmp_path}", *GIVEN, *given)[0] == 0
    assert called.call_args.kwargs["held_out"] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config.train.held_out=512"], "Expected train.held_out < the 512 training images, got 512."),
        (["--config.train.held_out=-2"], "Expected train.held_out >= 0, got -2."),
        (["--config.train.validate_epochs=0"], "Expected train.validate_epochs >= 1, got 0."),
        (["--config.train.validate_samples=0"], "Expected train.validate_samples >= 1, got 0."),
        (
            ["--config.train.held_out=300", "--config.train.batch=256"],
            "Expected train.batch <= the 212 training images that are not held out, got 256.",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(tmp_path, given, message):
    workdir = tmp_path / "run"
    assert running.refused(train.main, f"--workdir={workdir}", *GIVEN, *given) == f"error: {message}\n"
    assert not workdir.exists()


def everything_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scored(out):
    """The scores that a command has printed."""
    return {name: float(value) for name, value in (one.split(" = ") for one in out.splitlines()[1].split("  "))}


def test_eval_only_prints_the_scores_of_the_last_look_and_writes_nothing(validated):
    before = everything_in(validated)
    status, out, _ = running.run(train.main, "--eval_only", f"--workdir={validated}", *GIVEN)
    assert status == 0
    assert everything_in(validated) == before
    told = f"{HELD_OUT} held-out images of synthetic, {SAMPLES} copies each under l1 noise, sigma = 3"
    assert out.splitlines()[0] == f"{validated}: {told}"
    last = rows(validated)[-1]
    assert scored(out) == pytest.approx({name: float(last[name]) for name in validation.Scores._fields}, abs=1e-4)


def test_eval_only_of_given_weights_takes_the_data_of_their_run(validated, tmp_path):
    """Whose settings lie beside them, and not those of the command line's folder."""
    (tmp_path / "weights.safetensors").write_bytes((validated / "weights.safetensors").read_bytes())
    settings = config.base()
    settings.data.name = "synthetic"
    run_memory.save(tmp_path, settings, settings)
    given = ("--config.train.validate_samples=4", "--config.devices=1", f"--workdir={tmp_path / 'none'}")
    status, out, _ = running.run(train.main, f"--eval_only={tmp_path / 'weights.safetensors'}", *given)
    assert status == 0
    assert out.startswith(f"{tmp_path / 'weights.safetensors'}: {HELD_OUT} held-out images of synthetic, 4 copies")
    assert scored(out)["accuracy_clean"] == pytest.approx(float(rows(validated)[-1]["accuracy_clean"]), abs=1e-4)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"held_out": 0}, [], "Expected a network whose training held images out (train.held_out), or several of one"),
        ({"data_sha256": "0"}, [], "Expected the images that the network was trained on, of -, got others in "),
        ({}, ["--config.train.validate_samples=0"], "Expected train.validate_samples >= 1, got 0."),
        ({"denoiser": {"steps": 1}}, [], "Expected denoiser.weights and denoiser.steps of the network's training, or"),
        ({"scheme": {"name": "Mine", "sigma": 1.0}}, [], "Expected noise.factory and its settings as in the network's"),
    ],
)
def test_weights_that_eval_only_cannot_judge_are_one_line(validated, tmp_path, change, given, message):
    described = models.read_description(validated)
    training_of = described["training"] | {"data": "-"} | change
    models.save_weights(tmp_path / "w.safetensors", tensors(validated), described | {"training": training_of})
    said = running.refused(train.main, f"--eval_only={tmp_path / 'w.safetensors'}", *GIVEN, *given)
    assert said.startswith(f"error: {message}")


def test_eval_only_without_weights_is_one_line(tmp_path):
    said = running.refused(train.main, "--eval_only", f"--workdir={tmp_path / 'none'}", *GIVEN)
    assert str(tmp_path / "none") in said


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('{"training": {"held_out": 7}}', 7),
        ('{"training": {}}', 0),
        ('{"training": "x"}', None),
        ('{"training": {"held_out": "7"}}', None),
        ("[1]", None),
        ("{", None),
        ("{}", None),
    ],
)
def test_what_a_damaged_run_held_out_is_not_known(text, count, tmp_path):
    (tmp_path / "train_config.json").write_text(text)
    assert training.recorded_held_out(tmp_path) == count
