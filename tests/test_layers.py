"""Rooms from the ground up: a module imports only modules above it, and the upper floor works without JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import idrc_jax

PACKAGE = ROOT / "idrc_jax"
ORDER = [
    "_validate", "_files", "_command", "_roots", "statistics", "plans", "schemes", "neyman_pearson", "radial",
    "certificates", "results", "summary", "galleries", "runs", "figures", "paper", "tables", "compare", "recertify",
    "findings", "class_names", "digest", "charts", "report", "progress", "imagenet", "implementations",
    "interop.layouts",
    "interop.torch_files", "interop.checks", "interop.tables",
    # ---- everything above imports no JAX
    "threefry", "prng", "noise", "models.activations", "models.resnet", "models.resnet50", "models.unet", "models.vit",
    "kernels.build", "kernels.network_cpu", "models.folding", "kernels.resnet_cpu",
    "kernels.convolution_cpu", "kernels.resnet_training_cpu",
    "data", "devices", "workers", "diffusion",
    "checkpoints", "denoised_smoothing", "interop.diffusers", "interop.transformers_vit", "interop.importing",
    "interop.exporting", "interop.aten", "interop.graphs", "interop.fusing", "interop.torch_modules", "interop.factory",
    "sampling", "choice", "training_loop", "training", "denoising", "scheduler",
    "certification", "exhibits", "smoothing", "attacks",
    "refutation", "audit", "config", "cli",
]  # fmt: skip
WITHOUT_JAX = ORDER[: ORDER.index("threefry")]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """The package's own modules that a file imports, other than as the program that `python -m` runs."""
    names = set()
    module = ast.parse(path.read_text())
    module.body = [node for node in module.body if not (isinstance(node, ast.If) and "__main__" in ast.dump(node.test))]
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module == "idrc_jax":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("idrc_jax."):
            names.add(node.module.removeprefix("idrc_jax."))
    return names - {"__version__"}


def test_every_module_has_its_place():
    found = {name_of(path) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
    assert found == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_up(name):
    below = set(ORDER[ORDER.index(name) :])
    assert not imported(PACKAGE / f"{name.replace('.', '/')}.py") & below


@pytest.mark.parametrize("module", ["idrc_jax", *[f"idrc_jax.{name}" for name in WITHOUT_JAX]])
def test_the_upper_floor_loads_no_jax(module):
    code = f"import sys, {module}; print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_reading_results_by_the_public_names_loads_no_jax():
    code = (
        "import sys, idrc_jax as idrc; idrc.read_results, idrc.certified_accuracy, idrc.plot_certified_accuracy; "
        "idrc.schemes.L1(sigma=1.0), idrc.certificates.radius, idrc.statistics.predict; print('jax' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "False"


def test_public_names_exist_and_unknown_ones_say_so():
    for name in idrc_jax.__all__:
        assert getattr(idrc_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'certifi'"):
        idrc_jax.certifi  # noqa: B018


def test_no_pickle_and_no_settings_at_import():
    """Only entry points change JAX's settings; nothing here unpickles."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "pickle.load" not in text
        assert "allow_pickle=True" not in text
        if "jax.config.update" in text or 'os.environ["XLA' in text:
            assert path.name == "devices.py"


def test_entry_points_are_short():
    for name in ("train.py", "certify.py"):
        assert len((ROOT / name).read_text().splitlines()) < 80
