import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import running
from conftest import ROOT
from own_schemes import Own
from scipy import stats

from idrc_jax import certification, results
from idrc_jax.audit import job as audit_job
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.certification import Settings
from idrc_jax.certification.gallery_selection import gallery
from idrc_jax.commands import recertify as command
from idrc_jax.core import user_code
from idrc_jax.core.json_values import as_json
from idrc_jax.report import run_summaries
from idrc_jax.results import equal_terms, recertify, runs

SCHEMES = {
    name: schemes.Stepped(sigma=0.5, edges=(2.2,), levels=(1.0, 1.5))
    if name == "stepped"
    else schemes.make(name, sigma=0.5)
    # "splitting" has a plan of its own, and under "routed" other images have votes for classes at another alpha.
    for name in sorted(schemes.SCHEMES.keys() - {"splitting", "routed"})
}


def certify(linear, dataset, workdir, scheme, **changed):
    settings = Settings(**{"plan": sampling_plans.Fixed(n0=20, n=300), "alpha": 0.001} | changed)
    certification.certify_dataset(linear, scheme, dataset, np.arange(0, 60, 4), settings, workdir, chunk=64)
    return results.read_results(workdir)


@pytest.mark.parametrize("name", SCHEMES)
def test_it_agrees_with_certification_to_the_last_digit(linear, dataset, tmp_path, name):
    """Row by row there, all rows at once here; and at another alpha, with the rows that alpha would have written."""
    read = certify(linear, dataset, tmp_path / "a", SCHEMES[name])
    assert repr(recertify.recertify(read).rows) == repr(read.rows)  # nan is not itself
    other = certify(linear, dataset, tmp_path / "b", SCHEMES[name], alpha=0.05)
    made = recertify.recertify(read, alpha=0.05)
    expected = [dataclasses.replace(new, time=old.time) for new, old in zip(other.rows, read.rows, strict=True)]
    assert repr(list(made.rows)) == repr(expected)
    assert made.manifest["guarantee"] == other.manifest["guarantee"]
    assert made.rows != read.rows


@pytest.mark.parametrize("certificate", ["two_sided", "runner_up"])
@pytest.mark.parametrize("name", ["gaussian", "stepped", "box", "laplace"])
def test_the_other_certificates_of_stored_votes(linear, dataset, tmp_path, name, certificate):
    read = certify(linear, dataset, tmp_path / "a", SCHEMES[name])
    other = certify(linear, dataset, tmp_path / "b", SCHEMES[name], certificate=certificate)
    made = recertify.recertify(read, certificate=certificate)
    assert [row.radius for row in made.rows] == [row.radius for row in other.rows]
    assert [row.predict for row in made.rows] == [row.predict for row in other.rows]


