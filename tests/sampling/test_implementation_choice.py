"""The measured choice, by a clock that the tests turn; the last test runs the real one."""

import dataclasses
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear_logits

from idrc_jax import models
from idrc_jax.certificates import schemes
from idrc_jax.kernels import build
from idrc_jax.models import Classifier
from idrc_jax.sampling import devices, implementation_choice, implementation_choice_cache

SCHEME = schemes.Gaussian(sigma=0.5)
LONG = 10**12  # samples
EXACT = np.asarray([[1.0, -3.0, 2.0], [0.5, 0.1, -4.0]])


class Told:
    """A trial whose candidates take the time, fail and compute as told.

    Args:
      seconds: candidate -> seconds a sample.
      compiling: seconds.
      logits: of implementations, by kernel.
      failing: kernels, or candidates by name, that fail when they are compiled.
    """

    def __init__(self, seconds, *, compiling=1.0, logits=None, failing=()):
        self.seconds, self.compiling, self.made, self.failing = seconds, compiling, logits or {}, failing
        self.now = 0.0
        self.prepared, self.compared = [], []

    def clock(self):
        return self.now

    def prepare(self, candidate):
        self.prepared.append(candidate.name)
        self.now += self.compiling
        if candidate.classifier.kernel in self.failing or candidate.name in self.failing:
            raise RuntimeError("no room\nand more")

        def draw(chunks):
            self.now += chunks * candidate.chunk * candidate.mesh.size * self.seconds(candidate)

        return draw

    def logits(self, classifier):
        self.compared.append(classifier.kernel)
        made = self.made.get(classifier.kernel, EXACT)
        if isinstance(made, Exception):
            raise made
        return made


def by_kernel(**seconds):
    return lambda candidate: seconds[candidate.classifier.kernel] * 1e-3


def both(linear, **changes):
    """The linear classifier as a kernel, with a plain network as its alternative."""
    plain = dataclasses.replace(linear, **changes)
    return dataclasses.replace(plain, kernel="ours").with_alternatives(plain)


def choose(classifier, trial, folder, *, samples=LONG, mesh=None, chunk=32, **more):
    mesh = mesh or devices.mesh(2)
    return implementation_choice.choose(
        classifier, SCHEME, samples=samples, mesh=mesh, chunk=chunk, trial=trial, folder=folder, **more
    )


@pytest.mark.parametrize(("ours", "xla", "taken"), [(1, 3, "ours"), (3, 1, "xla"), (1, 0.98, "ours"), (1, 0.95, "xla")])
def test_the_fastest_is_taken_and_the_first_within_the_noise(linear, tmp_path, ours, xla, taken):
    chosen = choose(both(linear), Told(by_kernel(ours=ours, xla=xla)), tmp_path)
    assert chosen.classifier.kernel == taken
    assert not chosen.classifier.alternatives
    assert chosen.rates == {
        "ours on 2 devices, chunk 32": pytest.approx(1000 / ours, abs=0.1),
        "xla on 2 devices, chunk 32": pytest.approx(1000 / xla, abs=0.1),
    }
    assert chosen.describe()["rates"] == chosen.rates


def test_medians_are_compared(linear, tmp_path):
    """Every third run of the faster one is disturbed."""
    runs = {"ours": 0, "xla": 0}

    def seconds(candidate):
        kernel = candidate.classifier.kernel
        runs[kernel] += 1
        return 1e-3 * {"ours": 9.0 if runs["ours"] % 3 == 0 else 1.0, "xla": 2.0}[kernel]

    assert choose(both(linear), Told(seconds), tmp_path).classifier.kernel == "ours"
    assert min(runs.values()) >= 5


