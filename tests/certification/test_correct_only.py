"""A plan that decides radii of correct predictions alone."""

import dataclasses
import json

import numpy as np
import pytest
from own_schemes import Own
from scipy import special

import idrc_jax as idrc
from idrc_jax import audit, certification, config, data, results
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.sampling_plans import ToRadius
from idrc_jax.certification import Settings, certify_dataset
from idrc_jax.certification.decisions import Decisions
from idrc_jax.certification.guarantee import check_settings
from idrc_jax.report import tables
from idrc_jax.report.run_summaries import command
from idrc_jax.results import equal_terms, metrics
from idrc_jax.results.runs import Run
from idrc_jax.sampling.dispatch_ahead import Drawn

SIGMA, RADII, DIM, MOST, LABEL = 0.25, (0.1, 0.25, 0.5), 3072, 50_000, 2
SCHEME = schemes.Gaussian(SIGMA)


def decided(truth, generator, *, correct_only, scheme=SCHEME, statistic=0.0, published=False, sequence="betting"):
    """The certificate of an image of LABEL whose classes have known probabilities, with votes drawn by NumPy."""
    plan = ToRadius(n=MOST, radii=RADII, correct_only=correct_only, published=published, sequence=sequence)
    labels = np.array([LABEL]) if correct_only else None
    decisions = Decisions(scheme, Settings(plan), np.array([statistic]), DIM, labels)
    course, drawn, votes = decisions.course(0), 0, np.zeros(len(truth) + 1, np.int64)
    for look in plan.looks():
        votes += [*generator.multinomial(look - drawn, truth), 0]
        drawn, levels = look, (LevelVotes(0, int(np.argmax(votes)), tuple(votes.tolist())),)
        if look < plan.n and course.stops(levels, 0):
            break
    return decisions.certificate(Drawn(0, levels)), drawn


@pytest.mark.parametrize("correct_only", [False, True])
@pytest.mark.parametrize("truth", [0.55, 0.75, 0.95, 0.999])
@pytest.mark.parametrize("sequence", ["betting", "union"])
def test_certified_accuracy_is_that_of_the_true_probabilities(truth, correct_only, sequence):
    generator, images = np.random.default_rng(0), 100
    rest = 1 - truth
    probabilities = [rest * 0.9, rest * 0.1, truth]
    made = [decided(probabilities, generator, correct_only=correct_only, sequence=sequence)[0] for _ in range(images)]
    for radius in RADII:
        found = np.mean([one.predict == LABEL and one.radius >= radius for one in made])
        assert abs(found - (SIGMA * special.ndtri(truth) >= radius)) <= 0.07  # .05 of goals are given up by mistake


@pytest.mark.parametrize(
    ("scheme", "statistic"),
    [(schemes.L1(SIGMA), 0.48), (schemes.L2(SIGMA), 30.0), (schemes.Stepped(SIGMA), 0.5)],
    ids=["l1", "l2", "stepped"],
)
@pytest.mark.parametrize("truth", [0.8, 1 - 1e-9])
def test_both_radii_of_other_schemes_are_decided(scheme, statistic, truth):
    generator, published = np.random.default_rng(0), scheme.name != "stepped"
    right, rest = [(1 - truth) / 2, (1 - truth) / 2, truth], (1 - truth) / 2
    more = {"scheme": scheme, "statistic": statistic, "published": published}
    made, drawn = decided(right, generator, correct_only=True, **more)
    alike, before = decided(right, np.random.default_rng(0), correct_only=False, **more)
    assert (repr(made), drawn) == (repr(alike), before)
    if published:
        assert [made.radius_published >= r for r in RADII] == [SIGMA * special.ndtri(truth) >= r for r in RADII]
    few = [decided([truth, rest, rest], generator, correct_only=True, **more)[1] for _ in range(20)]
    assert np.median(few) <= 60


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
    same = 0
    for every, correct in rows:
        assert correct.n <= every.n
        if every.correct and every.radius >= 0.05:
            same += 1
            assert (correct.votes, correct.radius) == (every.votes, every.radius)
        elif not every.correct:
            assert not correct.correct
    wrong = [(every.n, correct.n) for every, correct in rows if every.predict not in (-1, every.label)]
    assert len(wrong) > 10
    assert same >= 10
    assert sum(n for _, n in wrong) < sum(n for n, _ in wrong) / 3


