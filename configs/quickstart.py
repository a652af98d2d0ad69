"""A ResNet-8 on scikit-learn's digits (8x8 grey images), trained and certified in a minute or two.

Command:   make quickstart        (or: python train.py && python certify.py)
Hardware:  two CPU cores.
"""

from idrc_jax.config import base


def get_config():
    config = base()
    config.data.name = "digits"
    config.noise.sigma = 0.5
    config.model.depth = 8
    config.model.mean = (0.3,)
    config.model.std = (0.38,)
    config.train.epochs = 12
    config.train.batch = 64
    config.train.schedule = "cosine"
    config.train.warmup_epochs = -1.0
    config.train.augment = False
    config.certify.n = 10_000
    return config
