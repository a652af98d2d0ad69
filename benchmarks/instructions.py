"""The instruction set that a measurement runs with: all of the processor's, or AVX2 forced on every contender alike.

Each library reads a setting of its own, when its process starts; `force` makes all of them for the processes that are
started from then on. What they did then is not taken from their word alone: Linux notes for each thread when it last
used registers of AVX-512 (`used_avx512`). No JAX is imported here.
"""

import os
import platform
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

NATIVE, AVX2 = "native", "avx2"
CHOICES = (NATIVE, AVX2)
NAMES = {"avx512": "AVX-512", AVX2: "AVX2", "sse2": "SSE2", "neon": "NEON"}
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_XLA = ("--xla_cpu_max_isa=AVX2", "--xla_cpu_experimental_ynn_fusion_type=")
_INTEL = {
    79: "Broadwell", 85: "Skylake or Cascade Lake", 106: "Ice Lake", 143: "Sapphire Rapids", 173: "Granite Rapids",
    207: "Emerald Rapids",
}  # fmt: skip


def widest(flags: Collection[str]) -> str:
    """A key of `NAMES`: the widest set among a processor's flags; empty where they tell none."""
    flags = set(flags)
    if flags >= _AVX512:
        return "avx512"
    if flags >= {"avx2", "fma"}:
        return AVX2
    if "sse2" in flags:
        return "sse2"
    return "neon" if flags & {"asimd", "neon"} or platform.machine() in ("arm64", "aarch64") else ""


def microarchitecture(vendor: str, family: int, model: int) -> str:
    """Of a server's processor, or its numbers: many call themselves no more than their brand."""
    if vendor == "AuthenticAMD" and family == 25:
        return "Zen 4" if 0x10 <= model <= 0x1F or model >= 0x60 else "Zen 3"
    if vendor == "AuthenticAMD" and family == 26:
        return "Zen 5"
    if vendor == "GenuineIntel" and family == 6 and model in _INTEL:
        return _INTEL[model]
    return f"family {family} model {model}" if vendor else ""


def force(asked: str, flags: Collection[str]) -> tuple[str, dict[str, str]]:
    """Hold every process that is started from now on to a set.

    Args:
      asked: one of `CHOICES`.
      flags: of the processor.

    Returns:
      The set that it comes to, a key of `NAMES`, and the environment that was set for it; none where the processor has
      no wider set.

    Raises:
      ValueError: the processor does not have the set.
    """
    native = widest(flags)
    if asked in (NATIVE, native):
        return native, {}
    if native != "avx512":
        raise ValueError(f"Expected a processor with AVX2 to force it, got {NAMES.get(native, 'another')}: use native.")
    made = _avx2()
    os.environ.update(made)
    return AVX2, made


def _avx2() -> dict[str, str]:
    return {
        # Our kernels are compiled for vectors of so many bits.
        "IDRC_VECTOR_BITS": "256",
        # XLA's own code; YNNPACK, which multiplies matrices for it, heeds no setting, and XLA's other way is AVX2's.
        "XLA_FLAGS": " ".join(filter(None, (os.environ.get("XLA_FLAGS"), *_XLA))),
        # PyTorch's convolutions, its other operators, its matrix products.
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": " ".join(_numpy_dispatches()),
        # The C library compares and copies memory with AVX-512, too; without that `used_avx512` speaks of the rest.
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD",
    }


def _numpy_dispatches() -> list[str]:
    """What NumPy found here beyond AVX2, in its own words."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return [name for name in found if "AVX512" in name or name == "X86_V4"]


def used_avx512(seconds: float, threads: Path = Path("/proc/self/task")) -> bool | None:
    """Whether one of the threads, this process's, had AVX-512 registers in use within the last so many seconds.

    The kernel looks when it takes a thread off its core, so a short use may be missed. None where it does not say.
    """
    if not threads.is_dir():
        return None
    told = []
    for thread in threads.iterdir():
        try:
            said = re.search(r"AVX512_elapsed_ms:\s*(-?\d+)", (thread / "arch_status").read_text())
        except OSError:  # it ended
            continue
        if said:
            told.append(int(said[1]))
    return any(0 <= elapsed < 1000 * seconds for elapsed in told) if told else None
