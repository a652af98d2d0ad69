"""A radius has a norm: in rows, manifests, tables and comparisons; two of them never share a column."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import running
from conftest import ROOT
from pages import charts

from idrc_jax import certification, results
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certification import Settings
from idrc_jax.commands import compare as compare_command
from idrc_jax.commands import export, figures, tables
from idrc_jax.commands import recertify as command
from idrc_jax.commands import report as report_command
from idrc_jax.report import tables as report_tables
from idrc_jax.results import metrics, recertify, table_exports
from idrc_jax.results.runs import Run

DOWN = ["0.0019", "0.0039", "0.0058", "0.0078", "0.0117", "0.0156"]  # of 1, 2, 3, 4, 6 and 8 of 510: none is above
COMMITTED = next((ROOT / "results").glob("*/*/certificates.tsv")).parent


@pytest.fixture(scope="module")
def run(linear, dataset, tmp_path_factory):
    """A run of l2 radii, and the same in linf."""
    folder = tmp_path_factory.mktemp("norms")
    settings = Settings(plan=sampling_plans.Fixed(n0=20, n=300), alpha=0.001)
    certification.certify_dataset(
        linear, schemes.Gaussian(sigma=0.5), dataset, np.arange(0, 60, 4), settings, folder / "l2", chunk=64
    )
    read = results.read_results(folder / "l2")
    recertify.recertify(read, norm="linf").save(folder / "linf")
    return folder


def test_rows_and_manifest_say_the_norm_and_l2_files_are_as_they_were(run):
    l2, linf = (results.read_results(run / name) for name in ("l2", "linf"))
    assert l2.manifest["guarantee"]["norm"] == "l2"
    assert linf.manifest["guarantee"]["norm"] == "linf"
    assert "norm" not in (run / "l2/certificates.tsv").read_text().split("\n")[0].split("\t")
    assert (run / "linf/certificates.tsv").read_text().split("\n")[0].split("\t")[-1] == "norm"
    assert {row.norm for row in l2} == {"l2"}
    assert {row.norm for row in linf} == {"linf"}
    root = math.sqrt(l2.manifest["guarantee"]["dim"])
    for one, other in zip(l2, linf, strict=True):
        assert other.radius <= one.radius / root
        assert other.radius == pytest.approx(one.radius / root, rel=1e-11)
        assert other.radius_published == pytest.approx(one.radius_published / root, rel=1e-11)
        assert other.votes == one.votes
    assert any(row.radius > 0 for row in linf)


def test_another_norm_and_back_is_the_file_itself_and_alpha_keeps_the_norm(run):
    l2, linf = (results.read_results(run / name) for name in ("l2", "linf"))
    assert recertify.recertify(linf, norm="l2").rows == l2.rows
    assert recertify.recertify(linf).rows == linf.rows
    stricter = recertify.recertify(linf, alpha=1e-6)
    assert {row.norm for row in stricter} == {"linf"}
    assert stricter.manifest["guarantee"]["norm"] == "linf"
    as_l1 = recertify.recertify(l2, norm="l1")
    assert [row.radius for row in as_l1] == [row.radius for row in l2]  # what is short in l1 is shorter in l2


def test_a_manifest_without_a_norm_is_of_l2_radii_and_its_run_goes_on(linear, dataset, tmp_path):
    """As before there was any."""
    settings = Settings(plan=sampling_plans.Fixed(n0=20, n=300), alpha=0.001)
    arguments = linear, schemes.Gaussian(sigma=0.5), dataset
    certification.certify_dataset(*arguments, np.arange(0, 8, 4), settings, tmp_path, chunk=64)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["guarantee"]["norm"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert {row.norm for row in results.read_results(tmp_path)} == {"l2"}
    certification.certify_dataset(*arguments, np.arange(0, 8, 4), settings, tmp_path, chunk=64)
    manifest["guarantee"]["norm"] = "l1"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="norm was l1, is l2"):
        certification.certify_dataset(*arguments, np.arange(0, 8, 4), settings, tmp_path, chunk=64)


def test_a_run_does_not_go_on_in_another_norm(linear, dataset, run, tmp_path):
    shutil.copytree(run / "linf", tmp_path / "linf")
    settings = Settings(plan=sampling_plans.Fixed(n0=20, n=300), alpha=0.001)
    with pytest.raises(ValueError, match="norm was linf, is l2"):
        certification.certify_dataset(
            linear, schemes.Gaussian(sigma=0.5), dataset, np.arange(0, 60, 4), settings, tmp_path / "linf", chunk=64
        )


def test_files_whose_rows_have_another_norm_than_the_manifest_are_refused(run, tmp_path):
    shutil.copytree(run / "linf", tmp_path / "a")
    text = (tmp_path / "a/certificates.tsv").read_text()
    (tmp_path / "a/certificates.tsv").write_text(text.replace("\tlinf", "\tl1"))
    with pytest.raises(ValueError, match=r"columns of linf radii .* of l1 radii: it is a file of another run"):
        results.read_results(tmp_path / "a")
    (tmp_path / "a/certificates.tsv").write_text(text.replace("\tlinf", "\tl3"))
    with pytest.raises(ValueError, match="line 2: Expected norm to be one of l1, l2, linf, got 'l3'"):
        results.read_results(tmp_path / "a")


def test_a_file_that_has_lost_its_manifest_still_says_its_norm(run, tmp_path):
    shutil.copy(run / "linf/certificates.tsv", tmp_path)
    assert {row.norm for row in results.read_results(tmp_path)} == {"linf"}


@pytest.mark.parametrize("order", [("l2", "linf"), ("linf", "l2")])
def test_two_norms_are_never_shown_together(run, tmp_path, order):
    pair = [str(run / name) for name in order]
    mains = {
        compare_command.main: pair,
        tables.main: ["runs", *pair],
        figures.main: ["accuracy", *pair, "--out", str(tmp_path / "a.png")],
        report_command.main: [*pair, "--out", str(tmp_path)],
    }
    for main, arguments in mains.items():
        said = running.refused(main, *arguments)
        assert f"Expected radii of one norm, got {order[0]} in" in said, main
        assert "idrc-recertify --norm" in said


def test_every_table_names_its_norm(run, tmp_path):
    l2, linf = (results.read_results(run / name) for name in ("l2", "linf"))
    assert "Certified accuracy at l2 radius r" in results.summary_table(l2)
    table = results.summary_table(linf)
    assert "Certified accuracy at linf radius r" in table
    assert "No linf radius above 0." in table
    assert re.findall(r"^ *(0\.\d+)  ", table, re.MULTILINE) == ["0.00", *DOWN]
    assert "It is stated in linf, by what its l2 radius says there." in table
    assert "stated in" not in results.summary_table(l2)
    _, out, _ = running.run(tables.main, "runs", str(run / "linf"), "--kind", "valid")
    assert out.startswith("Certified accuracy (valid linf radii)")
    assert re.findall(r"r = ([\d.]+)", out) == ["0", *(label[1:] for label in DOWN)]
    _, out, _ = running.run(compare_command.main, str(run / "linf"), f"b={run / 'linf'}")
    assert "Valid linf radii, paired by image" in out
    assert re.findall(r"^ *(0\.\d+)  ", out, re.MULTILINE) == ["0.00", *DOWN]
    running.run(report_command.main, str(run / "linf"), "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    heads = re.findall(r'<th scope="col">([\d.]+)</th>', page)
    assert heads[:7] == ["0.0", *DOWN]
    assert "within that ℓ∞ distance" in page
    assert "linf radius (pixels in [0, 1])" in json.dumps(charts(page))
    assert "l2 radius (pixels" not in page


def test_a_log_of_six_columns_names_no_norm_and_is_refused(run, tmp_path):
    linf = results.read_results(run / "linf")
    with pytest.raises(ValueError, match=r"Expected l2 radii .* whose columns name no norm, got linf"):
        table_exports.write_log(linf, tmp_path / "log.tsv")
    assert "got linf" in running.refused(export.main, str(run / "linf"), str(tmp_path / "log.tsv"))


def test_the_largest_radius_is_in_the_files_norm(run):
    l2, linf = (results.read_results(run / name) for name in ("l2", "linf"))
    root = math.sqrt(l2.manifest["guarantee"]["dim"])
    assert metrics.largest_radius(linf) == pytest.approx(metrics.largest_radius(l2) / root, rel=1e-11)


def test_the_radii_that_a_plan_asked_for_are_in_the_files_norm(run, linear, dataset, tmp_path):
    """Beside a run of another plan, nothing is the best above them."""
    settings = Settings(plan=sampling_plans.ToRadius(n=300, radii=(0.1, 0.2)), alpha=0.001)
    scheme, indices = schemes.Gaussian(sigma=0.5), np.arange(0, 60, 4)
    certification.certify_dataset(linear, scheme, dataset, indices, settings, tmp_path / "a", chunk=64)
    asked = results.read_results(tmp_path / "a")
    stated = recertify.recertify(asked, norm="linf")
    assert metrics.last_radius(asked) == 0.2
    assert metrics.last_radius(stated) == pytest.approx(0.2 / 4, rel=1e-11)
    assert "asked for radii up to 0.0499: the ACR, and accuracy at others" in results.summary_table(stated)
    pair = [Run("a", stated), Run("b", results.read_results(run / "linf"))]
    assert report_tables.by_run(pair, [0.02, 0.0499, 0.06]).ranked == (False, True, True, False, False, False)


def test_committed_results_read_as_l2():
    read = results.read_results(COMMITTED)
    assert "norm" not in read.manifest["guarantee"]
    assert {row.norm for row in read} == {"l2"}
    made = recertify.recertify(read, norm="linf")
    one, other = read[0], made[0]
    assert other.radius == pytest.approx(one.radius / math.sqrt(3072), rel=1e-11)
    assert dataclasses.replace(other, radius=one.radius, radius_published=one.radius_published, norm="l2") == one


def test_the_command_states_radii_in_another_norm(run, tmp_path):
    _, out, _ = running.run(command.main, str(run / "l2"), "--norm", "linf", "--out", str(tmp_path / "made"))
    assert "Certified accuracy at linf radius r" in out
    assert results.read_results(tmp_path / "made").rows == results.read_results(run / "linf").rows
    assert "one of l1, l2, linf, got 'l3'" in running.refused(command.main, str(run / "l2"), "--norm", "l3")


def test_a_cascade_is_stated_in_another_norm(linear, dataset, tmp_path):
    settings = Settings(plan=sampling_plans.Fixed(n0=20, n=300), alpha=0.001)
    scheme = schemes.Cascade(sigma=0.5)
    certification.certify_dataset(linear, scheme, dataset, np.arange(0, 60, 4), settings, tmp_path / "a", chunk=64)
    read = results.read_results(tmp_path / "a")
    made = recertify.recertify(read, norm="linf").save(tmp_path / "b")
    assert repr(made.rows) == repr(results.read_results(tmp_path / "b").rows)  # nan is not itself
    root = math.sqrt(read.manifest["guarantee"]["dim"])
    assert [row.radius for row in made] == pytest.approx([row.radius / root for row in read], rel=1e-11)
    assert any(row.radius > 0 for row in made)
    assert metrics.largest_radius(made) == pytest.approx(metrics.largest_radius(read) / root, rel=1e-11)
