"""Attacks in l1 and linf: steps and projections by their definitions, breaks where a formula has the nearest one."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_search import DIM, SHAPE, HalfSpace, classifier, images_and_truth

from idrc_jax import audit, certification, results
from idrc_jax.audit import attacks, balls
from idrc_jax.audit.attacks import Targets
from idrc_jax.audit.search import Searcher
from idrc_jax.audit.settings import Settings
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.results import audit_rows, recertify
from idrc_jax.sampling import devices, random_keys

ORDERS = {"l1": 1, "l2": 2, "linf": np.inf}
DUAL = {"l1": np.inf, "l2": 2, "linf": 1}


def lengths(images, norm):
    return np.linalg.norm(np.asarray(images, np.float64).reshape(len(images), -1), ORDERS[norm], axis=1)


@pytest.mark.parametrize("norm", ORDERS)
def test_the_projection_is_the_nearest_point_of_the_ball(norm):
    """What is left is at an obtuse angle to every way from there into the ball (its vertices and 300 random points);
    points inside stay."""
    generator = np.random.default_rng(0)
    shifts = generator.normal(size=(40, *SHAPE)) * generator.uniform(0.01, 1, (40, 1, 1, 1))
    budgets = generator.uniform(0.2, 1, 40) * {"l1": 8, "l2": 2, "linf": 1}[norm]
    made = np.asarray(balls.projected(jnp.asarray(shifts), jnp.asarray(budgets), norm), np.float64)
    inside = lengths(shifts, norm) <= budgets
    assert 3 < np.sum(inside) < 37
    np.testing.assert_allclose(made[inside], shifts[inside], rtol=1e-5)
    assert np.all(lengths(made, norm) <= budgets * (1 + 1e-5))
    others = generator.normal(size=(300, DIM))
    others = np.concatenate([others, np.eye(DIM), -np.eye(DIM), np.sign(others)])
    others /= np.linalg.norm(others, ORDERS[norm], axis=1)[:, None]
    for shift, point, budget in zip(shifts.reshape(40, -1), made.reshape(40, -1), budgets, strict=True):
        assert np.max((budget * others - point) @ (shift - point)) < 1e-4


@pytest.mark.parametrize("norm", ORDERS)
def test_a_steepest_step_of_length_one_gains_the_dual_norm(norm):
    gradients = np.random.default_rng(0).normal(size=(30, *SHAPE))
    for made in (balls.steepest(gradients, norm), np.asarray(balls.steepest(jnp.asarray(gradients), norm))):
        np.testing.assert_allclose(lengths(made, norm), 1, rtol=1e-6)
        gained = np.sum(made * gradients, axis=(1, 2, 3))
        np.testing.assert_allclose(gained, np.linalg.norm(gradients.reshape(30, -1), DUAL[norm], axis=1), rtol=1e-5)
    assert not np.any(balls.steepest(np.zeros((1, *SHAPE)), norm))


def test_in_many_dimensions_the_largest_hundredth_of_values_shares_an_l1_step():
    gradient = np.random.default_rng(0).normal(size=(1, 32, 32, 3))
    made = balls.steepest(gradient, "l1")
    (moved,) = np.nonzero(made.ravel())
    assert set(moved) == set(np.argsort(-np.abs(gradient.ravel()))[:31])
    assert np.abs(made).sum() == pytest.approx(1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("norm", ORDERS)
def test_points_are_strictly_inside_their_balls_and_reach_their_edges(norm, exact):
    generator = np.random.default_rng(0)
    images = (generator.integers(0, 256, (20, 8, 8, 3)) / np.float32(255)).astype(np.float32)
    budgets = np.full(20, {"l1": 6.0, "l2": 0.8, "linf": 0.11}[norm])
    targets = Targets(images, np.arange(20), np.zeros(20, int), budgets, exact, norm)
    points = attacks.within(targets, images + generator.normal(size=images.shape), stretch=True)
    reached = lengths(points.astype(np.float64) - images, norm)
    assert np.all(reached < budgets)
    assert np.all(reached > budgets * (0.97 if not exact else 0.9))
    np.testing.assert_allclose(balls.distances(images, points, norm), reached, rtol=1e-12)
    if exact:
        grey = points.astype(np.float64) * 255
        np.testing.assert_allclose(grey, np.rint(grey), atol=1e-3)


@pytest.mark.parametrize(
    ("scheme", "norm"),
    [
        (schemes.Box(sigma=0.3), "l1"),
        pytest.param(schemes.Laplace(sigma=0.3), "l1", marks=pytest.mark.evidence),
        pytest.param(schemes.Gaussian(sigma=0.3), "linf", marks=pytest.mark.evidence),
        pytest.param(schemes.Gaussian(sigma=0.3), "l1", marks=pytest.mark.evidence),
        pytest.param(schemes.L1(sigma=0.3, ref=0.5), "linf", marks=pytest.mark.evidence),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_the_nearest_break_is_found_within_five_percent(scheme, norm):
    """Symmetric noise, a half-space: the nearest break is at the plane, its distance by the dual norm of the normal."""
    kind = HalfSpace()
    images, classes, _, level = images_and_truth(kind, scheme, 0.87, 0.97, 30)
    chosen = [np.flatnonzero(classes == one)[0] for one in (0, 1)]
    images, classes, level = images[chosen], classes[chosen], level[chosen]
    dual = np.linalg.norm(kind.normal, DUAL[norm])
    budgets = np.outer(level, np.asarray([0.15, 0.4, 0.8, 1.4, 2.4]) / dual).tolist()
    searcher = Searcher(
        classifier(kind), scheme, Settings(votes=300_000, screening=100_000, steps=15, samples=64, restarts=1),
        key=random_keys.root(0), threshold=1e-6, norm=norm, chunk=8192, mesh=devices.mesh(1),
    )  # fmt: skip
    found = list(searcher.run(images, np.arange(2), classes, budgets))
    assert len(found) == 2
    for one in found:
        image = images[one.position].astype(np.float64)
        truth = abs(image.ravel() @ kind.normal - kind.offset) / dual
        assert one.nearest is not None
        assert truth * (1 - 1e-3) < one.nearest.distance < 1.05 * truth
        (length,) = lengths((one.nearest.image - image)[None], norm)
        assert one.nearest.distance == pytest.approx(length, rel=1e-6)
        for budget, attempt in one.tried.items():
            assert lengths((attempt.image - image)[None], norm)[0] < budget


SETTINGS = audit.Settings(
    images=12, fractions=(0.5, 1.0, 4.0), radii=(), votes=500, screening=100, steps=6, samples=16, restarts=1,
    refinements=1,
)  # fmt: skip


@pytest.mark.parametrize(("name", "norm"), [("laplace", "l1"), ("gaussian", "linf")])
def test_an_audit_of_a_run_is_in_the_runs_norm(linear, dataset, tmp_path, name, norm):
    """No valid radius is broken; farther out there are breaks, at the distances in that norm that the rows say."""
    indices, scheme = np.arange(0, 60, 5), schemes.make(name, sigma=0.5)
    plan = sampling_plans.Fixed(n0=20, n=1000)
    certification.certify_dataset(
        linear, scheme, dataset, indices, certification.Settings(plan=plan), tmp_path / "run", chunk=64
    )
    read = results.read_results(tmp_path / "run")
    if norm == "linf":
        read = recertify.recertify(read, norm=norm).save(tmp_path / "stated")
    assert {row.norm for row in read} == {norm}
    assert audit.audit_certificates(linear, dataset, indices, read, SETTINGS, tmp_path / "audit", chunk=64)
    found = audit_rows.read_audit(tmp_path / "audit")
    assert found.manifest["certificates"]["norm"] == norm
    assert not [row for row in found.rows if row.kind == "radius" and row.broken and row.distance < row.radius]
    assert any(row.broken for row in found.rows)
    assert f"radii in {norm}" in audit_rows.table(found.manifest)
    kept = audit_rows.read_images(tmp_path / "audit")
    assert len(kept["idx"])
    shifts = kept["image"].astype(np.float64) - kept["original"]
    np.testing.assert_allclose(lengths(shifts, norm), kept["distance"], rtol=1e-6)
