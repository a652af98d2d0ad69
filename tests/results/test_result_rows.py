import dataclasses
import json
import math
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from disks import no_file_above
from scipy import stats

from idrc_jax import certificates, results
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.core import json_values
from idrc_jax.results import metrics, result_rows, runs, table_exports

GUARANTEE = {"scheme": "gaussian", "sigma": 0.5, "ref": 1.0, "n0": 10, "n": 100, "alpha": 0.001, "data": "x/test"}
GUARANTEE |= {"plan": "fixed", "certificate": "one_sided", "classes": 3, "dim": 48}
FIXED = sampling_plans.Fixed(n0=10)
HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"


def row(idx, label=1, votes=(3, 95, 0, 2), seconds=0.25, sigma=0.5, alpha=0.001, plan=FIXED):
    (made,) = certificates.from_votes(
        schemes.Gaussian(sigma=sigma),
        [0.0],
        [1],
        np.array([votes]),
        plan=plan,
        alpha=alpha,
        dim=48,
    )
    return results.Row.from_certificate(made, idx, label, seconds)


def write(folder, rows, guarantee=GUARANTEE, **more):
    with results.ResultsFile(folder, guarantee=guarantee, session={"date": "today"}, **more) as file:
        for one in rows:
            file.append(one)


def test_rows_come_back_in_full_precision(tmp_path):
    rows = [row(0), row(20, label=0), row(40, votes=(50, 50, 0, 0))]
    write(tmp_path, rows)
    read = results.read_results(tmp_path)
    assert read.rows == tuple(rows)
    assert read.manifest["guarantee"] == GUARANTEE
    assert read.rows[0].votes == {0: 3, 1: 95, -1: 2}
    assert [one.correct for one in rows] == [1, 0, 0]


def test_a_folder_without_rows_is_anothers_with_its_columns(tmp_path):
    """What is left of a call that was stopped before its first row says nothing of the next one's columns."""
    levels = {"scheme": "cascade", "levels": [0.5, 0.25], "thresholds": [0.5], "shares": [0.5, 0.5]}
    for guarantee in (GUARANTEE | {"norm": "l1", "scheme": "laplace"}, GUARANTEE | levels, GUARANTEE):
        write(tmp_path, [], guarantee)
        header = (tmp_path / "certificates.tsv").read_text().split()
        assert header == list(result_rows.columns_of(guarantee))
    write(tmp_path, [row(0)])
    assert results.read_results(tmp_path).rows == (row(0),)


def test_notes_of_a_call_are_kept_where_others_began_meanwhile(tmp_path):
    """Without rows yet the folder may be another's for a while; then its manifest is written anew."""
    with results.ResultsFile(tmp_path, guarantee=GUARANTEE, session={"call": 1}) as first:
        name = results.worker_file(1, 2)
        for guarantee in (GUARANTEE | {"sigma": 0.25}, GUARANTEE):
            with results.ResultsFile(tmp_path, guarantee=guarantee, session={"call": 2}, name=name) as other:
                if guarantee != GUARANTEE:
                    first.note({"kernel": "xla"})
                    assert results.read_manifest(tmp_path)["sessions"] == [{"call": 2}]
                other.note({"kernel": "y"})
        first.note({"kernel": "xla"})
        first.append(row(0))
    told = [{"call": 2, "kernel": "y"}, {"call": 1, "kernel": "xla"}]
    assert results.read_manifest(tmp_path)["sessions"] == told


def test_saving_beside_a_run_keeps_its_sessions(tmp_path):
    write(tmp_path, [row(0), row(20)])
    read = results.read_results(tmp_path)
    manifest = read.manifest | {"sessions": [{"call": "mine"}]}
    dataclasses.replace(read, rows=read.rows[:1], manifest=manifest).save(tmp_path / "mine.tsv")
    assert results.read_manifest(tmp_path)["sessions"] == [*read.manifest["sessions"], {"call": "mine"}]


def test_first_columns_are_the_fields(tmp_path):
    write(tmp_path, [row(7)])
    header, line = (tmp_path / "certificates.tsv").read_text().splitlines()
    names = "idx label predict radius correct time radius_published selected statistic sigma_x p_lower n n0 votes"
    assert header == names.replace(" ", "\t")
    assert line.split("\t")[:3] == ["7", "1", "1"]
    assert line.split("\t")[-1] == "0:3,1:95,-1:2"