def test_the_command_writes_a_file_that_reads_back_and_loads_no_jax(linear, dataset, tmp_path):
    certify(linear, dataset, tmp_path / "a", SCHEMES["l1"])
    code = (
        "import sys; from idrc_jax.commands import recertify\n"
        f"sys.argv = ['idrc-recertify', {str(tmp_path / 'a')!r}, '--alpha', '0.05', '--out', {str(tmp_path / 'b')!r}]\n"
        "try:\n    recertify.main()\nfinally:\n    print('jax' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "alpha 0.05" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "False"
    expected = recertify.recertify(results.read_results(tmp_path / "a"), alpha=0.05)
    assert results.read_results(tmp_path / "b").rows == expected.rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--alpha", "2"], "0 < alpha < 1"),
        (["{run}", "--certificate", "both"], "one_sided, runner_up, two_sided"),
        (["{run}", "--certificate", "two_sided"], "gaussian, stepped, box, laplace or splitting"),
        (["{run}", "--k", "2"], "gaussian or stepped for a top_k certificate"),
        (["/nowhere"], "no such file"),
        (["{run}", "--alhpa", "0.1"], "Unrecognized arguments"),
        ([], "file"),
    ],
)
def test_bad_input_is_one_line(linear, dataset, tmp_path, arguments, message):
    certify(linear, dataset, tmp_path, SCHEMES["l1"])
    command = [sys.executable, "-m", "idrc_jax.commands.recertify", *(a.format(run=tmp_path) for a in arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert message in answer.stderr


def test_votes_and_levels_that_do_not_fit_the_manifest_are_refused(linear, dataset, tmp_path):
    read = certify(linear, dataset, tmp_path, SCHEMES["l1"])
    with pytest.raises(ValueError, match="Expected 300 votes for 3 classes at image 0"):
        recertify.recertify(dataclasses.replace(read, rows=(dataclasses.replace(read.rows[0], votes={0: 299}),)))
    with pytest.raises(ValueError, match="Expected 300 votes for 3 classes"):
        recertify.recertify(dataclasses.replace(read, rows=(dataclasses.replace(read.rows[0], votes={7: 300}),)))
    with pytest.raises(ValueError, match="Expected 300 votes for 3 classes"):
        recertify.recertify(dataclasses.replace(read, rows=(dataclasses.replace(read.rows[0], votes={0: 300, 7: 5}),)))
    at_no_look = dataclasses.replace(read.rows[0], n=299, votes={0: 299})
    with pytest.raises(ValueError, match="Expected 299 votes for 3 classes"):
        recertify.recertify(dataclasses.replace(read, rows=(at_no_look,)))
    next_level = float(np.nextafter(read.rows[0].sigma_x, 1))
    with pytest.raises(ValueError, match="Expected sigma_x"):
        recertify.recertify(dataclasses.replace(read, rows=(dataclasses.replace(read.rows[0], sigma_x=next_level),)))
    with pytest.raises(ValueError, match=r"Expected manifest\.json"):
        recertify.recertify(dataclasses.replace(read, manifest=None))


def test_the_true_class_among_the_k_likeliest(linear, dataset, tmp_path):
    """Labels that are no prediction, too; the file reads back, says what it is, and gives back what it came from."""
    read = certify(linear, dataset, tmp_path / "a", SCHEMES["gaussian"])
    made = recertify.recertify(read, k=2)
    assert made.manifest["guarantee"] == read.manifest["guarantee"] | {"certificate": "top_k", "k": 2}
    assert any(row.predict not in (-1, row.selected) for row in made.rows)
    for new, old in zip(made.rows, read.rows, strict=True):
        assert new.predict in (-1, old.label)
        assert (new.correct, new.selected, new.votes) == (int(new.predict == old.label), old.selected, old.votes)
        lower = stats.beta.ppf(0.0008, old.votes.get(old.label, 0), 301 - old.votes.get(old.label, 0))
        assert new.p_lower == (pytest.approx(lower) if old.votes.get(old.label, 0) else 0)
    right = dataclasses.replace(read, rows=tuple(dataclasses.replace(row, label=row.selected) for row in read.rows))
    runner_up = recertify.recertify(right, certificate="runner_up")
    one = recertify.recertify(right, k=1)
    assert [row.radius for row in one.rows] == pytest.approx([row.radius for row in runner_up.rows], rel=1e-7)
    assert [row.predict for row in one.rows] == [row.predict for row in runner_up.rows]
    assert max(row.radius for row in one.rows) > 0.2
    assert sum(row.correct for row in made.rows) > sum(row.correct for row in recertify.recertify(read, k=1).rows)
    assert recertify.recertify(made, certificate="one_sided").rows == read.rows
    assert repr(recertify.recertify(made).rows) == repr(made.rows)  # nan is not itself
    assert "k" not in recertify.recertify(made, certificate="two_sided").manifest["guarantee"]
    status, out, _ = running.run(command.main, tmp_path / "a", "--k=2", "--out", tmp_path / "k")
    assert status == 0
    assert "top_k, k 2" in out
    assert "true class is among the 2 likeliest" in out
    assert "Jia et al. 2020" in out
    assert "k is None for “b”, 2 for “a”" in equal_terms.differences([runs.Run("b", read), runs.Run("a", made)])
    with pytest.raises(ValueError, match="true class among the 2 likeliest: audit the run itself"):
        audit_job._same_certificates(made, linear, dataset, np.arange(60), None)
    assert repr(results.read_results(tmp_path / "k").rows) == repr(made.rows)
    assert run_summaries.command(made) is None
    assert results.largest_radius(made) > max(row.radius for row in made.rows)


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({}, {"k": 0}, "Expected k from 1 to 1 of 2 classes, got 0"),
        ({}, {"k": 2}, "Expected k from 1 to 1 of 2 classes, got 2"),
        ({}, {"k": 1, "certificate": "one_sided"}, "Expected a certificate or k, got one_sided and k = 1"),
        ({"plan": "to_radius"}, {"k": 1}, "the plan fixed or selection_free for a top_k certificate, got to_radius"),
        ({"plan": "selection_free"}, {"certificate": "runner_up"}, "the plan fixed for a runner_up certificate"),
    ],
)
def test_certificates_that_votes_cannot_have_are_refused(tmp_path, more, arguments, message):
    with pytest.raises(ValueError, match=message):
        recertify.recertify(drawn_run(tmp_path, 3, **more), **arguments)


