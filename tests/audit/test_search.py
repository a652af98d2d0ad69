"""Claims against base classifiers whose smoothed decision has a formula, computed here without the package."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from idrc_jax import certificates, certification, sampling
from idrc_jax.audit import Settings, breaks, point_votes, significance
from idrc_jax.audit.search import Searcher
from idrc_jax.audit.significance import break_p_value
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, random_keys
from idrc_jax.several_levels.cascade import Bounds

SHAPE, DIM = (4, 4, 1), 16
SCHEMES = {
    "gaussian": schemes.Gaussian(sigma=0.3),
    "l1": schemes.L1(sigma=0.3, ref=0.5),
    "inverse_sqrt_norm": schemes.InverseSqrtNorm(sigma=0.3, ref=2.0),
    "stepped": schemes.Stepped(sigma=0.3, by="mean_abs", edges=(0.45, 0.55), levels=(0.8, 1.0, 1.2)),
    "l2": schemes.L2(sigma=0.6),
}
CASCADE = schemes.Cascade(sigma=0.4, levels=(1.0, 0.5), thresholds=(0.75,))


def probability_that_decides(kind, scheme, points):
    """Class 0's under the first level that is sure of either class."""
    large, small = (kind.probability(points, scheme.sigma * level) for level in scheme.levels)
    return np.where(np.maximum(large, 1 - large) > scheme.thresholds[0], large, small)


class HalfSpace:
    """Class 0 where normal . z > offset. Under symmetric noise the nearest break is at the plane, whatever the law."""

    normal = np.random.default_rng(1).normal(size=DIM) / 4
    normal /= np.linalg.norm(normal)
    grey = 0.5
    offset = grey * normal.sum()

    def logits(self, params, images):
        lead = 20 * (jnp.sum(images.reshape(-1, DIM) * params[None], axis=1) - self.offset)
        return jnp.stack([lead, -lead], axis=1)

    def probability(self, points, level):
        return stats.norm.cdf((points.reshape(-1, DIM) @ self.normal - self.offset) / level)

    def probability_under(self, scheme, points):
        """Under `l2` and `uniform` a guess, by which images are chosen."""
        if scheme.name == "cascade":
            return probability_that_decides(self, scheme, points)
        return self.probability(points, schemes.host_scale(scheme, points.reshape(-1, *SHAPE))[1])

    def nearest(self, scheme, image):
        return abs(image.ravel() @ self.normal - self.offset)

    params = jnp.asarray(normal, jnp.float32)


class Ball:
    """Class 0 within a distance of a grey image."""

    def __init__(self, grey=0.5, square=2.5):
        self.grey, self.square, self.centre = grey, square, np.full(DIM, grey)
        self.params = jnp.asarray(self.centre, jnp.float32)

    def logits(self, params, images):
        from_centre = images.reshape(-1, DIM) - params[None]
        lead = 5 * (self.square - jnp.sum(from_centre * from_centre, axis=1))
        return jnp.stack([lead, -lead], axis=1)

    def probability(self, points, level):
        return special.chndtr(self.square / level**2, DIM, self._square_distance(points) / level**2)

    def probability_under(self, scheme, points):
        level = schemes.host_scale(scheme, points.reshape(-1, *SHAPE))[1]
        if scheme.name == "cascade":
            return probability_that_decides(self, scheme, points)
        if scheme.name != "l2":
            return self.probability(points, level)
        # y + t u, y = x' - c, t the noise's length, u a direction: inside where <y / |y|, u> is at most `most`, and
        # (1 + <y / |y|, u>) / 2 is Beta((d - 1) / 2, (d - 1) / 2). t at the quantiles of 100 equal slices.
        length = level[:, None] * stats.halfnorm.ppf((np.arange(100) + 0.5) / 100)
        far = self._square_distance(points)[:, None]
        most = np.clip((self.square - far - length**2) / (2 * np.sqrt(far) * length), -1, 1)
        return special.betainc((DIM - 1) / 2, (DIM - 1) / 2, (1 + most) / 2).mean(axis=1)

    def nearest(self, scheme, image):
        """The first radius around x at which there is a break in the plane through x along x - c and 1 = (1, ..., 1).

        No x' is nearer. Let y = x' - c. The decision depends on |y| and on the level, that on mean |x'| (of positive
        values: c + <y, 1> / d) or on |x'|^2 = |y|^2 + 2 c <y, 1> + d c^2: it depends on |y| and <y, 1> alone. Keep both
        and turn what y has across 1 towards what x - c has: <y, x - c> grows, so |x' - x| shrinks, and x' is in the
        plane.
        """
        x = image.ravel()
        along = np.ones(DIM) / np.sqrt(DIM)
        across = x - self.centre - along * (along @ (x - self.centre))
        across /= np.linalg.norm(across)
        before = self.probability_under(scheme, x)[0] > 0.5

        def breaks(radius, angles):
            ways = np.cos(angles)[:, None] * along + np.sin(angles)[:, None] * across
            return (self.probability_under(scheme, x + radius * ways) > 0.5) != before

        angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
        high = next(radius for radius in np.arange(1, 200) / 100 if np.any(breaks(radius, angles)))
        low = high - 0.01
        for _ in range(2):
            for _ in range(12):
                middle = (low + high) / 2
                low, high = (low, middle) if np.any(breaks(middle, angles)) else (middle, high)
            angles = angles[np.argmax(breaks(high, angles))] + np.linspace(-1, 1, 361) * (angles[1] - angles[0])
            low -= 0.01
        assert high < np.min(x) or scheme.name not in ("l1", "stepped")  # all values are positive
        return high

    def _square_distance(self, points):
        return np.sum((points.reshape(-1, DIM) - self.centre) ** 2, axis=1)


