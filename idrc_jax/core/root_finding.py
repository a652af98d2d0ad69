"""Where functions of one variable change sign, many at once."""

from collections.abc import Callable

import numpy as np

Margin = Callable[[np.ndarray, np.ndarray], np.ndarray]


def bracket(margin: Margin, low: np.ndarray, high: np.ndarray, *, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends low < high, close together, with margin > 0 at low and <= 0 at high.

    Args:
      margin: (rows, x) -> margin of the functions with these numbers at these x; finite.
      low, high: float64 [rows], where to search. A row whose margin is not positive at `low` gets (low, low), one
        whose margin is positive at `high` gets (high, high).
      resolution: stop where high - low <= resolution * high.

    Returns:
      low, high: float64 [rows]. Both ends have been evaluated; each row's answer is independent of the others.
    """
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    rows = np.arange(len(low))
    at_low, at_high = margin(rows, low), margin(rows, high)
    high = np.where(at_low > 0, high, low)
    low = np.where(at_high > 0, high, low)
    # Chandrupatla's rule (1997): inverse quadratic interpolation through the last three points where it is safe, else
    # bisection. a is the newest point, b the other end of the bracket, c the point before.
    a, b, fa, fb = low.copy(), high.copy(), at_low, at_high
    fraction = np.full(len(low), 0.5)
    for _ in range(200):
        rows = rows[high[rows] - low[rows] > resolution * high[rows]]
        if not len(rows):
            break
        p, q, fp, fq = a[rows], b[rows], fa[rows], fb[rows]
        x = p + fraction[rows] * (q - p)
        fx = margin(rows, x)
        positive = fx > 0
        low[rows], high[rows] = np.where(positive, x, low[rows]), np.where(positive, high[rows], x)
        same = positive == (fp > 0)
        c, fc = np.where(same, p, q), np.where(same, fp, fq)
        q, fq = np.where(same, q, p), np.where(same, fq, fp)
        xi, phi = (x - q) / (c - q), (fx - fq) / (fc - fq)
        with np.errstate(all="ignore"):
            inverse = fx / (fq - fx) * fc / (fq - fc) + (c - x) / (q - x) * fx / (fc - fx) * fq / (fc - fq)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        least = 0.4 * resolution * high[rows] / np.abs(q - x)
        fraction[rows] = np.clip(np.where(safe, inverse, 0.5), np.minimum(least, 0.5), 1 - np.minimum(least, 0.5))
        a[rows], b[rows], fa[rows], fb[rows] = x, q, fx, fq
    return low, high
