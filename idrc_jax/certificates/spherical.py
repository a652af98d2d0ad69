"""The radius under noise s * g * u, g ~ N(0, 1) and u uniform on the unit sphere (the scheme `l2`), by level sets of
the likelihood ratio (Yang et al. 2020): float64, NumPy and SciPy.

Everything is in units of s. The density at z is a decreasing function of rho = ||z||, exp(-g(rho)) with
g(rho) = (d - 1) log(rho) + rho^2 / 2. Moved by a along an axis, the log-likelihood ratio at z is
L(z) = g(||z||) - g(||z - a||), and the worst classifier answers another class exactly where L is large. Given rho, L
increases in the cosine c between z and the axis, so P0(L >= t) is one integral over the half-normal rho of the tail
of c, a Beta law. Reflection exchanges the two laws and turns L into -L: P1(L >= t) = P0(L <= -t).
"""

from functools import lru_cache

import numpy as np
from scipy import interpolate, special

from idrc_jax.core import root_finding

# Double-exponential quadrature: nodes in (0, 1) and weights of a panel. Tails are then right to 1e-9 of themselves
# (a test compares 20-digit adaptive quadrature); results stay _TRUST of a tail, or of 1/2, on the safe side.
_T = np.arange(-3.2, 3.2 + 1e-9, 0.08)
_NODES = special.expit(np.pi * np.sinh(_T))
_WEIGHTS = 0.08 * np.pi * np.cosh(_T) * _NODES * special.expit(-np.pi * np.sinh(_T))
_BENDS = (0.2, 0.5, 1.5)  # of a * sqrt(dim): where the tail of the cosine sets in
_FARTHEST = 9.5  # P(rho > 9.5) = 2e-21

_TRUST = 1e-8

_GRID = np.geomspace(1e-5, 20.0, 300)  # distances * sqrt(dim) of a table
_PROPOSAL = 1e-8  # of a radius: what the table's answer is lowered by, before it is verified


def radius(p_lower: np.ndarray, dim: int) -> np.ndarray:
    """The largest distance, in units of sigma, at which the worst probability is above 1/2.

    Args:
      p_lower: float64 [rows], in [0, 1).
      dim: number of values of an image, >= 1.

    Returns:
      float64 [rows]; 0 where p_lower <= 1/2. In one dimension the law is N(0, 1) and this is Phi^-1(p_lower). From
      p_lower = 1 - 1e-14 on the radius no longer grows.

    Guarantee: at every distance below the result a class that has at least `p_lower` at the image has more than 1/2.
    A table per dimension proposes each radius and two integrals at that radius prove it; the result is below the exact
    one by about 1e-8 of itself and 1e-8 of 1 - p_lower.
    """
    p_lower, place = np.unique(np.asarray(p_lower, np.float64), return_inverse=True)  # of many images few differ
    found = np.zeros(p_lower.shape)
    if dim == 1:
        return np.where(p_lower > 0.5, special.ndtri(np.maximum(p_lower, 0.5)) * (1 - 2.0**-40), 0.0)[place]
    table = _table(dim)
    rows = np.flatnonzero(p_lower >= table.needed[0])
    best = table.distance(np.minimum(p_lower[rows], table.needed[-1]))
    lowered = _PROPOSAL
    while len(rows) and lowered < 1:
        a = best * (1 - lowered)
        proven = _slack(a, table.threshold(a), dim) >= 1 - p_lower[rows]
        found[rows[proven]] = a[proven]
        rows, best, lowered = rows[~proven], best[~proven], 10 * lowered
    return found[place]


def _slack(a: np.ndarray, tau: np.ndarray, dim: int) -> np.ndarray:
    """1 - p for the p above which the class keeps more than 1/2 at distance a; rounded down, 0 if not proven.

    With any tau that has P1(L >= tau) = P0(L <= -tau) < 1/2 it is P0(L >= tau): if another class has less than that at
    the image, it lives in the worst case where L is larger still.
    """
    at_least_half = ratio_tail(-tau, a, dim) * (1 - _TRUST) >= 0.5
    return np.where(at_least_half, ratio_tail(tau, a, dim) * (1 - _TRUST), 0.0)