def classifier(kind):
    return Classifier(apply_fn=kind.logits, params=kind.params, classes=2, image_shape=SHAPE)


def images_and_truth(kind, scheme, low, high, count, seed=0):
    """Images whose class has a probability in (low, high): images, classes, probabilities, levels."""
    generator = np.random.default_rng(seed)
    many = 200 * count
    brightness, contrast = generator.uniform(-0.15, 0.15, many), generator.uniform(0.02, 0.3, many)
    pattern = generator.uniform(-1, 1, (*SHAPE, many))
    images = np.moveaxis(kind.grey + brightness + contrast * pattern, -1, 0).astype(np.float32)
    p = kind.probability_under(scheme, images.astype(np.float64))
    classes = (p < 0.5).astype(int)
    p = np.maximum(p, 1 - p)
    chosen = np.flatnonzero((p > low) & (p < high))[:count]
    assert len(chosen) == count
    return images[chosen], classes[chosen], p[chosen], schemes.host_scale(scheme, images[chosen])[1]


def search(kind, scheme, images, classes, budgets, *, threshold, seed=0, **settings):
    searcher = Searcher(
        classifier(kind),
        scheme,
        Settings(**settings),
        key=random_keys.root(seed),
        threshold=threshold,
        chunk=8192,
        mesh=devices.mesh(1),
    )
    found = {one.position: one for one in searcher.run(images, np.arange(len(images)), classes, budgets)}
    return [found[i] for i in range(len(images))]


NEAREST = [
    (HalfSpace(), SCHEMES["gaussian"], 0.87, 0.97),
    (HalfSpace(), SCHEMES["l1"], 0.87, 0.97),
    (HalfSpace(), SCHEMES["inverse_sqrt_norm"], 0.87, 0.97),
    (HalfSpace(), SCHEMES["stepped"], 0.87, 0.97),
    (HalfSpace(), SCHEMES["l2"], 0.7, 0.97),
    (HalfSpace(), schemes.Uniform(sigma=0.1), 0.8, 0.97),
    (Ball(0.7, 1.9), SCHEMES["gaussian"], 0.75, 0.9),
    (Ball(0.7, 1.8), schemes.L1(sigma=0.3, ref=0.7), 0.75, 0.85),
    (Ball(0.7, 1.8), schemes.InverseSqrtNorm(sigma=0.3, ref=2.8), 0.78, 0.9),
    (Ball(0.7, 1.8), schemes.Stepped(sigma=0.3, by="mean_abs", edges=(0.66, 0.74), levels=(0.8, 1, 1.2)), 0.8, 0.9),
    (Ball(0.7, 0.7), SCHEMES["l2"], 0.8, 0.95),
    (HalfSpace(), CASCADE, 0.8, 0.97),
    (Ball(0.7, 2.2), CASCADE, 0.76, 1.0),
]