@pytest.mark.parametrize("fails", ["ours", "ours on 2 devices, chunk 32"])
def test_one_that_fails_is_named_and_left_out(linear, tmp_path, caplog, fails):
    with caplog.at_level(logging.WARNING, "idrc_jax"):
        chosen = choose(both(linear), Told(by_kernel(ours=1, xla=9), failing=[fails]), tmp_path)
    assert chosen.classifier.kernel == "xla"
    (line,) = caplog.messages
    assert "ours on 2 devices, chunk 32" in line
    assert "no room" in line
    assert "more" not in line
    assert chosen.left_out == {"ours on 2 devices, chunk 32": "RuntimeError: no room"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_all_logits_have_in_common_hides_no_disagreement(linear, tmp_path, dtype):
    many = 1e4 + np.random.default_rng(0).normal(size=(9, 10))
    trial = Told(by_kernel(ours=1, xla=9), logits={"ours": many[:, ::-1], "xla": many})
    assert choose(both(linear, dtype=dtype), trial, tmp_path).classifier.kernel == "xla"


def test_other_weights_of_a_network_are_compared_anew(linear, tmp_path):
    """The choice is that of the first; their logits are not."""
    first, second = (both(linear, sha256=name) for name in ("one", "two"))
    choose(first, Told(by_kernel(ours=1, xla=9)), tmp_path)
    trials = [Told(by_kernel(ours=1, xla=9)) for _ in range(3)]
    for classifier, trial in zip((second, second, first), trials, strict=True):
        assert choose(classifier, trial, tmp_path).classifier.kernel == "ours"
        assert not trial.prepared
    assert [trial.compared for trial in trials] == [["ours", "xla"], [], []]
    for name, samples in (("three", LONG), ("four", 100)):  # in a job too short for measuring, too
        wrong = Told(by_kernel(ours=1, xla=9), logits={"ours": EXACT[:, ::-1]})
        chosen = choose(both(linear, sha256=name), wrong, tmp_path, samples=samples)
        assert (chosen.classifier.kernel, list(chosen.left_out)) == ("xla", ["ours"])


def test_weights_whose_implementations_disagree_say_nothing_of_others(linear, tmp_path):
    def chosen(name, *, wrong=False, samples=LONG):
        trial = Told(by_kernel(ours=1, xla=9), logits={"ours": EXACT[:, ::-1]} if wrong else None)
        made = choose(both(linear, sha256=name), trial, tmp_path, samples=samples)
        return made.classifier.kernel, list(made.left_out), len(trial.prepared)

    assert chosen("bad", wrong=True) == ("xla", ["ours"], 1 + 1)
    assert chosen("bad", wrong=True) == ("xla", ["ours"], 0)
    assert chosen("good") == ("ours", [], 2)
    for samples in (LONG, 100):
        kernel, left_out, _ = chosen("bad", wrong=True, samples=samples)
        assert (kernel, left_out) == ("xla", ["ours"])
        assert chosen("good") == ("ours", [], 0)


def test_another_denoiser_in_front_is_other_weights(linear, tmp_path):
    def behind(name):
        return both(linear, sha256="one", description={"denoiser": {"weights_sha256": name}})

    trials = [Told(by_kernel(ours=1, xla=9)) for _ in range(3)]
    for name, trial in zip("aba", trials, strict=True):
        choose(behind(name), trial, tmp_path)
    assert [len(trial.compared) > 0 for trial in trials] == [True, True, False]


def test_one_that_fails_later_is_left_out_too(linear, tmp_path):
    runs = []

    def seconds(candidate):
        runs.append(candidate.classifier.kernel)
        if candidate.classifier.kernel == "ours" and runs.count("ours") == 4:
            raise RuntimeError("no more")
        return 1e-3

    chosen = choose(both(linear), Told(seconds), tmp_path)
    assert chosen.classifier.kernel == "xla"
    assert set(chosen.rates) == {"xla on 2 devices, chunk 32"}
    assert "no more" in chosen.left_out["ours on 2 devices, chunk 32"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (EXACT + np.asarray([[0, 0, 0.04], [0, 0, 0]]), "0.009 of the largest"),
        (EXACT[:, ::-1], "of the largest"),
        (np.where(EXACT == 0.1, np.nan, EXACT), "1 of 6 finite"),
        (RuntimeError("illegal"), "illegal"),
    ],
)
def test_one_that_disagrees_with_the_plain_network_is_left_out(linear, tmp_path, caplog, wrong, said):
    with caplog.at_level(logging.WARNING, "idrc_jax"):
        trial = Told(by_kernel(ours=1, xla=9), logits={"ours": wrong})
        chosen = choose(both(linear), trial, tmp_path)
    assert chosen.classifier.kernel == "xla"
    assert said in chosen.left_out["ours"]
    (line,) = caplog.messages
    assert said in line
    assert trial.compared == ["ours", "xla"]


