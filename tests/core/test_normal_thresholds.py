"""Thresholds against mpmath, which computes tails by other series, and the bound on the law against its exact sum."""

from decimal import Decimal

import mpmath
import numpy as np
import pytest

from idrc_jax.certificates import radii, schemes
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.core import normal_thresholds
from idrc_jax.core.normal_thresholds import thresholds, total_variation

LEVELS = (0.25, 0.12, 1.0, float(np.float32(0.1234567)), 0.01, 1e-3, 3e-4, 2.0**-126)


def exactly(level, number):
    """2^64 Phi(-(number - 1/2) / (255 level)), by the complementary error function of 300 bits."""
    with mpmath.workprec(300):
        return mpmath.mpf(2) ** 64 * mpmath.ncdf(-(mpmath.mpf(number) - 0.5) / (255 * mpmath.mpf(level)))


@pytest.mark.parametrize("level", LEVELS)
def test_thresholds_are_those_of_mpmath(level):
    made = thresholds(level)
    chosen = np.unique(np.r_[: min(20, len(made)), 0 : len(made) : 7, max(len(made) - 20, 0) : len(made)]).astype(int)
    with mpmath.workprec(300):
        for j in chosen.tolist():
            assert int(made[j]) == int(mpmath.floor(exactly(level, j + 1)))
        assert exactly(level, len(made) + 1) < 1  # and there is no other


def test_thresholds_fall_from_a_half_and_cannot_be_changed():
    made = thresholds(0.25)
    assert made[0] < 2**63
    assert np.all(made[1:] <= made[:-1])
    assert made[-1] >= 1
    assert len(thresholds(0.0)) == 0
    with pytest.raises(ValueError, match="read-only"):
        made[0] = 1


def test_digits_that_do_not_decide_are_an_error(monkeypatch):
    monkeypatch.setattr(normal_thresholds, "_ERROR", Decimal("1e-19"))
    with pytest.raises(ArithmeticError, match=r"threshold 0 of level 0\.013"):
        thresholds(0.013)


@pytest.mark.parametrize("level", [0.0123, 0.001, 1e-4])
def test_total_variation_is_bounded(level):
    """Half the sum of all differences of probabilities, beyond the last threshold, too."""
    with mpmath.workprec(300):
        drawn = [*(int(one) for one in thresholds(level)), 0, 0]
        true = [exactly(level, j + 1) for j in range(len(drawn))]
        cells = zip([*drawn[:-1], 0], [*drawn[1:], 0], [*true[:-1], true[-1]], [*true[1:], 0], strict=True)
        outside = sum(abs((a - b) - (c - d)) for a, b, c, d in cells)  # k = 1, 2 ... and -1, -2 ...
        middle = abs((2**64 - 2 * drawn[0]) - (2**64 - 2 * true[0]))
        exact = (2 * outside + middle) / 2 / mpmath.mpf(2) ** 64
        assert 0 < exact <= total_variation(level, 1)
    assert total_variation(level, 3072) == 3072 * total_variation(level, 1)


def test_certificates_pay_for_the_law():
    """The bound loses what the law may be wrong by: seen in more dimensions than there are, where it is not tiny."""
    votes, dim = np.array([[9_990, 10, 0]]), 10**12
    common = {"plan": Fixed(n0=10, n=10_000), "alpha": 0.001, "dim": dim}
    statistic = [0.0]
    for scheme in (schemes.Gaussian, lambda **more: schemes.Stepped(levels=(1.0,), **more)):
        statistic = [float(scheme(sigma=0.5).statistic(np.full((4, 4, 1), 0.5)))]
        for certificate in ("one_sided", "two_sided"):
            plain, exact = (
                radii.from_votes(
                    scheme(sigma=0.5, exact=exact), statistic, [0], votes, certificate=certificate, **common
                )[0]
                for exact in (False, True)
            )
            gap = float(total_variation(0.5, dim))
            assert 1e-5 < gap < 1e-3
            assert exact.p_lower == plain.p_lower - gap
            assert 0 < exact.radius < plain.radius
    (lost,) = radii.from_votes(
        schemes.Gaussian(sigma=0.5, exact=True), [0.0], [0], votes, certificate="one_sided", **common | {"dim": 10**16}
    )
    assert (lost.predict, lost.p_lower, lost.radius) == (-1, 0, 0)
