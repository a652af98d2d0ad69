"""Ensembles: the mean of logits by every implementation, its gradient, the consensus of the first members."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_networks import RESNET

import idrc_jax as idrc
from idrc_jax import models
from idrc_jax.certificates import schemes
from idrc_jax.models.diffusion import Denoiser, Schedule
from idrc_jax.sampling import random_keys

DESCRIPTION = RESNET | {"shortcut": "projection"}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(21, 8, 8, 1)), jnp.float32)


def description(number):
    training = {"scheme": {"name": "gaussian", "sigma": 0.25}, "recipe": {"epochs": 1}, "seed": number}
    return {**DESCRIPTION, "training": training}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three networks of different seeds, the last of another depth."""
    folder = tmp_path_factory.mktemp("members")
    for number, depth in enumerate((8, 8, 14)):
        about = {**description(number), "depth": depth}
        _, params, stats = models.split(models.build(about, dtype="float32", rngs=nnx.Rngs(number)))
        tensors = {name: np.asarray(value) for name, value in (params | stats).items()}
        models.save_weights(folder / f"{number}.safetensors", tensors, about)
    return [folder / f"{number}.safetensors" for number in range(3)]


def linear_members(count, classes=3):
    """Linear classifiers of which any two disagree on many images, and the last outweighs the others."""

    def apply_fn(params, images):
        return (images - 0.5).reshape(len(images), -1) @ params

    rng = np.random.default_rng(5)
    scales = [1] * (count - 1) + [4]
    params = [jnp.asarray(scale * rng.normal(size=(64, classes)), jnp.float32) for scale in scales]
    return [models.Classifier(apply_fn, own, classes, (8, 8, 1)) for own in params]


def test_logits_are_the_mean_of_the_members_by_every_implementation(files):
    members = [models.load_classifier(file, kernel="xla") for file in files]
    expected = np.mean([one(IMAGES) for one in members], axis=0)
    made = models.load_classifier(files)
    assert [one.kernel for one in made.implementations] in (["xla"], ["resnet_cpu", "xla"])
    assert made.reference.kernel == "xla"
    for one in made.implementations:
        np.testing.assert_allclose(jax.jit(one.apply_fn)(one.params, IMAGES), expected, atol=1e-5)
    assert (made.classes, made.image_shape, made.dtype) == (4, (8, 8, 1), "float32")
    assert "ensemble of 3" in repr(made)


@pytest.mark.evidence
def test_gradients_are_those_of_the_mean_logits(files):
    members = [models.load_classifier(file, kernel="xla") for file in files]
    directions = jnp.asarray(np.random.default_rng(1).normal(size=(21, 4)), jnp.float32)

    def gradient(one):
        return jax.grad(lambda images: jnp.vdot(one(images), directions))(IMAGES)

    expected = np.mean([gradient(one) for one in members], axis=0)
    for made in (models.load_classifier(files), models.load_classifier(files, consensus=2)):
        np.testing.assert_allclose(gradient(made), expected, atol=1e-5)


def test_an_ensemble_is_named_by_its_members_in_their_order(files):
    made, turned = models.load_classifier(files), models.load_classifier(files[::-1])
    hashes = [models.load_classifier(file).sha256 for file in files]
    assert made.sha256 == hashlib.sha256("\n".join(hashes).encode()).hexdigest() != turned.sha256
    assert [one["weights_sha256"] for one in made.description["members"]] == hashes
    assert [one["depth"] for one in made.description["members"]] == [8, 8, 14]
    assert made.description["training"] == {name: description(0)["training"][name] for name in ("scheme", "recipe")}
    unnamed = dataclasses.replace(models.load_classifier(files[0]), sha256="")
    assert models.ensemble([unnamed, models.load_classifier(files[1])]).sha256 == ""


def test_one_network_is_no_ensemble(files):
    made = models.load_classifier(files[:1])
    assert made.description == models.load_classifier(files[0]).description


@pytest.mark.parametrize("batch", [1, 2, 8, 21])
def test_where_the_first_members_agree_they_decide(batch):
    members, images = linear_members(5), IMAGES[:batch]
    logits = np.stack([one(images) for one in members])
    agree = (logits[:3].argmax(-1) == logits[0].argmax(-1)).all(0)
    expected = np.where(agree[:, None], logits[:3].mean(0), logits.mean(0))
    if batch == 21:
        assert 0 < agree.sum() < batch
        assert (expected.argmax(-1) != logits.mean(0).argmax(-1)).any()  # it is another function
    made = models.ensemble(members, consensus=3)
    np.testing.assert_allclose(jax.jit(made.apply_fn)(made.params, images), expected, rtol=1e-5, atol=1e-5)


