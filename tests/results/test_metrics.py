import dataclasses
import math
import re
from decimal import ROUND_FLOOR, Decimal

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from idrc_jax.certificates import sampling_plans
from idrc_jax.certificates.sampling_plans import ToRadius
from idrc_jax.results import MEMORY, Results, Row, metrics, read_results, summary_table
from idrc_jax.results.manifest import indices_sha256


def results(radii, *, correct=None, published=None, predict=None, scheme="gaussian"):
    correct = correct or [1] * len(radii)
    rows = tuple(
        Row(
            idx=i, label=1, predict=(predict or [1] * len(radii))[i], radius=radius, correct=correct[i], time=1.0,
            radius_published=(published or radii)[i], selected=1, statistic=0.0, sigma_x=0.5, p_lower=0.9, n=9, n0=1,
            votes={1: 9},
        )
        for i, radius in enumerate(radii)
    )  # fmt: skip
    guarantee = {"scheme": scheme, "sigma": 0.5, "ref": 1.0, "data": "x/test", "n0": 1, "n": 9, "alpha": 0.001}
    guarantee |= {"certificate": "one_sided", "plan": "fixed", "data_sha256": "0" * 64, "classes": 3, "dim": 48}
    return Results(rows, {"guarantee": guarantee, "sessions": []}, MEMORY)


MIXED = results([0.0, 0.25, 0.6, 0.9], correct=[0, 1, 1, 0], predict=[-1, 1, 1, 2])


def test_labels_never_claim_a_larger_radius_and_tell_short_ones_as_they_are():
    places = Decimal("0.0001")
    for radius in (*np.random.default_rng(0).uniform(0, 2, 2000), *metrics.RADII_IN["linf"], 0.29, 0.07, 1e-9):
        down = Decimal(repr(float(radius))).quantize(places, ROUND_FLOOR)
        assert Decimal(repr(metrics.rounded_down(radius))) == down
        assert Decimal(metrics.radius_text(radius)) == down
    assert [metrics.radius_text(radius) for radius in (0, 0.25, 1.0, 8 / 510, 0.125)] == [
        "0.00", "0.25", "1.00", "0.0156", "0.1250",
    ]  # fmt: skip
    assert metrics.rounded_down(math.inf) == math.inf


def test_certified_accuracy_counts_right_predictions_with_at_least_that_radius():
    assert [metrics.certified_accuracy(MIXED, r) for r in (0.0, 0.25, 0.2501, 0.6, 0.9)] == [0.5, 0.5, 0.25, 0.25, 0]
    assert metrics.average_certified_radius(MIXED) == pytest.approx(0.85 / 4)
    assert metrics.abstention_rate(MIXED) == 0.25


def test_nan_is_not_certified_at_any_radius():
    nan = math.nan
    mixed = results([nan, 0.5], published=[0.7, 0.6])
    assert metrics.certified_accuracy(mixed, 0.0) == 0.5
    assert metrics.certified_accuracy(mixed, 0.0, published=True) == 1.0
    assert metrics.average_certified_radius(mixed) == 0.25
    assert metrics.average_certified_radius(mixed, published=True) == pytest.approx(0.65)


def test_table_shows_no_certified_accuracy_where_there_is_no_certificate():
    table = summary_table(results([math.nan, math.nan], published=[0.7, 0.3], scheme="l1"))
    rows = [line.split() for line in table.splitlines()[4:12]]
    assert all(row[1] == "-" for row in rows)
    assert rows[2][:3] == ["0.50", "-", "0.500"]
    assert "no valid radii" in table
    assert "not certificates" in table


@pytest.mark.parametrize(("scheme", "published"), [("uniform", [math.nan] * 3), ("gaussian", None)])
def test_table_shows_no_published_radii_where_they_say_nothing(scheme, published):
    table = summary_table(results([0.375, 0.0, 0.6], published=published, scheme=scheme))
    (head, *rows) = table.splitlines()[3:]
    assert head.split() == ["r", "certified"]
    assert [len(line.split()) for line in rows[:4]] == [4] * 3 + [2]  # no radius above .6 is there
    assert rows[1].split()[:2] == ["0.25", "0.667"]
    assert "published" not in table
    assert "ref" not in table


def test_published_radii_that_are_others_have_a_column():
    radii = [0.375, 0.0, 0.6]
    two_sided = results(radii)
    two_sided.manifest["guarantee"]["certificate"] = "two_sided"
    others = results(radii, scheme="l1"), two_sided, results(radii, published=[0.4, 0.0, 0.6])
    for other in (*others, dataclasses.replace(results(radii), manifest=None, path="x")):
        assert summary_table(other).splitlines()[3].split() == ["r", "certified", "published"]
    assert ", ref 1," in summary_table(others[0])
    rounded = results(radii, published=[radius * (1 + 1e-8) for radius in radii])  # sigma as a float32 below it
    assert "published" not in summary_table(rounded)


