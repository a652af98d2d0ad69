"""The settings that configs fill in, and what the entry points make of them.

A file in `configs/` takes `base()` and changes it; the command line overrides with `--config.a.b=value`.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import ml_collections

from idrc_jax import _validate, data, denoising, diffusion, plans, refutation, schemes, training
from idrc_jax.certification import Settings
from idrc_jax.schemes import Scheme

Config = Any  # an ml_collections.ConfigDict: its fields have no static types


def base() -> Config:
    """Every setting with its default: ResNet-110 on CIFAR-10 by Cohen's recipe. No field can be added to it."""
    config: Config = ml_collections.ConfigDict()
    config.seed = 0
    config.max_minutes = 0.0  # stop cleanly before, exit 0, go on at the next call; 0: no limit
    config.devices = 0  # 0: all
    config.kernel = "auto"  # the fastest that runs here, or xla: the plain network
    config.chunk = 0  # samples a device takes at a time; sets memory, not votes; 0 chooses

    config.workers = ml_collections.ConfigDict()
    config.workers.index = -1  # of this process among those that share the work; -1: from Slurm or Kubernetes
    config.workers.count = 0  # of them; 0: from Slurm, else 1

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"  # cifar10, digits, imagenet, npz, synthetic
    config.data.dir = ""  # cifar10: of the binary version; imagenet: of class folders (empty: tfds); npz: file
    config.data.skip = 20  # certify images start, start + skip, ... below stop
    config.data.start = 0
    config.data.stop = -1

    config.noise = ml_collections.ConfigDict()
    config.noise.scheme = "gaussian"
    config.noise.sigma = 0.25
    config.noise.ref = 1.0
    config.noise.by = "norm"  # stepped: mean_abs, std or norm
    config.noise.edges = ()  # stepped: between the bins
    config.noise.levels = ()  # stepped: of each bin, times sigma
    config.noise.bins = 0  # stepped: fit so many bins and levels of mean 1 to the training images instead

    config.model = ml_collections.ConfigDict()
    config.model.architecture = "resnet"  # resnet50 (ImageNet's); vit, imported only; unet to train a denoiser
    config.model.depth = 110
    config.model.shortcut = "projection"  # or zero_pad
    config.model.dtype = "float32"  # or bfloat16
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2023, 0.1994, 0.2010)
    config.model.weights = ""  # certify and predict with this file instead of the workdir's
    config.model.factory = ""  # or with the Classifier that package.module:function returns

    config.train = ml_collections.ConfigDict()
    config.train.scheme = ""  # empty: the noise's
    config.train.sigma = 0.0  # 0: the noise's
    config.train.ref = 0.0  # 0: the noise's
    recipe = training.Recipe()
    for name in training.Recipe.__dataclass_fields__:
        config.train[name] = getattr(recipe, name)
    config.train.start = ""  # weights of the same network to start from
    config.train.checkpoint_minutes = 5.0
    config.train.steps_per_dispatch = 50  # accelerators only
    config.train.tensorboard = False
    config.train.distributed = ""  # several processes as one: auto (the job that JAX finds), or process 0's HOST:PORT

    config.denoiser = ml_collections.ConfigDict()
    config.denoiser.weights = ""  # put this denoiser in front of the classifier, to certify, predict or train
    config.denoiser.sigma = 0.0  # level that it is told; 0: the noise's, for gaussian only
    config.denoiser.steps = 1  # one shot, or steps of DDIM
    config.denoiser.schedule = "linear"  # from here on to train one: linear, scaled_linear or cosine
    config.denoiser.times = 1000  # of the schedule
    config.denoiser.beta_start = 1e-4
    config.denoiser.beta_end = 0.02
    config.denoiser.prediction = "epsilon"  # or v, or sample: the image itself
    config.denoiser.sigma_low = 0.0  # levels to train for; 0: the schedule's lowest
    config.denoiser.sigma_high = 0.0  # and highest
    config.denoiser.ema = 0.999
    config.denoiser.widths = (128, 256, 256, 256)  # channels of each resolution
    config.denoiser.blocks = 2  # residual blocks of each resolution
    config.denoiser.attention = (False, True, False, False)  # of each resolution
    config.denoiser.middle_attention = True
    config.denoiser.groups = 32
    config.denoiser.scale_shift = False
    config.denoiser.resample = "conv"  # or resnet

    config.sampling = ml_collections.ConfigDict()
    config.sampling.plan = "fixed"  # fixed, selection_free, to_radius, to_precision; see docs/plans.md
    config.sampling.sequence = "betting"  # or union: the bound of the last two
    config.sampling.radii = plans.ToRadius.radii  # to_radius: decide for each of these
    config.sampling.precision = plans.ToPrecision.precision  # to_precision: of the radius

    config.certify = ml_collections.ConfigDict()
    config.certify.n0 = 100
    config.certify.n = 100_000
    config.certify.alpha = 0.001
    config.certify.certificate = "one_sided"  # or two_sided, for gaussian and stepped

    config.audit = ml_collections.ConfigDict()
    for name, value in vars(refutation.Settings()).items():
        config.audit[name] = value
    return config.lock()


