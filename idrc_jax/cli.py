"""The installed commands. `train.py` and `certify.py` at the top of a checkout are the first two.

A wrong setting or damaged file ends in one line on standard error and exit status 1; a job that stopped
for its time limit exits 0 and says in its status file how far it got; Ctrl-C exits 130.
"""

import importlib.metadata
import itertools
import math
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from idrc_jax import (
    __version__,
    _command,
    certification,
    checkpoints,
    choice,
    config,
    data,
    denoising,
    devices,
    exhibits,
    figures,
    findings,
    galleries,
    prng,
    results,
    schemes,
    summary,
    training,
    training_loop,
    workers,
)
from idrc_jax.audit import audit as audit_file
from idrc_jax.certification import certify_dataset, estimate
from idrc_jax.certification import predict as predict_images
from idrc_jax.checkpoints import Classifier
from idrc_jax.denoised_smoothing import denoised
from idrc_jax.diffusion import Denoiser
from idrc_jax.interop import factory
from idrc_jax.schemes import Scheme

_CONFIG = "FILE[:ARGUMENT]: a config file of yours or, by its name, of this package; quickstart.py by default."


def train() -> None:
    """idrc-train: train a network under noise."""
    _main(train.__doc__, _train, config_file=True, cpu_devices=_training_devices)


def certify() -> None:
    """idrc-certify: certify images with a trained network."""
    _main(certify.__doc__, _certify, config_file=True, define=_define_dry_run)


def predict() -> None:
    """idrc-predict: the smoothed classifier's class of each image, or an abstention."""
    _main(predict.__doc__, _predict, config_file=True, define=_define_predict)


def merge() -> None:
    """idrc-merge: unite the result files of several workers into one."""
    _main(merge.__doc__, _merge, config_file=False, define=_define_merge)


def audit() -> None:
    """idrc-audit RUN: search near certified images for ones at which the smoothed classifier decides otherwise."""
    _main(audit.__doc__, _audit, config_file=True, define=_define_audit, folder=True)


def _training_devices(settings: config.Config) -> int:
    model = settings.model
    return training_loop.cpu_devices(model.architecture, model.dtype, settings.train.batch, settings.kernel)


def _train(values: flags.FlagValues) -> int:
    settings = values.config
    with workers.joined(settings.train.distributed, settings.workers.index, settings.workers.count):
        return _train_together(settings, values.workdir)


def _train_together(settings: config.Config, workdir: Path) -> int:
    recipe = config.recipe(settings)
    train_set = data.load(settings.data.name, "train", directory=settings.data.dir, seed=settings.seed)
    common = {
        "seed": settings.seed,
        "mesh": devices.global_mesh(settings.devices),
        "max_minutes": settings.max_minutes,
        "kernel": settings.kernel,
        **{name: settings.train[name] for name in ("checkpoint_minutes", "steps_per_dispatch", "tensorboard")},
    }
    if settings.model.architecture == "unet":
        ignored = ("train.scheme", "train.sigma", "train.ref", "train.sigma_low")
        _require_default(settings, *ignored, "denoiser.weights", "denoiser.sigma", "denoiser.steps")
        target, described = config.denoiser_target(settings), config.denoiser_description(settings, train_set)
        finished = denoising.train(train_set, target, recipe, described, workdir, start=settings.train.start, **common)
    else:
        scheme, described = config.training_scheme(settings), config.description(settings, train_set)
        if settings.denoiser.weights and settings.denoiser.sigma not in (0, scheme.sigma):
            raise ValueError(
                f"Expected denoiser.sigma 0 or the training noise's {scheme.sigma}, got {settings.denoiser.sigma}."
            )
        more = {"denoiser": _denoiser(settings), "denoiser_steps": settings.denoiser.steps}
        more["start"] = settings.train.start
        finished = training.train(train_set, scheme, recipe, described, workdir, **more, **common)
    if jax.process_index() == 0:
        print(f"Trained: {workdir / checkpoints.WEIGHTS}" if finished else _go_on("Training", workdir))
    return 0


def _require_default(settings: config.Config, *names: str) -> None:
    """ValueError for a setting that training a denoiser would ignore."""
    for name in names:
        value = config.get(settings, name)
        if value != config.FIELDS[name].default:
            raise ValueError(f"Expected no {name} to train a denoiser, got {value}.")


