"""A router for a classifier that is trained already: which of three noise levels each CIFAR-10 image gets (`routed`).

The router learns from the images that the classifier's training held out, by what each level is worth at them: the
certified radius by 100 votes. It is trained under its own noise, so that its answers are certified, too.
Command:   python train.py --config=configs/cifar10_losses.py:gaussian --config.train.sigma=1.0
           --config.train.sigma_low=0.25 --config.train.held_out=25000 --config.data.dir=FOLDER --workdir=runs/levels
           python train.py --config=configs/router.py --config.router.classifier=runs/levels
           --config.data.dir=FOLDER --workdir=runs/router
           python certify.py --config=configs/router.py --config.model.weights=runs/levels
           --config.router.weights=runs/router --config.data.dir=FOLDER --workdir=runs/routed
           Of a network for each level: --config.router.classifier=A,B,C, then --config.model.by_level=A,B,C.
Hardware:  two CPU cores; 20 epochs of 25,000 images, which have not been run here. Five epochs from a trained network's
           weights took 8 minutes of one core (docs/how_to/choosing_noise.md).
"""

from idrc_jax.config import base


def get_config():
    config = base()
    config.noise.scheme = "routed"
    config.noise.sigma = 0.5
    config.noise.levels = (0.5, 1.0, 2.0)
    config.noise.router_level = 1.0
    config.model.depth = 20
    config.train.loss.name = "router"
    config.train.epochs = 20
    config.train.batch = 128
    config.train.weight_decay = 5e-4
    config.train.schedule = "onecycle"
    config.train.ema = 0.999
    config.certify.n = 100_000
    config.sampling.plan = "to_radius"
    return config
