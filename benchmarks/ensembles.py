"""How fast ways to run an ensemble are: members in turn by kernels and by XLA, stacked by vmap, and with a consensus.

    python -m benchmarks.ensembles [--members 3] [--batch 128] [--data FOLDER]

Members are ResNet-20's of checkpoints/, in turn, each on images of another brightness: stand-ins for seeds, whose
agreement is about that of the two networks.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from idrc_jax import data, models

FILES = [f"cifar10_resnet20_gaussian_{name}.safetensors" for name in ("0.25", "0.1-0.45")]
SIGMA = 0.25
_TURNS = 7


def _member(number: int, kernel: str) -> models.Classifier:
    one = models.load_classifier(Path("checkpoints") / FILES[number % len(FILES)], kernel=kernel)
    apply_fn, shift = one.apply_fn, 0.02 * (number // len(FILES))
    return dataclasses.replace(one, apply_fn=lambda params, images: apply_fn(params, images + shift), sha256="")


def _stacked(members: list[models.Classifier]) -> models.Classifier:
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one.params for one in members])
    each = jax.vmap(members[0].apply_fn, (0, None))
    mean = dataclasses.replace(members[0], params=params, apply_fn=lambda params, x: each(params, x).mean(0))
    return dataclasses.replace(mean, kernel="xla, stacked")


def measure(count: int, images: np.ndarray) -> tuple[float, dict[str, float]]:
    """The share of images on which the first two members agree; and of each way the images/s, medians of turns."""
    fast, plain = ([_member(number, kernel) for number in range(count)] for kernel in ("auto", "xla"))
    ways = {"in turn": models.ensemble(fast), "in turn, by XLA": models.ensemble(plain), "stacked": _stacked(plain)}
    if count > 2:
        ways["consensus of 2"] = models.ensemble(fast, consensus=2)
    votes = [np.argmax(one(jnp.asarray(images)), axis=-1) for one in fast[:2]]
    compiled = {name: jax.jit(one.apply_fn).lower(one.params, images).compile() for name, one in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_TURNS):
        for name, one in ways.items():
            begun = time.perf_counter()
            jax.block_until_ready(compiled[name](one.params, images))
            seconds[name].append(time.perf_counter() - begun)
    rates = {name: len(images) / float(np.median(taken)) for name, taken in seconds.items()}
    return float(np.mean(votes[0] == votes[1])), rates


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--data", default="", help="folder of CIFAR-10")
    asked = parser.parse_args()
    clean = data.to_unit(data.load("cifar10", "test", directory=asked.data).images[: asked.batch])
    noisy = clean + SIGMA * np.random.default_rng(0).normal(size=clean.shape)
    agreed, rates = measure(asked.members, noisy.astype(np.float32))
    print(f"{asked.members} members, the first two agree on {agreed:.2f} of {asked.batch} noisy images; images/s:")
    for name, rate in rates.items():
        print(f"{name:<16} {rate:8.1f}")


if __name__ == "__main__":
    main()
