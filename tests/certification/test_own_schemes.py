"""Schemes of the user's own in Python: what claims too much, or would be taken for something else, is refused before a
vote is drawn."""

import dataclasses

import numpy as np
import pytest
from own_schemes import Own

import idrc_jax as idrc
from idrc_jax import certificates, data
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import Fixed, ToSignificance
from idrc_jax.certification import Settings, certify_dataset, estimate, guarantee
from idrc_jax.sampling import implementation_choice


class TooNarrow(Own):
    name = "too_narrow"

    def scale_bounds(self, statistic, distance, dim):
        return self.scale(statistic), self.scale(statistic)


class Dark(Own):
    name = "dark"

    def scale(self, statistic):
        return self.sigma * statistic


class Largest(schemes.L1):
    """Its name is that of its parent."""

    def statistic(self, images):
        return images.__array_namespace__().max(images, axis=(-3, -2, -1))

    def scale_bounds(self, statistic, distance, dim):
        return self.scale(statistic - distance), self.scale(statistic + distance)


PLAN = Fixed(n0=20, n=100)


def job(run, images, *more):
    return run[0](run[1], run[2], data.from_arrays(images, classes=3), np.arange(len(images)), Settings(PLAN), *more)


WAYS = {
    "certify": lambda classifier, scheme, images, folder: idrc.certify(classifier, scheme, images, n=100),
    "certify_dataset": lambda *run: job((certify_dataset, *run[:2]), run[2], run[3]),
    "estimate": lambda *run: job((estimate, *run[:2]), run[2]),
    "SmoothedClassifier": lambda *run: idrc.SmoothedClassifier(*run[:2], n=100).certify(run[2]),
}


@pytest.fixture
def no_votes(monkeypatch):
    """Whoever would begin to sample fails."""
    monkeypatch.setattr(implementation_choice, "choose", lambda *given, **more: pytest.fail("began to sample"))


@pytest.mark.parametrize("way", WAYS)
def test_wrong_bounds_and_others_names_are_refused_wherever_radii_come_from(no_votes, linear, pictures, tmp_path, way):
    with pytest.raises(ValueError, match="levels of too_narrow within its scale_bounds"):
        WAYS[way](linear, TooNarrow(sigma=0.5), pictures, tmp_path)
    with pytest.raises(ValueError, match=r"Largest to have a name of its own, none of gaussian, .* got 'l1'"):
        WAYS[way](linear, Largest(sigma=0.5), pictures, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_smoothed_classifier_searches_the_bounds_once(monkeypatch, linear, pictures):
    searched, real = [], schemes.check
    monkeypatch.setattr(schemes, "check", lambda *given: searched.append(1) or real(*given))
    smoothed = idrc.SmoothedClassifier(linear, Own(sigma=0.5), n=100, chunk=64)
    assert len(smoothed.certify(pictures[:0]).radii) == 0
    assert not searched
    for _ in range(2):
        smoothed.certify(pictures[:1])
    assert len(searched) == 1


def test_where_no_image_has_noise_there_is_nothing_to_search(linear):
    smoothed = idrc.SmoothedClassifier(linear, Dark(sigma=0.5), n=100, chunk=64)
    assert smoothed.certify(np.full((1, 4, 4, 1), 0.5, np.float32)).abstained.all()


def with_field(name, value=2.0):
    return dataclasses.make_dataclass("Named", [(name, object, value)], bases=(Own,), frozen=True)(sigma=0.5)


@pytest.mark.parametrize("name", ["alpha", "seed", "n", "dim", "scheme", "scheme_class", "k", "paired"])
def test_a_field_that_a_manifest_would_lose_is_refused(no_votes, linear, pictures, name):
    with pytest.raises(ValueError, match=f"fields of Named with other names than the settings beside them, got {name}"):
        idrc.certify(linear, with_field(name), pictures, n=100)


def test_names_that_nothing_else_has_are_kept(linear, pictures):
    described = guarantee.describe_guarantee
    dataset, indices = data.from_arrays(pictures, classes=3), np.arange(5)
    assert described(linear, with_field("sequence"), dataset, indices, Settings(PLAN))["sequence"] == 2
    with pytest.raises(ValueError, match="got sequence"):
        guarantee.describe_prediction(
            linear, with_field("sequence"), dataset, indices, plan=ToSignificance(n=100), alpha=0.001, seed=0
        )
    imported = dataclasses.replace(linear, description={"imported": "x", "mean": [0.5], "std": [0.2]})
    assert described(imported, Own(sigma=0.5), dataset, indices, Settings(PLAN))["mean"] == [0.5]
    with pytest.raises(ValueError, match="got std"):
        described(imported, with_field("std"), dataset, indices, Settings(PLAN))


def test_numbers_of_numpy_are_numbers(linear, pictures):
    plan = Fixed(n=np.int64(100), n0=np.int32(20))
    made = idrc.certify(linear, "gaussian", pictures[:1], sigma=np.float32(0.5), plan=plan, seed=np.uint64(3), chunk=64)
    plain = idrc.certify(linear, "gaussian", pictures[:1], sigma=0.5, plan=PLAN, seed=3, chunk=64)
    assert made.manifest["guarantee"] == plain.manifest["guarantee"]
    assert made.rows[0].radius == plain.rows[0].radius
    ref = np.float32(0.47658)
    for scheme, like in (
        (schemes.L1(np.float32(0.3), ref), schemes.L1(float(np.float32(0.3)), float(ref))),
        (schemes.Stepped(0.3, "std", (ref,), (ref, 1)), schemes.Stepped(0.3, "std", (float(ref),), (float(ref), 1.0))),
    ):
        assert certificates.radius(scheme, 0.3, 0.9, dim=48) == certificates.radius(like, 0.3, 0.9, dim=48)
    assert Settings(PLAN, np.float32(0.001)).alpha == float(np.float32(0.001))
    assert type(Settings(PLAN, np.float32(0.001)).alpha) is float


def test_what_no_manifest_can_hold_is_refused_first(no_votes, linear, pictures):
    with pytest.raises(ValueError, match="Expected numbers, texts and lists of them in settings, got <built-in"):
        idrc.certify(linear, with_field("table", len), pictures, n=100)
