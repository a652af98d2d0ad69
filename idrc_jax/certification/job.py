"""The host loop: sampling -> statistics -> certificates -> results, one row an image.

Work goes to the devices in pieces of a few seconds, always two ahead of what the host reads (`scheduler`). A piece
that was cut off is lost and its image starts anew; a finished image is on disk.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import certificates, data, models, results, sampling
from idrc_jax.certificates import Certificate, confidence_bounds, sampling_plans
from idrc_jax.certificates.sampling_plans import Fixed, Plan, SelectionFree, ToSignificance
from idrc_jax.certificates.schemes import Scheme, describe, host_scale
from idrc_jax.core import files, validate
from idrc_jax.core.budget import Deadline, interruptible
from idrc_jax.core.progress import Progress, require_progress, write_status
from idrc_jax.models import Classifier
from idrc_jax.results import ResultsFile, Row
from idrc_jax.sampling import choice, random_keys, threefry
from idrc_jax.sampling.batch_systems import ALONE, Worker
from idrc_jax.sampling.choice import Choice
from idrc_jax.sampling.dispatch_ahead import Draw, Drawn, Scheduler

_SECONDS_A_PIECE = 4.0
_FEWEST = 10_000  # votes that are tried, to say how few can name a class


@dataclass(frozen=True)
class Settings:
    """What a certificate depends on, beside scheme, classifier and data.

    Attributes:
      plan: how the votes of an image are drawn.
      alpha: error probability of each image's certificate.
      seed: of the key tree.
      certificate: "one_sided" or "two_sided" (see `certificates.from_votes`).
    """

    plan: Plan = field(default_factory=Fixed)
    alpha: float = 0.001
    seed: int = 0
    certificate: str = "one_sided"

    def __post_init__(self) -> None:
        validate.in_open_unit_interval("certify.alpha", self.alpha)
        random_keys.check_seed(self.seed)
        self.plan.check(self.alpha)


def certify(
    classifier: Classifier,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    plan: Plan | None = None,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    certificate: str = "one_sided",
    key: jax.Array,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> list[Certificate]:
    """The certificate of each image, in memory: CERTIFY of Cohen et al. (2019), or another sampling plan.

    Args:
      images: float32 [N, H, W, C] in [0, 1].
      indices: [N] data-set indices, which name the noise.
      plan: instead of n0 selection and n estimation samples.
      certificate: see `certificates.from_votes`.
      key: the run's typed key, `prng.root(seed)`; selection and estimation use branches of their own.

    Guarantee: for each image on its own, with probability at least 1 - alpha over the sampling, no image nearer than
    `radius` (l2, pixel units) has another prediction of the smoothed classifier, under its own noise.
    """
    settings = Settings(plan or Fixed(n=n, n0=n0), alpha, certificate=certificate)
    certificates.check_certificate(certificate, scheme, settings.plan)
    images = sampling.check_images(images, classifier)
    chosen = choice.choose(classifier, scheme, samples=len(images) * settings.plan.most, mesh=mesh, chunk=chunk)
    sampler = _Sampler(chosen, scheme, images, indices, key)
    scheduler = sampler.scheduler(settings.plan, alpha, piece=1000 * sampler.stride)
    made: dict[int, Certificate] = {}
    for drawn in scheduler.run(range(len(images))):
        made[drawn.position] = sampler.certificate(drawn, settings)
    return [made[position] for position in range(len(images))]


def predict(
    classifier: Classifier,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    n: int = 1000,
    alpha: float = 0.001,
    adaptive: bool = False,
    key: jax.Array,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """PREDICT of Cohen et al. (2019): the smoothed classifier's class of each image, or -1.

    Args:
      n: samples an image.
      adaptive: stop as soon as the class is clear (`statistics.predict_sequential`), after at most n samples.
      Others: as for `certify`.

    Guarantee: for each image on its own, with probability at least 1 - alpha it returns the smoothed
    classifier's prediction or abstains.

    Returns:
      int64 [N]; -1 where the votes do not tell.

    Raises:
      ValueError: so few samples that not even unanimous votes could tell, or images and classifier do not fit.
    """
    check_prediction(n, alpha, classifier.classes, adaptive=adaptive)
    images = sampling.check_images(images, classifier)
    chosen = choice.choose(classifier, scheme, samples=len(images) * n, mesh=mesh, chunk=chunk)
    sampler = _Sampler(chosen, scheme, images, indices, key)
    plan = ToSignificance(n=n) if adaptive else SelectionFree(n=n)
    scheduler = sampler.scheduler(plan, alpha, piece=1000 * sampler.stride, stage=random_keys.PREDICTION)
    predictions = np.full(len(images), confidence_bounds.ABSTAIN)
    for drawn in scheduler.run(range(len(images))):
        predictions[drawn.position] = _answer(adaptive)(drawn.votes, alpha)
    return predictions


def check_prediction(n: int, alpha: float, classes: int, *, adaptive: bool) -> None:
    """ValueError unless n votes, all for one class, name it."""
    validate.in_open_unit_interval("alpha", alpha)
    if validate.count("n", n, 1) > sampling_plans.MOST:
        raise ValueError(f"Expected n <= {sampling_plans.MOST}, as many samples as an image has keys, got {n}.")
    answer = _answer(adaptive)

    def enough(votes: int) -> bool:
        return answer(np.asarray([votes, *[0] * classes]), alpha) != confidence_bounds.ABSTAIN

    if not enough(n):
        least = next((votes for votes in range(n, _FEWEST) if enough(votes)), None)
        if least is None:
            raise ValueError(f"Expected an alpha for which {_FEWEST} votes can name a class, got {alpha}.")
        raise ValueError(
            f"Expected n >= {least}, the fewest samples that can name a class at alpha = {alpha}, got {n}."
        )


def _answer(adaptive: bool) -> Callable[[np.ndarray, float], int]:
    return confidence_bounds.predict_sequential if adaptive else confidence_bounds.predict


class _Sampler:
    """Dispatches the draws of one run, says how fast they go and what their votes certify."""

    def __init__(self, chosen: Choice, scheme: Scheme, images: np.ndarray, indices: np.ndarray, key: jax.Array) -> None:
        self._mesh, self._chunk = chosen.mesh, chosen.chunk
        self.stride = self._chunk * self._mesh.size
        self._statistic, self._scales = host_scale(scheme, images)
        self._classifier, self._scheme, self._images = sampling.place(chosen.classifier, self._mesh), scheme, images
        self._indices = sampling.check_indices(indices, images)
        self._dim = int(np.prod(self._classifier.image_shape))
        self._keys = {
            stage: random_keys.stage(key, stage)
            for stage in (random_keys.SELECTION, random_keys.ESTIMATION, random_keys.PREDICTION)
        }

    def __call__(self, draw: Draw) -> jax.Array:
        """Always of `sampling.SLOTS` images, the last ones without samples, so that it compiles once."""
        empty = sampling.SLOTS - len(draw.positions)
        chosen = draw.positions + [draw.positions[0]] * empty
        return sampling.dispatch_votes(
            self._classifier,
            self._scheme,
            self._images[chosen],
            self._scales[chosen],
            indices=self._indices[chosen],
            first=np.asarray(draw.first + [0] * empty),
            n=np.asarray(draw.n + [0] * empty),
            key=self._keys[draw.stage],
            chunk=self._chunk,
            mesh=self._mesh,
        )

    def scheduler(self, plan: Plan, alpha: float, *, piece: int, stage: int = random_keys.ESTIMATION) -> Scheduler:
        """One that draws by the plan, with pieces of so many samples."""

        def stopping(position: int) -> Callable[[np.ndarray], bool]:
            def radius_of(p_lower: np.ndarray) -> np.ndarray:
                return certificates.radius(self._scheme, self._statistic[position], p_lower, dim=self._dim)

            return plan.stopping(radius_of, alpha)

        return Scheduler(self, plan, stopping, slots=sampling.SLOTS, piece=piece, stride=self.stride, stage=stage)

    def certificate(self, drawn: Drawn, settings: Settings) -> Certificate:
        """What a finished image's votes certify."""
        (made,) = certificates.from_votes(
            self._scheme,
            self._statistic[drawn.position : drawn.position + 1],
            [drawn.selected],
            drawn.votes[None],
            plan=settings.plan,
            alpha=settings.alpha,
            dim=self._dim,
            certificate=settings.certificate,
        )
        return made

    def samples_per_second(self) -> float:
        """Compile, then time a few chunks of the first image."""
        jax.block_until_ready(self(Draw(random_keys.ESTIMATION, [0], [0], [self.stride])))
        start = time.perf_counter()
        jax.block_until_ready(self(Draw(random_keys.ESTIMATION, [0], [0], [4 * self.stride])))
        return 4 * self.stride / (time.perf_counter() - start)

    def piece_size(self, rate: float) -> int:
        """Samples of a piece that takes a few seconds, whole chunks."""
        return self.stride * max(1, round(rate * _SECONDS_A_PIECE / self.stride))


