import dataclasses
import itertools
import json
import re
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import running
from conftest import ROOT
from test_metrics import results

from idrc_jax.commands import compare as command
from idrc_jax.results import compare, metrics, read_results
from idrc_jax.results.compare import radii_to_compare, usual_radii

RUNS = ROOT / "results/cifar10_resnet20_0.1-0.45"


def exact_p(only_first, only_second):
    """The two-sided binomial test by counting: outcomes at most as likely as the one seen."""
    n = only_first + only_second
    weights = [comb(n, k) for k in range(n + 1)]
    return float(sum(Fraction(w, 2**n) for w in weights if w <= weights[only_second]))


def paired(only_first, only_second, both, neither):
    second = [1.0] * both + [0.0] * only_first + [1.0] * only_second + [0.0] * neither
    first = [1.0] * both + [1.0] * only_first + [0.0] * only_second + [0.0] * neither
    return results(first), results(second)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 0), (3, 8), (18, 8), (34, 1), (10, 10)])
def test_the_test_is_mcnemars_exact_one(only_first, only_second):
    (one,) = compare.compare(*paired(only_first, only_second, 20, 30), [0.5])
    assert (one.only_first, one.only_second) == (only_first, only_second)
    assert one.p_value == pytest.approx(exact_p(only_first, only_second))
    assert one.second - one.first == pytest.approx((only_second - only_first) / (50 + only_first + only_second))
    assert one.low <= one.second - one.first <= one.high


def test_rows_are_paired_by_index_not_by_place():
    a, b = paired(3, 8, 5, 5)
    shuffled = dataclasses.replace(b, rows=tuple(np.random.default_rng(0).permutation(np.asarray(b.rows, object))))
    assert compare.compare(a, b) == compare.compare(a, shuffled)


def test_intervals_cover():
    """Over many draws the interval holds the true difference at least as often as it says; also where few differ."""
    generator = np.random.default_rng(0)
    for shares in ([0.02, 0.05, 0.93], [0.2, 0.1, 0.7], [0.0, 0.01, 0.99], [0.3, 0.3, 0.4]):
        draws, counts = np.unique(generator.multinomial(80, shares, size=4000), axis=0, return_counts=True)
        held = 0
        for (only_first, only_second, _), count in zip(draws, counts, strict=True):
            low, high = compare.difference_interval(only_first, only_second, 80, 0.9)
            held += count * (low <= shares[1] - shares[0] <= high)
        assert held / 4000 >= 0.9 - 0.015


def test_intervals_know_the_sign_where_the_test_does():
    assert compare.difference_interval(0, 10, 500)[0] > 0
    assert compare.difference_interval(10, 0, 500)[1] < 0
    low, high = compare.difference_interval(0, 0, 500)
    assert low == -high
    assert 0 < high < 0.02


def test_holms_correction():
    """Against the closed testing procedure it shortens: the largest corrected Bonferroni p of any set that holds i."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = generator.uniform(0, 0.2, 4).tolist()
        sets = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
        closed = [max(min(1, len(s) * min(p[i] for i in s)) for s in sets if k in s) for k in range(4)]
        assert compare.holm(p) == pytest.approx(closed)


def test_the_committed_runs_and_the_verdict():
    status, out, _ = running.run(command.main, RUNS / "gaussian", f"mine={RUNS / 'stepped_2_bins'}")
    assert status == 0
    assert "B: mine" in out
    line = next(line for line in out.splitlines() if line.strip().startswith("0.75"))
    assert line.split()[1:6] == ["0.172", "0.106", "34", "1", "-0.066"]
    assert "ACR: B - A = -0.0093 ± 0.0082" in out  # as the README said before there was this command
    assert out.rstrip().endswith("A certifies more at 0.75.")


def test_radii_that_neither_run_could_certify_are_left_out():
    """And do not count among those that Holm's correction is for; those that one could, do."""
    a, b = (read_results(path) for path in (RUNS / "gaussian", ROOT / "results/plans/fixed"))
    assert (round(metrics.largest_radius(a), 3), round(metrics.largest_radius(b), 3)) == (0.811, 0.953)
    assert radii_to_compare(a, b, (0.0, 0.8, 0.9, 1.0)) == radii_to_compare(b, a, (0.0, 0.8, 0.9)) == (0.0, 0.8, 0.9)
    with pytest.raises(ValueError, match="that one of the runs could certify, got 1"):
        radii_to_compare(a, b, (1.0, 2.0))
    log = dataclasses.replace(a, manifest=None)
    assert radii_to_compare(a, log, (0.5, 1.5)) == (0.5, 1.5)
    _, out, _ = running.run(command.main, RUNS / "gaussian", RUNS / "gaussian", "--at", 0.25, 0.5, 1, 1.5)
    assert "At 5 % for the 2 radii together (Holm): " in out
    assert "Left out: 1, 1.5, which neither run could certify even if all votes agreed.\nA: " in out


