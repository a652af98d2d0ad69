"""A loss that trains for certificates, on CIFAR-10 at sigma = .5: LOSS for two CPU cores, LOSS/gpu for one GPU.

LOSS is gaussian, stability, consistency, smoothadv, smoothmix, macer, catrs or hard_samples, on a GPU with its
published settings, on two cores with fewer noises and steps where it attacks, hard_samples with fewer votes, too.
Command:   python train.py --config=configs/cifar10_losses.py:consistency --config.data.dir=FOLDER --workdir=runs/x
           python certify.py --config=configs/cifar10_losses.py:consistency --workdir=runs/x
           catrs: --config.train.loss.teacher=RUN, the folder of a run of gaussian
Hardware:  LOSS: ResNet-20, batch 128, one cycle, an average of the weights, in about an hour of two idle cores with
           AVX-512, as counted from 1,100 noisy images/s and docs/how_to/training_losses.md, which has what shorter runs
           gave; the recipes as they are have not been run here.
           LOSS/gpu: ResNet-110, 150 epochs (macer 440) as published; it has not been run here.
Expected:  published for ResNet-110, certified accuracy at .25 .5 .75 1.0 1.25 1.5, the best sigma for each radius:
           gaussian .612 .428 .325 .221 .172 .133; macer .690 .558 .423 .348 .276 .234;
           consistency .676 .581 .467 .362 .295 .229; smoothadv .656 .570 .475 .337 .270 .240;
           smoothmix .679 .579 .467 .367 .306 .247; catrs .681 .588 .482 .385 .327 .271;
           hard_samples .690 .593 .483 .389 .341 .290.
           ResNet-20, consistency at 0, .25 ... 1.5: .605 .544 .477 .409 .344 .280 .222 (published, 150 epochs).
"""

from idrc_jax.config import base

# Epochs that fill about an hour on two cores: one of gaussian takes 45 s, others as many times that as an image has
# noises and a batch has passes.
EPOCHS = {"gaussian": 70, "stability": 36, "consistency": 35, "macer": 4, "smoothadv": 11, "smoothmix": 8, "catrs": 7,
          "hard_samples": 13}  # fmt: skip
FEWER = {
    "smoothadv": {"noises": 2, "steps": 2},
    "smoothmix": {"steps": 2},
    "catrs": {"noises": 2, "steps": 2},
    # Begins as 70 of 150 epochs; two countings.
    "hard_samples": {"noises": 2, "steps": 2, "start_epoch": 6, "threshold_samples": 16, "redraw_epochs": 4},
}


def get_config(what="consistency"):
    loss, _, machine = what.partition("/")
    if loss not in EPOCHS or machine not in ("", "gpu"):
        known = ", ".join(EPOCHS)
        raise ValueError(f"Expected configs/cifar10_losses.py:LOSS or LOSS/gpu, LOSS one of {known}, got {what!r}.")
    config = base()
    config.noise.sigma = 0.5
    config.train.loss.name = loss
    config.certify.n = 100_000
    config.sampling.plan = "to_radius"
    if machine:
        config.train.epochs = 150
        config.train.step_epochs = 50
        if loss == "macer":
            config.train.batch = 1024
            config.train.lr = 0.01
            config.train.weight_decay = 5e-4
            config.train.epochs = 440
            config.train.step_epochs = 200
        return config
    config.model.depth = 20
    config.train.batch = 128
    config.train.epochs = EPOCHS[loss]
    config.train.weight_decay = 5e-4
    config.train.schedule = "onecycle"
    config.train.ema = 0.999
    config.train.loss.update(FEWER.get(loss, {}))
    if loss in ("smoothadv", "smoothmix"):
        config.train.loss.warmup = EPOCHS[loss] / 15  # as 10 of 150 epochs
    return config