def test_nan_radius_survives(tmp_path):
    write(tmp_path, [dataclasses.replace(row(3), radius=float("nan"))])
    (read,) = results.read_results(tmp_path).rows
    assert np.isnan(read.radius)
    assert read.predict == 1


def test_going_on_skips_what_is_done_and_keeps_every_session(tmp_path):
    write(tmp_path, [row(0), row(20)])
    with results.ResultsFile(tmp_path, guarantee=GUARANTEE, session={"date": "tomorrow"}) as file:
        assert file.done == {0, 20}
        file.append(row(40))
        assert file.done == {0, 20, 40}
    read = results.read_results(tmp_path)
    assert [one.idx for one in read.rows] == [0, 20, 40]
    assert [one["date"] for one in read.manifest["sessions"]] == ["today", "tomorrow"]


def test_another_guarantee_is_refused_with_both_values_and_nothing_changes(tmp_path):
    write(tmp_path, [row(0)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"alpha was 0\.001, is 0\.01; sigma was 0\.5, is 0\.25"):
        write(tmp_path, [row(20)], GUARANTEE | {"sigma": 0.25, "alpha": 0.01})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_manifest_without_rows_binds_nobody(tmp_path):
    write(tmp_path, [])
    write(tmp_path, [row(0, sigma=0.25)], GUARANTEE | {"sigma": 0.25})
    assert results.read_results(tmp_path).manifest["guarantee"]["sigma"] == 0.25


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_left_out_by_the_reader_and_cut_off_by_the_writer(tmp_path, cut):
    write(tmp_path, [row(0), row(20)])
    path = tmp_path / "certificates.tsv"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.warns(UserWarning, match="cut off"):
        assert [one.idx for one in results.read_results(path).rows] == [0]
    write(tmp_path, [row(20)])
    assert results.read_results(path).rows == (row(0), row(20))


@pytest.mark.parametrize("room", [0, 30])
def test_a_full_disk_leaves_whole_rows_and_a_clear_error(tmp_path, room):
    path = tmp_path / "certificates.tsv"
    with results.ResultsFile(tmp_path, guarantee=GUARANTEE, session={}) as file:
        file.append(row(0))
        before = path.read_bytes()
        with no_file_above(len(before) + room), pytest.raises(OSError, match=r"Expected to write a row .* free space"):
            file.append(row(20))
        assert path.read_bytes() == before
        assert file.done == {0}
        file.append(row(20))
    assert results.read_results(path).rows == (row(0), row(20))


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path):
    with no_file_above(10), pytest.raises(OSError, match="Expected to write"):
        write(tmp_path, [row(0)])
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def _hold(folder, ready):
    with results.ResultsFile(folder, guarantee=GUARANTEE, session={}) as file:
        file.append(row(0))
        ready.set()
        time.sleep(60)


def test_two_processes_cannot_write_one_file_and_a_killed_one_lets_go(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match="no other process"):
        write(tmp_path, [row(20)])
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    write(tmp_path, [row(20)])
    assert [one.idx for one in results.read_results(tmp_path).rows] == [0, 20]


def test_rows_without_their_manifest_are_not_adopted(tmp_path):
    write(tmp_path, [row(0)], name="certificates.1-of-2.tsv")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"Expected manifest\.json beside the rows"):
        write(tmp_path, [row(20)])


def test_files_of_a_folder_know_each_others_rows(tmp_path):
    write(tmp_path, [row(0)], name=results.worker_file(0, 2))
    write(tmp_path, [row(20)], name=results.worker_file(1, 3))
    with results.ResultsFile(tmp_path, guarantee=GUARANTEE, session={}) as file:
        assert file.done == {0, 20}
    with pytest.raises(ValueError, match=r"sigma was 0\.5, is 0\.25"):
        write(tmp_path, [], GUARANTEE | {"sigma": 0.25}, name=results.worker_file(2, 3))


def test_merge_does_not_replace_a_file_that_is_being_written(tmp_path):
    write(tmp_path, [row(0)], name=results.worker_file(0, 2))
    with results.ResultsFile(tmp_path, guarantee=GUARANTEE, session={}) as file:
        with pytest.raises(ValueError, match="no other process"):
            results.merge(results.result_files(tmp_path), tmp_path)
        file.append(row(20))
    results.merge(results.result_files(tmp_path), tmp_path)
    assert [one.idx for one in results.read_results(tmp_path).rows] == [0, 20]


