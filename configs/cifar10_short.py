"""ResNet-20 on CIFAR-10, 8 epochs, sigma = .25, 500 test images at n = 2,000: what two CPU cores can do.

The scheme is the argument, of the certification; training is under gaussian noise.
Command:   python train.py --config=configs/cifar10_short.py --config.data.dir=FOLDER --workdir=runs/short
           python certify.py --config=configs/cifar10_short.py --config.data.dir=FOLDER --workdir=runs/short
Hardware:  two CPU cores; run times and results are in the README.
"""

from idrc_jax.config import base


def get_config(scheme="gaussian"):
    config = base()
    config.noise.scheme = scheme
    config.train.scheme = "gaussian"
    config.model.depth = 20
    config.train.epochs = 8
    config.train.batch = 128
    config.train.weight_decay = 5e-4
    config.train.schedule = "cosine"
    config.train.warmup_epochs = -1.0
    config.certify.n = 2_000
    return config
