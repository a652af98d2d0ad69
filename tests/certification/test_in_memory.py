"""Images in memory: results like a file's, and what is said of arguments that cannot be."""

import dataclasses

import jax
import numpy as np
import pytest
import running

import idrc_jax as idrc
from idrc_jax import certification, data, results
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import Fixed, SelectionFree, ToSignificance
from idrc_jax.certification import Settings, arguments, certify_dataset
from idrc_jax.certification.clean_accuracy import with_clean_accuracy
from idrc_jax.commands import compare, recertify, report
from idrc_jax.report import figures
from idrc_jax.results.recertify import recertify as recertify_by

SCHEME = schemes.Gaussian(sigma=0.5)
LABELS = np.array([2, 2, 0, 0, 1])


@pytest.fixture(scope="module")
def made(linear, pictures):
    return idrc.certify(linear, SCHEME, pictures, labels=LABELS, n0=20, n=300, seed=4, chunk=64, progress=False)


def without_time(read):
    return [dataclasses.replace(row, time=0.0) for row in read.rows]


def test_results_are_those_of_the_job(linear, pictures, made, tmp_path):
    """Rows and guarantee, whatever says which: the same data set certified into a file."""
    dataset = data.from_arrays(pictures, LABELS, name="arrays", split="memory")
    settings = Settings(Fixed(n0=20, n=300), seed=4)
    certify_dataset(linear, SCHEME, dataset, np.arange(5), settings, tmp_path, chunk=16)
    read = with_clean_accuracy(idrc.read_results(tmp_path), linear, dataset)
    assert without_time(read) == without_time(made)
    assert read.manifest["guarantee"] == made.manifest["guarantee"]
    assert made.manifest["sessions"][0].keys() >= {"versions", "started", "device", "kernel"}
    assert made.labelled
    named = idrc.certify(linear, SCHEME, pictures, labels=LABELS, indices=np.array([9, 2, 5, 4, 3]), n=100, chunk=64)
    assert idrc.results.clean_accuracy(named) == idrc.results.clean_accuracy(made)
    assert idrc.certified_accuracy(made, 0.1) == idrc.certified_accuracy(read, 0.1) > 0
    assert idrc.average_certified_radius(made) == idrc.average_certified_radius(read)
    assert idrc.summary_table(made) == idrc.summary_table(read)
    assert len(figures.plot_certified_accuracy([made, read]).axes[0].get_lines()) >= 2


def test_images_have_the_hash_of_a_file_of_them(linear, pictures):
    """Bytes, and the floats that they are divided by 255; other floats theirs."""
    pixels = np.rint(255 * pictures).astype(np.uint8)
    for given, stored in ((pixels, pixels), (pixels / 255, pixels), (pictures, pictures)):
        one = idrc.certify(linear, SCHEME, given, labels=LABELS, n0=20, n=300, chunk=64, progress=False)
        assert one.manifest["guarantee"]["data_sha256"] == data.from_arrays(stored, LABELS, name="npz").fingerprint()


@pytest.mark.parametrize("where", ["run", "run/mine.tsv"])
def test_what_is_saved_is_read_by_every_command(made, tmp_path, where):
    saved = made.save(tmp_path / where)
    assert saved.path == tmp_path / (where if where.endswith(".tsv") else "run/certificates.tsv")
    read = idrc.read_results(tmp_path / where)
    assert (read.rows, read.manifest, read.path) == (saved.rows, made.manifest, saved.path)
    assert running.run(recertify.main, saved.path, "--alpha=0.01")[0] == 0
    assert running.run(compare.main, saved.path, saved.path)[0] == 0
    status, out, error = running.run(report.main, saved.path, f"--out={tmp_path / 'report'}")
    assert (status, "index.html" in out) == (0, True), error
    assert "data.name=arrays" not in (tmp_path / "report/index.html").read_text()  # no command has these images


def test_results_are_a_sequence_of_their_rows(made):
    assert (len(made), made[1], made[-2:], list(made)) == (5, made.rows[1], made.rows[3:], list(made.rows))


