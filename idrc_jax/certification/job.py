"""The job that certifies images of a data set into a result file: prepare, draw, certify, append.

`run` is the same for every `Job`: one of a network's own votes, here, or of pairs of votes (`incremental`).

Work goes to the devices in pieces of a few seconds, always two ahead of what the host reads (`dispatch_ahead`). A piece
that was cut off is lost and its image starts anew; a finished image is on disk.
"""

import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from idrc_jax import data, results, sampling
from idrc_jax.certificates.courses import Course
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.certificates.schemes import Scheme, host_levels, level_count
from idrc_jax.certification.decisions import Decisions
from idrc_jax.certification.guarantee import (
    check_fits,
    check_indices,
    check_rows,
    check_settings,
    check_unique,
    describe_guarantee,
    labels_for,
)
from idrc_jax.certification.provenance import asked, checked_scheme, trained_on
from idrc_jax.certification.settings import Settings
from idrc_jax.core import files
from idrc_jax.core.progress import Progress, require_progress, write_status
from idrc_jax.core.time_budget import Budget
from idrc_jax.models import Classifier
from idrc_jax.results import ResultsFile, Row
from idrc_jax.sampling import implementation_choice, random_keys
from idrc_jax.sampling.batch_systems import ALONE, Worker
from idrc_jax.sampling.dispatch_ahead import Drawn, Scheduler
from idrc_jax.sampling.execution import Execution
from idrc_jax.sampling.vote_counter import VoteCounter

_SECONDS_A_PIECE = 4.0


def certify_dataset(
    classifier: Classifier,
    scheme: Scheme,
    dataset: data.Dataset,
    indices: np.ndarray,
    settings: Settings,
    workdir: Path,
    *,
    chunk: int = 0,
    mesh: Mesh | None = None,
    max_minutes: float = 0.0,
    worker: Worker = ALONE,
    provenance: dict[str, Any] | None = None,
    budget: Budget | None = None,
) -> bool:
    """Certify `dataset[indices]` into `workdir/certificates.tsv`; call again to go on.

    Several workers write a file each, `certificates.I-of-N.tsv`, to be united by `results.merge`. Each takes only
    images that no file in `workdir` has, so their number may change from call to call.

    Args:
      classifier: the base classifier.
      scheme: how much noise of which law an image gets.
      dataset: whose images are certified.
      indices: which images; they name the noise.
      settings: what else the certificates depend on.
      workdir: folder of the result files and their manifest, made where it is missing.
      chunk, mesh: as for `count_votes`, but chosen by measuring (see `implementation_choice.choose`).
      max_minutes: of this call, which stops cleanly before; 0 for no limit.
      worker: certifies its share.
      provenance: kept in the manifest for each call, never compared.
      budget: instead of one of max_minutes.

    Returns:
      Whether every image of this worker's share is done.

    Raises:
      ValueError: data and classifier do not fit, the bounds of a scheme of the user's own do not hold, or the file in
        `workdir` was made under other settings.
    """
    sampling.check_chunk(classifier, mesh, chunk)
    job = _prepare(classifier, scheme, dataset, indices, settings, worker)
    return run(
        job,
        workdir,
        chunk=chunk,
        mesh=mesh,
        max_minutes=max_minutes,
        worker=worker,
        provenance=provenance,
        budget=budget,
    )


@dataclass(frozen=True)
class Job:
    """A worker's share of the images, checked, and what their votes decide.

    Attributes:
      classifier, scheme: what is certified, under which noise.
      dataset: whose images are certified; indices: int [N], of the share's.
      images: float32 [N, H, W, C] in [0, 1].
      levels: float64 [N, levels], their noise levels.
      plan: by which the samples are drawn; seed: of the key tree.
      guarantee: what the certificates of all workers depend on.
      checked: what the search of a user's own scheme's bounds found.
      asked: which images all workers are to certify.
      stage: of the samples that follow the selection.
    """

    classifier: Classifier
    scheme: Scheme
    dataset: data.Dataset
    indices: np.ndarray
    images: np.ndarray
    levels: np.ndarray
    plan: Plan
    seed: int
    guarantee: dict[str, Any]
    checked: dict[str, Any]
    asked: dict[str, Any]
    stage: ClassVar[int] = random_keys.ESTIMATION

    def execution(self, samples: int, seconds: float, mesh: Mesh | None, chunk: int) -> Execution:
        """How to run what is asked for votes; arguments as for `implementation_choice.choose`."""
        return implementation_choice.choose(
            self.classifier, self.scheme, samples=samples, seconds=seconds, mesh=mesh, chunk=chunk
        )

    def counter(self, execution: Execution) -> VoteCounter:
        """That of the images' votes."""
        key = random_keys.root(self.seed)
        return VoteCounter(execution, self.scheme, self.images, self.levels, indices=self.indices, key=key)

    def course(self, position: int) -> Course:
        """What votes the image at a position gets."""
        raise NotImplementedError

    def row(self, drawn: Drawn, seconds: float) -> Row:
        """That of a finished image."""
        raise NotImplementedError


