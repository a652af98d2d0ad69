import hashlib
import os
import sys

import numpy as np
import pytest
from PIL import Image

from idrc_jax import data
from idrc_jax.data import imagenet


def picture(height, width, seed):
    """Smooth colours with noise on top."""
    generator = np.random.default_rng(seed)
    grid = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 90, width))[..., None]
    return (grid + generator.integers(0, 45, (height, width, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """1000 classes with an image each, and the first class with three, of several sizes, formats and modes."""
    root = tmp_path_factory.mktemp("imagenet")
    wnids = [f"n{label:08}" for label in range(1000)]
    for label in range(1000):
        (root / f"val/{wnids[label]}").mkdir(parents=True)
        Image.new("RGB", (3, 2), (label % 256, 0, 0)).save(root / f"val/n{label:08}/only.png")
    first = root / "val/n00000000"
    (first / "only.png").unlink()
    Image.fromarray(picture(300, 400, 0)).save(first / "b.png")
    Image.fromarray(picture(500, 333, 1)).save(first / "a.PNG")
    Image.fromarray(picture(280, 260, 2)[..., 0]).save(first / "c.JPEG")
    (first / "notes.txt").write_text("not an image")
    (first / "._a.PNG").write_bytes(b"what macOS leaves beside a.PNG")
    (root / "val/.ipynb_checkpoints").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(imagenet, "_WNIDS", hashlib.sha256("\n".join(wnids).encode()).hexdigest())
        yield root


def test_images_are_in_the_order_of_class_and_name(folder):
    for where in (folder, folder / "val"):
        made = data.load("imagenet", "test", directory=str(where))
        assert made.images.shape == (1002, 224, 224, 3)
        assert made.labels.tolist() == [0, 0, 0, *range(1, 1000)]
        assert (made.classes, len(made), made.images.dtype) == (1000, 1002, np.uint8)
    chosen = made.images[np.array([0, 1, 2, 301])]
    assert (chosen.shape, chosen.dtype) == ((4, 224, 224, 3), np.uint8)
    np.testing.assert_array_equal(chosen[0], imagenet.resize_and_crop(picture(500, 333, 1)))
    np.testing.assert_array_equal(chosen[1], imagenet.resize_and_crop(picture(300, 400, 0)))
    assert np.all(chosen[2] == chosen[2][..., :1])  # grey became RGB
    assert np.all(chosen[3] == [299 % 256, 0, 0])


@pytest.mark.parametrize("pattern", ["{}", "{:04}"])
def test_names_that_are_numbers_are_the_labels(tmp_path, pattern):
    for label in range(1000):
        folder = tmp_path / pattern.format(label)
        folder.mkdir()
        (folder / "only.png").write_bytes(b"")
    made, labels = imagenet.load(str(tmp_path))
    assert labels.tolist() == list(range(1000))
    with pytest.raises(ValueError, match=f"readable image, got .*/{pattern.format(10)}/only.png"):
        made[np.array([10])]
    (tmp_path / pattern.format(0)).rename(tmp_path / "1000")
    with pytest.raises(ValueError, match=r"the labels 0 ... 999 in .*, got others: "):
        imagenet.load(str(tmp_path))


def test_a_thousand_other_wnids_are_refused(folder, monkeypatch):
    monkeypatch.setattr(imagenet, "_WNIDS", hashlib.sha256(b"those of another set").hexdigest())
    with pytest.raises(ValueError, match=r"wnids of ILSVRC 2012 .* got others: n00000000 ... n00000999"):
        data.load("imagenet", "test", directory=str(folder))


@pytest.mark.peers
@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 333), (256, 256), (224, 1000), (375, 501), (100, 90)])
def test_resizing_is_pytorchs(height, width):
    """Shorter side to 256 with the longer one rounded down, antialiased bilinear, centre: within a rounding."""
    torch = pytest.importorskip("torch")
    pixels = picture(height, width, 3)
    size = [256 * side // min(height, width) for side in (height, width)]
    planes = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)[0]
    top, left = (round((side - 224) / 2) for side in size)
    expected = resized[:, top : top + 224, left : left + 224].permute(1, 2, 0).numpy()
    made = imagenet.resize_and_crop(pixels)
    assert made.shape == (224, 224, 3)
    assert np.abs(made - expected).max() < 1.1
    assert np.abs(made - expected).mean() < 0.4


def test_only_the_selected_images_are_decoded_and_fingerprinted(folder, monkeypatch):
    made = data.load("imagenet", "test", directory=str(folder))
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path.parent.name) or original(path))
    chosen = data.select(len(made), skip=100)
    before = made.fingerprint(chosen)
    assert opened == ["n00000000", *[f"n{k - 2:08}" for k in range(100, 1002, 100)]]
    assert made.fingerprint(chosen) == before
    assert made.fingerprint(chosen[1:]) != before
    path = folder / "val/n00000098/only.png"  # image 100
    kept = path.read_bytes()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(path)
    assert made.fingerprint(chosen) != before
    path.write_bytes(kept)
    Image.new("RGB", (3, 2), (1, 2, 3)).save(folder / "val/n00000099/only.png")  # image 101, not chosen
    assert made.fingerprint(chosen) == before


def test_wrong_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="each of 1000 classes, got 0"):
        data.load("imagenet", "test", directory=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="to be imported"):
        data.load("imagenet", "train", directory=str(folder))
    os.rename(folder / "val/n00000007/only.png", tmp_path / "kept.png")
    with pytest.raises(ValueError, match=r"Expected images .*n00000007, got none"):
        data.load("imagenet", "test", directory=str(folder))
    (folder / "val/n00000007/only.png").write_bytes((tmp_path / "kept.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"readable image, got .*n00000007"):
        data.load("imagenet", "test", directory=str(folder)).images[np.array([9])]


def test_tensorflow_datasets_in_the_same_order(monkeypatch):
    """A fake of its interface: records in another order, names as bytes."""
    records = [
        {"image": np.full((256, 256, 3), k, np.uint8), "label": label, "file_name": name}
        for k, (label, name) in enumerate([(1, b"d"), (0, b"c"), (1, b"a"), (0, b"b")])
    ]

    class Builder:
        def is_prepared(self):
            return True

        def as_data_source(self, split, decoders=None):
            assert split == "validation"
            return [one | {"image": b"jpeg"} for one in records] if decoders else records

    fake = type(sys)("tensorflow_datasets")
    fake.builder = lambda name, file_format: Builder()
    fake.decode = type("decode", (), {"SkipDecoding": object})
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    made = data.load("imagenet", "test")
    assert made.labels.tolist() == [0, 0, 1, 1]
    assert made.images[np.arange(4)][:, 0, 0, 0].tolist() == [3, 1, 2, 0]
    monkeypatch.setattr(Builder, "is_prepared", lambda self: False)
    with pytest.raises(ValueError, match="imagenet2012 prepared"):
        data.load("imagenet", "test")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"data\.dir=FOLDER or pip install"):
        data.load("imagenet", "test")