def _warn_of_training_images(
    classifier: Classifier, dataset: data.Dataset, indices: np.ndarray, settings: config.Config
) -> None:
    """A warning that counts the images to certify on which the network was trained, where the training set is at hand.

    They are the same by their pixels; copies that were changed are not found.
    """
    trained_on = classifier.description.get("training", {}).get("data_sha256")
    if trained_on in (None, dataset.fingerprint(indices)):  # the latter is told by certification itself
        return
    try:
        train_set = data.load(settings.data.name, "train", directory=settings.data.dir, seed=settings.seed)
    except (ValueError, OSError):
        return
    if train_set.fingerprint() == trained_on:
        count = data.shared(dataset.images[indices], train_set.images).sum()
        if count:
            warnings.warn(
                f"The network was trained on {count} of the {len(indices)} images of {dataset.source} to certify.",
                stacklevel=2,
            )


def _certify(values: flags.FlagValues) -> int:
    settings, workdir = values.config, values.workdir
    scheme, mesh = config.noise_scheme(settings), _mesh(settings)
    certify_settings = config.settings(settings)
    worker = workers.this_worker(settings.workers.index, settings.workers.count)
    classifier, dataset, indices = _classifier_and_images(values, scheme)
    if values.dry_run:
        said = estimate(classifier, scheme, dataset, indices, certify_settings, chunk=settings.chunk, mesh=mesh)
        memory = "unknown" if said.memory is None else f"{math.ceil(said.memory / 2**20)} MiB a device for a chunk"
        print(
            f"Dry run: {said.images} images, at most {said.samples:,} samples at {said.samples_per_second:,.0f}/s: "
            f"about {_duration(said.seconds)}; memory {memory}."
        )
        return 0
    _warn_of_training_images(classifier, dataset, indices, settings)
    finished = certify_dataset(
        classifier,
        scheme,
        dataset,
        indices,
        certify_settings,
        workdir,
        chunk=settings.chunk,
        mesh=mesh,
        max_minutes=settings.max_minutes,
        worker=worker,
        provenance=_provenance(settings) | _training(classifier),
    )
    if not finished:
        print(_go_on("Certification", workdir))
    elif worker.count == 1:
        results.merge(results.files(workdir), workdir)
        read = results.read_results(workdir)
        print(summary.summary_table(read))
        galleries.write(exhibits.gallery(read, dataset, _denoiser(settings)), workdir)
        others = len(read.rows) - len(indices)
        if others:
            print(
                f"Table, figure and rows are of {len(read.rows)} images: {len(indices)} of this call's data.start, "
                f"stop and skip, and {others} that other calls certified in {workdir}."
            )
        print(f"Rows: {workdir / 'certificates.tsv'}")
        if dataset.labelled:
            figures.plot_certified_accuracy([read], workdir / "certified_accuracy.png")
            print(f"Figure: {workdir / 'certified_accuracy.png'}")
    else:
        print(f"Done. When all workers are: idrc-merge --out {workdir} {workdir}/certificates.*-of-*.tsv")
    return 0


def _predict(values: flags.FlagValues) -> int:
    settings = values.config
    scheme, mesh = config.noise_scheme(settings), _mesh(settings)
    classifier, dataset, indices = _classifier_and_images(values, scheme)
    certification.check_fits(classifier, dataset)
    certification.check_prediction(values.n, settings.certify.alpha, classifier.classes, adaptive=values.adaptive)
    chosen = choice.choose(classifier, scheme, samples=len(indices) * values.n, mesh=mesh, chunk=settings.chunk)
    print("idx\tlabel\tpredict\tcorrect" if dataset.labelled else "idx\tpredict", flush=True)
    for start in range(0, len(indices), 16):
        some = indices[start : start + 16]
        predictions = predict_images(
            chosen.classifier,
            scheme,
            data.to_unit(dataset.images[some]),
            indices=some,
            n=values.n,
            alpha=settings.certify.alpha,
            adaptive=values.adaptive,
            key=prng.root(settings.seed),
            chunk=chosen.chunk,
            mesh=chosen.mesh,
        )
        for index, prediction in zip(some, predictions, strict=True):
            label = dataset.labels[index]
            told = (label, prediction, int(prediction == label)) if dataset.labelled else (prediction,)
            print(index, *told, sep="\t", flush=True)
    return 0


