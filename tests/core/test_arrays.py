"""Archives of arrays whose headers lie are refused before any memory is taken for what they say."""

import io
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from idrc_jax.core import arrays


def packed(path, kind=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_arrays_come_back_as_numpy_reads_them(tmp_path):
    made = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.eye(3, 4, dtype=np.uint8)), "c": np.zeros(())}
    made |= {"none": np.zeros((0, 5), np.int16)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **made, other=np.zeros(3))
        found = arrays.read_npz(tmp_path / "x.npz", [*made, "missing"])
        assert found.keys() == made.keys()
        for name, value in made.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("shape", [b"(10000000000,)", b"(4611686018427387904, 16)", b"(-7,)", b"(3,)"])
def test_a_header_that_lies_takes_no_memory(tmp_path, shape):
    content = re.sub(rb"\(7,\)", shape, npy(np.zeros(7, np.uint8)))
    path = packed(tmp_path / "x.npz", a=content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a has another size than its header says|a is larger"):
        arrays.read_npz(path, ["a"])
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_no_more_memory_than_the_file_can_hold(tmp_path):
    """By a packing that a few bytes of hold a gigabyte, where deflating stops at a thousandth."""
    path = packed(tmp_path / "x.npz", zipfile.ZIP_LZMA, a=npy(np.zeros(10**8, np.uint8)))
    assert 1100 * path.stat().st_size < 10**8
    with pytest.raises(ValueError, match="a is larger than a file of this size can hold"):
        arrays.read_npz(path, ["a"])
    deflated = packed(tmp_path / "y.npz", a=npy(np.zeros(10**7, np.uint8)))
    assert arrays.read_npz(deflated, ["a"])["a"].size == 10**7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([{}], object)), "a is an array of Python objects"),
        (npy(np.zeros(9))[:-1], "a has another size"),
        (b"\x93NUMPY\x09\x00", "a"),
        (b"", "."),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        arrays.read_npz(packed(tmp_path / "x.npz", a=content), ["a"])


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="BadZipFile"):
        arrays.read_npz(tmp_path / "x", ["a"])
