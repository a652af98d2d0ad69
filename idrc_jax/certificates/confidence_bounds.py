"""What votes say about probabilities: exact binomial bounds and tests, in float64 with SciPy.

Votes are integer arrays [K + 1]: one count for each of K classes, then the votes whose logits were not all
finite, which belong to no class and still count in n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from idrc_jax.core import validate

ABSTAIN = -1

Numbers = Any  # float64: a scalar where all arguments are scalars, else an array of their broadcast shape

# Bounds move outwards by 2**-40 (9e-13) of themselves, so that they err to the safe side: SciPy's inverse incomplete
# beta function is good to 3e-13 up to n = 10^5. Beyond it loses at most 7e-18 a vote, seen up to 10^8, and they move by
# more for each. Tests hold them against 50-digit arithmetic. `log_wealth` errs by less than 1e-9, then by 4e-15 a vote.
_MARGIN, _MARGIN_A_VOTE = 2.0**-40, 2.0**-54
_ERROR, _ERROR_A_VOTE = 1e-9, 2.0**-46
_MANY = 100_000

# The class's share of alpha in `rival_bounds`: its radius is then never less than the one-sided one at 4/5 of alpha.
OF_CLASS = 0.8


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Numbers:
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
    return np.where(k == 0, 0.0, bound * (1 - _margin(n)))[()]


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> Numbers:
    """Upper confidence bound on a binomial proportion: Beta^-1(1 - alpha; k + 1, n - k), 1 at k = n, rounded up.

    Arguments as for `clopper_pearson_lower`, to which it is the mirror image.

    Guarantee: for every p, P(upper(K, n, alpha) >= p) >= 1 - alpha for K ~ Binomial(n, p).
    """
    k, n = _counts(k, n, alpha)
    bound = special.betainccinv(k + 1, np.maximum(n - k, 1), alpha)
    return np.where(k == n, 1.0, np.minimum(bound * (1 + _margin(n)), 1.0))[()]


@dataclass(frozen=True)
class Pairs:
    """A bound on a variant's class probability from another network's votes and pairs of both on the same noise.

    After Ugare et al. (2024): a network f' differs little from f, whose votes are there already. The pairs are drawn on
    noise of their own, after f's votes have chosen the class A. With p a lower bound on P(f = A) and zeta an upper
    bound on P(f = A, f' != A), P(f' = A) is at least p - zeta: noise on which f' answers A and f does not only adds.

    Attributes:
      n: pairs of each image.
      share: of alpha, for the bound on the difference; the rest is for the bound on f's probability. Half of it costs
        either bound a factor of two in its error, which is little of a bound that grows with the logarithm of it.
    """

    n: int = 10_000
    share: float = 0.5

    def __post_init__(self) -> None:
        validate.count("n", self.n, 1)
        validate.in_open_unit_interval("share", self.share)

    def lower(
        self,
        of_network: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
        own: np.ndarray,
        n: np.ndarray,
        lost: np.ndarray,
        alpha: float,
    ) -> np.ndarray:
        """Lower bounds [rows] on the probabilities that f' answers each image's class.

        Args:
          of_network: the bound of the plan by which f's votes were drawn (`Plan.lower`).
          own, n: int [rows], f's votes for the class, and all of them.
          lost: int [rows], pairs in which f answers the class and f' does not.
          alpha: error probability of each image.

        Guarantee: for each image, with probability at least 1 - alpha: the bound on f has error (1 - share) * alpha,
        and, the class given, that on the difference has share * alpha, as pairs and votes are independent.
        """
        difference = clopper_pearson_upper(lost, self.n, alpha * self.share)
        return np.maximum(of_network(own, n, alpha * (1 - self.share)) - difference - 2.0**-50, 0.0)


def select(votes: np.ndarray) -> int:
    """The class with the most votes of int [K + 1], the lowest on a tie; `ABSTAIN` when no vote was for a class."""
    return int(np.argmax(votes[:-1])) if np.any(votes[:-1]) else ABSTAIN


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
        float(clopper_pearson_lower(votes[selected], np.sum(votes), alpha / classes)),
        float(clopper_pearson_upper(rival, np.sum(votes), alpha / classes)),
    )


def rival_bounds(chosen: np.ndarray, votes: np.ndarray, alpha: float, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A lower bound of each image's class and upper bounds of its k likeliest rivals, which hold at once.

    Args:
      chosen: int [rows], the classes, chosen without these votes; `ABSTAIN` has the bounds 0 and 1.
      votes: int [rows, K + 1], K > k.
      alpha: error probability of each image: 4/5 for the class, the rest in equal parts for the rivals.

    Returns:
      lower: float64 [rows].
      upper: float64 [rows, k], falling: column i - 1 bounds the probability of the i-th likeliest rival.

    Guarantee: for each image, with probability at least 1 - alpha all k + 1 bounds hold. The k likeliest rivals are
    fixed, though unknown, so k bounds do: of the i likeliest ones' upper bounds the least, which is at most the i-th
    largest of all rivals', is that of a class at least as likely as the i-th.
    """
    rows, classes = np.arange(len(votes)), votes.shape[1] - 1
    if not 1 <= k < classes:
        raise ValueError(f"Expected k from 1 to {classes - 1}, fewer than the {classes} classes, got {k}.")
    n, own = np.sum(votes, axis=1), votes[rows, chosen]
    others = np.array(votes[:, :-1])
    others[rows, chosen] = -1
    most = -np.sort(-others, axis=1)[:, :k]
    some = chosen != ABSTAIN
    lower = np.where(some, clopper_pearson_lower(own, n, alpha * OF_CLASS), 0.0)
    upper = clopper_pearson_upper(np.maximum(most, 0), n[:, None], alpha * (1 - OF_CLASS) / k)
    return lower, np.where(some[:, None], upper, 1.0)