@dataclass(frozen=True)
class Estimate:
    """What a dry run says: samples to draw, samples/s measured, seconds, bytes of memory a device (or None)."""

    images: int
    samples: int
    samples_per_second: float
    seconds: float
    memory: int | None


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
) -> bool:
    """Certify `dataset[indices]` into `workdir/certificates.tsv`; call again to go on.

    Several workers write a file each, `certificates.I-of-N.tsv`, to be united by `results.merge`. Each takes only
    images that no file in `workdir` has, so their number may change from call to call.

    Args:
      indices: which images; they name the noise.
      max_minutes: of this call, which stops cleanly before; 0 for no limit.
      worker: certifies its share.
      provenance: kept in the manifest for each call, never compared.

    Returns:
      Whether every image of this worker's share is done.

    Raises:
      ValueError: data and classifier do not fit, or the file in `workdir` was made under other settings.
    """
    deadline = Deadline(max_minutes)
    certificates.check_certificate(settings.certificate, scheme, settings.plan)
    check_fits(classifier, dataset)
    choice.check_chunk(classifier, mesh, chunk)
    indices = _checked_indices(indices, dataset)
    if len(np.unique(indices)) < len(indices):
        raise ValueError("Expected each image once, got an index that comes twice.")
    guarantee = describe_guarantee(classifier, scheme, dataset, indices, settings)
    if classifier.description.get("training", {}).get("data_sha256") == guarantee["data_sha256"]:
        warnings.warn(f"The network was trained on the very images of {dataset.source} to certify.", stacklevel=2)
    indices = worker.share(indices)
    images = sampling.check_images(data.to_unit(dataset.images[indices]), classifier)
    labels = dataset.labels[indices]
    name = results.worker_file(worker.index, worker.count)
    status = name.replace("certificates", "certify_status").replace(".tsv", ".json")
    session = {"worker": worker.index, "workers": worker.count, **(provenance or {})}

    files.make_folder(workdir)
    with ResultsFile(workdir, guarantee=guarantee, session=session, name=name) as file:
        todo = [position for position, index in enumerate(indices) if int(index) not in file.done]
        done = before = len(indices) - len(todo)
        write_status(workdir / status, "certify", done=done, total=len(indices))
        if not todo:
            return True
        samples = len(todo) * settings.plan.most
        chosen = choice.choose(classifier, scheme, samples=samples, seconds=60 * max_minutes, mesh=mesh, chunk=chunk)
        file.note(chosen.describe())
        sampler = _Sampler(chosen, scheme, images, indices, random_keys.root(settings.seed))
        rate = sampler.samples_per_second()
        least = (settings.plan.selection + settings.plan.looks()[0]) / rate  # seconds of the shortest image
        if 0 < 60 * max_minutes < least:
            raise ValueError(
                f"Expected max_minutes >= {least / 60:.2f}, the time of one image here, got {max_minutes}."
            )
        deadline.expect(least)
        progress = Progress("certify", len(indices), done, unit="images")
        scheduler = sampler.scheduler(settings.plan, settings.alpha, piece=sampler.piece_size(rate))
        begun = since = time.perf_counter()
        try:
            with interruptible() as interrupt:

                def may_start() -> bool:
                    return not deadline.over(margin_ticks=scheduler.started + 1)

                def must_stop() -> bool:
                    return interrupt.requested or deadline.over(margin_ticks=0)

                for drawn in scheduler.run(todo, may_start=may_start, must_stop=must_stop):
                    now = time.perf_counter()
                    index, label = int(indices[drawn.position]), int(labels[drawn.position])
                    file.append(Row.from_certificate(sampler.certificate(drawn, settings), index, label, now - since))
                    done, since = done + 1, now
                    deadline.tick()
                    progress.update(done, samples_per_second=scheduler.drawn / (now - begun))
        finally:
            progress.close()
            write_status(
                workdir / status,
                "certify",
                done=done,
                total=len(indices),
                seconds=round(time.perf_counter() - begun, 3),
                samples=scheduler.drawn,
                slots_used=round(scheduler.slots_used / max(1, scheduler.slots_total), 4),
            )
    if done < len(indices):
        require_progress(before, done, max_minutes)
    return done == len(indices)