@pytest.mark.parametrize(
    ("kind", "scheme", "low", "high"),
    [
        pytest.param(
            *case,
            id=f"{type(case[0]).__name__}-{case[1].name}",
            marks=[pytest.mark.evidence] if case[1].name != "gaussian" else [],
        )
        for case in NEAREST
    ],
)
def test_the_nearest_break_is_found_within_five_percent(kind, scheme, low, high):
    """Of an image of each class. With the ball under `stepped`, one has its nearest break where an edge between bins
    meets the sphere at which the decision changes beyond it, the other at the edge itself."""
    # Under a cascade images far from a break, and more votes: near a threshold probabilities change slowly.
    count, many = (400, 3) if scheme is CASCADE else (30, 1)
    images, classes, p, level = images_and_truth(kind, scheme, low, high, count)
    far = p if scheme is CASCADE else np.zeros(count)
    chosen = [max(np.flatnonzero(classes == one), key=lambda i: far[i]) for one in (0, 1)]
    images, classes, level = images[chosen], classes[chosen], level[chosen]
    found = search(
        kind, scheme, images, classes, np.outer(level, (0.15, 0.4, 0.8, 1.4, 2.4)).tolist(), threshold=1e-6,
        votes=many * 300_000, screening=many * 100_000, steps=15, samples=64, restarts=1,
    )  # fmt: skip
    for one, image in zip(found, images, strict=True):
        truth = kind.nearest(scheme, image.astype(np.float64))
        assert one.nearest is not None
        assert truth * (1 - 1e-3) < one.nearest.distance < 1.05 * truth
        assert one.nearest.distance == pytest.approx(np.linalg.norm(one.nearest.image.astype(float) - image), rel=1e-6)
        assert sum(one.nearest.votes) == many * 300_000
        assert set(one.tried) >= {budget for budget in one.budgets if budget < truth}


VALID = [
    (HalfSpace(), "stepped"),
    (Ball(), "l1"),
    (Ball(), "inverse_sqrt_norm"),
]


@pytest.mark.parametrize(("kind", "name"), VALID, ids=[f"{type(kind).__name__}-{name}" for kind, name in VALID])
def test_no_break_is_claimed_inside_a_valid_radius_and_none_is_there(kind, name):
    """400 images at 5 distances in each of three cases: 6,000 rows. Radii are the largest that are valid: of
    the true probability. At every x' that is reported the decision follows from a formula."""
    scheme = SCHEMES[name]
    images, classes, p, _ = images_and_truth(kind, scheme, 0.6, 0.9999, 400)
    statistic = scheme.statistic(images.astype(np.float64))
    radii = certificates.radius(scheme, statistic, p, dim=DIM)
    assert np.mean(radii > 0.02) > 0.7
    budgets = [[float(radius) * f for f in (0.5, 0.9, 1.0, 1.5, 3.0)] for radius in radii]
    attempts = 400 * Settings(restarts=1, refinements=1).attempts(5)
    found = search(
        kind, scheme, images, classes, budgets, threshold=0.001 / attempts,
        votes=500, screening=100, steps=6, samples=16, restarts=1, refinements=1,
    )  # fmt: skip
    broken = 0
    for one, radius, wins in zip(found, radii, classes, strict=True):
        if one.nearest is not None:
            assert one.nearest.distance > radius
            broken += 1
        said = [(1, one.nearest)] if one.nearest else []
        for budget, attempt in [*one.tried.items(), *said]:
            truth = kind.probability(attempt.image.astype(np.float64), attempt.sigma_x)[0]
            truth = truth if wins == 0 else 1 - truth
            if attempt.distance < radius:
                assert truth > 0.5 - 1e-7
            if attempt.broken:
                assert truth < 0.5
            assert attempt is one.nearest or attempt.distance < budget
        tried = {budget for budget in one.budgets if one.nearest is None or budget <= one.nearest.distance}
        assert tried <= set(one.tried)
        assert one.confirmed <= Settings(restarts=1, refinements=1).attempts(5)
    assert broken > 80


