import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from idrc_jax import models
from idrc_jax.interop import user_factory

MODULE = """
import jax.numpy as jnp
import idrc_jax as idrc

def logits(params, images):
    quadrants = images.reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4)
    return quadrants * params["scale"]

def make(scale=1.0):
    return idrc.Classifier(apply_fn=logits, params={"scale": jnp.float32(scale)}, classes=4, image_shape=(8, 8, 1))

def louder():
    return make(2.0)

def fails():
    raise RuntimeError("no such\\nluck")

def other():
    return logits
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_networks", None)


def test_the_functions_classifier_with_its_name_and_hash(folder):
    made = user_factory.load("my_networks:make")
    assert isinstance(made, models.Classifier)
    assert made.description == {"factory": "my_networks:make"}
    assert len(made.sha256) == 64
    assert user_factory.load("my_networks:make").sha256 == made.sha256
    assert user_factory.load("my_networks:louder").sha256 != made.sha256
    assert made(np.zeros((2, 8, 8, 1), np.float32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_networks", "package.module:function, got 'my_networks'"),
        ("nowhere:make", "ModuleNotFoundError: No module named 'nowhere'; it is looked for in the current folder, /"),
        ("my_networks:none", "AttributeError"),
        ("my_networks:fails", "RuntimeError: no such"),
        ("my_networks:other", "return an idrc_jax.Classifier, got function"),
    ],
)
def test_anything_else_is_refused(folder, name, message):
    with pytest.raises(ValueError, match=message):
        user_factory.load(name)


@pytest.mark.evidence
def test_certify_with_a_factory(folder):
    """The synthetic set's class is its bright quadrant, which this network reads; the manifest names it."""

    def run(*arguments):
        command = [
            sys.executable, "-m", "idrc_jax.commands.certify", "--config.data.name=synthetic", "--config.devices=1",
            "--config.certify.n=200", "--config.data.skip=8", "--config.noise.sigma=0.5", "--workdir=run", *arguments,
        ]  # fmt: skip
        clean = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
        environment = clean | {"PYTHONPATH": f"{ROOT}"}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)

    answer = run("--config.model.factory=my_networks:make")
    assert answer.returncode == 0, answer.stderr
    guarantee = json.loads((folder / "run/manifest.json").read_text())["guarantee"]
    assert guarantee["factory"] == "my_networks:make"
    assert len(guarantee["weights_sha256"]) == 64
    refused = run("--config.model.factory=my_networks:louder", "--config.data.skip=4")
    assert refused.returncode == 1
    assert "factory was my_networks:make, is my_networks:louder" in refused.stderr
    both = run("--config.model.factory=my_networks:make", "--config.model.weights=x")
    assert both.stderr == "error: Expected model.factory or model.weights, got both.\n"
    ignored = run("--config.model.factory=my_networks:make", "--config.model.dtype=bfloat16")
    told = "Expected no --config.model.dtype beside model.factory, whose network has its own"
    assert ignored.stderr == f"error: {told}.\n"
