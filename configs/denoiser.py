"""A U-Net that takes noise off CIFAR-10's images, to stand in front of a classifier: its training.

The size is the argument. `small` (0.6 million weights, levels .05 to 1.0) is what two CPU cores can do; `full` is that
of Ho et al. (2020), 35.7 million weights, on the whole schedule.
Command:   python train.py --config=configs/denoiser.py:small --config.data.dir=FOLDER --workdir=runs/denoiser
           Gaussian denoiser of one level (Salman et al. 2020): --config.denoiser.prediction=sample
           --config.denoiser.sigma_low=0.25 --config.denoiser.sigma_high=0.25
Hardware:  small: two CPU cores; full: one GPU, where it has not been run.
           Run times and results: docs/how_to/denoising.md.
"""

from idrc_jax.config import base


def get_config(size="small"):
    if size not in ("small", "full"):
        raise ValueError(f"Expected configs/denoiser.py:small or :full, got {size!r}.")
    config = base()
    config.model.architecture = "unet"
    config.train.method = "adam"
    config.train.weight_decay = 0.0
    config.train.schedule = "cosine"
    config.train.warmup_epochs = 0.5
    if size == "full":
        config.train.batch = 128
        config.train.lr = 2e-4
        config.train.epochs = 500
        config.denoiser.ema = 0.9999
    else:
        config.train.batch = 64
        config.train.lr = 1e-3
        config.train.epochs = 6
        config.denoiser.widths = (16, 32, 64)
        config.denoiser.blocks = 1
        config.denoiser.attention = (False, False, False)
        config.denoiser.middle_attention = False
        config.denoiser.groups = 4
        config.denoiser.sigma_low = 0.05
        config.denoiser.sigma_high = 1.0
    return config
