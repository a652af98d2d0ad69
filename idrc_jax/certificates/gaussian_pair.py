"""The worst case between two Gaussians, N(x0, s0^2 I) and N(x1, s1^2 I), at l2 distance a: float64, NumPy and SciPy.

Of all classifiers that answer A with probability p under the first law, the one least likely to answer A under the
second answers B exactly where the likelihood ratio is large (Neyman and Pearson; Sukenik et al. 2022 for
input-dependent smoothing). In units of s0, with e = a / s0 and k = s0 / s1, that is where

    T = alpha * (|w|^2 - d) + beta * y >= c,    alpha = (1 - k^2) / 2,  beta = k^2 * e,

w ~ N(0, I) and y its component along x1 - x0. Under the second law T has the same form with alpha / k^2 and e / k in
their places, moved by 2 d (alpha / k)^2 + e^2 (1 + k^2) / 2. Both tails are found by inverting the moment generating
function along a contour, which is as good at s1 = s0, in one dimension or for images that are nearly black as
anywhere else.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from idrc_jax.core import root_finding

# The midpoint rule in t, tau = sinh(t) in units of the saddle point's width. Both tails are then right to 1e-10 of the
# smaller one (tests compare SciPy's ncx2 and 30-digit arithmetic); results stay _TRUST of a tail on the safe side.
_STEP = 3.5 / 64
_TAU = np.sinh((np.arange(64) + 0.5) * _STEP)
_WEIGHT = np.cosh((np.arange(64) + 0.5) * _STEP) * _STEP / np.pi
_TRUST = 1e-9

# Levels are rounded to float32: within 2**-24 of themselves, and another 2**-24 for the float64 arithmetic before.
_FLOAT32 = 2.0**-23

# Radii stop this much of themselves short of what the search has excluded.
_RESOLUTION = 1e-9
_ROUNDING = 2.0**-50


def tails(
    alpha: ArrayLike, beta: ArrayLike, dim: ArrayLike, c: ArrayLike, x: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The law of S = alpha * (|w|^2 - dim) + beta * y at c, for w ~ N(0, I) in `dim` dimensions.

    All arguments broadcast. The density at c is the integral of exp(K(z) - zc) / (2 pi i) along a line through the
    saddle point, a tail that of exp(K(z) - zc) / (2 pi i z), K being the cumulant generating function
    -(dim/2) (log(1 - 2 alpha z) + 2 alpha z) + (beta z)^2 / (2 (1 - 2 alpha z)). The line is bent into a parabola that
    follows the path of steepest descent to third order.

    Args:
      alpha, beta: weights of the two terms.
      dim: number of dimensions.
      c: where the tails begin.
      x: beta^2 + 4 alpha (c + dim alpha), which is 0 where the support of S ends and there has digits that c has not.

    Returns:
      lower, upper, density: float64 [...]. The smaller of the two tails is accurate to 1e-10 of itself.
    """
    alpha, beta, dim, c = (np.asarray(value, np.float64) for value in (alpha, beta, dim, c))
    x = beta**2 + 4 * alpha * (c + dim * alpha) if x is None else x
    alpha, beta, dim, c, x = np.broadcast_arrays(alpha, beta, dim, c, x)
    with np.errstate(all="ignore"):
        # The saddle point: w = 1 - 2 alpha z solves x w^2 - 4 dim alpha^2 w = beta^2.
        b = 2 * dim * alpha**2
        root = np.sqrt(b**2 + beta**2 * x)
        z0 = np.where(x > b, 2 * c / (x - b + root), (1 - (b + root) / x) / (2 * alpha))
        # Kept off the pole at 0, on the side of the smaller tail, and off the branch point at 1 / (2 alpha).
        off = np.minimum(1 / np.sqrt(b + beta**2), 1 / np.abs(4 * alpha))
        is_upper = c >= 0
        z0 = np.where(is_upper, np.maximum(z0, off), np.minimum(z0, -off))
        w = 1 - 2 * alpha * z0
        second = b / w**2 + beta**2 / w**3
        third = 4 * alpha * b / w**3 + 6 * alpha * beta**2 / w**4
        width = 1 / np.sqrt(second)
        bend = third / (6 * second**1.5)

        outside, near_end = x <= 0, (x < (beta**2 + 2 * b) / 2)[..., None]
        alpha, beta, dim, c, x, z0, width, bend = (
            value[..., None] for value in (alpha, beta, dim, c, x, z0, width, bend)
        )
        re, im = z0 + width * bend * _TAU**2, width * _TAU
        z = re + 1j * im
        # w = 1 + u + iv and its logarithm, small where alpha is. Two forms of one exponent: the first loses its digits
        # where x is small, the second where alpha is.
        u, v = -2 * alpha * re, -2 * alpha * im
        w = 1 + u + 1j * v
        log = 0.5 * np.log1p(2 * u + u**2 + v**2) + 1j * np.arctan2(v, 1 + u)
        exponent = np.where(
            near_end,
            z * (beta**2 / w - x) / (4 * alpha) - 0.5 * dim * log,
            (beta * z) ** 2 / (2 * w) - z * c - 0.5 * dim * (log - u - 1j * v),
        )
        weight = np.exp(exponent) * (width * (2 * bend * _TAU + 1j)) * _WEIGHT
        density = np.sum(weight.imag, axis=-1)
        small = np.sum((weight / z).imag, axis=-1)
    small = np.abs(small)
    # Outside the support there is no saddle point.
    small, density = np.where(outside, 0.0, small), np.where(outside, 0.0, density)
    return np.where(is_upper, 1 - small, small), np.where(is_upper, small, 1 - small), density


