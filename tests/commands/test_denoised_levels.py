"""Commands with a denoiser that is told each level of the noise: whose votes count, what is told and refused."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
import running
import trained_runs
from flax import nnx

from idrc_jax import config, data, models, results, sampling
from idrc_jax.certificates import schemes
from idrc_jax.certification import gallery_selection
from idrc_jax.commands import audit, certify, gallery, predict
from idrc_jax.models.diffusion import Schedule
from idrc_jax.report import run_summaries
from idrc_jax.results import gallery_file
from idrc_jax.sampling import random_keys

FEW = ("--config.data.skip=16", "--config.certify.n=200", "--config.devices=1")
LIGHT = [f"--config.audit.{name}" for name in ("images=1", "votes=100", "screening=100", "steps=1", "samples=8")]
SCHEMES = {
    "cascade": (
        "--config.noise.scheme=cascade",
        "--config.noise.levels=(1.0, 0.5)",
        "--config.noise.thresholds=(0.95,)",
    ),
    "stepped": ("--config.noise.scheme=stepped", "--config.noise.levels=(0.5, 1.0)", "--config.noise.edges=(3.31,)"),
}
TOLD = {"cascade": (0.5, 0.25), "stepped": (0.25, 0.5)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classifiers and a denoiser, of random weights."""
    folder = tmp_path_factory.mktemp("denoised_levels")
    for number in range(2):
        trained_runs.save(folder / f"{number}", number)
    settings = config.load("denoiser.py")
    settings.data.name, settings.denoiser.widths = "synthetic", (4, 8)
    settings.denoiser.attention, settings.denoiser.groups = (False, False), 2
    described = config.denoiser_description(settings, config.dataset(settings, "train"))
    described["diffusion"] = {"schedule": dataclasses.asdict(Schedule()), "prediction": "epsilon"}
    _, params, stats = models.split(models.build(described, dtype="float32", rngs=nnx.Rngs(7)))
    generator = np.random.default_rng(7)  # a U-Net begins with an output of 0
    tensors = {
        name: np.asarray(value) + generator.normal(scale=0.1, size=value.shape).astype(np.float32)
        for name, value in (params | stats).items()
    }
    models.save_weights(folder / "denoiser.safetensors", tensors, described)
    return folder


def given(place, *more):
    return [f"--config.denoiser.weights={place / 'denoiser.safetensors'}", *more, *FEW]


@pytest.fixture(scope="module", params=SCHEMES)
def certified(place, request, tmp_path_factory):
    """One classifier behind the denoiser, under each scheme."""
    out = tmp_path_factory.mktemp("out") / request.param
    flags = given(place, f"--config.model.weights={place / '1'}", *SCHEMES[request.param])
    status, told, error = running.run(certify.main, f"--workdir={out}", *flags)
    assert status == 0, error
    assert "networks" not in told
    assert ", denoised, told each level, " in told
    assert " right on clean images (told the last level)" in told
    assert "network 2" not in error
    return request.param, out, flags


def test_votes_of_each_level_are_of_the_network_that_is_told_it(place, certified):
    name, out, _ = certified
    read = results.read_results(out)
    network, denoiser = models.load_classifier(place / "1"), models.load_denoiser(place / "denoiser.safetensors")
    seed = read.manifest["guarantee"]["seed"]
    images, seen = data.to_unit(data.load("synthetic", "test", seed=seed).images), set()
    for row in read.rows:
        drawn = row.votes_by_level or [row]
        for one in drawn:
            level = getattr(one, "level", 0)
            sigma = TOLD[name][level] if row.votes_by_level else row.sigma_x
            votes = sampling.count_votes(
                models.denoised(network, denoiser, sigma=sigma), schemes.Gaussian(sigma), images[[row.idx]],
                indices=np.array([row.idx]), n=sum(one.votes.values()),
                key=random_keys.stage(
                    random_keys.root(seed), random_keys.stage_of_level(random_keys.ESTIMATION, level)
                ),
            )[0]  # fmt: skip
            assert {k: int(v) for k, v in enumerate(votes[:-1]) if v} == one.votes
            seen.add(sigma)
    assert seen == set(TOLD[name])


def test_the_manifest_tells_each_level_and_its_command_makes_the_same_rows(place, certified, tmp_path):
    name, out, _ = certified
    read = results.read_results(out)
    made = read.manifest["guarantee"]
    assert tuple(one["denoiser"]["sigma"] for one in made["by_level"]) == TOLD[name]
    assert len({one["weights_sha256"] for one in made["by_level"]}) == 1
    command = run_summaries.command(read)
    assert f"--config.model.weights={place / '1'}" in command
    assert "--config.denoiser.sigma=0.0" in command  # whatever the weights remember
    again = command.replace("OUT", str(tmp_path)).replace("--config.data.dir=FOLDER", "")
    status, _, error = running.run(certify.main, *shlex.split(again)[1:], "--config.devices=1")
    assert status == 0, error
    rows = [{row.idx: row.votes for row in results.read_results(one).rows} for one in (out, tmp_path)]
    assert rows[0] == rows[1]


