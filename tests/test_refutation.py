"""Claims against base classifiers whose smoothed decision has a formula, computed here without the package."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from idrc_jax import certificates, devices, prng, refutation, schemes
from idrc_jax.checkpoints import Classifier
from idrc_jax.refutation import Searcher, Settings, break_p_value

SHAPE, DIM = (4, 4, 1), 16
SCHEMES = {
    "gaussian": schemes.Gaussian(sigma=0.3),
    "l1": schemes.L1(sigma=0.3, ref=0.5),
    "inverse_sqrt_norm": schemes.InverseSqrtNorm(sigma=0.3, ref=2.0),
    "stepped": schemes.Stepped(sigma=0.3, by="mean_abs", edges=(0.45, 0.55), levels=(0.8, 1.0, 1.2)),
    "l2": schemes.L2(sigma=0.6),
}


class HalfSpace:
    """Class 0 where normal . z > offset. Under symmetric noise the nearest break is at the plane, whatever the law."""

    normal = np.random.default_rng(1).normal(size=DIM) / 4
    normal /= np.linalg.norm(normal)
    offset = 0.5 * normal.sum()

    def logits(self, params, images):
        lead = 20 * (jnp.sum(images.reshape(-1, DIM) * params[None], axis=1) - self.offset)
        return jnp.stack([lead, -lead], axis=1)

    def probability(self, points, level):
        return stats.norm.cdf((points.reshape(-1, DIM) @ self.normal - self.offset) / level)

    def nearest(self, scheme, image):
        return abs(image.ravel() @ self.normal - self.offset)

    params = jnp.asarray(normal, jnp.float32)


class Ball:
    """Class 0 within a distance of a centre."""

    centre = np.full(DIM, 0.5)
    square = 2.5

    def logits(self, params, images):
        from_centre = images.reshape(-1, DIM) - params[None]
        lead = 5 * (self.square - jnp.sum(from_centre * from_centre, axis=1))
        return jnp.stack([lead, -lead], axis=1)

    def probability(self, points, level):
        shift = np.sum((points.reshape(-1, DIM) - self.centre) ** 2, axis=1)
        return stats.ncx2.cdf(self.square / level**2, DIM, shift / level**2)

    def nearest(self, scheme, image):
        """Distance to the centre and level decide, so the way lies in the plane of the centre and the brightness."""
        away = image.ravel() - self.centre
        first = away / np.linalg.norm(away)
        second = np.ones(DIM) / 4 - first * first.sum() / 4
        second /= np.linalg.norm(second)
        angles = np.linspace(0, 2 * np.pi, 1441)[:-1, None]
        ways = np.cos(angles) * first + np.sin(angles) * second
        before = self._wins(scheme, image.reshape(1, DIM))[0]
        low, high = np.zeros(1440), np.full(1440, 2.0)
        for _ in range(20):
            middle = (low + high) / 2
            same = self._wins(scheme, image.ravel() + middle[:, None] * ways) == before
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        return high.min()

    def _wins(self, scheme, points):
        return self.probability(points, schemes.host_scale(scheme, points.reshape(-1, *SHAPE))[1]) > 0.5

    params = jnp.asarray(centre, jnp.float32)


def classifier(kind):
    return Classifier(apply_fn=kind.logits, params=kind.params, classes=2, image_shape=SHAPE)


def images_and_truth(kind, scheme, low, high, count, seed=0):
    """Images whose class has a probability in (low, high): images, classes, probabilities, levels."""
    generator = np.random.default_rng(seed)
    images = generator.uniform(0.2, 0.8, (200 * count, *SHAPE)) + generator.uniform(-0.15, 0.15, (200 * count, 1, 1, 1))
    images = images.astype(np.float32)
    level = schemes.host_scale(scheme, images)[1]
    p = kind.probability(images.astype(np.float64), level)
    classes = (p < 0.5).astype(int)
    p = np.maximum(p, 1 - p)
    chosen = np.flatnonzero((p > low) & (p < high))[:count]
    assert len(chosen) == count
    return images[chosen], classes[chosen], p[chosen], level[chosen]


def search(kind, scheme, images, classes, budgets, *, threshold, seed=0, **settings):
    searcher = Searcher(
        classifier(kind),
        scheme,
        Settings(**settings),
        key=prng.root(seed),
        threshold=threshold,
        chunk=8192,
        mesh=devices.mesh(1),
    )
    found = {one.position: one for one in searcher.run(images, np.arange(len(images)), classes, budgets)}
    return [found[i] for i in range(len(images))]


NEAREST = [(HalfSpace(), "gaussian"), (HalfSpace(), "l1"), (HalfSpace(), "l2"), (Ball(), "gaussian")]


@pytest.mark.parametrize(("kind", "name"), NEAREST, ids=[f"{type(kind).__name__}-{name}" for kind, name in NEAREST])
def test_the_nearest_break_is_found_within_five_percent(kind, name):
    scheme = SCHEMES[name]
    images, classes, _, level = images_and_truth(kind, scheme, 0.8 if name == "l2" else 0.87, 0.97, 2)
    budgets = [(level * f).tolist() for f in (0.3, 0.8, 1.4, 2.4)]
    found = search(
        kind, scheme, images, classes, np.transpose(budgets).tolist(), threshold=1e-6,
        votes=300_000, screening=100_000, steps=15, samples=32, restarts=1,
    )  # fmt: skip
    for one, image in zip(found, images, strict=True):
        truth = kind.nearest(scheme, image.astype(np.float64))
        assert one.nearest is not None
        assert truth * (1 - 1e-3) < one.nearest.distance < 1.05 * truth
        assert one.nearest.distance == pytest.approx(np.linalg.norm(one.nearest.image.astype(float) - image), rel=1e-6)
        assert sum(one.nearest.votes) == 300_000
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
    attempts = 400 * Settings(restarts=1).attempts(5)
    found = search(
        kind, scheme, images, classes, budgets, threshold=0.001 / attempts,
        votes=500, screening=100, steps=6, samples=16, restarts=1,
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
        assert one.confirmed <= Settings(restarts=1).attempts(5)
    assert broken > 80


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
    settings = Settings(votes=400, screening=50, steps=2, samples=4, restarts=2)
    searcher = Searcher(even, SCHEMES["gaussian"], settings, key=prng.root(1), threshold=0.05, chunk=8192)
    found = list(searcher.run(images, np.arange(600), np.arange(600) % 2, [[0.5]] * 600))
    confirmed, claimed = sum(one.confirmed for one in found), sum(one.confirmed - one.failed for one in found)
    assert confirmed > 600
    assert claimed / confirmed < 0.05 + 3 * np.sqrt(0.05 * 0.95 / confirmed)
    assert claimed / confirmed > 0.025
    level = 0.05 * settings.attempts(1)
    assert np.mean([one.nearest is not None for one in found]) < level + 3 * np.sqrt(level / 600)


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
        key=prng.root(0),
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
    searcher = Searcher(classifier(HalfSpace()), schemes.L1(sigma=1.0), Settings(), key=prng.root(0), threshold=0.01)
    points = np.stack([np.zeros(SHAPE), np.full(SHAPE, 0.5)]).astype(np.float32)
    votes = searcher._draw(points, [0, 1], prng.SCREENING, first=np.zeros(2, int), n=np.full(2, 10))
    assert votes.sum(axis=1).tolist() == [0, 10]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"level": 0.0}, r"0 < audit\.level < 1"),
        ({"votes": 0}, r"audit\.votes >= 1"),
        ({"images": -1}, r"audit\.images >= 0"),
        ({"fractions": (0.5, 0.0)}, r"audit\.fractions > 0"),
        ({"radii": (0.5, 0.5)}, r"audit\.radii that differ"),
        ({"saved": 65}, r"audit\.saved <= 64, got 65"),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(ValueError, match=message):
        refutation.Settings(**changed)