class _Table:
    """Needed probability and threshold tau against distance, for one dimension; smooth interpolation of logarithms."""

    def __init__(self, dim: int) -> None:
        a = _GRID / np.sqrt(dim)
        # The smallest tau that passes: L is at most (a sqrt(dim))^2-like near 0 and linear far away.
        _, tau = root_finding.bracket(
            lambda rows, tau: 0.5 * (1 + 4 * _TRUST) - ratio_tail(-tau, a[rows], dim),
            np.zeros(len(a)),
            10 * _GRID + _GRID**2,
            resolution=1e-11,
        )
        slack = _slack(a, tau, dim)
        seen = slack > 1e-15
        self.needed = 1 - slack[seen]
        self._a = interpolate.make_interp_spline(np.log(-special.ndtri(slack[seen])), np.log(a[seen]), k=5)
        self._tau = interpolate.make_interp_spline(np.log(a), np.log(tau), k=5)

    def distance(self, p_lower: np.ndarray) -> np.ndarray:
        return np.exp(self._a(np.log(-special.ndtri(1 - p_lower))))

    def threshold(self, a: np.ndarray) -> np.ndarray:
        return np.exp(self._tau(np.log(a)))


@lru_cache(maxsize=16)
def _table(dim: int) -> _Table:
    return _Table(dim)


def ratio_tail(t: np.ndarray, a: np.ndarray, dim: int) -> np.ndarray:
    """P0(L >= t): the noise law's mass where it is exceeded exp(t) times by its copy at distance a.

    Args:
      t, a: float64 [rows], a > 0.
      dim: >= 2.

    Returns:
      float64 [rows].
    """
    # Where the cosine at which L = t leaves [-1, 1] the integrand has a kink: panels end there.
    tau = np.abs(t)
    rise = lambda rho: _log_ratio_on_axis(rho, a, dim)  # noqa: E731
    turn = (a + np.sqrt(a**2 + 4 * (dim - 1))) / 2  # where L on the axis is least beyond a
    before = _bisect(lambda rho: rise(rho) > tau, a, turn)
    after = _bisect(lambda rho: rise(rho) < tau, turn, turn + _FARTHEST + tau / a)
    near = _bisect(lambda rho: rise(rho) < tau, a / 2, a)
    back = np.where(t < 0, a, 0.0)
    kinks = [np.where(t < 0, a - near, near), before - back, after - back]
    bends = [factor * a * np.sqrt(dim) for factor in _BENDS]
    edges = np.clip([*kinks, *bends, np.full(a.shape, _FARTHEST)], kinks[0], _FARTHEST)
    edges = np.sort(edges, axis=0)
    total = np.zeros(a.shape)
    for start, stop in zip(edges[:-1, :, None], edges[1:, :, None], strict=True):
        rho = start + (stop - start) * _NODES
        mass = np.exp(-(rho**2) / 2) * np.sqrt(2 / np.pi) * _cosine_tail(rho, t[:, None], a[:, None], dim)
        total += np.sum(np.where(rho > 0, mass, 0.0) * _WEIGHTS, axis=-1) * (stop - start)[:, 0]
    return total  # below the first edge L < t in every direction


def _log_ratio_on_axis(rho: np.ndarray, a: np.ndarray, dim: int) -> np.ndarray:
    """L at the point rho > 0 of the axis through both centres."""
    with np.errstate(divide="ignore"):
        return -(dim - 1) * np.log(np.abs(1 - a / rho)) + a * rho - a**2 / 2


def _cosine_tail(rho: np.ndarray, t: np.ndarray, a: np.ndarray, dim: int) -> np.ndarray:
    """P(L >= t | ||z|| = rho). L >= t where ||z - a|| <= r with g(r) = g(rho) - t; r^2 = rho^2 exp(-eta)."""
    y = rho**2 / (dim - 1)
    with np.errstate(all="ignore"):
        eta = np.log(y) - np.log(special.wrightomega(y + np.log(y) - 2 * t / (dim - 1)))
        # A Newton step: eta is small and needs all its digits.
        eta -= (eta - y * np.expm1(-eta) - 2 * t / (dim - 1)) / (1 + y * np.exp(-eta))
        cosine = np.clip(a / (2 * rho) - rho * np.expm1(-eta) / (2 * a), -1.0, 1.0)
    return _beta_tail(cosine, dim)


def _beta_tail(x: np.ndarray, dim: int) -> np.ndarray:
    """P(c >= x) for a coordinate c of a uniform point of the sphere: (c + 1) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2)."""
    square = x * x
    far = special.betainc((dim - 1) / 2, 0.5, (1 - x) * (1 + x)) / 2
    # Near 0, where 1 - x^2 loses the digits of x: the series of the density (1 - x^2)^((d - 3) / 2).
    power = (dim - 3) / 2
    series = sum(special.binom(power, j) * (-square) ** j / (2 * j + 1) for j in range(5))
    near = 0.5 - x * series / special.beta(0.5, (dim - 1) / 2)
    return np.where(dim * square < 0.01, near, np.where(x >= 0, far, 1 - far))


def _bisect(left, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where the predicate `left` stops holding between low and high."""
    for _ in range(60):
        middle = (low + high) / 2
        holds = left(middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return low
