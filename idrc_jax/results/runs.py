"""Result files shown side by side: their names, and what noise their networks were trained under."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idrc_jax.certificates import sampling_plans
from idrc_jax.certificates.level_schemes import Cascade, Routed, Stepped
from idrc_jax.core import append_only, files
from idrc_jax.core.json_values import Json, require
from idrc_jax.results import recertify, result_file, result_rows
from idrc_jax.results.manifest import TRAINING, asked, level_networks
from idrc_jax.results.result_rows import Results

_MIXED = ("cifar10", "digits", "synthetic")  # data sets whose order says nothing of the classes


@dataclass(frozen=True)
class Run:
    """A result file with the name that figures, tables and reports give it."""

    name: str
    results: Results

    @property
    def scheme(self) -> str:
        """The noise scheme, or what stands for it where a file does not say."""
        return self.results.manifest["guarantee"]["scheme"] if self.results.manifest else "no manifest"

    @property
    def sigma(self) -> float | None:
        """The noise parameter; None where a file does not say."""
        return self.results.manifest["guarantee"]["sigma"] if self.results.manifest else None


def read(arguments: Sequence[str]) -> list[Run]:
    """The runs that a command line names, each FILE, FOLDER or NAME=FILE; ValueError for one that cannot be read
    or has no row, a warning for one that was cut short.

    Without a name it is the scheme and sigma, or the file's name, and as much of the path as tells them apart.
    """
    names, found = [], []
    for argument in arguments:
        name, path = _split(argument)
        names.append(name)
        found.append(recertify.read_results(path))
        if not found[-1].rows:
            raise ValueError(f"Expected at least one row in {found[-1].path}, got none.")
        if told := cut_short(found[-1]):
            warnings.warn(f"{found[-1].path}: {told}", stacklevel=2)
    return [Run(name or own, one) for name, own, one in zip(names, labels(found), found, strict=True)]


def quoted(names: Sequence[str]) -> str:
    """The names of runs in a sentence."""
    return ", ".join(f"“{name}”" for name in names)


def cut_short(results: Results) -> str:
    """What to say of a run that has no row of some images that it was to certify, where those are no random part; empty
    of others, and of one worker's file of several.

    An adaptive plan decides images in an order that depends on their votes, and so does any under several levels; where
    bins have networks, images share batches with those of their bin; and a user's own images may stand in the order of
    their classes, as those of `folder` and `imagenet` do.
    """
    if results.manifest is None or result_file.of_one_worker(results.path):
        return ""
    made, wanted = results.manifest["guarantee"], asked(results.manifest, results.path)
    missing = len(wanted - {row.idx for row in results.rows})
    if not missing:
        return ""
    votes = made["scheme"] in (Cascade.name, Routed.name) or sampling_plans.from_description(made).adaptive
    bins = made["scheme"] == Stepped.name and "by_level" in made
    if not votes and not bins and made["data"].partition("/")[0] in _MIXED:
        return ""
    chose = "votes chose which" if votes else "their bins chose which" if bins else "they may be of other classes"
    return (
        f"{missing:,} of {len(wanted):,} images have no row, and {chose}: accuracies are not those of all images. To "
        "finish, call the command that made the rows again."
    )


def with_rows(arguments: Sequence[str]) -> list[str]:
    """The arguments but for folders without results, which a pattern such as `runs/*` brings: a training's, for one.

    A line on standard error names each that is left out. Where no folder has results all stay, for `read` to refuse.
    """
    kept, notes = [], []
    for argument in arguments:
        folder = Path(argument)
        if not folder.is_dir() or append_only.has_rows(folder / result_rows.NAME):
            kept.append(argument)
            continue
        hint = ""
        if any(map(append_only.has_rows, result_file.result_files(folder))):
            hint = f" Unite its workers' files: idrc-merge --out {folder} {folder}/certificates.*-of-*.tsv"
        notes.append(f"note: {folder} has no rows in {result_rows.NAME} and is left out.{hint}")
    if not kept:
        return list(arguments)
    for note in notes:
        print(note, file=sys.stderr)
    return kept


def _split(argument: str) -> tuple[str, str]:
    """Name and path; the name, like the path, may have an equals sign, and `~` is the home folder."""
    if Path(argument).exists() or "=" not in argument:
        return "", os.path.expanduser(argument)
    places = [place for place, sign in enumerate(argument) if sign == "="]
    paths = {place: os.path.expanduser(argument[place + 1 :]) for place in places}
    end = next((place for place in places if Path(paths[place]).exists()), places[-1])
    return argument[:end], paths[end]


def labels(several: Sequence[Results]) -> list[str]:
    """A name for each: scheme and sigma or the file's name; those that coincide get their folders, too."""
    names = [_label(one) for one in several]
    made = []
    for name, one in zip(names, several, strict=True):
        alike = [other for rival, other in zip(names, several, strict=True) if rival == name and other is not one]
        parts = _parts(one) if alike else ()
        rivals = {_parts(other) for other in alike} - {parts}
        depth = 1 if rivals else 0
        while any(rival[-depth:] == parts[-depth:] for rival in rivals):
            depth += 1
        made.append(f"{name} ({'/'.join(parts[-depth:])})" if depth else name)
    return made


