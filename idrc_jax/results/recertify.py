"""Recompute the certificates of stored votes, offline and without JAX: at another alpha, or by another certificate.

The error probability and the certificate belong to the plan: choose them before looking at the radii.
"""

from pathlib import Path

import numpy as np

from idrc_jax import certificates
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.core.json_values import Json
from idrc_jax.results.manifest import MANIFEST, Manifest
from idrc_jax.results.result_rows import Results, Row


def recertify(read: Results, *, alpha: float | None = None, certificate: str | None = None) -> Results:
    """The same votes, certified anew.

    Args:
      read: a result file of this project, with its manifest.
      alpha, certificate: instead of the file's own.

    Returns:
      Rows with new `predict`, `radius`, `radius_published`, `correct` and `p_lower`, and the manifest that says so.

    Raises:
      ValueError: another project's file, votes that do not fit the manifest, or a certificate that the scheme has not.

    Guarantee: the numbers are those that certification itself would have written, to the last digit.
    """
    if read.manifest is None:
        raise ValueError(f"Expected {MANIFEST} beside {read.path}, with the scheme of its votes, got none.")
    made = read.manifest["guarantee"]
    chosen = {"alpha": alpha, "certificate": certificate}
    made = made | {name: value for name, value in chosen.items() if value is not None}
    plan = sampling_plans.from_description(made)
    looks = set(plan.looks())
    found = certificates.from_votes(
        schemes.from_description(made),
        np.asarray([row.statistic for row in read.rows], np.float64),
        np.asarray([row.selected for row in read.rows], np.int64),
        np.asarray([_votes(row, made, looks, read.path) for row in read.rows]).reshape(-1, made["classes"] + 1),
        plan=plan,
        alpha=made["alpha"],
        dim=made["dim"],
        certificate=made["certificate"],
    )
    for new, old in zip(found, read.rows, strict=True):
        if new.sigma_x != old.sigma_x:
            raise ValueError(
                f"Expected sigma_x = {new.sigma_x} at image {old.idx} of {read.path}, from its statistic and the "
                f"manifest's scheme, got {old.sigma_x}."
            )
    rows = [Row.from_certificate(new, old.idx, old.label, old.time) for new, old in zip(found, read.rows, strict=True)]
    manifest: Manifest = {**read.manifest, "guarantee": made}
    return Results(tuple(rows), manifest, read.path)


def _votes(row: Row, made: Json, looks: set[int], path: Path) -> list[int]:
    votes = row.votes or {}
    counts = [votes.get(number, 0) for number in (*range(made["classes"]), -1)]
    if sum(counts) != row.n or sum(votes.values()) != row.n or row.n not in looks:
        raise ValueError(
            f"Expected {row.n} votes for {made['classes']} classes at image {row.idx} of {path}, got {votes}."
        )
    return counts
