"""What several commands make of their settings: classifier, denoiser, images, devices, provenance."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from idrc_jax import config, data, models
from idrc_jax.certificates.schemes import Cascade, Routed, Scheme, constant_levels
from idrc_jax.certification.provenance import versions
from idrc_jax.config import run_memory
from idrc_jax.core import validate
from idrc_jax.data.folder import CLASSES
from idrc_jax.interop import user_factory
from idrc_jax.models.denoised_classifier import denoised
from idrc_jax.models.diffusion import Denoiser
from idrc_jax.results import Results, read_manifest
from idrc_jax.results.manifest import networks
from idrc_jax.sampling import devices
from idrc_jax.sampling.execution import check_level_networks, check_networks


@config.named(*config.NETWORK)
def classifier_and_images(
    values: flags.FlagValues, scheme: Scheme, note: str = ""
) -> tuple[models.Classifier, data.Dataset, np.ndarray]:
    """The classifier, behind its denoiser and with its router and networks by level, if it has any; the data set; the
    indices of the images to look at.

    When all of them are there, the note is told: what came from the run.
    """
    settings = values.config
    by_level = config.several(settings.model.by_level, "model.by_level")
    networks = [_named_network(values, one) for one in by_level or [config.several(settings.model.weights)]]
    denoiser = denoiser_of(settings)
    if by_level:
        check_level_networks(len(networks), scheme)
    if denoiser is not None:
        told = config.denoiser_sigmas(settings, scheme)
        each = networks * len(told) if len(networks) == 1 else networks
        sigmas = told * len(networks) if len(told) == 1 else told
        networks = [
            denoised(one, denoiser, sigma=sigma, steps=settings.denoiser.steps)
            for one, sigma in zip(each, sigmas, strict=True)
        ]
    classifier = networks[-1].at_levels(networks) if by_level or len(networks) > 1 else networks[0]
    router = _router_of(settings, scheme, values.workdir)
    if router is not None:
        classifier = classifier.routed_by(router)
    check_networks(classifier, scheme)
    _tell_who_votes(classifier, scheme, by_level=bool(by_level))
    dataset = config.dataset(settings, "test")
    chosen = config.selection(settings, dataset)
    if note:
        print(f"note: {note}.", file=sys.stderr)
    _tell_assumed_labels(classifier, dataset)
    if not settings.data.skip and dataset.name in data.SKIPS:
        told = f"one test image in {data.SKIPS[dataset.name]}, {len(chosen)} of {dataset.name}'s {len(dataset)}"
        print(f"note: {told}; --config.data.skip=1 takes all.", file=sys.stderr)
    return classifier, dataset, chosen


def _named_network(values: flags.FlagValues, weights: str | tuple[str, ...]) -> models.Classifier:
    """The network of some weights; of none the user's own, if there is one, or the workdir's."""
    settings = values.config
    factory, consensus = settings.model.factory, settings.model.consensus
    if not factory:
        return models.load_classifier(
            weights or values.workdir, dtype=settings.model.dtype, kernel=settings.kernel, expect=_expected(values),
            consensus=consensus,
        )  # fmt: skip
    if consensus:
        raise ValueError(f"Expected several model.weights with model.consensus = {consensus}, got model.factory.")
    classifier = user_factory.load(factory)
    if "torch_difference" in classifier.description:
        gap = classifier.description["torch_difference"]
        told = f"{factory}, translated to JAX, agrees with PyTorch to about {gap:.0e} of its largest logit"
        print(f"note: {told}.", file=sys.stderr)
    return classifier if validate.one_of("kernel", settings.kernel, ("auto", "xla")) == "auto" else _plain(classifier)


def _plain(classifier: models.Classifier) -> models.Classifier:
    """The plainest implementation of a network and of its router and networks by level, as far as it has them."""
    plain = classifier.reference
    router = plain.router.reference if plain.router else None
    return dataclasses.replace(plain, router=router, by_level=tuple(one.reference for one in plain.by_level))


def reference_of(values: flags.FlagValues, read: Results) -> models.Classifier:
    """The network of the run that paired.run names, in that run's compute type, behind the denoiser if there is one.

    Whether it is that network, certification compares.
    """
    settings, made = values.config, read.manifest["guarantee"] if read.manifest else {}
    beside = read.path.parent if (read.path.parent / models.WEIGHTS).is_file() else ""
    classifier = models.load_classifier(
        config.several(settings.paired.weights or beside or settings.model.weights) or values.workdir,
        dtype=made.get("dtype", ""),
        kernel=settings.kernel,
        consensus=made.get("consensus", 0),
    )
    denoiser = denoiser_of(settings)
    if denoiser is None:
        return classifier
    scheme = config.noise_scheme(settings)
    sigma, *others = config.denoiser_sigmas(settings, scheme)
    if others:  # which no variant has
        raise ValueError(
            f"Expected a scheme of one level of drawn noise for a variant of a network, got {scheme.name}, of whose "
            "levels the denoiser is told each: certify the variant itself, or say denoiser.sigma under stepped."
        )
    return denoised(classifier, denoiser, sigma=sigma, steps=settings.denoiser.steps)


def _tell_who_votes(classifier: models.Classifier, scheme: Scheme, *, by_level: bool) -> None:
    """Under a scheme of several levels, say of an ensemble that it votes under each, and which networks of
    `model.by_level`, or whether a router, were trained at another level than that under which they are to vote, or for
    others."""
    members = classifier.description.get("members", ())
    if isinstance(scheme, Cascade | Routed) and members and not by_level:
        told = f"the {len(members)} networks of model.weights vote together, as one ensemble, under every level"
        print(f"note: {told}; model.by_level gives each level its own.", file=sys.stderr)
    if isinstance(scheme, Routed) and classifier.router:
        _tell_of_router(classifier.router.description.get("training", {}), scheme)
    if not by_level:
        return
    for number, (network, level) in enumerate(zip(classifier.by_level, constant_levels(scheme), strict=True), 1):
        trained = run_memory.other_levels(network.description.get("training", {}), level)
        if trained:
            print(f"note: network {number} was trained at σ = {trained}, and votes at {level:g}.", file=sys.stderr)


def _tell_of_router(training: dict[str, Any], scheme: Routed) -> None:
    """Say it of a router that was trained at another level than that under which it is to vote, or for others."""
    level, levels = scheme.sigma * scheme.router_level, [scheme.sigma * factor for factor in scheme.levels]
    trained = run_memory.other_levels(training, level)
    if trained:
        print(f"note: the router was trained at σ = {trained}, and votes at {level:g}.", file=sys.stderr)
    known = training.get("teacher", {}).get("levels", levels)
    if not np.allclose(known, levels, rtol=1e-6):
        told = " and ".join(", ".join(f"{one:g}" for one in several) for several in (known, levels))
        print(
            f"note: the levels that the router was trained for, and those that it chooses from, differ: {told}.",
            file=sys.stderr,
        )


def _tell_assumed_labels(classifier: models.Classifier, dataset: data.Dataset) -> None:
    """Say which label each class folder is taken for, where neither the network nor `classes.txt` says it."""
    names, listed = dataset.class_names, Path(dataset.source) / CLASSES
    if names and "class_names" not in classifier.description and not listed.is_file():
        told = ", ".join(f"{label} = {name}" for label, name in enumerate(names[:5])) + (" ..." if names[5:] else "")
        print(
            f"note: the network does not know its classes' names; the folders in {dataset.source} are taken for "
            f"{told}: {listed}, a name a line, says another order.",
            file=sys.stderr,
        )


def mesh_of(settings: config.Config) -> Mesh | None:
    """The devices that the user names; None leaves them to be chosen."""
    return devices.mesh(settings.devices) if settings.devices else None


def denoiser_of(settings: config.Config) -> Denoiser | None:
    """The denoiser that the user names; ValueError for its settings without it."""
    if not settings.denoiser.weights:
        for name in ("denoiser.sigma", "denoiser.steps"):
            value = config.get(settings, name)
            if value != config.FIELDS[name].default:
                raise ValueError(f"Expected denoiser.weights with {name} = {value}, got none.")
        return None
    return models.load_denoiser(settings.denoiser.weights, dtype=settings.model.dtype, kernel=settings.kernel)


def _router_of(settings: config.Config, scheme: Scheme, workdir: Path) -> models.Classifier | None:
    """The router that the user names, or ValueError for none under the scheme routed, which names that of the results
    in the workdir if there is one, and for one under another scheme."""
    named = settings.router.weights
    if named and not isinstance(scheme, Routed):
        raise ValueError(f"Expected no router.weights for the scheme {scheme.name}, got {named}.")
    if not isinstance(scheme, Routed):
        return None
    if not named:
        there = read_manifest(workdir)
        last = networks(there).get("router.weights") if there else None
        told = f": the results in {workdir} have --config.router.weights={last}" if last else ""
        raise ValueError(f"Expected router.weights, that of the router, for the scheme routed, got none{told}.")
    return models.load_classifier(config.several(named), dtype=settings.model.dtype, kernel=settings.kernel)


def _expected(values: flags.FlagValues) -> dict[str, Any]:
    """What the weights must be: the config's network or, of a file that the user names, what the command line says."""
    settings = values.config
    named = settings.model.weights or settings.model.by_level
    said = config_flags.get_override_values(values["config"]) if named else config.FIELDS
    names = ("architecture", "depth", "shortcut")
    return {name: settings.model[name] for name in names if f"model.{name}" in said}


def provenance(settings: config.Config) -> dict[str, Any]:
    """What a manifest says of a call: versions, the time, the files of weights."""
    return {
        **versions(),
        "weights": settings.model.weights,
        **({"data_size": settings.data.size} if settings.data.size else {}),
        **({"denoiser": settings.denoiser.weights} if settings.denoiser.weights else {}),
        **({"router": settings.router.weights} if settings.router.weights else {}),
        **({"by_level": settings.model.by_level} if settings.model.by_level else {}),
        **({"paired_run": settings.paired.run} if settings.paired.run else {}),
    }


def go_on(what: str, workdir: Path) -> str:
    """What to tell when a time limit has ended a call."""
    return f"{what} in {workdir} stopped before its time limit; the same command goes on from here."
