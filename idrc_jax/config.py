"""The settings that configs fill in, and what the entry points make of them.

A file in `configs/` takes `base()` and changes it; the command line overrides with `--config.a.b=value`.
"""

import inspect
import math
import os
import re
import runpy
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from idrc_jax import _validate, certificates, data, denoising, diffusion, plans, refutation, schemes, training
from idrc_jax.certification import Settings
from idrc_jax.schemes import Scheme

Config = Any  # an ml_collections.ConfigDict: its fields have no static types


class Field(NamedTuple):
    """A setting: its default, whose type is the setting's, and what it is, in one line of `--help`."""

    default: Any
    help: str


def _any_of(names: Iterable[str]) -> str:
    return ", ".join(names)


_RECIPE = training.Recipe()
_SCHEDULE = diffusion.Schedule()
_AUDIT = refutation.Settings()

# Every setting there is, under the name that the command line gives it.
FIELDS = {
    "seed": Field(0, "of all random numbers: of training, certification, audit and synthetic data"),
    "max_minutes": Field(0.0, "stop cleanly before, exit 0, go on at the next call; 0: no limit"),
    "devices": Field(
        0, "how many to use; 0: all or, on a CPU, one of all cores if measured faster (training on a CPU: that one)"
    ),
    "kernel": Field("auto", "auto (the fastest here: measured before long certifications) or xla (the plain network)"),
    "chunk": Field(
        0, "noisy images a device classifies at a time; sets memory and speed, not votes; 0: by memory, or measured"
    ),
    "workers.index": Field(-1, "of this process among those that share the images, from 0; -1: of Slurm or Kubernetes"),
    "workers.count": Field(0, "of those processes; 0: of Slurm, else 1"),
    "data.name": Field("cifar10", _any_of(data.NAMES)),
    "data.dir": Field(
        "",
        "folder: cifar10's binary version, imagenet's class folders; npz: file or folder; empty: tensorflow-datasets",
    ),
    "data.skip": Field(20, "certify the test images start, start + skip, ... below stop"),
    "data.start": Field(0, "index of the first test image"),
    "data.stop": Field(-1, "index after the last test image; -1: all"),
    "noise.scheme": Field("gaussian", f"of certification and prediction: {_any_of(schemes.SCHEMES)}"),
    "noise.sigma": Field(0.25, "noise level, in pixel units of images in [0, 1]; > 0"),
    "noise.ref": Field(1.0, "l1, inverse_sqrt_norm: value of the image's statistic at which the level is sigma; > 0"),
    "noise.by": Field("norm", f"stepped: statistic of the image: {_any_of(schemes.STATISTICS)}"),
    "noise.edges": Field((), 'stepped: between the bins, ascending, as "(24.0, 33.0)"'),
    "noise.levels": Field((), "stepped: of each bin, times sigma; one more than edges"),
    "noise.bins": Field(0, "stepped: fit so many bins, and levels of mean 1, to the training images instead"),
    "model.architecture": Field(
        "resnet", "resnet (CIFAR's), resnet50 (ImageNet's), vit (imported only), unet (to train a denoiser)"
    ),
    "model.depth": Field(110, "layers of a resnet, 6n + 2: 8, 20, 56, 110"),
    "model.shortcut": Field("projection", "of a resnet: projection, zero_pad"),
    "model.dtype": Field("float32", "type of the network's arithmetic: float32, bfloat16"),
    "model.mean": Field((0.4914, 0.4822, 0.4465), "subtracted from each channel; one value serves all channels"),
    "model.std": Field((0.2023, 0.1994, 0.2010), "divides each channel then; one value serves all channels"),
    "model.weights": Field("", "certify with this file or run's folder; empty: the workdir's weights"),
    "model.factory": Field("", "or with the Classifier that package.module:function returns"),
    "train.scheme": Field("", "noise scheme of training; empty: noise.scheme"),
    "train.sigma": Field(0.0, "noise level of training, in pixel units; 0: noise.sigma"),
    "train.ref": Field(0.0, "ref of training's scheme; 0: noise.ref, if the scheme is noise.scheme, else 1"),
    "train.epochs": Field(_RECIPE.epochs, "passes over the training images"),
    "train.batch": Field(_RECIPE.batch, "images a step, on all devices together"),
    "train.method": Field(_RECIPE.method, "sgd (weight decay joins the gradient) or adam (it does not: AdamW)"),
    "train.lr": Field(_RECIPE.lr, "learning rate at its highest"),
    "train.momentum": Field(_RECIPE.momentum, "of sgd; first decay rate of adam; in [0, 1)"),
    "train.weight_decay": Field(_RECIPE.weight_decay, "on every parameter"),
    "train.schedule": Field(_RECIPE.schedule, "of the learning rate: step or cosine (warms up, then falls to 0)"),
    "train.step_epochs": Field(_RECIPE.step_epochs, "step: epochs between two falls"),
    "train.step_factor": Field(_RECIPE.step_factor, "step: what the rate is multiplied by at each"),
    "train.warmup_epochs": Field(_RECIPE.warmup_epochs, "cosine: epochs of linear rise from 0"),
    "train.sigma_low": Field(
        _RECIPE.sigma_low, "draw each image's noise level from [sigma_low, training's sigma]; 0: always sigma"
    ),
    "train.augment": Field(_RECIPE.augment, "random crop (padded by 4) and flip; flip alone for a denoiser"),
    "train.start": Field("", "weights of the same network to start from, a file or a run's folder; empty: new ones"),
    "train.checkpoint_minutes": Field(5.0, "minutes between two checkpoints"),
    "train.steps_per_dispatch": Field(50, "steps between two looks at the clock; accelerators only"),
    "train.tensorboard": Field(False, "write the metrics for TensorBoard, too, into workdir/tensorboard"),
    "train.distributed": Field(
        "", "several processes train one network: auto (the job that JAX finds) or process 0's HOST:PORT; empty: one"
    ),
    "denoiser.weights": Field(
        "", "put this denoiser (file or run's folder) in front of the classifier; empty: no denoiser"
    ),
    "denoiser.sigma": Field(0.0, "noise level that it is told, in pixel units; 0: noise.sigma, for gaussian only"),
    "denoiser.steps": Field(1, "1: one shot; more: steps of DDIM"),
    "denoiser.schedule": Field(_SCHEDULE.kind, f"to train one, as all below: {_any_of(diffusion.KINDS)}"),
    "denoiser.times": Field(_SCHEDULE.steps, "times of the schedule"),
    "denoiser.beta_start": Field(
        _SCHEDULE.beta_start, "share of the signal's power that the first time takes; not cosine"
    ),
    "denoiser.beta_end": Field(_SCHEDULE.beta_end, "share of the signal's power that the last time takes; not cosine"),
    "denoiser.prediction": Field("epsilon", f"{_any_of(diffusion.PREDICTIONS)} (the image itself)"),
    "denoiser.sigma_low": Field(0.0, "lowest noise level to train for, in pixel units; 0: the schedule's"),
    "denoiser.sigma_high": Field(0.0, "highest noise level to train for, in pixel units; 0: the schedule's"),
    "denoiser.ema": Field(denoising.Target.ema, "how much of the weights' running mean a step keeps; in [0, 1)"),
    "denoiser.widths": Field((128, 256, 256, 256), "channels of each resolution"),
    "denoiser.blocks": Field(2, "residual blocks of each resolution"),
    "denoiser.attention": Field((False, True, False, False), "whether each resolution has attention"),
    "denoiser.middle_attention": Field(True, "whether the lowest resolution has attention between its blocks"),
    "denoiser.groups": Field(32, "groups of each normalisation; divides every width"),
    "denoiser.scale_shift": Field(False, "the time scales and shifts the normalised, instead of being added"),
    "denoiser.resample": Field("conv", "between resolutions: conv, resnet"),
    "sampling.plan": Field("fixed", f"how many samples an image gets: {_any_of(plans.PLANS)}; see docs/plans.md"),
    "sampling.sequence": Field("betting", "to_radius, to_precision: bound at every look: betting, union"),
    "sampling.radii": Field(plans.ToRadius.radii, "to_radius: decide for each of these, in pixel units, and stop"),
    "sampling.precision": Field(plans.ToPrecision.precision, "to_precision: of the radius, as a fraction of it"),
    "certify.n0": Field(plans.Fixed.n0, "samples that select the class; plan fixed only"),
    "certify.n": Field(plans.Fixed.n, "samples that bound the class's probability; the most, of other plans"),
    "certify.alpha": Field(Settings.alpha, "probability with which an image's certificate may be wrong; in (0, 1)"),
    "certify.certificate": Field(
        Settings.certificate, f"{_any_of(certificates.CERTIFICATES)} (two_sided: for gaussian and stepped, plan fixed)"
    ),
    "audit.images": Field(_AUDIT.images, "rows to attack, evenly spaced; 0: all"),
    "audit.fractions": Field(_AUDIT.fractions, "of each claimed radius: distances at which to attack"),
    "audit.radii": Field(_AUDIT.radii, "at which the robust accuracy is measured, in pixel units"),
    "audit.level": Field(_AUDIT.level, "probability that anything at all is claimed wrongly; in (0, 1)"),
    "audit.votes": Field(_AUDIT.votes, "fresh votes of each confirmation"),
    "audit.screening": Field(_AUDIT.screening, "votes by which the search compares images"),
    "audit.steps": Field(_AUDIT.steps, "gradient steps of an attack"),
    "audit.samples": Field(_AUDIT.samples, "noisy images of each gradient step"),
    "audit.restarts": Field(_AUDIT.restarts, "of projected gradient descent at each distance"),
    "audit.refinements": Field(
        _AUDIT.refinements, "more distances, which halve the gap between the nearest break and the next one without"
    ),
    "audit.saved": Field(_AUDIT.saved, "adversarial images to keep"),
}


