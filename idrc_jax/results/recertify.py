"""Recompute the certificates of stored votes, offline and without JAX: at another alpha, by another certificate, in
another norm, or as if fewer votes had been drawn.

The error probability, the certificate and the number of votes belong to the plan: choose them before looking at the
radii.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from idrc_jax import certificates, several_levels
from idrc_jax.certificates import (
    INCREMENTAL,
    TOP_K,
    Certificate,
    LevelVotes,
    Pairs,
    confidence_bounds,
    norms,
    sampling_plans,
    schemes,
    user_schemes,
)
from idrc_jax.certificates.sampling_plans import Plan
from idrc_jax.certificates.schemes import L1, Gaussian, InverseSqrtNorm, Scheme
from idrc_jax.core import normal_thresholds, validate
from idrc_jax.core.json_values import Json, as_json
from idrc_jax.results import result_rows
from idrc_jax.results.manifest import MANIFEST, Manifest, seed_of
from idrc_jax.results.result_rows import Results, Row

_FOLLOW = ("p_lower", "predict", "radius_published", "radius", "sigma_x")  # from the votes
_TOLERANCE = 1e-6  # of what follows, on machines that compute a little differently
_WITHOUT_NOISE = {"p_lower": 0.0, "predict": confidence_bounds.ABSTAIN, "radius_published": 0.0, "radius": 0.0}


def read_results(path: str | Path) -> Results:
    """Read a result file of this project, or a six-column log of another.

    Args:
      path: the file, or a run's folder. In six-column logs `time` is seconds or h:mm:ss, after days if there are any,
        and `correct` may be True or False.

    Rows whose `correct` contradicts label and predict, as in logs that write a running total there or 1 for an
    abstention, get the one that follows from these (`is_correct`), and a warning counts them. A last line without its
    newline, in a file of this project, was cut off by a crash: it is left out with a warning.

    Raises:
      ValueError: no such file, an unknown header, a malformed line (named), an index that comes twice, rows of another
        noise level, another number of samples or another plan than those of the manifest beside them, or a row whose
        prediction, bound or radius is not what its votes give.

    Guarantee: what is certified follows from the votes in the file, to a millionth; of the valid radii of `l1` and
    `inverse_sqrt_norm`, which take long to compute, that they are no larger than those of constant noise of the row's
    level; and of a scheme of the user's own that nothing is certified where no noise was drawn.
    """
    read = result_rows.read_rows(path)
    check(read)
    return read


def recertify(
    read: Results,
    *,
    alpha: float | None = None,
    certificate: str | None = None,
    n: int | None = None,
    scheme: Scheme | None = None,
    k: int | None = None,
    norm: str | None = None,
) -> Results:
    """The same votes, certified anew.

    Args:
      read: a result file of this project, with its manifest.
      alpha, certificate: instead of the file's own.
      n: fewer votes of each image than the file has, drawn from them without replacement: always the same ones for the
        run's seed, the image and both numbers (by one release of NumPy). Of votes so drawn none are drawn again, which
        by a number between would give other ones.
      scheme: the user's own that the votes were drawn under; None for one of this package.
      k: certify that the true class is among the k likeliest, 1 <= k < K (see `certificates.top_k`): `predict` is then
        the label where that is certain of the image itself, else -1, and `p_lower` bounds the label's probability.

      norm: state the radii in this one, "l1", "l2" or "linf" (see `norms.stated`), instead of the file's.

    Returns:
      Rows with new `predict`, `radius`, `radius_published`, `correct` and `p_lower`, and the manifest that says so.
      With fewer votes `n`, `votes` and, where these choose the class, `selected` are new, too, and the manifest has
      `subsampled_from`, so that no certification goes on from such rows.

    Raises:
      ValueError: another project's file, votes that do not fit the manifest, a certificate that the scheme or the plan
        has not, or any other one of an incremental run, whose votes are another network's; k and a certificate, or k
        and images without labels; a scheme that is not the file's; another n than 1 to the file's, one that certifies
        nothing, or one for a part of a run's votes or an adaptive plan: where that stopped depends on the order of the
        votes, which is not stored.

    Guarantee: the numbers are those that certification itself would have written, to the last digit; under a cascade
    or a router those of the votes that are there, which at another alpha might have been of more or fewer levels. With
    fewer votes they have the law of a run that drew so few: votes are independent and alike, so which of them are taken
    does not matter as long as their counts do not decide it.
    """
    if read.manifest is None:
        raise ValueError(f"Expected {MANIFEST} beside {read.path}, with the scheme of its votes, got none.")
    made = read.manifest["guarantee"]
    made = _terms(made, alpha, certificate, k, norm, read)
    plan = sampling_plans.from_description(made)
    scheme = user_schemes.of_results(made, scheme=scheme)
    bounds = several_levels.bounds_of_results(made)
    if bounds is not None:
        return Results(_levelled_rows(read, made, bounds, n), {**read.manifest, "guarantee": made}, read.path)
    votes = counts(read)
    selected = np.asarray([row.selected for row in read.rows], np.int64)
    if n is not None and n != plan.n:
        if "subsampled_from" in made:
            raise ValueError(
                f"Expected all votes of a run, to take {n} of them, got {made['n']} drawn from "
                f"{made['subsampled_from']} in {read.path}: take them from the run itself."
            )
        plan = _shorter(plan, n, made["alpha"], read.path)
        made = {**made, "subsampled_from": made["n"], "n": plan.n}
        seed = seed_of(made, read.path)
        drawn = [_drawn(own, n, seed, row.idx) for own, row in zip(votes, read.rows, strict=True)]
        votes = np.reshape(drawn, votes.shape).astype(np.int64)
        if not plan.selection:
            selected = np.asarray([confidence_bounds.select(own) for own in votes], np.int64)
    found = certificates_of(
        made,
        scheme,
        np.asarray([row.statistic for row in read.rows], np.float64),
        selected,
        votes,
        labels=np.asarray([row.label for row in read.rows], np.int64),
        lost=_lost(read, selected) if made["certificate"] == INCREMENTAL else (),
    )
    for new, old in zip(found, read.rows, strict=True):
        if new.sigma_x != old.sigma_x:
            raise ValueError(
                f"Expected sigma_x = {new.sigma_x} at image {old.idx} of {read.path}, from its statistic and the "
                f"manifest's scheme, got {old.sigma_x}."
            )
    rows = [
        Row.from_certificate(new, old.idx, old.label, old.time, old.differing)
        for new, old in zip(found, read.rows, strict=True)
    ]
    manifest: Manifest = {**read.manifest, "guarantee": made}
    return Results(tuple(rows), manifest, read.path)


def certificates_of(
    made: Json,
    scheme: Scheme,
    statistic: np.ndarray,
    selected: np.ndarray,
    votes: np.ndarray,
    *,
    labels: np.ndarray,
    lost: np.ndarray | Sequence[int] = (),
) -> list[Certificate]:
    """`certificates.from_votes` under the settings `made`, a manifest's guarantee."""
    found = certificates.from_votes(
        scheme,
        statistic,
        selected,
        votes,
        plan=sampling_plans.from_description(made),
        alpha=made["alpha"],
        dim=made["dim"],
        certificate=made["certificate"],
        labels=labels,
        k=made.get("k", 1),
        lost=lost,
        pairs=Pairs(made["paired"]["n"], made["paired"]["share"]) if "paired" in made else None,
    )
    return [one.in_norm(made.get("norm", "l2"), made["dim"]) for one in found]


