"""Four simulated CPU devices, unless the user has chosen; and `--forbid-skips` for machines that have everything.

Most of the time is the compiler's: XLA optimises less unless XLA_FLAGS is set, if only to nothing, and what it makes is
kept in the checkout, for the next run and for the commands that tests start. Of several workers (`-n`) each has a core
of its own.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax  # noqa: E402  (which reads these)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from idrc_jax.data import Dataset, from_arrays, load  # noqa: E402
from idrc_jax.kernels import (  # noqa: E402
    convolution_cpu,
    network_cpu,
    resnet_cpu,
    resnet_training_cpu,
    rounded_normal_cpu,
)
from idrc_jax.models import Classifier  # noqa: E402
from idrc_jax.sampling import implementation_choice_cache  # noqa: E402

KERNELS = (convolution_cpu, network_cpu, resnet_cpu, resnet_training_cpu, rounded_normal_cpu)

if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 4)


def pytest_configure(config):
    worker = getattr(config, "workerinput", None)
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker["workerid"].removeprefix("gw")) % len(cores)]})
    elif getattr(config.option, "numprocesses", None):
        with ThreadPoolExecutor() as pool:  # once, not by every worker
            list(pool.map(lambda kernel: kernel.available(), KERNELS))


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
    with mock.patch.object(implementation_choice_cache, "cache_folder", return_value=folder):
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
def dataset() -> Dataset:
    """Sixty random 4x4x1 images of three classes, for `linear`."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
    return from_arrays(images, generator.integers(0, 3, 60), name="made", classes=3)


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Five 4x4x1 images in [0, 1]."""
    return np.random.default_rng(3).uniform(size=(5, 4, 4, 1)).astype(np.float32)


@pytest.fixture(scope="session")
def synthetic() -> Dataset:
    """The training images of the data set `synthetic`."""
    return load("synthetic", "train")
