"""The schemes of l1 radii by commands: certification, prediction, recertification, comparison."""

import numpy as np
import pytest
import running
from test_predict import FACTORY

from idrc_jax import config, results
from idrc_jax.certificates.sampling_plans import Exhaustive, Fixed
from idrc_jax.commands import certify, compare, predict, recertify

GIVEN = ["--config.model.factory=brightness_of_images:make", "--config.devices=1", "--config.data.dir=own.npz"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "brightness_of_images.py").write_text(FACTORY)
    images = np.concatenate([np.full((5, 4, 4, 1), 20, np.uint8), np.full((5, 4, 4, 1), 240, np.uint8)])
    np.savez(tmp_path / "own.npz", images=images, labels=np.repeat([0, 1], 5))
    return tmp_path


def called(main, *arguments):
    status, out, error = running.run(main, *arguments)
    assert status == 0, error
    return out


@pytest.mark.parametrize(
    ("name", "n"), [("box", 1000), ("splitting", 88), pytest.param("laplace", 1000, marks=pytest.mark.evidence)]
)
def test_certification_prediction_and_comparison_in_l1(place, name, n):
    scheme = [f"--config.noise.scheme={name}", "--config.noise.sigma=0.1"]
    out = called(certify.main, *GIVEN, *scheme, "--config.certify.n=1000", "--workdir=run")
    assert "Certified accuracy at l1 radius r" in out
    read = results.read_results("run")
    assert {(row.norm, row.n, row.predict == row.label) for row in read} == {("l1", n, True)}
    assert read.manifest["guarantee"]["norm"] == "l1"
    out = called(recertify.main, "run", "--norm=linf", "--out=linf")
    assert "It is stated in linf, by what its l1 radius says there." in out
    assert [row.radius for row in results.read_results("linf")] == pytest.approx([row.radius / 16 for row in read])
    assert "Valid l1 radii" in called(compare.main, "a=run", "b=run")
    assert "radii of one norm" in running.refused(compare.main, "run", "linf")
    lines = called(predict.main, *GIVEN, *scheme, "--n=100").splitlines()
    assert [line.split("\t")[2] for line in lines[1:]] == ["0"] * 5 + ["1"] * 5


def test_settings_that_do_not_go_with_splitting_are_one_line(place):
    scheme = ["--config.noise.scheme=splitting", "--config.noise.sigma=0.1", "--workdir=run"]
    for plan in ("fixed", "selection_free", "to_radius", "to_precision"):
        said = running.refused(certify.main, *GIVEN, *scheme, f"--config.sampling.plan={plan}")
        expected = "Expected sampling.plan exhaustive, all 88 offsets of splitting at sigma 0.1, got"
        assert said == f"error: {expected} {plan}.\n"
    said = running.refused(certify.main, *GIVEN, *scheme, "--config.certify.certificate=runner_up")
    assert "runner_up" in said
    said = running.refused(
        certify.main, *GIVEN, "--config.noise.sigma=0.1", "--config.sampling.plan=exhaustive", "--workdir=other"
    )
    assert "another plan for gaussian, got exhaustive" in said


@pytest.mark.parametrize("plan", ["", "exhaustive"])
@pytest.mark.parametrize("n", [10_000, 7])
def test_splitting_takes_all_offsets_whatever_a_config_file_says_of_n(plan, n):
    made = config.load("quickstart.py")
    made.noise.scheme, made.noise.sigma, made.sampling.plan, made.certify.n = "splitting", 0.1, plan, n
    assert config.settings(made).plan == Exhaustive(88)
    made.noise.scheme, made.sampling.plan = "gaussian", ""
    made.certify.n = 1000
    assert config.settings(made).plan == Fixed(n=1000, n0=made.certify.n0)