def test_images_without_labels_have_no_true_class_among_the_likeliest(tmp_path):
    read = drawn_run(tmp_path, 3, plan="selection_free")
    assert {row.predict for row in recertify.recertify(read, k=1).rows} == {0}
    rows = tuple(dataclasses.replace(row, label=-1) for row in read.rows)
    with pytest.raises(ValueError, match=r"Expected labels in .* for k = 1, which is about the true class"):
        recertify.recertify(dataclasses.replace(read, rows=rows), k=1)


@dataclasses.dataclass(frozen=True)
class Narrow(Own):
    """Of the same levels, with bounds that do not hold."""

    def scale_bounds(self, statistic, distance, dim):
        return self.scale(statistic), self.scale(statistic)


def drawn_run(folder, count, *, n=400, p=0.8, alpha=0.05, plan="fixed", scheme=SCHEMES["gaussian"], **more):
    """Rows of so many images whose votes are drawn by the class's probability; class 1 has the rest but for 3 %."""
    votes = np.random.default_rng(0).multinomial(n, [p, 0.97 - p, 0.03], size=count)
    made = as_json(schemes.describe(scheme)) | sampling_plans.describe(sampling_plans.PLANS[plan](n=n))
    made |= {"alpha": alpha, "certificate": "one_sided", "classes": 2, "dim": 16, "seed": 5, "data": "made/test"}
    made |= {"data_sha256": "0" * 64, "weights_sha256": "1" * 64, "dtype": "float32"} | more
    rows = tuple(
        results.Row(i, 0, 0, 0.1, 1, 0.0, 0.1, 0, 0.0, 0.5, 0.6, n, made["n0"], dict(zip((0, 1, -1), own, strict=True)))
        for i, own in enumerate(votes.tolist())
    )
    read = results.Results(rows, {"schema_version": 1, "guarantee": made, "sessions": []}, folder)
    return recertify.recertify(read, scheme=scheme)


def stepped(*levels):
    return schemes.Stepped(sigma=0.5, edges=(2.2,), levels=levels)


@pytest.mark.parametrize(
    ("scheme", "other", "changed"),
    [
        (schemes.L2(0.5), schemes.Gaussian(0.5), "scheme was l2, is gaussian."),
        (schemes.Box(0.5), schemes.Laplace(0.5), "scheme was box, is laplace."),
        (schemes.Gaussian(0.5), schemes.Gaussian(0.25), "sigma was 0.5, is 0.25."),
        (schemes.Gaussian(0.5, exact=True), schemes.Gaussian(0.5), "exact was True, is False."),
        (schemes.Gaussian(0.5), schemes.Gaussian(0.5, exact=True), "exact was False, is True."),
        (stepped(1.0, 1.5), stepped(1.0, 1.0), "levels was [1.0, 1.5], is [1.0, 1.0]."),
        (Own(0.5), schemes.Gaussian(0.5), "scheme was own, is gaussian; scheme_class was own_schemes:Own, is unset;"),
        (schemes.Gaussian(0.5), Own(0.5), "scheme was gaussian, is own; scheme_class was unset, is own_schemes:Own;"),
        (Own(0.5), Narrow(0.5), "scheme_class was own_schemes:Own, is test_recertify:Narrow; scheme_sha256 was"),
    ],
)
def test_another_scheme_than_the_files_is_refused(tmp_path, scheme, other, changed):
    """Also one of the same levels, whose radii would be other ones."""
    read = drawn_run(tmp_path, 3, scheme=scheme, norm=scheme.norm)
    assert repr(recertify.recertify(read, scheme=scheme)) == repr(read)
    message = f"Expected the scheme that the results were made under, got another: {changed}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        recertify.recertify(read, scheme=other, alpha=0.01)