PATHS = ("data.dir", "model.weights", "train.start", "denoiser.weights")


def base() -> Config:
    """Every setting with its default: ResNet-110 on CIFAR-10 by Cohen's recipe. No field can be added to it."""
    config: Config = ml_collections.ConfigDict()
    for path, field in FIELDS.items():
        group, _, name = path.rpartition(".")
        if group and group not in config:
            config[group] = ml_collections.ConfigDict()
        (config[group] if group else config)[name] = field.default
    return config.lock()


def get(config: Config, path: str) -> Any:
    """The value of a field, by its name in `FIELDS`."""
    for name in path.split("."):
        config = config[name]
    return config


def expand_home(config: Config) -> None:
    """Put the home folder for the `~` that a path begins with."""
    for path in PATHS:
        group, name = path.split(".")
        config[group][name] = os.path.expanduser(config[group][name])


def folder() -> Path:
    """Where the config files are: in the wheel inside the package, in a checkout beside it."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def load(name: str) -> Config:
    """The config that `FILE[:ARGUMENT]` names: what the `get_config` of a file returns, given the argument.

    The file is the user's or else, by its name, one of `folder()`. ValueError, which names the place, for one that does
    not load.
    """
    file, colon, argument = os.path.expanduser(name).partition(":")
    path = Path(file) if Path(file).is_file() else folder() / Path(file).name
    if not path.is_file():
        known = ", ".join(sorted(one.name for one in folder().glob("*.py")))
        raise ValueError(f"Expected --config to be a file, or one of {known}, got {file!r}.")
    try:
        return _made(path, [argument] if colon else [])
    except Exception as error:
        raise ValueError(_told(error, str(path))) from error


def _made(path: Path, given: list[str]) -> Config:
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise ValueError("Expected a function get_config, got none.")
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        wrong = "no argument after FILE:, got one" if given else "--config=FILE:ARGUMENT, got no argument"
        raise ValueError(f"Expected {wrong}.") from None
    made = get_config(*given)
    for field in FIELDS:
        try:
            get(made, field)
        except (KeyError, TypeError):
            raise ValueError(
                f"Expected get_config to return idrc_jax.config.base() with changes, got {type(made).__name__} without "
                f"{field}."
            ) from None
    return made


def _told(error: Exception, path: str) -> str:
    """An error inside a config file, with its place there; its kind, too, unless the message is meant for the user."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    place = f"{path}, line {lines[-1]}" if lines else path
    cast = re.fullmatch(  # what a ConfigDict says of a value of another type
        r"Could not override field '(\w+)' .*?\. (.*) is of original type <class '(\w+)'> and cannot be casted to type "
        r"<class '(\w+)'>",
        str(error),
        re.DOTALL,
    )
    if cast:
        name, value, found, wanted = cast.groups()
        return f"{place}: Expected {name} to be of type {wanted}, got {value} of type {found}."
    unknown = re.search(r'Key "(\w+)" does not exist and cannot be added', str(error))  # what a locked ConfigDict says
    if unknown:
        return f"{place}: {unknown_field(unknown[1])}"
    return f"{place}: {error}" if isinstance(error, ValueError) else f"{place}: {type(error).__name__}: {error}"