def test_rounding_and_shared_non_finite_values_are_no_disagreement(linear, tmp_path):
    broken = np.where(EXACT == 0.1, np.inf, EXACT)
    trial = Told(by_kernel(ours=1, xla=9), logits={"ours": broken * (1 + 2e-5), "xla": broken})
    assert choose(both(linear), trial, tmp_path).classifier.kernel == "ours"
    rounded = {"ours": EXACT * 1.01}
    half = both(linear, dtype="bfloat16")
    assert choose(half, Told(by_kernel(ours=1, xla=9), logits=rounded), tmp_path).classifier.kernel == "ours"
    full = both(linear)
    assert choose(full, Told(by_kernel(ours=1, xla=9), logits=rounded), tmp_path / "2").classifier.kernel == "xla"


def test_one_that_disagrees_is_not_run_when_nothing_else_can_be_measured(linear, tmp_path):
    trial = Told(by_kernel(ours=1, xla=9), logits={"ours": -EXACT}, failing=["xla"])
    assert choose(both(linear), trial, tmp_path).classifier.kernel == "xla"
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_fails_in_every_way_runs_as_it_is(linear, tmp_path, capsys, caplog):
    trial = Told(by_kernel(ours=1, xla=1), failing=["ours", "xla"])
    chosen = choose(both(linear), trial, tmp_path)
    assert (chosen.classifier.kernel, chosen.rates) == ("ours", {})
    caplog.clear()
    capsys.readouterr()
    assert choose(linear, Told(by_kernel(xla=1), failing=["xla"]), tmp_path, chunk=0).classifier.kernel == "xla"
    assert (caplog.messages, capsys.readouterr().err) == ([], "")


def test_a_short_job_measures_nothing(linear, tmp_path, capsys):
    """A second of compiling is more than a tenth of a job of 9 s, and less than a tenth of one of 20."""
    short, long = Told(by_kernel(ours=1, xla=0.1)), Told(by_kernel(ours=1, xla=0.1))
    chosen = choose(both(linear), short, tmp_path, samples=9000)
    assert (chosen.classifier.kernel, chosen.rates, len(short.prepared)) == ("ours", {}, 1)
    assert (capsys.readouterr().err, list(tmp_path.iterdir())) == ("", [])
    assert choose(both(linear), long, tmp_path, samples=20_000).classifier.kernel == "xla"
    assert capsys.readouterr().err.count("\n") == 1
    limited = Told(by_kernel(ours=1, xla=0.1))
    assert not choose(both(linear), limited, tmp_path / "2", samples=LONG, seconds=9).rates


def test_measuring_ends_within_a_minute_or_so(linear, tmp_path):
    """A network that compiles for 11 s and does a chunk in 4."""
    trial = Told(by_kernel(ours=60, xla=70), compiling=11.0)
    chosen = implementation_choice.choose(both(linear), SCHEME, samples=LONG, trial=trial, folder=tmp_path)
    assert trial.now < 11 + 4 * 32 * 0.06 + 60
    assert chosen.classifier.kernel == "ours"
    assert len(chosen.rates) > 1


