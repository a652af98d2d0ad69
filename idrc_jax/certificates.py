"""From a lower bound on the top class's probability to a radius, in float64, rounded down.

`radius` is the valid one; `published_radius` is what the paper reports for every scheme, which for
input-dependent noise is not a certificate.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from idrc_jax import statistics
from idrc_jax.schemes import Gaussian, Scheme, Uniform

# SciPy's normal quantile is good to about 1e-15 of itself; radii lose 2**-40 (9e-13) of themselves.
_MARGIN = 2.0**-40


@dataclass(frozen=True)
class Certificate:
    """What is certified at one image, and what it rests on.

    Attributes:
      predict: the class, or -1 (abstain).
      radius: valid l2 radius in pixel units; 0 when abstaining, nan where the scheme has no certificate.
      radius_published: the paper's radius; 0 when abstaining.
      selected: the class that the selection votes chose, -1 for none.
      statistic: the image's statistic under the scheme.
      sigma_x: the noise level that was used, a float32 value.
      p_lower: lower confidence bound on the probability of `selected`.
      n, n0: estimation and selection samples.
      votes: estimation votes, one count a class, then those whose logits were not finite.
    """

    predict: int
    radius: float
    radius_published: float
    selected: int
    statistic: float
    sigma_x: float
    p_lower: float
    n: int
    n0: int
    votes: tuple[int, ...]


def radius(scheme: Scheme, statistic: float, p_lower: float, *, dim: int) -> float:
    """The valid l2 radius in pixel units.

    Args:
      scheme: the noise that the votes were drawn under.
      statistic: the image's, `scheme.statistic(image)`.
      p_lower: lower bound on the top class's probability.
      dim: number of values of an image, H * W * C.

    Returns:
      `gaussian`: sigma * Phi^-1(p_lower) (Cohen et al. 2019); `uniform`: 0 (noise spheres around different images
      meet in a set of measure zero, so nothing carries over); nan for the schemes whose certificate is not
      implemented. 0 when p_lower <= 1/2.

    Guarantee: where the result is a number r, a smoothed classifier whose class probability at the image is at
    least `p_lower` predicts that class at every image within l2 distance r. Rounding errs below, by at
    most 1e-12 of the radius and, since noise levels are float32, the rounding of sigma to float32.
    """
    _check(p_lower)
    if isinstance(scheme, Uniform):
        return 0.0
    if isinstance(scheme, Gaussian):
        return _cohen(min(scheme.sigma, float(np.float32(scheme.sigma))), p_lower)
    return float("nan")


def published_radius(scheme: Scheme, p_lower: float) -> float:
    """The paper's radius sigma * Phi^-1(p_lower), whatever the scheme; 0 when p_lower <= 1/2.

    Not a certificate except for `gaussian`: it ignores that the noise changes with the image.
    """
    _check(p_lower)
    return _cohen(scheme.sigma, p_lower)


def explain(scheme: str) -> str:
    """One sentence: what the radius of a scheme, named as in result files, is worth."""
    return {
        "gaussian": "The radius is Cohen et al.'s (2019), valid for constant Gaussian noise.",
        "uniform": "The radius is 0: under this noise the laws at two different images never overlap, so votes "
        "at one say nothing about the other.",
    }.get(scheme, "No certificate for this scheme is implemented, so no radius is claimed.")


def from_votes(
    scheme: Scheme,
    statistic: float,
    sigma_x: float,
    selection: np.ndarray,
    estimation: np.ndarray,
    *,
    alpha: float,
    dim: int,
) -> Certificate:
    """The certificate of one image from its votes.

    Args:
      statistic, sigma_x: of the image, from `schemes.host_scale`.
      selection, estimation: int [K + 1] votes of disjoint samples (see `statistics.certify_bound`).
      alpha: error probability.
      dim: number of values of an image.

    A level `sigma_x` of 0 (a black image) abstains: no noise was drawn, so nothing is known.

    Guarantee: where `radius` is a number, with probability at least 1 - alpha over the votes it is valid.
    """
    selected, p_lower = statistics.certify_bound(selection, estimation, alpha)
    if sigma_x == 0:
        p_lower = 0.0
    certain = p_lower > 0.5
    return Certificate(
        predict=selected if certain else statistics.ABSTAIN,
        radius=radius(scheme, statistic, p_lower, dim=dim),
        radius_published=published_radius(scheme, p_lower),
        selected=selected,
        statistic=float(statistic),
        sigma_x=float(sigma_x),
        p_lower=p_lower,
        n=int(np.sum(estimation)),
        n0=int(np.sum(selection)),
        votes=tuple(int(count) for count in estimation),
    )


def _cohen(sigma: float, p_lower: float) -> float:
    return max(0.0, float(sigma * special.ndtri(p_lower) * (1 - _MARGIN)))


def _check(p_lower: float) -> None:
    if not 0 <= p_lower < 1:
        raise ValueError(f"Expected 0 <= p_lower < 1, got {p_lower}.")
