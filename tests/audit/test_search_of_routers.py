"""Breaks under a router, against routers and classifiers whose smoothed answers have formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from idrc_jax.audit import Settings, breaks, point_votes
from idrc_jax.audit.search import Searcher
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, random_keys, unmeasured
from idrc_jax.several_levels.routed import Bounds

SHAPE, DIM = (4, 4, 1), 16
SCHEME = schemes.Routed(sigma=0.4, levels=(0.5, 2.0), router_level=1.0)
SQUARE = 4.0  # of the radius of the ball of class 0: under the larger level it is lost even at its centre
NORMAL = np.random.default_rng(1).normal(size=DIM)
NORMAL /= np.linalg.norm(NORMAL)


def router_logits(params, images):
    lead = 20 * jnp.sum((images.reshape(-1, DIM) - 0.5) * params[None], axis=1)
    return jnp.stack([lead, -lead], axis=1)


def ball_logits(params, images):
    lead = 5 * (params - jnp.sum((images.reshape(-1, DIM) - 0.5) ** 2, axis=1))
    return jnp.stack([lead, -lead, jnp.full_like(lead, -1e3)], axis=1)


def routed():
    ball = Classifier(ball_logits, jnp.asarray(SQUARE), classes=3, image_shape=SHAPE)
    router = Classifier(router_logits, jnp.asarray(NORMAL, jnp.float32), classes=2, image_shape=SHAPE)
    return ball.routed_by(router)


def truth(points):
    """The router's probability of answer 0 and class 0's under each level: points [P, DIM] -> [P], [P, 2]."""
    shifts = points.reshape(-1, DIM) - 0.5
    router, *levels = schemes.least_levels(SCHEME)
    inside = [special.chndtr(SQUARE / s**2, DIM, np.sum(shifts**2, axis=1) / s**2) for s in levels]
    return stats.norm.cdf(shifts @ NORMAL / router), np.stack(inside, axis=1)


def class_of(points):
    """The smoothed classifier's."""
    answer, inside = truth(points)
    return (inside[np.arange(len(inside)), (answer <= 0.5).astype(int)] <= 0.5).astype(int)


@pytest.fixture(scope="module")
def searched():
    """24 images on the side of the small level, at 4 distances, and their radii by true probabilities."""
    generator = np.random.default_rng(3)
    ways = generator.normal(size=(24, DIM)) * 0.15
    ways += (np.abs(generator.uniform(0.05, 0.6, 24)) - ways @ NORMAL)[:, None] * NORMAL
    images = (0.5 + ways).reshape(-1, *SHAPE).astype(np.float32)
    made = Bounds(SCHEME, Fixed(), 0.001, DIM)
    answer, inside = truth(images.astype(np.float64))
    assert np.all(answer > 0.5)
    classes = np.where(inside[:, :1] > 0.5, inside, 1 - inside).T
    p = np.clip(np.stack([answer, *classes]), 1e-8, 1 - 1e-8)
    three = np.stack([made.radius_of(level, one) for level, one in enumerate(p)])
    settings = Settings(votes=500, screening=200, steps=6, samples=16, restarts=1, refinements=3)
    searcher = Searcher(
        routed(), SCHEME, settings, key=random_keys.root(0), threshold=1e-5, mesh=devices.mesh(1), chunk=8192
    )
    budgets = [[float(r) * f for f in (0.5, 0.95, 1.3, 3.0)] for r in certified(three)]
    found = sorted(searcher.run(images, np.arange(24), class_of(images), budgets), key=lambda one: one.position)
    return three, found


def certified(three):
    """By the radii of the router, of the class under its level, and under the other one."""
    return np.minimum(three[1], np.maximum(three[0], three[2]))


def test_no_break_is_claimed_inside_the_radius_and_every_claim_is_true(searched):
    three, found = searched
    for one, radius in zip(found, certified(three), strict=True):
        for attempt in [*one.tried.values(), *([one.nearest] if one.nearest else [])]:
            lost = class_of(attempt.image.astype(np.float64))[0] != one.predict
            assert lost or not attempt.broken
            assert not lost or attempt.distance > radius - 1e-6


