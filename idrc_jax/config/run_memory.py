"""What a run remembers: the settings of its training, which later commands take unless the command line says otherwise.

Training writes them beside the weights (`settings.json`), twice: as its config file had them, and as they were in the
end, with the flags. Weights without that file know their data set, noise and network from the description inside them.

A later command takes a field from the run unless a flag gives it, or a `--config` file gives it another value than the
run's own config file did: what that file already said then, and a flag overruled, is nothing new.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idrc_jax import data
from idrc_jax.certificates import schemes, user_schemes
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.config.command_fields import READS
from idrc_jax.config.fields import FIELDS, PATHS, Config, get, put, several
from idrc_jax.core import files
from idrc_jax.core.json_values import Json
from idrc_jax.models import WEIGHTS, common_training, read_description
from idrc_jax.report.run_summaries import classifier_settings
from idrc_jax.results import manifest

NAME = "settings.json"
_SCHEMA_VERSION = 1
_GROUPS = ("data", "noise", "sampling", "certify", "audit")
_FIELDS = ("seed", "model.dtype", "denoiser.weights", "denoiser.sigma", "denoiser.steps", "router.weights")
_NETWORK = ("model.architecture", "model.depth", "model.shortcut")
REMEMBERED = tuple(path for path in FIELDS if path in (*_FIELDS, *_NETWORK) or path.partition(".")[0] in _GROUPS)

# Fields that make no sense beside another value of these.
_BINS = {"noise.edges", "noise.levels", "noise.bins", "noise.thresholds", "noise.shares", "noise.router_level"}
_DEPENDS = {
    "data.name": {"data.dir"},  # which says what it holds
    "data.dir": {"data.name"},
    **{path: {"data.name", "data.dir"} for path in ("data.size", "data.skip", "data.count", "data.start", "data.stop")},
    "noise.scheme": {"noise.factory"},
    **{path: {"noise.scheme", "noise.factory"} for path in ("noise.ref", "noise.by")},
    **{path: {"noise.scheme", "noise.factory", "noise.by", *_BINS} for path in _BINS},
    **{path: {"denoiser.weights"} for path in ("denoiser.sigma", "denoiser.steps")},
    "router.weights": {"noise.scheme", "noise.factory"},
    "sampling.published": {"noise.scheme", "noise.factory", "sampling.plan"},
    "sampling.correct_only": {"noise.scheme", "noise.factory", "sampling.plan", "data.name", "data.dir"},
}
_DONE = {"certify": "certified", "predict": "predicted", "audit": "audited"}


@dataclass(frozen=True)
class Run:
    """A trained run, or what several have in common, whose weights are an ensemble.

    Attributes:
      where: its folder or its weights.
      settings: the fields that it knows, as it was trained with.
      file: these, as its config file had them; their defaults where that is unknown.
      training: the description's "training".
      differing: the values of fields in which several differ.
    """

    where: str
    settings: Mapping[str, Any]
    file: Mapping[str, Any]
    training: Json
    differing: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def save(workdir: Path, file: Config, config: Config) -> None:
    """Write what a run in this folder was trained with: paths absolute, so that it can be used from anywhere.

    Args:
      workdir: existing folder of the run.
      file: the settings as the config file has them.
      config: the settings with the flags.
    """
    content = {
        "schema_version": _SCHEMA_VERSION,
        "file": {path: get(file, path) for path in REMEMBERED},
        "settings": {path: absolute(path, get(config, path)) for path in REMEMBERED},
    }
    files.write_json(workdir / NAME, content)


def read(where: str | Path) -> Run | None:
    """The run that trained these weights (a file, or a folder with `weights.safetensors`; several with commas between).

    None where there are no weights of this project, or none that know how they were trained. ValueError for a
    `settings.json` that is not one.
    """
    found = [run for run in map(_read_one, several(where)) if run is not None]
    return _common(found) if len(found) > 1 else next(iter(found), None)


def _common(members: Sequence[Run]) -> Run:
    """What those of several runs that know a field say alike; their networks and seeds may differ."""
    free = {"seed", *_NETWORK}
    knowing = {path: [run for run in members if path in run.settings] for path in REMEMBERED if path not in free}
    values = {path: tuple(dict.fromkeys(run.settings[path] for run in some)) for path, some in knowing.items()}
    alike = [path for path, different in values.items() if len(different) == 1]
    return Run(
        where=", ".join(run.where for run in members),
        settings={path: values[path][0] for path in alike},
        file={path: knowing[path][0].file[path] for path in alike},
        training=common_training([{"training": run.training} for run in members]),
        differing={path: different for path, different in values.items() if len(different) > 1},
    )


def _read_one(where: str) -> Run | None:
    folder = Path(where) if Path(where).is_dir() else Path(where).parent
    try:
        described = read_description(where)
    except ValueError:  # which says nothing new: loading the weights says it
        return None
    training = described.get("training")
    if training is None:
        return None
    kept = None
    if Path(where).is_dir() or Path(where).name == WEIGHTS:
        kept = files.read_manifest(folder / NAME, _SCHEMA_VERSION, "a run's settings")
    if kept is None:
        settings = _of_description(described, training)
        return Run(str(where), settings, {path: FIELDS[path].default for path in settings}, training)
    try:
        known = [path for path in REMEMBERED if path in kept["settings"].keys() & kept["file"].keys()]
        settings, file = ({path: _typed(path, kept[name][path]) for path in known} for name in ("settings", "file"))
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"Expected a run's settings, got {folder / NAME}, which is damaged: remove it, and name by flags what the "
            "weights do not know."
        ) from None
    if file.get("sampling.plan") == Fixed.name:  # the default once: a file that names it looks like one that does not
        file["sampling.plan"] = ""
        if settings["sampling.plan"] == Fixed.name:
            settings["sampling.plan"] = ""
    return Run(str(where), settings, file, training)


def _of_description(described: Json, training: Json) -> dict[str, Any]:
    """The fields that weights know, where data and noise are of this package.

    Not the bins of `stepped`: those may have been fitted to images that are to be certified.
    """
    scheme, known = training.get("scheme", {}), {}
    if training.get("data") in data.NAMES:
        known["data.name"] = training["data"]
    if scheme.get("name") in schemes.SCHEMES:
        known |= {"noise.scheme": scheme["name"], "noise.sigma": scheme["sigma"], "noise.ref": scheme.get("ref", 1.0)}
    known |= {path: described[path.partition(".")[2]] for path in _NETWORK if path.partition(".")[2] in described}
    return known


def taken(run: Run, reads: Collection[str], flags: Mapping[str, Any], file: Config | None) -> dict[str, Any]:
    """The fields that come from a run, with their values.

    Args:
      run: whose.
      reads: the fields that the command reads.
      flags: those that flags give, with their values.
      file: the config as the file that `--config` names has it; None without one.

    Raises:
      ValueError: runs that differ in a field that no flag gives, a path that the run was trained with does not exist
        any more, or the run was trained under a scheme of the user's own, which is only loaded where the command line
        names it.
    """
    said = dict(flags)
    if file is not None:
        said = {path: get(file, path) for path in run.settings if get(file, path) != run.file[path]} | said
    if "noise.scheme" in flags:  # in the place of one of the user's own, wherever that is named
        said["noise.factory"] = flags.get("noise.factory", "")
    others = {path for path, value in said.items() if value != run.settings.get(path, FIELDS[path].default)}
    for path, values in run.differing.items():
        if path in reads and path not in flags and not others & _DEPENDS.get(path, set()):
            told = ", ".join(map(str, values))
            raise ValueError(f"Expected runs that agree in {path}, got {told} in {run.where}: set --config.{path}.")
    found = {
        path: value
        for path, value in run.settings.items()
        if path in reads and path not in said and not others & _DEPENDS.get(path, set())
    }
    factory = found.pop("noise.factory", "")
    named = file is not None and get(file, "noise.factory") == factory
    if factory and not named and "noise.scheme" in reads and "noise.scheme" not in said:
        raise ValueError(
            f"Expected --config.noise.factory={factory}, under which the run in {run.where} was trained, or another "
            "--config.noise.scheme, got neither: code is only loaded where the command line names it."
        )
    for path in PATHS:
        if found.get(path) and not os.path.exists(found[path]):
            raise ValueError(
                f"Expected {path} of the run in {run.where}, {found[path]}, to be there still, got no such path: set "
                f"--config.{path}."
            )
    return found


def take(config: Config, run: Run, command: str, flags: Collection[str], file: Config | None) -> str:
    """Put what comes from a run into the config; the line that says so, empty where there is nothing to say.

    Args:
      config: the settings with the flags; changed.
      run: that of the weights.
      command: one of `READS`.
      flags: the fields that flags give.
      file: see `taken`.
    """
    given = {path: absolute(path, get(config, path)) for path in flags}
    found = taken(run, READS[command], given, file)
    before = {path: absolute(path, get(config, path)) for path in found}
    for path, value in found.items():
        put(config, path, value)
    always = {"data.name", "noise.sigma", *(() if config.noise.factory else ("noise.scheme",))}
    told = [
        f"{path} = {value}"
        + (f" (the config file: {before[path]})" if file is not None and before[path] != value else "")
        for path, value in found.items()
        if path in always or (path not in _NETWORK and value != before[path])
    ]
    parts = [f"from {run.where}: {', '.join(told)}"] if told else []
    return "; ".join([*parts, *_differences(run, config, command)])


def _differences(run: Run, config: Config, command: str) -> list[str]:
    """Where a command's data and noise are not those of the training."""
    training, done, found = run.training, _DONE[command], []
    if training.get("data", config.data.name) != config.data.name:
        found.append(f"trained on {training['data']}, {done} on {config.data.name}")
    scheme = training.get("scheme")
    if scheme is None or "noise.sigma" not in READS[command]:
        return found
    then, now = scheme["name"], config.noise.factory or config.noise.scheme
    if then not in schemes.SCHEMES:
        then = run.settings.get("noise.factory") or then
    if then != now:
        found.append(f"trained under {then}, {done} under {now}")
    elif now in schemes.SCHEMES:
        found += [f"trained at {name} = {old}, {done} at {new}" for name, old, new in _changed(scheme, config.noise)]
    levels = other_levels(training, config.noise.sigma)
    if levels:
        found.append(f"trained at σ = {levels}, {done} at {config.noise.sigma:g}")
    if "denoiser" in training and not config.denoiser.weights:
        found.append(f"trained behind a denoiser, {done} without")
    return found