@pytest.mark.parametrize("kind", [HalfSpace(), Ball(0.5, 2.2)])
def test_no_break_of_a_cascade_is_claimed_inside_its_radius_and_none_is_there(kind):
    """60 images at 4 distances. Radii are the largest that are valid: of the true probabilities under each level."""
    images, classes, _, _ = images_and_truth(kind, CASCADE, 0.55, 0.9999, 60)
    made = Bounds(CASCADE, Fixed(), 0.001, DIM)
    p = np.stack([kind.probability(images.astype(np.float64), level) for level in made.levels])
    p = np.clip(np.where(classes == 0, p, 1 - p), 1e-8, 1 - 1e-8)
    radii = np.maximum(made.own(0, p[0]), np.minimum(made.own(1, p[1]), made.room(0, 1 - p[0])))
    assert np.mean(radii > 0.02) > 0.7
    found = search(
        kind, CASCADE, images, classes, [[float(max(r, 0.01)) * f for f in (0.5, 1.0, 4.0, 12.0)] for r in radii],
        threshold=1e-5, votes=500, screening=200, steps=6, samples=16, restarts=1, refinements=1,
    )  # fmt: skip
    for one, radius, wins in zip(found, radii, classes, strict=True):
        tried = [*one.tried.values(), *([one.nearest] if one.nearest else [])]
        for attempt in tried:
            lost = (probability_that_decides(kind, CASCADE, attempt.image.astype(np.float64))[0] < 0.5) == (wins == 0)
            assert lost or not attempt.broken
            assert not lost or attempt.distance > radius - 1e-6
    assert sum(one.nearest is not None for one in found) > 15


def test_published_radii_are_broken_where_they_are_wrong():
    """`l1` near a half-space with ref = 1: the paper's radius is about twice the distance of the plane."""
    scheme, kind = schemes.L1(sigma=0.3), HalfSpace()
    images, classes, p, _ = images_and_truth(kind, scheme, 0.8, 0.98, 30)
    published = certificates.published_radius(scheme, p)
    found = search(
        kind, scheme, images, classes, [[float(radius)] for radius in published], threshold=1e-6,
        votes=4000, screening=1000, steps=10, samples=16, restarts=1,
    )  # fmt: skip
    assert all(
        one.nearest is not None and one.nearest.distance < 0.9 * r for one, r in zip(found, published, strict=True)
    )


def parity(params, images):
    """Stripes much finer than the noise: either class has probability 1/2 at every image, to 10^-30."""
    wave = 5 * jnp.sin(params * images[:, 0, 0, 0])
    return jnp.stack([wave, -wave], axis=1)


def test_false_claims_keep_their_level_at_the_boundary():
    """Everywhere p_A = p_B, to exp(-(40 * .3)^2 / 2) = 10^-31, so every claim is false, whatever the search."""
    even = Classifier(apply_fn=parity, params=jnp.float32(40), classes=2, image_shape=SHAPE)
    images = np.random.default_rng(0).uniform(size=(600, *SHAPE)).astype(np.float32)
    settings = Settings(votes=400, screening=50, steps=2, samples=4, restarts=2, refinements=1)
    searcher = Searcher(even, SCHEMES["gaussian"], settings, key=random_keys.root(1), threshold=0.05, chunk=8192)
    found = list(searcher.run(images, np.arange(600), np.arange(600) % 2, [[0.5]] * 600))
    confirmed, claimed = sum(one.confirmed for one in found), sum(one.confirmed - one.failed for one in found)
    assert confirmed > 600
    assert claimed / confirmed < 0.05 + 3 * np.sqrt(0.05 * 0.95 / confirmed)
    assert claimed / confirmed > 0.025
    level = 0.05 * settings.attempts(1)
    assert np.mean([one.nearest is not None for one in found]) < level + 3 * np.sqrt(level / 600)


def test_no_two_confirmations_of_an_image_share_votes(monkeypatch):
    even = Classifier(apply_fn=parity, params=jnp.float32(40), classes=2, image_shape=SHAPE)
    images = np.random.default_rng(0).uniform(size=(40, *SHAPE)).astype(np.float32)
    settings = Settings(votes=400, screening=50, steps=2, samples=4, restarts=2, refinements=1)
    searcher = Searcher(even, SCHEMES["gaussian"], settings, key=random_keys.root(1), threshold=0.05, chunk=8192)
    counted, count = {}, point_votes.count

    def noted(*arguments, indices, first, n, keys):
        if keys is searcher._keys[random_keys.CONFIRMATION]:
            for index, *samples in zip(indices, first, n, strict=True):
                counted.setdefault(index, []).append(tuple(samples))
        return count(*arguments, indices=indices, first=first, n=n, keys=keys)

    monkeypatch.setattr(point_votes, "count", noted)
    found = list(searcher.run(images, np.arange(40), np.arange(40) % 2, [[0.5]] * 40))
    assert max(one.confirmed for one in found) > 1
    for one in found:
        assert counted.get(one.index, []) == [(400 * i, 400) for i in range(one.confirmed)]


