"""Routers from images to rows: whose votes are drawn under which level, and that only image and settings decide."""

import dataclasses
import json
import re
import shlex

import jax.numpy as jnp
import level_runs
import numpy as np
import pytest
from conftest import linear_logits
from level_runs import PLANS, without_time
from scipy import special

import idrc_jax as idrc
from idrc_jax import data, models, report, results, sampling, several_levels
from idrc_jax.certificates import confidence_bounds, schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.sampling_plans import SelectionFree
from idrc_jax.certification.in_memory import predict
from idrc_jax.models import Classifier
from idrc_jax.report import run_summaries
from idrc_jax.results import equal_terms
from idrc_jax.results.runs import Run
from idrc_jax.sampling import execution, random_keys
from idrc_jax.several_levels.routed import Bounds, PredictionCourse

SCHEME = schemes.Routed(sigma=0.5, levels=(0.3, 1.0), router_level=0.4)
LEVELS = (0.4, 0.3, 1.0)


@pytest.fixture(scope="module")
def dataset():
    return level_runs.made_images()


@pytest.fixture(scope="module")
def router():
    params = np.random.default_rng(2).normal(size=(2, 16)).astype(np.float32)
    return Classifier(apply_fn=linear_logits, params=jnp.asarray(params), classes=2, image_shape=(4, 4, 1))


@pytest.fixture(scope="module")
def routed(linear, router):
    return linear.routed_by(router)


def certify(routed, dataset, workdir, plan="to_radius", **more):
    return level_runs.certify(routed, SCHEME, dataset, workdir, plan, **more)


@pytest.mark.parametrize("plan", PLANS)
def test_votes_are_the_routers_and_then_those_under_its_level_each_with_keys_of_their_own(
    linear, router, routed, dataset, tmp_path, plan
):
    read = certify(routed, dataset, tmp_path, plan)
    root, images = random_keys.root(5), data.to_unit(dataset.images)

    def counted(row, one, stage, n):
        stage = random_keys.stage(root, random_keys.stage_of_level(stage, one.level))
        return sampling.count_votes(
            linear if one.level else router, schemes.Gaussian(SCHEME.sigma * LEVELS[one.level]), images[[row.idx]],
            indices=np.array([row.idx]), n=n, key=stage, chunk=64,
        )[0]  # fmt: skip

    for row in read.rows:
        first, *chosen = row.votes_by_level
        for one in row.votes_by_level:
            votes = counted(row, one, random_keys.ESTIMATION, sum(one.votes.values()))
            assert {k: int(v) for k, v in enumerate(votes[:-1]) if v} == one.votes
            if row.n0:
                assert one.selected == np.argmax(counted(row, one, random_keys.SELECTION, row.n0)[:-1])
        assert chosen[0].level == first.selected + 1
        assert (row.votes, row.selected, row.n) == (chosen[0].votes, chosen[0].selected, sum(row.votes.values()))
        assert row.sigma_x == np.float32(SCHEME.sigma * LEVELS[chosen[0].level])
        assert row.samples == sum(sum(one.votes.values()) + row.n0 for one in row.votes_by_level)
    assert {len(row.votes_by_level) for row in read.rows} == {2, 3}  # under the other level where the router cuts
    assert len({row.sigma_x for row in read.rows if row.radius > 0}) == 2
    assert sum(row.radius > 0 for row in read.rows) > 8
    assert results.base_accuracy(read) is not None


def test_rows_do_not_depend_on_chunk_order_restarts_or_workers(routed, dataset, tmp_path):
    level_runs.require_rows_that_depend_on_nothing_else(routed, SCHEME, dataset, tmp_path)


def test_stored_votes_give_the_rows_again_and_rows_that_were_changed_are_refused(routed, dataset, tmp_path):
    read = certify(routed, dataset, tmp_path, "fixed")
    assert repr(idrc.recertify.recertify(read).rows) == repr(read.rows)
    other = idrc.recertify.recertify(read, alpha=0.1)
    assert sum(new.radius for new in other.rows) > sum(old.radius for old in read.rows)
    with pytest.raises(ValueError, match="one level to take fewer votes"):
        idrc.recertify.recertify(read, n=100)
    assert results.largest_radius(read) >= max(row.radius for row in read.rows)
    table = results.summary_table(read)
    assert "routed, levels 0.15, 0.5, router at 0.2, " in table
    cut = sum(row.radius < (1 - 1e-6) * row.sigma_x * special.ndtri(row.p_lower) for row in read.rows if row.radius > 0)
    assert cut > 2
    assert f" images, and cuts the radius of {cut}; votes for classes were under 1." in table
    assert run_summaries.spending(read).most == 24 * 3 * 220
    assert max(row.samples for row in read.rows) == 3 * 220
    assert run_summaries.spending(read).samples == sum(row.samples for row in read.rows)
    assert {
        "--config.noise.levels=(0.3, 1.0,)",
        "--config.noise.router_level=0.4",
        "--config.router.weights=ROUTER",
    } <= set(shlex.split(run_summaries.command(read)))
    lines = (tmp_path / "certificates.tsv").read_text().splitlines()
    decided = next(line for line in lines if line.count(";") == 1)
    columns = decided.split("\t")
    router, chosen = columns[-1].split(";")
    for changed in (
        "\t".join([*columns[:-1], f"{router};{3 - int(chosen[0])}{chosen[1:]}"]),  # of the other level
        "\t".join([*columns[:-1], f"{router[:2]}{1 - int(router[2])}{router[3:]};{chosen}"]),  # of the other answer
        "\t".join([*columns[:-1], chosen]),
        "\t".join([*columns[:-1], f"{router};{chosen};{chosen}"]),
        "\t".join([*columns[:-1], router]),
    ):
        (tmp_path / "certificates.tsv").write_text("\n".join([lines[0], changed, ""]))
        with pytest.raises(ValueError, match=r"votes_by_level of image|Expected \d+ columns"):
            results.read_results(tmp_path)


