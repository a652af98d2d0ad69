"""What every measurement shares: the machine, inputs, warm-up, medians. No JAX is imported here."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import instructions, networks

SIGMA = 0.25
ALPHA = 0.001
N0 = 100
TRAINING_IMAGES = 50_000
LEARNING_RATE = 1e-3  # small, so that random labels and weights stay finite for as long as it is timed
_ISA = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
_PACKAGES = (
    "jax", "jaxlib", "flax", "numpy", "scipy", "torch", "adversarial-robustness-toolbox", "transformers", "diffusers",
)  # fmt: skip


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> tuple[str, str, list[str]]:
    """Its name, its microarchitecture as far as it is known, and its flags as Linux names them."""
    about = {}
    if Path("/proc/cpuinfo").is_file():
        entries = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        about = {key.strip(): value.strip() for key, _, value in entries}
    numbers = (int(about.get(name, 0)) for name in ("cpu family", "model"))
    made = instructions.microarchitecture(about.get("vendor_id", ""), *numbers)
    name = about.get("model name", platform.processor() or platform.machine())
    return name, made, (about.get("flags") or about.get("Features", "")).split()


def machine() -> dict[str, Any]:
    """Where and with what a measurement runs."""
    cpu, microarchitecture, flags = processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "microarchitecture": microarchitecture,
        "instructions": [name for name in _ISA if name in flags],
        "cores": cores(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Of this checkout, with a + where files differ from it; empty where git does not know."""
    folder = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"], cwd=folder, capture_output=True, text=True
        )
    except OSError:
        return ""
    return said.stdout.strip()


def picture(size: int, channels: int = 3) -> np.ndarray:
    """The image that is certified, float32 [1, size, size, channels] in [0, 1]."""
    return networks.images(1, size, channels=channels)


def probe(size: int, channels: int = 3) -> np.ndarray:
    """Noisy images float32 [16, size, size, channels] on which contenders' logits are compared."""
    noise = np.random.default_rng(1).standard_normal((16, size, size, channels), np.float32)
    return networks.images(16, size, channels=channels) + np.float32(SIGMA) * noise


def training_set(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 [50000, size, size, 3] and labels int32 [50000]."""
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (TRAINING_IMAGES, size, size, 3), np.uint8)
    return images, generator.integers(0, 10, TRAINING_IMAGES).astype(np.int32)


def require_finite(losses: Sequence[float] | np.ndarray) -> None:
    """RuntimeError unless training went well."""
    if not np.isfinite(losses).all():
        raise RuntimeError("Expected finite losses, got one that is not.")


def calibrate(turn: Callable[[int], float], stride: int, enough: float = 0.5) -> float:
    """Samples per second, after one call that compiles and warms up and ever longer ones until one lasts `enough`."""
    turn(stride)
    samples = stride
    while (seconds := turn(samples)) < enough:
        samples += stride * max(1, round(samples / stride * min(3.0, enough / seconds)))
    return samples / seconds


def summary(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "q1": float(low), "q3": float(high)}


class Clock:
    """Says what is done and when."""

    def __init__(self, minutes: float = 0.0) -> None:
        self._start, self._limit = time.monotonic(), 60 * minutes

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", flush=True)

    @property
    def left(self) -> float | None:
        """Seconds left of the limit, at least 0; None without one."""
        return max(0.0, self._limit - (time.monotonic() - self._start)) if self._limit else None