def test_merge_unites_sorts_and_is_repeatable(tmp_path):
    names = [f"certificates.{number}-of-2.tsv" for number in range(2)]
    write(tmp_path, [row(0), row(40)], name=names[0])
    write(tmp_path, [row(20), row(40, seconds=9.0)], name=names[1])
    for _ in range(2):
        results.merge([tmp_path / name for name in names], tmp_path)
        read = results.read_results(tmp_path)
        assert [one.idx for one in read.rows] == [0, 20, 40]
        assert len(read.manifest["sessions"]) == 2  # one a process, however often merged


def test_merge_refuses_other_guarantees_disagreeing_rows_and_lone_files(tmp_path):
    for name, guarantee, votes in (
        ("a", GUARANTEE, (3, 95, 0, 2)),
        ("b", GUARANTEE | {"n": 200}, (3, 195, 0, 2)),
        ("c", GUARANTEE, (4, 94, 0, 2)),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [row(0, votes=votes)], guarantee)
    with pytest.raises(ValueError, match="n was 100, is 200"):
        results.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(ValueError, match="two that differ"):
        results.merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "c" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json beside"):
        results.merge([tmp_path / "c"], tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15.4", 15.4),
        ("0:00:03.5", 3.5),
        ("1:02:03", 3723.0),
        ("1 day, 2:03:04", 93_784.0),
        ("2 days, 0:00:01.5", 172_801.5),
    ],
)
def test_six_column_logs_of_other_projects(tmp_path, text, seconds):
    path = tmp_path / "log"
    path.write_text(f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.378\t1\t{text}\n20\t3\t-1\t0.0\t0\t{text}")
    read = results.read_results(path)
    assert len(read.rows) == 2
    assert (read.rows[0].radius, read.rows[0].time, read.rows[1].predict) == (0.378, seconds, -1)
    assert read.rows[0].votes is None
    assert read.manifest is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["idx\tlabel"], "header"),
        (["idx\tlabel\tpredict\tradius\tcorrect\ttime", "0\t1\t1\t0.5\t1"], "line 2: got 5 columns"),
        (["idx\tlabel\tpredict\tradius\tcorrect\ttime", "0\t1\tone\t0.5\t1\t2"], "line 2"),
        (["idx\tlabel\tpredict\tradius\tcorrect\ttime", "0\t1\t1\t0.5\t1\t2", "", "1\t1\t1\t0.5\t1\t2"], "line 3"),
        (["idx\tlabel\tpredict\tradius\tcorrect\ttime", "0\t1\t1\t.5\t1\t2", "0\t1\t1\t.5\t1\t2"], "once"),
        ([HEADER, f"{2**63}\t1\t1\t.5\t1\t2"], r"line 2: got idx = 9223372036854775808, which is not from 0 to"),
        ([HEADER, "-1\t1\t1\t.5\t1\t2"], "line 2: got idx = -1"),
        ([HEADER, "0\t-2\t1\t.5\t1\t2"], "line 2: got label = -2"),
        ([HEADER, f"0\t1\t1\t.5\t1\t{'9' * 400} days, 0:00:01"], "line 2: int too large"),
    ],
)
def test_malformed_files_are_refused_by_line(tmp_path, lines, message):
    path = tmp_path / "log"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=message):
        results.read_results(path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("votes", "0:3,1:94,-1:2", "Expected 100 votes for 3 classes at image 0"),
        ("votes", "0:3,1:95,0:2", "line 2: got votes 0:3,1:95,0:2, which are not one count >= 0 a class"),
        ("votes", "0:3,1:98,2:-1", "line 2: got votes"),
        ("votes", "0:3,1:95,7:2", "Expected 100 votes for 3 classes"),
        (
            "votes",
            "0:3,1:94,2:1,-1:2",
            "Expected p_lower = .* of image 0 .*, from its votes, got .*: the row was changed",
        ),
        ("selected", "0", "Expected p_lower"),
        ("selected", "3", "Expected 3 classes in .* got another at image 0"),
        ("label", "3", "Expected 3 classes in"),
        ("p_lower", "0.9", "Expected p_lower"),
        ("p_lower", "-0.9", "line 2: got p_lower = -0.9"),
        ("p_lower", "nan", "line 2: got p_lower = nan"),
        ("predict", "0", "Expected predict = 1 of image 0"),
        ("predict", "-1", "Expected predict = 1 of image 0"),
        ("radius", "0.7", "Expected radius = "),
        ("radius_published", "0.7", "Expected radius_published = "),
    ],
)
def test_a_row_that_does_not_follow_from_its_votes_is_refused(tmp_path, column, value, message):
    write(tmp_path, [row(0), row(20)])
    path = tmp_path / "certificates.tsv"
    header, line, last = path.read_text().splitlines()
    cells = line.split("\t")
    cells[results.COLUMNS.index(column)] = value
    cells[results.COLUMNS.index("correct")] = str(int(column not in ("predict", "label")))
    path.write_text("\n".join([header, "\t".join(cells), last, ""]))
    for read in (
        results.read_results,
        lambda path: runs.read([str(path)]),
        lambda path: results.merge([path], path.parent),
    ):
        with pytest.raises(ValueError, match=message):
            read(path)