def _audit(values: flags.FlagValues) -> int:
    settings, out = values.config, values.out or values.workdir
    audit_settings = config.audit_settings(settings)
    read = results.read_results(values.workdir)
    if read.manifest is None:
        raise ValueError(
            f"Expected a run with its manifest to audit, got {read.path}: a log has neither the network, whose votes "
            "an audit counts anew, nor the scheme of its noise. Certify the network here, and audit that run."
        )
    scheme = schemes.from_description(read.manifest["guarantee"])
    classifier, dataset, indices = _classifier_and_images(values, scheme)
    finished = audit_file(
        classifier,
        dataset,
        indices,
        read,
        audit_settings,
        out,
        seed=settings.seed,
        chunk=settings.chunk,
        mesh=_mesh(settings),
        max_minutes=settings.max_minutes,
        provenance=_provenance(settings),
    )
    print(findings.table(findings.read_audit(out).manifest))
    print(f"Rows: {out / findings.NAME}" if finished else _go_on("The audit", out))
    return 0


def _merge(values: flags.FlagValues, paths: list[str]) -> int:
    if not paths or values.out is None:
        raise ValueError("Expected result files and --out FOLDER, got none: idrc-merge --out FOLDER FILE ...")
    results.merge([_command.path(path) for path in paths], values.out)
    print(summary.summary_table(results.read_results(values.out)))
    return 0


def _classifier_and_images(values: flags.FlagValues, scheme: Scheme) -> tuple:
    settings = values.config
    if settings.model.factory and settings.model.weights:
        raise ValueError("Expected model.factory or model.weights, got both.")
    if settings.model.factory:
        classifier = factory.load(settings.model.factory)
    else:
        where = settings.model.weights or values.workdir
        classifier = checkpoints.load_classifier(
            where, dtype=settings.model.dtype, kernel=settings.kernel, expect=_expected(values)
        )
    denoiser = _denoiser(settings)
    if denoiser is not None:
        sigma = config.denoiser_sigma(settings, scheme)
        classifier = denoised(classifier, denoiser, sigma=sigma, steps=settings.denoiser.steps)
    dataset = data.load(settings.data.name, "test", directory=settings.data.dir, seed=settings.seed)
    chosen = data.select(len(dataset), skip=settings.data.skip, start=settings.data.start, stop=settings.data.stop)
    return classifier, dataset, chosen


def _mesh(settings: config.Config) -> Mesh | None:
    """The devices that the user names; None leaves them to be chosen."""
    return devices.mesh(settings.devices) if settings.devices else None


def _denoiser(settings: config.Config) -> Denoiser | None:
    if not settings.denoiser.weights:
        for name in ("denoiser.sigma", "denoiser.steps"):
            value = config.get(settings, name)
            if value != config.FIELDS[name].default:
                raise ValueError(f"Expected denoiser.weights with {name} = {value}, got none.")
        return None
    return checkpoints.load_denoiser(settings.denoiser.weights, dtype=settings.model.dtype, kernel=settings.kernel)


def _expected(values: flags.FlagValues) -> dict:
    """What the weights must be: the config's network or, of a file that the user names, what the command line says."""
    settings = values.config
    said = config_flags.get_override_values(values["config"]) if settings.model.weights else config.FIELDS
    names = ("architecture", "depth", "shortcut")
    return {name: settings.model[name] for name in names if f"model.{name}" in said}