def test_devices_and_chunk_are_measured_unless_given(linear, tmp_path):
    """Best is one device, in chunks of 512."""

    def seconds(candidate):
        return 1e-5 * candidate.mesh.size * (1 + abs(np.log(candidate.chunk / 512)))

    found = implementation_choice.choose(linear, SCHEME, samples=LONG, trial=Told(seconds), folder=tmp_path)
    assert (found.mesh.size, found.chunk) == (1, 512)
    given = implementation_choice.choose(
        linear, SCHEME, samples=LONG, mesh=devices.mesh(3), trial=Told(seconds), folder=tmp_path
    )
    assert (given.mesh.size, given.chunk) == (3, 512)
    given = implementation_choice.choose(linear, SCHEME, samples=LONG, chunk=50, trial=Told(seconds), folder=tmp_path)
    assert (given.mesh.size, given.chunk) == (1, 50)
    small = implementation_choice.choose(
        linear, SCHEME, samples=LONG, trial=Told(lambda one: 1e-5 * one.chunk / one.mesh.size), folder=tmp_path / "2"
    )
    assert (small.mesh.size, small.chunk) == (len(devices.mesh().devices), 2)


@pytest.mark.parametrize(("a_sample", "chunk"), [(1e-3, 512), (1e-4, 8192)])
def test_no_larger_chunk_takes_more_than_two_seconds(linear, tmp_path, a_sample, chunk):
    """The larger, the faster here; a plan that stops early would wait for chunks that are mostly empty."""
    trial = Told(lambda one: a_sample * (1 + 4 / np.log2(one.chunk)))
    found = implementation_choice.choose(
        linear, SCHEME, samples=LONG, mesh=devices.mesh(1), trial=trial, folder=tmp_path
    )
    assert found.chunk == chunk
    assert chunk * 1.5 * a_sample < 2 < 4 * chunk * 1.2 * a_sample


def test_with_nothing_to_choose_nothing_is_run(linear, tmp_path):
    trial = Told(by_kernel(xla=1))
    chosen = choose(linear, trial, tmp_path, mesh=devices.mesh(2), chunk=7)
    assert (chosen.mesh.size, chosen.chunk, trial.prepared) == (2, 7, [])
    with pytest.raises(ValueError, match="chunk"):
        choose(linear, trial, tmp_path, chunk=1)


def test_a_choice_is_remembered_by_the_network_not_its_weights(linear, tmp_path):
    first = choose(both(linear), Told(by_kernel(ours=3, xla=1)), tmp_path)
    trial = Told(by_kernel(ours=1, xla=9))
    again = choose(both(linear, params=linear.params + 1), trial, tmp_path, samples=1)
    assert trial.prepared == []
    assert (again.classifier.kernel, again.rates) == ("xla", first.rates)
    np.testing.assert_array_equal(again.classifier.params, linear.params + 1)


