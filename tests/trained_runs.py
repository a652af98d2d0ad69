"""Runs as if trained: small networks of random weights in folders of their own."""

from pathlib import Path

import numpy as np
from flax import nnx

from idrc_jax import config, models
from idrc_jax.config import run_memory


def save(folder: Path, seed: int) -> None:
    """Make a run's folder, of a ResNet-8 "trained" on synthetic images under Gaussian noise of .5."""
    file, settings = config.load("cifar10.py"), config.load("cifar10.py")
    settings.data.name, settings.noise.sigma, settings.model.depth = "synthetic", 0.5, 8
    settings.model.mean, settings.model.std = (0.3,), (0.38,)
    described = config.description(settings, config.dataset(settings, "train"))  # runs of all seeds are of one data set
    settings.seed = seed
    _, params, stats = models.split(models.build(described, dtype="float32", rngs=nnx.Rngs(seed)))
    tensors = {name: np.asarray(value) for name, value in (params | stats).items()}
    trained = {"scheme": {"name": "gaussian", "sigma": 0.5}, "recipe": {"sigma_low": 0.0}, "seed": seed}
    folder.mkdir()
    models.save_weights(folder / models.WEIGHTS, tensors, described | {"training": trained})
    run_memory.save(folder, file, settings)