def folder() -> Path:
    """Where the config files are: in the wheel inside the package, in a checkout beside it."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def noise_scheme(config: Config) -> Scheme:
    """The scheme that predictions and certificates use."""
    return _scheme(config, config.noise.scheme, sigma=config.noise.sigma, ref=config.noise.ref)


def training_scheme(config: Config) -> Scheme:
    """The scheme that training uses: the noise's unless `config.train` says otherwise."""
    name = config.train.scheme or config.noise.scheme
    ref = config.train.ref or (config.noise.ref if name == config.noise.scheme else 1.0)
    return _scheme(config, name, sigma=config.train.sigma or config.noise.sigma, ref=ref)


def _scheme(config: Config, name: str, *, sigma: float, ref: float) -> Scheme:
    noise = config.noise
    if name != schemes.Stepped.name:
        if name == noise.scheme and (noise.edges or noise.levels or noise.bins):
            raise ValueError(f"Expected no noise.edges, levels or bins for the scheme {name}, which has none.")
        return schemes.make(name, sigma=sigma, ref=ref)
    if not noise.bins:
        return schemes.make(name, sigma=sigma, ref=ref, by=noise.by, edges=noise.edges, levels=noise.levels)
    if noise.edges or noise.levels:
        raise ValueError("Expected noise.edges and noise.levels, or noise.bins to fit them, got both.")
    train_set = data.load(config.data.name, "train", directory=config.data.dir, seed=config.seed)
    return schemes.fit_stepped(data.to_unit(train_set.images), sigma=sigma, by=noise.by, bins=noise.bins)


def recipe(config: Config) -> training.Recipe:
    """The training recipe."""
    return training.Recipe(**{name: config.train[name] for name in training.Recipe.__dataclass_fields__})


def settings(config: Config) -> Settings:
    """The certification settings."""
    certify = config.certify
    return Settings(plan(config), certify.alpha, config.seed, certify.certificate)


def audit_settings(config: Config) -> refutation.Settings:
    """The audit's settings."""
    return refutation.Settings(**config.audit)


def plan(config: Config) -> plans.Plan:
    """The sampling plan: `sampling.plan` with those of the other fields that it has."""
    chosen = plans.PLANS[_validate.one_of("sampling.plan", config.sampling.plan, plans.PLANS)]
    known = {"n0": config.certify.n0, "n": config.certify.n, **config.sampling}
    return chosen(**{field.name: known[field.name] for field in fields(chosen)})


def denoiser_target(config: Config) -> denoising.Target:
    """What a denoiser that is trained learns."""
    asked = config.denoiser
    schedule = diffusion.Schedule(asked.schedule, asked.times, asked.beta_start, asked.beta_end)
    return denoising.Target(schedule, asked.prediction, asked.sigma_low, asked.sigma_high, asked.ema)


def denoiser_sigma(config: Config, scheme: Scheme) -> float:
    """The noise level that the denoiser in front of the classifier is told."""
    if not config.denoiser.sigma and scheme.name != schemes.Gaussian.name:
        raise ValueError(
            f"Expected denoiser.sigma, one level for all images, as {scheme.name} has a level of its own for each: "
            "told that, the denoised classifier would depend on the clean image, and no certificate would hold."
        )
    return config.denoiser.sigma or scheme.sigma


def denoiser_description(config: Config, train_set: data.Dataset) -> dict[str, Any]:
    """What rebuilds the U-Net (see `checkpoints.build`)."""
    shape = train_set.images.shape[1:]
    names = ("widths", "blocks", "attention", "middle_attention", "groups", "scale_shift", "resample")
    settings = {name: config.denoiser[name] for name in names}
    for name in ("widths", "attention"):
        settings[name] = list(settings[name])
    return {
        "architecture": "unet",
        "image_shape": list(shape),
        "unet": {"channels": shape[-1], "channels_out": shape[-1], **settings},
        "dtype": config.model.dtype,
    }


def description(config: Config, train_set: data.Dataset) -> dict[str, Any]:
    """What rebuilds the network (see `checkpoints.build`); mean and std of length 1 serve every channel."""
    model, shape = config.model, train_set.images.shape[1:]
    if model.architecture == "vit":
        raise ValueError(
            "Expected model.architecture resnet or resnet50 to train, got vit: import a trained one (idrc-import), and "
            "certify it by model.weights."
        )
    _validate.one_of("model.dtype", model.dtype, ("float32", "bfloat16"))

    def per_channel(values: tuple[float, ...]) -> list[float]:
        return list(values) * shape[-1] if len(values) == 1 else list(values)

    return {
        "architecture": model.architecture,
        "depth": model.depth,
        "classes": train_set.classes,
        "image_shape": list(shape),
        "shortcut": model.shortcut,
        "mean": per_channel(model.mean),
        "std": per_channel(model.std),
        "dtype": model.dtype,
    }
