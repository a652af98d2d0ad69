"""idrc-train: train a network under noise."""

from pathlib import Path

import jax
from absl import flags

from idrc_jax import config, data, losses, models, training
from idrc_jax.certificates import schemes
from idrc_jax.certificates.schemes import Routed, Scheme
from idrc_jax.certification.router_targets import LevelWorth
from idrc_jax.commands._inputs import denoiser_of, go_on
from idrc_jax.config import run_memory
from idrc_jax.config.flags import OptionalPath, config_of_file, run, take_fields_from_run
from idrc_jax.core import json_values
from idrc_jax.sampling import devices, processes
from idrc_jax.training import denoiser, training_kernel, validation


def main() -> None:
    """idrc-train: train a network under noise."""
    run(main.__doc__, _train, command="train", define=_define_eval_only, cpu_devices=_training_devices)


def _define_eval_only(values: flags.FlagValues) -> None:
    told = (
        "Print the scores of the run's weights, or =WEIGHTS, on the images that their training held out; train nothing."
    )
    flags.DEFINE_flag(flags.Flag(OptionalPath(), None, "eval_only", False, told, boolean=True), values)


def _training_devices(settings: config.Config) -> int:
    model = settings.model
    noises = 1 if model.architecture == "unet" else config.loss(settings).noises
    images = max(1, settings.train.batch // noises)
    return training_kernel.cpu_devices(model.architecture, model.dtype, images, settings.kernel)


def _train(values: flags.FlagValues) -> int:
    settings = values.config
    if values.eval_only:
        return _evaluate(values)
    if settings.router.classifier:
        take_fields_from_run(values, settings.router.classifier, ("data.name", "data.dir", "data.size"))
    with processes.joined(settings.train.distributed, settings.workers.index, settings.workers.count):
        return _train_together(settings, values.workdir)


@config.named(*config.TRAIN, *config.NETWORK)
def _train_together(settings: config.Config, workdir: Path) -> int:
    recipe, file = config.recipe(settings), config_of_file()
    train_set = config.dataset(settings, "train")
    options = ("checkpoint_minutes", "validate_epochs", "validate_samples", "steps_per_dispatch", "tensorboard")
    limits = {name: settings.train[name] for name in options}
    common = {
        "seed": settings.seed,
        "mesh": devices.global_mesh(settings.devices),
        "start": settings.train.start,
        "kernel": settings.kernel,
        "options": training.RunOptions(max_minutes=settings.max_minutes, **limits),
    }
    if settings.model.architecture == "unet":
        ignored = ["train.scheme", "train.sigma", "train.ref", "train.sigma_low", "train.validate_epochs"]
        ignored += ["train.validate_samples", "train.statistics", "train.ema"]
        ignored += [path for path in config.TRAIN if path.startswith("train.loss.")]
        if settings.train.held_out:  # 0 is what a denoiser's training does
            ignored.append("train.held_out")
        _require_default(settings, *ignored, "denoiser.weights", "denoiser.sigma", "denoiser.steps")
        target, described = config.denoiser_target(settings), config.denoiser_description(settings, train_set)
        finished = denoiser.train(train_set, target, recipe, described, workdir, **common)
    else:
        held_out, teacher = settings.train.held_out, _teacher(settings)
        if settings.router.classifier:
            train_set, teacher = _learned(settings, train_set, teacher, workdir)
            held_out = 0
        scheme, described = config.training_scheme(settings), config.description(settings, train_set)
        if settings.denoiser.weights and settings.denoiser.sigma not in (0, scheme.sigma):
            raise ValueError(
                f"Expected denoiser.sigma 0 or the training noise's {scheme.sigma}, got {settings.denoiser.sigma}."
            )
        more = {
            "denoiser": denoiser_of(settings),
            "denoiser_steps": settings.denoiser.steps,
            "loss": config.loss(settings),
            "teacher": teacher,
            "ema": settings.train.ema,
            "held_out": _held_out(held_out, workdir, len(train_set)),
            "statistics": settings.train.statistics,
        }
        finished = training.train(train_set, scheme, recipe, described, workdir, **more, **common)
    if jax.process_index() == 0:
        run_memory.save(workdir, file, settings)
        print(f"Trained: {workdir / models.WEIGHTS}" if finished else go_on("Training", workdir))
    return 0


# Of the settings of a run those that its network's description does not hold.
_OF_RUN = ("data.name", "data.dir", "data.size", "noise.exact", "model.dtype", "denoiser.weights", "denoiser.steps")


@config.named("train.validate_samples", "denoiser.steps", "noise.exact")
def _evaluate(values: flags.FlagValues) -> int:
    settings = values.config
    where = values.workdir if values.eval_only is True else values.eval_only
    take_fields_from_run(values, where, _OF_RUN)
    classifier = models.load_classifier(config.several(where), dtype=settings.model.dtype, kernel=settings.kernel)
    trained = classifier.description.get("training", {})
    scheme = schemes.with_exact_noise(_scheme_of(trained, settings), settings.noise.exact)
    denoiser, steps = denoiser_of(settings), settings.denoiser.steps
    behind = json_values.as_json(denoiser.describe() | {"steps": steps}) if denoiser else None
    if behind != trained.get("denoiser"):
        raise ValueError(
            "Expected denoiser.weights and denoiser.steps of the network's training, or none if it had none, got "
            f"{settings.denoiser.weights or 'none'}, {steps}."
        )
    if denoiser is not None:
        classifier = models.denoised(classifier, denoiser, sigma=scheme.sigma, steps=steps)
    train_set, samples = config.dataset(settings, "train"), settings.train.validate_samples
    scores = validation.evaluate(classifier, train_set, scheme, devices.mesh(settings.devices), samples)
    told = f"{samples} copies each under {scheme.name} noise, sigma = {scheme.sigma:g}"
    print(f"{where}: {trained['held_out']} held-out images of {train_set.name}, {told}")
    print("  ".join(f"{name} = {value:.4f}" for name, value in scores._asdict().items()))
    return 0


def _scheme_of(trained: models.Description, settings: config.Config) -> Scheme:
    """The noise of a network's training: what its description says or, of a scheme of the user's, the command line."""
    made = trained.get("scheme")
    if made is None or made["name"] in schemes.SCHEMES:
        return schemes.make(**made) if made else config.training_scheme(settings)
    scheme = schemes.with_exact_noise(config.training_scheme(settings), False)
    mine = json_values.as_json({"name": scheme.name, **schemes.parameters(scheme)})
    if mine != made:
        raise ValueError(f"Expected noise.factory and its settings as in the network's training, {made}, got {mine}.")
    return scheme


def _teacher(settings: config.Config) -> training.Teacher | None:
    """The network whose predictions the loss needs, if one is given."""
    asked = settings.train.loss
    if not asked.teacher:
        return None
    return training.Teacher(models.load_classifier(asked.teacher, kernel=settings.kernel), asked.teacher_samples)


@config.named("router.worth", "router.samples", "router.images", "sampling.radii")
def _learned(
    settings: config.Config, train_set: data.Dataset, teacher: training.Teacher | None, workdir: Path
) -> tuple[data.Dataset, training.Worths]:
    """What a router learns from: images labelled with their best level, and what the levels are worth there."""
    scheme, loss = config.noise_scheme(settings), settings.train.loss.name
    if not isinstance(scheme, Routed):
        raise ValueError(f"Expected noise.scheme = routed to train a router, got {scheme.name}.")
    if loss != losses.Router.name or teacher is not None or settings.train.held_out not in (-1, 0):
        raise ValueError(
            "Expected train.loss.name = router, no train.loss.teacher and no train.held_out to train a router, got "
            f"{loss}, {settings.train.loss.teacher or 'none'} and {settings.train.held_out}."
        )
    asked = settings.router
    named = config.several(asked.classifier, "router.classifier")
    networks = [models.load_classifier(one, kernel=settings.kernel) for one in named]
    classifier = networks[-1].at_levels(networks) if len(networks) > 1 else networks[0]
    worth = LevelWorth(classifier, scheme, asked.samples, asked.worth, tuple(settings.sampling.radii), asked.images)
    return worth.learned(train_set, settings.seed, workdir)


def _held_out(asked: int, workdir: Path, images: int) -> int:
    """How many images to hold out: -1 stands for as many as the folder's run does, or the usual number of a new run."""
    if asked != -1:
        return asked
    recorded = training.recorded_held_out(workdir)
    return validation.usual_count(images) if recorded is None else recorded


def _require_default(settings: config.Config, *names: str) -> None:
    """ValueError for a setting that training a denoiser would ignore."""
    for name in names:
        value = config.get(settings, name)
        if value != config.FIELDS[name].default:
            raise ValueError(f"Expected no {name} to train a denoiser, got {value}.")


if __name__ == "__main__":
    main()