def test_table_says_what_its_numbers_are_and_how_good_the_base_classifier_is():
    made = results([0.3, 0.0, 0.0, 0.2], predict=[1, -1, 2, 1], correct=[1, 0, 0, 1])
    shares = zip(made.rows, (9, 6, 0, 3), strict=True)
    made = dataclasses.replace(made, rows=tuple(dataclasses.replace(row, votes={1: k, 2: 9 - k}) for row, k in shares))
    assert metrics.base_accuracy(made) == pytest.approx(0.5)
    assert metrics.clean_accuracy(made) is None
    table = summary_table(made)
    assert "Certified accuracy at l2 radius r: the share of images that are predicted rightly" in table
    assert "Smoothed classifier: 0.500 right" in table
    assert "Base classifier: 0.500 right under the noise (mean share of votes for the true class).\n" in table
    made.manifest["clean"] = {"right": 3, "images": 4, "indices_sha256": indices_sha256([3, 1, 2, 0])}
    assert "true class), 0.750 right on clean images.\n" in summary_table(made)
    for other in ({"indices_sha256": indices_sha256([0, 1, 2, 4])}, {}):  # of others, of unknown ones
        made.manifest["clean"] = {"right": 3, "images": 4} | other
        assert metrics.clean_accuracy(made) is None
    log = dataclasses.replace(made, manifest=None, path="x", rows=(dataclasses.replace(made.rows[0], votes=None),))
    assert metrics.base_accuracy(log) is None
    assert "Base classifier" not in summary_table(log)


def test_the_largest_radius_is_that_of_votes_that_all_agree():
    for n, alpha in ((100, 0.001), (10_000, 0.01)):
        made = results([0.3])
        made.manifest["guarantee"] |= {"n": n, "alpha": alpha}
        expected = 0.5 * stats.norm.ppf(alpha ** (1 / n))  # sigma times the quantile of the exact bound
        assert metrics.largest_radius(made) == pytest.approx(expected, rel=1e-9)
        said = re.search(
            rf"No l2 radius above (\S+) is within reach of n {n:,}, alpha {alpha} and", summary_table(made)
        )
        assert 0 <= float(said[1]) - expected < 1e-3  # rounded up, or it would not be true
    two_sided = results([0.3])
    two_sided.manifest["guarantee"] |= {"certificate": "two_sided", "n": 100}
    assert 0 < metrics.largest_radius(two_sided) < 0.5 * stats.norm.ppf(0.001 ** (1 / 100))
    own = results([0.3], scheme="own")
    assert metrics.largest_radius(own) is None
    assert "No l2 radius above" not in summary_table(own)
    assert metrics.largest_radius(dataclasses.replace(own, manifest=None)) is None
    assert metrics.largest_radius(results([math.nan], published=[0.5], scheme="l1")) is None


def test_the_largest_radius_is_that_of_the_best_look():
    """The last look costs the union bound a share of alpha: one vote more may prove less."""
    made = results([0.3])
    made.manifest["guarantee"] |= {"plan": "to_radius", "sequence": "union", "radii": [0.5], "n0": 0, "n": 1401}
    plan = ToRadius(n=1401, radii=(0.5,), sequence="union")
    at_looks = [0.5 * stats.norm.ppf(plan.lower(n, n, 0.001)) for n in plan.looks()]
    assert at_looks[-2] > at_looks[-1]
    assert metrics.largest_radius(made) == pytest.approx(max(at_looks), rel=1e-9)


def test_what_is_said_of_a_scheme_of_the_users_own_is_no_other_schemes():
    """Its files of before have "published" radii; one of them may have inherited its name."""
    own = results([0.3], published=[0.4], scheme="own")
    like = results([0.3], published=[0.4], scheme="l1")
    like.manifest["guarantee"]["scheme_class"] = "a:Largest"
    for read in (own, like):
        assert metrics.largest_radius(read) is None
        assert not metrics.has_published(read)
        assert "published" not in summary_table(read).splitlines()[3]


def test_the_largest_radius_is_that_of_the_image_that_could_get_most():
    read = read_results(ROOT / "results/cifar10_resnet20_0.25/l1")
    assert max(row.radius for row in read.rows) <= metrics.largest_radius(read) < 0.6