def worst_probability(
    p_lower: ArrayLike, distance: ArrayLike, sigma0: ArrayLike, sigma1: ArrayLike, dim: ArrayLike
) -> np.ndarray:
    """The least probability that a class can have under N(x1, sigma1^2 I).

    Args:
      p_lower: its probability under N(x0, sigma0^2 I), in [0, 1), or a lower bound on it.
      distance: ||x1 - x0||, >= 0, in the units of the sigmas.
      sigma0, sigma1: > 0; 0 or less and infinity are taken for sigma1, and give 0.
      dim: number of values of an image, >= 1. All broadcast.

    Returns:
      float64 [...]; below the exact value by what 1e-9 of the smaller of `p_lower` and 1 - `p_lower` makes.

    Guarantee: no classifier that answers a class with probability >= `p_lower` under the first law answers it with a
    probability below the result under the second (Neyman and Pearson's lemma).
    """
    values = (np.asarray(value, np.float64) for value in (p_lower, distance, sigma0, sigma1, dim))
    p, distance, sigma0, sigma1, dim = np.broadcast_arrays(*values)
    _check(p, distance, sigma0, dim)
    worst = np.zeros(p.shape)
    some = (p > 0) & (sigma1 > 0) & np.isfinite(sigma1)
    worst[some] = _worst(p[some], distance[some] / sigma0[some], sigma1[some] / sigma0[some], dim[some])
    return worst


def _worst(p: np.ndarray, e: np.ndarray, ratio: np.ndarray, dim: np.ndarray) -> np.ndarray:
    """`worst_probability` in units of sigma0, ratio = sigma1 / sigma0 = 1 / k; [rows] arrays."""
    k = 1 / ratio
    alpha, beta = (ratio - 1) * (ratio + 1) * k**2 / 2, e * k**2
    still = (alpha == 0) & (beta == 0)  # the same law
    quantile = np.where(p <= 0.5, special.ndtri(p * (1 - 2 * _TRUST)), -special.ndtri((1 - p) * (1 + 2 * _TRUST)))
    c, x = _quantile(np.where(still, 1.0, alpha), beta, dim, quantile)
    lower, upper, _ = tails(np.where(still, 1.0, alpha), beta, dim, c, x)
    proven = np.where(p <= 0.5, lower * (1 + _TRUST) <= p, upper * (1 - _TRUST) >= 1 - p)
    shift = 2 * dim * (alpha / k) ** 2 + e**2 * (1 + k**2) / 2
    moved, _, _ = tails(np.where(still, 1.0, alpha / k**2), e / k, dim, c - shift, x / k**2)
    worst = np.where(still, p, moved * (1 - _TRUST))
    return np.where(proven & (worst >= 0), worst, 0.0)


