"""The file of an audit that is being written; `tests/core/test_append_only.py` has its crash safety."""

import dataclasses
import json

import numpy as np
import pytest
from disks import no_file_above

from idrc_jax.results import audit_rows
from idrc_jax.results.audit_file import FindingsFile
from idrc_jax.results.audit_rows import Finding

MANIFEST = {"schema_version": 1, "settings": {"level": 0.001, "radii": (0.5,), "votes": 42}, "attempts": 5}
MANIFEST |= {"threshold": 1e-5, "finished": False, "sessions": [{"date": "today"}]}
MANIFEST |= {"certificates": {"scheme": "gaussian", "sigma": 0.25, "data": "x/test", "certificate": "one_sided"}}
EXPECTED = {0: 2, 20: 1, 40: 2}


def finding(idx, fraction):
    return Finding(
        idx, 3, 3, "radius", 0.25, fraction, 0.1 / 3, "pgd", int(idx == 20), {1: 30, 3: 10, -1: 2}, 1e-3, 1, 0.25
    )


IMAGES = {idx: [finding(idx, 0.5 * (1 + k)) for k in range(rows)] for idx, rows in EXPECTED.items()}


def write(folder, *images, manifest=MANIFEST):
    with FindingsFile(folder, manifest=manifest, expected=EXPECTED) as file:
        for idx in images:
            file.append(IMAGES[idx])
        return file.done


def test_rows_come_back_and_every_session_is_kept(tmp_path):
    assert write(tmp_path, 0, 20) == {0, 20}
    assert write(tmp_path, 40) == {0, 20, 40}
    read = audit_rows.read_audit(tmp_path)
    assert list(read.rows) == [*IMAGES[0], *IMAGES[20], *IMAGES[40]]
    assert read.manifest == json.loads(json.dumps(MANIFEST)) | {"sessions": 2 * [{"date": "today"}]}


def test_after_a_crash_at_any_byte_images_are_whole_or_not_there(tmp_path):
    write(tmp_path, 0, 20, 40)
    path = tmp_path / audit_rows.NAME
    whole = path.read_bytes()
    ends = {idx: whole.rfind(b"\n" + str(idx).encode() + b"\t") for idx in EXPECTED}
    ends = {idx: whole.index(b"\n", end + 1) + 1 for idx, end in ends.items()}
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        there = [idx for idx, end in ends.items() if end <= length]
        assert write(tmp_path) == set(there), length
        assert list(audit_rows.read_audit(tmp_path).rows) == [row for idx in there for row in IMAGES[idx]]
    assert there == list(EXPECTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_value": 1.5}, "line 2: got p_value = 1.5"),
        ({"p_value": float("nan")}, "line 2: got p_value = nan"),
        ({"distance": 0.126}, r"line 2: got .* distance 0\.126 of 0\.25 \* 0\.5"),
        ({"broken": 2}, "line 2: got an integer"),
        ({"idx": 2**63}, "line 2: got an integer"),
        ({"sigma_x": -0.25}, "line 2: got sigma_x = -0.25"),
        ({"votes": {1: -3}}, "line 2: got votes"),
        ({"fraction": 1.0}, r"Expected radius 0\.25 \* 1\.0 of image 0 once in .*, got 2 lines"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(tmp_path, change, message):
    lines = [audit_rows.line_of(dataclasses.replace(IMAGES[0][0], **change)), audit_rows.line_of(IMAGES[0][1])]
    (tmp_path / audit_rows.NAME).write_text("\t".join(audit_rows.COLUMNS) + "\n" + "".join(lines))
    with pytest.raises(ValueError, match=message):
        audit_rows.read_rows(tmp_path / audit_rows.NAME)


@pytest.mark.parametrize(
    ("place", "value"), [("threshold", "x"), ("settings", {"level": 0.1}), ("claims", {}), ("sessions", None)]
)
def test_a_manifest_of_another_kind_is_named(tmp_path, place, value):
    (tmp_path / audit_rows.MANIFEST).write_text(json.dumps(MANIFEST | {place: value}))
    with pytest.raises(ValueError, match=rf"Expected {place}.* in .*audit\.json"):
        audit_rows.read_manifest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"idx": np.zeros((2, 1), int)}, {"rival": np.zeros(3, int)}, {"distance": np.array(["a", "b"])},
        {"image": np.zeros((2, 4, 4))}, {"image": np.zeros((2, 4, 4, 1), np.uint8)},
        {"original": np.zeros((1, 4, 4, 1))},
    ],
)  # fmt: skip
def test_images_of_another_shape_are_refused(tmp_path, change):
    good = dict.fromkeys(("idx", "predict", "rival"), np.zeros(2, int)) | {"distance": np.zeros(2)}
    good |= dict.fromkeys(("image", "original"), np.zeros((2, 4, 4, 1), np.float32))
    np.savez(tmp_path / audit_rows.IMAGES, **good)
    assert audit_rows.read_images(tmp_path).keys() == good.keys()
    np.savez(tmp_path / audit_rows.IMAGES, **good | change)
    with pytest.raises(ValueError, match=r"Expected numbers \[N\] and float images \[N, H, W, C\] in"):
        audit_rows.read_images(tmp_path)


def test_an_image_that_does_not_fit_is_not_there(tmp_path):
    with FindingsFile(tmp_path, manifest=MANIFEST, expected=EXPECTED) as file:
        file.append(IMAGES[0])
        before = (tmp_path / audit_rows.NAME).read_bytes()
        with no_file_above(len(before) + 100), pytest.raises(OSError, match="Expected to write a row"):
            file.append(IMAGES[40])
        assert (tmp_path / audit_rows.NAME).read_bytes() == before
        assert file.done == {0}


def test_other_settings_are_refused_with_both_values_and_nothing_changes(tmp_path):
    write(tmp_path, 0)
    with (tmp_path / audit_rows.NAME).open("ab") as file:
        file.write(b"20\t3")  # a torn line, which is not ours to cut
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"settings of the audit in .* got level was 0\.001, is 0\.1: use another"):
        write(tmp_path, 20, manifest=MANIFEST | {"settings": MANIFEST["settings"] | {"level": 0.1}})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_rows_without_their_manifest_are_not_adopted_but_a_header_is(tmp_path):
    write(tmp_path)
    (tmp_path / audit_rows.MANIFEST).unlink()
    assert write(tmp_path, 0) == {0}
    (tmp_path / audit_rows.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"Expected audit\.json beside .*audit\.tsv, got none: use another folder"):
        write(tmp_path, 20)
