"""Files of predictions: whole rows, of one guarantee."""

import json

import numpy as np
import pytest

from idrc_jax import data
from idrc_jax.certification import prediction_file
from idrc_jax.certification.prediction_file import PredictionFile
from idrc_jax.core import append_only, files

NAMES = ("cat", "dog")
MADE = {"n": 5, "classes": 2}


@pytest.fixture(scope="module")
def dataset():
    return data.from_arrays(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 1, 0]), name="made")


@pytest.mark.parametrize("suffix", prediction_file.SUFFIXES)
def test_nothing_is_right_without_labels(tmp_path, suffix):
    unlabelled = data.from_arrays(np.zeros((4, 2, 2, 1), np.uint8))
    path = tmp_path / f"made{suffix}"
    with PredictionFile(path, unlabelled, NAMES, MADE) as file:
        file.append([prediction_file.row(unlabelled, NAMES, index, -index) for index in (0, 1)])
    assert prediction_file.tally(path, {0, 1}) == (1, None)


def rows(dataset, *indices, names=NAMES):
    return [prediction_file.row(dataset, names, index, (1, 1, -1, 0)[index]) for index in indices]


@pytest.mark.parametrize("suffix", prediction_file.SUFFIXES)
def test_a_file_goes_on_where_it_ended(dataset, tmp_path, suffix):
    path = tmp_path / f"made{suffix}"
    with PredictionFile(path, dataset, NAMES, MADE) as file:
        assert file.done == set()
        file.append(rows(dataset, 0, 2))
    with path.open("ab") as torn:
        torn.write(b"1\t1" if suffix == ".tsv" else b'{"idx": 1')
    with PredictionFile(path, dataset, NAMES, MADE) as file:
        assert file.done == {0, 2}
        file.append(rows(dataset, 3))
        assert file.done == {0, 2, 3}
    assert prediction_file.tally(path, {0, 2, 3, 9}) == (1, 1)
    assert prediction_file.tally(path, {2}) == (1, 0)
    before = path.read_text()
    with (
        pytest.raises(ValueError, match=r"predictions in .*; use another --out, or .* n was 5, is 6\."),
        PredictionFile(path, dataset, NAMES, MADE | {"n": 6}),
    ):
        pass
    assert path.read_text() == before
    lines = before.splitlines()
    if suffix == ".tsv":
        assert lines[0] == "idx\tlabel\tpredict\tcorrect\tclass"
        assert lines[1:] == ["0\t0\t1\t0\tdog", "2\t1\t-1\t0\tabstained", "3\t0\t0\t1\tcat"]
    else:
        assert [json.loads(line)["class"] for line in lines] == ["dog", "abstained", "cat"]
        assert json.loads(lines[0]) == {"idx": 0, "label": 0, "predict": 1, "correct": 0, "class": "dog"}


@pytest.mark.parametrize("suffix", prediction_file.SUFFIXES)
@pytest.mark.parametrize("manifest", [False, True])
def test_a_file_of_someone_elses_stays_as_it_is(dataset, tmp_path, suffix, manifest):
    path = tmp_path / f"notes{suffix}"
    path.write_text("my notes\nwithout an end")
    if manifest:
        (tmp_path / f"{path.name}.json").write_text('{"schema_version": 1, "guarantee": {}}')
    else:
        with (
            pytest.raises(ValueError, match="got none: choose another --out"),
            PredictionFile(path, dataset, NAMES, {}),
        ):
            pass
    if manifest:
        with pytest.raises(ValueError, match="got something else"), PredictionFile(path, dataset, NAMES, {}):
            pass
    assert path.read_text() == "my notes\nwithout an end"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0\t0\t1\t0\tdog", "twice"),
        ("4\t0\t1\t1\tdog", "a row that says"),
        ("4\t0\t-2\t0\tdog", "a row that says"),
        ("-4\t0\t1\t0\tdog", "a row that says"),
        ("4\t0\t1\tx\tdog", "invalid literal"),
        ("4\t0\t1", "zip"),
        ("9" * 5000 + "\t0\t1\t0\tdog", "digits"),
    ],
)
@pytest.mark.parametrize("suffix", prediction_file.SUFFIXES)
def test_rows_that_were_damaged_are_refused(dataset, tmp_path, suffix, line, why):
    names = ("idx", "label", "predict", "correct", "class")
    path, whole = tmp_path / f"made{suffix}", dict(zip(names, (0, 0, 1, 0, "dog"), strict=True))
    with PredictionFile(path, dataset, NAMES, MADE) as file:
        file.append([whole])
    assert prediction_file.tally(path, {0}) == (0, 0)
    if suffix == ".jsonl":
        cells = [cell if cell in ("dog", "x") else int(cell[:4]) for cell in line.split("\t")]
        line = json.dumps(dict(zip(names, cells, strict=False))).replace("9999", "9" * 5000)
        why = {"invalid literal": "invalid", "zip": "'correct'"}.get(why, why)
    with path.open("a") as opened:
        opened.write(f"{line}\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"each image's once, got something else: .*{why}"):
        prediction_file.tally(path, {0})
    with pytest.raises(ValueError, match="got something else"), PredictionFile(path, dataset, NAMES, MADE):
        pass
    assert path.read_bytes() == before
    path.write_bytes(before[:-2] + b"\xff\n")
    with pytest.raises(ValueError, match=r"got something else: .*codec"):
        prediction_file.tally(path, {0})


@pytest.mark.parametrize(
    "changed",
    [
        {"idx": 4},
        {"idx": 2},
        {"predict": 2, "correct": 0, "class": "2"},
        {"label": 1, "correct": 0},
        {"class": "dog"},
    ],
)
@pytest.mark.parametrize("suffix", prediction_file.SUFFIXES)
def test_rows_that_no_image_has_are_not_gone_on_from(dataset, tmp_path, suffix, changed):
    """An image that is not there; another one's row; a class, label or name that it does not have."""
    path, line = (
        tmp_path / f"made{suffix}",
        prediction_file.as_tsv if suffix == ".tsv" else prediction_file.as_json_line,
    )
    (own,) = rows(dataset, 0)
    own |= {"predict": 0, "correct": 1, "class": "cat"}
    with PredictionFile(path, dataset, NAMES, MADE) as file:
        file.append(rows(dataset, 1))
        file.append([own])
    with PredictionFile(path, dataset, NAMES, MADE) as file:
        assert file.done == {0, 1}
    path.write_text(path.read_text().replace(line(own), line(own | changed)))
    before = path.read_bytes()
    with (
        pytest.raises(ValueError, match=r"^Expected predictions of made in .* cannot be one, .*: use another --out\.$"),
        PredictionFile(path, dataset, NAMES, MADE),
    ):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ({}, "Expected guarantee in .*, got none"),
        ({"guarantee": [1]}, "Expected guarantee in .* to be an object"),
        ({"guarantee": MADE | {"scheme": ["gaussian"]}}, r"Expected guarantee\.scheme in .* to be a text"),
    ],
)
def test_a_damaged_manifest_is_refused(dataset, tmp_path, manifest, why):
    path = tmp_path / "made.tsv"
    with PredictionFile(path, dataset, NAMES, MADE) as file:
        file.append(rows(dataset, 0))
    (tmp_path / "made.tsv.json").write_text(json.dumps({"schema_version": 1} | manifest))
    with pytest.raises(ValueError, match=why), PredictionFile(path, dataset, NAMES, MADE):
        pass


