"""How many votes change with the chunk, the place in the batch and the number of devices: the committed ResNet-20 on
CIFAR-10 test images.

Noise bits are the same; only the network's floating-point sums depend on the batch's shape, which can break
near-ties between two logits differently. Exact noise makes of an image integers over 255: what is counted first is
whether the network, as this machine computes it, is one function of these.

Command:   make invariance DATA=FOLDER
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from idrc_jax import data, models, sampling
from idrc_jax.certificates import schemes
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, exact_noise, noise_laws, random_keys

WEIGHTS = Path(__file__).parent.parent / "checkpoints" / "cifar10_resnet20_gaussian_0.25.safetensors"
IMAGES = 20
SAMPLES = 1000
LAYOUTS = ((1, 100), (1, 2), (1, 25), (2, 25), (2, 64))  # devices and chunk; the first is what others are compared with


def logits_of(classifier: Classifier, images: np.ndarray, count: int, chunk: int, shift: int = 0) -> np.ndarray:
    """Logits of images, each `shift` places later in the batches, by so many devices with a chunk each."""
    mesh = devices.mesh(count)
    run = jax.jit(
        jax.shard_map(
            classifier.apply_fn, mesh=mesh, in_specs=(P(), P(devices.AXIS)), out_specs=P(devices.AXIS), check_vma=False
        )
    )
    turned = np.roll(images, shift, axis=0)
    batch, made = chunk * count, []
    for start in range(0, len(turned), batch):
        some = np.arange(start, start + batch) % len(turned)  # the last batch begins anew with the first images
        made.append(np.asarray(run(classifier.params, turned[some])))
    return np.roll(np.concatenate(made)[: len(turned)], -shift, axis=0)


def changed(logits: np.ndarray, reference: np.ndarray) -> tuple[int, int, float]:
    """Of how many images a logit's bits differ, of how many the vote, and by how much a logit at most."""
    bits = np.any(logits.view(np.uint32) != reference.view(np.uint32), axis=1)
    votes = np.argmax(logits, axis=1) != np.argmax(reference, axis=1)
    return int(np.sum(bits)), int(np.sum(votes)), float(np.max(np.abs(logits - reference)))


def compare_logits(classifier: Classifier, noisy: np.ndarray, say: Callable[[str], object] = print) -> int:
    """Say for each layout how many logits and votes of the same images differ; the most votes."""
    reference = logits_of(classifier, noisy, *LAYOUTS[0])
    most = 0
    for count, chunk, shift in (*((*layout, 0) for layout in LAYOUTS[1:]), (*LAYOUTS[0], 37)):
        bits, votes, gap = changed(logits_of(classifier, noisy, count, chunk, shift), reference)
        most = max(most, votes)
        place = f", {shift} places later" if shift else ""
        say(
            f"{classifier.kernel}, {count} devices, chunk {chunk}{place}: logits of {bits} of {len(noisy):,} images "
            f"differ, by at most {gap:.1e}; {votes} votes"
        )
    return most


def exact_images(images: np.ndarray, indices: np.ndarray, samples: int) -> np.ndarray:
    """So many samples of each image under exact noise of .25."""
    key = random_keys.stage(random_keys.root(0), random_keys.ESTIMATION)
    slot = np.repeat(np.arange(len(images), dtype=np.int32), samples)
    sample = np.tile(np.arange(samples, dtype=np.uint32), len(images))
    levels = exact_noise.tables([0.25] * len(images))
    draw = jax.jit(partial(noise_laws.noisy, "normal"))
    return np.asarray(draw(key, images, indices.astype(np.uint32), levels, slot, sample))


def main() -> None:
    devices.configure_cpu(os.cpu_count() or 1)
    network = models.load_classifier(WEIGHTS)
    test_set = data.load("cifar10", "test", directory=sys.argv[1])
    indices = data.select(len(test_set), skip=len(test_set) // IMAGES)
    images = data.to_unit(test_set.images[indices])
    noisy = exact_images(images, indices, SAMPLES // 10)
    for implementation in network.implementations:
        compare_logits(implementation, noisy)
    plain, exact = (schemes.Gaussian(sigma=0.25, exact=exact) for exact in (False, True))
    for scheme in (plain, exact, schemes.L2(sigma=0.25), schemes.Uniform(sigma=0.25)):
        votes = {
            (count, chunk): sampling.count_votes(
                network, scheme, images, indices=indices, n=SAMPLES, key=random_keys.root(0), chunk=chunk,
                mesh=devices.mesh(count),
            )
            for count, chunk in LAYOUTS
        }  # fmt: skip
        reference = votes.pop(LAYOUTS[0])
        name = f"{scheme.name}, exact" if scheme.exact else scheme.name
        for (count, chunk), other in votes.items():
            moved = np.abs(other - reference).sum() // 2
            print(f"{name:<15} {count} devices, chunk {chunk:>3}: {moved} of {IMAGES * SAMPLES:,} votes differ")


if __name__ == "__main__":
    main()
