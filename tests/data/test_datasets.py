import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from idrc_jax import data
from idrc_jax.report import class_names

RECORD = 3073


def write_cifar(folder, count=10_000):
    """The binary layout with recognisable pixels: record k has label k % 10 and red = k % 256 at row 1, column 2."""
    records = np.zeros((count, RECORD), np.uint8)
    records[:, 0] = np.arange(count) % 10
    records[:, 1 + 0 * 1024 + 1 * 32 + 2] = np.arange(count) % 256
    records[:, 1 + 2 * 1024 + 5 * 32 + 7] = 99
    (folder / "test_batch.bin").write_bytes(records.tobytes())


def test_cifar10_binary_layout(tmp_path):
    write_cifar(tmp_path)
    test = data.load("cifar10", "test", directory=str(tmp_path))
    assert test.images.shape == (10_000, 32, 32, 3)
    assert test.images.dtype == np.uint8
    assert test.images[300, 1, 2].tolist() == [300 % 256, 0, 0]
    assert test.images[300, 5, 7].tolist() == [0, 0, 99]
    assert test.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_cifar10_in_its_own_subfolder(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    write_cifar(tmp_path / "cifar-10-batches-bin")
    assert len(data.load("cifar10", "test", directory=str(tmp_path))) == 10_000


def test_missing_and_truncated_cifar10_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*test_batch\.bin"):
        data.load("cifar10", "test", directory=str(tmp_path))
    write_cifar(tmp_path, 9_999)
    with pytest.raises(ValueError, match="Expected 30730000 bytes"):
        data.load("cifar10", "test", directory=str(tmp_path))


def test_cifar10_labels_beyond_the_classes_are_refused(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[5 * RECORD] = 11
    path.write_bytes(content)
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        data.load("cifar10", "test", directory=str(tmp_path))


def test_without_data_or_tensorflow_datasets_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"data\.dir=FOLDER or pip install"):
        data.load("cifar10", "test")


def test_without_a_network_it_says_so_at_once(monkeypatch):
    def refuse(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    fake = type(sys)("tensorflow_datasets")
    builder = type("Builder", (), {"is_prepared": lambda self: False})
    fake.builder = lambda name, **options: builder()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    with pytest.raises(ValueError, match="Expected a network"):
        data.load("cifar10", "test")


def prepared(monkeypatch, records):
    class Builder:
        def is_prepared(self):
            return True

        def as_data_source(self, split):
            assert split == "train"
            return records

    fake = type(sys)("tensorflow_datasets")
    fake.builder = lambda name, file_format: Builder()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)


def test_tensorflow_datasets_path_reads_a_data_source_in_the_order_of_the_binary_files(monkeypatch):
    order = np.random.default_rng(0).permutation(12)
    records = [
        {"id": b"train_%05d" % k, "image": np.full((32, 32, 3), k, np.uint8), "label": int(k) % 10} for k in order
    ]
    prepared(monkeypatch, records)
    train = data.load("cifar10", "train")
    assert train.images[:, 0, 0, 0].tolist() == list(range(12))
    assert train.labels.tolist() == [k % 10 for k in range(12)]
    records[3]["id"] = b"train_00012"
    with pytest.raises(ValueError, match=r"images train_00000, .*got b'train_\d{5}' as number") as raised:
        data.load("cifar10", "train")
    assert "\n" not in str(raised.value)


def test_digits_splits_are_disjoint_and_whole():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert len(train) + len(test) == 1797
    assert train.images.shape[1:] == (8, 8, 1)
    assert train.images.max() == 255
    assert {*train.labels.tolist()} == set(range(10))
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) == 0


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_npz(tmp_path, kind):
    images = np.random.default_rng(0).uniform(0, 1, (6, 5, 4, 3))
    images = (images * 255).astype(np.uint8) if kind == np.uint8 else images.astype(kind)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(6))
    for where in (tmp_path, tmp_path / "test.npz"):
        made = data.load("npz", "test", directory=str(where))
        assert made.classes == 6
        np.testing.assert_allclose(made.images, images, rtol=1e-6)
        assert made.images.dtype == (np.uint8 if kind == np.uint8 else np.float32)


def test_bad_npz_files(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match=r"\.npz file"):
        data.load("npz", "test", directory=str(path))
    path.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(ValueError, match="readable"):
        data.load("npz", "test", directory=str(path))
    np.savez(path, labels=np.zeros(1, int))
    with pytest.raises(ValueError, match="Expected an array images"):
        data.load("npz", "test", directory=str(path))
    np.savez(path, images=np.array([object()], dtype=object), labels=np.array([0]))
    with pytest.raises(ValueError, match=r"x\.npz: .*pickle"):  # never unpickled
        data.load("npz", "test", directory=str(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 1)), "labels": np.array([0, 2**40])}, f"-1 for all, got 0 to {2**40}"),
        ({"images": np.zeros((2, 4, 4, 1)), "labels": np.array([0, 2**63], np.uint64)}, f"got 0 to {2**63}"),
        ({"images": np.zeros((2, 4, 4, 1)), "labels": np.array([-1, 3])}, "or -1 for all, got -1 to 3"),
        ({"images": np.zeros((2, 4, 4, 0)), "labels": np.array([0, 1])}, r"none of the others 0"),
        ({"images": np.zeros((2, 4, 4)), "labels": np.array([0, 1])}, r"\[N, H, W, C\]"),
    ],
)
def test_a_wrong_npz_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=message) as raised:
        data.load("npz", "test", directory=str(tmp_path / "wrong.npz"))
    assert "wrong.npz" in str(raised.value)