def test_a_run_goes_on_as_it_was_told_alone_is_audited_and_predicts(place, certified, tmp_path):
    name, out, flags = certified
    line = running.refused(certify.main, f"--workdir={out}", *flags, "--config.denoiser.sigma=0.5")
    assert "by_level was 2 networks, is unset" in line
    both = f"--config.model.by_level={place / '0'},{place / '1'}"
    others = [both if one.startswith("--config.model.weights") else one for one in flags]
    line = running.refused(certify.main, f"--workdir={out}", *others)
    assert "network 1's weights_sha256 was" in line
    assert "network 2's" not in line
    status, _, error = running.run(audit.main, str(out), *flags[:2], "--config.devices=1", *LIGHT)
    assert status == 0, error
    status, told, error = running.run(
        predict.main, *flags[:2], *SCHEMES[name], "--config.data.count=2", "--n=200", "--config.devices=1"
    )
    assert status == 0, error
    assert len(told.splitlines()) == 3


def test_the_gallery_is_denoised_as_each_image_is(place, certified):
    name, out, _ = certified
    status, _, error = running.run(gallery.main, str(out), f"--denoiser={place / 'denoiser.safetensors'}")
    assert status == 0, error
    found, denoiser = gallery_file.read(out), models.load_denoiser(place / "denoiser.safetensors")
    made = results.read_results(out).manifest["guarantee"]
    images = data.to_unit(data.load("synthetic", "test", seed=made["seed"]).images[found.index])
    noisy = gallery_selection.add_first_noise(
        schemes.from_description(made), images, found.sigma_x, indices=found.index, seed=made["seed"]
    )
    for i, sigma in enumerate(found.sigma_x):
        wanted = gallery_selection.to_bytes(np.asarray(denoiser(noisy[[i]], sigma=float(sigma))))[0]
        assert np.max(np.abs(wanted.astype(int) - found.denoised[i])) <= 1
    assert set(found.sigma_x.tolist()) == ({0.5} if name == "cascade" else set(TOLD["stepped"]))


def test_what_cannot_be_told_is_one_line(place, tmp_path):
    both = f"--config.model.by_level={place / '0'},{place / '1'}"
    for flags, message in (
        ((both, "--config.noise.scheme=l1"), "Expected no networks by level for the scheme l1, got 2"),
        (
            (f"--config.model.weights={place / '0'}", "--config.noise.scheme=l1"),
            "Expected denoiser.sigma, one level for all images, as l1 has a level of its own for each",
        ),
        (
            (both, "--config.noise.scheme=cascade", "--config.noise.levels=(1.0, 0.5, 0.25)"),
            "Expected 3 networks by level, one for each level of the scheme cascade, got 2",
        ),
        (
            (
                f"--config.model.weights={place / '0'}",
                "--config.noise.scheme=cascade",
                "--config.noise.levels=(1.0, 0.00001)",
            ),
            "got 5e-06",
        ),
    ):
        assert message in running.refused(certify.main, f"--workdir={tmp_path}", *given(place, *flags))


def test_one_number_is_told_to_the_networks_of_all_levels(place, tmp_path):
    both = f"--config.model.by_level={place / '0'},{place / '1'}"
    flags = given(place, both, *SCHEMES["cascade"], "--config.denoiser.sigma=0.3", "--config.denoiser.steps=2")
    status, told, error = running.run(certify.main, f"--workdir={tmp_path}", *flags)
    assert status == 0, error
    assert "2 networks, one a level, denoised, told 0.3, " in told
    assert "(the last level's network)" in told
    made = json.loads((tmp_path / "manifest.json").read_text())["guarantee"]
    assert [one["denoiser"]["sigma"] for one in made["by_level"]] == [0.3, 0.3]
    command = run_summaries.command(results.read_results(tmp_path))
    assert both in command
    assert "--config.denoiser.sigma=0.3 --config.denoiser.steps=2" in command


def test_an_ensemble_is_told_to_vote_under_every_level(place):
    both = f"--config.model.weights={place / '0'},{place / '1'}"
    flags = [
        one for one in given(place, both, *SCHEMES["cascade"]) if "data.skip" not in one and "certify.n" not in one
    ]
    status, _, error = running.run(predict.main, *flags, "--config.data.count=1", "--n=200")
    assert status == 0, error
    assert "note: the 2 networks of model.weights vote together, as one ensemble, under every level" in error
    assert "network 2" not in error
