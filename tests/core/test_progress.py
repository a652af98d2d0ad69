import json

import pytest

from idrc_jax.core import files, progress


def test_status_is_json_and_replaced_whole(tmp_path):
    for done in (3, 5):
        progress.write_status(tmp_path / "s.json", "train", done=done, total=5)
    assert json.loads((tmp_path / "s.json").read_text()) == {"job": "train", "finished": True, "done": 5, "total": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]
