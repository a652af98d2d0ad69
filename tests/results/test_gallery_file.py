import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import running
from test_metrics import results as made_results

from idrc_jax import certification, data, results, sampling
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certification import gallery_selection
from idrc_jax.commands import gallery as command
from idrc_jax.models import Classifier
from idrc_jax.results import gallery_file
from idrc_jax.sampling import random_keys


def rows_of(radii, **more):
    return made_results(radii, **more).rows


def test_kinds_are_disjoint_sorted_and_the_extremes():
    generator = np.random.default_rng(0)
    radii = [float(r) for r in generator.uniform(0.01, 1, 200)]
    kinds = ["right"] * 100 + ["wrong"] * 60 + ["abstained"] * 40
    generator.shuffle(kinds)
    rows = rows_of(
        [0.0 if kind == "abstained" else radius for kind, radius in zip(kinds, radii, strict=True)],
        correct=[int(kind == "right") for kind in kinds],
        predict=[{"right": 1, "wrong": 2, "abstained": -1}[kind] for kind in kinds],
    )
    found = gallery_file.by_kind(rows, 10)
    assert {name: len(own) for name, own in found.items()} == dict.fromkeys(gallery_file.KINDS, 10)
    right = sorted(row.radius for row in rows if row.correct)
    assert [row.radius for row in found["most robust"]] == right[::-1][:10]
    assert [row.radius for row in found["least robust"]] == right[:10]
    assert all(row.predict == 2 for row in found["wrong"])
    assert all(row.predict == -1 for row in found["abstained"])
    chosen = gallery_file.choose(rows)
    assert len(chosen) <= 64
    assert [row.idx for row in chosen] == sorted({row.idx for row in chosen})
    assert {0, 1, 2, 3} <= {row.idx for row in chosen}


def test_few_rows_come_once_each():
    found = gallery_file.by_kind(rows_of([0.1, 0.2, 0.3]), 2)
    assert [row.radius for row in found["most robust"]] == [0.3, 0.2]
    assert [row.radius for row in found["least robust"]] == [0.1]
    assert gallery_file.choose(()) == []


def test_no_certificate_sorts_as_0_and_published_radii_break_ties():
    found = gallery_file.by_kind(rows_of([float("nan"), 0.1, 0.0], published=[0.9, 0.1, 0.5]), 3)
    assert [row.idx for row in found["most robust"]] == [1, 0, 2]


@pytest.fixture
def made():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1)).astype(np.uint8)
    return gallery_file.Gallery(np.asarray([0, 5, 9]), pixels, 255 - pixels, np.asarray([0.1, 0.2, 0.3]))


def test_a_gallery_comes_back_with_and_without_denoised_images(made, tmp_path):
    assert gallery_file.read(tmp_path) is None
    for one in (made, dataclasses.replace(made, denoised=made.images // 2)):
        gallery_file.write(one, tmp_path)
        again = gallery_file.read(tmp_path)
        for name, value in vars(one).items():
            assert np.array_equal(getattr(again, name), value), name
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.npz"]


@pytest.mark.parametrize("damage", ["cut", "text", "emptied", "overwritten", "missing", "floats", "shapes"])
def test_damaged_galleries_are_refused(made, tmp_path, damage):
    path = tmp_path / gallery_file.NAME
    if damage in ("missing", "floats", "shapes"):
        arrays = {name: value for name, value in vars(made).items() if value is not None}
        if damage == "missing":
            del arrays["noisy"]
        elif damage == "floats":
            arrays["noisy"] = arrays["noisy"] / 255
        else:
            arrays["index"] = arrays["index"][:2]
        np.savez(path, **arrays)
    else:
        gallery_file.write(made, tmp_path)
        whole = path.read_bytes()
        contents = {"cut": whole[:200], "text": b"no zip file", "emptied": b""}
        path.write_bytes(contents.get(damage, whole[:60] + bytes(100) + whole[160:]))
    with pytest.raises(ValueError, match=r"Expected .*gallery\.npz"):
        gallery_file.read(tmp_path)


@pytest.mark.parametrize("name", ["gaussian", "l2", "uniform"])
def test_the_noise_shown_is_that_of_the_first_vote(name):
    """A classifier that names the brightest pixel votes for the brightest pixel of the picture."""
    classifier = Classifier(
        apply_fn=lambda _, images: images.reshape(len(images), -1), params=(), classes=16, image_shape=(4, 4, 1)
    )
    images = np.random.default_rng(1).uniform(size=(40, 4, 4, 1)).astype(np.float32)
    indices, scheme = np.arange(0, 800, 20), schemes.make(name, sigma=0.5)
    key = random_keys.stage(random_keys.root(7), random_keys.ESTIMATION)
    votes = sampling.count_votes(classifier, scheme, images, indices=indices, n=1, key=key, chunk=2)
    _, levels = schemes.host_scale(scheme, images)
    noisy = gallery_selection.add_first_noise(scheme, images, levels, indices=indices, seed=7)
    assert np.array_equal(noisy.reshape(40, -1).argmax(axis=1), votes.argmax(axis=1))
    assert len(set(votes.argmax(axis=1))) > 8
    assert noisy.min() < 0 or noisy.max() > 1  # not clipped yet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "uint8 images"),
        ({"index": np.arange(3)}, "uint8 images"),
        ({"noisy": np.zeros((2, 4, 4, 1))}, "uint8 images"),
        ({"index": np.array([0.0, 1.0])}, "ascending indices"),
        ({"index": np.array([20, 20])}, "ascending indices"),
        ({"sigma_x": np.array(["a", "b"])}, "noise levels"),
        ({"index": None}, "missing"),
        ({"images": np.array([{}, {}], object)}, "Python objects"),
    ],
)
def test_a_gallery_that_is_none_is_refused(tmp_path, change, message):
    pixels = np.zeros((2, 4, 4, 1), np.uint8)
    good = {"index": np.array([0, 20]), "images": pixels, "noisy": pixels, "sigma_x": np.full(2, 0.5)}
    np.savez(tmp_path / gallery_file.NAME, **good)
    assert gallery_file.read(tmp_path).index.tolist() == [0, 20]
    made = {name: value for name, value in (good | change).items() if value is not None}
    np.savez(tmp_path / gallery_file.NAME, **made)
    with pytest.raises(ValueError, match=rf"{message}.*: make it again"):
        gallery_file.read(tmp_path)


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)
    dataset = data.from_arrays(pixels, generator.integers(0, 3, 30), name="npz", classes=3)
    params = jnp.asarray(generator.normal(size=(16, 3)), jnp.float32)
    classifier = Classifier(
        apply_fn=lambda p, x: jnp.matmul(x.reshape(len(x), -1), p, precision="highest"),
        params=params,
        classes=3,
        image_shape=(4, 4, 1),
    )
    settings = certification.Settings(sampling_plans.Fixed(n0=10, n=50), seed=3)
    scheme = schemes.make("l1", sigma=0.5)
    certification.certify_dataset(classifier, scheme, dataset, np.arange(0, 30, 2), settings, folder, chunk=16)
    return results.read_results(folder), dataset


