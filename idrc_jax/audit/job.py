"""The audit of a result file: every certified radius is attacked, and what is found is written down.

Claims hold all at once with probability 1 - level (see `refutation`): the number of confirmations is counted before the
search begins. Work is lost only for images that were not finished.
"""

import dataclasses
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from idrc_jax import certification, data, results, sampling
from idrc_jax.audit.search import Search, Searcher, Settings
from idrc_jax.certificates import confidence_bounds, sampling_plans, schemes
from idrc_jax.core import files, manifests
from idrc_jax.core.budget import Deadline, interruptible
from idrc_jax.core.progress import Progress, require_progress, write_status
from idrc_jax.models import Classifier
from idrc_jax.results import Results, Row, audit_rows, metrics
from idrc_jax.results.audit_rows import CLAIMS, TABLE, Finding, FindingsFile
from idrc_jax.sampling import choice, devices, random_keys


def audit_certificates(
    classifier: Classifier,
    dataset: data.Dataset,
    indices: np.ndarray,
    read: Results,
    settings: Settings,
    out: Path,
    *,
    seed: int = 0,
    chunk: int = 0,
    mesh: Mesh | None = None,
    max_minutes: float = 0.0,
    provenance: dict[str, Any] | None = None,
) -> bool:
    """Audit a result file into `out`; call again to go on.

    Args:
      classifier, dataset, indices: what was certified; a result file made with others is refused.
      read: the result file, with its manifest, whose scheme is used.
      out: folder for `audit.tsv`, `audit.json` and `audit.npz` (see `findings`).
      max_minutes: of this call, which stops cleanly before; 0 for no limit.
      provenance: kept in the manifest for each call, never compared.

    Returns:
      Whether the audit is finished.

    Raises:
      ValueError: no rows, no manifest or no published radii in `read`, weights or data that are not those of its
        manifest, or an audit in `out` under other settings.
    """
    deadline = Deadline(max_minutes)
    random_keys.check_seed(seed)
    guarantee = _same_certificates(read, classifier, dataset, indices)
    sampling.check_chunk(classifier, mesh, chunk)
    seen = _evenly(read.rows, settings.images)
    certified = [row for row in seen if row.predict != confidence_bounds.ABSTAIN and cells(row, settings)]
    budgets = [[radius * fraction for _, radius, fraction in cells(row, settings)] for row in certified]
    attempts = sum(settings.attempts(len(set(some))) for some in budgets)
    threshold = settings.level / max(attempts, 1)
    if 0.5**settings.votes > threshold:
        raise ValueError(
            f"Expected audit.votes >= {math.ceil(-math.log2(threshold))}, the fewest that can claim a break at level "
            f"{settings.level:g} in {attempts:,} attempts, got {settings.votes}."
        )
    images = sampling.check_images(
        data.to_unit(dataset.images[np.asarray([row.idx for row in certified], int)]), classifier
    )
    manifest = {
        "schema_version": audit_rows.SCHEMA_VERSION,
        "settings": {
            **dataclasses.asdict(settings),
            "seed": seed,
            "certificates_sha256": hashlib.sha256(read.path.read_bytes()).hexdigest(),
            "weights_sha256": guarantee["weights_sha256"],
        },
        "certificates": guarantee,
        "attempts": attempts,
        "threshold": threshold,
        "images": {
            "seen": len(seen),
            "certified": sum(row.predict != confidence_bounds.ABSTAIN for row in seen),
            "abstained": sum(row.predict == confidence_bounds.ABSTAIN for row in seen),
            **({"right": sum(row.correct for row in seen)} if read.labelled else {}),
        },
        "finished": False,
        "sessions": [provenance or {}],
    }
    files.make_folder(out)
    expected = {row.idx: len(cells(row, settings)) for row in certified}
    with FindingsFile(out, manifest=manifest, expected=expected) as file:
        saved = _Images(out / audit_rows.IMAGES, settings.saved, file.done)
        todo = [i for i, row in enumerate(certified) if row.idx not in file.done]
        done = before = len(certified) - len(todo)
        scheme = schemes.from_description(guarantee)
        share = len(todo) / max(len(certified), 1)
        # Gradients take all devices, whatever votes would: the devices are no choice.
        chosen = choice.choose(
            classifier,
            scheme,
            samples=round(share * attempts * (settings.votes + settings.screening)),
            seconds=60 * max_minutes,
            mesh=mesh or devices.mesh(),
            chunk=chunk,
        )
        file.manifest["sessions"][-1] |= chosen.describe()
        file.write_manifest()
        searcher = Searcher(
            chosen.classifier,
            scheme,
            settings,
            key=random_keys.root(seed),
            threshold=threshold,
            chunk=chosen.chunk,
            mesh=chosen.mesh,
        )
        progress = Progress("audit", len(certified), done, unit="images")
        try:
            with interruptible() as interrupt:

                def must_stop() -> bool:
                    return interrupt.requested or deadline.over()

                for search in searcher.run(
                    images[todo],
                    np.asarray([certified[i].idx for i in todo]),
                    np.asarray([certified[i].predict for i in todo]),
                    [budgets[i] for i in todo],
                    must_stop=must_stop,
                ):
                    row = certified[todo[search.position]]
                    saved.add(row, search)
                    file.append([_finding(row, *cell, search) for cell in cells(row, settings)])
                    done += 1
                    deadline.tick()
                    progress.update(done)
        finally:
            progress.close()
            write_status(out / "audit_status.json", "audit", done=done, total=len(certified))
            tables: dict[str, Any] = {"claims": audit_rows.claims(file.rows), "attacks": audit_rows.attacks(file.rows)}
            if done == len(certified) and read.labelled:
                tables["robust_accuracy"] = [
                    {
                        "radius": radius,
                        "certified": metrics.certified_accuracy(dataclasses.replace(read, rows=tuple(seen)), radius),
                        "empirical": audit_rows.robust_accuracy(file.rows, radius, len(seen)),
                    }
                    for radius in settings.radii
                ]
            file.write_manifest(**tables, finished=done == len(certified))
    if done < len(certified):
        require_progress(before, done, max_minutes)
    return done == len(certified)