def log_wealth(k: ArrayLike, n: ArrayLike, p: ArrayLike) -> Numbers:
    """Logarithm of the wealth won by betting on more than a share p of successes, after k in n.

    The mixture of all bets on q > p under Jeffreys' law (after Voracek 2024):
    B(k + 1/2, n - k + 1/2) / (B(1/2, 1/2) p^k (1 - p)^(n - k)) * P(X > p) / P(Y > p) for X ~ Beta(k + 1/2, n - k + 1/2)
    and Y ~ Beta(1/2, 1/2).

    Args:
      k, n: counts, 0 <= k <= n; p: in (0, 1). All broadcast.

    Guarantee: for independent successes of probability at most p the wealth is a supermartingale that starts at 1, so
    the probability that it ever reaches 1 / alpha is at most alpha (Ville), however often one looks.
    """
    k, n, p = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (k, n, p)))
    with np.errstate(divide="ignore"):
        return _log_ratio(_log_scale(k, n), k, n, p) + (_log_above(k, n, p) - _log_above(0, 0, p))


def wealth_error(n: ArrayLike) -> Numbers:
    """What `log_wealth` of n votes may be wrong by: what it has to be above its goal, to be there for sure."""
    return _ERROR + _ERROR_A_VOTE * _beyond_many(n)