def difference(*, low, high, p_holm, only_second=9):
    return compare.Difference(0.5, 0.5, 0.6, 3, only_second, low, high, p_holm, p_holm)


NOTHING = (0.0, 0.1)  # of the ACR


def test_what_seems_to_contradict_is_explained():
    agree = [difference(low=0.1, high=0.2, p_holm=0.01), difference(low=-0.1, high=0.1, p_holm=0.4)]
    assert compare.explanations(agree, NOTHING) == []
    (alone,) = compare.explanations([difference(low=0.01, high=0.2, p_holm=0.08)], NOTHING)
    assert alone.startswith("At 0.5 the interval leaves out 0 but the verdict names no run")
    (wide,) = compare.explanations([difference(low=-0.01, high=0.2, p_holm=0.045)], NOTHING)
    assert wide.startswith("At 0.5 the interval holds 0 but the verdict names a run")
    (acr,) = compare.explanations([difference(low=-0.1, high=0.2, p_holm=0.5)], (0.02, 0.01))
    assert acr.startswith("The ACR's interval leaves out 0 but the verdict does not name B")
    assert compare.explanations(agree, (0.02, 0.01)) == []
    assert "name A" in compare.explanations(agree, (-0.02, 0.01))[0]  # the verdict names B alone


def test_no_comparison_of_counts_is_left_unexplained():
    """Where an interval and the verdict disagree about 0 there is a line that says so, and only there."""
    seen = set()
    for only_first in range(16):
        for only_second in range(only_first, 16):
            made = compare.compare(*paired(only_first, only_second, 20, 30), [0.5, 2.0])
            named = "certifies more" in compare.verdict(made)
            out = not made[0].low <= 0 <= made[0].high
            assert bool(compare.explanations(made, NOTHING)) == (named != out)
            seen.add((named, out))
    assert len(seen) >= 3


def test_a_plan_that_stops_at_its_radii_is_said():
    a, b = (ROOT / "results/plans" / name for name in ("fixed", "to_radius"))
    _, out, _ = running.run(command.main, f"a={a}", f"b={b}")
    assert "The plan of b asked for radii up to " in out
    assert "The plan of a" not in out


def test_the_acr_of_plans_that_end_at_different_radii_is_not_compared():
    trained = ROOT / "results/cifar10_resnet20_0.5"
    _, out, _ = running.run(command.main, f"a={trained / 'consistency'}", f"b={trained / 'consistency_three_500'}")
    assert "ACR: not compared, as radii are decided up to different ones in A and B." in out
    assert "ACR: B - A" not in out
    assert "The ACR's interval" not in out
    _, out, _ = running.run(command.main, f"a={trained / 'ensemble'}", f"b={trained / 'consistency_three_500'}")
    assert "ACR: B - A = -0.0107" in out


def test_runs_are_compared_on_the_images_that_both_have():
    """As two files are in which the other rows were never written; with no image in common they are refused."""
    a, b = read_results(RUNS / "gaussian"), read_results(ROOT / "results/cifar10_resnet20_0.25/l1")
    shared = sorted({row.idx for row in a} & {row.idx for row in b})
    assert 0 < len(shared) < len(a)
    by_hand = [[row for row in one if row.idx in shared] for one in (a, b)]
    status, out, _ = running.run(command.main, "--common", RUNS / "gaussian", ROOT / "results/cifar10_resnet20_0.25/l1")
    assert status == 0
    assert f"On the {len(shared)} images that both have, of {len(a)} and {len(b)}." in out
    accuracies = [sum(row.correct and row.radius >= 0.25 for row in rows) / len(shared) for rows in by_hand]
    assert re.search(r"^ *0\.25 +{:.3f} +{:.3f} ".format(*accuracies), out, re.M)
    odd, even = (dataclasses.replace(a, rows=a.rows[start::2]) for start in (0, 1))
    with pytest.raises(ValueError, match="images in common"):
        compare.on_common_images(odd, even)
    with pytest.raises(ValueError, match=r"0 of them in both\.$"):
        compare.compare(odd, even)


