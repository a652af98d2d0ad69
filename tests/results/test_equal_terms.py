import dataclasses

import pytest
import running
from conftest import ROOT
from pages import write_run
from test_recertify import drawn_run

from idrc_jax import report, results
from idrc_jax.commands import compare, tables
from idrc_jax.commands import report as report_command
from idrc_jax.results import equal_terms, recertify, runs
from idrc_jax.results.runs import Run


def named(name, read, **guarantee):
    manifest = {**read.manifest, "guarantee": read.manifest["guarantee"] | guarantee}
    return Run(name, dataclasses.replace(read, manifest=manifest))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return drawn_run(tmp_path_factory.mktemp("long") / "certificates.tsv", 60)


def short(read, **more):
    return recertify.recertify(read, n=50, **more)


def test_runs_on_equal_terms_are_not_warned_of(long):
    assert equal_terms.differences([]) == ""
    assert equal_terms.differences([named("a", long)]) == ""
    assert equal_terms.differences([named("a", long), named("b", long, sigma=9.0, seed=3, data="x")]) == ""
    assert equal_terms.warning([named("a", long), named("b", long)]) == ""


def test_each_term_that_differs_is_named_with_its_runs_in_one_line(long):
    several = [named(name, long) for name in "abcd"] + [named("e", short(long)), named("f", long, alpha=0.5)]
    assert equal_terms.differences(several) == (
        "Not on equal terms: n is 400 for 5 runs, 50 for “e”; alpha is 0.05 for 5 runs, 0.5 for “f”."
    )
    pair = [named("a", long), named("b", long, plan="selection_free", n0=0)]
    assert equal_terms.differences(pair) == "Not on equal terms: plan is fixed for “a”, selection_free for “b”."
    pair = [named("a", long, plan="to_radius", radii=[0.5]), named("b", long, plan="to_radius", radii=[0.5, 1.0])]
    assert equal_terms.differences(pair) == "Not on equal terms: radii is (0.5) for “a”, (0.5, 1) for “b”."
    assert "n0 is 100 for “a”, 7 for “b”" in equal_terms.differences([named("a", long), named("b", long, n0=7)])
    pair = [
        named(name, long, plan="to_radius", radii=[0.5], **more)
        for name, more in (("a", {}), ("b", {"published": True}))
    ]
    assert equal_terms.differences(pair) == ""  # under gaussian both radii are one
    pair = [named(one.name, one.results, scheme="l1") for one in pair]
    assert equal_terms.differences(pair) == "Not on equal terms: published is False for “a”, True for “b”."
    log = Run("log", dataclasses.replace(long, manifest=None))
    told = equal_terms.differences([named("a", long), log])
    assert told == "Not on equal terms: no plan, n and alpha are known of “log”."
    assert equal_terms.differences([log]) == ""
    twins = [named("a", long), named("a", long, alpha=0.5)]  # methods have one name for several runs
    assert "alpha is 0.05 for “a”, 0.5 for “a”" in equal_terms.differences(twins)


def test_both_are_brought_to_the_smaller_n_and_alpha(long):
    other = named("b", short(long), alpha=0.01)
    a, b, done = equal_terms.equalised(named("a", long), other)
    assert a.results == recertify.recertify(long, n=50, alpha=0.01)
    assert b is other
    assert done == (
        "At n = 50 and alpha = 0.01: “a” is certified anew from 50 of its 400 votes of each image, drawn at random and "
        "at alpha 0.01 instead of 0.05."
    )
    _, b, done = equal_terms.equalised(named("a", short(long), alpha=0.01), named("b", long))
    assert b.results.manifest["guarantee"]["n"] == 50
    assert "“b” is certified anew" in done
    assert equal_terms.equalised(named("a", long), named("b", long))[2].endswith(": as both are stored.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"plan": "selection_free"}, "votes of the plan fixed are not those that selection_free would have drawn"),
        (None, "has no votes"),
    ],
)
def test_it_is_said_why_terms_stay_unequal(long, change, reason):
    a, b = named("a", long), Run("b", dataclasses.replace(long, manifest=None))
    b = b if change is None else named("b", long, **change)
    assert reason in equal_terms.offer(a, b)
    with pytest.raises(ValueError, match=reason):
        equal_terms.equalised(a, b)


def test_fewer_votes_are_offered_beside_another_plan_where_they_can_be_taken(long):
    a, told = named("a", long), "idrc-recertify --n=50 of “a” takes as many votes of each image as “b” drew at most"
    adaptive = {"plan": "to_radius", "radii": [0.5], "sequence": "betting"}
    for other in ({"plan": "selection_free", "n0": 0}, adaptive):
        b = named("b", long, **other, n=50)
        assert told in equal_terms.offer(a, b)
        assert told in equal_terms.offer(b, a)
        assert "idrc-recertify" not in equal_terms.offer(named("a", long, subsampled_from=800), b)
    for first, other in (
        (a, named("b", long, plan="selection_free", n0=0)),  # as many
        (a, named("b", long, plan="selection_free", n0=0, n=3)),  # so few that they certify nothing
        (a, named("b", long, plan="exhaustive", n0=0, n=50)),  # of which n says nothing
        (named("a", long, **adaptive), named("b", long, n=50)),  # where it stopped is not stored
        (named("a", long, scheme="own", scheme_class="a:Own"), named("b", long, **adaptive, n=50)),
    ):
        assert equal_terms.offer(first, other).endswith("would have drawn.")
    log = Run("log", dataclasses.replace(long, manifest=None))
    assert equal_terms.offer(a, log).endswith("has no votes.")