def test_a_router_without_a_finite_answer_has_a_row_without_votes_for_classes(linear, router, dataset, tmp_path):
    mute = dataclasses.replace(router, params=router.params * np.nan)
    for plan in PLANS:
        read = certify(linear.routed_by(mute), dataset, tmp_path / plan, plan, indices=range(3))
        for row in read.rows:
            (only,) = row.votes_by_level
            assert (only.level, only.selected, set(only.votes)) == (0, -1, {-1})
            assert (row.predict, row.radius, row.votes, row.n, row.selected) == (-1, 0, {}, 0, -1)
            assert row.sigma_x == np.float32(0.2)
        assert repr(idrc.recertify.recertify(read).rows) == repr(read.rows)
        path = tmp_path / plan / "certificates.tsv"
        path.write_text(re.sub(r"(0/-1/-1:(\d+))", r"\1;1/0/0:\2", path.read_text()))
        with pytest.raises(ValueError, match=r"votes_by_level of image"):
            results.read_results(tmp_path / plan)


def test_votes_by_level_of_another_order_than_a_plan_that_looks_once_are_refused():
    level = lambda number, selected: LevelVotes(number, selected, (10, 0, 0))  # noqa: E731
    for plan, again in ((PLANS["to_radius"], True), (PLANS["fixed"], False), (SelectionFree(n=50), False)):
        made = Bounds(SCHEME, plan, 0.01, 16)
        assert several_levels.follow(made, [level(0, 1), level(2, 0), level(1, 0)])
        assert several_levels.follow(made, [level(0, 0), level(2, 0)]) == again  # the router went on, to another answer
        for drawn in (
            [], [level(1, 0)], [level(0, -1), level(1, 0)], [level(0, 0), level(1, 0), level(1, 0)],
            [level(0, 0), level(1, 0), level(0, 0)], [level(0, 0), level(1, 0), level(3, 0)],
        ):  # fmt: skip
            assert not several_levels.follow(made, drawn)
        assert several_levels.follow(made, [level(0, -1)])