NAMES = ["gaussian", "l1", "l2", "inverse_sqrt_norm", "uniform", "stepped"]


@pytest.mark.parametrize(
    ("name", "exact"),
    [*((name, False) for name in NAMES), *((name, True) for name in NAMES if schemes.SCHEMES[name].law == "normal")],
)
def test_rows_of_every_scheme_follow_from_their_votes(tmp_path, name, exact):
    """A row whose bound was raised a little is refused, whatever the scheme; and one whose radius was, of some only
    above what noise of constant level would give."""
    scheme = schemes.make(name, sigma=0.5, exact=exact)
    made = json_values.as_json(GUARANTEE | schemes.describe(scheme))
    (one,) = certificates.from_votes(scheme, [0.7], [1], np.array([(3, 95, 0, 2)]), plan=FIXED, alpha=0.001, dim=48)
    whole = results.Row.from_certificate(one, 0, 1, 0.25)
    results.write([whole], results.Results.in_memory([], made, {}).manifest, tmp_path)
    assert repr(results.read_results(tmp_path).rows) == repr((whole,))
    least = whole.radius or 1e-3
    if name in ("l1", "inverse_sqrt_norm"):
        least = whole.sigma_x * float(stats.norm.ppf(whole.p_lower))
        assert 0 < whole.radius < least
    for changed in (
        {"p_lower": 1.001 * whole.p_lower},
        {"predict": 0, "correct": 0},
        {"radius": 1.001 * least},
        {"radius_published": 1.001 * (whole.radius_published if whole.radius_published > 0 else 1)},
    ):
        results.write([dataclasses.replace(whole, **changed)], results.read_manifest(tmp_path), tmp_path)
        with pytest.raises(ValueError, match="the row was changed"):
            results.read_results(tmp_path)


@pytest.mark.parametrize("name", ["l1", "inverse_sqrt_norm", "l2"])
def test_an_abstention_has_no_radius(tmp_path, name):
    scheme = schemes.make(name, sigma=0.5)
    made = json_values.as_json(GUARANTEE | schemes.describe(scheme))
    (one,) = certificates.from_votes(scheme, [0.7], [1], np.array([(50, 50, 0, 0)]), plan=FIXED, alpha=0.001, dim=48)
    whole = results.Row.from_certificate(one, 0, 1, 0.25)
    assert (whole.predict, whole.radius) == (-1, 0)
    results.write([dataclasses.replace(whole, radius=0.01)], results.Results.in_memory([], made, {}).manifest, tmp_path)
    with pytest.raises(ValueError, match=r"Expected radius .*: the row was changed"):
        results.read_results(tmp_path)