def test_the_table_ends_where_no_radius_is_within_reach():
    made = results([0.3, 0.0])
    made.manifest["guarantee"] |= {"n": 100}  # which certify at most 0.75 under sigma 0.5
    assert 0.75 < metrics.largest_radius(made) < 1
    assert re.findall(r"^  (\d\.\d\d) ", summary_table(made), re.M) == ["0.00", "0.25", "0.50", "0.75"]
    assert metrics.within_reach([made], (0.3, 0.75, 2.0)) == (0.3, 0.75)
    beyond = results([1.2])
    assert metrics.within_reach([made, beyond], metrics.RADII) == metrics.RADII[:5]  # what a row has is shown


def test_bounds_of_shares_are_rounded_to_their_own_side():
    assert (metrics.bound(0.00037, math.floor), metrics.bound(0.00037, math.ceil)) == (0, 0.001)
    assert {metrics.bound(k / 1000, rounding) for rounding in (math.floor, math.ceil) for k in (0, 57, 570, 1000)} == {
        0, 0.057, 0.57, 1,
    }  # fmt: skip
    assert metrics.bound(-0.0691, math.floor) == -0.07


def test_table_shows_accuracy_interval_and_acr():
    table = summary_table(results([0.375] * 300 + [0.0] * 200, correct=[1] * 300 + [0] * 200))
    line = next(line for line in table.splitlines() if line.strip().startswith("0.25"))
    assert "0.600 [0.555, 0.644]" in line  # the exact interval of 300 in 500, .5556 to .6432 in tables, to the outside
    assert "ACR" in table
    acr = next(line for line in table.splitlines() if line.strip().startswith("ACR"))
    assert acr.split()[1] == "0.225"
    assert "Samples: 5,000, 10 an image (plan fixed)." in table


def test_acr_is_printed_rounded_down():
    table = summary_table(results([0.3999]))
    assert re.search(r"^ +ACR +0\.399$", table, re.M)


def test_empty_files_and_missing_columns_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        metrics.certified_accuracy(Results((), None, "x"), 0.5)
    six = dataclasses.replace(MIXED.rows[1], radius_published=None)
    with pytest.raises(ValueError, match="radius_published"):
        metrics.certified_accuracy(Results((six,), None, "x"), 0.5, published=True)


# Column A of the paper's Table 1: radii .25 .5 .75 1 1.25 1.5, as printed there.
COLUMN_A = {
    "0.12": [0.59, 0, 0, 0, 0, 0],
    "0.25": [0.60, 0.43, 0.27, 0, 0, 0],
    "0.50": [0.55, 0.41, 0.32, 0.23, 0.15, 0.09],
    "1.00": [0.39, 0.34, 0.28, 0.22, 0.17, 0.14],
}


@pytest.mark.shared
@pytest.mark.parametrize("sigma", COLUMN_A)
def test_cohens_published_logs_give_the_papers_column_to_the_digit(shared, sigma):
    log = read_results(shared / f"published/cohen/cifar10/resnet110/noise_{sigma}/test/sigma_{sigma}")
    assert [row.idx for row in log.rows] == list(range(0, 10_000, 20))
    accuracies = [f"{metrics.certified_accuracy(log, r):.2f}" for r in np.arange(0.25, 1.51, 0.25)]
    assert accuracies == [f"{value:.2f}" for value in COLUMN_A[sigma]]


@pytest.mark.shared
def test_published_acr_of_another_project(shared):
    folder = shared / "published/jeong_consistency"
    plain = read_results(folder / "cohen/cifar_resnet20/noise_0.50_7483")
    consistent = read_results(folder / "consistency/cohen/num_2/lbd_20.0/eta_0.5/cifar_resnet110/noise_0.25")
    assert metrics.average_certified_radius(plain) == pytest.approx(0.524, abs=6e-4)
    assert metrics.average_certified_radius(consistent) == pytest.approx(0.552, abs=6e-4)
    assert 2 < np.median([row.time for row in plain.rows]) < 5  # h:mm:ss, about 3 s an image


def test_the_lower_bound_takes_off_what_alpha_may_have_got_wrong():
    many = results([0.375] * 300 + [0.0] * 200)
    many.manifest["guarantee"]["alpha"] = 0.01
    wrong = next(q for q in range(500) if stats.binom.cdf(q, 500, 0.01) >= 0.95)
    assert metrics.certified_accuracy_lower(many, 0.25) == (300 - wrong) / 500
    assert metrics.certified_accuracy_lower(many, 0.25, confidence=0.5) > metrics.certified_accuracy_lower(many, 0.25)
    assert metrics.certified_accuracy_lower(results([0.3]), 0.5) == 0
    few = results([0.375] * 5)
    few.manifest["guarantee"]["alpha"] = 0.01
    assert metrics.certified_accuracy_lower(few, 0.25) == 1
    few.manifest["sessions"] = [{"images": [[0, 500, 1]]}]  # votes may have chosen which five came first
    assert metrics.certified_accuracy_lower(few, 0.25) == max(5 - wrong, 0) / 5
    with pytest.raises(ValueError, match="manifest"):
        metrics.certified_accuracy_lower(dataclasses.replace(many, manifest=None), 0.25)