def test_the_family_of_claims_keeps_its_level():
    """4,000 audits of 20 attempts whose rival has exactly half of the votes: the level is that of any claim at all."""
    generator = np.random.default_rng(0)
    level, attempts = 0.2, 20
    either = generator.binomial(300, 0.8, (4000, attempts))
    own = generator.binomial(either, 0.5)
    rest = either - own
    votes = np.stack([own, rest, 300 - own - rest], axis=-1).reshape(-1, 3)
    p_values = np.array([break_p_value(counts, 1, 0) for counts in votes]).reshape(4000, attempts)
    claimed = np.mean(np.any(p_values <= level / attempts, axis=1))
    assert claimed < level + 3 * np.sqrt(level * (1 - level) / 4000)
    assert claimed > level / 3


def test_the_p_value_is_scipys():
    generator = np.random.default_rng(0)
    for votes in generator.integers(0, 40, (200, 4)):
        expected = stats.binomtest(int(votes[2]), max(int(votes[1] + votes[2]), 1), 0.5, alternative="greater").pvalue
        assert break_p_value(votes, 1, 2) == pytest.approx(expected, rel=1e-12)
    assert break_p_value(np.array([0, 0, 9]), 0, 1) == 1  # no vote for either


def test_an_images_search_does_not_depend_on_the_others():
    scheme, kind = SCHEMES["l1"], HalfSpace()
    images, classes, _, level = images_and_truth(kind, scheme, 0.8, 0.95, 6)
    searcher = Searcher(
        classifier(kind),
        scheme,
        Settings(votes=2000, steps=5, restarts=1),
        key=random_keys.root(0),
        threshold=1e-5,
        chunk=2048,
    )
    budgets = [[2.0 * one, 3.0 * one] for one in level]

    def run(chosen):
        made = searcher.run(images[chosen], chosen, classes[chosen], [budgets[i] for i in chosen])
        return {one.index: one.nearest for one in made}

    together = run(np.arange(6))
    for i, alone in (run(np.array([4, 2])) | run(np.array([5]))).items():
        assert alone.votes == together[i].votes
        assert alone.distance == pytest.approx(together[i].distance, rel=1e-5)


def test_no_votes_are_drawn_where_there_is_no_noise():
    points = np.stack([np.zeros(SHAPE), np.full(SHAPE, 0.5)]).astype(np.float32)
    votes = point_votes.count(
        sampling.unmeasured(classifier(HalfSpace()), devices.mesh(1), 64), schemes.L1(sigma=1.0), points,
        indices=[0, 1], first=np.zeros(2, int), n=np.full(2, 10), keys=[random_keys.root(0)],
    )  # fmt: skip
    assert votes.sum(axis=(1, 2)).tolist() == [0, 10]


def test_the_way_in_which_a_class_loses_under_a_cascade():
    """Thresholds .75 and .5: class 2 is sure under the first level; twice no level is sure of class 0; last, 1 would be
    if 0 were not."""
    votes = np.array(
        [
            [[5, 5, 90, 0], [60, 20, 20, 0]],
            [[60, 30, 5, 5], [30, 40, 20, 10]],
            [[20, 60, 20, 0], [2, 90, 8, 0]],
            [[90, 5, 5, 0], [0, 90, 10, 0]],
            [[0, 0, 0, 0]] * 2,
        ]
    )
    ways, shares = breaks.likeliest(CASCADE, votes, np.zeros(5, int))
    assert ways[:4].tolist() == [0 * 3 + 2, 2 * 3 + 1, 2 * 3 + 1, 1 * 3 + 1]
    np.testing.assert_allclose(shares, [0.5 + 0.15, 0.5 + 0.15, 0.5 + 0.48, 0.5 - 0.15, 0])
    found = [breaks.p_value(CASCADE, one, 0, int(way)) for one, way in zip(votes[:4], ways, strict=False)]
    expected = [
        (stats.binom.sf(89, 100, 0.75), 0),
        max((stats.binom.cdf(60, 100, 0.75), 0), (stats.binom.cdf(30, 100, 0.5), 1)),
        max((stats.binom.cdf(20, 100, 0.75), 0), (stats.binom.cdf(2, 100, 0.5), 1)),
        max((stats.binom.cdf(90, 100, 0.75), 0), (stats.binom.sf(89, 100, 0.5), 1)),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-9)
        assert one[1] == other[1]