def test_what_a_choice_depends_on_is_measured_anew(linear, tmp_path, monkeypatch):
    monkeypatch.delenv("IDRC_VECTOR_BITS", raising=False)

    def measured(classifier=None, **more):
        trial = Told(by_kernel(ours=1, xla=3))
        choose(classifier or both(linear), trial, tmp_path, **more)
        return bool(trial.prepared)

    assert measured()
    assert not measured()
    for name, value in (("dtype", "bfloat16"), ("params", jnp.ones((3, 16), jnp.float16)), ("image_shape", (2, 8, 1))):
        assert measured(both(linear, **{name: value}))
    assert measured(both(linear, apply_fn=lambda params, images: 2 * linear_logits(params, images)))
    assert measured(chunk=64)
    assert measured(mesh=devices.mesh(1))
    for where, name, value in (
        (build, "processor", lambda: "another"),
        (implementation_choice_cache.jax, "__version__", "0.0.1"),
        (implementation_choice_cache, "_sources", lambda: "other kernels"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            assert measured()
    with monkeypatch.context() as patch:
        patch.setenv("IDRC_VECTOR_BITS", "256")
        assert measured()
    assert not measured()


def test_what_a_short_time_found_serves_jobs_as_short(linear, tmp_path):
    def seconds(candidate):
        return 1e-3 / candidate.chunk

    def prepared(samples):
        trial = Told(seconds, compiling=1.0)
        choose(both(linear), trial, tmp_path, samples=samples, chunk=0)
        return len(trial.prepared)

    assert prepared(10**6) > 1  # 32 s, of which 3 are for measuring
    assert prepared(10**6) == 0
    assert prepared(LONG) > 3
    assert prepared(LONG) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"kernel": "xla"', '"kernel": "gone"'),
        lambda text: text.replace('"devices": 2', '"devices": 64'),
        lambda text: text.replace('"chunk": 32', '"chunk": 1000000000000', 1),
        lambda text: text.replace('"chunk": 32', '"chunk": "32"', 1),
        lambda text: text.replace('"rates": {', '"rates": 7, "": {'),
    ],
)
def test_a_damaged_or_outdated_memory_is_measured_anew(linear, tmp_path, damage):
    choose(both(linear), Told(by_kernel(ours=3, xla=1)), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    damaged = damage(whole)
    assert damaged != whole
    file.write_text(damaged)
    trial = Told(by_kernel(ours=3, xla=1))
    assert choose(both(linear), trial, tmp_path).classifier.kernel == "xla"
    assert trial.prepared
    assert file.read_text() == whole


def test_without_a_cache_one_line_is_said(linear, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for folder in (tmp_path / "file", None):
        monkeypatch.setattr(implementation_choice_cache, "cache_folder", homeless)
        with caplog.at_level(logging.WARNING, "idrc_jax"):
            assert choose(both(linear), Told(by_kernel(ours=3, xla=1)), folder).classifier.kernel == "xla"
        (line,) = caplog.messages
        assert "not remembered" in line
        caplog.clear()


def test_many_may_remember_at_once(linear, tmp_path):
    def one(number):
        return choose(both(linear), Told(by_kernel(ours=3, xla=1)), tmp_path).classifier.kernel

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(24))) == {"xla"}
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["kernel"] == "xla"


def test_alternatives_are_of_one_name_and_go_with_what_is_replaced(linear):
    plain = dataclasses.replace(linear, kernel="xla", sha256="c" * 64)
    ours = dataclasses.replace(linear, kernel="ours", sha256="d" * 64, apply_fn=lambda p, x: linear_logits(p, x))
    made = ours.with_alternatives(plain)
    assert [one.kernel for one in made.implementations] == ["ours", "xla"]
    assert {one.sha256 for one in made.implementations} == {"d" * 64}
    assert made.reference.kernel == "xla"
    assert dataclasses.replace(made, params=linear.params + 1).alternatives == ()
    assert models.fingerprint(made) == models.fingerprint(plain)


def test_the_real_trial_runs_the_programs_of_certification(linear, tmp_path, capsys):
    """One of them computes its logits 64 times over."""

    def slow(params, images):
        first = linear_logits(params, images)
        return jax.lax.fori_loop(1, 64, lambda k, sum: sum + linear_logits(params, images + 0 * k), first) / 64

    classifier = dataclasses.replace(linear, kernel="slow", apply_fn=slow).with_alternatives(linear)
    chosen = implementation_choice.choose(
        classifier, SCHEME, samples=LONG, mesh=devices.mesh(2), chunk=32, folder=tmp_path
    )
    assert set(chosen.rates) == {"slow on 2 devices, chunk 32", "xla on 2 devices, chunk 32"}
    assert all(rate > 0 for rate in chosen.rates.values())
    assert not chosen.left_out
    assert "Measuring how slow or xla runs fastest here ..." in capsys.readouterr().err


def test_a_classifier_is_traced_once(linear):
    traces = []

    def counted(params, images):
        traces.append(images.shape)
        return linear_logits(params, images)

    classifier = Classifier(counted, linear.params, 3, (4, 4, 1))
    assert classifier.structure == classifier.structure
    assert classifier.largest_intermediate >= 64
    assert len(traces) == 1