def test_nothing_is_lost_by_saving(made, tmp_path):
    made.save(tmp_path)
    made.save(tmp_path)
    before = (tmp_path / "certificates.tsv").read_text()
    fewer = dataclasses.replace(made, rows=made.rows[:2])
    guarantee = made.manifest["guarantee"] | {"seed": 5}
    other = dataclasses.replace(made, manifest=made.manifest | {"guarantee": guarantee})
    for wrong, where in ((fewer, tmp_path), (other, tmp_path), (other, tmp_path / "other.tsv")):
        with pytest.raises(ValueError, match="a place without other results, got"):
            wrong.save(where)
    assert (tmp_path / "certificates.tsv").read_text() == before
    assert not (tmp_path / "other.tsv").exists()
    with pytest.raises(ValueError, match=r"a folder or a \.tsv file, got .*to_pandas"):
        made.save(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="six-column log"):
        dataclasses.replace(made, manifest=None).save(tmp_path / "log")
    made.save(tmp_path / "sigma-0.5")  # a folder, whatever follows its point
    assert (tmp_path / "sigma-0.5/certificates.tsv").is_file()


def test_what_is_saved_under_another_name_keeps_its_manifest(linear, pictures, made, tmp_path):
    made.save(tmp_path / "mine.tsv")
    dataset = data.from_arrays(pictures, LABELS, name="arrays", split="memory")
    with pytest.raises(ValueError, match=r"Expected the settings of the certificates in .*seed was 4, is 5"):
        certify_dataset(linear, SCHEME, dataset, np.arange(5), Settings(Fixed(n0=20, n=300), seed=5), tmp_path)
    other = dataclasses.replace(made, manifest=made.manifest | {"guarantee": made.manifest["guarantee"] | {"seed": 5}})
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match="seed was 4, is 5"):
        results.merge([tmp_path / "other" / results.NAME], tmp_path)
    assert idrc.read_results(tmp_path / "mine.tsv").manifest == made.manifest
    assert certify_dataset(linear, SCHEME, dataset, np.arange(5), Settings(Fixed(n0=20, n=300), seed=4), tmp_path)


def test_a_file_whose_settings_nobody_knows_is_never_replaced(made, tmp_path):
    results.table_exports.write_log(made, tmp_path / "log.tsv")
    made.save(tmp_path / "run")
    (tmp_path / "run" / results.MANIFEST).unlink()
    for where in (tmp_path / "log.tsv", tmp_path / "run"):
        path = where if where.is_file() else where / results.NAME
        before = path.read_bytes()
        with pytest.raises(ValueError, match="a place without other results, got"):
            made.save(where)
        assert path.read_bytes() == before


def test_a_file_that_is_being_written_is_not_replaced(made, tmp_path):
    made.save(tmp_path)
    with (
        results.ResultsFile(tmp_path, guarantee=made.manifest["guarantee"], session={}),
        pytest.raises(ValueError, match="no other process to write"),
    ):
        made.save(tmp_path)


def test_bytes_and_floats_are_the_same_images(linear):
    grey = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)).astype(np.uint8)
    given = (grey, grey / np.float32(255), grey / 255.0, (grey / np.float32(255)).tolist())
    several = [idrc.certify(linear, SCHEME, one, n0=20, n=100, chunk=64, progress=False) for one in given]
    assert all(without_time(one) == without_time(several[0]) for one in several)
    assert all(one.manifest["guarantee"] == several[0].manifest["guarantee"] for one in several)
    assert not several[0].labelled
    assert [row.label for row in several[0].rows] == [-1, -1]
    answers = [idrc.predict(linear, SCHEME, one, n=100, chunk=64, progress=False) for one in given]
    assert all(np.array_equal(one, answers[0]) for one in answers)


def test_seed_key_and_name_say_the_same(linear, pictures, made):
    settings = {"labels": LABELS, "n0": 20, "n": 300, "chunk": 64, "progress": False}
    by_key = idrc.certify(linear, "gaussian", pictures, sigma=0.5, key=idrc.prng.root(4), **settings)
    assert without_time(by_key) == without_time(made)
    assert by_key.manifest["guarantee"] == made.manifest["guarantee"]
    assert idrc.certify(linear, SCHEME, pictures[:1], n=100).manifest["guarantee"]["seed"] == Settings().seed
    folded = idrc.certify(linear, SCHEME, pictures, key=jax.random.fold_in(jax.random.key(1), 2), **settings)
    again = idrc.certify(linear, SCHEME, pictures, seed=folded.manifest["guarantee"]["seed"], **settings)
    assert without_time(folded) == without_time(again) != without_time(made)


def test_the_bar_can_be_switched_off(linear, pictures, capsys):
    for show in (True, False):
        idrc.certify(linear, SCHEME, pictures[:2], n=100, chunk=64, progress=show)
        assert ("certify" in capsys.readouterr().err) == show
        idrc.predict(linear, SCHEME, pictures[:2], n=100, chunk=64, progress=show)
        assert ("predict" in capsys.readouterr().err) == show


