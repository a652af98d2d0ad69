"""Which fields each command reads: one declaration a command. A flag for any other is refused."""

from collections.abc import Iterable

from idrc_jax.config.fields import FIELDS

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


def check(command: str, given: Iterable[str]) -> None:
    """ValueError for the first of these fields that the command does not read; it names the commands that do."""
    for path in given:
        if path not in READS[command]:
            others = ", ".join(f"idrc-{other}" for other, reads in READS.items() if path in reads)
            raise ValueError(
                f"Expected a field that idrc-{command} reads, got --config.{path}, which is for {others}. "
                f"idrc-{command} --help=all lists its own."
            )