def _quantile(alpha: np.ndarray, beta: np.ndarray, dim: np.ndarray, normal: np.ndarray) -> tuple:
    """c with P(S < c) = Phi(normal), to about 1e-11 in `normal`, and its x: Newton's method between brackets.

    The variable is c, but logarithmic in x within half of its mean from the end of the support.
    """
    spread = np.sqrt(2 * dim * alpha**2 + beta**2)
    mean_x = beta**2 + 4 * dim * alpha**2
    skew = (8 * dim * alpha**3 + 6 * alpha * beta**2) / spread**3

    def place(rows: np.ndarray) -> tuple:
        fraction = 4 * alpha[rows] * t[rows] / mean_x[rows]
        near_end = fraction < -0.5
        x = mean_x[rows] * np.where(near_end, 0.5 * np.exp(2 * np.minimum(fraction, 0.0) + 1), 1 + fraction)
        with np.errstate(all="ignore"):
            c = np.where(near_end, (x - mean_x[rows]) / (4 * alpha[rows]), t[rows])
        return c, x, np.where(near_end, 2 * x / mean_x[rows], 1.0)

    t = spread * (normal + skew * (normal**2 - 1) / 6)
    low, high = np.full(t.shape, -np.inf), np.full(t.shape, np.inf)
    rows = np.arange(len(t))
    for _ in range(200):
        c, x, slope = place(rows)
        lower, upper, density = tails(alpha[rows], beta[rows], dim[rows], c, x)
        here = np.where(lower < upper, special.ndtri(lower), -special.ndtri(upper))
        error = here - normal[rows]
        low[rows] = np.where(error < 0, t[rows], low[rows])
        high[rows] = np.where(error > 0, t[rows], high[rows])
        with np.errstate(all="ignore"):
            newton = t[rows] - error * np.exp(-(here**2) / 2) / (np.sqrt(2 * np.pi) * density * slope)
            middle = (low[rows] + high[rows]) / 2
            outward = t[rows] - np.sign(error) * 4 * spread[rows]
        inside = (newton > low[rows]) & (newton < high[rows])
        instead = np.where(np.isfinite(middle), middle, outward)
        done = np.abs(error) <= 1e-11
        t[rows] = np.where(done, t[rows], np.where(inside, newton, instead))
        rows = rows[~done]
        if not len(rows):
            break
    return place(np.arange(len(t)))[:2]


def radius(
    p_lower: np.ndarray, sigma: np.ndarray, bounds: Callable[[np.ndarray, np.ndarray], tuple], dim: int
) -> np.ndarray:
    """The largest distance at which the worst probability is above 1/2 whatever the level there.

    Args:
      p_lower: float64 [rows], in [0, 1).
      sigma: float64 [rows], the level at the image, > 0.
      bounds: (rows, distance) -> (low, high): for the given row numbers, the smallest and largest level within that
        distance; low must not increase with the distance nor high decrease. Low <= 0 or high = inf ends the radius.
      dim: number of values of an image.

    Returns:
      float64 [rows]; 0 where p_lower <= 1/2; at most sigma * Phi^-1(p_lower).

    Guarantee: at every distance below the result, every level within the bounds keeps the probability of a class that
    has `p_lower` at the image above 1/2. The numbers err below: by 1e-9 of the radius for the search, 1e-9 of
    1 - p_lower for the tails, and levels are widened by 2^-23 of themselves for their rounding to float32.
    """
    p_lower, sigma = np.asarray(p_lower, np.float64), np.asarray(sigma, np.float64)
    _check(p_lower, 0.0, sigma, dim)

    def margin(rows: np.ndarray, e: np.ndarray) -> np.ndarray:
        """Phi^-1 of the worst probability: positive where the class is safe."""
        low, high = bounds(rows, e * sigma[rows])
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not (np.all(low <= sigma[rows] * (1 + _FLOAT32)) and np.all(high >= sigma[rows] * (1 - _FLOAT32))):
            raise ValueError("Expected scale_bounds to enclose the level at the image itself, got bounds that do not.")
        ends = [low * (1 - _FLOAT32), high * (1 + _FLOAT32)]
        worst = [worst_probability(p_lower[rows], e * sigma[rows], sigma[rows], end, dim) for end in ends]
        return np.maximum(special.ndtri(np.minimum(*worst)), -40.0)

    some = np.flatnonzero(p_lower > 0.5)
    e, _ = root_finding.bracket(
        lambda rows, e: margin(some[rows], e),
        np.zeros(len(some)),
        special.ndtri(p_lower[some]),
        resolution=_RESOLUTION,
    )
    found = np.zeros(len(p_lower))
    found[some] = e * sigma[some] * (1 - _ROUNDING)
    return found


def _check(p_lower: ArrayLike, distance: ArrayLike, sigma: ArrayLike, dim: ArrayLike) -> None:
    if not (np.all(np.asarray(p_lower) >= 0) and np.all(np.asarray(p_lower) < 1)):
        raise ValueError(f"Expected 0 <= p_lower < 1, got {p_lower}.")
    if not (np.all(np.asarray(sigma) > 0) and np.all(np.isfinite(sigma))):
        raise ValueError(f"Expected a noise level > 0, got {sigma}.")
    if not np.all(np.asarray(distance) >= 0):
        raise ValueError(f"Expected a distance >= 0, got {distance}.")
    if not np.all(np.asarray(dim) >= 1):
        raise ValueError(f"Expected dim >= 1, got {dim}.")