def unknown_field(name: str) -> str:
    """What to say of a field that is not there."""
    leaf = name.split(".")[-1]
    same = [path for path in FIELDS if path.split(".")[-1] == leaf]
    if "." not in name and not same:
        leaves = get_close_matches(leaf, {path.split(".")[-1] for path in FIELDS}, n=1)
        same = [path for path in FIELDS if path.split(".")[-1] in leaves]
    near = get_close_matches(name, same or list(FIELDS), n=3, cutoff=0.0 if same else 0.5)
    hint = f" Near: {', '.join(near)}." if near else ""
    return f"Expected a known config field, got {name}.{hint}"


def default_workdir(name: str) -> Path:
    """The folder of a run whose config is `FILE[:ARGUMENT]` and that the user gives no folder: runs/FILE[-ARGUMENT]."""
    file, _, argument = name.partition(":")
    return Path("runs", "-".join([Path(file).stem, *([argument.replace("/", "-")] if argument else [])]))


def noise_scheme(config: Config) -> Scheme:
    """The scheme that predictions and certificates use; ValueError for bins fitted to images that it is to certify."""
    noise = config.noise
    return _scheme(config, noise.scheme, sigma=noise.sigma, ref=noise.ref, certified=True)


def training_scheme(config: Config) -> Scheme:
    """The scheme that training uses: the noise's unless `config.train` says otherwise."""
    name = config.train.scheme or config.noise.scheme
    ref = config.train.ref or (config.noise.ref if name == config.noise.scheme else 1.0)
    return _scheme(config, name, sigma=config.train.sigma or config.noise.sigma, ref=ref)


