"""When a break is claimed: the p-value of fresh votes, and the correction for many attempts."""

import numpy as np
from scipy import stats


def break_p_value(votes: np.ndarray, predict: int, rival: int) -> float:
    """Exact one-sided p-value of "class `rival` is no likelier than `predict`" for votes int [K + 1], 1 without any.

    P(Bin(n, 1/2) >= votes for the rival), n the votes for either.
    """
    n = int(votes[predict] + votes[rival])
    return float(stats.binom.sf(int(votes[rival]) - 1, n, 0.5)) if n else 1.0