def test_another_router_or_none_is_refused(linear, router, routed, dataset, tmp_path):
    certify(routed, dataset, tmp_path, indices=range(3))
    other = dataclasses.replace(router, params=router.params + 1)
    with pytest.raises(ValueError, match=r"router"):
        certify(linear.routed_by(other), dataset, tmp_path)
    with pytest.raises(ValueError, match=r"a router with an answer for each of 2 levels .*, got none"):
        certify(linear, dataset, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    wide = dataclasses.replace(router, params=jnp.ones((3, 16)), classes=3)
    with pytest.raises(ValueError, match="each of 2 levels, got one with 3"):
        certify(linear.routed_by(wide), dataset, tmp_path / "wide")
    with pytest.raises(ValueError, match="router of images"):
        linear.routed_by(dataclasses.replace(router, image_shape=(5, 5, 1)))
    with pytest.raises(ValueError, match="without a router of its own"):
        linear.routed_by(routed)
    made = results.read_results(tmp_path).manifest["guarantee"]
    assert made["router"] == {"weights_sha256": models.fingerprint(router), "dtype": "float32", "answers": 2}


def test_a_router_stays_with_each_implementation_and_is_chosen_for_by_itself(linear, router):
    plain, fast = (dataclasses.replace(linear, kernel=name) for name in ("xla", "fast"))
    made = fast.with_alternatives(plain).routed_by(router.with_alternatives(dataclasses.replace(router, kernel="x")))
    assert [one.router is not None for one in made.implementations] == [True, True]
    assert [one.kernel for one in made.implementations] == ["fast", "xla"]
    chosen = sampling.implementation_choice.choose(made, SCHEME, samples=0, chunk=16)
    at = [one.classifier.classes for one in chosen.voters(SCHEME)]
    assert at == [2, 3, 3]
    assert chosen.voters(schemes.Gaussian(0.5))[0].classifier.classes == 3
    assert execution.unmeasured(made, chunk=16).placed().classifier.router is not None


@pytest.mark.parametrize("adaptive", [False, True])
def test_predictions_are_the_smoothed_classifiers_or_abstentions(linear, router, routed, dataset, adaptive):
    """Against the exact answers, by many votes."""
    images, every = data.to_unit(dataset.images), np.arange(24)

    def shares(classifier, level):
        return sampling.count_votes(
            classifier, schemes.Gaussian(0.5 * level), images, indices=every, n=20_000, key=random_keys.root(9)
        )[:, :-1]

    answers = np.argmax(shares(router, 0.4), axis=1)
    truth = np.stack([np.argmax(shares(linear, level), axis=1) for level in SCHEME.levels])[answers, every]
    assert len(set(answers)) == 2
    made = predict(routed, SCHEME, images, n=1000, alpha=0.01, adaptive=adaptive, seed=3, progress=False)
    named = made != confidence_bounds.ABSTAIN
    assert named.sum() > 15
    np.testing.assert_array_equal(made[named], truth[named])
    smoothed = idrc.SmoothedClassifier(routed, SCHEME, n=500, n_predict=1000, alpha=0.01, chunk=64)
    known = smoothed.predict(images, seed=4).classes
    np.testing.assert_array_equal(known[known >= 0], truth[known >= 0])
    assert np.all(smoothed.certify(images[:4], seed=4).radii >= 0)
    with pytest.raises(ValueError, match=r"Expected n >= \d+, the fewest samples that can name a class"):
        predict(routed, SCHEME, images, n=5, alpha=0.01, adaptive=adaptive, progress=False)


def test_predictions_of_a_torn_router_are_wrong_no_more_often_than_its_share_of_alpha():
    """The router is torn: with probability near 1/2 either level, and under each another class is certain."""
    alpha, generator, wrong = 0.2, np.random.default_rng(0), 0
    course = PredictionCourse(Bounds(SCHEME, SelectionFree(n=50), alpha, 16), confidence_bounds.predict)
    for _ in range(1000):
        k = int(generator.binomial(50, 0.51))
        drawn = [LevelVotes(0, int(k < 25), (k, 50 - k, 0))]
        while (level := course.next_level(drawn)) is not None:
            votes = (50, 0, 0, 0) if level == 1 else (0, 50, 0, 0)
            drawn.append(LevelVotes(level, level - 1, votes))
        named = course.answer(drawn)
        assert len(drawn) == (2 if named >= 0 else 3)
        wrong += named == 1
    assert wrong / 1000 <= alpha * SCHEME.shares[0]


def test_predictions_of_an_undecided_router_are_the_class_that_every_level_names():
    scheme = schemes.Routed(sigma=0.5, levels=(0.3, 1.0, 2.0), router_level=0.4)
    course = PredictionCourse(Bounds(scheme, SelectionFree(n=50), 0.01, 16), confidence_bounds.predict)
    torn, own, other = LevelVotes(0, 0, (25, 25, 0, 0)), (3, 47, 0, 0), (47, 3, 0, 0)
    torn_class = (25, 25, 0, 0)
    one, two, three, differs, undecided = (
        LevelVotes(level, 1, votes) for level, votes in ((1, own), (2, own), (3, own), (2, other), (2, torn_class))
    )
    assert course.answer([torn]) == course.answer([torn, one]) == course.answer([torn, one, two]) == -1
    assert [course.next_level([torn, one, two][:count]) for count in (1, 2, 3)] == [1, 2, 3]
    assert course.answer([torn, one, two, three]) == 1
    assert course.next_level([torn, one, two, three]) is None
    for last in (differs, undecided):
        assert course.next_level([torn, one, last]) is None
        assert course.answer([torn, one, last]) == -1
    assert course.answer([torn, one, differs, three]) == -1
    sure = LevelVotes(0, 2, (0, 0, 50, 0))
    assert course.next_level([sure]) == 3
    assert course.answer([sure, three]) == 1
    assert not course.stops([torn], 0)
    assert course.stops([torn, one], 1)
    assert not course.stops([torn, undecided], 2)
    # The class is named at the whole of its share of alpha, and not at a third of it.
    close = [LevelVotes(level, 1, (15, 35, 0, 0)) for level in (1, 2, 3)]
    assert course.answer([sure, close[2]]) == course.answer([torn, *close]) == 1


def test_reports_and_comparisons_take_routers(routed, dataset, tmp_path):
    read = certify(routed, dataset, tmp_path / "run")
    text = report.render([Run("mine", read)])
    assert "cut where another may decide otherwise" in text
    gaussian = dataclasses.replace(read, manifest=json.loads(json.dumps(read.manifest)))
    gaussian.manifest["guarantee"] |= {"alpha": 0.1}
    said = equal_terms.offer(Run("a", read), Run("b", gaussian))
    assert said.endswith("which levels an image's votes go on to under routed depends on n and alpha.")


def test_the_same_in_memory_with_a_table_that_other_tools_read(routed, dataset, tmp_path):
    read = idrc.certify(
        routed, SCHEME, dataset.images, labels=dataset.labels, plan=PLANS["to_radius"], alpha=0.01, seed=5, chunk=64,
        progress=False,
    )  # fmt: skip
    certify(routed, dataset, tmp_path / "a")
    assert without_time(read) == without_time(results.read_results(tmp_path / "a"))
    assert without_time(results.read_results(read.save(tmp_path / "b").path)) == without_time(read)