def _scheme(config: Config, name: str, *, sigma: float, ref: float, certified: bool = False) -> Scheme:
    noise = config.noise
    if name != schemes.Stepped.name:
        if name == noise.scheme and (noise.edges or noise.levels or noise.bins):
            raise ValueError(f"Expected no noise.edges, levels or bins for the scheme {name}, which has none.")
        return schemes.make(name, sigma=sigma, ref=ref)
    if not (noise.bins or noise.edges or noise.levels):
        raise ValueError(
            "Expected noise.bins, to fit bins to the training images, or noise.edges and noise.levels for the scheme "
            "stepped, got none: in one bin it would be gaussian."
        )
    if not noise.bins:
        return schemes.make(name, sigma=sigma, ref=ref, by=noise.by, edges=noise.edges, levels=noise.levels)
    if noise.edges or noise.levels:
        raise ValueError("Expected noise.edges and noise.levels, or noise.bins to fit them, got both.")
    train_set = data.load(config.data.name, "train", directory=config.data.dir, seed=config.seed)
    images = _not_certified(config, train_set) if certified else train_set.images
    return schemes.fit_stepped(data.to_unit(images), sigma=sigma, by=noise.by, bins=noise.bins)


def _not_certified(config: Config, train_set: data.Dataset) -> np.ndarray:
    """The images that bins are fitted to: none of those that the test set has, too, be they chosen or not.

    A bin's edge that an image has moved would void that image's certificate. Images are the same by their pixels;
    copies that were changed are not found.
    """
    test_set = data.load(config.data.name, "test", directory=config.data.dir, seed=config.seed)
    shared = data.shared(train_set.images, test_set.images)
    if shared.all():
        raise ValueError(
            "Expected noise.bins to be fitted to other images than those that are certified, got "
            f"{train_set.source}, all of whose images are in {test_set.source}: bins that an image has moved void its "
            "certificate. Set noise.edges and noise.levels, or data.dir to a folder with another train.npz than "
            "test.npz."
        )
    if shared.any():
        told = f"{shared.sum()} of {train_set.source}'s {len(train_set)} images, which are in {test_set.source}, too"
        warnings.warn(f"noise.bins are fitted without {told}.", stacklevel=2)
    return np.asarray(train_set.images)[~shared]


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

    def per_channel(name: str, above: float) -> list[float]:
        values, channels = list(model[name]), shape[-1]
        if len(values) not in (1, channels) or not all(_validate.finite(one) and one > above for one in values):
            least = f" > {above:g}" if math.isfinite(above) else ""
            raise ValueError(
                f"Expected model.{name} to be a number{least} for each of {channels} channels or one for all, got "
                f"{tuple(values)}."
            )
        return values * channels if len(values) == 1 else values

    return {
        "architecture": model.architecture,
        "depth": model.depth,
        "classes": train_set.classes,
        "image_shape": list(shape),
        "shortcut": model.shortcut,
        "mean": per_channel("mean", -math.inf),
        "std": per_channel("std", 0),
        "dtype": model.dtype,
    }
