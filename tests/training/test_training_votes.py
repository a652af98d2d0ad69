"""Images drawn by the votes of the network in training: what is counted, what is drawn, what a stop leaves behind."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from scipy import stats
from small_networks import RESNET as DESCRIPTION

from idrc_jax import data, losses, models, training
from idrc_jax.certificates import schemes
from idrc_jax.core.time_budget import Budget
from idrc_jax.sampling import devices, noise_laws, random_keys
from idrc_jax.training import loop, training_votes
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import epoch_order, weighted_order

SCHEME = schemes.Gaussian(sigma=2.0)
RECIPE = Recipe(epochs=3, batch=256, lr=0.05, augment=False)  # of 8 steps of 64 images with four noises
LOSS = losses.make(
    "hard_samples", 2.0, start_epoch=1, redraw_epochs=1, steps=1, threshold_samples=20, weight_samples=12
)

ORDERS = {}  # in which that run has taken the images of each epoch


def train(synthetic, workdir, loss=LOSS, **more):
    return training.train(synthetic, SCHEME, RECIPE, DESCRIPTION, workdir, loss=loss, **more)


def tensors(workdir):
    return safetensors.numpy.load_file(workdir / "weights.safetensors")


def assert_same_weights(one, other):
    for name, value in tensors(one).items():
        np.testing.assert_array_equal(value, tensors(other)[name])


@pytest.fixture(scope="module")
def trained(synthetic, tmp_path_factory):
    """The folder of three epochs, of which the first is plain."""
    workdir = tmp_path_factory.mktemp("trained")
    order = loop._Dispatcher._order

    def watched(self, epoch):
        ORDERS[epoch] = np.asarray(order(self, epoch))
        return jnp.asarray(ORDERS[epoch])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop._Dispatcher, "_order", watched)
        assert train(synthetic, workdir)
    return workdir


def counted(workdir, epoch, samples):
    return np.load(workdir / "own_votes" / f"epoch_{epoch}_of_{samples}.npy")


def test_images_are_drawn_as_often_as_they_weigh():
    weights = np.asarray([0.0, 1.0, 2.0, 0.0, 5.0, 2.0, 0.0])
    tiled = np.tile(weights, 3000)
    drawn = weighted_order(5, 2, tiled)
    assert (drawn.shape, drawn.dtype) == ((21000,), np.int32)
    found = np.bincount(drawn % 7, minlength=7)
    assert not found[weights == 0].any()
    expected = 21000 * weights / weights.sum()
    assert stats.chisquare(found[weights > 0], expected[weights > 0]).pvalue > 1e-4
    assert np.unique(drawn).size > 0.5 * (tiled > 0).sum()
    np.testing.assert_array_equal(drawn, weighted_order(5, 2, tiled))
    for other in (weighted_order(5, 3, tiled), weighted_order(6, 2, tiled)):
        assert (drawn != other).mean() > 0.9
    assert weighted_order(0, 0, np.asarray([0.0, 0.0, 1e-9, 0.0])).tolist() == [2, 2, 2, 2]


@pytest.mark.evidence
def test_votes_are_those_of_the_network_as_it_is_when_the_epoch_begins(synthetic, trained, tmp_path):
    """That of noise augmentation with as many noises; the noise is drawn here image by image."""
    recipe = Recipe(epochs=1, batch=256, lr=0.05, augment=False)
    assert training.train(synthetic, SCHEME, recipe, DESCRIPTION, tmp_path, loss=losses.Gaussian(noises=4))
    classifier = models.load_classifier(tmp_path, kernel="xla")
    key = jax.random.fold_in(random_keys.stage(random_keys.root(0), random_keys.TRAINING), 3)
    key = jax.random.fold_in(jax.random.fold_in(key, 1), 12)
    few = np.arange(0, 512, 11)

    def noise(index, sample):
        return noise_laws.draw("normal", random_keys.sample(key, index, sample), jnp.float32(2.0), (8, 8, 1))

    indices, samples = np.meshgrid(few, np.arange(12), indexing="ij")
    drawn = jax.jit(jax.vmap(jax.vmap(noise)))(indices, samples)
    noisy = data.to_unit(synthetic.images[few])[:, None] + np.asarray(drawn)
    right = np.asarray(classifier(jnp.asarray(noisy.reshape(-1, 8, 8, 1)))).argmax(-1).reshape(len(few), 12)
    right = (right == synthetic.labels[few, None]).sum(axis=1)
    assert 0 < right.mean() < 12
    found = counted(trained, 1, 12)[few]
    assert np.abs(found - right).max() <= 1  # a tie that rounding breaks
    assert (found != right).sum() <= 2


def test_each_stage_is_counted_once_and_each_epoch_drawn_from_what_is_kept(synthetic, trained):
    assert sorted(path.name for path in (trained / "own_votes").iterdir()) == [
        "epoch_1_of_12.npy", "epoch_1_of_20.npy", "epoch_2_of_12.npy",
    ]  # fmt: skip
    kept = counted(trained, 1, 20) >= 0.4 * 20
    assert 0 < kept.sum() < 512
    drawing = drawing_of(synthetic, trained)
    assert drawing.order(0) is None
    np.testing.assert_array_equal(ORDERS[0], epoch_order(0, 0, 512))
    assert [drawing.classifications(epoch) for epoch in range(3)] == [0, 512 * 32, 512 * 12]
    for epoch in (1, 2):
        order = drawing.order(epoch)
        assert kept[order].all()
        weights = np.where(kept, LOSS.weights(counted(trained, epoch, 12)), 0)
        np.testing.assert_array_equal(order, weighted_order(0, epoch, weights))
        np.testing.assert_array_equal(order, ORDERS[epoch])
    described = json.loads((trained / "train_config.json").read_text())["training"]["loss"]
    assert described == LOSS.describe()


@pytest.mark.parametrize(
    ("steps", "then"),
    [
        (11, "counts"),
        pytest.param(8, "counts", marks=pytest.mark.evidence),
        pytest.param(8, "reads", marks=pytest.mark.evidence),
    ],
)
def test_a_run_that_was_stopped_ends_at_the_weights_of_one_that_was_not(
    synthetic, trained, tmp_path, monkeypatch, steps, then
):
    """Just before votes are counted, killed between that and the next checkpoint, and within an epoch drawn by them."""

    class Steps(Budget):
        done = 0

        def tick(self, count=1):
            self.done += count

        def over(self, **margins):
            return self.done >= steps

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_IN_FLIGHT", 0)
        assert not train(synthetic, tmp_path, budget=Steps())
    assert (tmp_path / "own_votes").is_dir() == (steps > 8)
    if then == "reads":
        shutil.copytree(trained / "own_votes", tmp_path / "own_votes")
        monkeypatch.setattr(training_votes, "_count", None)
    assert train(synthetic, tmp_path)
    assert_same_weights(tmp_path, trained)
    for path in (trained / "own_votes").iterdir():
        np.testing.assert_array_equal(np.load(path), np.load(tmp_path / "own_votes" / path.name))


def drawing_of(synthetic, workdir):
    """What draws from the votes that lie in a folder."""
    return training_votes.WeightedDrawing(LOSS, synthetic.images, synthetic.labels, SCHEME, 0, workdir, inference=None)


def test_votes_that_are_gone_or_damaged_are_refused(synthetic, trained, tmp_path):
    shutil.copytree(trained / "own_votes", tmp_path / "own_votes")
    file = tmp_path / "own_votes" / "epoch_1_of_12.npy"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"Expected the votes of this run in .*epoch_1_of_12\.npy, got: .*Restore"):
        drawing_of(synthetic, tmp_path).order(1)
    file.unlink()
    with pytest.raises(ValueError, match=r"Expected the votes of this run in .*, got: .*No such file.*another workdir"):
        drawing_of(synthetic, tmp_path).order(1)
    for wrong, told in ((np.zeros(7, np.int32), r"int32 \[7\]"), (np.zeros(512), r"float64 \[512\]")):
        np.save(file, wrong)
        with pytest.raises(ValueError, match=rf"Expected votes \[512\] in .*, got {told}: remove it"):
            drawing_of(synthetic, tmp_path).order(1)
    file.write_bytes(file.read_bytes().replace(b"(512,), }     ", b"(10000000000000,), }")[:300])  # of 73 TiB
    with pytest.raises(ValueError, match=r"Expected the votes of this run in .*, got: .*Restore"):
        drawing_of(synthetic, tmp_path).order(1)


def test_no_image_that_is_easy_enough_is_one_line(synthetic, tmp_path):
    (tmp_path / "own_votes").mkdir()
    for samples in (12, 20):
        np.save(tmp_path / "own_votes" / f"epoch_1_of_{samples}.npy", np.full(512, 7, np.int32))
    with pytest.raises(ValueError, match=r"share of threshold = 0\.4 of the noisy .* at epoch 1, got none: lower it"):
        drawing_of(synthetic, tmp_path).order(1)


@pytest.mark.evidence
def test_without_steps_and_an_epoch_to_begin_with_it_is_noise_augmentation_with_as_many_noises(synthetic, tmp_path):
    never = losses.make("hard_samples", 2.0, start_epoch=3, steps=0)
    assert train(synthetic, tmp_path / "never", never)
    assert train(synthetic, tmp_path / "plain", losses.Gaussian(noises=4))
    assert_same_weights(tmp_path / "never", tmp_path / "plain")
    assert not (tmp_path / "never" / "own_votes").exists()


@pytest.mark.evidence
def test_time_is_left_for_the_counting_where_the_next_epoch_begins_with_it(synthetic, tmp_path, monkeypatch):
    margins = []

    class Watched(Budget):
        def over(self, *, margin_ticks=1, margin_seconds=0.0):
            margins.append(margin_ticks)
            return len(margins) == 12

    monkeypatch.setattr(loop, "_IN_FLIGHT", 0)
    assert not train(synthetic, tmp_path, budget=Watched())
    plain = margins[0]
    assert [ticks - plain for ticks in margins] == [0] * 8 + [512 * 32 // 256] + [0] * 3


def test_a_scheme_that_is_not_gaussian_is_refused(synthetic, tmp_path):
    with pytest.raises(ValueError, match="Expected scheme to be of Gaussian noise for the loss hard_samples"):
        training.train(synthetic, schemes.Uniform(1.0), RECIPE, DESCRIPTION, tmp_path / "run", loss=LOSS)
    assert not (tmp_path / "run").exists()


@pytest.mark.evidence
def test_four_devices_count_and_draw_as_one_does(synthetic, trained, tmp_path):
    """The weights differ by rounding, so a few votes do."""
    assert train(synthetic, tmp_path, mesh=devices.mesh(4))
    apart = np.abs(counted(tmp_path, 1, 20) - counted(trained, 1, 20))
    assert apart.mean() < 0.1
    for name, value in tensors(trained).items():
        np.testing.assert_allclose(tensors(tmp_path)[name], value, atol=0.2, err_msg=name)