def test_bounds_pay_for_exact_noise_as_much_as_its_level_asks(tmp_path):
    """Of images so large that it shows."""
    scheme = schemes.make("l1", sigma=8.0, exact=True)
    made = json_values.as_json(GUARANTEE | schemes.describe(scheme) | {"dim": 10**12})
    votes = np.array([(3, 95, 0, 2)] * 2)
    rows = [
        results.Row.from_certificate(one, idx, 1, 0.25)
        for idx, one in enumerate(
            certificates.from_votes(scheme, [0.2, 2.0], [1, 1], votes, plan=FIXED, alpha=0.001, dim=10**12)
        )
    ]
    assert rows[0].p_lower - rows[1].p_lower > 1e-3
    results.write(rows, results.Results.in_memory([], made, {}).manifest, tmp_path)
    assert results.read_results(tmp_path).rows == tuple(rows)
    changed = dataclasses.replace(rows[1], p_lower=rows[0].p_lower)
    results.write([changed], results.read_manifest(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="Expected p_lower"):
        results.read_results(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"p_lower": 0.99}, {"predict": 1, "correct": 1}, {"radius": 5.0}, {"radius_published": 5.0}],
    ids=lambda changed: next(iter(changed)),
)
@pytest.mark.parametrize(("name", "exact"), [("l1", False), ("l1", True), ("uniform", False), ("own", False)])
def test_without_noise_nothing_is_certified(tmp_path, name, exact, changed):
    """Of a black image no noise is drawn, however its votes fall."""
    scheme = schemes.make("l1" if name == "own" else name, sigma=0.5, exact=exact)
    made = json_values.as_json(GUARANTEE | schemes.describe(scheme) | {"scheme": name})
    (one,) = certificates.from_votes(scheme, [0.0], [1], np.array([(0, 100, 0, 0)]), plan=FIXED, alpha=0.001, dim=48)
    black = results.Row.from_certificate(one, 0, 1, 0.25)
    manifest = results.Results.in_memory([], made, {}).manifest
    for right in (black, dataclasses.replace(black, radius=math.nan)):
        results.write([right], manifest, tmp_path)
        assert repr(results.read_results(tmp_path).rows) == repr((right,))
    results.write([dataclasses.replace(black, **changed)], manifest, tmp_path)
    with pytest.raises(ValueError, match=rf"Expected {next(iter(changed))} = .* of image 0 .*: the row was changed"):
        results.read_results(tmp_path)


def test_lines_that_end_as_those_of_windows_are_read_and_gone_on_from(tmp_path):
    write(tmp_path, [row(0), row(20)])
    path = tmp_path / "certificates.tsv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert results.read_results(path).rows == (row(0), row(20))
    write(tmp_path, [row(40)])
    assert results.read_results(path).rows == (row(0), row(20), row(40))
    before = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r")  # lines without an end: all of it is torn
    path.write_bytes(before)
    with pytest.raises(ValueError, match="Expected a header"):
        results.read_results(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("alpha", "0.1", "guarantee.alpha in .* a finite number"),
        ("alpha", None, "guarantee.alpha"),
        ("n", 2**70, "guarantee.n in .* an integer of 64 bits"),
        ("classes", 3.0, "guarantee.classes"),
        ("sigma", float("nan"), "guarantee.sigma in .* a finite number, got NaN"),
        ("paired", {"n": 3}, "guarantee.paired.share"),
        ("seed", "0", "guarantee.seed"),
    ],
)
def test_settings_of_another_kind_are_named(tmp_path, place, value, message):
    write(tmp_path, [row(0)])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["guarantee"][place] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"Expected {message}"):
        results.read_results(tmp_path)
    del manifest["guarantee"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"Expected guarantee in .*manifest\.json, got none"):
        results.read_results(tmp_path)


def test_missing_files_foreign_manifests_and_newer_schemas_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        results.read_results(tmp_path)
    write(tmp_path, [row(0)])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 2}))
    with pytest.raises(ValueError, match="schema_version 1"):
        results.read_results(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="manifest of this project"):
        results.read_results(tmp_path)


def test_another_guarantee_cannot_take_the_folder_before_the_first_row(tmp_path):
    """Two workers are open and neither has a row yet; the second made the manifest its own."""
    first = results.ResultsFile(tmp_path, guarantee=GUARANTEE, session={}, name="certificates.0-of-2.tsv")
    second = results.ResultsFile(
        tmp_path, guarantee=GUARANTEE | {"alpha": 0.1}, session={}, name="certificates.1-of-2.tsv"
    )
    with first, second:
        second.append(row(1, alpha=0.1))
        with pytest.raises(ValueError, match=r"alpha.*0\.1"):
            first.append(row(0))
    assert [one.idx for one in results.read_results(tmp_path / "certificates.1-of-2.tsv").rows] == [1]
    assert not results.read_results(tmp_path / "certificates.0-of-2.tsv").rows


def log(path, *lines):
    path.write_text("\n".join([HEADER, *(line.replace(" ", "\t") for line in lines), ""]))
    return path


