"""Every setting of the commands: name, default, one line of help.

A file in `configs/` takes `base()` and changes it; the command line overrides with `--config.a.b=value`.
"""

import os
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from idrc_jax import audit, certificates, data, losses, training
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certification import Settings
from idrc_jax.models import diffusion
from idrc_jax.training import denoiser

Config = Any  # an ml_collections.ConfigDict: its fields have no static types


class Field(NamedTuple):
    """A setting: its default, whose type is the setting's, and what it is, in one line of `--help`."""

    default: Any
    help: str


def _any_of(names: Iterable[str]) -> str:
    return ", ".join(names)


_RECIPE = training.Recipe()
_SCHEDULE = diffusion.Schedule()
_AUDIT = audit.Settings()
_PAIRS = certificates.Pairs()

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
        "an .npz file, or a folder: of images, of cifar10's binary version ...; what it holds overrules data.name",
    ),
    "data.size": Field(0, "folder: resize each image's shorter side to this, cut out the centre; 0: as they are"),
    "data.skip": Field(
        0, "certify the test images start, start + skip, ... below stop; 0: all; one in 20 of cifar10, 100 of imagenet"
    ),
    "data.count": Field(0, "certify the first so many of these; 0: all of them"),
    "data.start": Field(0, "index of the first test image"),
    "data.stop": Field(-1, "index after the last test image; -1: all"),
    "noise.scheme": Field("gaussian", f"of training, certification and prediction: {_any_of(schemes.SCHEMES)}"),
    "noise.factory": Field("", "or your own scheme, package.module:Scheme; see docs/how_to/own_noise_scheme.md"),
    "noise.sigma": Field(0.25, "noise level, in pixel units of images in [0, 1]; > 0"),
    "noise.ref": Field(1.0, "l1, inverse_sqrt_norm: value of the image's statistic at which the level is sigma; > 0"),
    "noise.by": Field("norm", f"stepped: statistic of the image: {_any_of(schemes.STATISTICS)}"),
    "noise.edges": Field((), 'stepped: between the bins, ascending, as "(24.0, 33.0)"'),
    "noise.levels": Field(
        (),
        "stepped: of each bin, times sigma, one more than edges; cascade: descending, empty: (1.0, 0.5); routed: of "
        "each answer of the router, empty: (0.5, 1.0)",
    ),
    "noise.exact": Field(
        False, "draw votes under integers whose law is known to the last bit: 8-bit images, noise rounded to their grid"
    ),
    "noise.bins": Field(0, "stepped: fit so many bins, and levels of mean 1, to the training images instead"),
    "noise.thresholds": Field((), "cascade: what decides, of each level but the last; in [.5, 1); empty: .5 each"),
    "noise.shares": Field(
        (),
        "cascade: of alpha for each level, together 1; empty: as much for each; routed: for router and class; empty: "
        "calculated",
    ),
    "noise.router_level": Field(schemes.Routed.router_level, "routed: of the router's own noise, times sigma; > 0"),
    "model.architecture": Field(
        "resnet", "resnet (CIFAR's), resnet50 (ImageNet's), vit (imported only), unet (to train a denoiser)"
    ),
    "model.depth": Field(110, "layers of a resnet, 6n + 2: 8, 20, 56, 110"),
    "model.shortcut": Field("projection", "of a resnet: projection, zero_pad"),
    "model.dtype": Field("float32", "type of the network's arithmetic: float32, bfloat16"),
    "model.mean": Field((0.4914, 0.4822, 0.4465), "subtracted from each channel; one value serves all channels"),
    "model.std": Field((0.2023, 0.1994, 0.2010), "divides each channel then; one value serves all channels"),
    "model.weights": Field(
        "", "certify with this file or run's folder, several with commas between as one network; empty: the workdir's"
    ),
    "model.by_level": Field(
        "",
        "stepped, cascade, routed: instead of model.weights a network for each of noise.levels, in their order: files "
        "or runs' folders with commas between; the last answers without noise",
    ),
    "model.consensus": Field(
        0, "of several weights: take the class of the first so many where these agree; 0: always the mean of all"
    ),
    "model.factory": Field("", "or with the Classifier that package.module:function returns"),
    "train.scheme": Field("", "noise scheme of training; empty: noise.scheme"),
    "train.sigma": Field(0.0, "noise level of training, in pixel units; 0: noise.sigma"),
    "train.ref": Field(0.0, "ref of training's scheme; 0: noise.ref, if the scheme is noise.scheme, else 1"),
    "train.epochs": Field(_RECIPE.epochs, "passes over the training images"),
    "train.batch": Field(_RECIPE.batch, "noisy images a step, on all devices together"),
    "train.method": Field(_RECIPE.method, "sgd (weight decay joins the gradient) or adam (it does not: AdamW)"),
    "train.lr": Field(_RECIPE.lr, "learning rate at its highest"),
    "train.momentum": Field(_RECIPE.momentum, "of sgd; first decay rate of adam; in [0, 1)"),
    "train.weight_decay": Field(_RECIPE.weight_decay, "on every parameter"),
    "train.schedule": Field(
        _RECIPE.schedule,
        "of the learning rate: step, cosine (warms up, falls to 0), onecycle (rises from lr / 25, falls)",
    ),
    "train.step_epochs": Field(_RECIPE.step_epochs, "step: epochs between two falls"),
    "train.step_factor": Field(_RECIPE.step_factor, "step: what the rate is multiplied by at each"),
    "train.warmup_epochs": Field(
        _RECIPE.warmup_epochs,
        "cosine, onecycle: epochs of the rise; -1: one, or half of a training of one; onecycle, 0: three in ten",
    ),
    "train.sigma_low": Field(
        _RECIPE.sigma_low, "draw each image's noise level from [sigma_low, training's sigma]; 0: always sigma"
    ),
    "train.augment": Field(_RECIPE.augment, "random crop (padded by 4) and flip; flip alone for a denoiser"),
    "train.statistics": Field(
        "batch", "what a batch normalisation sees: the whole batch, or each device its share (device); not a denoiser's"
    ),
    "train.ema": Field(0.0, "keep a running mean of the weights, of which a step keeps so much; in [0, 1); 0: none"),
    "train.start": Field(
        "",
        "weights of the same network to start from, a file or a run's folder; if they have another number of classes "
        "the last layer is new; empty: all new",
    ),
    "train.held_out": Field(
        -1,
        "training images to validate on instead of training on them; -1: 500 or, of fewer than 5,000, a tenth (a run "
        "that goes on: as many as it began with); a denoiser: none",
    ),
    "train.validate_epochs": Field(1, "epochs between two validations; the last epoch always ends with one"),
    "train.validate_samples": Field(16, "noisy copies of each image at a validation"),
    "train.checkpoint_minutes": Field(5.0, "minutes between two checkpoints"),
    "train.steps_per_dispatch": Field(50, "steps between two looks at the clock; accelerators only"),
    "train.tensorboard": Field(False, "write the metrics for TensorBoard, too, into workdir/tensorboard"),
    "train.distributed": Field(
        "", "several processes train one network: auto (the job that JAX finds) or process 0's HOST:PORT; empty: one"
    ),
    "train.loss.name": Field("gaussian", f"{_any_of(losses.LOSSES)}; see docs/how_to/training_losses.md"),
    "train.loss.noises": Field(-1, "noisy copies of an image in a batch; divides train.batch; -1: as published"),
    "train.loss.weight": Field(
        -1.0, "of what the loss adds to noise augmentation: lambda, eta of smoothmix; -1: as published for the level"
    ),
    "train.loss.entropy": Field(-1.0, "consistency: weight of the mean prediction's entropy; -1: as published"),
    "train.loss.epsilon": Field(
        -1.0, "smoothadv, catrs: radius of the attack, l2 in pixel units; > 0; -1: as published for the level"
    ),
    "train.loss.steps": Field(
        -1, "smoothadv, smoothmix, catrs, hard_samples: of the attack; -1: as published (hard_samples: for the level)"
    ),
    "train.loss.step_size": Field(
        -1.0, "smoothmix, hard_samples: of the attack, in pixel units; > 0; -1: as published for the level"
    ),
    "train.loss.one_step": Field(
        -1, "smoothmix: whether the image after one step takes the image's place: 0, 1; -1: as published for the level"
    ),
    "train.loss.warmup": Field(
        -1.0, "smoothadv: epochs in which epsilon rises; smoothmix: the weight; -1: as published"
    ),
    "train.loss.beta": Field(-1.0, "macer: what logits are multiplied by; > 0; -1: as published"),
    "train.loss.gamma": Field(-1.0, "macer: the largest gap of quantiles that is trained; > 0; -1: as published"),
    "train.loss.teacher": Field(
        "", "catrs: weights of a network trained under gaussian noise, a file or a run's folder"
    ),
    "train.loss.teacher_samples": Field(100, "catrs: noisy copies of each training image that the teacher votes on"),
    "train.loss.start_epoch": Field(
        -1, "hard_samples: epochs of plain noise augmentation before all the rest; -1: as published for the level"
    ),
    "train.loss.threshold": Field(
        -1.0,
        "hard_samples: leave out images of which a smaller share of the noisy copies is classified rightly then; in "
        "[0, 1); -1: as published for the level",
    ),
    "train.loss.threshold_samples": Field(-1, "hard_samples: noisy copies that show that share; -1: as published, 100"),
    "train.loss.redraw_epochs": Field(
        -1, "hard_samples: epochs between two countings of how often to draw each image; -1: as published, 10"
    ),
    "train.loss.weight_samples": Field(
        -1, "hard_samples: noisy copies of each image at a counting; a multiple of 4; -1: as published, 16"
    ),
    "train.loss.label_smoothing": Field(0.0, "share of a label's weight that all classes share; in [0, 1)"),
    "denoiser.weights": Field(
        "", "put this denoiser (file or run's folder) in front of the classifier; empty: no denoiser"
    ),
    "denoiser.sigma": Field(
        0.0,
        "noise level that it is told, in pixel units; 0: that of the noise where it is constant, or each of its levels",
    ),
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
    "denoiser.ema": Field(denoiser.Target.ema, "how much of the weights' running mean a step keeps; in [0, 1)"),
    "denoiser.widths": Field((128, 256, 256, 256), "channels of each resolution"),
    "denoiser.blocks": Field(2, "residual blocks of each resolution"),
    "denoiser.attention": Field((False, True, False, False), "whether each resolution has attention"),
    "denoiser.middle_attention": Field(True, "whether the lowest resolution has attention between its blocks"),
    "denoiser.groups": Field(32, "groups of each normalisation; divides every width"),
    "denoiser.scale_shift": Field(False, "the time scales and shifts the normalised, instead of being added"),
    "denoiser.resample": Field("conv", "between resolutions: conv, resnet"),
    "router.weights": Field("", "routed: the router that chooses the noise level (file or run's folder)"),
    "router.classifier": Field(
        "",
        "train a router, for this classifier (file or run's folder), or several, one for each of noise.levels, with "
        "commas between; see configs/router.py",
    ),
    "router.samples": Field(100, "to train one: votes of each image under each level"),
    "router.worth": Field(
        "radius", "to train one: what a level is worth at an image: its radius, or accuracy at sampling.radii"
    ),
    "router.images": Field(
        "held_out",
        "to train one: the training images that the classifier has held out, or all, if it is as sure of others",
    ),
    "sampling.plan": Field(
        "",
        f"how many samples an image gets: {_any_of(sampling_plans.PLANS)}; empty: fixed, under splitting exhaustive; "
        "see docs/explanation/plans.md",
    ),
    "sampling.sequence": Field("betting", "to_radius, to_precision: bound at every look: betting, union"),
    "sampling.radii": Field(
        sampling_plans.ToRadius.radii, "to_radius: decide for each of these, in pixel units, and stop"
    ),
    "sampling.published": Field(
        sampling_plans.ToRadius.published,
        "to_radius: decide for each of them, too, whether an image has it as the paper publishes radii",
    ),
    "sampling.correct_only": Field(
        sampling_plans.ToRadius.correct_only,
        "to_radius: decide radii of correct predictions alone; others get few votes and small radii",
    ),
    "sampling.precision": Field(
        sampling_plans.ToPrecision.precision, "to_precision: of the radius, as a fraction of it"
    ),
    "certify.n0": Field(sampling_plans.Fixed.n0, "samples that select the class; plan fixed only"),
    "certify.n": Field(
        sampling_plans.Fixed.n, "samples that bound the class's probability; the most, of other plans; not of splitting"
    ),
    "certify.alpha": Field(Settings.alpha, "probability with which an image's certificate may be wrong; in (0, 1)"),
    "certify.certificate": Field(
        Settings.certificate,
        f"{_any_of(certificates.CERTIFICATES)} (the last two: gaussian, stepped; plan fixed)",
    ),
    "paired.run": Field(
        "", "certify by this run of a like network and by pairs of both; see docs/how_to/certify_a_variant.md"
    ),
    "paired.weights": Field("", "weights of that run's network; empty: those in its folder, else model.weights"),
    "paired.n": Field(_PAIRS.n, "pairs of an image: samples that both networks classify"),
    "paired.share": Field(_PAIRS.share, "of certify.alpha, for the bound on how the two differ; in (0, 1)"),
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


