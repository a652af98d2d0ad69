"""A denoiser in front of a classifier that has never seen noise (Carlini et al. 2023), certified on CIFAR-10.

Command:   python certify.py --config=configs/denoised_cifar10.py --config.noise.sigma=0.5 --config.data.dir=FOLDER
           --config.denoiser.weights=runs/denoiser --config.model.weights=runs/clean --workdir=runs/denoised-0.5
           Without the denoiser, for comparison: --config.denoiser.weights=
           Fine-tuning the classifier on denoised images: python train.py with the same arguments and
           --config.train.start=runs/clean --config.model.weights= --workdir=runs/tuned
           Under l1, l2, uniform and inverse_sqrt_norm it needs one level for all images: --config.denoiser.sigma=0.25
Hardware:  two CPU cores at n = 1,000; run times and results: docs/how_to/denoising.md.
"""

from idrc_jax.config import base


def get_config(scheme="gaussian"):
    config = base()
    config.noise.scheme = scheme
    config.train.scheme = "gaussian"
    config.model.depth = 20
    config.model.shortcut = "zero_pad"
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.denoiser.weights = "checkpoints/cifar10_denoiser_small.safetensors"
    config.train.lr = 0.01
    config.train.epochs = 2
    config.train.batch = 128
    config.train.schedule = "cosine"
    config.train.warmup_epochs = 0.2
    config.certify.n = 1_000
    return config