def test_correct_follows_from_label_and_predict_whatever_a_log_writes_there(tmp_path):
    """A running total, and 1 for an abstention: the accuracies are those of label and predict, with one warning."""
    rows = ("0 3 3 .5 1 1", "10 7 -1 0 1 1", "20 5 2 .7 1 1", "30 1 1 .3 2 1", "40 1 4 .9 2 1")
    with pytest.warns(UserWarning, match="In 4 of the 5 rows of .*log the column correct") as caught:
        read = results.read_results(log(tmp_path / "log", *rows))
    assert len(caught) == 1
    assert [one.correct for one in read.rows] == [1, 0, 0, 1, 0]
    assert [metrics.certified_accuracy(read, radius) for radius in (0, 0.25, 0.5, 0.75)] == [0.4, 0.4, 0.2, 0]
    assert metrics.average_certified_radius(read) == pytest.approx(0.16)
    table_exports.write_log(read, tmp_path / "again.tsv")
    assert results.read_results(tmp_path / "again.tsv").rows == read.rows


def test_correct_of_our_own_files_too_and_never_for_an_abstention(tmp_path):
    write(tmp_path, [dataclasses.replace(row(0, label=0), correct=1), row(20)])
    with pytest.warns(UserWarning, match="In 1 of the 2 rows"):
        assert [one.correct for one in results.read_results(tmp_path).rows] == [0, 1]
    assert row(0, label=-1, votes=(50, 50, 0, 0)).correct == 0


def test_booleans_a_byte_order_mark_and_blank_lines_at_the_end_are_read(tmp_path):
    path = log(tmp_path / "log", "0 3 3 .5 True 1", "20 3 4 .5 False 1")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n\n")
    assert [(one.idx, one.correct) for one in results.read_results(path).rows] == [(0, 1), (20, 0)]


@pytest.mark.parametrize("end", ["\n\n", "\t\n", "\r\n", " \n\n"])
def test_blank_lines_at_the_end_of_our_own_file_do_not_end_up_inside_it(tmp_path, end):
    write(tmp_path, [row(0)])
    with (tmp_path / "certificates.tsv").open("ab") as file:
        file.write(end.encode())
    assert results.read_results(tmp_path).rows == (row(0),)
    write(tmp_path, [row(20)])
    assert results.read_results(tmp_path).rows == (row(0), row(20))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 3 3 inf 1 1", "line 2: got radius = inf"),
        ("0 3 3 -0.5 1 1", "line 2: got radius = -0.5, which is not finite and >= 0"),
        ("0 3 3 1e308 1 1", "line 2: got radius = 1e.308"),
        ("0 3 3 .5 1 inf", "line 2: got time = inf"),
        ("0 3 3 .5 1 nan", "line 2: got time = nan"),
        ("0 3 3 .5 yes 1", "line 2"),
    ],
)
def test_numbers_that_no_radius_or_time_can_be_are_refused_by_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        results.read_results(log(tmp_path / "log", line))


@pytest.mark.parametrize("name", ["certificates_old.tsv", "certificates (copy).tsv", "certificates.0-of-2.bak.tsv"])
def test_only_the_files_that_a_run_writes_are_its_rows(tmp_path, name):
    write(tmp_path, [row(0)])
    write(tmp_path, [row(20)], name=results.worker_file(1, 2))
    write(tmp_path, [row(40)], name=name)
    assert [path.name for path in results.result_files(tmp_path)] == ["certificates.1-of-2.tsv", "certificates.tsv"]
    with results.ResultsFile(tmp_path, guarantee=GUARANTEE, session={}) as file:
        assert file.done == {0, 20}
    results.merge(results.result_files(tmp_path), tmp_path)
    assert [one.idx for one in results.read_results(tmp_path).rows] == [0, 20]


