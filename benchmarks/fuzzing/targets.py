"""What reads each kind of file, as the commands do, and what a file that was read must be like."""

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from idrc_jax import config, data, models, results
from idrc_jax.certification import prediction_file
from idrc_jax.config import run_memory
from idrc_jax.core import files
from idrc_jax.interop import torch_files
from idrc_jax.report import page, run_summaries, tables
from idrc_jax.results import audit_rows, compare, equal_terms, gallery_file, result_rows, runs
from idrc_jax.results.audit_file import FindingsFile
from idrc_jax.results.recertify import recertify
from idrc_jax.results.runs import Run
from idrc_jax.sampling import devices
from idrc_jax.training import initial_state, metrics_log, run_folder, validation
from idrc_jax.training.checkpoints import TrainingCheckpoints
from idrc_jax.training.job import Job

Step = Callable[[], object]
_WHOLE: dict[str, Any] = {}  # what the files say before they are damaged


class WrongError(AssertionError):
    """What was read cannot be so, or what was to be refused was not."""


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
      files: patterns of the seeds, below the folder of seeds.
      steps: (a damaged file in its folder) -> what is done with it, one thing after the other, each of which may be
        refused.
      factor: bytes of memory for each byte of the file, at most, beside `Driver.BASE`.
    """

    files: tuple[str, ...]
    steps: Callable[[Path], Iterator[Step]]
    factor: int = 100


def _results(path: Path) -> Iterator[Step]:
    if path.name == result_rows.MANIFEST:
        path = path.with_name(result_rows.NAME)
    read = None

    def first() -> None:
        nonlocal read
        read = results.read_results(path)

    yield first
    if read is None:
        return
    run = Run("a", read)
    yield lambda: results.summary_table(read)
    yield lambda: _consistent(read)
    yield lambda: (runs.labels([read]), runs.trained_under(read), run.scheme, run.sigma)
    yield lambda: repr(read)
    yield lambda: compare.table(
        "a", "b", compare.compare(read, read, compare.radii_to_compare(read, read, (0.0, 0.5))), (0.0, 0.0), ""
    )
    yield lambda: (equal_terms.differences([run, run]), equal_terms.offer(run, run))
    yield lambda: equal_terms.equalised(run, run)
    for layout in (tables.by_run, tables.by_sigma, tables.by_method):
        yield lambda layout=layout: layout([run], published=False, paper_too=True).markdown()
    yield lambda: tables.by_probability([run]).latex()
    yield lambda: recertify(read, n=100, alpha=0.01)
    yield lambda: recertify(read, k=2)
    yield lambda: recertify(read, certificate="two_sided")
    yield lambda: (run_summaries.curve(read), run_summaries.probabilities(read), run_summaries.confusion(read))
    yield lambda: (run_summaries.command(read), run_summaries.per_class(read, ()))
    yield lambda: read.rows and run_summaries.spending(read)
    yield lambda: gallery_file.choose(read.rows)
    if read.manifest is not None:
        yield lambda: _goes_on(path, read)


def _goes_on(path: Path, read: results.Results) -> None:
    """Opening the file to go on changes no row, and finds those that are there."""
    with results.ResultsFile(path.parent, guarantee=read.manifest["guarantee"], session={}) as file:
        file.note({"more": 1})
        if file.done != {row.idx for row in read.rows}:
            raise WrongError(f"going on finds {sorted(file.done)}")


def _consistent(read: results.Results) -> None:
    """Votes, bounds, radii and predictions of a row follow from one another."""
    for row in read.rows:
        if row.correct != int(row.predict == row.label != -1) or row.radius < 0 or row.idx < 0 or row.label < -1:
            raise WrongError(f"read {row}")
    if read.manifest is None:
        return
    for row in read.rows:
        if sum(row.votes.values()) != row.n or min(row.votes.values(), default=0) < 0:
            raise WrongError(f"votes of {row}")
    for new, old in zip(recertify(read).rows, read.rows, strict=True):
        for name in ("predict", "radius", "radius_published", "selected", "p_lower"):
            a, b = getattr(new, name), getattr(old, name)
            unchecked = math.isnan(b) or (name == "radius" and read.manifest["guarantee"]["scheme"] == "l1")
            if not (unchecked or math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9)):
                raise WrongError(f"{name} {b} of votes that give {a}")


def _audit(path: Path) -> Iterator[Step]:
    folder, found = path.parent, None

    def first() -> None:
        nonlocal found
        found = audit_rows.read_audit(folder)

    yield first
    yield lambda: audit_rows.read_images(folder)
    if found is not None:
        yield lambda: audit_rows.table(found.manifest)
        yield lambda: (audit_rows.claims(found.rows), audit_rows.attacks(found.rows))
        yield lambda: audit_rows.robust_accuracy(found.rows, 0.25, 4)
        yield lambda: _findings(found)
        yield lambda: _audit_goes_on(folder, found)
    yield lambda: page.render(runs.read([str(folder)]))


def _findings(found: audit_rows.Audit) -> None:
    seen = set()
    for row in found.rows:
        cell = (row.idx, row.kind, row.radius, row.fraction)
        if cell in seen or row.broken not in (0, 1) or not 0 <= row.p_value <= 1:
            raise WrongError(f"finding {row}")
        if not 0 <= row.distance <= row.radius * row.fraction * (1 + 1e-6) or min(row.votes.values(), default=0) < 0:
            raise WrongError(f"finding {row}")
        seen.add(cell)


def _audit_goes_on(folder: Path, found: audit_rows.Audit) -> None:
    with FindingsFile(folder, manifest={**found.manifest, "sessions": [{}]}, expected={}):
        pass


def _gallery(path: Path) -> Iterator[Step]:
    yield lambda: gallery_file.read(path.parent)
    yield lambda: page.render(runs.read([str(path.parent)]))


def _weights(path: Path) -> Iterator[Step]:
    described, loaded = None, None

    def first() -> None:
        nonlocal described, loaded
        described = models.read_description(path)
        loaded = models.load_classifier(path, kernel="xla")

    yield first
    if described is not None:
        yield lambda: repr(loaded)
        yield lambda: models.load_denoiser(path)
    yield lambda: torch_files.read(path)
    yield lambda: run_memory.read(path)


def _checkpoint(path: Path) -> Iterator[Step]:
    top = next(one for one in path.parents if one.name == "checkpoints")
    yield lambda: _restored(top)


def _restored(folder: Path) -> None:
    """What is restored is what was saved, as the first call, of the file as it was, found it."""
    store = TrainingCheckpoints(folder)
    try:
        step = store.latest()
        state = None if step is None else store.restore(step, _like())
    finally:
        store.close()
    if state is not None:
        values = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        for new, old in zip(values, _WHOLE.setdefault("state", values), strict=True):
            if not np.array_equal(new, old):
                raise WrongError("another state than was saved")


@functools.cache
def _like() -> Any:
    """The shapes of the state in the seeds' checkpoint."""
    settings = config.load("quickstart.py")
    settings.data.name = "synthetic"
    train_set, recipe = config.dataset(settings, "train"), config.recipe(settings)
    job = Job(config.description(settings, train_set), train_set, recipe, 0, "", (), {}, (), lambda *_: None, ())
    return initial_state.shapes(job, recipe.optimiser(7), devices.mesh(1))