def test_the_gallery_of_a_run(certified):
    read, dataset = certified
    gallery = gallery_selection.gallery(read, dataset)
    assert gallery.index.tolist() == [row.idx for row in gallery_file.choose(read.rows)]
    assert np.array_equal(gallery.images, dataset.images[gallery.index])
    by_index = {row.idx: row for row in read.rows}
    assert [by_index[index].sigma_x for index in gallery.index.tolist()] == gallery.sigma_x.tolist()
    assert gallery.noisy.dtype == np.uint8
    assert not np.array_equal(gallery.noisy, gallery.images)


def test_the_command_leaves_out_folders_without_rows(certified, tmp_path, monkeypatch):
    read, dataset = certified
    monkeypatch.setattr(data, "load", lambda *arguments, **more: dataset)
    runs = [tmp_path / name for name in ("run", "trained")]
    shutil.copytree(read.path.parent, runs[0])
    runs[1].mkdir()
    status, out, error = running.run(command.main, *runs)
    assert (status, out) == (0, f"Gallery: {runs[0] / gallery_file.NAME}\n")
    assert error == f"note: {runs[1]} has no rows in certificates.tsv and is left out.\n"
    assert gallery_file.read(runs[0]).index.tolist() == gallery_selection.gallery(read, dataset).index.tolist()
    assert "no such file" in running.refused(command.main, runs[1])


def changed(read, folder, change):
    """A copy of a run whose manifest is changed."""
    shutil.copytree(read.path.parent, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_command_takes_the_size_from_the_run(certified, tmp_path, monkeypatch):
    read, dataset = certified
    asked = []
    monkeypatch.setattr(data, "load", lambda *arguments, **more: asked.append(more["size"]) or dataset)
    folder = changed(read, tmp_path / "run", lambda manifest: manifest["sessions"].append({"data_size": 4}))
    for more in ([], ["--size=8"]):
        assert running.run(command.main, folder, *more)[0] == 0
    assert asked == [4, 8]


def test_the_command_refuses_images_that_were_in_memory(certified, tmp_path):
    folder = changed(certified[0], tmp_path / "run", lambda one: one["guarantee"].update(data="arrays/memory"))
    assert running.refused(command.main, folder) == (
        f"error: Expected images of a data set that can be loaded, got arrays/memory in {folder / results.NAME}: its "
        "images were in memory.\n"
    )


def test_other_images_and_files_without_a_manifest_are_refused(certified):
    read, dataset = certified
    other = dataclasses.replace(dataset, images=255 - dataset.images)
    with pytest.raises(ValueError, match="Expected the images of"):
        gallery_selection.gallery(read, other)
    with pytest.raises(ValueError, match="rows and a manifest"):
        gallery_selection.gallery(dataclasses.replace(read, manifest=None), dataset)
