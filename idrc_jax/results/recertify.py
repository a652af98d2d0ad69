"""Recompute the certificates of stored votes, offline and without JAX: at another alpha, by another certificate, or as
if fewer votes had been drawn.

The error probability, the certificate and the number of votes belong to the plan: choose them before looking at the
radii.
"""

from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from idrc_jax import certificates
from idrc_jax.certificates import LevelVotes, cascade, confidence_bounds, sampling_plans, user_schemes
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core import validate
from idrc_jax.core.json_values import Json, as_json
from idrc_jax.results.manifest import MANIFEST, Manifest
from idrc_jax.results.result_rows import Results, Row


def recertify(
    read: Results,
    *,
    alpha: float | None = None,
    certificate: str | None = None,
    n: int | None = None,
    scheme: Scheme | None = None,
) -> Results:
    """The same votes, certified anew.

    Args:
      read: a result file of this project, with its manifest.
      alpha, certificate: instead of the file's own.
      n: fewer votes of each image than the file has, drawn from them without replacement: always the same ones for the
        run's seed, the image and both numbers (by one release of NumPy). Of votes so drawn none are drawn again, which
        by a number between would give other ones.
      scheme: the user's own that the votes were drawn under; None for one of this package.

    Returns:
      Rows with new `predict`, `radius`, `radius_published`, `correct` and `p_lower`, and the manifest that says so.
      With fewer votes `n`, `votes` and, where these choose the class, `selected` are new, too, and the manifest has
      `subsampled_from`, so that no certification goes on from such rows.

    Raises:
      ValueError: another project's file, votes that do not fit the manifest, a certificate that the scheme has not, or
        a scheme that is not the file's; another n than 1 to the file's, one that certifies nothing, or one for a part
        of a run's votes or an adaptive plan: where that stopped depends on the order of the votes, which is not stored.

    Guarantee: the numbers are those that certification itself would have written, to the last digit; under a cascade
    those of the votes that are there, which at another alpha might have been of more or fewer levels. With fewer votes
    they have the law of a run that drew so few: votes are independent and alike, so which of them are taken does not
    matter as long as their counts do not decide it.
    """
    if read.manifest is None:
        raise ValueError(f"Expected {MANIFEST} beside {read.path}, with the scheme of its votes, got none.")
    made = read.manifest["guarantee"]
    chosen = as_json({"alpha": alpha, "certificate": certificate})
    made = made | {name: value for name, value in chosen.items() if value is not None}
    plan = sampling_plans.from_description(made)
    bounds = cascade.bounds_of_results(made)
    if bounds is not None:
        return Results(_cascade_rows(read, made, bounds, n), {**read.manifest, "guarantee": made}, read.path)
    looks = set(plan.looks())
    votes = np.asarray([_votes(row.votes or {}, row.n, row.idx, made, looks, read.path) for row in read.rows]).reshape(
        -1, made["classes"] + 1
    )
    selected = np.asarray([row.selected for row in read.rows], np.int64)
    if n is not None and n != plan.n:
        if "subsampled_from" in made:
            raise ValueError(
                f"Expected all votes of a run, to take {n} of them, got {made['n']} drawn from "
                f"{made['subsampled_from']} in {read.path}: take them from the run itself."
            )
        plan = _shorter(plan, n, made["alpha"], read.path)
        made = {**made, "subsampled_from": made["n"], "n": plan.n}
        votes = np.asarray([_drawn(own, n, made["seed"], row.idx) for own, row in zip(votes, read.rows, strict=True)])
        if not plan.selection:
            selected = np.asarray([confidence_bounds.select(own) for own in votes], np.int64)
    found = certificates.from_votes(
        scheme or user_schemes.of_results(made),
        np.asarray([row.statistic for row in read.rows], np.float64),
        selected,
        votes,
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


def _cascade_rows(read: Results, made: Json, bounds: cascade.Bounds, n: int | None) -> tuple[Row, ...]:
    """The rows of a cascade, whose levels decide by their votes whether there are more."""
    certificates.check_certificate(made["certificate"], bounds.scheme, bounds.plan)
    if n is not None and n != bounds.plan.n:
        raise ValueError(
            f"Expected a scheme of one level to take fewer votes, got {bounds.scheme.name} in {read.path}: to which "
            "levels fewer votes would have gone on is not stored."
        )
    rows, looks = [], set(bounds.plan.looks())
    for row in read.rows:
        drawn = []
        for one in row.votes_by_level or ():
            votes = _votes(one.votes, sum(one.votes.values()), row.idx, made, looks, read.path)
            drawn.append(LevelVotes(one.level, one.selected, votes))
        rows.append(Row.from_certificate(cascade.certificate(bounds, drawn), row.idx, row.label, row.time))
    return tuple(rows)


def _shorter(plan: Plan, n: int, alpha: float, path: Path) -> Plan:
    """The same plan with fewer votes, or ValueError."""
    validate.count("n", n, 1)
    if n > plan.n:
        raise ValueError(f"Expected n <= {plan.n}, the votes of each image in {path}, got {n}.")
    if plan.adaptive:
        raise ValueError(
            f"Expected the plan fixed or selection_free to take fewer votes, got {plan.name} in {path}: where that "
            "stops on an image depends on the order of its votes, which is not stored."
        )
    shorter = replace(plan, n=n)
    shorter.check(alpha)
    return shorter


def _drawn(votes: np.ndarray, n: int, seed: int, idx: int) -> np.ndarray:
    """Counts of n of an image's votes [K + 1], drawn without replacement."""
    generator = np.random.default_rng([seed, idx, int(np.sum(votes)), n])
    return generator.multivariate_hypergeometric(votes, n)


def _votes(
    votes: Mapping[int, int], n: int | None, idx: int, made: Json, looks: Container[int], path: Path
) -> tuple[int, ...]:
    """One count a class, then those whose logits were not finite; ValueError unless they are n in all, a look's."""
    counts = tuple(votes.get(number, 0) for number in (*range(made["classes"]), -1))
    if n is None or sum(counts) != n or sum(votes.values()) != n or n not in looks:
        raise ValueError(f"Expected {n} votes for {made['classes']} classes at image {idx} of {path}, got {votes}.")
    return counts
