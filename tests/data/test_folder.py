"""A folder of images: what its names say, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from idrc_jax import data
from idrc_jax.data import imagenet
from idrc_jax.report import class_names


def picture(value, height=5, width=4, channels=3):
    pixels = np.full((height, width, channels), value, np.uint8)
    pixels[0, 0] = value // 2
    return pixels


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    (image.convert(mode) if mode else image).save(path)


def load(folder, split="test", **more):
    return data.load("folder", split, directory=str(folder), **more)


@pytest.fixture
def animals(tmp_path):
    for number, name in enumerate(["dog/b.png", "dog/a.png", "cat/x.bmp", "ant/1.png"]):
        save(tmp_path / "animals" / name, picture(40 * number))
    return tmp_path / "animals"


def test_classes_and_files_stand_in_the_order_of_their_names(animals):
    (animals / "dog/._a.png").write_bytes(b"what macOS leaves")
    made = load(animals)
    assert made.files == ("ant/1.png", "cat/x.bmp", "dog/a.png", "dog/b.png")
    assert made.labels.tolist() == [0, 1, 2, 2]
    assert (made.classes, made.class_names, made.labelled) == (3, ("ant", "cat", "dog"), True)
    assert (made.images.dtype, made.images.shape) == (np.uint8, (4, 5, 4, 3))
    for image, value in zip(made.images, (120, 80, 40, 0), strict=True):
        np.testing.assert_array_equal(image, picture(value))


def test_classes_txt_and_numbers_say_the_labels(animals):
    (animals / "classes.txt").write_text("zebra\ndog\ncat\n\nant\n")
    made = load(animals)
    assert made.files == ("dog/a.png", "dog/b.png", "cat/x.bmp", "ant/1.png")
    assert made.labels.tolist() == [1, 1, 2, 3]
    assert (made.classes, made.class_names) == (4, ("zebra", "dog", "cat", "ant"))
    assert class_names.read(animals / "classes.txt") == made.class_names  # one kind of file, read in one way
    (animals / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(ValueError, match=r"classes\.txt to list each class once, one a line, got the folder ant"):
        load(animals)
    (animals / "classes.txt").unlink()
    for name, number in (("ant", "10"), ("cat", "2"), ("dog", "03")):
        (animals / name).rename(animals / number)
    made = load(animals)
    assert (made.labels.tolist(), made.class_names) == ([2, 3, 3, 10], ())
    assert made.files[-1] == "10/1.png"
    (animals / "2").rename(animals / "10_")
    (animals / "10_").rename(animals / "010")
    with pytest.raises(ValueError, match="got two of one"):
        load(animals)


def test_a_flat_folder_has_no_labels_and_says_what_it_leaves_out(tmp_path):
    for name in ("b.png", "a.JPG"):
        save(tmp_path / name, picture(100))
    made = load(tmp_path)
    assert (made.files, made.labels.tolist(), made.labelled) == (("a.JPG", "b.png"), [-1, -1], False)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"Left out of .*, no images by their names: notes\.txt"):
        load(tmp_path)


def test_splits_are_folders_where_there_is_nothing_else(animals, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    for split in ("train", "val"):
        (whole / split).symlink_to(animals)
    assert load(whole).files[0] == "val/ant/1.png"
    assert load(whole, "train").labels.tolist() == [0, 1, 2, 2]
    (whole / "val").unlink()
    with pytest.raises(ValueError, match=r"Expected a folder test or val in .*, got train alone"):
        load(whole)
    (whole / "van").symlink_to(animals / "cat")
    (whole / "train").unlink()
    (whole / "train").symlink_to(animals / "dog")  # a class that is called so
    assert load(whole).class_names == load(whole, "train").class_names == ("train", "van")


def test_other_sizes_are_resized_where_asked_for_alone(tmp_path):
    save(tmp_path / "a.png", picture(90, 8, 8))
    save(tmp_path / "b.png", np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    with pytest.raises(ValueError, match=r"one size, got .*a\.png of 8 x 8 and .*b\.png of 20 x 30: .*data\.size=N"):
        load(tmp_path)
    made = load(tmp_path, size=8)
    assert made.images.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(made.images[0], picture(90, 8, 8))
    pixels = np.asarray(Image.open(tmp_path / "b.png"))
    np.testing.assert_array_equal(made.images[1], imagenet.resize_and_crop(pixels, 8, 8))
    with pytest.raises(ValueError, match=r"data\.size >= 0"):
        load(tmp_path, size=-1)
    with pytest.raises(ValueError, match=r"for a folder of images alone, got data\.size = 8 for digits"):
        data.load("digits", "test", size=8)


def test_grey_images_have_one_channel_unless_some_have_colour(tmp_path):
    save(tmp_path / "a.png", picture(90, channels=1))
    save(tmp_path / "b.png", picture(60), "LA")
    made = load(tmp_path)
    assert made.images.shape == (2, 5, 4, 1)
    assert made.images[0, 1, 1, 0] == 90
    save(tmp_path / "c.png", picture(102), "P")
    made = load(tmp_path)
    assert made.images.shape == (3, 5, 4, 3)
    assert made.images[:, 1, 1].tolist() == [[90] * 3, [60] * 3, [102] * 3]


def png(colour, channels, bits=16):
    """Of 5 x 4 white pixels; Pillow writes none of 16 bits in colour."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 4, 5, bits, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * (4 * channels * bits // 8)) * 5)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(bits=16):
    """Of 5 x 4 white pixels in colour."""
    values = {256: 4, 257: 5, 258: 134, 259: 1, 262: 2, 273: 140, 277: 3, 278: 5, 279: 60 * bits // 8, 284: 1}
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in values.items()]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return head + struct.pack("<3H", *[bits] * 3) + b"\xff" * (60 * bits // 8)


@pytest.mark.parametrize(
    ("name", "deep", "content"),
    [
        ("a.png", True, png(2, 3)), ("a.png", True, png(6, 4)), ("a.png", True, png(4, 2)),
        ("a.png", False, png(2, 3, 8)),
        ("a.ppm", True, b"P6 4 5 65535\n" + b"\xff" * 120), ("a.ppm", True, b"P3 4 5 256\n" + b"256 " * 60),
        ("a.ppm", False, b"P6 4 5 255\n" + b"\xff" * 60), ("a.pgm", True, b"P5 4 5 1023\n" + b"\x03\xff" * 20),
        ("a.tif", True, tiff()), ("a.tif", False, tiff(8)),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_images_of_16_bits_are_refused_in_every_form(tmp_path, name, deep, content):
    (tmp_path / name).write_bytes(content)
    if deep:
        with pytest.raises(ValueError, match=rf"images of 8 bits a value, got .*{name} of (more|mode I): convert"):
            load(tmp_path)
    else:
        np.testing.assert_array_equal(load(tmp_path).images, np.full((1, 5, 4, 3), 255))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda one: (one / "dog/a.png").write_bytes((one / "dog/a.png").read_bytes()[:60]),
            r"readable image, .*dog/a",
        ),
        (lambda one: (one / "dog/a.png").write_bytes(b"no image"), r"readable image, .*dog/a\.png"),
        (lambda one: save(one / "dog/a.png", np.zeros((5, 4, 4), np.uint8)), r"opaque images, .*dog/a\.png"),
        (lambda one: Image.new("I;16", (4, 5)).save(one / "dog/a.png"), r"8 bits a value, got .*a\.png of mode I;16"),
        (lambda one: (one / "empty").mkdir(), r"Expected images \(.*\) in .*empty, got none"),
        (lambda one: (one / "dog/deeper").mkdir(), r"in .*dog, got the folder deeper"),
        (lambda one: save(one / "beside.png", picture(3)), r"for each class, or images without labels, got both"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(animals, damage, message):
    damage(animals)
    with pytest.raises(ValueError, match=message):
        load(animals)


def test_a_folder_without_images_is_refused(tmp_path):
    for where in ("", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"Expected data\.dir to be a folder of images, got"):
            load(where)
    with pytest.raises(ValueError, match="got neither"):
        load(tmp_path)


def test_what_the_directory_holds_says_which_data_set_is_meant(animals, tmp_path):
    (tmp_path / "both").mkdir()
    np.savez(tmp_path / "both/test.npz", images=np.zeros((2, 4, 4, 1)))
    (tmp_path / "cifar/cifar-10-batches-bin").mkdir(parents=True)
    (tmp_path / "cifar/cifar-10-batches-bin/test_batch.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for where in ("nowhere", "empty", "both/test.npy"):
        for name in ("digits", "synthetic"):
            with pytest.raises(ValueError, match=r"data\.dir to be an \.npz file or a folder with images"):
                data.kind(name, str(tmp_path / where))
        assert data.kind("cifar10", str(tmp_path / where)) == "cifar10"  # which says what it misses
    for name in ("digits", "cifar10", "npz"):
        assert data.kind(name, "") == name
        assert data.kind(name, str(tmp_path / "any.npz")) == "npz"
        assert data.kind(name, str(tmp_path / "both")) == "npz"
        assert data.kind(name, str(tmp_path / "cifar")) == "cifar10"
        assert data.kind(name, str(animals)) == data.kind(name, str(animals / "dog")) == "folder"
    assert data.kind("imagenet", str(animals)) == "imagenet"
    for where in ("", tmp_path / "any.npz"):  # even where it would not count
        with pytest.raises(ValueError, match=r"Expected data\.name to be one of"):
            data.kind("arrays", str(where))