def check(read: Results) -> None:
    """ValueError unless what a file's rows say is what their votes give."""
    made = read.manifest["guarantee"] if read.manifest else {}
    if not made:
        return
    if user_schemes.is_own(made):
        counts(read)
        names, anew = (), read.rows
    elif isinstance(schemes.from_description(made), L1 | InverseSqrtNorm):
        names, anew = _FOLLOW[:3], _as_gaussian(read, made)
    else:
        names, anew = _FOLLOW, recertify(read).rows
    for new, old in zip(anew, read.rows, strict=True):
        expected = {name: getattr(new, name) for name in names} if old.sigma_x else _WITHOUT_NOISE
        for name, one in expected.items():
            other = getattr(old, name)
            if not (math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-12) or math.isnan(other)):
                raise ValueError(
                    f"Expected {name} = {one} of image {old.idx} in {read.path}, from its votes, got {other}: the row "
                    "was changed."
                )
        if old.radius > new.radius * (1 + _TOLERANCE) + 1e-12:
            raise ValueError(
                f"Expected radius <= {new.radius} of image {old.idx} in {read.path}, that of constant noise of its "
                f"level, got {old.radius}: the row was changed."
            )


def _as_gaussian(read: Results, made: Json) -> list[Certificate]:
    """Of a scheme whose noise is normal with a level that changes: the rows' bounds and predictions, and the radii that
    they would have if their level were constant, which are no smaller."""
    selected = np.asarray([row.selected for row in read.rows], np.int64)
    plain = certificates_of(
        made,
        Gaussian(sigma=1.0),
        np.zeros(len(read.rows)),
        selected,
        counts(read),
        labels=selected,
        lost=_lost(read, selected) if made["certificate"] == INCREMENTAL else (),
    )
    level = np.asarray([row.sigma_x for row in read.rows], np.float64)
    p_lower = np.asarray([one.p_lower for one in plain])
    if made.get("exact"):
        p_lower = np.maximum(p_lower - normal_thresholds.total_variation(level, made["dim"]), 0.0)
    radius = certificates.published_radius(Gaussian(sigma=1.0), p_lower)
    radii = norms.stated([level * radius, made["sigma"] * radius], "l2", made.get("norm", "l2"), made["dim"])
    return [
        replace(
            one,
            predict=one.selected if p > 0.5 else confidence_bounds.ABSTAIN,
            radius=float(most),
            radius_published=float(published),
            p_lower=float(p),
        )
        for one, p, most, published in zip(plain, p_lower, *radii, strict=True)
    ]


