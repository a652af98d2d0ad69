"""ResNet-110 on CIFAR-10 by Cohen's recipe, 500 test images, n = 100,000: the paper's experiments.

The scheme is the argument: --config=configs/cifar10.py:l1; without one it is gaussian.
Command:   make reproduce SIGMA=0.25 SCHEME=gaussian DATA=FOLDER
           (python train.py --config=configs/cifar10.py:gaussian --config.data.dir=FOLDER --workdir=runs/x, then
           python certify.py with the same arguments)
Hardware:  one GPU. A CPU core (Zen 4) takes 5 minutes an epoch, and minutes an image: see cifar10_short.py.
Expected:  certified accuracy of gaussian at radius .25 .5 .75: .60 .43 .27 (Cohen et al. 2019, sigma = .25).
"""

from idrc_jax.config import base


def get_config(scheme="gaussian"):
    config = base()
    config.noise.scheme = scheme
    config.train.held_out = 0  # the recipe trains on all 50,000 images; 500 shows how it goes
    return config