def test_an_own_scheme_of_another_source_is_refused(tmp_path, linear, dataset, monkeypatch):
    """Before it certifies, audits or pictures anything; also one whose source nobody knows."""
    read = drawn_run(tmp_path, 3, scheme=Own(0.5), data_sha256=dataset.fingerprint(np.arange(3)))
    calls = (
        lambda: recertify.recertify(read, scheme=Own(0.5)),
        lambda: audit_job._same_certificates(read, linear, dataset, np.arange(3), Own(0.5)),
        lambda: gallery(read, dataset, scheme=Own(0.5)),
    )
    calls[0](), calls[2]()
    for more, told in (({"sha256": "ab" * 32}, "is abababab..."), ({}, "is unset")):
        monkeypatch.setattr(user_code, "describe", lambda made, more=more: {"class": "own_schemes:Own", **more})
        for call in calls:
            with pytest.raises(ValueError, match=rf"^Expected the scheme .* another: scheme_sha256 was .*, {told}\.$"):
                call()
        asked = read.manifest["guarantee"] | schemes.describe(Own(0.5))
        if not more:
            del asked["scheme_sha256"]
        assert results.guarantee_differences(read.manifest["guarantee"], asked).endswith(told)
    older = {name: one for name, one in read.manifest["guarantee"].items() if not name.startswith("scheme_")}
    unnamed = dataclasses.replace(read, manifest=read.manifest | {"guarantee": older})
    grown = dataclasses.make_dataclass("Grown", [("slope", float, 1.0)], bases=(Own,), frozen=True)
    for made in (Own(0.5), grown(0.5)):  # any code was meant, also of fields that it has gained since
        assert repr(recertify.recertify(unnamed, scheme=made).rows) == repr(read.rows)  # nan is not itself
    with pytest.raises(ValueError, match="another: exact was False, is True"):
        recertify.recertify(unnamed, scheme=Own(0.5, exact=True))


def test_a_file_that_names_no_seed_is_refused_where_that_is_needed(tmp_path, linear, dataset):
    read = drawn_run(tmp_path, 3, data_sha256=dataset.fingerprint(np.arange(3)))
    for seed, told in ((None, "None"), ("x" * 99, "'xxx.*"), (2**64, "18446744073709551616"), (True, "True")):
        guarantee = read.manifest["guarantee"] | {"seed": seed}
        if seed is None:
            del guarantee["seed"]
        one = dataclasses.replace(read, manifest=read.manifest | {"guarantee": guarantee})
        assert recertify.recertify(one, alpha=0.01).rows
        assert (run_summaries.command(one) is None) == (seed is None)
        for call in (
            lambda one=one: recertify.recertify(one, n=100),
            lambda one=one: audit_job._same_certificates(one, linear, dataset, np.arange(3), None),
            lambda one=one: gallery(one, dataset),
        ):
            with pytest.raises(ValueError, match=rf"^Expected guarantee\.seed in 0 \.\. 2\*\*64 - 1 .*, got {told}\.$"):
                call()


@pytest.mark.parametrize("plan", ["fixed", "selection_free"])
def test_a_run_without_rows_has_none_with_fewer_votes(tmp_path, plan):
    assert not recertify.recertify(drawn_run(tmp_path, 0, plan=plan), n=100).rows


def test_fewer_votes_have_the_law_of_a_run_that_drew_so_few(tmp_path):
    """Of binomial counts a part drawn without replacement is binomial, and its bounds err as often as they may."""
    made = recertify.recertify(drawn_run(tmp_path, 4000), n=20)
    counts = np.bincount([row.votes.get(0, 0) for row in made.rows], minlength=21)
    expected = 4000 * stats.binom.pmf(np.arange(21), 20, 0.8)
    lumped = [np.append(one[12:], np.sum(one[:12])) for one in (counts, expected)]
    assert stats.chisquare(*lumped).pvalue > 1e-3
    errs = np.mean([row.p_lower > 0.8 for row in made.rows])
    assert errs <= stats.binom.ppf(0.999, 4000, 0.05) / 4000
    assert errs > 0.005
    assert np.mean([row.votes.get(-1, 0) for row in made.rows]) == pytest.approx(20 * 0.03, abs=0.1)


def test_which_votes_are_taken_follows_from_seed_image_and_numbers(tmp_path):
    read = drawn_run(tmp_path, 30)
    made = recertify.recertify(read, n=100)
    assert {(row.n, sum(row.votes.values())) for row in made.rows} == {(100, 100)}
    assert made.manifest["guarantee"] == {**read.manifest["guarantee"], "n": 100, "subsampled_from": 400}
    assert recertify.recertify(read, n=100).rows == made.rows
    backwards = recertify.recertify(dataclasses.replace(read, rows=read.rows[::-1]), n=100)
    assert backwards.rows[::-1] == made.rows
    other = {**read.manifest, "guarantee": read.manifest["guarantee"] | {"seed": 6}}
    assert recertify.recertify(dataclasses.replace(read, manifest=other), n=100).rows != made.rows
    whole = recertify.recertify(read, n=400)
    assert whole.rows == recertify.recertify(read).rows
    assert "subsampled_from" not in whole.manifest["guarantee"]