def test_two_processes_do_not_write_one_file(dataset, tmp_path):
    path = tmp_path / "made.tsv"
    with PredictionFile(path, dataset, NAMES, MADE):
        with pytest.raises(ValueError, match="no other process"), PredictionFile(path, dataset, NAMES, MADE | {"n": 6}):
            pass
        assert json.loads((tmp_path / "made.tsv.json").read_text())["guarantee"] == MADE


def test_the_manifest_is_there_before_anything_of_the_file(dataset, tmp_path, monkeypatch):
    """A call that is killed between the two leaves nothing that the next one refuses."""

    def killed(self, lines):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(append_only.AppendOnlyTable, "append", killed)
        with pytest.raises(KeyboardInterrupt), PredictionFile(tmp_path / "made.tsv", dataset, NAMES, MADE):
            pass
    assert json.loads((tmp_path / "made.tsv.json").read_text())["guarantee"] == MADE
    assert (tmp_path / "made.tsv").read_bytes() == b""
    with PredictionFile(tmp_path / "made.tsv", dataset, NAMES, MADE | {"n": 6}) as file:
        assert file.done == set()


def test_the_manifest_that_counts_is_that_of_the_time_of_the_lock(dataset, tmp_path, monkeypatch):
    """Another process, between this one's start and its lock, writes predictions of other settings."""
    path, lock = tmp_path / "made.jsonl", files.lock_or_refuse
    with PredictionFile(path, dataset, NAMES, MADE):
        pass

    def late(descriptor, locked):
        monkeypatch.setattr(files, "lock_or_refuse", lock)
        with PredictionFile(path, dataset, NAMES, MADE | {"n": 6}) as other:
            other.append(rows(dataset, 0))
        lock(descriptor, locked)

    monkeypatch.setattr(files, "lock_or_refuse", late)
    with pytest.raises(ValueError, match="n was 6, is 5"), PredictionFile(path, dataset, NAMES, MADE):
        pass
    assert json.loads((tmp_path / "made.jsonl.json").read_text())["guarantee"] == MADE | {"n": 6}


def test_columns_are_those_that_are_known(tmp_path):
    images = np.zeros((2, 2, 2, 1), np.uint8)
    assert prediction_file.columns(data.from_arrays(images), ()) == ["idx", "predict"]
    assert prediction_file.columns(data.from_arrays(images, [0, 1]), ()) == ["idx", "label", "predict", "correct"]


def test_names_cannot_break_a_line():
    assert prediction_file.as_tsv({"idx": 3, "file": "a\tb\\n\n"}) == "3\ta\\tb\\\\n\\n\n"
    assert prediction_file.as_json_line({"file": "ä\n\u2028"}) == '{"file": "ä\\n\u2028"}\n'


def test_paths_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--out to end in \.tsv or \.jsonl, got .*x\.csv"):
        prediction_file.check_path(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="in a folder that exists"):
        prediction_file.check_path(tmp_path / "nowhere/x.tsv")
