"""A plan that decides radii of correct predictions alone."""

import dataclasses
import json

import numpy as np
import pytest
from own_schemes import Own
from scipy import special

import idrc_jax as idrc
from idrc_jax import certification, data, results
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.sampling_plans import ToRadius
from idrc_jax.certification import Settings, certify_dataset
from idrc_jax.certification.decisions import Decisions
from idrc_jax.certification.guarantee import check_settings
from idrc_jax.report.run_summaries import command
from idrc_jax.results import equal_terms, metrics
from idrc_jax.results.runs import Run
from idrc_jax.sampling.dispatch_ahead import Drawn

SIGMA, RADII, DIM, MOST, LABEL = 0.25, (0.1, 0.25, 0.5), 3072, 50_000, 2
SCHEME = schemes.Gaussian(SIGMA)


def decided(truth, generator, *, correct_only):
    """The certificate of an image of LABEL whose classes have known probabilities, with votes drawn by NumPy."""
    plan = ToRadius(n=MOST, radii=RADII, correct_only=correct_only)
    labels = np.array([LABEL]) if correct_only else None
    decisions = Decisions(SCHEME, Settings(plan), np.zeros(1), DIM, labels)
    course, drawn, votes = decisions.course(0), 0, np.zeros(len(truth) + 1, np.int64)
    for look in plan.looks():
        votes += [*generator.multinomial(look - drawn, truth), 0]
        drawn, levels = look, (LevelVotes(0, int(np.argmax(votes)), tuple(votes.tolist())),)
        if look < plan.n and course.stops(levels, 0):
            break
    return decisions.certificate(Drawn(0, levels)), drawn


@pytest.mark.parametrize("correct_only", [False, True])
@pytest.mark.parametrize("truth", [0.55, 0.75, 0.95, 0.999])
def test_certified_accuracy_is_that_of_the_true_probabilities(truth, correct_only):
    generator, images = np.random.default_rng(0), 200
    rest = 1 - truth
    probabilities = [rest * 0.9, rest * 0.1, truth]
    made = [decided(probabilities, generator, correct_only=correct_only)[0] for _ in range(images)]
    for radius in RADII:
        found = np.mean([one.predict == LABEL and one.radius >= radius for one in made])
        assert abs(found - (SIGMA * special.ndtri(truth) >= radius)) <= 0.07  # .05 of goals are given up by mistake


@pytest.mark.parametrize("truth", [0.75, 0.95, 0.999])
def test_wrong_predictions_get_few_votes(truth):
    generator, rest = np.random.default_rng(0), 1 - truth
    most = np.median([decided([truth, rest / 2, rest / 2], generator, correct_only=False)[1] for _ in range(30)])
    few = [decided([truth, rest / 2, rest / 2], generator, correct_only=True) for _ in range(30)]
    assert np.median([drawn for _, drawn in few]) <= 60 < most
    assert not any(one.predict == LABEL for one, _ in few)


def test_where_the_label_is_the_likeliest_votes_are_those_of_the_plan_without(linear, dataset, tmp_path):
    def run(name, correct_only):
        settings = Settings(ToRadius(n=3000, radii=(0.05, 0.1, 0.2), correct_only=correct_only), seed=4)
        indices = np.arange(len(dataset))[::-1]
        assert certify_dataset(linear, schemes.Gaussian(0.5), dataset, indices, settings, tmp_path / name, chunk=64)
        return sorted(results.read_results(tmp_path / name).rows, key=lambda row: row.idx)

    rows = list(zip(run("all", False), run("correct", True), strict=True))
    for every, correct in rows:
        assert correct.n <= every.n
        if every.correct and every.radius >= 0.05:
            assert (correct.votes, correct.radius) == (every.votes, every.radius)
        elif not every.correct:
            assert not correct.correct
    wrong = [(every.n, correct.n) for every, correct in rows if every.predict not in (-1, every.label)]
    assert len(wrong) > 10
    assert sum(n for _, n in wrong) < sum(n for n, _ in wrong) / 3


def test_images_in_memory_are_decided_alike(linear, dataset, tmp_path):
    plan, scheme = ToRadius(n=3000, radii=(0.05, 0.1), correct_only=True), schemes.Gaussian(0.5)
    certify_dataset(linear, scheme, dataset, np.arange(12), Settings(plan, seed=4), tmp_path, chunk=64)
    stored = sorted(results.read_results(tmp_path).rows, key=lambda row: row.idx)
    made = idrc.certify(linear, scheme, dataset.images[:12], labels=dataset.labels[:12], plan=plan, seed=4)
    assert [(row.idx, row.votes, row.radius) for row in made.rows] == [(r.idx, r.votes, r.radius) for r in stored]
    with pytest.raises(ValueError, match=r"Expected labels for sampling\.correct_only=True, got none"):
        idrc.certify(linear, scheme, dataset.images[:12], plan=plan)


def test_what_has_no_correct_predictions_or_several_levels_is_refused(linear, dataset, tmp_path):
    settings, unlabelled = Settings(ToRadius(n=500, correct_only=True)), data.from_arrays(dataset.images)
    for call in (certify_dataset, certification.estimate):
        where = (tmp_path,) if call is certify_dataset else ()
        with pytest.raises(ValueError, match=r"Expected labels for sampling\.correct_only=True, got none"):
            call(linear, SCHEME, unlabelled, np.arange(3), settings, *where)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"Expected sampling\.correct_only=False for cascade, got True"):
        check_settings(linear, schemes.Cascade(SIGMA), settings)
    with pytest.raises(ValueError, match="Expected correct_only to be True or False, got 1"):
        ToRadius(correct_only=1)


def test_a_run_says_it_and_goes_on_only_with_it(linear, dataset, tmp_path):
    def run(workdir, correct_only):
        settings = Settings(ToRadius(n=500, radii=(0.05, 0.1), correct_only=correct_only), seed=4)
        return certify_dataset(linear, SCHEME, dataset, np.arange(6), settings, tmp_path / workdir, chunk=16)

    for workdir, correct_only, told in (("a", False, "was unset, is True"), ("b", True, "was True, is unset")):
        assert run(workdir, correct_only)
        with pytest.raises(ValueError, match=f"correct_only {told}"):
            run(workdir, not correct_only)
    without, asked = (results.read_results(tmp_path / workdir) for workdir in "ab")
    assert equal_terms.differences([Run("a", without), Run("b", asked)]) == ""  # accuracies are alike
    assert "It decided correct predictions alone: of others the radius says little." in metrics.too_low(asked)
    assert "alone" not in metrics.too_low(without)
    manifest = asked.manifest | {"guarantee": asked.manifest["guarantee"] | {"data": "cifar10/test"}}
    assert "--config.sampling.correct_only=True" in command(dataclasses.replace(asked, manifest=manifest))
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["guarantee"]["correct_only"] = "yes"
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"Expected guarantee.correct_only in \S+manifest.json to be true or false"):
        results.read_results(tmp_path / "b")


def test_a_field_of_the_users_own_scheme_is_not_the_plans():
    @dataclasses.dataclass(frozen=True)
    class Correct(Own):
        correct_only: float = 3.0

    described = schemes.describe(Correct(SIGMA)) | sampling_plans.describe(ToRadius())
    assert described["correct_only"] == 3.0
    assert sampling_plans.from_description(described) == ToRadius()
    asked = schemes.describe(SCHEME) | sampling_plans.describe(ToRadius(correct_only=True))
    assert sampling_plans.from_description(asked) == ToRadius(correct_only=True)
