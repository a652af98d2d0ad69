"""What votes say about probabilities: exact binomial bounds and tests, in float64 with SciPy.

Votes are integer arrays [K + 1]: one count for each of K classes, then the votes whose logits were not all
finite, which belong to no class and still count in n.
"""

from typing import Any

import numpy as np
from scipy import special, stats

from idrc_jax import _validate

ABSTAIN = -1

# SciPy's inverse incomplete beta function is good to about 1e-14; bounds move outwards by 2**-40 (9e-13) of
# themselves, so that they err to the safe side. A test holds them against 50-digit arithmetic.
_MARGIN = 2.0**-40


def clopper_pearson_lower(k: Any, n: Any, alpha: Any) -> Any:
    """Lower confidence bound on a binomial proportion (Clopper and Pearson 1934).

    Args:
      k: successes, 0 <= k <= n; scalar or array.
      n: trials, >= 1; broadcasts with k.
      alpha: error probability in (0, 1).

    Returns:
      float64 of the broadcast shape, in [0, 1): Beta^-1(alpha; k, n - k + 1), 0 at k = 0, rounded down.

    Guarantee: for every p, P(lower(K, n, alpha) <= p) >= 1 - alpha for K ~ Binomial(n, p).
    """
    k, n = _counts(k, n, alpha)
    with np.errstate(invalid="ignore"):
        bound = special.betaincinv(np.maximum(k, 1), n - k + 1, alpha)
    return np.where(k == 0, 0.0, bound * (1 - _MARGIN))[()]


def clopper_pearson_upper(k: Any, n: Any, alpha: Any) -> Any:
    """Upper confidence bound on a binomial proportion: Beta^-1(1 - alpha; k + 1, n - k), 1 at k = n, rounded up.

    Arguments as for `clopper_pearson_lower`, to which it is the mirror image.

    Guarantee: for every p, P(upper(K, n, alpha) >= p) >= 1 - alpha for K ~ Binomial(n, p).
    """
    k, n = _counts(k, n, alpha)
    bound = special.betainccinv(k + 1, np.maximum(n - k, 1), alpha)
    return np.where(k == n, 1.0, np.minimum(bound * (1 + _MARGIN), 1.0))[()]


def certify_bound(selection: np.ndarray, estimation: np.ndarray, alpha: float) -> tuple[int, float]:
    """CERTIFY's two steps (Cohen et al. 2019): choose a class, bound its probability by fresh votes.

    Args:
      selection: int [K + 1], the n0 votes that choose.
      estimation: int [K + 1], the n votes that bound; of other samples than `selection`.
      alpha: error probability of the bound.

    Returns:
      The class with the most selection votes (the lowest on a tie; `ABSTAIN` when no vote was for a class) and
      the lower bound on its probability (0 then).
    """
    if not np.any(selection[:-1]):
        return ABSTAIN, 0.0
    selected = int(np.argmax(selection[:-1]))
    return selected, float(clopper_pearson_lower(estimation[selected], np.sum(estimation), alpha))


def predict(votes: np.ndarray, alpha: float) -> int:
    """PREDICT (Cohen et al. 2019): the class with the most votes, or `ABSTAIN`.

    Abstains when the two-sided exact binomial test of top against runner-up has a p-value above alpha, or
    when no vote was for a class.

    Guarantee: with probability at least 1 - alpha over the votes, the smoothed classifier's class or `ABSTAIN`.
    """
    _validate.in_open_unit_interval("alpha", alpha)
    classes = np.asarray(votes)[:-1]
    order = np.argsort(-classes, kind="stable")
    top = int(classes[order[0]])
    runner_up = int(classes[order[1]]) if len(classes) > 1 else 0
    if top == 0 or stats.binomtest(top, top + runner_up, 0.5).pvalue > alpha:
        return ABSTAIN
    return int(order[0])


def smallest_n(alpha: float) -> int:
    """The fewest votes that, all for one class, give a lower bound above 1/2: the fewest that certify anything."""
    _validate.in_open_unit_interval("alpha", alpha)
    n = max(1, int(np.floor(-np.log2(alpha))))
    while clopper_pearson_lower(n, n, alpha) <= 0.5:
        n += 1
    return n


def proportion_interval(k: Any, m: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Two-sided Clopper-Pearson interval of a proportion seen k times in m: (low, high)."""
    tail = (1 - _validate.in_open_unit_interval("confidence", confidence)) / 2
    return clopper_pearson_lower(k, m, tail), clopper_pearson_upper(k, m, tail)


def _counts(k: Any, n: Any, alpha: Any) -> tuple[np.ndarray, np.ndarray]:
    k, n = np.asarray(k), np.asarray(n)
    if not (np.all(n >= 1) and np.all(k >= 0) and np.all(k <= n)):
        raise ValueError(f"Expected counts 0 <= k <= n and n >= 1, got k = {k}, n = {n}.")
    if not (np.all(np.asarray(alpha) > 0) and np.all(np.asarray(alpha) < 1)):
        raise ValueError(f"Expected 0 < alpha < 1, got {alpha}.")
    return k, n
