import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import running
from conftest import ROOT
from pages import write_audit, write_run

from idrc_jax.commands import compare, figures, recertify, report, tables
from idrc_jax.core import command_line
from idrc_jax.report.tables import by_run
from idrc_jax.results import read_results, runs, summary_table

ROOM = ROOT / "results"


def test_names_tell_apart_what_the_scheme_does_not(tmp_path):
    found = runs.read(
        [str(ROOM / "cifar10_resnet20_0.25/gaussian"), str(ROOM / "plans/fixed"), str(ROOM / "plans/to_radius")]
    )
    assert [run.name for run in found] == [
        "gaussian, σ = 0.25 (gaussian)", "gaussian, σ = 0.25 (fixed)", "gaussian, σ = 0.25 (to_radius)",
    ]  # fmt: skip
    (alone,) = runs.read([str(ROOM / "plans/fixed/certificates.tsv")])
    assert (alone.name, alone.scheme, alone.sigma) == ("gaussian, σ = 0.25", "gaussian", 0.25)
    for folder in ("a/x", "b/x"):
        shutil.copytree(ROOM / "plans/fixed", tmp_path / folder)
    pair = runs.read([str(tmp_path / "a/x"), str(tmp_path / "b/x")])
    assert [run.name for run in pair] == ["gaussian, σ = 0.25 (a/x)", "gaussian, σ = 0.25 (b/x)"]


def cut(folder, *sessions, **guarantee):
    """The run of a folder as if each of these calls had been for images in such ranges."""
    made = json.loads((folder / "manifest.json").read_text())
    made |= {"sessions": [{"images": spans} for spans in sessions] + [{}]}
    made["guarantee"] |= guarantee
    (folder / "manifest.json").write_text(json.dumps(made))
    return read_results(folder)


def test_a_run_that_was_cut_short_is_told_of(tmp_path):
    folder = shutil.copytree(ROOM / "plans/to_radius", tmp_path / "run")  # every 100th image
    for whole in ([], [[[0, 9901, 100]]], [[[0, 4901, 100]], [[5000, 9901, 100]]], [[[0, 1, 1], [100, 101, 1]]]):
        assert runs.cut_short(cut(folder, *whole)) == ""
    told = "300 of 400 images have no row, and votes chose which"
    for calls in ([[[0, 9976, 25]]], [[[0, 4976, 25]], [[5000, 9976, 25]]], [[[0, 9976, 25]], [[0, 9901, 100]]]):
        assert runs.cut_short(cut(folder, *calls)).startswith(told)
    with pytest.warns(UserWarning, match=rf"run/certificates\.tsv: {told}"):
        (run,) = runs.read([f"some={folder}"])
    assert f"Of “some” {told}" in by_run([run]).caption
    assert told in summary_table(run.results)
    (folder / "certificates.tsv").rename(folder / "certificates.0-of-2.tsv")
    assert runs.cut_short(read_results(folder / "certificates.0-of-2.tsv")) == ""
    for damaged in ([0, 2**40, 1], [0, 5, 0], [5, 5, 1], [-1, 5, 1]):
        with pytest.raises(ValueError, match=r"Expected ranges of images in manifest\.json of .*certificates\.tsv"):
            runs.cut_short(cut(shutil.copytree(ROOM / "plans/to_radius", tmp_path / f"{damaged}"), [damaged]))


def test_votes_do_not_choose_the_images_of_a_fixed_plan_that_was_cut_short(tmp_path):
    read = cut(shutil.copytree(ROOM / "plans/fixed", tmp_path / "run"), [[0, 10000, 1]])
    assert runs.cut_short(read) == ""
    for told, changed in (
        ("votes chose which", {"scheme": "cascade"}),
        ("they may be of other classes", {"data": "folder/test"}),
        ("they may be of other classes", {"data": "imagenet/test"}),
    ):
        manifest = read.manifest | {"guarantee": read.manifest["guarantee"] | changed}
        assert told in runs.cut_short(dataclasses.replace(read, manifest=manifest))