PATHS = (
    "data.dir", "model.weights", "model.by_level", "train.loss.teacher", "train.start", "denoiser.weights",
    "router.weights", "router.classifier",
    "paired.run", "paired.weights",
)  # fmt: skip
# Which a config file may give as a tuple, and a command line with commas.
_SEVERAL = ("model.weights", "model.by_level", "router.classifier")


def base() -> Config:
    """Every setting with its default: ResNet-110 on CIFAR-10 by Cohen's recipe. No field can be added to it."""
    config: Config = ml_collections.ConfigDict()
    for path, field in FIELDS.items():
        *groups, name = path.split(".")
        inner = config
        for group in groups:
            if group not in inner:
                inner[group] = ml_collections.ConfigDict()
            inner = inner[group]
        several = path in _SEVERAL
        inner[name] = config_dict.FieldReference(field.default, field_type=object) if several else field.default
    return config.lock()


def get(config: Config, path: str) -> Any:
    """The value of a field, by its name in `FIELDS`."""
    for name in path.split("."):
        config = config[name]
    return config


def put(config: Config, path: str, value: Any) -> None:
    """Set a field, by its name in `FIELDS`."""
    *groups, name = path.split(".")
    for group in groups:
        config = config[group]
    config[name] = value


def several(paths: object, field: str = _SEVERAL[0]) -> tuple[str, ...]:
    """The paths that a field's value names: one, several with commas between, a tuple of them; none where it is empty.

    A file or folder whose name has commas is one. ValueError for a value of another kind, or an empty path in it.
    """
    if isinstance(paths, os.PathLike | str):
        text = os.fspath(paths)
        if text.startswith("(") and not os.path.exists(text):
            raise ValueError(f"Expected {field} to be a path, or several with commas between as in A,B, got {text}.")
        paths = (text,) if os.path.exists(os.path.expanduser(text)) else tuple(text.split(",")) if text else ()
    if not isinstance(paths, tuple) or not all(isinstance(path, str) and path.strip() for path in paths):
        raise ValueError(f"Expected {field} to be a path, or several with commas between, got {paths!r}.")
    return tuple(os.path.expanduser(path.strip()) for path in paths)


def expand_home(config: Config) -> None:
    """Put the home folder for the `~` that a path begins with, and commas between several paths."""
    for path in PATHS:
        value = get(config, path)
        put(config, path, ",".join(several(value, path)) if path in _SEVERAL else os.path.expanduser(value))


def name_data(config: Config) -> None:
    """Put the name of what data.dir holds into data.name."""
    config.data.name = data.kind(config.data.name, config.data.dir)


def choose_scheme(config: Config, given: Collection[str]) -> None:
    """Leave out a config file's noise.factory, and its ref, where a flag names noise.scheme; ValueError for both flags.

    Args:
      config: the settings with the flags; changed.
      given: the fields that flags give.
    """
    if not config.noise.factory or "noise.scheme" not in given:
        return
    if "noise.factory" in given:
        raise ValueError(f"Expected no noise.scheme beside noise.factory, got {config.noise.scheme}.")
    config.noise.factory = ""
    if "noise.ref" not in given:
        config.noise.ref = FIELDS["noise.ref"].default


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