def betting_lower(k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
    """Lower confidence sequence of a proportion: the smallest p at which `log_wealth` is below log(1 / alpha).

    Arguments as for `clopper_pearson_lower`, with one alpha; rounded down by 1e-9 of itself.

    Guarantee: for every p, P(lower(K_n, n) <= p for all n at once) >= 1 - alpha, K_n the successes among the first n
    independent trials: votes may be looked at as often as one likes, and sampling stopped at any look.
    """
    k, n = np.broadcast_arrays(*_counts(k, n, alpha))
    pairs, rows = np.unique([k.ravel(), n.ravel()], axis=1, return_inverse=True)
    successes, trials = pairs.astype(np.float64)
    found = _largest_rejected(successes, trials, -np.log(alpha) + wealth_error(trials))
    return (found * (1 - 1e-9))[rows.reshape(k.shape)][()]


def betting_upper(k: ArrayLike, n: ArrayLike, alpha: float) -> Numbers:
    """Upper confidence sequence, the mirror image of `betting_lower`."""
    k, n = _counts(k, n, alpha)
    return 1 - betting_lower(n - k, n, alpha)


def predict(votes: np.ndarray, alpha: float) -> int:
    """PREDICT (Cohen et al. 2019): the class with the most votes, or `ABSTAIN`.

    Abstains when the two-sided exact binomial test of top against runner-up has a p-value above alpha, or
    when no vote was for a class.

    Guarantee: with probability at least 1 - alpha over the votes, the smoothed classifier's class or `ABSTAIN`.
    """
    validate.in_open_unit_interval("alpha", alpha)
    classes = np.asarray(votes)[:-1]
    order = np.argsort(-classes, kind="stable")
    top = int(classes[order[0]])
    runner_up = int(classes[order[1]]) if len(classes) > 1 else 0
    if top == 0 or stats.binomtest(top, top + runner_up, 0.5).pvalue > alpha:
        return ABSTAIN
    return int(order[0])


def predict_sequential(votes: np.ndarray, alpha: float) -> int:
    """PREDICT at any number of samples: the class with the most votes, or `ABSTAIN` as long as that is not clear.

    Bets that the top class has more than half of the votes that fall on it or the runner-up, until the wealth is
    (K - 1) / alpha.

    Guarantee: with probability at least 1 - alpha it never names another class than the smoothed classifier's, however
    often the votes are looked at. For it to name class b, b must win the bet against the true class c, too, whose votes
    are no more than the runner-up's; against c it wins with probability at most alpha / (K - 1), and there are K - 1 b.
    """
    validate.in_open_unit_interval("alpha", alpha)
    classes = np.asarray(votes)[:-1]
    order = np.argsort(-classes, kind="stable")
    top = int(classes[order[0]])
    runner_up = int(classes[order[1]]) if len(classes) > 1 else 0
    both = top + runner_up
    if log_wealth(top, both, 0.5) < np.log(max(len(classes) - 1, 1) / alpha) + wealth_error(both):
        return ABSTAIN
    return int(order[0])


def smallest_n(alpha: float) -> int:
    """The fewest votes that, all for one class, give a lower bound above 1/2: the fewest that certify anything."""
    validate.in_open_unit_interval("alpha", alpha)
    n = max(1, int(np.floor(-np.log2(alpha))))
    while clopper_pearson_lower(n, n, alpha) <= 0.5:
        n += 1
    return n


def proportion_interval(k: ArrayLike, m: ArrayLike, confidence: float = 0.95) -> tuple[Numbers, Numbers]:
    """Two-sided Clopper-Pearson interval of a proportion seen k times in m: (low, high)."""
    tail = (1 - validate.in_open_unit_interval("confidence", confidence)) / 2
    return clopper_pearson_lower(k, m, tail), clopper_pearson_upper(k, m, tail)


def _margin(n: ArrayLike) -> Numbers:
    return _MARGIN + _MARGIN_A_VOTE * _beyond_many(n)


def _beyond_many(n: ArrayLike) -> Numbers:
    return np.maximum(np.asarray(n, np.float64) - _MANY, 0)


def _largest_rejected(k: np.ndarray, n: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The end, reached from 0, of where `log_wealth` is at least the goal: float64 [rows], by bisection up to k / n.

    P(X > p) is most of the work. It falls in p, so that what it is at the ends of the interval bounds it between, to
    the accuracy of SciPy: it is computed only where these bounds leave open on which side of the goal the wealth is.
    """
    low, high = np.zeros(len(k)), k / n
    most, least = np.zeros(len(k)), np.full(len(k), -np.inf)  # of log P(X > p)
    scale = _log_scale(k, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(60):
            middle = (low + high) / 2
            inside = (low < middle) & (middle < high)
            if not inside.any():
                break
            p = np.maximum(middle, 1e-300)
            ratio, null = _log_ratio(scale, k, n, p), _log_above(0, 0, p)
            rejected = ratio + (least - null) >= goal
            (open_,) = np.nonzero(inside & ~rejected & (ratio + (most - null) >= goal))
            if len(open_):
                above = _log_above(k[open_], n[open_], p[open_])
                rejected[open_] = met = ratio[open_] + (above - null[open_]) >= goal[open_]
                most[open_[met]], least[open_[~met]] = above[met] + _MARGIN, above[~met] - _MARGIN
            low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


def _log_scale(k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """log of B(k + 1/2, n - k + 1/2) / B(1/2, 1/2)."""
    return special.betaln(k + 0.5, n - k + 0.5) - np.log(np.pi)


def _log_ratio(scale: np.ndarray, k: np.ndarray, n: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The scale, as logarithm, less log of p^k (1 - p)^(n - k)."""
    return scale - special.xlogy(k, p) - special.xlog1py(n - k, -p)


def _log_above(k: ArrayLike, n: ArrayLike, p: np.ndarray) -> np.ndarray:
    """log P(X > p) for X ~ Beta(k + 1/2, n - k + 1/2)."""
    k = np.asarray(k)
    return np.log(special.betaincc(k + 0.5, n - k + 0.5, p))


def _counts(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    k, n = np.asarray(k), np.asarray(n)
    if not (np.all(n >= 1) and np.all(k >= 0) and np.all(k <= n)):
        raise ValueError(f"Expected counts 0 <= k <= n and n >= 1, got k = {k}, n = {n}.")
    if not (np.all(np.asarray(alpha) > 0) and np.all(np.asarray(alpha) < 1)):
        raise ValueError(f"Expected 0 < alpha < 1, got {alpha}.")
    return k, n
