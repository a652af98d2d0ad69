"""Four simulated CPU devices, unless the user has chosen; and `--forbid-skips` for machines that have everything."""

import os
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax import choice
from idrc_jax.checkpoints import Classifier

if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 4)

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--forbid-skips", action="store_true", help="A skipped test is a failure.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if item.config.getoption("--forbid-skips") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under --forbid-skips: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _choices(tmp_path_factory):
    """What is measured in a test session is remembered for that session alone."""
    folder = tmp_path_factory.mktemp("choices")
    with mock.patch.object(choice, "cache_folder", return_value=folder):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published logs, CIFAR-10 and other people's weights."""
    folder = Path(os.environ.get("IDRC_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared data at {folder} (set IDRC_SHARED)")
    return folder / "data"


def linear_logits(params, images):
    """Logits of a linear classifier, by float32 sums of products in a fixed order."""
    flat = images.reshape(images.shape[0], -1)
    return jnp.stack([jnp.sum(flat * row[None], axis=1) for row in params], axis=1)


@pytest.fixture(scope="session")
def linear() -> Classifier:
    """Three classes on 4x4x1 images; weights from a fixed seed."""
    params = np.random.default_rng(7).normal(size=(3, 16)).astype(np.float32)
    return Classifier(apply_fn=linear_logits, params=jnp.asarray(params), classes=3, image_shape=(4, 4, 1))


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Five 4x4x1 images in [0, 1]."""
    return np.random.default_rng(3).uniform(size=(5, 4, 4, 1)).astype(np.float32)
