"""A plan that decides published radii, too."""

import dataclasses
import json

import numpy as np
import pytest
from own_schemes import Own
from scipy import special

from idrc_jax import certificates, results
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.sampling_plans import ToRadius
from idrc_jax.certification import Settings, certify_dataset
from idrc_jax.certification.decisions import Decisions
from idrc_jax.certification.guarantee import check_settings
from idrc_jax.report.run_summaries import command
from idrc_jax.results import equal_terms
from idrc_jax.results.runs import Run
from idrc_jax.sampling.dispatch_ahead import Drawn

SIGMA, RADII, DIM, MOST = 0.25, (0.1, 0.25, 0.5), 3072, 200_000
# True probabilities of the class; the published radius is SIGMA times their quantiles.
TRUTHS = (0.5, 0.6, 0.75, 0.9, 0.99, 1 - 1e-9)
STATISTIC = {"gaussian": 0.0, "l1": 0.48, "l2": 30.0, "uniform": 30.0, "inverse_sqrt_norm": 30.0}


def decided(scheme, published, truth, generator):
    """The certificate of one image whose class has a known probability, with votes drawn by NumPy."""
    plan = ToRadius(n=MOST, radii=RADII, published=published)
    decisions = Decisions(scheme, Settings(plan), np.array([STATISTIC[scheme.name]]), DIM)
    course, drawn, votes = decisions.course(0), 0, np.zeros(3, np.int64)
    for look in plan.looks():
        votes += [*generator.multinomial(look - drawn, [truth, 1 - truth]), 0]
        drawn, levels = look, (LevelVotes(0, int(np.argmax(votes)), tuple(votes.tolist())),)
        if look < plan.n and course.stops(levels, 0):
            break
    return decisions.certificate(Drawn(0, levels)), drawn


@pytest.mark.parametrize("name", STATISTIC)
def test_accuracy_at_published_radii_is_that_of_the_true_probabilities(name):
    scheme, generator = schemes.make(name, sigma=SIGMA), np.random.default_rng(0)
    most = ToRadius(n=MOST).lower(MOST, MOST, Settings.alpha)
    for truth in TRUTHS:
        made, drawn = decided(scheme, True, truth, generator)
        valid = certificates.radius(scheme, STATISTIC[name], min(truth, most), dim=DIM)
        for radius in RADII:
            assert (made.radius_published >= radius) == (SIGMA * special.ndtri(truth) >= radius)
            assert (made.radius >= radius) == (valid >= radius)
        assert drawn < MOST


def test_without_it_votes_stop_where_the_valid_radius_is_decided():
    generator = np.random.default_rng(0)
    made, drawn = decided(schemes.Uniform(SIGMA), False, TRUTHS[-1], generator)
    assert drawn == 50  # there is no valid radius to decide
    assert made.radius_published < RADII[-1]
    made, more = decided(schemes.Uniform(SIGMA), True, TRUTHS[-1], generator)
    assert more > drawn
    assert made.radius_published >= RADII[-1]


def test_a_run_that_was_not_asked_is_described_as_before():
    assert "published" not in sampling_plans.describe(ToRadius())
    assert sampling_plans.describe(ToRadius(published=True))["published"] is True


def test_an_image_that_sees_no_noise_draws_no_votes_for_a_published_radius():
    black = Decisions(schemes.L1(SIGMA), Settings(ToRadius(n=MOST, radii=RADII, published=True)), np.zeros(1), DIM)
    assert black.course(0).stops((LevelVotes(0, 0, (50, 0, 0)),), 0)


def test_a_run_goes_on_only_with_what_it_asked_for(linear, dataset, tmp_path):
    def run(workdir, published):
        settings = Settings(ToRadius(n=2000, radii=(0.05, 0.1), published=published), seed=4)
        return certify_dataset(linear, schemes.L1(0.5), dataset, np.arange(6), settings, tmp_path / workdir, chunk=16)

    for workdir, published, told in (("a", False, "was unset, is True"), ("b", True, "was True, is unset")):
        (tmp_path / workdir).mkdir()
        assert run(workdir, published)
        assert run(workdir, published)
        with pytest.raises(ValueError, match=f"published {told}"):
            run(workdir, not published)
    without, asked = (results.read_results(tmp_path / workdir) for workdir in "ab")
    assert sum(row.n for row in asked.rows) > sum(row.n for row in without.rows)
    told = equal_terms.differences([Run("a", without), Run("b", asked)])
    assert told == "Not on equal terms: published is False for “a”, True for “b”."
    assert "--config.sampling.published=True" in command(in_a_file(asked))
    assert "published" not in command(in_a_file(without))
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["guarantee"]["published"] = "yes"
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"Expected guarantee.published in \S+manifest.json to be true or false"):
        results.read_results(tmp_path / "b")


def in_a_file(read):
    """The same results, of a data set that has a file."""
    manifest = read.manifest | {"guarantee": read.manifest["guarantee"] | {"data": "cifar10/test"}}
    return dataclasses.replace(read, manifest=manifest)


def test_a_field_of_the_users_own_scheme_is_not_the_plans():
    @dataclasses.dataclass(frozen=True)
    class Published(Own):
        published: float = 3.0

    described = schemes.describe(Published(SIGMA)) | sampling_plans.describe(ToRadius())
    assert described["published"] == 3.0
    assert sampling_plans.from_description(described) == ToRadius()
    asked = sampling_plans.describe(ToRadius(published=True))
    assert sampling_plans.from_description(asked) == ToRadius(published=True)


def test_published_radii_are_of_the_schemes_of_the_paper(linear):
    settings = Settings(ToRadius(published=True))
    check_settings(linear, schemes.L1(SIGMA), settings)
    for other in (schemes.Box(SIGMA), schemes.Cascade(SIGMA)):
        with pytest.raises(ValueError, match=f"Expected sampling.published=False for {other.name}, got True"):
            check_settings(linear, other, settings)
