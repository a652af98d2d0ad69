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


def select(votes: np.ndarray) -> int:
    """The class with the most votes of int [K + 1], the lowest on a tie; `ABSTAIN` when no vote was for a class."""
    return int(np.argmax(votes[:-1])) if np.any(votes[:-1]) else ABSTAIN


def lower_bound(selected: int, votes: np.ndarray, alpha: float) -> float:
    """CERTIFY's second step (Cohen et al. 2019): a lower bound on the probability of a class chosen beforehand.

    Args:
      selected: the class, chosen by other votes (`select`); `ABSTAIN` has the bound 0.
      votes: int [K + 1].
      alpha: error probability of the bound.
    """
    return 0.0 if selected == ABSTAIN else float(clopper_pearson_lower(votes[selected], np.sum(votes), alpha))


def simultaneous_bounds(selected: int, votes: np.ndarray, alpha: float) -> tuple[float, float]:
    """Bounds (p_lower of a class chosen beforehand, p_upper of every other class) that hold at once.

    Each of the K bounds has error probability alpha / K. `ABSTAIN` has the bounds (0, 1).

    Guarantee: with probability at least 1 - alpha all K hold (Bonferroni).
    """
    classes = len(votes) - 1
    if classes < 2:
        raise ValueError(f"Expected at least 2 classes for bounds on the others, got {classes}.")
    if selected == ABSTAIN:
        return 0.0, 1.0
    rival = int(np.max(np.delete(votes[:-1], selected)))
    return (
        lower_bound(selected, votes, alpha / classes),
        float(clopper_pearson_upper(rival, np.sum(votes), alpha / classes)),
    )


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
