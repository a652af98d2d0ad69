import csv
import dataclasses
import io
import math
import re

import numpy as np
import pytest
import running
from conftest import ROOT
from test_metrics import COLUMN_A, SURE, results

from idrc_jax.commands import tables as command
from idrc_jax.report import paper_numbers, tables
from idrc_jax.results import metrics, runs, summary_table
from idrc_jax.results.runs import Run

GENERATOR = np.random.default_rng(0)


def run(name, scheme, *, sigma=0.25, count=40, top=1.0, data="cifar10/test"):
    radii = [float(radius) for radius in GENERATOR.uniform(0, top, count)]
    made = results([radius / 2 for radius in radii], published=radii, scheme=scheme)
    made.manifest["guarantee"] |= {"sigma": sigma, "data": data}
    return Run(name, made)


GAUSSIAN, L1, L1_WIDE = run("a", "gaussian"), run("b", "l1"), run("c", "l1", sigma=0.5, top=2.0)


def read_csv(table):
    (head, *rows) = csv.reader(io.StringIO(table.csv()))
    return head, {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("published", [False, True])
def test_every_cell_of_a_row_a_run_is_the_certified_accuracy(published):
    head, rows = read_csv(tables.by_run([GAUSSIAN, L1], published=published))
    assert ("published" in head[0]) == published
    assert ("Certified" in head[0]) != published
    for one in (GAUSSIAN, L1):
        values = dict(zip(head[1:], rows[one.name], strict=True))
        for radius in metrics.RADII:
            expected = metrics.certified_accuracy(one.results, radius, published=published)
            assert float(values[f"r = {radius:g}".replace(" 0.", " .")]) == pytest.approx(expected, abs=5e-4)
        acr = metrics.average_certified_radius(one.results, published=published)
        assert 0 <= acr - float(values["ACR"]) < 1e-3  # rounded down
        assert (values["images"], values["abstained"]) == ("40", "0")


def test_a_row_a_sigma_has_a_column_a_radius_and_scheme():
    head, rows = read_csv(tables.by_sigma([GAUSSIAN, L1, L1_WIDE], [0.25, 1.0]))
    assert head[1:5] == ["r = .25 gaussian", "r = .25 l1", "r = 1 gaussian", "r = 1 l1"]
    assert list(rows) == ["σ = 0.25", "σ = 0.5"]
    wide = [metrics.certified_accuracy(L1_WIDE.results, radius) for radius in (0.25, 1.0)]
    assert [rows["σ = 0.5"][k] for k in (0, 2)] == ["", ""]
    assert [float(rows["σ = 0.5"][k]) for k in (1, 3)] == pytest.approx(wide, abs=5e-4)


def test_the_best_of_each_column_is_marked_ties_too_and_never_0():
    row = tables.Row
    table = tables.Table(
        "x", ("n", "p", "q", "r"), (False, True, True, True),
        (row("a", (9, 0.5, 0.0, 0.31)), row("b", (8, 0.5004, 0.0, None)), row("paper", (None, *[0.9] * 3), ours=False)),
    )  # fmt: skip
    assert table.best() == [[False, True, False, True], [False, True, False, False], [False] * 4]
    assert table.markdown().splitlines()[4:] == [
        "| a | 9 | **.500** | 0 | **.310** |", "| b | 8 | **.500** | 0 |  |", "| paper |  | .90 | .90 | .90 |",
    ]  # fmt: skip
    assert r"a & 9 & \textbf{.500} & 0 & \textbf{.310} \\" in table.latex()
    assert read_csv(table)[1]["a"][-1] == "p;r"


def test_methods_show_their_best_run_at_each_radius():
    named = [Run("ours", GAUSSIAN.results), Run("ours", L1_WIDE.results), Run("other", L1.results)]
    _, rows = read_csv(tables.by_method(named, [0.1, 0.9]))
    assert list(rows) == ["ours, best σ", "other", "ours, σ = 0.25", "ours, σ = 0.5"]
    for k in range(2):
        each = [float(rows[name][k] or 0) for name in ("ours, σ = 0.25", "ours, σ = 0.5")]
        assert float(rows["ours, best σ"][k]) == max(each)


def test_the_papers_numbers_stand_beside():
    _, rows = read_csv(tables.by_sigma([GAUSSIAN, L1], paper_too=True))
    assert rows["paper, σ = 0.25"][:6] == [".60", ".62", ".43", ".56", ".27", ".48"]
    _, rows = read_csv(tables.by_run([GAUSSIAN, L1], paper_too=True))
    assert rows["paper, l1, σ = 0.25"][:5] == ["", "", ".62", ".56", ".48"]
    _, rows = read_csv(tables.by_method([GAUSSIAN], paper_too=True))
    assert rows["paper, diffusion denoised, best σ"][:6] == [".68", ".52", ".32", ".24", ".12", ".08"]
    assert rows["paper, Cohen et al., best σ"][:6] == [".60", ".44", ".36", ".32", ".24", ".20"]
    assert {f"{sigma:.2f}": list(row) for sigma, row in paper_numbers.ACCURACY["gaussian"].items()} == COLUMN_A


def test_names_from_files_are_escaped():
    hostile = Run("a|b<script>_&%\n$x", GAUSSIAN.results)
    table = tables.by_run([hostile, L1])
    line = table.markdown().splitlines()[4]
    assert line.startswith(r"| a\|b&lt;script>_&% $x | 40 |")
    assert r"a|b<script>\_\&\% \$x & 40" in table.latex()
    assert next(iter(read_csv(table)[1])) == hostile.name


def test_names_in_captions_are_escaped_and_open_no_line():
    fewer = run("x\n\\input{/etc/passwd}<script>", "l1")
    fewer.results.manifest["guarantee"] |= {"n": 7}
    table = tables.by_run([L1, fewer])
    assert "<script>" in table.caption
    assert "<script>" not in table.markdown()
    assert not any(line.startswith(r"\input") for line in table.latex().splitlines())


@pytest.mark.parametrize(("term", "value"), [("n", 7), ("alpha", 0.05), ("k", 2)])
def test_of_other_claims_none_is_the_best(term, value):
    other = run("o", "l1")
    other.results.manifest["guarantee"] |= {term: value}
    table = tables.by_run([L1, other], [0.1])
    assert not any(any(row) for row in table.best())
    assert "Unless n, alpha and k are known to be equal none is marked as the best" in table.caption
    other.results.manifest["guarantee"] |= {term: L1.results.manifest["guarantee"].get(term)}
    assert any(any(row) for row in tables.by_run([L1, other], [0.1]).best())


def test_no_radii_and_other_images_are_said():
    nothing = Run("n", results([math.nan] * 3, published=[0.1] * 3))
    head, rows = read_csv(tables.by_run([nothing, L1]))
    assert rows["n"][1:9] == [""] * 8
    assert "not of the same images" in head[0]
    assert "not of the same images" not in tables.by_run([GAUSSIAN, L1]).caption


def test_over_other_images_nothing_is_the_best():
    other = run("o", "l2", sigma=0.5, count=20)
    for layout in (tables.by_run, tables.by_sigma, tables.by_method):
        for several, marked in (([GAUSSIAN, L1_WIDE], True), ([GAUSSIAN, L1_WIDE, other], False)):
            made = layout(several, [0.1, 0.2])
            assert any(any(row) for row in made.best()) == marked
            assert ("none is marked as the best" in made.caption) != marked
    named = [Run("ours", GAUSSIAN.results), Run("ours", other.results), Run("theirs", L1.results)]
    _, rows = read_csv(tables.by_method(named, [0.1]))
    assert list(rows) == ["theirs", "ours, σ = 0.25", "ours, σ = 0.5"]


def test_nothing_is_the_best_beyond_the_radii_that_a_plan_asked_for():
    stopped = run("s", "gaussian")
    stopped.results.manifest["guarantee"] |= {"plan": "to_radius", "radii": [0.1, 0.2]}
    radii = [0.1, 0.2, 0.3]
    best = tables.by_run([L1, stopped], radii).best()
    assert [any(column) for column in zip(*best, strict=True)] == [False, True, True, False, False, False]
    assert all(any(column) for column in list(zip(*tables.by_run([L1, GAUSSIAN], radii).best(), strict=True))[1:5])


def test_a_kind_of_radii_that_no_file_has_is_said(tmp_path):
    log = tmp_path / "log"
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t1\n")
    error = running.refused(command.main, "runs", log, "--kind", "published")
    assert f"Expected published radii for --kind published, got none in {log}: six-column logs" in error
    assert running.run(command.main, "runs", log)[1].count("| log |") == 1


def test_a_plan_that_stops_at_its_radii_is_said():
    stopped = run("s", "gaussian")
    stopped.results.manifest["guarantee"] |= {"plan": "to_radius", "radii": [0.25, 0.5], "sequence": "betting"}
    caption = tables.by_run([GAUSSIAN, stopped]).caption
    assert "Under the plan to_radius the ACR, and accuracy at radii that it was not asked for" in caption
    assert "to_radius" not in tables.by_run([GAUSSIAN, L1]).caption
    said = [summary_table(one.results) for one in (stopped, GAUSSIAN)]
    told = "The plan asked for radii up to 0.5: the ACR, and accuracy at others"
    assert [told in text for text in said] == [True, False]


def test_published_radii_that_a_plan_was_not_asked_for_are_no_contest():
    one, other = run("a", "l1", sigma=0.5), run("b", "l2", sigma=0.5)
    told = "The plan of “a”, “b” was not asked for published radii (sampling.published), so accuracy at them is too low"
    for published in (False, True):
        for single in (one, other):
            single.results.manifest["guarantee"] |= {
                "plan": "to_radius",
                "radii": [0.1, 0.2],
                "sequence": "betting",
                "published": published,
            }
        table = tables.by_run([one, other], [0.1, 0.2], published=True)
        assert any(any(row) for row in table.best()) == published
        assert (told in table.caption) != published
        assert told not in tables.by_run([one, other], [0.1, 0.2]).caption
        assert ("at others (0, too) and at published radii, are" in summary_table(one.results)) != published
    one.results.manifest["guarantee"]["published"] = False
    assert tables.by_run([one, other], [0.1], published=True).caption.count("was not asked for published") == 1


def test_what_makes_no_table_is_refused():
    with pytest.raises(ValueError, match="another b"):
        tables.by_sigma([L1, L1])
    log = Run("log", metrics.Results(L1.results.rows, None, ROOT))
    with pytest.raises(ValueError, match="with a manifest"):
        tables.by_sigma([log])
    with pytest.raises(ValueError, match=r"beside the paper.s numbers, got .*x/test"):
        tables.by_run([GAUSSIAN, run("x", "l1", data="x/test")], paper_too=True)


@pytest.mark.shared
def test_cohens_logs_make_the_papers_column(shared):
    folder = shared / "published/cohen/cifar10/resnet110"
    logs = [f"{sigma}={folder}/noise_{sigma}/test/sigma_{sigma}" for sigma in COLUMN_A]
    _, rows = read_csv(tables.by_run(runs.read(logs), paper_numbers.RADII))
    for sigma, expected in COLUMN_A.items():
        assert [f"{float(value):.2f}" for value in rows[sigma][1:7]] == [f"{value:.2f}" for value in expected]


def test_the_command_writes_each_format(tmp_path):
    for style, start in (("markdown", "Certified"), ("latex", "% Certified"), ("csv", "Certified")):
        arguments = ["runs", ROOT / "results/cifar10_resnet20_0.25/l1", "--format", style, "--out", tmp_path / style]
        assert running.run(command.main, *arguments)[0] == 0
        text = (tmp_path / style).read_text()
        assert text.startswith(start)
        assert text.count("which are no certificates") == 1  # valid and published
    assert re.search(r"\\begin\{tabular\}\{l(r+)\}", (tmp_path / "latex").read_text())


def test_tables_of_runs_whose_radii_are_the_same_come_once():
    gaussian, other = (str(ROOT / "results/cifar10_resnet20_0.25" / name) for name in ("gaussian", "l1"))
    _, out, _ = running.run(command.main, "runs", gaussian)
    assert out.startswith(tables.VALID.format(norm="l2") + ". Valid = published for these runs.\n")
    assert tables.PUBLISHED.format(norm="l2") not in out
    for arguments, captions in (((gaussian, other), 2), ((gaussian, "--kind", "published"), 1)):
        _, out, _ = running.run(command.main, "runs", *arguments)
        assert "Valid =" not in out
        assert out.count("radii") == captions
        assert tables.PUBLISHED.format(norm="l2") in out


def test_probabilities_their_shares_and_what_they_make_up_of_the_acr(tmp_path):
    head, rows = read_csv(tables.by_probability([Run("a", SURE)]))
    assert head[1:-1] == [
        "images", "p ≥ .5", "p ≥ .75", "p ≥ .9", "p ≥ .99", "p ≥ .999", "ACR", "of it from p ≥ .99",
    ]  # fmt: skip
    assert rows["a"][:-1] == ["5", ".800", ".600", ".600", ".400", ".200", ".320", ".750"]
    few = results([0.1, 0.2])  # 9 votes cannot show .5
    assert read_csv(tables.by_probability([Run("few", few)]))[1]["few"][:-1] == ["2", *[""] * 5, ".150", ""]
    nothing = results([math.nan], published=[0.7], scheme="l1")
    assert read_csv(tables.by_probability([Run("none", nothing)], [0.3]))[1]["none"][:-1] == ["1", "1.000", "", ""]
    two = tables.by_probability([Run("a", SURE), Run("b", SURE)])
    assert [name for name, top in zip(two.columns, two.best()[0], strict=True) if top] == ["ACR"]
    assert r"p $\geq$ .5" in two.latex()


@pytest.mark.parametrize(("norm", "said"), [("linf", (".01234", ".01210")), ("l2", (".012", ".012"))])
def test_radii_are_told_to_the_places_of_their_norm(norm, said):
    """As the final table tells them, rounded down; the larger one of those that differ as told is the best."""
    pair = []
    for radius in (0.012349, 0.0121):
        made = results([radius] * 2)
        pair.append(
            Run("a", dataclasses.replace(made, rows=tuple(dataclasses.replace(one, norm=norm) for one in made)))
        )
    for made in (tables.by_run(pair, [0.01]), tables.by_probability(pair)):
        at = made.columns.index("ACR")
        assert tuple(row[at] for row in made.cells()) == said
        assert [row[at] for row in made.best()] == [True, said[0] == said[1]]
    lines = summary_table(pair[0].results).splitlines()
    assert [line.split() for line in lines if "  ACR" in line] == [["ACR", f"0{said[0]}"]]


def test_probabilities_on_the_command_line(tmp_path):
    place = str(ROOT / "results/cifar10_resnet20_0.25/gaussian")
    status, out, error = running.run(command.main, "probabilities", place, "--at", "0.5", "0.99")
    assert (status, error) == (0, "")
    assert "| p ≥ .5 | p ≥ .99 | ACR | of it from p ≥ .99 |" in out
    for given, message in (
        (("--paper",), "without --paper and --kind published"),
        (("--kind", "published"), "without --paper and --kind published"),
        (("--at", "1"), "Expected 0 < probability < 1, got 1"),
    ):
        assert message in running.refused(command.main, "probabilities", place, *given)
    text = (ROOT / "results/cifar10_resnet20_0.25/gaussian/certificates.tsv").read_text()
    (tmp_path / "log.tsv").write_text("".join("\t".join(line.split("\t")[:6]) + "\n" for line in text.splitlines()))
    assert "Expected files with p_lower" in running.refused(command.main, "probabilities", str(tmp_path / "log.tsv"))


@pytest.mark.parametrize("layout", [tables.by_run, tables.by_sigma, tables.by_method])
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_the_papers_numbers_stand_beside_no_other_norm(layout, norm):
    rows = tuple(dataclasses.replace(row, norm=norm) for row in GAUSSIAN.results.rows)
    other = Run("a", dataclasses.replace(GAUSSIAN.results, rows=rows))
    assert norm in layout([other]).caption
    with pytest.raises(ValueError, match=f"^Expected runs of l2 radii beside the paper's numbers.*got {norm}.$"):
        layout([other], paper_too=True)
