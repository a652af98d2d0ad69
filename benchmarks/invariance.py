"""How many votes change with the chunk and the number of devices: the committed ResNet-20 on CIFAR-10 test images.

Noise bits are the same; only the network's floating-point sums depend on the batch's shape, which can break
near-ties between two logits differently.

Command:   make invariance DATA=FOLDER
"""

import os
import sys
from pathlib import Path

import numpy as np

from idrc_jax import data, models, sampling
from idrc_jax.certificates import schemes
from idrc_jax.sampling import devices, random_keys

WEIGHTS = Path(__file__).parent.parent / "checkpoints" / "cifar10_resnet20_gaussian_0.25.safetensors"
IMAGES = 20
SAMPLES = 1000


def main() -> None:
    devices.configure_cpu(os.cpu_count() or 1)
    network = models.load_classifier(WEIGHTS)
    test_set = data.load("cifar10", "test", directory=sys.argv[1])
    indices = data.select(len(test_set), skip=len(test_set) // IMAGES)
    images = data.to_unit(test_set.images[indices])
    for scheme in (schemes.Gaussian(sigma=0.25), schemes.L2(sigma=0.25), schemes.Uniform(sigma=0.25)):
        votes = {
            (count, chunk): sampling.count_votes(
                network, scheme, images, indices=indices, n=SAMPLES, key=random_keys.root(0), chunk=chunk,
                mesh=devices.mesh(count),
            )
            for count, chunk in ((1, 100), (1, 2), (1, 25), (2, 25), (2, 64))
        }  # fmt: skip
        reference = votes.pop((1, 100))
        for (count, chunk), other in votes.items():
            moved = np.abs(other - reference).sum() // 2
            print(f"{scheme.name:<9} {count} devices, chunk {chunk:>3}: {moved} of {IMAGES * SAMPLES:,} votes differ")


if __name__ == "__main__":
    main()
