"""Thresholds that make a rounded normal number of 64 random bits, right to the last bit.

An 8-bit image x = i / 255 under noise of N(0, s^2), rounded to the grid of such images, is (i + k) / 255 with the
integer k = round(255 noise), and P(k <= -j) = P(k >= j) = Phi(-(j - 1/2) / 255s) for j >= 1. `thresholds` are these
probabilities in units of 2^-64, rounded down: of 64 random bits one gives the sign, and the other 63, a number t, give
|k|, the number of thresholds above t (after Voráček and Hein 2023).

The tails are Taylor series about points of a grid of arguments, where a series of positive terms has them, in decimal
numbers of 60 digits; a threshold that these do not decide is an error, not a guess.
"""

import functools
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import ArrayLike

GRID = 255  # steps of an 8-bit image from 0 to 1
BITS = 64
LARGEST = 16.0  # level, for whose tables memory is meant
_OFF_GRID = 2.0**-14  # of a step: four times what float32 rounds
_REACH = 9.09  # Phi(-9.09) < 2^-64: no threshold lies beyond
_DIGITS = 60
_PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923")
_STEPS = 16  # points of the grid of arguments in 1
_TERMS = 24
# By Cramér's bound phi(a) |He_n(a)| < .44 sqrt(n!) a series leaves out less than 1e-51 within 1/32 of its point, and
# rounding to 60 digits adds less than 1e-57.
_ERROR = Decimal("1e-45")


@functools.lru_cache(maxsize=1024)
def thresholds(level: float) -> np.ndarray:
    """The thresholds of a noise level that are not 0.

    Args:
      level: the standard deviation in pixel units, >= 0, taken as exact.

    Returns:
      uint64 [m], falling and read-only: floor(2^64 Phi(-(j - 1/2) / (255 level))) for j = 1 .. m; none for level 0.

    Raises:
      ArithmeticError: a threshold so near to a whole number that its digits do not tell which side (never seen; its
        probability is 1e-25).
    """
    found = []
    with localcontext(Context(prec=_DIGITS)):
        step = 1 / (2 * GRID * Decimal(level)) if level > 0 else Decimal("Infinity")
        while (argument := (2 * len(found) + 1) * step) < Decimal(_REACH):
            tail = _tail(argument)
            low, high = (int((tail + error) * 2**BITS) for error in (-_ERROR, _ERROR))
            if low != high:
                raise ArithmeticError(
                    f"Expected digits to decide threshold {len(found)} of level {level}, got too few."
                )
            if not low:
                break
            found.append(low)
    made = np.asarray(found, np.uint64)
    made.flags.writeable = False
    return made


def total_variation(level: ArrayLike, dim: int) -> np.ndarray:
    """How far the law of an image's drawn noise is, at most, from the rounded normal law: in total variation.

    Args:
      level: noise levels.
      dim: values of an image.

    Returns:
      float64 of the level's shape. Each of the 2m thresholds of a value is below its probability by less than 2^-64,
      and so is what lies beyond them on either side: 2 (m + 1) / 2^64 a value.
    """
    most = np.floor(_REACH * GRID * np.asarray(level, np.float64) + 0.5)
    return dim * 2 * (most + 1) * 2.0**-BITS


def check_on_grid(images: np.ndarray) -> None:
    """ValueError for floats [N, H, W, C] that are no 8-bit images divided by 255, to float32's accuracy."""
    for number, image in enumerate(images):
        grey = np.asarray(image, np.float64) * GRID
        gap = np.abs(grey - np.rint(grey))
        if np.max(gap) > _OFF_GRID:
            raise ValueError(
                f"Expected 8-bit images under exact noise, all values multiples of 1/{GRID}, got "
                f"{grey.flat[np.argmax(gap)] / GRID:.9g} in image {number} of these: round them, or leave exact out."
            )


def _tail(argument: Decimal) -> Decimal:
    """Phi(-argument), 0 <= argument < 10, to `_ERROR`."""
    point = int((argument * _STEPS).to_integral_value())
    shift = argument - Decimal(point) / _STEPS
    tail = Decimal(0)
    for coefficient in _series(point):
        tail = tail.fma(shift, coefficient)
    return tail


@functools.cache
def _series(point: int) -> tuple[Decimal, ...]:
    """Taylor coefficients of Phi(-a) about a = point / 16, the highest first.

    The n-th derivative of Phi(-a) is (-1)^n He_(n-1)(a) phi(a), with Hermite's polynomials.
    """
    a = Decimal(point) / _STEPS
    density = (-a * a / 2).exp() / (2 * _PI).sqrt()
    # Phi(-a) = 1/2 - phi(a) (a + a^3/3 + a^5/(3 5) + ...)
    tail, term, odd = Decimal("0.5"), a * density, 1
    while term > Decimal(10) ** -_DIGITS:
        tail -= term
        odd += 2
        term *= a * a / odd
    made, before, hermite, scale = [tail], Decimal(0), Decimal(1), density
    for n in range(1, _TERMS + 1):
        scale /= -n
        made.append(scale * hermite)
        before, hermite = hermite, a * hermite - (n - 1) * before
    return tuple(reversed(made))
