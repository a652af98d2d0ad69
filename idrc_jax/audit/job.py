"""The audit of a result file: every certified radius is attacked, and what is found is written down.

Claims hold all at once with probability 1 - level (see `significance`): the number of confirmations is counted before
the search begins. Work is lost only for images that were not finished.
"""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from idrc_jax import certification, data, results, sampling
from idrc_jax.audit import significance
from idrc_jax.audit.search import Search, Searcher
from idrc_jax.audit.settings import Settings
from idrc_jax.certificates import confidence_bounds, sampling_plans, user_schemes
from idrc_jax.certificates.schemes import Scheme, level_count
from idrc_jax.core import files, json_values
from idrc_jax.core.json_values import Json
from idrc_jax.core.progress import Progress, require_progress, write_status
from idrc_jax.core.time_budget import Budget
from idrc_jax.models import Classifier
from idrc_jax.results import Results, Row, audit_rows, metrics
from idrc_jax.results.audit_file import FindingsFile
from idrc_jax.results.audit_rows import CLAIMS, TABLE, Finding
from idrc_jax.results.manifest import flags, networks
from idrc_jax.sampling import devices, implementation_choice, random_keys


def audit_certificates(
    classifier: Classifier,
    dataset: data.Dataset,
    indices: np.ndarray,
    read: Results,
    settings: Settings,
    out: Path,
    *,
    scheme: Scheme | None = None,
    seed: int = 0,
    chunk: int = 0,
    mesh: Mesh | None = None,
    max_minutes: float = 0.0,
    provenance: Json | None = None,
    budget: Budget | None = None,
) -> bool:
    """Audit a result file into `out`; call again to go on.

    Args:
      classifier, dataset, indices: what was certified; a result file made with others is refused.
      read: the result file, with its manifest, whose scheme is used.
      settings: how to search, and when to claim a break.
      out: folder for `audit.tsv`, `audit.json` and `audit.npz` (see `audit_rows`).
      scheme: the user's own that the results were made under; None for one of this package.
      seed: of the key tree.
      chunk, mesh: as for `certify`.
      max_minutes: of this call, which stops cleanly before; 0 for no limit.
      provenance: kept in the manifest for each call, never compared.
      budget: instead of one of max_minutes.

    Returns:
      Whether the audit is finished.

    Raises:
      ValueError: no rows, no manifest or no published radii in `read`, a part of another run's votes, weights or data
        that are not those of its manifest, or an audit in `out` under other settings.
    """
    budget = budget or Budget(max_minutes)
    random_keys.check_seed(seed)
    guarantee, scheme = _same_certificates(read, classifier, dataset, indices, scheme)
    sampling.check_chunk(classifier, mesh, chunk)
    seen = _evenly(read.rows, settings.images)
    certified = [row for row in seen if row.predict != confidence_bounds.ABSTAIN and cells(row, settings)]
    distances = [[radius * fraction for _, radius, fraction in cells(row, settings)] for row in certified]
    attempts = sum(settings.attempts(len(set(some))) for some in distances)
    threshold = significance.threshold(settings.level, attempts, settings.votes)
    pixels = data.to_unit(dataset.images[np.asarray([row.idx for row in certified], int)])
    images = sampling.check_images(pixels, classifier, scheme)
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
        saved = _Images(out, settings.saved, file.done)
        todo = [i for i, row in enumerate(certified) if row.idx not in file.done]
        done = before = len(certified) - len(todo)
        share = len(todo) / max(len(certified), 1)
        # Gradients take all devices, whatever votes would: the devices are no choice.
        chosen = implementation_choice.choose(
            classifier,
            scheme,
            samples=round(share * attempts * level_count(scheme) * (settings.votes + settings.screening)),
            seconds=60 * budget.minutes,
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
            norm=guarantee.get("norm", "l2"),
            chunk=chosen.chunk,
            mesh=chosen.mesh,
        )

        def conclude() -> None:
            """Say how far the audit has come, and what it has found."""
            finished = done == len(certified)
            write_status(out / "audit_status.json", "audit", done=done, total=len(certified))
            file.write_manifest(**_tables(file.rows, read, seen, settings, finished=finished), finished=finished)

        with budget:
            try:
                with contextlib.closing(Progress("audit", len(certified), done, unit="images")) as progress:
                    for search in searcher.run(
                        images[todo],
                        np.asarray([certified[i].idx for i in todo]),
                        np.asarray([certified[i].predict for i in todo]),
                        [distances[i] for i in todo],
                        must_stop=budget.over,
                    ):
                        row = certified[todo[search.position]]
                        saved.add(row, search)
                        file.append([_finding(row, *cell, search) for cell in cells(row, settings)])
                        done += 1
                        budget.tick()
                        progress.update(done)
            except BaseException:
                with contextlib.suppress(OSError):  # of a full disk, say, which is not to hide the error in flight
                    conclude()
                raise
            conclude()
    if done < len(certified):
        require_progress(before, done, budget.minutes)
    return done == len(certified)