def norm_of(several: Sequence[Results]) -> str:
    """The norm of all radii; ValueError for results in several norms, which are never shown or compared together."""
    found = {row.norm: one.path for one in several for row in one.rows}
    if len(found) > 1:
        told = ", ".join(f"{norm} in {path}" for norm, path in found.items())
        raise ValueError(f"Expected radii of one norm, got {told}: idrc-recertify --norm states radii in another norm.")
    return next(iter(found), "l2")


def other_images(a: Results, b: Results) -> str:
    """How the images of two files differ, as far as the files say; empty when they are the same."""
    one, other = ({row.idx: row.label for row in read.rows} for read in (a, b))
    if a.manifest and b.manifest:
        made = [manifest["guarantee"] for manifest in (a.manifest, b.manifest)]
        sets = [f"{each['data']} ({each['data_sha256'][:8]})" for each in made]
        # Images are the same by their hash, wherever they came from. Of images that are decoded one by one it is of
        # those certified, which the indices compare.
        if made[0]["data_sha256"] != made[1]["data_sha256"] and not (
            made[0]["data"] == made[1]["data"] == "imagenet/test"
        ):
            return f"{sets[0]} against {sets[1]}"
    if one.keys() != other.keys():
        shared = len(one.keys() & other.keys())
        return f"{len(one)} images against {len(other)}, {shared} of them in both"
    wrong = [idx for idx in one if one[idx] != other[idx]]
    return f"image {wrong[0]} has label {one[wrong[0]]} against {other[wrong[0]]}" if wrong else ""


def trained_under(one: Results) -> str:
    """The noise of the network's training, e.g. `gaussian, σ = 0.25`, of networks by level that of each; empty where
    neither manifest nor folder says."""
    told = [_noise_of(training) for training in _trainings(one)]
    return "; ".join(dict.fromkeys(told)) if all(told) else ""


def _noise_of(training: Json) -> str:
    if "scheme" not in training:
        return ""
    scheme, low = training["scheme"], training.get("recipe", {}).get("sigma_low", 0.0)
    return f"{scheme['name']}, σ {f'from {low:g} to' if low else '='} {scheme['sigma']:g}"


def _trainings(one: Results) -> list[Json]:
    """How the networks that vote were trained, as far as that is known."""
    for session in reversed(one.manifest["sessions"] if one.manifest else []):
        if session.get("networks"):
            return [network.get("training", {}) for network in session["networks"]]
        if session.get("training"):
            return [session["training"]]
    beside = one.path.parent / "train_config.json" if one.manifest else None
    if beside is None or not beside.is_file():
        return []
    found = files.read_json(beside)
    require(found, {"training": TRAINING}, "", beside)
    return [found["training"]]


def _label(one: Results) -> str:
    if not one.manifest:
        return one.path.name
    made = one.manifest["guarantee"]
    network = f", ensemble of {len(made['members'])}" if "members" in made else ""
    network = f", {level_networks(made)} networks" if level_networks(made) else network
    exact = ", exact noise" if made.get("exact") else ""
    more = (", denoised" if "denoiser_sigma" in made else "") + (f", top {made['k']}" if "k" in made else "")
    several = made.get("levels") if made["scheme"] in (Cascade.name, Routed.name) else None
    sigmas = ", ".join(f"{made['sigma'] * level:g}" for level in several or (1.0,))
    return f"{made['scheme']}, σ = {sigmas}{exact}{network}{more}"


def _parts(one: Results) -> tuple[str, ...]:
    """The path's folders of a run of this project, which are its name; of another's log the file, too."""
    whole = one.path.absolute()
    return (whole.parent if whole.name == result_rows.NAME else whole).parts