def test_votes_that_are_a_part_already_stay_as_they_are(long):
    a, b = named("a", recertify.recertify(long, n=100)), named("b", short(long))
    assert "“a” has 100 votes drawn from 400 already" in equal_terms.offer(a, b)
    with pytest.raises(ValueError, match="drawn from 400 already"):
        equal_terms.equalised(a, b)
    assert equal_terms.offer(named("a", long), b).startswith("--equal-terms compares")


def test_a_scheme_of_the_users_own_is_certified_anew_with_its_code_alone(long):
    own = {"scheme": "own", "scheme_class": "a:Own"}
    a, b = named("a", long, **own), named("b", short(long))
    for one, other in ((a, b), (named("a", short(long), alpha=0.1, **own), named("b", long, alpha=0.01))):
        assert "“a” is under a scheme of your own, a:Own: idrc-recertify --factory" in equal_terms.offer(one, other)
        with pytest.raises(ValueError, match="idrc-recertify --factory"):
            equal_terms.equalised(one, other)
    a, b = named("a", short(long), **own), named("b", long)
    assert equal_terms.offer(a, b).startswith("--equal-terms compares")
    assert equal_terms.equalised(a, b)[0] is a


def test_plans_that_stop_early_stay_as_they_are():
    read = results.read_results(ROOT / "results/plans/to_radius")
    a, b = named("a", read), named("b", read, alpha=0.01)
    assert equal_terms.offer(a, b).startswith("They cannot be brought to equal terms: the plan to_radius stops early")
    with pytest.raises(ValueError, match="the order of its votes, which is not stored"):
        equal_terms.equalised(a, b)
    assert equal_terms.offer(a, a) == ""


@pytest.fixture(scope="module")
def pair(long, tmp_path_factory):
    """Folders of a run and of one that drew fewer votes."""
    folder = tmp_path_factory.mktemp("pair")
    made = short(long)
    guarantee = {name: value for name, value in made.manifest["guarantee"].items() if name != "subsampled_from"}
    results.write(long.rows, long.manifest, folder / "a")
    results.write(made.rows, {**made.manifest, "guarantee": guarantee}, folder / "b")
    return f"a={folder / 'a'}", f"b={folder / 'b'}"


def test_the_comparison_warns_offers_and_does(pair):
    said = "Not on equal terms: n is 400 for “a”, 50 for “b”."
    _, out, _ = running.run(compare.main, *pair)
    assert out.splitlines()[0].startswith(f"{said} --equal-terms compares them at n = 50 and alpha = 0.05")
    assert "certifies more" in out.splitlines()[-1]
    _, out, _ = running.run(compare.main, *pair, "--equal-terms")
    assert out.startswith("At n = 50 and alpha = 0.05: “a” is certified anew from 50 of its 400 votes")
    assert "Not on equal terms" not in out
    assert "the runs are not told apart" in out.splitlines()[-1]
    plans = [ROOT / "results/plans" / name for name in ("fixed", "to_radius")]
    assert "plan is fixed for" in running.run(compare.main, *plans)[1].splitlines()[0]
    assert "can be brought to equal terms" in running.refused(compare.main, *plans, "--equal-terms")


def test_what_cannot_be_compared_is_refused_without_a_word_of_its_terms(pair, long, tmp_path):
    made = recertify.recertify(long, alpha=0.01, norm="linf")
    results.write(made.rows, made.manifest, tmp_path)
    for more in ((), ("--equal-terms",)):
        assert "Expected radii of one norm" in running.refused(compare.main, pair[0], tmp_path, *more)


def test_tables_and_the_report_warn_in_one_line(pair, tmp_path):
    said = "Not on equal terms: n is 400 for “a”, 50 for “b”."
    _, out, error = running.run(tables.main, "runs", *pair, "--kind", "valid")
    unmarked = "Unless n, alpha and k are known to be equal none is marked as the best."
    assert out.startswith(f"Certified accuracy (valid l2 radii). {said} {unmarked}\n")
    assert error.startswith(f"warning: {said} idrc-recertify --n and --alpha")
    assert error.count("\n") == 1
    _, _, error = running.run(report_command.main, *pair, "--out", tmp_path)
    assert error.startswith(f"warning: {said} idrc-recertify --n and --alpha")
    assert error.count("\n") == 1
    assert said in (tmp_path / "index.html").read_text()
    equal = [str(write_run(tmp_path / name, seed=seed)) for seed, name in enumerate("cd")]
    assert "Not on equal terms" not in report.render(runs.read(equal))
    assert running.run(tables.main, "runs", *equal)[2] == ""