def test_names_of_the_users_own_and_paths_with_an_equals_sign(tmp_path):
    folder = tmp_path / "sigma=1"
    shutil.copytree(ROOM / "plans/fixed", folder)
    assert [run.name for run in runs.read([f"mine={folder}", str(folder)])] == ["mine", "gaussian, σ = 0.25"]
    assert [run.name for run in runs.read([f"a = b={folder}"])] == ["a = b"]
    with pytest.raises(ValueError, match="no such file"):
        runs.read(["a=b=nowhere"])


def test_other_projects_logs_go_by_their_file(tmp_path):
    (tmp_path / "sigma_0.25").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:03\n")
    (run,) = runs.read([str(tmp_path / "sigma_0.25")])
    assert (run.name, run.sigma, runs.trained_under(run.results)) == ("sigma_0.25", None, "")


@pytest.mark.parametrize("where", ["manifest", "folder"])
def test_the_training_noise(tmp_path, where):
    folder = tmp_path / "run"
    shutil.copytree(ROOM / "plans/fixed", folder)
    (run,) = runs.read([str(folder)])
    assert runs.trained_under(run.results) == ""
    training = {"training": {"scheme": {"name": "gaussian", "sigma": 0.45}, "recipe": {"sigma_low": 0.1}}}
    if where == "manifest":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sessions"].append(training)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        (folder / "train_config.json").write_text(json.dumps(training))
    (run,) = runs.read([str(folder)])
    assert runs.trained_under(run.results) == "gaussian, σ from 0.1 to 0.45"


def test_other_images_are_told():
    few, many, same = runs.read(
        [str(ROOM / name) for name in ("plans/fixed", "cifar10_resnet20_0.25/gaussian", "plans/to_radius")]
    )
    assert runs.other_images(few.results, same.results) == ""
    assert runs.other_images(few.results, many.results) == "100 images against 500, 100 of them in both"
    made = few.results.manifest["guarantee"] | {"data": "digits/test"}
    other = runs.Results(few.results.rows, {"guarantee": made}, few.results.path)
    assert runs.other_images(few.results, other) == ""  # the same by their hash, whatever they are called
    made["data_sha256"] = "0" * 64
    assert runs.other_images(few.results, other).endswith(" against digits/test (00000000)")
    changed = runs.Results(
        (dataclasses.replace(few.results.rows[0], label=9), *few.results.rows[1:]), None, few.results.path
    )
    assert runs.other_images(few.results, changed) == "image 0 has label 3 against 9"


def room(folder):
    """A folder of runs: one finished, one of training alone, one just begun, one whose workers are not merged."""
    shutil.copytree(ROOM / "plans/fixed", folder / "finished")
    header, first = (ROOM / "plans/fixed/certificates.tsv").read_text().splitlines(keepends=True)[:2]
    for name in ("begun", "trained", "workers"):
        (folder / name).mkdir(parents=True)
    (folder / "begun" / "certificates.tsv").write_text(header)
    (folder / "trained" / "metrics.csv").write_text("step\n")
    (folder / "workers" / "certificates.0-of-2.tsv").write_text(header + first)
    return sorted(map(str, folder.iterdir()))


COMMANDS = [
    (figures.main, ["sigmas"], ["--out", "{out}.png"]),
    (tables.main, ["runs"], ["--out", "{out}.png"]),
    (report.main, [], ["--out", "{out}.png"]),
]


@pytest.mark.parametrize(("main", "before", "after"), COMMANDS)
def test_folders_without_rows_are_left_out_with_a_line_each(tmp_path, main, before, after):
    arguments, out = room(tmp_path / "runs"), tmp_path / "out"
    after = [one.format(out=out) for one in after]
    status, _, error = running.run(main, *before, *arguments, *after)
    assert status == 0
    told = error.splitlines()
    assert [Path(line.split()[1]).name for line in told] == ["begun", "trained", "workers"]
    assert all(line.startswith("note: ") for line in told)
    assert [("idrc-merge" in line) for line in told] == [False, False, True]
    assert Path(f"{out}.png").exists()