def run(
    job: Job,
    workdir: Path,
    *,
    chunk: int,
    mesh: Mesh | None,
    max_minutes: float,
    worker: Worker,
    provenance: dict[str, Any] | None,
    budget: Budget | None,
) -> bool:
    """Draw a job's votes into its result file; arguments, result and errors as for `certify_dataset`."""
    budget = budget or Budget(max_minutes)
    name = results.worker_file(worker.index, worker.count)
    status = workdir / name.replace("certificates", "certify_status").replace(".tsv", ".json")
    session = {"worker": worker.index, "workers": worker.count, **(provenance or {}), **job.checked}
    total = len(job.indices)

    files.make_folder(workdir)
    known = partial(check_rows, job.dataset)
    with ResultsFile(workdir, guarantee=job.guarantee, session=session, name=name, check_rows=known) as file:
        todo = [position for position, index in enumerate(job.indices) if int(index) not in file.done]
        done = before = total - len(todo)
        write_status(status, "certify", done=done, total=total)
        if not todo:
            if total:
                print(f"note: all {total} images were certified already, in {workdir}.", file=sys.stderr)
            return True
        seconds = 60 * budget.minutes
        execution = job.execution(len(todo) * level_count(job.scheme) * job.plan.most, seconds, mesh, chunk)
        file.note(execution.describe())
        counter = job.counter(execution)
        rate = min(counter.rates())
        least = (job.plan.selection + job.plan.looks()[0]) / rate  # seconds of the shortest image
        if 0 < seconds < least:
            raise ValueError(
                f"Expected max_minutes to be enough for one image, about {1.1 * least / 60:.2g} minutes here, got "
                f"{budget.minutes:g}."
            )
        budget.expect(least)
        piece = counter.stride * max(1, round(rate * _SECONDS_A_PIECE / counter.stride))
        scheduler = Scheduler(counter, job.plan, job.course, piece=piece, stage=job.stage)
        progress = Progress("certify", total, done, unit="images")
        begun = since = time.perf_counter()
        try:
            with budget:
                for drawn in scheduler.run(todo, over=lambda images: budget.over(margin_ticks=images)):
                    now = time.perf_counter()
                    if done == before:  # a call that adds no row leaves none out
                        file.note(job.asked)
                    file.append(job.row(drawn, now - since))
                    done, since = done + 1, now
                    budget.tick()
                    progress.update(done, samples_per_second=scheduler.drawn / (now - begun))
        finally:
            progress.close()
            write_status(
                status,
                "certify",
                done=done,
                total=total,
                seconds=round(time.perf_counter() - begun, 3),
                samples=scheduler.drawn,
                slots_used=round(scheduler.slots_used / max(1, scheduler.slots_total), 4),
            )
    if done < total:
        require_progress(before, done, budget.minutes)
    return done == total


@dataclass(frozen=True)
class _Certification(Job):
    """Of a network's own votes."""

    decisions: Decisions

    def course(self, position: int) -> Course:
        return self.decisions.course(position)

    def row(self, drawn: Drawn, seconds: float) -> Row:
        index = int(self.indices[drawn.position])
        label = int(self.dataset.labels[index])
        return Row.from_certificate(self.decisions.certificate(drawn), index, label, seconds)


def _prepare(
    classifier: Classifier,
    scheme: Scheme,
    dataset: data.Dataset,
    indices: np.ndarray,
    settings: Settings,
    worker: Worker,
) -> _Certification:
    """The worker's job, or ValueError for what cannot be certified; a warning where the network knows the images."""
    check_settings(classifier, scheme, settings)
    check_fits(classifier, dataset)
    indices = check_unique(check_indices(indices, dataset))
    checked = checked_scheme(scheme, dataset.images, indices)
    guarantee = describe_guarantee(classifier, scheme, dataset, indices, settings)
    warn_of_training_images(classifier, dataset, guarantee)
    share = worker.share(indices)
    labels = labels_for(settings.plan, dataset, share)
    images = sampling.check_images(data.to_unit(dataset.images[share]), classifier, scheme)
    statistic, levels = host_levels(scheme, images)
    return _Certification(
        classifier, scheme, dataset, share, images, levels, settings.plan, settings.seed, guarantee,
        checked, asked(indices), Decisions(scheme, settings, statistic, guarantee["dim"], labels),
    )  # fmt: skip


def warn_of_training_images(classifier: Classifier, dataset: data.Dataset, guarantee: dict[str, Any]) -> None:
    """A warning where the network was trained on the very images that a guarantee is about."""
    if guarantee["data_sha256"] in trained_on(classifier):
        warnings.warn(f"The network was trained on the very images of {dataset.source} to certify.", stacklevel=4)


@dataclass(frozen=True)
class Estimate:
    """What a dry run says: samples to draw, samples/s measured, seconds, bytes of memory a device (or None)."""

    images: int
    samples: int
    samples_per_second: float
    seconds: float
    memory: int | None


def estimate(
    classifier: Classifier,
    scheme: Scheme,
    dataset: data.Dataset,
    indices: np.ndarray,
    settings: Settings,
    *,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> Estimate:
    """Measure the rate on one image, and say what certifying all of them takes: a dry run.

    Args:
      As for `certify_dataset`.

    Raises:
      ValueError: settings, network or indices that `certify_dataset` refuses.
    """
    check_settings(classifier, scheme, settings)
    check_fits(classifier, dataset)
    indices = check_unique(check_indices(indices, dataset))
    checked_scheme(scheme, dataset.images, indices)
    labels_for(settings.plan, dataset, indices)
    first = indices[:1]
    images = sampling.check_images(data.to_unit(dataset.images[first]), classifier, scheme)
    _, levels = host_levels(scheme, images)
    samples = len(indices) * level_count(scheme) * settings.plan.most
    execution = implementation_choice.choose(classifier, scheme, samples=samples, mesh=mesh, chunk=chunk)
    key = random_keys.root(settings.seed)
    rate = statistics.harmonic_mean(VoteCounter(execution, scheme, images, levels, indices=first, key=key).rates())
    kinds = {one.classifier.structure: one for one in execution.voters(scheme)}
    memory = [sampling.memory_estimate(one, scheme) for one in kinds.values()]
    most = None if None in memory else max(one for one in memory if one is not None)
    return Estimate(len(indices), samples, rate, samples / rate, most)