def other_levels(training: Json, sigma: float) -> str:
    """The levels of a training, where this is not one of them to a millionth; empty where it is, or none is known."""
    high = training.get("scheme", {}).get("sigma", sigma)
    low = training.get("recipe", {}).get("sigma_low") or high
    if low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6):
        return ""
    return f"{high:g}" if low == high else f"{low:g} to {high:g}"


def _changed(scheme: Json, noise: Config) -> list[tuple[str, Any, Any]]:
    """What else than sigma is another in a scheme of this package: names, values of the training, values now.

    Bins that are fitted are compared by their number: their edges follow from the images.
    """
    bins = ("bins",) if noise.bins else ("edges", "levels")
    then = {name: tuple(value) if isinstance(value, list) else value for name, value in scheme.items()}
    then |= {"bins": len(scheme["levels"])} if "levels" in scheme else {}
    return [
        (name, then[name], noise[name]) for name in ("ref", "by", *bins) if then.get(name, noise[name]) != noise[name]
    ]


def of_results(folder: Path, reads: Collection[str]) -> str:
    """The flags that name classifier and noise of the results in a folder, of those fields that a command reads; empty
    where there are no results, or no call named the classifier's weights.

    A scheme of the user's own is not told: a manifest never loads code.
    """
    found = manifest.read_manifest(folder)
    if found is None or not manifest.networks(found).keys() & {"model.weights", "model.by_level"}:
        return ""
    made = found["guarantee"]
    scheme = {} if user_schemes.is_own(made) else schemes.describe(schemes.from_description(made))
    settings = classifier_settings(found) | {f"noise.{name}": value for name, value in scheme.items()}
    return manifest.flags({path: value for path, value in settings.items() if path in reads})


def absolute(path: str, value: Any) -> Any:
    """The value of a field, from the root on if it is a path."""
    return os.path.abspath(value) if path in PATHS and value else value


def _typed(path: str, value: Any) -> Any:
    """A value of a JSON file in the type of its field; TypeError for one that has another."""
    default = FIELDS[path].default
    made = tuple(value) if isinstance(default, tuple) else value
    if not isinstance(made, int | float if isinstance(default, float) else type(default)):
        raise TypeError
    return made