def _terms(
    made: Json, alpha: float | None, certificate: str | None, k: int | None, norm: str | None, read: Results
) -> Json:
    """The guarantee with what is to be another, or ValueError."""
    if k is not None:
        if certificate is not None:
            raise ValueError(f"Expected a certificate or k, got {certificate} and k = {k}.")
        if not read.labelled:
            raise ValueError(f"Expected labels in {read.path} for k = {k}, which is about the true class, got -1.")
        if not 1 <= validate.integer("k", k) < made["classes"]:
            raise ValueError(f"Expected k from 1 to {made['classes'] - 1} of {made['classes']} classes, got {k}.")
        certificate = TOP_K
    if certificate is None:
        certificate = made["certificate"]
    elif made["certificate"] == INCREMENTAL:
        raise ValueError(
            f"Expected a network's own votes for another certificate, got {read.path}, whose votes are those of the "
            "network that it was paired with."
        )
    elif k is None:
        validate.one_of("certificate", certificate, certificates.CERTIFICATES)
        made = {name: value for name, value in made.items() if name != "k"}
    alpha = made["alpha"] if alpha is None else validate.in_open_unit_interval("alpha", alpha)
    terms = {"alpha": alpha, "certificate": certificate}
    if norm is not None:
        terms["norm"] = validate.one_of("norm", norm, norms.EXPONENTS)
    return made | as_json(terms | ({} if k is None else {"k": int(k)}))


def _lost(read: Results, selected: np.ndarray) -> np.ndarray:
    """int [rows]: pairs of an incremental run in which the network of the votes alone gave the selected class."""
    if any(row.differing is None for row in read.rows):
        raise ValueError(f"Expected the column differing in {read.path}, as its manifest is of paired votes, got none.")
    lost = [(row.differing or {}).get(int(own), 0) for own, row in zip(selected, read.rows, strict=True)]
    return np.asarray(lost, np.int64)


def _levelled_rows(read: Results, made: Json, bounds: several_levels.Bounds, n: int | None) -> tuple[Row, ...]:
    """The rows of a scheme of several levels, whose votes decide under which there are more."""
    certificates.check_certificate(made["certificate"], bounds.scheme, bounds.plan)
    if n is not None and n != bounds.plan.n:
        raise ValueError(
            f"Expected a scheme of one level to take fewer votes, got {bounds.scheme.name} in {read.path}: to which "
            "levels fewer votes would have gone on is not stored."
        )
    rows, looks = [], set(bounds.plan.looks())
    for row in read.rows:
        if not row.votes_by_level:
            raise ValueError(f"Expected votes_by_level of image {row.idx} of {read.path}, got none.")
        drawn = []
        for one in row.votes_by_level:
            classes = bounds.classes(one.level, made["classes"])
            votes = _votes(one.votes, sum(one.votes.values()), row.idx, classes, looks, read.path)
            drawn.append(LevelVotes(one.level, one.selected, votes))
        found = several_levels.certificate(bounds, drawn).in_norm(made.get("norm", "l2"), made["dim"])
        rows.append(Row.from_certificate(found, row.idx, row.label, row.time))
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


def counts(read: Results) -> np.ndarray:
    """The votes of all rows, int [rows, K + 1]; ValueError for votes that do not fit the manifest."""
    made = read.manifest["guarantee"] if read.manifest else {}
    looks = set(sampling_plans.from_description(made).looks())
    found = [_votes(row.votes or {}, row.n, row.idx, made["classes"], looks, read.path) for row in read.rows]
    return np.asarray(found, np.int64).reshape(-1, made["classes"] + 1)


def _votes(
    votes: Mapping[int, int], n: int | None, idx: int, classes: int, looks: Container[int | None], path: Path
) -> tuple[int, ...]:
    """One count a class, then those whose logits were not finite; ValueError unless they are n in all, a look's."""
    counts = tuple(votes.get(number, 0) for number in (*range(classes), -1))
    if n is None or sum(counts) != n or sum(votes.values()) != n or n not in looks:
        raise ValueError(
            f"Expected {n} votes for {classes} classes at image {idx} of {path}, got {sum(votes.values())}, {votes}: "
            "the file was changed, or is of other settings."
        )
    return counts