@pytest.mark.parametrize(("main", "before", "after"), COMMANDS)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["trained", "begun"], "Expected a result file at"),
        (["begun"], "at least one row"),
        (["finished", "trained/metrics.csv"], "Expected a header"),
        (["finished", "nowhere"], "no such file"),
        (["finished", "mine={runs}/trained"], "no such file"),
    ],
)
def test_without_any_rows_and_for_what_was_named_it_is_an_error(tmp_path, main, before, after, more, message):
    folder = tmp_path / "runs"
    room(folder)
    arguments = [one.format(runs=folder) if "=" in one else str(folder / one) for one in more]
    after = [one.format(out=tmp_path / "out") for one in after]
    assert message in running.refused(main, *before, *arguments, *after)


def test_a_comparison_needs_both(tmp_path):
    room(tmp_path)
    assert "no such file" in running.refused(compare.main, tmp_path / "finished", tmp_path / "trained")
    error = running.refused(compare.main, tmp_path / "finished")
    assert error == "error: Expected B, a second run over the same images, got none. See idrc-compare --help.\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_command_prints_fits_the_terminals_encoding(encoding):
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    given = ["idrc-tables", "runs", str(ROOM / "plans/fixed"), "--kind", "valid"]
    with (
        mock.patch.object(sys, "argv", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        pytest.raises(SystemExit) as stopped,
    ):
        tables.main()
    out.flush()
    assert stopped.value.code == 0
    sigma = "σ" if encoding == "utf-8" else "\\u03c3"
    assert f"gaussian, {sigma} = 0.25" in out.buffer.getvalue().decode(encoding)


def test_what_commands_read_is_utf_8_in_every_locale(tmp_path):
    """Python warns where a text is read in the locale's encoding."""
    folder = write_audit(write_run(tmp_path / "run", gallery=True))
    (tmp_path / "names").write_bytes("é\nß\n".encode())
    (tmp_path / "page.md").write_bytes("σ\n<!-- a -->\n<!-- /a -->\n".encode())
    given = [
        ["report", str(folder), "--classes", str(tmp_path / "names"), "--out", str(tmp_path / "report")],
        ["tables", "runs", str(folder), "--mark", "a", "--out", str(tmp_path / "page.md")],
    ]
    code = (
        "import contextlib, importlib, sys, warnings\n"
        "warnings.simplefilter('ignore', EncodingWarning)  # of other packages\n"
        f"for name, *arguments in {given!r}:\n"
        "    module = importlib.import_module(f'idrc_jax.commands.{name}')\n"
        "    warnings.filterwarnings('error', category=EncodingWarning, module='idrc_jax')\n"
        "    sys.argv = [name, *arguments]\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        module.main()\n"
    )
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "encoding" not in answer.stderr.lower()
    assert "Report: " in answer.stdout
    assert "Table: " in answer.stdout
    assert "é" in (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("σ\n")


def test_home_stands_for_the_tilde_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(ROOM / "plans/fixed", tmp_path / "run")
    assert [run.name for run in runs.read(["mine=~/run", "~/run"])] == ["mine", "gaussian, σ = 0.25"]
    assert running.run(tables.main, "runs", "mine=~/run", "--out=~/table.md")[0] == 0
    assert "| mine |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(("main", "before"), [(tables.main, ["runs"]), (report.main, []), (recertify.main, [])])
def test_an_empty_path_is_not_the_current_folder(main, before):
    assert "Argument --out: invalid path value: ''" in running.refused(main, *before, ROOM / "plans/fixed", "--out=")


def test_a_warning_of_a_command_is_one_line(capsys):
    with command_line.one_line_errors():
        warnings.simplefilter("always")
        warnings.warn("Cut\n  off.", stacklevel=1)
    assert capsys.readouterr().err == "warning: Cut off.\n"
