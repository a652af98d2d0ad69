"""Every writer of a whole file: the new one is on the disk before it takes the old one's place, or nothing changes."""

import os

import numpy as np
import pytest
from conftest import ROOT

from idrc_jax import models, results
from idrc_jax.core import files
from idrc_jax.interop import exporting
from idrc_jax.results import table_exports

RUN = ROOT / "results/plans/fixed"
WEIGHTS = ROOT / "checkpoints/cifar10_resnet20_gaussian_0.25.safetensors"


def weights(path):
    models.save_weights(path, {"a": np.zeros(3)}, {"architecture": "resnet"})


def parquet(path):
    for name in ("pandas", "pyarrow"):
        pytest.importorskip(name)
    table_exports.write_parquet(results.read_results(RUN), path)


def torch(path):
    pytest.importorskip("torch")
    exporting.export_weights(WEIGHTS, path)


WRITERS = [
    ("x.json", lambda path: files.write_json(path, {"a": 1})),
    ("x.safetensors", weights),
    ("y.safetensors", lambda path: exporting.export_weights(WEIGHTS, path)),
    ("log.tsv", lambda path: table_exports.write_log(results.read_results(RUN), path)),
    pytest.param("x.parquet", parquet, marks=pytest.mark.peers),
    pytest.param("x.pth", torch, marks=pytest.mark.peers),
]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, name, write):
    path, events = tmp_path / name, []
    path.write_text("old")
    synced, replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        synced(descriptor)

    def refuse(source, target):
        found = os.stat(source)
        events.append((found.st_ino, found.st_size, target))
        raise OSError("no more")

    monkeypatch.setattr(os, "fsync", fsync)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no more"):
            write(path)
    flushed, (partial, size, target) = events
    assert flushed == partial
    assert (size > 3, target) == (True, path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(name, "old")]
    assert os.replace is replace
    write(path)
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert path.stat().st_size == size


def test_what_fails_half_way_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")

    def write():
        with files.replacing(tmp_path / "x") as partial:
            partial.write_text("ne")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("x", "old")]