@pytest.mark.parametrize("way", [0 * 2 + 1, 1 * 2 + 1, 2 * 2 + 1])
def test_a_false_claim_about_a_cascade_has_a_small_p_value_as_rarely_as_it_says(way):
    """By the exact law of the votes, n = 30, for probabilities of class 0 at which the way is just not taken."""
    n, k = 30, np.arange(31)
    p_values = np.array(
        [[breaks.p_value(CASCADE, np.array([[a, n - a, 0], [b, n - b, 0]]), 0, way)[0] for b in k] for a in k]
    )
    false = {
        1: [(0.25, 0.1), (0.25, 0.9)],
        3: [(0.75 + 1e-9, 0.1), (0.1, 0.5)],
        5: [(0.75 + 1e-9, 0.1), (0.1, 0.5 + 1e-9)],
    }
    for large, small in false[way]:
        law = np.outer(stats.binom.pmf(k, n, large), stats.binom.pmf(k, n, small))
        for t in (0.5, 0.05, 0.001):
            assert law[p_values <= t].sum() <= t * (1 + 1e-6)
        assert law[p_values <= 0.05].sum() > 0.01


def test_the_strongest_rival_is_the_others_first_and_its_share_is_of_both():
    votes = np.array([[5, 3, 9, 7], [0, 0, 4, 1], [2, 6, 6, 0], [0, 0, 0, 8]])
    rivals, shares = breaks.strongest_rivals(votes, np.array([2, 2, 0, 1]))
    assert rivals.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(shares, [5 / 14, 0, 6 / 8, 0])


def test_the_threshold_is_bonferronis_and_needs_votes_that_can_reach_it():
    assert significance.threshold(0.001, 1000, 20) == 1e-6
    assert significance.threshold(0.001, 0, 10) == 0.001
    with pytest.raises(ValueError, match=r"Expected votes >= 20, the fewest .* level 0\.001 in 1,000 attempts, got 19"):
        significance.threshold(0.001, 1000, 19)
    assert break_p_value(np.array([0, 20, 0]), 0, 1) <= 1e-6 < break_p_value(np.array([0, 19, 0]), 0, 1)


def test_under_splitting_breaks_are_of_another_answer_and_never_within_the_radius():
    """One pixel decides, and half of the offsets reach it: radii are whole numbers of grey levels, and attained."""
    scheme = schemes.Splitting(sigma=60 / (2 * 3**0.5 * 255))

    def logits(border, images):
        lead = images.reshape(-1, DIM)[:, 5] - border
        return jnp.stack([-20 * lead, 20 * lead], axis=1)

    classifier = Classifier(apply_fn=logits, params=jnp.float32(0.45), classes=2, image_shape=SHAPE)
    pixels = np.random.default_rng(0).integers(0, 256, (8, *SHAPE)).astype(np.uint8)
    pixels[:, 1, 1, 0] = np.arange(121, 137, 2)
    rows = certification.certify(classifier, scheme, pixels, certificate="two_sided", progress=False).rows
    chosen = [row for row in rows if row.predict == 1 and row.radius > 0.01]
    assert len(chosen) >= 4
    indices = np.array([row.idx for row in chosen])
    searcher = Searcher(
        classifier, scheme, Settings(votes=1, screening=100, steps=10, samples=16, restarts=2, refinements=0),
        key=random_keys.root(0), threshold=1e-6, norm="l1", mesh=devices.mesh(1), chunk=1024,
    )  # fmt: skip
    images = np.asarray(pixels[indices] / np.float32(255), np.float32)
    distances = [[row.radius, 2 * row.radius, 4 * row.radius] for row in chosen]
    found = {one.position: one for one in searcher.run(images, indices, np.ones(len(chosen), int), distances)}
    for position, row in enumerate(chosen):
        assert found[position].tried[row.radius].p_value == 1
        nearest = found[position].nearest
        assert nearest is not None
        assert row.radius <= nearest.distance < 4 * row.radius
        assert nearest.p_value == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"level": 0.0}, "0 < level < 1"),
        ({"votes": 0}, "Expected votes >= 1"),
        ({"images": -1}, "Expected images >= 0"),
        ({"refinements": -1}, "Expected refinements >= 0"),
        ({"fractions": (0.5, 0.0)}, "Expected fractions > 0"),
        ({"radii": (0.5, 0.5)}, "Expected radii that differ"),
        ({"saved": 65}, "Expected saved <= 64, got 65"),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changed)