def test_the_router_is_pushed_to_another_answer_where_that_is_the_nearest_break(searched):
    """The half-space is at the router's radius exactly: breaks just beyond are found by its own attack."""
    (of_router, of_class, of_other), found = searched
    nearer = (of_router < of_class) & (of_other < of_router)
    assert nearer.sum() > 12
    distances = [one.nearest.distance / r for one, r in zip(found, of_router, strict=True) if one.nearest]
    assert len(distances) > 12
    assert min(distances) > 1 - 1e-6
    assert np.median(distances) < 1.6
    assert "router" in {one.nearest.attack for one in found if one.nearest}
    level = schemes.drawn_levels(SCHEME, 0.0)
    assert {one.nearest.sigma_x for one in found if one.nearest} <= set(level)


def test_votes_of_a_router_of_other_answers_stand_beside_those_of_classes():
    images = np.full((2, *SHAPE), 0.5, np.float32)
    scheme = schemes.Routed(sigma=0.4, levels=(0.5, 2.0), router_level=1.0)
    keys = [random_keys.root(level) for level in range(3)]
    votes = point_votes.count(
        unmeasured(routed(), chunk=16), scheme, images, indices=[0, 1], first=np.zeros(2, int), n=np.full(2, 40),
        keys=keys,
    )  # fmt: skip
    assert votes.shape == (2, 3, 4)
    assert votes.sum(axis=2).tolist() == [[40] * 3] * 2
    assert votes[:, 0, 2:].sum() == 0


VOTES = np.array(
    [
        [[90, 10, 0, 0], [30, 50, 20, 0], [0, 99, 1, 0]],
        [[20, 70, 0, 10], [30, 50, 20, 0], [10, 10, 80, 0]],
        [[60, 40, 0, 0], [99, 1, 0, 0], [10, 90, 0, 0]],
        [[0, 0, 0, 0]] * 3,
    ]
)


def test_the_way_in_which_a_class_loses_under_a_router():
    ways, shares = breaks.likeliest(SCHEME, VOTES, np.zeros(4, int))
    assert ways[:3].tolist() == [1 * 3 + 1, 2 * 3 + 2, 2 * 3 + 1]
    np.testing.assert_allclose(shares, [50 / 80, 0.7, 0.4, 0])
    found = [breaks.p_value(SCHEME, one, 0, int(way)) for one, way in zip(VOTES[:3], ways, strict=False)]
    sf = stats.binom.sf
    expected = [
        max((sf(89, 100, 0.5), 0), (sf(49, 80, 0.5), 1)),
        max((sf(69, 100, 0.5), 0), (sf(79, 90, 0.5), 2)),
        max((sf(39, 100, 0.5), 0), (sf(89, 100, 0.5), 2)),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-9)
        assert one[1] == other[1]


@pytest.mark.parametrize("level", [1, 2])
def test_a_false_claim_about_a_router_has_a_small_p_value_as_rarely_as_it_says(level):
    """By the exact law of the votes, n = 30, for probabilities of answer and rival at which the way is not taken."""
    n, k = 30, np.arange(31)

    def p_value(a, b):
        votes = np.zeros((3, 3), int)
        votes[0, level - 1], votes[0, 2 - level] = a, n - a
        votes[level, 1], votes[level, 0] = b, n - b
        return breaks.p_value(SCHEME, votes, 0, level * 2 + 1)[0]

    p_values = np.array([[p_value(a, b) for b in k] for a in k])
    for answer, rival in ((0.5, 0.9), (0.3, 0.99), (0.9, 0.5), (0.99, 0.4), (0.5, 0.5)):
        law = np.outer(stats.binom.pmf(k, n, answer), stats.binom.pmf(k, n, rival))
        for t in (0.5, 0.05, 0.001):
            assert law[p_values <= t].sum() <= t * (1 + 1e-6)
    assert np.outer(stats.binom.pmf(k, n, 0.5), stats.binom.pmf(k, n, 0.99))[p_values <= 0.05].sum() > 0.01