def check_fits(classifier: Classifier, dataset: data.Dataset) -> None:
    """ValueError unless the classifier gives logits of its classes and the data set's images and labels are its."""
    classifier.check()
    if dataset.images.shape[1:] != classifier.image_shape:
        raise ValueError(
            f"Expected images of shape {classifier.image_shape} as the classifier takes, got "
            f"{dataset.images.shape[1:]} in {dataset.source}."
        )
    if dataset.labels.max() >= classifier.classes:
        raise ValueError(
            f"Expected labels below the classifier's {classifier.classes} classes, got {dataset.labels.max()} in "
            f"{dataset.source}."
        )


def _checked_indices(indices: np.ndarray, dataset: data.Dataset) -> np.ndarray:
    """Indices of the data set's images, or ValueError."""
    indices = sampling.check_indices(indices, indices)
    if len(indices) and not (np.min(indices) >= 0 and np.max(indices) < len(dataset)):
        raise ValueError(
            f"Expected indices in 0 .. {len(dataset) - 1}, the images of {dataset.source}, got {np.min(indices)} to "
            f"{np.max(indices)}."
        )
    return indices


def describe_guarantee(
    classifier: Classifier, scheme: Scheme, dataset: data.Dataset, indices: np.ndarray, settings: Settings
) -> dict[str, Any]:
    """Everything that the certificates of a file depend on: compared when a run goes on."""
    described = classifier.description
    # The weights' hash covers neither an imported network's normalisation, which is the importing user's, nor a
    # Vision Transformer's heads and resizing, nor code.
    names = (*(("mean", "std") if "imported" in described else ()), "vit", "factory")
    return {
        **{name: described[name] for name in names if name in described},
        **{f"denoiser_{name}": value for name, value in described.get("denoiser", {}).items()},
        **describe(scheme),
        **sampling_plans.describe(settings.plan),
        "certificate": settings.certificate,
        "alpha": settings.alpha,
        "seed": settings.seed,
        "generator": threefry.NAME,
        "classes": classifier.classes,
        "dim": int(np.prod(classifier.image_shape)),
        "dtype": classifier.dtype,
        "weights_sha256": classifier.sha256 or models.fingerprint(classifier),
        "data": f"{dataset.name}/{dataset.split}",
        "data_sha256": dataset.fingerprint(indices),
    }


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
    """A dry run: measure the rate on one image, and say what certifying all of them takes."""
    check_fits(classifier, dataset)
    first = _checked_indices(indices, dataset)[:1]
    images = sampling.check_images(data.to_unit(dataset.images[first]), classifier)
    samples = len(indices) * settings.plan.most
    chosen = choice.choose(classifier, scheme, samples=samples, mesh=mesh, chunk=chunk)
    sampler = _Sampler(chosen, scheme, images, first, random_keys.root(settings.seed))
    rate = sampler.samples_per_second()
    memory = sampling.memory_estimate(chosen.classifier, scheme, chunk=chosen.chunk, mesh=chosen.mesh)
    return Estimate(len(indices), samples, rate, samples / rate, memory)