def test_files_that_are_no_npz_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("images, labels")
    np.save(tmp_path / "array.npy", np.zeros((2, 4, 4, 1)))
    for name in ("text.npz", "array.npy"):
        with pytest.raises(ValueError, match=f"{name}, which is no zip archive"):
            data.load("npz", "test", directory=str(tmp_path / name))


@pytest.mark.parametrize("labels", [None, np.full(6, -1)])
def test_images_without_labels(tmp_path, labels):
    images = np.zeros((6, 5, 4, 3), np.uint8)
    np.savez(tmp_path / "test.npz", images=images, **({} if labels is None else {"labels": labels}))
    made = data.load("npz", "test", directory=str(tmp_path))
    assert not made.labelled
    assert (made.labels.tolist(), made.classes) == ([-1] * 6, 0)
    assert data.from_arrays(images, np.arange(6)).labelled


def test_shared_images_are_told_by_their_pixels():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1)).astype(np.uint8)
    assert data.shared(images[:5], data.to_unit(images[3:])).tolist() == [False, False, False, True, True]
    assert not data.shared(images[:3], images[3:]).any()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4)), [0, 1], r"\[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 1)), [], "N >= 1"),
        (np.zeros((2, 4, 4, 1)), [0], "2 integer labels"),
        (np.zeros((2, 4, 4, 1)), [0.0, 1.0], "2 integer labels"),
        (np.zeros((2, 4, 4, 1)), [0, 3], "labels from 0 to 2"),
        (np.zeros((2, 4, 4, 1)), [-1, 0], "labels from 0 to 2"),
        (np.full((2, 4, 4, 1), 1.01), [0, 1], r"within \[0, 1\]"),
        (np.full((2, 4, 4, 1), np.nan), [0, 1], r"within \[0, 1\]"),
        (np.zeros((2, 4, 4, 1), np.int64), [0, 1], "uint8 or floats"),
    ],
)
def test_bad_arrays_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(images, np.array(labels), classes=3)


def test_select():
    assert data.select(100, skip=20).tolist() == [0, 20, 40, 60, 80]
    assert data.select(100, skip=20, start=10, stop=60).tolist() == [10, 30, 50]
    assert data.select(5, stop=50).tolist() == [0, 1, 2, 3, 4]
    for bad in ({"skip": 0}, {"start": -1}, {"start": 9, "stop": 5}, {"start": 100}, {"stop": -2}):
        with pytest.raises(ValueError, match="Expected data"):
            data.select(100, **bad)


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(ValueError, match="Did you mean 'cifar10'"):
        data.load("cifar", "test")
    with pytest.raises(ValueError, match="Expected split"):
        data.load("digits", "validation")


def test_fingerprint_tells_pixels_and_labels_apart():
    images, labels = np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 1])
    base = data.from_arrays(images, labels).fingerprint()
    assert data.from_arrays(images.copy(), labels.copy()).fingerprint() == base
    assert data.from_arrays(images, labels[::-1]).fingerprint() != base
    changed = images.copy()
    changed[1, 1, 1, 0] = 1
    assert data.from_arrays(changed, labels).fingerprint() != base


def test_augmented_images_are_shifted_or_mirrored_originals():
    """Each result is one of the 81 crops of the padded image or of its mirror image, and many of them occur."""
    image = np.random.default_rng(0).uniform(0.1, 1, (9, 9, 2)).astype(np.float32)
    made = np.asarray(jax.jit(data.augment)(np.tile(image, (600, 1, 1, 1)), jax.random.key(0)))
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    crops = {}
    for row in range(9):
        for column in range(9):
            crop = padded[row : row + 9, column : column + 9]
            crops[crop.tobytes()] = (row, column, False)
            crops[crop[:, ::-1].tobytes()] = (row, column, True)
    seen = [crops[one.tobytes()] for one in made]
    assert len(set(seen)) > 140  # of 162
    assert 200 < sum(flipped for _, _, flipped in seen) < 400


@pytest.mark.shared
def test_real_cifar10_is_whole(shared, tmp_path):
    """The sheets unpack to the official layout, whose class counts and first labels are known."""
    subprocess.run([sys.executable, shared / "cifar10/unpack.py", tmp_path], check=True)
    test = data.load("cifar10", "test", directory=str(tmp_path))
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert [class_names.CIFAR10[label] for label in test.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    means = (test.images / 255).reshape(10_000, -1).mean(1)
    assert means.mean() == pytest.approx(0.47658, abs=2e-3)
    train = data.load("cifar10", "train", directory=str(tmp_path))
    assert np.bincount(train.labels).tolist() == [5000] * 10
    np.testing.assert_allclose((train.images / 255).mean((0, 1, 2)), (0.4914, 0.4822, 0.4465), atol=4e-3)
