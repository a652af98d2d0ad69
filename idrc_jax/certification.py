"""The host loop: sampling -> statistics -> certificates -> results, one row an image.

Work goes to the devices in pieces of a few seconds, always two ahead of what the host reads. A piece
that was cut off is lost and its image starts anew; a finished image is on disk.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from idrc_jax import _files, _validate, certificates, data, devices, prng, sampling, statistics
from idrc_jax.certificates import Certificate
from idrc_jax.checkpoints import Classifier
from idrc_jax.progress import Deadline, Progress, interruptible, require_progress, write_status
from idrc_jax.results import ResultsFile, Row
from idrc_jax.schemes import Scheme, describe, host_scale

_AHEAD = 2
_SELECTION_WINDOW = 16
_SECONDS_A_PIECE = 4.0


@dataclass(frozen=True)
class Settings:
    """What a certificate depends on, beside scheme, classifier and data.

    Attributes:
      n0: samples that select the class.
      n: fresh samples that bound its probability.
      alpha: error probability of each image's certificate.
      seed: of the key tree.
      certificate: "one_sided" or "two_sided" (see `certificates.from_votes`).
    """

    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    seed: int = 0
    certificate: str = "one_sided"

    def __post_init__(self) -> None:
        _validate.at_least("certify.n0", self.n0, 1)
        _validate.in_open_unit_interval("certify.alpha", self.alpha)
        least = statistics.smallest_n(self.alpha)
        if self.n < least:
            raise ValueError(
                f"Expected certify.n >= {least}, the fewest samples that can certify anything at alpha = "
                f"{self.alpha}, got {self.n}."
            )


def certify(
    classifier: Classifier,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    certificate: str = "one_sided",
    key: jax.Array,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> list[Certificate]:
    """CERTIFY of Cohen et al. (2019) for each image, in memory.

    Args:
      images: float32 [N, H, W, C] in [0, 1].
      indices: [N] data-set indices, which name the noise.
      key: the run's typed key, `prng.root(seed)`; selection and estimation use branches of their own.

    Guarantee: for each image on its own, with probability at least 1 - alpha over the sampling, no image nearer than
    `radius` (l2, pixel units) has another prediction of the smoothed classifier, under its own noise.
    """
    Settings(n0=n0, n=n, alpha=alpha, certificate=certificate)
    certificates.check_certificate(certificate, scheme)
    statistic, _ = host_scale(scheme, sampling.check_images(images, classifier))
    votes = {
        stage: sampling.count_votes(
            classifier,
            scheme,
            images,
            indices=indices,
            n=count,
            key=prng.stage(key, stage),
            chunk=chunk,
            mesh=mesh,
        )
        for stage, count in ((prng.SELECTION, n0), (prng.ESTIMATION, n))
    }
    dim = int(np.prod(classifier.image_shape))
    selected = [statistics.select(row) for row in votes[prng.SELECTION]]
    return certificates.from_votes(
        scheme, statistic, selected, votes[prng.ESTIMATION], n0=n0, alpha=alpha, dim=dim, certificate=certificate
    )


def predict(
    classifier: Classifier,
    scheme: Scheme,
    images: np.ndarray,
    *,
    indices: np.ndarray,
    n: int = 1000,
    alpha: float = 0.001,
    key: jax.Array,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """PREDICT of Cohen et al. (2019): the smoothed classifier's class of each image, or -1.

    Guarantee: for each image on its own, with probability at least 1 - alpha it returns the smoothed
    classifier's prediction or abstains.

    Returns:
      int64 [N]; -1 where the votes do not tell.
    """
    _validate.in_open_unit_interval("alpha", alpha)
    stage_key = prng.stage(key, prng.PREDICTION)
    votes = sampling.count_votes(
        classifier, scheme, images, indices=indices, n=n, key=stage_key, chunk=chunk, mesh=mesh
    )
    return np.asarray([statistics.predict(row, alpha) for row in votes])


@dataclass(frozen=True)
class Piece:
    """A dispatch: samples first .. first + n - 1 of the images at `positions` in one stage."""

    stage: int
    positions: tuple[int, ...]
    first: int
    n: int


def pieces(positions: list[int], settings: Settings, largest: int) -> Iterator[Piece]:
    """The work in the order it is dispatched: a window's selection, then each image's estimation.

    A selection piece always names `_SELECTION_WINDOW` images (the last is repeated), so that it compiles once.
    """
    for start in range(0, len(positions), _SELECTION_WINDOW):
        window = positions[start : start + _SELECTION_WINDOW]
        padded = window + [window[-1]] * (_SELECTION_WINDOW - len(window))
        yield Piece(prng.SELECTION, tuple(padded), 0, settings.n0)
        for position in window:
            for first in range(0, settings.n, largest):
                yield Piece(prng.ESTIMATION, (position,), first, min(largest, settings.n - first))


class _Sampler:
    """Dispatches pieces for one run and says how fast they go."""

    def __init__(
        self,
        classifier: Classifier,
        scheme: Scheme,
        images: np.ndarray,
        indices: np.ndarray,
        seed: int,
        chunk: int,
        mesh: Mesh,
    ) -> None:
        self.statistic, self.scales = host_scale(scheme, images)
        self._classifier, self._scheme, self._images, self._indices = classifier, scheme, images, indices
        self._mesh, self._chunk = mesh, chunk
        root = prng.root(seed)
        self._keys = {stage: prng.stage(root, stage) for stage in (prng.SELECTION, prng.ESTIMATION)}

    def __call__(self, piece: Piece) -> jax.Array:
        chosen = list(piece.positions)
        return sampling.dispatch_votes(
            self._classifier,
            self._scheme,
            self._images[chosen],
            self.scales[chosen],
            indices=self._indices[chosen],
            first=piece.first,
            n=piece.n,
            key=self._keys[piece.stage],
            chunk=self._chunk,
            mesh=self._mesh,
        )

    def samples_per_second(self) -> float:
        """Compile, then time a few chunks of the first image."""
        stride = self._chunk * self._mesh.size
        jax.block_until_ready(self(Piece(prng.ESTIMATION, (0,), 0, stride)))
        start = time.perf_counter()
        jax.block_until_ready(self(Piece(prng.ESTIMATION, (0,), 0, 4 * stride)))
        return 4 * stride / (time.perf_counter() - start)

    def piece_size(self, rate: float) -> int:
        """Samples of a piece that takes a few seconds, whole chunks."""
        stride = self._chunk * self._mesh.size
        return stride * max(1, round(rate * _SECONDS_A_PIECE / stride))


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
    process: int = 0,
    processes: int = 1,
    provenance: dict[str, Any] | None = None,
) -> bool:
    """Certify `dataset[indices]` into `workdir/certificates.tsv`; call again to go on.

    Args:
      indices: which images; they name the noise.
      max_minutes: of this call, which stops cleanly before; 0 for no limit.
      process, processes: this process takes every `processes`-th image, into a file of its own.
      provenance: kept in the manifest for each call, never compared.

    Returns:
      Whether every image of this process is done.

    Raises:
      ValueError: data and classifier do not fit, or the file in `workdir` was made under other settings.
    """
    deadline = Deadline(max_minutes)
    mesh = mesh or devices.mesh()
    if not 0 <= process < processes:
        raise ValueError(f"Expected 0 <= process < processes, got {process} of {processes}.")
    certificates.check_certificate(settings.certificate, scheme)
    check_fits(classifier, dataset)
    chunk = _validate.at_least("chunk", chunk or sampling.default_chunk(mesh), 2)
    indices = np.asarray(indices)[process::processes]
    images = sampling.check_images(data.to_unit(dataset.images[indices]), classifier)
    labels = dataset.labels[indices]
    dim = int(np.prod(classifier.image_shape))
    name = "certificates.tsv" if processes == 1 else f"certificates.{process}-of-{processes}.tsv"
    status = "certify_status.json" if processes == 1 else f"certify_status.{process}-of-{processes}.json"
    session = {"devices": mesh.size, "device": mesh.devices.flat[0].device_kind, **(provenance or {})}
    guarantee = describe_guarantee(classifier, scheme, dataset, settings)

    _files.make_folder(workdir)
    with ResultsFile(workdir, guarantee=guarantee, session=session, name=name) as file:
        todo = [position for position, index in enumerate(indices) if int(index) not in file.done]
        done = before = len(indices) - len(todo)
        write_status(workdir / status, "certify", done=done, total=len(indices))
        if not todo:
            return True
        sampler = _Sampler(classifier, scheme, images, indices, settings.seed, chunk, mesh)
        rate = sampler.samples_per_second()
        per_image = (settings.n0 + settings.n) / rate
        if 0 < 60 * max_minutes < per_image:
            raise ValueError(
                f"Expected max_minutes >= {per_image / 60:.2f}, the time of one image here, got {max_minutes}."
            )
        deadline.expect(per_image)
        progress = Progress("certify", len(indices), done, unit="images")
        selection: dict[int, np.ndarray] = {}
        estimation: dict[int, np.ndarray] = {}
        pending: deque[tuple[Piece, jax.Array]] = deque()
        since = time.perf_counter()
        drawn, started = 0, since

        def read_one() -> None:
            nonlocal done, since, drawn
            piece, votes = pending.popleft()
            counts = np.asarray(votes).sum(axis=0, dtype=np.int64)
            if piece.stage == prng.SELECTION:
                selection.update(zip(piece.positions, counts, strict=True))
                return
            (position,) = piece.positions
            estimation[position] = estimation.get(position, 0) + counts[0]
            drawn += piece.n
            if piece.first + piece.n < settings.n:
                return
            now = time.perf_counter()
            (certificate,) = certificates.from_votes(
                scheme,
                sampler.statistic[position : position + 1],
                [statistics.select(selection.pop(position))],
                estimation.pop(position)[None],
                n0=settings.n0,
                alpha=settings.alpha,
                dim=dim,
                certificate=settings.certificate,
            )
            label = int(labels[position])
            file.append(Row.from_certificate(certificate, int(indices[position]), label, now - since))
            done, since = done + 1, now
            deadline.tick()
            progress.update(done, samples_per_second=drawn / (now - started))

        try:
            with interruptible() as interrupt:
                for piece in pieces(todo, settings, sampler.piece_size(rate)):
                    begins_image = piece.first == 0
                    if interrupt.requested or (begins_image and deadline.over(margin_ticks=_AHEAD)):
                        break
                    pending.append((piece, sampler(piece)))
                    while len(pending) > _AHEAD:
                        read_one()
                while pending and not interrupt.requested:
                    read_one()
        finally:
            progress.close()
            write_status(workdir / status, "certify", done=done, total=len(indices))
    if done < len(indices):
        require_progress(before, done, max_minutes)
    return done == len(indices)


def check_fits(classifier: Classifier, dataset: data.Dataset) -> None:
    """ValueError unless the data set's images and labels are the classifier's."""
    if dataset.images.shape[1:] != classifier.image_shape:
        raise ValueError(
            f"Expected images of shape {classifier.image_shape} as the classifier takes, got "
            f"{dataset.images.shape[1:]} in {dataset.name}."
        )
    if dataset.labels.max() >= classifier.classes:
        raise ValueError(
            f"Expected labels below the classifier's {classifier.classes} classes, got {dataset.labels.max()} in "
            f"{dataset.name}."
        )


def describe_guarantee(
    classifier: Classifier, scheme: Scheme, dataset: data.Dataset, settings: Settings
) -> dict[str, Any]:
    """Everything that the certificates of a file depend on: compared when a run goes on."""
    return {
        **describe(scheme),
        "plan": "fixed",
        "certificate": settings.certificate,
        "n0": settings.n0,
        "n": settings.n,
        "alpha": settings.alpha,
        "seed": settings.seed,
        "classes": classifier.classes,
        "dim": int(np.prod(classifier.image_shape)),
        "dtype": classifier.dtype,
        "weights_sha256": classifier.sha256,
        "data": f"{dataset.name}/{dataset.split}",
        "data_sha256": dataset.fingerprint(),
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
    mesh = mesh or devices.mesh()
    check_fits(classifier, dataset)
    first = np.asarray(indices)[:1]
    images = sampling.check_images(data.to_unit(dataset.images[first]), classifier)
    chunk = chunk or sampling.default_chunk(mesh)
    sampler = _Sampler(classifier, scheme, images, first, settings.seed, chunk, mesh)
    rate = sampler.samples_per_second()
    samples = len(indices) * (settings.n0 + settings.n)
    memory = sampling.memory_estimate(classifier, scheme, chunk=chunk, mesh=mesh)
    return Estimate(len(indices), samples, rate, samples / rate, memory)
