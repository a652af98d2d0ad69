"""Predictions and certificates of one's own images: a folder, a file, a part of them, into a file."""

import json
from unittest import mock

import numpy as np
import pytest
import running
from PIL import Image

from idrc_jax import certification, config, data, models, results
from idrc_jax.commands import certify, predict
from idrc_jax.models import Classifier

FACTORY = """
import jax.numpy as jnp
import idrc_jax as idrc

def logits(params, images):
    mean = images.mean((1, 2, 3)) - 0.5
    return jnp.stack([-mean, mean], 1)

def make():
    return idrc.Classifier(logits, (), 2, (4, 4, 1))
"""
GIVEN = ["--config.model.factory=brightness_of_images:make", "--config.devices=1", "--config.noise.sigma=0.1"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder: the classifier, and five dark images and five bright ones in files and in an npz."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "brightness_of_images.py").write_text(FACTORY)
    images = np.concatenate([np.full((5, 4, 4), 20, np.uint8), np.full((5, 4, 4), 240, np.uint8)])
    for number, image in enumerate(images):
        for path in (tmp_path / f"pictures/{'ab'[number // 5]}/{number}.png", tmp_path / f"flat/{number}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    np.savez(tmp_path / "own.npz", images=images[..., None], labels=np.repeat([0, 1], 5))
    return tmp_path


def predicted(*arguments):
    status, out, error = running.run(predict.main, *GIVEN, "--n=100", *arguments)
    assert status == 0, error
    return out


def test_predictions_of_a_folder_name_classes_and_files(place):
    lines = [line.split("\t") for line in predicted("--config.data.dir=pictures").splitlines()]
    assert lines[0] == ["idx", "label", "predict", "correct", "class", "file"]
    assert lines[1:] == [
        [str(at), str(at // 5), str(at // 5), "1", "ab"[at // 5], f"{'ab'[at // 5]}/{at}.png"] for at in range(10)
    ]
    (place / "names.txt").write_text("dark\nbright\n")
    lines = [line.split("\t") for line in predicted("--config.data.dir=flat", "--classes=names.txt").splitlines()]
    assert lines[0] == ["idx", "predict", "class", "file"]
    assert lines[-1] == ["9", "1", "bright", "9.png"]


def test_predictions_go_into_a_file_and_on_from_there(place):
    given = ["--config.data.dir=own.npz", "--out=made.jsonl"]
    out = predicted(*given, "--config.data.count=3")
    assert out == "Predictions: made.jsonl (3 images, 0 abstained, 3 right)\n"
    first = (place / "made.jsonl").read_text()
    assert [json.loads(line)["idx"] for line in first.splitlines()] == [0, 1, 2]
    predicted(*given)
    whole = (place / "made.jsonl").read_text()
    assert whole.startswith(first)
    assert [json.loads(line)["idx"] for line in whole.splitlines()] == list(range(10))
    before = whole
    error = running.refused(predict.main, *GIVEN, *given, "--n=200")
    assert "n was 100, is 200" in error
    assert (place / "made.jsonl").read_text() == before
    error = running.refused(predict.main, *GIVEN, "--config.data.dir=own.npz", "--out=made.csv")
    assert "Expected --out to end in .tsv or .jsonl, got made.csv." in error


def test_the_sigma_of_a_network_of_ones_own_has_to_be_said(place):
    """By a flag or a config file: the default config's is that of its own network."""
    network = "--config.model.factory=brightness_of_images:make"
    given = ["--config.devices=1", "--config.data.dir=own.npz", "--config.data.count=1"]
    tensors = {"kernel": np.zeros((1, 2), np.float32)}
    known = {"architecture": "resnet", "image_shape": (4, 4, 1), "dtype": "float32", "depth": 8, "classes": 2}
    known |= {"mean": (0.5,), "std": (0.25,), "shortcut": "projection"}
    models.save_weights(place / "imported.safetensors", tensors, known)
    for one in (network, "--config.model.weights=imported.safetensors"):
        for main in (predict.main, certify.main):
            error = running.refused(main, one, *given)
            assert error.startswith(
                "error: Expected --config.noise.sigma, in pixel units, such as 0.25, with a network"
            )
    error = running.refused(predict.main, network, *given, "--config.model.weights=imported.safetensors")
    assert error == "error: Expected model.factory or model.weights, got both.\n"
    assert "Expected trained weights at " in running.refused(predict.main, *given, "--workdir=nowhere")
    status, out, error = running.run(predict.main, network, *given, "--config=quickstart.py", "--n=100")
    assert (status, len(out.splitlines())) == (0, 2), error


def test_how_well_a_translated_network_agrees_is_told(place):
    given = ["--config.data.dir=own.npz", "--n=100"]
    assert "PyTorch" not in running.run(predict.main, *GIVEN, *given)[2]
    translated = FACTORY.replace("(4, 4, 1))", "(4, 4, 1), description={'torch_difference': 3.2e-7})")
    (place / "translated.py").write_text(translated)
    status, _, error = running.run(predict.main, *GIVEN, *given, "--config.model.factory=translated:make")
    note = "note: translated:make, translated to JAX, agrees with PyTorch to about 3e-07 of its largest logit.\n"
    assert (status, error) == (0, note)


def test_channels_that_come_first_are_told_how_to_come_last(place):
    np.savez(place / "own.npz", images=np.zeros((2, 1, 4, 4), np.uint8))
    error = running.refused(predict.main, *GIVEN, "--config.data.dir=own.npz")
    assert "got (1, 4, 4) in own.npz: channels come last here, images.transpose(0, 2, 3, 1)." in error


def test_nothing_of_ones_own_data_is_left_out_without_a_word(place):
    """The first of them where asked for; of the digits, whose habit it is, one in three, and a line says so."""
    status, out, error = running.run(
        certify.main, *GIVEN, "--config.certify.n=100", "--config.data.dir=own.npz", "--workdir=run"
    )
    assert (status, "10 images of npz/test" in out, "note:" in error) == (0, True, False), error
    assert len(results.read_results(place / "run").rows) == 10
    assert len(predicted("--config.data.dir=own.npz", "--config.data.count=4").splitlines()) == 1 + 4
    settings = config.load("quickstart.py")
    assert len(config.selection(settings, data.load("digits", "test"))) == 120
    for name, skip in {"cifar10": 20, "imagenet": 100}.items():
        assert data.SKIPS[name] == skip


def test_classes_that_may_be_others_are_refused(place):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(place / "flat/x.png")
    (place / "pictures/c").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(place / "pictures/c/x.png")
    error = running.refused(predict.main, *GIVEN, "--config.data.dir=pictures")
    assert (
        "the classifier's 2 classes, got 3 in pictures, a, b, c: labels follow the order of the folders' names" in error
    )


def test_the_order_of_classes_that_nobody_says_is_told(place):
    """Folders are sorted; a network that knows no names may have its classes in another order."""

    def notes(*arguments):
        status, _, error = running.run(predict.main, *GIVEN, "--n=100", "--config.data.count=1", *arguments)
        assert status == 0, error
        return [line for line in error.splitlines() if line.startswith("note: ")]

    assert notes("--config.data.dir=pictures") == [
        "note: the network does not know its classes' names; the folders in pictures are taken for 0 = a, 1 = b: "
        "pictures/classes.txt, a name a line, says another order."
    ]
    assert notes("--config.data.dir=flat") == notes("--config.data.dir=own.npz") == []
    (place / "pictures/classes.txt").write_text("b\na\n")
    assert notes("--config.data.dir=pictures") == []
    (place / "pictures/classes.txt").unlink()
    for old, new in ("a", "1"), ("b", "0"):
        (place / "pictures" / old).rename(place / "pictures" / new)
    assert notes("--config.data.dir=pictures") == []


def test_the_names_of_classes_are_part_of_what_a_file_holds(place):
    (place / "names.txt").write_text("dark\nbright\n")
    given = ["--config.data.dir=own.npz", "--out=made.jsonl"]
    predicted(*given, "--classes=names.txt", "--config.data.count=3")
    (place / "names.txt").write_text("night\nday\n")
    assert "class_names was ['dark', 'bright'], is ['night', 'day']" in running.refused(
        predict.main, *GIVEN, *given, "--n=100", "--classes=names.txt"
    )
    assert "columns" in running.refused(predict.main, *GIVEN, *given, "--n=100")
    plain = ["--config.data.dir=own.npz", "--out=plain.tsv"]
    predicted(*plain, "--config.data.count=2")
    told = running.refused(predict.main, *GIVEN, *plain, "--n=100", "--classes=names.txt")
    assert "use another --out" in told
    assert "class_names was" in told
    # Files of before do not say; the columns of a table are in its first line.
    kept = json.loads((place / "made.jsonl.json").read_text())
    for name in ("columns", "class_names"):
        del kept["guarantee"][name]
    (place / "made.jsonl.json").write_text(json.dumps(kept))
    assert "a row that cannot be one, " in running.refused(
        predict.main, *GIVEN, *given, "--n=100", "--classes=names.txt"
    )
    (place / "names.txt").write_text("dark\nbright\n")
    predicted(*given, "--classes=names.txt")
    assert json.loads((place / "made.jsonl").read_text().splitlines()[-1])["class"] == "bright"


def test_the_classes_of_the_training_are_remembered_and_compared(place):
    train_set = data.load("folder", "train", directory="pictures")
    described = config.description(config.load("quickstart.py"), train_set)
    assert described["class_names"] == ["a", "b"]
    classifier = Classifier(
        lambda params, images: images.reshape(-1, 16)[:, :2], (), 2, (4, 4, 1), description=described
    )
    certification.check_fits(classifier, train_set)
    values = mock.Mock(classes=None)
    assert predict._names(values, data.load("folder", "test", directory="flat"), classifier) == ("a", "b")
    (place / "pictures/classes.txt").write_text("b\na\n")
    with pytest.raises(ValueError, match="the classifier's 2 classes, a, b, got 2 in pictures, b, a: labels follow"):
        certification.check_fits(classifier, data.load("folder", "test", directory="pictures"))


def test_a_size_that_the_classifier_does_not_take_is_told_how_to(place):
    for path in (place / "flat").iterdir():
        Image.fromarray(np.full((6, 8), 240, np.uint8)).save(path)
    error = running.refused(predict.main, *GIVEN, "--config.data.dir=flat")
    assert "got (6, 8, 1) in flat: --config.data.size=4 resizes the shorter side" in error
    assert "\t1\t" in predicted("--config.data.dir=flat", "--config.data.size=4")