def test_the_lower_bound_holds_by_simulation():
    """40 images that are not robust at all, each certified wrongly with probability alpha, and 60 that are."""
    generator, runs, broken = np.random.default_rng(0), 1000, 0
    for _ in range(runs):
        wrong = generator.uniform(size=40) < 0.05
        made = results([1.0] * 60 + np.where(wrong, 1.0, 0.0).tolist())
        made.manifest["guarantee"]["alpha"] = 0.05
        broken += metrics.certified_accuracy_lower(made, 0.5, confidence=0.9) > 0.6
    assert broken / runs <= 0.1


def sure(probabilities, radii, correct):
    """Results whose images have these p_lower, of n = 100,000."""
    made = results(radii, correct=correct)
    made.manifest["guarantee"] |= {"n": 100_000}
    rows = tuple(dataclasses.replace(row, p_lower=p) for row, p in zip(made.rows, probabilities, strict=True))
    return dataclasses.replace(made, rows=rows)


SURE = sure([0.6, 0.95, 0.99, 0.999, 0.9999], [0.1, 0.3, 0.5, 0.7, 2.0], [1, 1, 1, 1, 0])


def test_probabilities_are_those_of_images_predicted_rightly():
    np.testing.assert_array_equal(metrics.right_probabilities(SURE), [0.6, 0.95, 0.99, 0.999, 0.0])
    six = tuple(dataclasses.replace(row, p_lower=None) for row in SURE.rows)
    assert metrics.right_probabilities(dataclasses.replace(SURE, rows=six)) is None
    unlabelled = tuple(dataclasses.replace(row, label=-1) for row in SURE.rows)
    with pytest.raises(ValueError, match="Expected labels"):
        metrics.right_probabilities(dataclasses.replace(SURE, rows=unlabelled))


def test_the_part_of_the_acr_from_easy_images():
    assert metrics.radius_share(SURE, 0.99) == pytest.approx(1.2 / 1.6)
    assert metrics.radius_share(SURE, 0.5) == 1.0
    assert metrics.radius_share(SURE, 0.9999) == 0.0
    assert metrics.radius_share(results([0.0, 0.0]), 0.99) is None


def test_the_largest_probability_is_that_of_unanimous_votes():
    assert metrics.largest_probability(SURE) == pytest.approx(0.001 ** (1 / 100_000), abs=1e-9)
    SURE.manifest["guarantee"]["certificate"] = "two_sided"
    assert metrics.largest_probability(SURE) == pytest.approx((0.001 / 3) ** (1 / 100_000), abs=1e-9)
    SURE.manifest["guarantee"]["certificate"] = "one_sided"
    assert metrics.largest_probability(dataclasses.replace(SURE, manifest=None)) is None


def test_the_largest_probability_is_that_of_the_best_look():
    plan = sampling_plans.ToPrecision(n=100_000, sequence="union")
    made = {**SURE.manifest["guarantee"], **sampling_plans.describe(plan)}
    best = max(float(plan.lower(n, n, made["alpha"])) for n in plan.looks())
    assert metrics.largest_probability(dataclasses.replace(SURE, manifest={"guarantee": made})) == best


def test_the_table_has_the_radii_that_the_plan_asked_for_unless_others_are_named():
    def shown(one, radii=None):
        return re.findall(r"^  (\d\.\d\d) ", summary_table(one, radii), re.M)

    read = read_results(ROOT / "results/cifar10_resnet20_0.5/consistency")
    assert shown(read) == ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25", "1.50", "1.75"]
    made = read.manifest["guarantee"] | {"radii": [0.5, 0.6]}
    few = dataclasses.replace(read, manifest=read.manifest | {"guarantee": made})
    assert shown(few) == ["0.00", "0.50", "0.60"]
    made = read.manifest["guarantee"] | {"plan": "selection_free"}
    none = dataclasses.replace(read, manifest=read.manifest | {"guarantee": made})
    assert shown(none) == ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25", "1.50"]
    assert shown(few, (0.75,)) == ["0.75"]