def _provenance(settings: config.Config) -> dict:
    packages = ("jax", "jaxlib", "flax", "numpy", "scipy")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"idrc_jax": __version__}
    return {
        "versions": versions,
        "python": platform.python_version(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": settings.model.weights,
        **({"denoiser": settings.denoiser.weights} if settings.denoiser.weights else {}),
    }


def _training(classifier: checkpoints.Classifier) -> dict:
    """How the network was trained, where its weights say so."""
    return {name: classifier.description[name] for name in ("training",) if name in classifier.description}


def _go_on(what: str, workdir: Path) -> str:
    return f"{what} in {workdir} stopped before its time limit; the same command goes on from here."


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _define_dry_run(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("dry_run", False, "Say how many samples, how long, how much memory; do nothing.", values)


def _define_predict(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("n", 1000, "Samples an image, 1000 by default.", flag_values=values)
    flags.DEFINE_bool("adaptive", False, "Stop where the class is clear, after at most n samples.", values)


def _define_audit(values: flags.FlagValues) -> None:
    values.set_gnu_getopt(True)
    flags.DEFINE(_Path(), "out", None, "Folder of the audit; the run's by default.", values)


def _define_merge(values: flags.FlagValues) -> None:
    flags.DEFINE(_Path(), "out", None, "Folder for the united certificates.tsv.", values)


class _Path(flags.ArgumentParser):
    """Of flags that are paths."""

    def parse(self, argument: str) -> Path:
        return _command.path(argument)


def _main(
    about: str | None,
    job: Callable,
    *,
    config_file: bool,
    define: Callable[[flags.FlagValues], None] | None = None,
    cpu_devices: Callable[[config.Config], int] = lambda _: os.cpu_count() or 1,
    folder: bool = False,
) -> None:
    with _command.one_line_errors(), devices.known_platforms():
        values, rest = _parse(config_file, define)
        if values.help:
            print(_help(about, values))
            sys.exit(0)
        if not config_file:
            sys.exit(job(values, rest))
        if folder and len(rest) == 1:
            values.workdir = _command.path(rest[0])
        elif rest:
            raise ValueError(f"Expected only --flags, got {rest[0]!r}.")
        prng.check_seed(values.config.seed)
        devices.configure_cpu(values.config.devices or cpu_devices(values.config))
        sys.exit(job(values))


def _help(about: str | None, values: flags.FlagValues) -> str:
    own = [values[name] for name in values if not name.startswith("config.") and values[name].help]
    names = ("config", "workdir", "dry_run", "n", "adaptive", "out", "debug", "help")
    lines = [about or "", *(f"  --{flag.name:<9} {flag.help}" for flag in own if flag.name in names)]
    if "config" in values:
        lines += ["", "Fields, to be set by --config.FIELD=VALUE, with the values of this config:"]
        for _, group in itertools.groupby(config.FIELDS.items(), key=lambda item: item[0].rpartition(".")[0]):
            lines += ["", *(_explained(path, field, config.get(values.config, path)) for path, field in group)]
    return "\n".join(lines)


def _explained(path: str, field: config.Field, value: object) -> str:
    default = "" if value == field.default else f" (default: {field.default!r})"
    return f"  {f'{path} = {value!r}':<38}  # {field.help}{default}"


def _parse(config_file: bool, define: Callable[[flags.FlagValues], None] | None) -> tuple[flags.FlagValues, list[str]]:
    """The flags and what is left of the command line, or a ValueError of one line."""
    values = flags.FlagValues()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values)
    arguments = sys.argv
    try:
        if config_file:
            name, arguments = _config_file(arguments)
            config_flags.DEFINE_config_dict("config", config.load(name), _CONFIG, values, sys_argv=arguments)
            workdir = str(config.default_workdir(name))
            flags.DEFINE(_Path(), "workdir", workdir, f"Folder of the run, {workdir} by default.", values)
        if define:
            define(values)
        rest = values(arguments)[1:]
        if config_file:
            config.expand_home(values.config)
        return values, rest
    except (AttributeError, KeyError) as error:
        raise ValueError(_unknown_field(error)) from error
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_unknown_flag(error.flagname)) from error
    except (flags.Error, TypeError) as error:
        raise ValueError(_wrong_value(str(error))) from error


def _config_file(arguments: list[str]) -> tuple[str, list[str]]:
    """What the last --config says, or the default, and the other arguments."""
    name, others, rest = "quickstart.py", [], iter(arguments)
    for argument in rest:
        match = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if match:
            name = next(rest, "") if match[1] is None else match[1]
        else:
            others.append(argument)
    return name, others


def _unknown_flag(name: str) -> str:
    near = [name] if name in config.FIELDS else get_close_matches(name, config.FIELDS, n=1)
    return f"Expected a known flag, got --{name}.{f' Did you mean --config.{near[0]}?' if near else ''}"


def _wrong_value(told: str) -> str:
    """What absl says of a value that its flag cannot take, with the field's type."""
    match = re.match(r"flag --config\.([\w.]+)=", told)
    if not match or match[1] not in config.FIELDS:
        return told
    value = told[match.end() :].partition(": ")[0]
    return f"Expected {match[1]} to be of type {type(config.FIELDS[match[1]].default).__name__}, got {value!r}."


def _unknown_field(error: Exception) -> str:
    for argument in sys.argv[1:]:
        match = re.match(r"--(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in config.FIELDS:
            return config.unknown_field(match[1])
    return f"Expected known config fields: {error}"