def test_what_is_shown_of_objects_says_what_they_are(linear, made):
    assert repr(linear) == "Classifier(a function, 3 classes, images 4x4x1, float32, kernel xla)"
    described = dataclasses.replace(linear, sha256="ab" * 32, description={"architecture": "resnet", "depth": 20})
    assert repr(described).startswith("Classifier(resnet-20, 3 classes,")
    assert repr(described).endswith(", sha256 abababab)")
    smoothed = idrc.SmoothedClassifier(linear, "gaussian", sigma=0.25, n=1000)
    assert repr(smoothed) == (
        f"SmoothedClassifier({linear!r}, Gaussian(sigma=0.25, exact=False), n0=100, n=1000, n_predict=1000, "
        "alpha=0.001)"
    )
    certified, abstained = sum(row.radius > 0 for row in made.rows), sum(row.predict == -1 for row in made.rows)
    assert repr(made) == (
        f"Results(5 images of arrays/memory: {certified} certified, {abstained} abstained; gaussian, sigma=0.5, n=300, "
        "alpha=0.001; in memory)"
    )
    assert eval(repr(schemes.L1(sigma=0.25, ref=0.5)), vars(schemes)) == schemes.L1(sigma=0.25, ref=0.5)


def torch_like():
    """What looks like a module of PyTorch, without PyTorch."""
    base = type("Module", (), {"__module__": "torch.nn.modules.module", "__call__": lambda self, x: x})
    return type("ResNet", (base,), {"__module__": "mine"})()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch_like(), r"the PyTorch module ResNet: idrc_jax\.from_torch\(module, image_shape=\(H, W, C\), mean="),
        ("runs/x", r"got 'runs/x': idrc_jax\.load_classifier"),
        (SCHEME, "the classifier comes first"),
        (lambda images: images, r"got function: idrc_jax\.Classifier\(apply_fn="),
        (3, "got int"),
    ],
)
def test_what_is_no_classifier_is_told_how_to_become_one(pictures, given, message):
    calls = (
        lambda: idrc.certify(given, SCHEME, pictures),
        lambda: idrc.predict(given, SCHEME, pictures),
        lambda: idrc.SmoothedClassifier(given, SCHEME),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_smoothed_classifier_is_no_base(linear, pictures):
    with pytest.raises(ValueError, match="is smoothed already"):
        idrc.certify(idrc.SmoothedClassifier(linear, SCHEME), SCHEME, pictures)


@pytest.mark.parametrize(
    ("scheme", "more", "message"),
    [
        ("gaussian", {}, "Expected sigma with the scheme 'gaussian'"),
        ("gausian", {"sigma": 0.25}, "Did you mean 'gaussian'"),
        ("gaussian", {"sigma": -1.0}, "Expected sigma > 0"),
        (
            SCHEME,
            {"sigma": 0.25},
            r"Expected sigma in the scheme alone, got Gaussian\(sigma=0\.5, .*\) and sigma = 0\.25",
        ),
        (schemes.Gaussian, {}, "the class Gaussian: call it with its sigma"),
        (0.25, {}, r"Expected a noise scheme, .* got 0\.25"),
        (SCHEME, {"key": 0}, "got the number 0: say seed=0"),
        (SCHEME, {"key": jax.random.key(0), "seed": 0}, "Expected seed or key, got both"),
        (SCHEME, {"seed": -1}, "Expected a seed in"),
        (SCHEME, {"seed": 0.5}, "Expected seed to be an integer"),
        (SCHEME, {"indices": np.array([0, 1, 2, 3])}, "one index an image"),
    ],
)
def test_settings_that_cannot_be_are_refused(linear, pictures, scheme, more, message):
    for call in (idrc.certify, idrc.predict):
        with pytest.raises(ValueError, match=message):
            call(linear, scheme, pictures, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"indices": np.array([0, 1, 2, 3, 3])}, "each image once"),
        ({"labels": [0, 1, 2]}, "Expected 5 integer labels"),
        ({"labels": [0, 1, 2, 3, 0]}, "labels below the classifier's 3 classes, got 3"),
        ({"plan": SelectionFree(n=200), "n": 300}, "Expected n0 and n in the plan alone"),
        ({"n": 5}, "Expected n >="),
        ({"certificate": "three_sided"}, "three_sided"),
        ({"plan": ToSignificance(n=200)}, r"a plan of certificates, one of fixed, .* got ToSignificance\(n=200"),
        ({"plan": "fixed"}, "a plan of certificates, .* got 'fixed'"),
    ],
)
def test_settings_of_certificates_that_cannot_be_are_refused(linear, pictures, more, message):
    with pytest.raises(ValueError, match=message):
        idrc.certify(linear, SCHEME, pictures, **more)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (schemes.L1(0.25, ref=0.00625, exact=True), [2, 2, -1]),  # above the largest level of its tables
        (schemes.L1(1e37, ref=0.01), [2, 2, -1]),  # infinite in float32
        (schemes.L1(1e-37), [2, -1, 2]),  # denormal
        (schemes.InverseSqrtNorm(0.25), [-1, 2, 2]),  # infinite
        (schemes.Uniform(0.25), [2, 2, 2]),  # of a black image, none
    ],
)
def test_there_is_no_prediction_without_the_noise(scheme, expected, adaptive):
    """Of three images, the first black: a classifier that is sure of class 2 answers where their noise is drawn."""
    sure = idrc.Classifier(lambda _, images: 0 * images[:, 0, 0] + np.array([0, 0, 1.0]), (), 3, (2, 2, 1))
    images = np.stack([np.full((2, 2, 1), value, np.uint8) for value in (0, 10, 255)])
    level = schemes.drawn_level(scheme, scheme.statistic(images / 255))
    assert [one == -1 for one in expected[1:]] == (level[1:] == 0).tolist()
    made = idrc.predict(sure, scheme, images, n=100, adaptive=adaptive, chunk=32, progress=False)
    assert made.tolist() == expected
    smoothed = idrc.SmoothedClassifier(sure, scheme, chunk=32)
    assert smoothed.predict(images).classes.tolist() == expected
    assert set(smoothed.certify(images).classes[np.array(expected) == -1]) == {-1} or -1 not in expected


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_the_largest_seeds_are_read_back(linear, pictures, seed, tmp_path):
    made = idrc.certify(linear, SCHEME, pictures[:1], n=100, seed=seed, chunk=64, progress=False).save(tmp_path)
    read = idrc.read_results(tmp_path)
    assert read.manifest["guarantee"]["seed"] == seed
    assert read.rows == made.rows
    assert recertify_by(read, n=50).rows[0].n == 50


