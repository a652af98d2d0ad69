"""How many votes change with the width of the processor's vectors: the committed ResNet-20 on CIFAR-10 test images.

The same noisy images are classified as a machine with AVX-512 does it, as one with AVX2 (kernel and XLA alike), and by
the plain network; logits of a few are also computed in float64. A vote that differs is a near-tie between two classes:
each one is printed with its gap.

Command:   make widths DATA=FOLDER        (15 minutes on two cores)
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WEIGHTS = Path(__file__).parent.parent / "checkpoints" / "cifar10_resnet20_gaussian_0.25.safetensors"
SIGMA = 0.25
EXACT = 1000  # images whose logits are computed in float64
_BATCH = 500
_AVX2 = {"IDRC_VECTOR_BITS": "256", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}
VARIANTS = {
    "AVX-512": {"IDRC_VECTOR_BITS": "512"},
    "AVX2": _AVX2,
    "XLA": {"KERNEL": "xla"},
    "float64": {"KERNEL": "xla", "JAX_ENABLE_X64": "1"},
}


def classify(folder: str, count: int, out: Path) -> None:
    """Write the logits [count, 10] of noisy images, a copy of each test image in turn, in the type of the variant."""
    import jax
    import jax.numpy as jnp

    from idrc_jax import data, models
    from idrc_jax.models import folding
    from idrc_jax.sampling import devices, noise_laws, random_keys

    devices.configure_cpu(os.cpu_count() or 1)
    exact = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    network = models.load_classifier(WEIGHTS, kernel=os.environ.get("KERNEL", "auto"))
    assert network.kernel == ("xla" if "KERNEL" in os.environ else "resnet_cpu"), network.kernel
    test_set = data.load("cifar10", "test", directory=folder)
    images = data.to_unit(test_set.images)
    key = random_keys.stage(random_keys.root(0), random_keys.ESTIMATION)

    @jax.jit
    def noisy(image: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
        def one(image: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
            return image + noise_laws.draw(
                "normal", random_keys.sample(key, index, number), jnp.float32(SIGMA), image.shape
            )

        return jax.vmap(one)(image, index, number)

    params = network.params
    if exact:
        params = {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}
    forward = jax.jit(folding.apply if exact else network.apply_fn)
    logits = np.lib.format.open_memmap(out, "w+", np.float64 if exact else np.float32, (count, 10))
    for start in range(0, count, _BATCH):
        number, index = np.divmod(np.arange(start, start + _BATCH), len(images))
        drawn = noisy(images[index], jnp.asarray(index, jnp.uint32), jnp.asarray(number, jnp.uint32))
        logits[start : start + _BATCH] = forward(params, drawn.astype(jnp.float64) if exact else drawn)
    logits.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with CIFAR-10's binary version")
    parser.add_argument("--count", type=int, default=1_000_000, help="noisy images, a multiple of 1,000")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.out:
        classify(values.folder, values.count, values.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        logits = {}
        for name, variables in VARIANTS.items():
            out = Path(folder) / f"{name}.npy"
            count = EXACT if name == "float64" else values.count
            command = [
                sys.executable,
                "-m",
                "benchmarks.widths",
                values.folder,
                "--count",
                str(count),
                "--out",
                str(out),
            ]
            subprocess.run(command, env=os.environ | variables, check=True)
            logits[name] = np.load(out, mmap_mode="r")
        truth = logits.pop("float64")
        for name, some in logits.items():
            error = np.abs(some[: len(truth)] - truth).max()
            print(
                f"{name}: largest error of a logit against float64 {error:.1e}, logits up to {np.abs(truth).max():.1f}"
            )
        reference = logits["AVX-512"]
        votes = {name: np.argmax(some, axis=1) for name, some in logits.items()}
        for name, some in logits.items():
            differ = np.flatnonzero(votes[name] != votes["AVX-512"])
            gap = float(np.abs(some - reference).max())
            print(f"{name} against AVX-512: {len(differ)} of {len(some):,} votes differ; logits by at most {gap:.1e}")
            for at in differ:
                first, second = np.sort(reference[at])[-2:][::-1]
                print(
                    f"  sample {at}: class {votes['AVX-512'][at]} or {votes[name][at]}, a gap of {first - second:.1e}"
                )


if __name__ == "__main__":
    main()
