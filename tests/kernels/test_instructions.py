"""The kernel by other compilers and for other processors than this machine's, against the plain network."""

import functools
import platform
import shutil
import subprocess
from pathlib import Path

import built
import jax
import numpy as np
import pytest
from conftest import ROOT
from test_folding import fold, network, noisy

from idrc_jax.kernels import build, resnet_cpu
from idrc_jax.models import folding

SOURCE = ROOT / "tests" / "kernels" / "resnet_main.cc"
FLAGS = ["-std=c++17", "-fno-math-errno", "-ffp-contract=fast", f"-I{jax.ffi.include_dir()}"]
FLAGS += [f"-I{folder}" for folder in (build.SOURCES, build.SOURCES / "include")] + ["-pthread", "-w"]


@functools.cache
def case(shape, shortcut):
    """Weights of a network, images, and the twin's logits."""
    _, tensors, description = network(8, 10, shape, shortcut)
    folded, images = fold(tensors, description), noisy(11, shape)
    return folded, np.asarray(images), np.asarray(jax.jit(folding.apply)(folding.cast(folded, np.float32), images))


def check(program: Path, runner: list[str], folder: Path):
    """Logits of the program, run by `runner`, against those of the twin."""
    for shape, shortcut in (((32, 32, 3), "projection"), ((9, 7, 1), "zero_pad"), ((20, 12, 4), "projection")):
        folded, images, expected = case(shape, shortcut)
        for half in (False, True):
            resnet_cpu.pack(folded, half=half).tofile(folder / "weights")
            images.tofile(folder / "images")
            numbers = [*shape, len(images), 10, 1, int(shortcut == "projection"), int(half)]
            paths = [folder / name for name in ("weights", "images", "logits")]
            subprocess.run([*runner, program, *paths, *map(str, numbers)], check=True, timeout=250)
            logits = np.fromfile(folder / "logits", np.float32).reshape(len(images), 10)
            atol = (0.03 if half else 1e-5) * np.abs(expected).max()
            np.testing.assert_allclose(logits, expected, atol=atol)
            assert half == bool(np.abs(logits - expected).max() > 1e-5 * np.abs(expected).max())
            poisoned = folded | {"stem.bias": np.where(np.arange(16) == 3, np.nan, folded["stem.bias"])}
            resnet_cpu.pack(poisoned, half=half).tofile(folder / "weights")
            subprocess.run([*runner, program, *paths, *map(str, numbers)], check=True, timeout=250)
            assert np.isnan(np.fromfile(folder / "logits", np.float32)).all()


@pytest.mark.evidence
@pytest.mark.parametrize("bits", ["128", "256", "512"])
def test_every_width(bits, tmp_path, monkeypatch):
    """Narrower vectors than this machine's, and wider ones, which the compiler takes apart."""
    built.require(resnet_cpu)
    monkeypatch.setenv("IDRC_VECTOR_BITS", bits)
    compiler = build.compiler()
    program = tmp_path / "program"
    # Taking apart is slow work for an optimiser.
    subprocess.run([*compiler, "-O1", "-march=native", *build.width(), *FLAGS, SOURCE, "-o", program], check=True)
    check(program, [], tmp_path)


@pytest.mark.evidence
def test_amx_in_plain_cpp(tmp_path):
    """The way of a processor with AMX, with tiles written out; 11 images leave a place beside the last one empty."""
    built.require(resnet_cpu)
    program = tmp_path / "program"
    compiler = [*build.compiler(), "-O1", "-march=native", "-DIDRC_EMULATE_AMX"]
    subprocess.run([*compiler, *FLAGS, SOURCE, "-o", program], check=True)
    check(program, [], tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize("flags", [["-march=native"], ["-march=native", "-mno-avx512f"], []])
def test_clang(flags, tmp_path):
    if not shutil.which("clang++") or platform.machine() != "x86_64":
        pytest.skip("needs clang++ on x86-64")
    program = tmp_path / "program"
    subprocess.run(["clang++", "-O3", *flags, *FLAGS, SOURCE, "-o", program], check=True)
    check(program, [], tmp_path)


@pytest.mark.peers
def test_arm(tmp_path):
    """NEON, by a cross compiler and an emulator."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if not (compiler and emulator):
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64")
    program = tmp_path / "program"
    subprocess.run([compiler, "-O3", "-static", *FLAGS, SOURCE, "-o", program], check=True)
    check(program, [emulator], tmp_path)
