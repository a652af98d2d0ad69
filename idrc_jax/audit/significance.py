"""When a break is claimed, and why all claims of an audit hold at once.

For an image x with its class A the search proposes an image x' and another class B; then fresh votes decide. **The
claim**: at x', B is strictly likelier than A. It contradicts every certificate of A with a radius above ||x' - x||,
which says that A is the likeliest class there. (What is claimed of a cascade, and by which p-value: `breaks`.)

Guarantee: if a break is claimed where the p-value is at most level / M, and there are at most M confirmations, then
with probability at least 1 - level over the fresh votes every claim is true (as far as floating point and the
generator go, see docs/explanation/caveats.md).

Proof. x' and B are functions of the data, the search and earlier confirmations; the votes of a confirmation have a
stage of the key tree and sample numbers of their own, so they are independent of these. Given x', B and how many of
the votes fall on A or B, the number on B is binomial with probability q = p_B / (p_A + p_B). If the claim is false,
p_B <= p_A, then q <= 1/2, and the exact one-sided binomial p-value of q <= 1/2 is at most t with probability at most t.
The union bound over M confirmations with t = level / M gives the level (Bonferroni); M is fixed before the search, and
which of the M are made does not matter.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from idrc_jax.core.validate import SettingError


def break_p_value(votes: Sequence[int] | np.ndarray, predict: int, rival: int) -> float:
    """Exact one-sided p-value of "class `rival` is no likelier than `predict`" for votes int [K + 1], 1 without any.

    P(Bin(n, 1/2) >= votes for the rival), n the votes for either.
    """
    n = int(votes[predict] + votes[rival])
    return float(stats.binom.sf(int(votes[rival]) - 1, n, 0.5)) if n else 1.0


def threshold(level: float, attempts: int, votes: int) -> float:
    """Return the largest p-value at which a break is claimed, level / M.

    Args:
      level: probability that anything at all is claimed wrongly.
      attempts: M, the most confirmations that there can be, counted before the search.
      votes: of each confirmation. ValueError for so few that even if all of them were for B nothing could be claimed.
    """
    largest = level / max(attempts, 1)
    if 0.5**votes > largest:
        raise SettingError(
            f"Expected votes >= {math.ceil(-math.log2(largest))}, the fewest that can claim a break at level "
            f"{level:g} in {attempts:,} attempts, got {votes}.",
            "votes",
        )
    return largest