def cells(row: Row, settings: Settings) -> list[tuple[str, float, float]]:
    """What is tried at a row: kind of radius, radius, fraction. Radii of 0 and nan claim nothing; the table's radii are
    tried where the prediction is right."""
    claimed = [(kind, getattr(row, kind)) for kind in CLAIMS]
    tried = [(kind, radius, fraction) for kind, radius in claimed if radius > 0 for fraction in settings.fractions]
    return tried + [(TABLE, radius, 1.0) for radius in settings.radii if row.correct]


def _finding(row: Row, kind: str, radius: float, fraction: float, search: Search) -> Finding:
    budget = radius * fraction
    broken = search.nearest is not None and search.nearest.distance < budget
    said = search.nearest if broken and search.nearest is not None else search.tried[budget]
    *classes, non_finite = said.votes or (0,)
    votes = {number: count for number, count in enumerate(classes) if count}
    return Finding(
        idx=row.idx,
        label=row.label,
        predict=row.predict,
        kind=kind,
        radius=radius,
        fraction=fraction,
        distance=said.distance,
        attack=said.attack,
        broken=int(broken),
        votes=votes | ({-1: non_finite} if non_finite else {}),
        p_value=said.p_value,
        rival=said.rival,
        sigma_x=said.sigma_x,
    )


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """So many rows, evenly spaced; all of them for 0."""
    count = min(count or len(rows), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _same_certificates(
    read: Results, classifier: Classifier, dataset: data.Dataset, indices: np.ndarray
) -> dict[str, Any]:
    """The guarantee of a result file that can be audited with this classifier and data, or ValueError."""
    if not read.rows:
        raise ValueError(f"Expected at least one row in {read.path}, got none.")
    if read.manifest is None:
        raise ValueError(f"Expected {results.MANIFEST} beside {read.path}, with the scheme of its radii, got none.")
    if any(row.radius_published is None for row in read.rows):
        raise ValueError(f"Expected all columns in {read.path}, with radius_published, got only six.")
    stored = read.manifest["guarantee"]
    settings = certification.Settings(
        sampling_plans.from_description(stored), stored["alpha"], stored["seed"], stored["certificate"]
    )
    certification.check_fits(classifier, dataset)
    made = certification.describe_guarantee(classifier, schemes.from_description(stored), dataset, indices, settings)
    changed = results.guarantee_differences(stored, manifests.as_json(made))
    if changed:
        raise ValueError(f"Expected the classifier and data that {read.path} was made with, got {changed}.")
    for row in read.rows:
        if not 0 <= row.idx < len(dataset) or dataset.labels[row.idx] != row.label:
            raise ValueError(
                f"Expected images and labels of {stored['data']} in {read.path}, got {row.idx}, {row.label}."
            )
    return stored


class _Images:
    """The adversarial images of an audit, at most so many, in a file that is written anew with each."""

    def __init__(self, path: Path, most: int, done: set[int]) -> None:
        self._path, self._most = path, most
        self._held: dict[str, list] = {
            name: [] for name in ("idx", "predict", "rival", "distance", "image", "original")
        }
        if path.is_file():
            try:
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                    known = [i for i, idx in enumerate(file["idx"]) if int(idx) in done]
                    self._held = {name: [file[name][i] for i in known] for name in self._held}
            except Exception as error:  # zipfile and zlib raise several kinds for a damaged file
                why = f"{type(error).__name__}: {error}"
                raise ValueError(
                    f"Expected the images of an audit in {path}, got {why}. Remove it to go on without them."
                ) from None

    def add(self, row: Row, search: Search) -> None:
        """Keep an image's nearest break, if there is one and room for it."""
        found = search.nearest
        if found is None or len(self._held["idx"]) >= self._most:
            return
        values = (row.idx, row.predict, found.rival, found.distance, found.image, search.image)
        for name, value in zip(self._held, values, strict=True):
            self._held[name].append(value)
        stream = io.BytesIO()
        arrays: dict[str, Any] = {name: np.asarray(values) for name, values in self._held.items()}
        np.savez_compressed(stream, **arrays)
        files.write_bytes(self._path, stream.getvalue())
