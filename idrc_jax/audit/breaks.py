"""What votes at an image say about how the certified class loses there: the likeliest way, and its exact p-value.

Under most schemes the class A loses to another one, B, that is likelier; a way is that class. A cascade gives another
answer than A where, up to some level s, no level is sure of A, and s is sure of B; or where no level is sure of A at
all. So a way is s and B, as the number s * K + B, s from 0 to the number of levels. Under a router it is the level s
that the router chooses and a class B that is likelier there than A.

Guarantee: under "this way is not taken" the p-value is at most t with probability at most t. For a cascade that is a
union: some level below s is sure of A, P_k(A) > t_k, or s is not sure of B, P_s(B) <= t_s. Each has its exact binomial
p-value, and the largest of them is at most t only if that of the one that is true is (intersection-union test). Under a
router the union is: the answer that leads to s has no more than half of the probability, or B is no likelier than A.
Votes of all offsets of `splitting` are the truth: the p-value is 0 where A is not its answer, else 1. No answer, where
no vote is for a class, is not A: a certificate says that A keeps votes.
"""

import numpy as np
from scipy import stats

from idrc_jax.audit import significance
from idrc_jax.certificates import confidence_bounds
from idrc_jax.certificates.level_schemes import Cascade, Routed
from idrc_jax.certificates.schemes import Scheme, Splitting
from idrc_jax.several_levels import routed


def likeliest(scheme: Scheme, votes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The way in which each class loses most probably, and how clearly: above 1/2 it does, by these votes.

    Args:
      votes: int [M, levels, K + 1].
      classes: int [M], certified.

    Returns:
      ways int [M], and shares float64 [M]: the rival's of the votes for either class, 0 where there are none; under a
      cascade 1/2 and by how much the least clear of the shares that the way needs is on the other side of its level's
      threshold; under a router the smaller of the share of the router's answer and the rival's.
    """
    if isinstance(scheme, Routed):
        return _likeliest_of_router(votes, classes)
    if not isinstance(scheme, Cascade):
        return strongest_rivals(votes[:, 0], classes)
    rows, last = np.arange(len(votes)), len(scheme.levels)
    thresholds = np.asarray([*scheme.thresholds, 0.5])
    rivals = np.stack([strongest_rivals(votes[:, level], classes)[0] for level in range(last)], axis=1)
    shares = votes / np.maximum(votes.sum(axis=-1, keepdims=True), 1)
    unsure = thresholds - shares[rows, :, classes]
    sure = np.stack([shares[rows, level, rivals[:, level]] for level in range(last)], axis=1) - thresholds
    before = np.minimum.accumulate(np.concatenate([np.ones((len(votes), 1)), unsure], axis=1), axis=1)
    excess = np.minimum(before, np.concatenate([sure, np.ones((len(votes), 1))], axis=1))
    level = np.argmax(excess, axis=1)
    rival = rivals[rows, np.minimum(level, last - 1)]
    some = votes.sum(axis=(1, 2)) > 0
    return level * (votes.shape[-1] - 1) + rival, np.where(some, 0.5 + excess[rows, level], 0.0)


def p_value(scheme: Scheme, votes: np.ndarray, predict: int, way: int) -> tuple[float, int]:
    """That of fresh votes int [levels, K + 1] for a way chosen beforehand, and the level whose votes decide it."""
    last, (level, rival) = len(votes) - 1, divmod(way, votes.shape[-1] - 1)
    if isinstance(scheme, Splitting):
        return float(confidence_bounds.select(votes[0]) == predict), 0
    if isinstance(scheme, Routed):
        router = votes[routed.ROUTER]
        found = [
            float(stats.binom.sf(router[level - 1] - 1, np.sum(router), 0.5)),
            significance.break_p_value(votes[level], predict, rival),
        ]
        return max(found), level if found[1] >= found[0] else routed.ROUTER
    if not isinstance(scheme, Cascade):
        return significance.break_p_value(votes[0], predict, rival), 0
    thresholds, n = (*scheme.thresholds, 0.5), votes.sum(axis=-1)
    found = [float(stats.binom.cdf(votes[k, predict], n[k], thresholds[k])) for k in range(level)]
    if level <= last:
        found.append(float(stats.binom.sf(votes[level, rival] - 1, n[level], thresholds[level])))
    worst = int(np.argmax(found))
    return found[worst], worst


def _likeliest_of_router(votes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`likeliest` under a router, whose votes are those of level 0."""
    levels = range(routed.ROUTER + 1, votes.shape[1])
    rivals, lost = np.stack([strongest_rivals(votes[:, level], classes) for level in levels], axis=-1)
    router = votes[:, routed.ROUTER, : len(levels)] / np.maximum(votes[:, routed.ROUTER].sum(axis=-1, keepdims=True), 1)
    shares = np.minimum(router, lost)
    chosen, rows = np.argmax(shares, axis=1), np.arange(len(votes))
    ways = (chosen + routed.ROUTER + 1) * (votes.shape[-1] - 1) + rivals[rows, chosen].astype(int)
    return ways, shares[rows, chosen]


def strongest_rivals(votes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest rival of each class, and its share of the votes for either, 0 where there are none: [M] each.

    Args:
      votes: int [M, K + 1].
      classes: int [M].
    """
    own = np.take_along_axis(votes[:, :-1], classes[:, None], axis=1)[:, 0]
    others = votes[:, :-1].copy()
    np.put_along_axis(others, classes[:, None], -1, axis=1)
    rivals, most = np.argmax(others, axis=1), np.max(others, axis=1)
    return rivals, most / np.maximum(own + most, 1)