def _settings(path: Path) -> Iterator[Step]:
    run = None

    def first() -> None:
        nonlocal run
        run = run_memory.read(path.parent)

    yield first
    for command in ("certify", "predict", "audit"):
        yield lambda command=command: run and run_memory.take(config.base(), run, command, (), None)
    if path.name == "train_config.json":
        yield lambda: run_folder.recorded_held_out(path.parent)
        yield lambda: run_folder.same_or_refuse(path, {"architecture": "resnet"})
        yield lambda: runs.trained_under(results.read_results(path.parent))


def _metrics(path: Path) -> Iterator[Step]:
    names = ("loss", "accuracy_clean")

    def log() -> None:
        made = metrics_log.MetricsLog(path.parent, names, validation.Scores._fields, 7, 7, lambda step: 0.1)
        made.shown  # noqa: B018
        made.flush()

    yield log


def _predictions(path: Path) -> Iterator[Step]:
    table = path.with_suffix("") if path.suffix == ".json" else path
    dataset = data.load("synthetic", "test")
    yield lambda: prediction_file.tally(table, set(range(64)))

    def go_on() -> None:
        if "guarantee" not in _WHOLE:
            _WHOLE["guarantee"] = files.read_json(path.with_name("all.tsv.json"))["guarantee"]
        with prediction_file.PredictionFile(table, dataset, (), _WHOLE["guarantee"]) as file:
            if not file.done <= set(range(64)):
                raise WrongError(f"predictions of {sorted(file.done)}")
        for idx, label, predict, correct in _predicted(table):
            if label != dataset.labels[idx] or not -1 <= predict < dataset.classes or correct != (predict == label):
                raise WrongError(f"went on from image {idx} of label {label}, class {predict}, correct {correct}")

    yield go_on
    yield lambda: prediction_file.tally(table, set(range(64)))


def _predicted(table: Path) -> list[list[int]]:
    """The rows of a file of predictions that was gone on from."""
    lines = table.read_text().splitlines()
    if table.suffix == ".tsv":
        return [[int(cell) for cell in line.split("\t")] for line in lines[1:]]
    return [list(json.loads(line).values()) for line in lines]


def _config(path: Path) -> Iterator[Step]:
    made = None

    def first() -> None:
        nonlocal made
        made = config.load(f"{path}:gaussian" if "argument" in path.read_text(errors="replace") else str(path))

    yield first
    if made is None:
        return
    made.unlock()
    made.data.name, made.data.dir = "synthetic", ""
    made.lock()
    for build in (config.noise_scheme, config.recipe, config.loss, config.settings, config.pairs, config.audit_settings,
                  config.denoiser_target, config.training_scheme):  # fmt: skip
        yield lambda build=build: build(made)
    for build in (config.description, config.denoiser_description, config.selection):
        yield lambda build=build: build(made, config.dataset(made, "train"))
    yield lambda: models.abstract(config.description(made, config.dataset(made, "train")), dtype=made.model.dtype)


TARGETS = {
    "results": Target(("*/certificates.tsv", "*/manifest.json"), _results),
    "logs": Target(("logs/*.tsv",), _results),
    "audits": Target(("trained/audit.tsv", "trained/audit.json", "trained/audit.npz"), _audit, factor=2000),
    "galleries": Target(("trained/gallery.npz",), _gallery, factor=2000),
    "weights": Target(("trained/weights.safetensors", "exported.safetensors"), _weights),
    "checkpoints": Target(("trained/checkpoints/**/*",), _checkpoint),
    "settings": Target(("trained/settings.json", "trained/train_config.json"), _settings),
    "metrics": Target(("trained/metrics.csv",), _metrics),
    "predictions": Target(("predictions/*.tsv", "predictions/*.jsonl", "predictions/*.json"), _predictions),
    "configs": Target(("configs/*.py",), _config),
}
