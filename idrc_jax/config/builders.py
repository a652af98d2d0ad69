"""The objects that settings stand for: schemes, plans, recipes, descriptions of networks."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from idrc_jax import audit, certificates, data, losses, training
from idrc_jax.certificates import sampling_plans, schemes, user_schemes
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.certification import Settings
from idrc_jax.config.fields import FIELDS, Config, get
from idrc_jax.core import validate
from idrc_jax.core.json_values import Json
from idrc_jax.core.validate import SettingError
from idrc_jax.models import diffusion
from idrc_jax.training import denoiser


@contextlib.contextmanager
def named(*paths: str, **others: str) -> Iterator[None]:
    """Errors about attributes name the settings that their values come from; for a block, or as a decorator.

    Args:
      paths: names in `FIELDS` of attributes that are called as their last parts.
      others: those of attributes that are called otherwise.
    """
    known = {path.rpartition(".")[2]: path for path in paths} | others
    try:
        yield
    except SettingError as error:
        raise error.renamed(known) from error


def dataset(config: Config, split: str) -> data.Dataset:
    """One split of the data set, "train" or "test"."""
    name = data.kind(config.data.name, config.data.dir)
    return data.load(name, split, directory=config.data.dir, seed=config.seed, size=config.data.size)


def selection(config: Config, test_set: data.Dataset) -> np.ndarray:
    """The indices of the test images to look at."""
    chosen = config.data
    skip = chosen.skip or data.SKIPS.get(test_set.name, 1)
    return data.select(len(test_set), skip=skip, start=chosen.start, stop=chosen.stop, most=chosen.count)


def _group(name: str) -> list[str]:
    return [path for path in FIELDS if path.startswith(f"{name}.")]


AUDIT = _group("audit")
TRAIN = _group("train")
_OF_LEVELS = (
    "noise.edges", "noise.levels", "noise.bins", "noise.thresholds", "noise.shares", "noise.router_level",
)  # fmt: skip
NETWORK = ["model.architecture", "model.shortcut", "model.dtype", "model.consensus", "denoiser.steps"]


def noise_scheme(config: Config) -> Scheme:
    """The scheme that predictions and certificates use; ValueError for bins fitted to images that it is to certify."""
    noise = config.noise
    if noise.factory:
        return _as_asked(config, _own_scheme(config, sigma=noise.sigma, ref=noise.ref))
    return _as_asked(config, _scheme(config, noise.scheme, sigma=noise.sigma, ref=noise.ref, certified=True))


@named("noise.exact", "noise.sigma", "noise.levels", "noise.router_level")
def _as_asked(config: Config, scheme: Scheme) -> Scheme:
    """The scheme with exact noise, if that is asked for."""
    return schemes.with_exact_noise(scheme) if config.noise.exact else scheme


def _own_scheme(config: Config, *, sigma: float, ref: float) -> Scheme:
    """The scheme of the user's that `noise.factory` names; ValueError beside settings that are for others."""
    for name in ("noise.scheme", *_OF_LEVELS):
        value = get(config, name)
        if value != FIELDS[name].default:
            raise ValueError(f"Expected no {name} beside noise.factory, got {value}.")
    return user_schemes.load(config.noise.factory, sigma=sigma, ref=ref)


def training_scheme(config: Config) -> Scheme:
    """The scheme that training uses: the noise's unless `config.train` says otherwise; only then it is exact, too. A
    router's is that of its own level."""
    if config.router.classifier and not config.train.scheme:
        return schemes.Gaussian(config.train.sigma or config.noise.sigma * config.noise.router_level)
    own = config.noise.factory and not config.train.scheme
    name, sigma = config.train.scheme or config.noise.scheme, config.train.sigma or config.noise.sigma
    same = own or (name == config.noise.scheme and not config.noise.factory)
    ref = config.train.ref or (config.noise.ref if same else 1.0)
    made = _own_scheme(config, sigma=sigma, ref=ref) if own else _scheme(config, name, sigma=sigma, ref=ref)
    return _as_asked(config, made) if same else made