def test_a_log_is_compared_on_the_images_of_a_run_and_others_are_not_offered(tmp_path):
    """A log of more images; one of another label, or a run on other data, is refused without an offer."""
    run = read_results(RUNS / "gaussian")
    head, few = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n", dataclasses.replace(run, rows=run.rows[::2])
    lines = [f"{row.idx}\t{row.label}\t{row.label}\t0.3\t1\t0:00:01\n" for row in run]
    (tmp_path / "log").write_text(head + "".join(lines))
    log = read_results(tmp_path / "log")
    with pytest.raises(ValueError, match="--common"):
        compare.compare(few, log, [0.25])
    (one,) = compare.compare(*compare.on_common_images(few, log), [0.25])
    assert (one.first, one.second) == (metrics.certified_accuracy(few, 0.25), 1.0)
    idx, label = run.rows[0].idx, run.rows[0].label
    (tmp_path / "log").write_text(head + f"{idx}\t{1 - min(label, 1)}\t0\t0.3\t1\t0:00:01\n" + "".join(lines[1:]))
    manifest = {**run.manifest, "guarantee": run.manifest["guarantee"] | {"data_sha256": "0" * 64}}
    for other in (read_results(tmp_path / "log"), dataclasses.replace(run, manifest=manifest)):
        for pair in ((few, other), compare.on_common_images(few, other)):
            with pytest.raises(ValueError, match="Expected runs of the same images") as refused:
                compare.compare(*pair, [0.25])
            assert "--common" not in str(refused.value)


def test_images_that_votes_chose_are_no_common_ones(tmp_path):
    """An adaptive run without its last rows, as under its own name as under one worker's."""
    whole = read_results(ROOT / "results/cifar10_resnet110_0.5/gaussian")
    by_votes = sorted(whole.rows, key=lambda row: row.n)
    cut = dataclasses.replace(whole, rows=tuple(by_votes[:70]))
    with pytest.raises(ValueError, match="55 of 125 images have no row, and votes chose which"):
        compare.on_common_images(cut, whole)
    with pytest.raises(ValueError, match=r"70 of them in both\.$"):
        compare.compare(whole, cut)
    worker = dataclasses.replace(cut, path=tmp_path / "certificates.0-of-2.tsv")
    with pytest.raises(ValueError, match="idrc-merge"):
        compare.on_common_images(whole, worker)


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ("results/cifar10_resnet20_0.25/l1", "100 of them in both: idrc-compare --common compares those."),
        ("results/nowhere", "no such file"),
        ("results/cifar10_resnet20_0.1-0.45/training_metrics.csv", "Expected a header"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(b, message):
    assert message in running.refused(command.main, RUNS / "gaussian", ROOT / b)


def test_radii_that_are_not_there_are_refused():
    nan = [float("nan")] * 3
    with pytest.raises(ValueError, match="Expected valid radii"):
        compare.compare(results(nan, published=[0.1] * 3), results([0.1] * 3))
    with pytest.raises(ValueError, match="Expected published radii"):
        compare.compare(results([0.1] * 3), results([0.1] * 3, published=nan), published=True)
    with pytest.raises(ValueError, match="at least one row"):
        compare.compare(results([]), results([]))


def test_published_radii_that_a_plan_left_open_are_not_compared():
    fixed, early = (results([0.1] * 3, published=[0.3] * 3, scheme="l1") for _ in range(2))
    early.manifest["guarantee"] |= {"plan": "to_radius", "radii": [0.1], "norm": "l2"}
    compare.compare(fixed, early)
    with pytest.raises(ValueError, match="Expected a plan that decides published radii, too, got that of "):
        compare.compare(fixed, early, published=True)
    early.manifest["guarantee"]["published"] = True
    compare.compare(fixed, early, published=True)


def test_radii_that_a_plan_did_not_ask_for_are_left_out_unless_named():
    """Under `to_radius` accuracy there, at 0 too, is of images that the plan left undecided."""
    folders = [ROOT / "results/cifar10_resnet20_0.5" / name for name in ("gaussian", "consistency")]
    a, b = (read_results(path) for path in folders)
    assert usual_radii(a, b) == (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    few = dataclasses.replace(b, manifest=json.loads(json.dumps(b.manifest)))
    few.manifest["guarantee"]["radii"] = [0.3, 0.5, 1.0]
    assert usual_radii(a, few) == usual_radii(few, a) == (0.5, 1.0)
    few.manifest["guarantee"]["radii"] = [0.3]
    fixed = read_results(RUNS / "gaussian")
    assert usual_radii(a, few) == usual_radii(fixed, fixed) == metrics.RADII
    assert usual_radii(few, fixed) == (0.3,)
    assert usual_radii(fixed, b) == usual_radii(a, b)
    _, out, _ = running.run(command.main, *folders)
    assert "At 5 % for the 7 radii together (Holm): B certifies more at 0.75, 1, 1.25, 1.5, 1.75." in out
    _, out, _ = running.run(command.main, *folders, "--at", 0, 0.75)
    assert "Holm): A certifies more at 0; B certifies more at 0.75." in out