def test_the_other_members_see_only_what_the_first_disagree_on():
    seen = []

    def watched(params, images):
        jax.debug.callback(seen.append, images)
        return (images - 0.5).reshape(len(images), -1) @ params

    members = linear_members(3)
    images = jnp.tile(IMAGES, (8, 1, 1, 1))[:160]
    split = np.sum(members[0](images).argmax(-1) != members[1](images).argmax(-1))
    made = models.ensemble([*members[:2], dataclasses.replace(members[2], apply_fn=watched)], consensus=2)
    jax.block_until_ready(jax.jit(made.apply_fn)(made.params, images))
    jax.effects_barrier()
    assert 0 < split < 140
    assert sum(map(len, seen)) == -(-split // 20) * 20


def test_a_nan_of_a_member_is_no_vote():
    members = linear_members(3)
    broken = dataclasses.replace(members[1], apply_fn=lambda params, images: images[:, 0, 0] * jnp.nan + params[:1])
    for consensus in (0, 2):
        made = models.ensemble([members[0], broken, members[2]], consensus=consensus)
        assert np.isnan(made(IMAGES)).all()


@pytest.mark.parametrize("consensus", [0, 2])
def test_votes_depend_neither_on_devices_nor_on_chunks(consensus):
    made = models.ensemble(linear_members(4), consensus=consensus)
    votes = [
        idrc.count_votes(
            made, schemes.Gaussian(0.5), np.asarray(IMAGES[:3]), indices=np.arange(3), n=200, key=random_keys.root(0),
            chunk=chunk, mesh=idrc.devices.mesh(count),
        )
        for chunk, count in ((8, 1), (50, 4))
    ]  # fmt: skip
    np.testing.assert_array_equal(*votes)


def test_a_denoiser_goes_in_front_of_all_members(files):
    made = models.load_classifier(files)
    denoiser = Denoiser(
        apply_fn=lambda params, x, time: params * x, params=jnp.float32(0.5), image_shape=(8, 8, 1),
        schedule=Schedule(), prediction="sample", sha256="d" * 64,
    )  # fmt: skip
    behind = models.denoised(made, denoiser, sigma=0.25)
    clean = denoiser.denoise(denoiser.params, IMAGES, sigma=0.25, steps=1)
    np.testing.assert_allclose(behind(IMAGES), made(clean), atol=1e-5)
    assert behind.description["members"] == made.description["members"]
    with pytest.raises(ValueError, match="put the denoiser in front of the ensemble"):
        models.ensemble([behind, models.load_classifier(files[0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 5}, "of one classes in an ensemble, got 3 in the first and 5 in number 2"),
        ({"dtype": "bfloat16"}, "got float32 in the first and bfloat16 in number 2. model.dtype makes them alike"),
        ({"image_shape": (4, 4, 4)}, "of one image_shape"),
        ({"sha256": "a"}, "got the weights of number 2 twice"),
        ({"description": {"class_names": ["cat", "dog", "eel"]}}, "got ant, bee, cow ... and cat, dog, eel ..."),
    ],
)
def test_networks_that_do_not_fit_together(change, message):
    first, second = linear_members(2)
    first = dataclasses.replace(first, sha256="a", description={"class_names": ["ant", "bee", "cow"]})
    with pytest.raises(ValueError, match=message):
        models.ensemble([first, dataclasses.replace(second, **change)])


@pytest.mark.parametrize(
    ("count", "consensus", "message"),
    [
        (1, 2, r"Expected consensus = 0 with 1 network, got 2\."),
        (2, 2, r"Expected consensus = 0 with 2 networks, got 2\."),
        (4, 4, r"Expected consensus = 0, or from 2 to 3 of 4 networks, got 4\."),
        (4, 1, r"Expected consensus = 0, or from 2 to 3 of 4 networks, got 1\."),
        (0, 0, r"Expected at least one network, got none\."),
    ],
)
def test_a_consensus_that_cannot_be(count, consensus, message):
    with pytest.raises(ValueError, match=message):
        models.ensemble(linear_members(count)[:count], consensus=consensus)