def test_nobody_draws_again(tmp_path):
    """By a step between, votes could be drawn anew until they please."""
    part = recertify.recertify(drawn_run(tmp_path, 10), n=np.int64(100))
    assert type(part.manifest["guarantee"]["n"]) is int
    with pytest.raises(ValueError, match="all votes of a run, to take 50 of them, got 100 drawn from 400 in"):
        recertify.recertify(part, n=50)
    again = recertify.recertify(part, n=100, alpha=np.float32(0.25))
    assert type(again.manifest["guarantee"]["alpha"]) is float
    assert again.manifest["guarantee"]["subsampled_from"] == 400


def test_no_votes_are_lost_by_the_command(tmp_path):
    whole = drawn_run(tmp_path, 10)
    results.write(whole.rows, whole.manifest, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.suffix}
    for more in (["--n=100"], ["--alpha=0.01"]):
        status, _, error = running.run(command.main, tmp_path, *more, "--out", tmp_path)
        assert (status, error.count("\n")) == (1, 1)
        assert "a place without other results" in error
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.suffix} == before
    assert running.run(command.main, tmp_path, "--out", tmp_path)[0] == 0  # the same votes and settings, radii anew
    assert results.read_results(tmp_path).rows == recertify.recertify(whole).rows


def test_a_part_of_the_votes_is_read_back_said_and_not_gone_on_from(tmp_path):
    whole = drawn_run(tmp_path, 10)
    results.write(whole.rows, whole.manifest, tmp_path / "whole")
    made = recertify.recertify(whole, n=100)
    status, out, _ = running.run(command.main, tmp_path / "whole", "--n", "1e2", "--out", tmp_path)
    assert status == 0
    assert "n 100 drawn from 400," in out
    read = results.read_results(tmp_path)
    assert read.rows == made.rows
    assert run_summaries.command(read) is None
    guarantee = {name: value for name, value in made.manifest["guarantee"].items() if name != "subsampled_from"}
    with (
        pytest.raises(ValueError, match="subsampled_from was 400"),
        results.ResultsFile(tmp_path, guarantee=guarantee, session={}),
    ):
        pass


def test_where_the_votes_choose_the_class_fewer_votes_choose_it_anew(tmp_path):
    made = recertify.recertify(drawn_run(tmp_path, 200, p=0.5, plan="selection_free"), n=30)
    assert {row.selected for row in made.rows} == {0, 1}
    for row in made.rows:
        assert row.votes.get(row.selected, 0) == max(row.votes.get(0, 0), row.votes.get(1, 0))
    fixed = recertify.recertify(drawn_run(tmp_path, 200, p=0.5), n=30)
    assert {row.selected for row in fixed.rows} == {0}


@pytest.mark.parametrize(
    ("plan", "n", "message"),
    [
        ("fixed", 401, "Expected n <= 400, the votes of each image in"),
        ("fixed", 0, "Expected n >= 1"),
        ("fixed", 4, "Expected n >= 5, the fewest samples that can certify anything"),
        ("to_radius", 100, "Expected the plan fixed or selection_free to take fewer votes, got to_radius"),
    ],
)
def test_fewer_votes_that_cannot_be_are_refused(tmp_path, plan, n, message):
    with pytest.raises(ValueError, match=message):
        recertify.recertify(drawn_run(tmp_path, 3, plan=plan), n=n)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "gaussian" else pytest.param(name, marks=pytest.mark.evidence)
        for name in SCHEMES
        if name != "cascade"
    ],
)
def test_ten_thousand_rows_at_once(name, tmp_path):
    """As many images as CIFAR-10 tests, n = 100,000, all different: seconds, where row by row takes minutes."""
    generator = np.random.default_rng(0)
    scheme = SCHEMES[name]
    made = (
        schemes.describe(scheme)
        | sampling_plans.describe(sampling_plans.Fixed())
        | {"alpha": 0.001, "certificate": "one_sided"}
    )
    top = 100_000 - np.floor(10 ** generator.uniform(0, 4.7, 10_000)).astype(int)
    statistic = generator.uniform(0.1, 0.9, 10_000) if name == "l1" else generator.uniform(5, 50, 10_000)
    level = schemes.drawn_level(scheme, statistic)
    rows = tuple(
        results.Row(
            i, 0, 0, 0.0, 1, 0.0, 0.0, 0, float(statistic[i]), float(level[i]), 0.9, 100_000, 100,
            {0: int(top[i]), 1: 100_000 - int(top[i])},
        )
        for i in range(10_000)
    )  # fmt: skip
    read = results.Results(rows, {"guarantee": made | {"classes": 10, "dim": 3072}}, tmp_path)
    radii = np.array([row.radius for row in recertify.recertify(read).rows])
    assert np.mean(radii > 0) > (-1 if name == "uniform" else 0.9)