def cells(row: Row, settings: Settings) -> list[tuple[str, float, float]]:
    """What is tried at a row: kind of radius, radius, fraction. Radii of 0 and nan claim nothing; the table's radii are
    tried where the prediction is right."""
    claimed = [(kind, getattr(row, kind)) for kind in CLAIMS]
    tried = [(kind, radius, fraction) for kind, radius in claimed if radius > 0 for fraction in settings.fractions]
    return tried + [(TABLE, radius, 1.0) for radius in settings.radii if row.correct]


def _tables(
    found: Sequence[Finding], read: Results, seen: Sequence[Row], settings: Settings, *, finished: bool
) -> Json:
    """What the manifest says of the rows so far; the robust accuracy is known when every image is done."""
    tables: Json = {"claims": audit_rows.claims(found), "attacks": audit_rows.attacks(found)}
    if finished and read.labelled:
        of_seen = dataclasses.replace(read, rows=tuple(seen))
        abstained = sum(row.predict == confidence_bounds.ABSTAIN for row in seen)
        tables["robust_accuracy"] = [
            {
                "radius": radius,
                "certified": metrics.certified_accuracy(of_seen, radius),
                "empirical": audit_rows.robust_accuracy(found, radius, len(seen), abstained),
            }
            for radius in settings.radii
        ]
    return tables


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
    read: Results, classifier: Classifier, dataset: data.Dataset, indices: np.ndarray, scheme: Scheme | None
) -> tuple[Json, Scheme]:
    """Guarantee and scheme of a result file that can be audited with this classifier and data, or ValueError."""
    if read.path == results.MEMORY:
        raise ValueError(
            "Expected results of a file, which the audit names by its hash, got results in memory: save them."
        )
    if not read.rows:
        raise ValueError(f"Expected at least one row in {read.path}, got none.")
    if read.manifest is None:
        raise ValueError(f"Expected {results.MANIFEST} beside {read.path}, with the scheme of its radii, got none.")
    if any(row.radius_published is None for row in read.rows):
        raise ValueError(f"Expected all columns in {read.path}, with radius_published, got only six.")
    stored = read.manifest["guarantee"]
    if "subsampled_from" in stored:
        raise ValueError(
            f"Expected a run's own votes in {read.path}, got {stored['n']} of each image's "
            f"{stored['subsampled_from']}: audit the run that they were drawn from."
        )
    if "k" in stored:
        raise ValueError(
            f"Expected radii of the predicted class in {read.path}, got those of the true class among the "
            f"{stored['k']} likeliest: audit the run itself."
        )
    plan, seed = sampling_plans.from_description(stored), results.seed_of(stored, read.path)
    settings = certification.Settings(plan, stored["alpha"], seed, stored["certificate"])
    certification.check_fits(classifier, dataset)
    scheme = user_schemes.of_results(stored, scheme=scheme)
    made = certification.describe_guarantee(classifier, scheme, dataset, indices, settings)
    # What its votes rest on, and the norm that its radii are stated in: neither is the network's.
    paired = {name: stored[name] for name in ("paired", "norm") if name in stored}
    changed = results.guarantee_differences(stored, json_values.as_json(made) | paired, flags(networks(read.manifest)))
    if changed:
        raise ValueError(f"Expected the classifier and data that {read.path} was made with, got {changed}.")
    certification.check_rows(dataset, read)
    return stored, scheme


class _Images:
    """The adversarial images of an audit, at most so many, in a file that is written anew with each."""

    def __init__(self, folder: Path, most: int, done: set[int]) -> None:
        self._path, self._most = folder / audit_rows.IMAGES, most
        try:
            stored = audit_rows.read_images(folder)
        except ValueError as error:
            raise ValueError(f"{error} Remove it to go on without them.") from None
        known = [i for i, idx in enumerate(stored.get("idx", ())) if int(idx) in done]
        self._held = {name: [stored[name][i] for i in known] for name in audit_rows.IMAGE_ARRAYS}

    def add(self, row: Row, search: Search) -> None:
        """Keep an image's nearest break, if there is one and room for it."""
        found = search.nearest
        if found is None or len(self._held["idx"]) >= self._most:
            return
        values = (row.idx, row.predict, found.rival, found.distance, found.image, search.image)
        for name, value in zip(audit_rows.IMAGE_ARRAYS, values, strict=True):
            self._held[name].append(value)
        stream = io.BytesIO()
        arrays: Json = {name: np.asarray(values) for name, values in self._held.items()}
        np.savez_compressed(stream, **arrays)
        files.write_bytes(self._path, stream.getvalue())