@named("noise.scheme", "noise.by", *_OF_LEVELS)
def _scheme(config: Config, name: str, *, sigma: float, ref: float, certified: bool = False) -> Scheme:
    noise = config.noise
    if name in (schemes.Cascade.name, schemes.Routed.name):
        return _several_levels(config, name, sigma=sigma, ref=ref, certified=certified)
    if name == noise.scheme and (noise.thresholds or noise.shares or noise.router_level != 1):
        raise ValueError(f"Expected no noise.thresholds, shares or router_level for the scheme {name}, which has none.")
    if name != schemes.Stepped.name:
        if name == noise.scheme and (noise.edges or noise.levels or noise.bins):
            raise ValueError(f"Expected no noise.edges, levels or bins for the scheme {name}, which has none.")
        return schemes.make(name, sigma=sigma, ref=ref)
    if not (noise.bins or noise.edges or noise.levels):
        raise ValueError(
            "Expected noise.bins, to fit bins to the training images, or noise.edges and noise.levels for the "
            "scheme stepped, got none: in one bin it would be gaussian."
        )
    if not noise.bins:
        return schemes.make(name, sigma=sigma, ref=ref, by=noise.by, edges=noise.edges, levels=noise.levels)
    if noise.edges or noise.levels:
        raise ValueError("Expected noise.edges and noise.levels, or noise.bins to fit them, got both.")
    train_set = dataset(config, "train")
    images = _not_certified(config, train_set) if certified else train_set.images
    return schemes.fit_stepped(data.to_unit(images), sigma=sigma, by=noise.by, bins=noise.bins)


def _several_levels(config: Config, name: str, *, sigma: float, ref: float, certified: bool) -> Scheme:
    noise = config.noise
    if not certified:
        raise ValueError(
            "Expected train.scheme, such as gaussian with train.sigma and train.sigma_low for a range of levels, got "
            f"{name}, which has several."
        )
    others = {"edges": noise.edges, "bins": noise.bins}
    if name == schemes.Cascade.name:
        others["router_level"] = noise.router_level != schemes.Routed.router_level
        parts = {"thresholds": noise.thresholds}
    else:
        others["thresholds"] = noise.thresholds
        parts = {"router_level": noise.router_level}
    if any(others.values()):
        raise ValueError(f"Expected no noise.{', '.join(others)} for the scheme {name}, which has none.")
    return schemes.make(name, sigma=sigma, ref=ref, levels=noise.levels, shares=noise.shares, **parts)


def _not_certified(config: Config, train_set: data.Dataset) -> np.ndarray:
    """The images that bins are fitted to: none of those that the test set has, too, be they chosen or not.

    A bin's edge that an image has moved would void that image's certificate. Images are the same by their pixels;
    copies that were changed are not found.
    """
    test_set = dataset(config, "test")
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


@named(*TRAIN)
def recipe(config: Config) -> training.Recipe:
    """The training recipe."""
    settings = {name: config.train[name] for name in training.Recipe.__dataclass_fields__}
    if settings["warmup_epochs"] == -1:
        settings["warmup_epochs"] = min(1.0, settings["epochs"] / 2)
    return training.Recipe(**settings)


@named(*_group("train.loss"))
def loss(config: Config) -> losses.Loss:
    """The loss of training; what is not given is as published for the training's noise level."""
    asked, given = config.train.loss, {}
    for path in _group("train.loss"):
        name = path.rpartition(".")[2]
        if name not in ("name", "teacher", "teacher_samples") and asked[name] != FIELDS[path].default:
            given[name] = asked[name]
    if "one_step" in given:
        given["one_step"] = bool(validate.at_least("one_step", given["one_step"], 0))
    return losses.make(asked.name, config.train.sigma or config.noise.sigma, **given)


@named(*_group("certify"))
def settings(config: Config) -> Settings:
    """The certification settings."""
    certify = config.certify
    validate.one_of("certificate", certify.certificate, certificates.CERTIFICATES)
    return Settings(plan(config), certify.alpha, config.seed, certify.certificate)


