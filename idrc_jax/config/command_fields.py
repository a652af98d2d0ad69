"""Which fields each command reads: one declaration a command. A flag for any other is refused, and one that what the
other settings choose does not read."""

from collections.abc import Collection
from dataclasses import fields

from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.config.fields import FIELDS, Config, get

_ONE_CALL = ("seed", "max_minutes", "devices", "kernel")  # and how it runs
_NETWORK = ("model.architecture", "model.depth", "model.shortcut", "model.dtype")
_SMOOTHED = (
    "chunk", "data", *_NETWORK, "model.weights", "model.by_level", "model.consensus", "model.factory",
    "denoiser.weights", "denoiser.sigma", "denoiser.steps", "router.weights",
)  # fmt: skip

# Fields, or groups of them, by the command's name behind `idrc-`.
_DECLARED = {
    "train": (
        *_ONE_CALL, "workers", "data.name", "data.dir", "data.size", "noise", *_NETWORK, "model.mean", "model.std",
        "train", "denoiser", "router.classifier", "router.samples", "router.worth", "router.images", "sampling.radii",
    ),
    "certify": (*_ONE_CALL, "workers", *_SMOOTHED, "noise", "sampling", "certify", "paired"),
    "predict": ("seed", "devices", "kernel", *_SMOOTHED, "noise", "certify.alpha"),
    "audit": (*_ONE_CALL, *_SMOOTHED, "noise.factory", "audit"),
}  # fmt: skip

_OF_PLANS = ("sampling.sequence", "sampling.radii", "sampling.precision")  # of which some plans read each
_USUAL = {schemes.Splitting.name: sampling_plans.Exhaustive.name}  # plans that are not named, but for fixed

# What each command reads, in the order of `FIELDS`.
READS = {
    command: tuple(path for path in FIELDS if path in declared or path.partition(".")[0] in declared)
    for command, declared in _DECLARED.items()
}

# What most people set, in the order in which they think of it.
_FIRST = (
    "data.name", "data.dir", "data.count", "data.skip", "noise.scheme", "noise.sigma", "model.weights", "model.factory",
    "model.depth", "train.loss.name", "train.epochs", "train.batch", "train.lr", "certify.n", "certify.alpha",
    "audit.images", "max_minutes", "seed",
)  # fmt: skip

# The same by command: the fields that its help explains first.
FIRST = {command: tuple(path for path in _FIRST if path in reads) for command, reads in READS.items()}


def check(command: str, given: Collection[str]) -> None:
    """ValueError for the first of these fields that the command does not read; it names the commands that do."""
    for path in given:
        if path not in READS[command]:
            others = ", ".join(f"idrc-{other}" for other, reads in READS.items() if path in reads)
            raise ValueError(
                f"Expected a field that idrc-{command} reads, got --config.{path}, which is for {others}. "
                f"idrc-{command} --help=all lists its own."
            )


def check_choices(config: Config, given: Collection[str]) -> None:
    """ValueError for one of these fields that nothing reads under the network, scheme or plan that is chosen."""
    noise, others = config.noise, config.denoiser.weights or config.router.weights
    plan = config.sampling.plan or _USUAL.get(noise.scheme, sampling_plans.Fixed.name)
    for path in given:
        if config.model.factory and path in _NETWORK and not (path == "model.dtype" and others):
            raise ValueError(f"Expected no --config.{path} beside model.factory, whose network has its own.")
        if get(config, path) == FIELDS[path].default:
            continue
        if path == "noise.by" and (noise.factory or noise.scheme != schemes.Stepped.name):
            scheme = noise.factory or noise.scheme
            raise ValueError(
                f"Expected no --config.{path} under the scheme {scheme}, which does not read it: stepped would."
            )
        if path in _OF_PLANS and plan in sampling_plans.PLANS and path not in _read_by(plan):
            would = " and ".join(one for one in sampling_plans.PLANS if path in _read_by(one))
            raise ValueError(
                f"Expected no --config.{path} under the plan {plan}, which does not read it: {would} would."
            )


def _read_by(plan: str) -> set[str]:
    return {f"sampling.{part.name}" for part in fields(sampling_plans.PLANS[plan])}
