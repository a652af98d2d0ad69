"""Kernels in C++, compiled for this machine when first used and kept in the user's cache.

`IDRC_VECTOR_BITS` (128, 256 or 512) builds them for vectors of another width than the machine's widest: narrower ones
to time what other machines will do, wider ones, which are slow, to test them.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from idrc_jax.core import files

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
_NARROWER = {"": (), "128": ("-mno-avx512f", "-mno-avx"), "256": ("-mno-avx512f",), "512": ()}
SOURCES = Path(__file__).parent / "cpp"
_SELF_TEST_SECONDS = 300
_LIBRARIES: dict[str, ctypes.CDLL] = {}  # that are registered, by source
_SELF_TEST = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).IdrcSelfTest())"


@functools.cache
def register(source: str, symbols: tuple[tuple[str, str], ...]) -> bool:
    """Compile `source`, a file of `cpp/`, and make its handlers known to JAX.

    Args:
      source: the file's name.
      symbols: (name of the FFI target, C symbol) pairs.

    Returns:
      Whether the targets can be called. Without a C++ compiler, where it fails, or where what it makes crashes or
      computes wrongly, one warning says why.
    """
    try:
        library = _LIBRARIES[source] = ctypes.CDLL(str(_compiled(SOURCES / source)))
        handlers = {target: jax.ffi.pycapsule(getattr(library, symbol)) for target, symbol in symbols}
    except (OSError, RuntimeError, AttributeError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        lines = output.strip().splitlines()
        said = next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)
        logging.getLogger("idrc_jax").warning("No kernel of %s (%s): XLA does its work.", source, said)
        return False
    for target, handler in handlers.items():
        jax.ffi.register_ffi_target(target, handler, platform="cpu")
    return True


def asked(source: str, symbol: str, *numbers: int) -> bool:
    """What a function of integers of a library that is registered answers."""
    return bool(getattr(_LIBRARIES[source], symbol)(*numbers))


def _compiled(source: Path) -> Path:
    """The shared library of a source file; its name tells everything that it depends on."""
    command = [
        *compiler(),
        *_FLAGS,
        *width(),
        *(f"-I{folder}" for folder in (SOURCES / "include", SOURCES, jax.ffi.include_dir())),
    ]
    version = _said_by([*compiler(), "--version"])
    texts = [file.read_text() for file in (source, *sorted(SOURCES.rglob("*.h")))]
    identity = "\n".join([*texts, *command, version, importlib.metadata.version("jaxlib"), processor()])
    name = f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    folder = files.cache_folder()
    if not (folder / name).is_file():
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            built = Path(partial) / name
            _said_by([*command, str(source), "-o", str(built)])
            _require_self_test(built)
            os.replace(built, folder / name)
    return folder / name


def _said_by(command: list[str]) -> str:
    """What a compiler writes, in English and whatever its characters."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=True)
    return done.stdout


def compiler() -> list[str]:
    """Find the command of the C++ compiler, or raise FileNotFoundError."""
    command = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if command is None:
        raise FileNotFoundError("no C++ compiler found: install g++ or set CXX")
    return command.split()


def width() -> tuple[str, ...]:
    """Choose flags for the vectors that IDRC_VECTOR_BITS asks for."""
    bits = os.environ.get("IDRC_VECTOR_BITS", "")
    if bits not in _NARROWER:
        raise RuntimeError(f"expected IDRC_VECTOR_BITS of 128, 256 or 512, got {bits!r}")
    lanes = (f"-DIDRC_LANES={int(bits) // 32}",) if bits else ()
    x86 = platform.machine().lower() in ("x86_64", "amd64")  # others have one width
    return (*(_NARROWER[bits] if x86 else ()), *lanes)


def _require_self_test(library: Path) -> None:
    """RuntimeError unless the new library runs on this processor, in a process of its own, and computes rightly."""
    command = [sys.executable, "-c", _SELF_TEST, str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SELF_TEST_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"what the compiler made was not done with its self-test in {_SELF_TEST_SECONDS} s"
        ) from None
    if done.returncode < 0:
        raise RuntimeError(f"what the compiler made crashed in its self-test, by signal {-done.returncode}")
    if done.returncode:
        raise RuntimeError(f"what the compiler made failed its self-test {done.stderr[-200:]}".rstrip())


def processor() -> str:
    """Tell what -march=native looks at; a cache may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