@named(*_group("paired"))
def pairs(config: Config) -> certificates.Pairs | None:
    """How many pairs of votes an image gets, and how alpha is split; None without a run to pair with.

    ValueError for settings that do not go together.
    """
    paired = config.paired
    if not paired.run:
        for path in _group("paired"):
            value = get(config, path)
            if value != FIELDS[path].default:
                raise ValueError(f"Expected paired.run with {path} = {value}, got none.")
        return None
    if config.certify.certificate != FIELDS["certify.certificate"].default:
        raise ValueError(
            f"Expected no certify.certificate beside paired.run, got {config.certify.certificate}: pairs have one of "
            "their own."
        )
    return certificates.Pairs(paired.n, paired.share)


@named(*AUDIT)
def audit_settings(config: Config) -> audit.Settings:
    """The audit's settings."""
    return audit.Settings(**config.audit)


@named("certify.n", "certify.n0", *_group("sampling"))
def plan(config: Config) -> sampling_plans.Plan:
    """The sampling plan: `sampling.plan` with those of the other fields that it has. `splitting` has all of its
    offsets, whatever `certify.n`, which config files say for other schemes; ValueError for another plan."""
    name, certify = config.sampling.plan, config.certify
    scheme = noise_scheme(config) if config.noise.scheme == schemes.Splitting.name else None
    if scheme is not None and name in ("", sampling_plans.Exhaustive.name):
        return certificates.usual_plan(scheme, n0=certify.n0, n=certify.n)
    chosen = sampling_plans.PLANS[validate.one_of("plan", name or sampling_plans.Fixed.name, sampling_plans.PLANS)]
    for switch in sampling_plans.SWITCHES:
        if config.sampling[switch] and switch not in {field.name for field in fields(chosen)}:
            raise SettingError(
                f"Expected {switch}=False under the plan {chosen.name}, got True: to_radius alone is asked for radii.",
                switch,
            )
    known = {"n0": certify.n0, "n": certify.n, **config.sampling}
    made = chosen(**{field.name: known[field.name] for field in fields(chosen)})
    if scheme is not None:
        certificates.check_certificate("one_sided", scheme, made)
    return made


@named(
    "denoiser.prediction",
    "denoiser.beta_start",
    "denoiser.sigma_low",
    "denoiser.ema",
    kind="denoiser.schedule",
    steps="denoiser.times",
)
def denoiser_target(config: Config) -> denoiser.Target:
    """What a denoiser that is trained learns."""
    asked = config.denoiser
    schedule = diffusion.Schedule(asked.schedule, asked.times, asked.beta_start, asked.beta_end)
    return denoiser.Target(schedule, asked.prediction, asked.sigma_low, asked.sigma_high, asked.ema)


def denoiser_sigmas(config: Config, scheme: Scheme) -> tuple[float, ...]:
    """The noise level that the denoiser in front of the classifier is told; one for each that the scheme chooses from,
    where it does and the config has none."""
    if config.denoiser.sigma:
        return (config.denoiser.sigma,)
    if levels := schemes.constant_levels(scheme):
        return levels
    if not isinstance(scheme, schemes.Gaussian | schemes.Box | schemes.Laplace):
        raise ValueError(
            f"Expected denoiser.sigma, one level for all images, as {scheme.name} has a level of its own for each: "
            "told that, the denoised classifier would depend on the clean image, and no certificate would hold."
        )
    return (scheme.sigma,)


def denoiser_description(config: Config, train_set: data.Dataset) -> Json:
    """What rebuilds the U-Net (see `models.build`)."""
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


def description(config: Config, train_set: data.Dataset) -> Json:
    """What rebuilds the network (see `models.build`); mean and std of length 1 serve every channel."""
    model, shape = config.model, train_set.images.shape[1:]
    if model.architecture == "vit":
        raise ValueError(
            "Expected model.architecture resnet or resnet50 to train, got vit: import a trained one (idrc-import), and "
            "certify it by model.weights."
        )
    validate.one_of("model.dtype", model.dtype, ("float32", "bfloat16"))

    def per_channel(name: str, above: float) -> list[float]:
        values, channels = list(model[name]), shape[-1]
        if len(values) not in (1, channels) or not all(validate.finite(one) and one > above for one in values):
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
        **({"class_names": list(train_set.class_names)} if train_set.class_names else {}),
    }
