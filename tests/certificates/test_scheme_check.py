"""The search for levels outside a scheme's bounds finds false bounds, and finds nothing where they are true."""

import dataclasses
import math

import numpy as np
import pytest

import idrc_jax as idrc
from idrc_jax.certificates import schemes
from idrc_jax.certificates.scheme_check import check

IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, size=(5, 6, 6, 1))
DIM = 36


def middle(by):
    statistics = np.sort(schemes.STATISTICS[by](IMAGES))
    return tuple(float(value) for value in (statistics[:-1] + statistics[1:]) / 2)


BUILT_IN = {
    **{
        name: schemes.make(name, sigma=0.3)
        for name in sorted(schemes.SCHEMES.keys() - {"stepped", "cascade", "routed"})
    },
    "l1, ref": schemes.L1(sigma=0.3, ref=0.5),
    "inverse_sqrt_norm, ref": schemes.InverseSqrtNorm(sigma=0.3, ref=3.0),
    **{
        f"stepped by {by}": schemes.Stepped(0.3, by, middle(by), (0.5, 0.7, 1.0, 1.5, 2.0)) for by in schemes.STATISTICS
    },
}


@dataclasses.dataclass(frozen=True)
class Own(schemes.Scheme):
    """The level grows with the standard deviation; a slack of 1 is the truth."""

    name = "own"
    slack: float = 1.0

    def statistic(self, images):
        return schemes.STATISTICS["std"](images)

    def scale(self, statistic):
        return self.sigma * (1 + statistic)

    def scale_bounds(self, statistic, distance, dim):
        slack = self.slack * self.sigma * distance / math.sqrt(dim)
        return self.scale(statistic) - slack, self.scale(statistic) + slack


class Largest(Own):
    """By the largest value, which moves by the whole distance, not by its share of one value."""

    def statistic(self, images):
        return images.__array_namespace__().max(images, axis=(-3, -2, -1))


class OnlyAbove(Own):
    """A level that falls is not reckoned with."""

    def scale_bounds(self, statistic, distance, dim):
        return self.scale(statistic) + 0 * distance, super().scale_bounds(statistic, distance, dim)[1]


class Narrowing(Own):
    """Bounds that are right near the image, and that forget it farther away."""

    def scale_bounds(self, statistic, distance, dim):
        return super().scale_bounds(statistic, np.where(distance < 0.2, distance, 0.0), dim)


class Jumps(Own):
    """Steps whose edges the bounds do not know."""

    def scale(self, statistic):
        xp = statistic.__array_namespace__()
        return self.sigma * xp.where(statistic > 0.25, 2.0, 1.0)


class NotANumber(Own):
    """No level at all where an image is too bright."""

    def scale(self, statistic):
        xp = statistic.__array_namespace__()
        return self.sigma * xp.where(statistic > 0.25, xp.nan, 1.0)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_bounds_of_all_schemes_of_this_package_hold(name):
    found = check(BUILT_IN[name], IMAGES)
    assert found.ok, found
    assert found.images == len(IMAGES)
    assert found.points > 1000
    assert "no level outside scale_bounds at" in str(found)
    if name not in ("gaussian", "l2"):  # the search goes to the very ends, or over an edge
        assert found.violation > -1e-4 or name.startswith("stepped")


def test_true_bounds_of_ones_own_hold_and_those_one_percent_too_narrow_do_not():
    assert check(Own(0.3), IMAGES).ok
    found = check(Own(0.3, slack=0.99), IMAGES)
    assert not found.ok
    # What it says of the image is so.
    image, near = IMAGES.astype(np.float32).astype(np.float64)[found.index], found.image
    assert found.distance == pytest.approx(np.linalg.norm(near - image), rel=1e-6)
    assert found.level == Own(0.3).scale(Own(0.3).statistic(near))
    low, high = Own(0.3, slack=0.99).scale_bounds(float(Own(0.3).statistic(image)), found.distance, DIM)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.level > high or found.level < low


@pytest.mark.parametrize("kind", [Largest, OnlyAbove, Narrowing, Jumps, NotANumber])
def test_false_bounds_are_found(kind):
    found = idrc.schemes.check(kind(0.3), IMAGES)
    assert not found.ok
    assert found.violation > 0.01
    assert str(found).startswith("Expected levels of own within its scale_bounds, [")
    assert "\n" not in str(found)


def test_bytes_are_images_too_and_black_ones_without_a_level_are_left_out():
    pixels = np.rint(255 * IMAGES).astype(np.uint8)
    pixels[0] = 0
    found = check(BUILT_IN["l1"], pixels)
    assert found.ok
    assert found.images == 4
    with pytest.raises(ValueError, match="an image with a noise level under l1, got none of 1"):
        check(BUILT_IN["l1"], pixels[:1])


def test_what_cannot_be_checked_is_said():
    class NumPyAlone(Own):
        def statistic(self, images):
            return np.asarray(images).std(axis=(-3, -2, -1))

    class NoBounds(Own):
        scale_bounds = schemes.Scheme.scale_bounds

    with pytest.raises(ValueError, match=r"statistic and scale of own to take JAX's arrays, too"):
        check(NumPyAlone(0.3), IMAGES)
    with pytest.raises(ValueError, match="Expected a scheme with scale_bounds"):
        check(NoBounds(0.3), IMAGES)
    with pytest.raises(ValueError, match="reaches > 0"):
        check(Own(0.3), IMAGES, reaches=(1.0, 0.5))
    with pytest.raises(ValueError, match=r"images \[N, H, W, C\]"):
        check(Own(0.3), IMAGES[0])


def test_the_search_is_the_same_at_each_call():
    one, other = (check(Own(0.3, slack=0.9), IMAGES[:2], seed=3) for _ in range(2))
    assert one == other
    np.testing.assert_array_equal(one.image, other.image)