def test_images_in_memory_are_decided_alike(linear, dataset, tmp_path):
    plan, scheme = ToRadius(n=3000, radii=(0.05, 0.1), correct_only=True), schemes.Gaussian(0.5)
    certify_dataset(linear, scheme, dataset, np.arange(12), Settings(plan, seed=4), tmp_path, chunk=64)
    stored = sorted(results.read_results(tmp_path).rows, key=lambda row: row.idx)
    order = np.arange(12)[::-1]
    images, labels = dataset.images[order], dataset.labels[order]
    made = idrc.certify(linear, scheme, images, labels=labels, indices=order, plan=plan, seed=4)
    own = sorted(made.rows, key=lambda row: row.idx)
    assert [(row.idx, row.votes, row.radius) for row in own] == [(row.idx, row.votes, row.radius) for row in stored]
    with pytest.raises(ValueError, match=r"Expected sampling\.correct_only=False for images without labels"):
        idrc.certify(linear, scheme, dataset.images[:12], plan=plan)


def test_what_has_no_correct_predictions_or_several_levels_is_refused(linear, dataset, tmp_path):
    settings, unlabelled = Settings(ToRadius(n=500, correct_only=True)), data.from_arrays(dataset.images)
    for call in (certify_dataset, certification.estimate):
        where = (tmp_path,) if call is certify_dataset else ()
        with pytest.raises(ValueError, match=r"Expected sampling\.correct_only=False for images without labels"):
            call(linear, SCHEME, unlabelled, np.arange(3), settings, *where)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"Expected sampling\.correct_only=False for cascade, got True"):
        check_settings(linear, schemes.Cascade(SIGMA), settings)
    with pytest.raises(ValueError, match="Expected correct_only to be True or False, got 1"):
        ToRadius(correct_only=1)
    with pytest.raises(ValueError, match="Expected labels for ToRadius"):
        Decisions(SCHEME, settings, np.zeros(1), DIM)
    made = config.base()
    made.sampling.correct_only = True
    with pytest.raises(ValueError, match=r"Expected sampling\.correct_only=False under the plan fixed, got True"):
        config.settings(made)


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
    assert "It decided correct predictions alone" in metrics.too_low(asked)
    assert "correct predictions" not in metrics.too_low(without)
    caption = tables.by_run([Run("a", without), Run("b", asked)]).caption
    assert "The plan of “b” decided correct predictions alone" in caption
    assert "The plan of “a”" not in caption
    manifest = asked.manifest | {"guarantee": asked.manifest["guarantee"] | {"data": "cifar10/test"}}
    assert "--config.sampling.correct_only=True" in command(dataclasses.replace(asked, manifest=manifest))
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["guarantee"]["correct_only"] = "yes"
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"Expected guarantee.correct_only in \S+manifest.json to be true or false"):
        results.read_results(tmp_path / "b")


def test_a_scheme_of_the_users_own_has_it_under_certificates_and_audits(linear, dataset, tmp_path):
    settings = Settings(ToRadius(n=500, radii=(0.05, 0.1), correct_only=True), seed=4)
    scheme = Own(SIGMA)
    certify_dataset(linear, scheme, dataset, np.arange(6), settings, tmp_path, chunk=16)
    read = results.read_results(tmp_path)
    assert metrics.correct_only(read)
    assert sampling_plans.from_description(read.manifest["guarantee"]) == settings.plan
    few = audit.Settings(images=2, fractions=(0.5,), votes=200, screening=50, steps=2, samples=4, restarts=1)
    assert audit.audit_certificates(linear, dataset, np.arange(6), read, few, tmp_path / "audit", scheme=scheme)


def test_the_switches_names_are_no_fields_of_the_users_own_scheme(linear, dataset, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Correct(Own):
        correct_only: float = 3.0

    described = schemes.describe(Correct(SIGMA)) | sampling_plans.describe(ToRadius())
    assert sampling_plans.from_description(described) == ToRadius()  # of a run from before there was the switch
    with pytest.raises(ValueError, match="got correct_only: rename"):
        certify_dataset(linear, Correct(SIGMA), dataset, np.arange(3), Settings(), tmp_path)
