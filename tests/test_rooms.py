"""The house: rooms from the ground up, each of few modules; a module imports only rooms above its own."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

import idrc_jax

PACKAGE = ROOT / "idrc_jax"
WITHOUT_JAX = ["core", "certificates", "several_levels", "results", "report"]
ROOMS = [
    *WITHOUT_JAX, "data", "kernels", "models", "interop", "sampling", "losses", "training", "certification", "audit",
    "config", "commands",
]  # fmt: skip
LONGER: set[str] = set()  # than 400 lines, for one idea that needs them
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.glob("*/*.py"))
    if path.stem != "__init__"
}


def imported(path: Path) -> set[str]:
    """What a file imports of the package: "room", or "room.module"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "idrc_jax":
            place = node.module.removeprefix("idrc_jax").removeprefix(".")
            for alias in node.names:
                full = f"{place}.{alias.name}".removeprefix(".")
                found.add(full if full in MODULES or full in ROOMS else place)
        elif isinstance(node, ast.Import):
            found |= {one.name.removeprefix("idrc_jax.") for one in node.names if one.name.startswith("idrc_jax.")}
    return found - {""}


def test_every_folder_is_a_room_with_a_purpose():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    for room in ROOMS:
        purpose = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
        assert "Imports" in purpose, room


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_up(name):
    room = name.split(".")[0]
    above = set(ROOMS[: ROOMS.index(room)])
    for one in imported(MODULES[name]):
        assert one.split(".")[0] in above or one.startswith(f"{room}."), one


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_goes_round(room):
    own = {name: imported(path) & set(MODULES) for name, path in MODULES.items() if name.startswith(f"{room}.")}
    tuple(TopologicalSorter(own).static_order())  # CycleError for a circle


def test_rooms_are_small_and_modules_short():
    for room in ROOMS:
        assert sum(name.startswith(f"{room}.") for name in MODULES) <= 14, room
    longer = {name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 400}
    assert longer <= LONGER


def test_the_upper_floor_loads_no_jax():
    names = [name for name in MODULES if name.split(".")[0] in WITHOUT_JAX]
    code = f"import sys, idrc_jax, {', '.join(f'idrc_jax.{name}' for name in names)}; "
    code += "print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_reading_results_by_the_public_names_loads_no_jax():
    code = (
        "import sys, idrc_jax as idrc; idrc.read_results, idrc.certified_accuracy, idrc.plot_certified_accuracy; "
        "idrc.to_pandas, idrc.schemes.L1(sigma=1.0), idrc.certificates.radius, idrc.statistics.predict; "
        "print('jax' in sys.modules)"
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