@pytest.mark.parametrize(
    ("other", "changed", "message"),
    [
        ({"sigma": 0.25}, {"sigma": 0.25}, r"sigma_x = 0\.5, got n = 100, n0 = 10, sigma_x = 0\.25 for image 20"),
        ({"n": 200}, {"votes": (3, 195, 0, 2)}, r"n at most 100.*got n = 200"),
    ],
)
def test_rows_of_another_run_are_refused_under_this_ones_manifest(tmp_path, other, changed, message):
    for folder, guarantee, rows in (
        ("here", GUARANTEE, [row(0)]),
        ("there", GUARANTEE | other, [row(20, **changed)]),
    ):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, rows, guarantee)
    stray = tmp_path / "here" / "certificates.0-of-2.tsv"
    stray.write_bytes((tmp_path / "there" / "certificates.tsv").read_bytes())
    before = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    for attempt in (
        lambda: results.read_results(stray),
        lambda: results.merge(results.result_files(tmp_path / "here"), tmp_path / "here"),
        lambda: write(tmp_path / "here", [row(40)]),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            attempt()
        assert stray.name in str(refused.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == before


@pytest.mark.parametrize(
    "plan", [sampling_plans.SelectionFree(n=100), sampling_plans.ToRadius(n=100), sampling_plans.ToPrecision(n=1000)]
)
def test_rows_of_another_plan_are_refused(tmp_path, plan):
    made = json_values.as_json(GUARANTEE | sampling_plans.describe(plan))
    write(tmp_path, [row(0, plan=plan)], made)
    assert len(results.read_results(tmp_path).rows) == 1  # 100 is a look of each
    write(tmp_path, [row(20)], made)
    with pytest.raises(ValueError, match=rf"n0 = 0 \(plan {plan.name}\)"):
        results.read_results(tmp_path)


def test_a_manifest_without_its_plan_is_named(tmp_path):
    write(tmp_path, [row(0)])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["guarantee"]["plan"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"Expected guarantee\.plan in .*manifest\.json, got none"):
        results.read_results(tmp_path)


def test_rows_under_a_scheme_of_the_users_own_are_taken_at_their_levels(tmp_path):
    write(tmp_path, [row(0)], GUARANTEE | {"scheme": "mine", "sigma": 0.1})
    assert results.read_results(tmp_path).rows == (row(0),)


def test_a_log_in_a_runs_folder_does_not_get_the_runs_manifest_nor_its_rows(tmp_path):
    write(tmp_path, [row(0)])
    assert results.read_results(log(tmp_path / "other.tsv", "0 3 3 .5 1 1")).manifest is None
    stray = log(tmp_path / "certificates.0-of-2.tsv", "20 3 3 .5 1 1")
    with pytest.raises(ValueError, match=r"Expected manifest\.json beside .* and all columns in it"):
        results.merge(results.result_files(tmp_path), tmp_path)
    with pytest.raises(ValueError, match=f"Expected all columns .*{stray.name}.* got only six"):
        write(tmp_path, [row(40)])


def test_fields_of_a_scheme_of_the_users_own_are_of_any_kind(tmp_path):
    """But for what the plan has written under the same name."""
    fields = {"k": "a", "radii": 1, "levels": {}, "edges": "x", "shares": 0, "precision": "low", "factory": 3}
    fields |= {"members": 2, "seed": "s", "subsampled_from": "no", "consensus": 0.5, "thresholds": True}
    made = GUARANTEE | {"scheme": "own"}
    write(tmp_path, [row(0)], made | fields)
    assert results.read_results(tmp_path).rows == (row(0),)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for changed in ({"plan": "to_radius"}, {"plan": "to_precision"}, {"scheme": "l1"}):
        other = {**manifest, "guarantee": manifest["guarantee"] | changed}
        (tmp_path / "manifest.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match="Expected guarantee"):
            results.read_results(tmp_path)


def test_a_manifest_that_does_not_say_which_images_were_clean_is_read(tmp_path):
    """As before it said so."""
    write(tmp_path, [row(0)])
    manifest = json.loads((tmp_path / "manifest.json").read_text()) | {"clean": {"right": 1, "images": 1}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert metrics.clean_accuracy(results.read_results(tmp_path)) is None


def test_a_damaged_row_is_found_before_a_run_goes_on(tmp_path):
    write(tmp_path, [row(0)])
    write(tmp_path, [dataclasses.replace(row(20), radius=5.0)], name="certificates.1-of-2.tsv")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(ValueError, match=r"Expected radius = .* of image 20 .*: the row was changed"):
        write(tmp_path, [row(40)])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_results_are_saved_over_the_same_ones_of_before_norms_were_named(tmp_path):
    write(tmp_path, [row(0)])
    named = results.Results.in_memory([row(0), row(20)], GUARANTEE | {"norm": "l2"}, {})
    assert named.save(tmp_path).rows == results.read_results(tmp_path).rows == (row(0), row(20))
    other = results.Results.in_memory([row(0), row(20)], GUARANTEE | {"norm": "l1"}, {})
    with pytest.raises(ValueError, match="a place without other results"):
        other.save(tmp_path)