@pytest.mark.parametrize(
    ("shape", "image_shape", "message"),
    [
        ((32, 32, 3), (32, 32, 3), r"one image is images\[None\]"),
        ((7, 3, 32, 32), (32, 32, 3), r"channels come last here, images\.transpose\(0, 2, 3, 1\)"),
        ((3, 32, 32), (32, 32, 3), r"channels come last here, and one image is images\.transpose\(1, 2, 0\)\[None\]"),
        ((7, 28, 28), (28, 28, 1), r"has an axis of its own, images\[\.\.\., None\]"),
        ((7, 28, 28, 1), (32, 32, 1), r"Expected images \[N, 32, 32, 1\], .* got shape \[7, 28, 28, 1\]\."),
        ((), (32, 32, 3), r"got shape \[\]"),
    ],
)
def test_shapes_that_do_not_fit_are_told_how_to(shape, image_shape, message):
    classifier = idrc.Classifier(lambda params, images: images, (), 2, image_shape)
    with pytest.raises(ValueError, match=message):
        arguments.check_pixels(np.zeros(shape), classifier)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (200, np.float32, r"float images in \[0, 1\], got values from 0 to 200: divide by 255"),
        (-0.5, np.float64, r"got values from -0\.5 to 0: a normalisation belongs in the classifier"),
        (np.nan, np.float32, "Expected finite images"),
        (np.inf, np.float64, "Expected finite images"),
        (200, np.int64, r"got int64: if they are from 0 to 255, images\.astype\('uint8'\)"),
        (1, bool, "got bool"),
    ],
)
def test_pixels_that_are_none_are_told_how_to(linear, value, kind, message):
    images = np.zeros((2, 4, 4, 1), kind)
    images[0, 0, 0, 0] = value
    for call in (
        lambda: idrc.certify(linear, SCHEME, images),
        lambda: idrc.predict(linear, SCHEME, images),
        lambda: idrc.SmoothedClassifier(linear, SCHEME).certify(images),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_data_set_is_no_array(linear, pictures):
    with pytest.raises(ValueError, match="give its images, and its labels as labels"):
        idrc.certify(linear, SCHEME, data.from_arrays(pictures))


def test_how_the_network_was_trained_is_in_the_manifest(linear, pictures):
    training = {"scheme": {"name": "gaussian", "sigma": 0.3}, "recipe": {"sigma_low": 0.0}}
    trained = dataclasses.replace(linear, sha256="0" * 64, description={"training": training})
    made = certification.certify(trained, SCHEME, pictures[:1], n=100, progress=False)
    assert results.runs.trained_under(made) == "gaussian, σ = 0.3"
