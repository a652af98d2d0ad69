"""The harness of the benchmarks; its numbers are not looked at here."""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from benchmarks import (
    any_network,
    cascades,
    contest,
    correct_only,
    ensembles,
    gpu,
    instructions,
    invariance,
    measure,
    networks,
    ours,
    report,
    roofline,
    routers,
    throughput,
    workers,
)
from benchmarks.contest import OURS, TORCH, Variant
from benchmarks.fuzzing import mutations
from idrc_jax import certification, data, models, results, sampling, training
from idrc_jax.certificates import schemes
from idrc_jax.certificates.courses import LevelVotes
from idrc_jax.certificates.sampling_plans import ToRadius
from idrc_jax.sampling import devices, random_keys

WEIGHTS = ROOT / "checkpoints" / "cifar10_resnet20_gaussian_0.25.safetensors"

TOY = '''
class Contender:
    """Takes a second for 10 samples; its batch says how it misbehaves."""

    def __init__(self, count):
        self.log = []

    def device(self):
        return {"platform": "cpu", "kind": "toy", "devices": 1}

    def prepare(self, name, *, weights, description, dtype, batch, layout):
        if batch == 1:
            raise ImportError("no such library")
        self.batch = batch
        logits = [[1.0, 4.0 if batch != 2 else 4.1]]
        return {"rate": 10.0, "stride": 7, "logits": logits, "facts": {"batch": batch}}

    def turn(self, name, samples):
        if self.batch == 3 and self.log:
            raise MemoryError("too large")
        self.log.append(samples)
        return samples / 10

    def memory(self):
        return {"peak_rss_mib": float(len(self.log))}
'''


class NoFiles:
    def of(self, depth, size):
        return "", {}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """(contender's name) -> Contest of batches on a toy in processes of its own."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(*batches):
        variants = [Variant(TORCH, "float32", batch) for batch in batches]
        return contest.Contest({TORCH: "toy:Contender"}, 8, variants, NoFiles(), measure.Clock())

    return make


def test_a_contest_times_in_turns_and_leaves_out_what_fails(toy):
    seen = []
    with toy(1, 3, 4) as held:
        rows = held.throughput(2, 2.0, lambda rows: seen.append([row["name"] for row in rows]))
    assert seen == [["PyTorch, float32, batch 3", "PyTorch, float32, batch 4"], ["PyTorch, float32, batch 4"]]
    assert held.left_out == {
        "PyTorch, float32, batch 1": "ImportError: no such library",
        "PyTorch, float32, batch 3": "MemoryError: too large",
    }
    (row,) = rows
    assert row["rounds"] == [10.0, 10.0]
    assert (row["median"], row["q1"], row["q3"], row["batch"]) == (10.0, 10.0, 10.0, 4)
    assert row["peak_rss_mib"] == 2.0  # two turns: nothing else ran in this process
    assert row["avx512"] in (None, False, True)  # as the system tells


def test_logits_must_agree_before_anything_is_timed(toy):
    with pytest.raises(ValueError, match=r"logits of PyTorch, float32, batch 2 within 0.0001"):
        toy(4, 2)


def test_ratios_are_of_turns_of_the_same_round():
    def row(contender, name, rounds):
        return {"contender": contender, "dtype": "float32", "name": name, "rounds": rounds, "median": np.median(rounds)}

    rows = [row(OURS, "slow", [1, 2, 3]), row(OURS, "ours", [1, 10, 100]), row(TORCH, "theirs", [1, 20, 50])]
    (ratio,) = contest.ratios(rows)
    assert (ratio["of"], ratio["to"], ratio["median"]) == ("ours", "theirs", 1.0)  # of 1, .5 and 2; 10 / 20 is .5


def test_ratios_are_also_to_the_best_of_any_type():
    def row(contender, dtype, rounds):
        name = f"{contender}, {dtype}"
        return {"contender": contender, "dtype": dtype, "name": name, "rounds": rounds, "median": np.median(rounds)}

    rows = [
        row(OURS, "float32", [6, 6, 9]), row(TORCH, "float32", [1, 1, 1]), row(TORCH, "autocast", [1, 2, 3]),
        row(contest.ART, "float32", [4, 4, 4]),
    ]  # fmt: skip
    found = {ratio["to"]: ratio["median"] for ratio in contest.ratios(rows)}
    assert found == {
        "PyTorch, float32": 6, "PyTorch, autocast": 3, "ART, float32": 1.5,
        "PyTorch's best of any type: PyTorch, autocast": 3,
    }  # fmt: skip


WIDE = ["sse2", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"]


@pytest.mark.parametrize(
    ("flags", "widest"),
    [(WIDE, "avx512"), (WIDE[:4], "avx2"), (["sse2", "avx2"], "sse2"), (["fp", "asimd"], "neon")],
)
def test_the_widest_instruction_set(flags, widest):
    assert instructions.widest(flags) == widest


def test_avx2_is_forced_only_where_there_is_more(monkeypatch):
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--xla_dump_to=x", "PATH": "/bin"})
    before = dict(os.environ)
    assert instructions.force("native", WIDE) == ("avx512", {})
    assert instructions.force("avx2", WIDE[:3]) == ("avx2", {})
    with pytest.raises(ValueError, match="with AVX2 to force it, got SSE2"):
        instructions.force("avx2", ["sse2"])
    assert os.environ == before
    chosen, made = instructions.force("avx2", WIDE)
    assert chosen == "avx2"
    assert os.environ == before | made
    assert made["XLA_FLAGS"].startswith("--xla_dump_to=x --xla_cpu_max_isa=AVX2 ")
    assert made["IDRC_VECTOR_BITS"] == "256"


def test_numpy_takes_its_setting():
    """It warns of names that it does not know."""
    environment = os.environ | instructions._avx2()
    code = [sys.executable, "-W", "error", "-c", "import numpy; print(numpy.ones(3).sum())"]
    said = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("3.0\n", "")


def test_the_system_tells_of_registers_of_avx512(tmp_path):
    for thread, said in {"1": "-1", "2": "1500"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "arch_status").write_text(f"AVX512_elapsed_ms:\t{said}\n")
    assert instructions.used_avx512(2.0, tmp_path) is True
    assert instructions.used_avx512(1.0, tmp_path) is False
    (tmp_path / "3").mkdir()  # a thread that has ended
    assert instructions.used_avx512(1.0, tmp_path) is False
    assert instructions.used_avx512(1.0, tmp_path / "3") is None
    assert instructions.used_avx512(1.0, tmp_path / "4") is None


class Device:
    """A worker that knows a device."""

    def __init__(self, platform):
        self.said = {"platform": platform, "kind": "NVIDIA H100"}

    def call(self, method):
        return self.said


@pytest.mark.parametrize(
    ("platform", "cpu", "made", "name"),
    [
        ("cpu", "Intel(R) Xeon(R) Processor", "Emerald Rapids", "x_n_intel_xeon_emerald_rapids_avx2_2_cores"),
        ("cpu", "Intel(R) Xeon(R) CPU @ 2.20GHz", "Skylake or Cascade Lake",
         "x_n_intel_xeon_skylake_or_cascade_lake_avx2_2_cores"),
        ("cpu", "AMD EPYC 7B13 64-Core Processor", "Zen 3", "x_n_amd_epyc_7b13_zen_3_avx2_2_cores"),
        ("gpu", "Intel(R) Xeon(R) Processor", "Emerald Rapids", "x_n_nvidia_h100_2_cores"),
    ],
)  # fmt: skip
def test_results_are_named_after_processor_and_instruction_set(tmp_path, monkeypatch, platform, cpu, made, name):
    monkeypatch.setattr(measure, "machine", lambda: {"cpu": cpu, "microarchitecture": made, "cores": 2})
    values = argparse.Namespace(out=tmp_path, name="", rounds=1)
    held_to = {"instruction_set": "avx2", "forced_by": {"A": "b"}}
    begun = throughput.begin(Device(platform), "x", "Title", values, {}, held_to, about="n")
    assert begun.result["name"] == name
    assert begun.result.get("instruction_set") == ("avx2" if platform == "cpu" else None)


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("GenuineIntel", 6, 143, "Sapphire Rapids"), ("AuthenticAMD", 25, 1, "Zen 3"),
        ("AuthenticAMD", 25, 17, "Zen 4"), ("AuthenticAMD", 26, 2, "Zen 5"),
        ("GenuineIntel", 6, 9, "family 6 model 9"), ("", 0, 0, ""),
    ],
)  # fmt: skip
def test_microarchitectures(vendor, family, model, name):
    assert instructions.microarchitecture(vendor, family, model) == name


def test_calibration_lengthens_the_turn_until_it_is_long_enough():
    asked = []
    rate = measure.calibrate(lambda samples: asked.append(samples) or samples / 1000, 8)
    assert rate == 1000
    assert asked[-1] >= 500 > asked[-2]
    assert all(samples % 8 == 0 for samples in asked)


def test_workers_answer_fail_and_are_killed_when_they_hang():
    with contest.running("queue:Queue", maxsize=3) as worker:
        assert worker.call("qsize") == 0
        with pytest.raises(workers.WorkerError, match="Empty"):
            worker.call("get_nowait")
        assert worker.call("full") is False
        with pytest.raises(workers.WorkerError, match="within 1 s"):
            worker.call("get", timeout=1)
        with pytest.raises(workers.WorkerError):
            worker.call("qsize")
    with contest.running("collections:Counter", cores=1) as worker:
        assert worker.call("total") == 0
        assert len(os.sched_getaffinity(worker._process.pid)) == 1
    with pytest.raises(workers.WorkerError, match="no_such_module"):
        workers.Worker("no_such_module:Thing")


def test_peak_memory_is_the_processes_own():
    """A process that is started by a large one must not inherit its peak."""
    code = (
        "import subprocess, sys; kept = bytearray(400 << 20); "
        "inner = 'from benchmarks import workers; print(workers.peak_memory()[\"peak_rss_mib\"])'; "
        "inner = sys.argv[1] + inner; subprocess.run([sys.executable, '-c', inner], check=True)"
    )

    def peak(before):
        answer = subprocess.run(
            [sys.executable, "-c", code, before], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return float(answer.stdout)

    small = peak("")
    assert small < 200
    assert 290 < peak("kept = bytearray(300 << 20); kept[::4096] = b'1' * len(kept[::4096]); ") - small < 320


@pytest.mark.parametrize("slots", [6, 4])
def test_parity_compares_single_samples(slots):
    """Sample by sample it counts the votes that the sampling core counts."""
    network = models.load_classifier(WEIGHTS)
    pictures = networks.images(8)
    votes = roofline._classes(sampling.Execution(network, devices.mesh(2), 4), pictures, 6, slots=slots)
    for index, image in enumerate(pictures):
        counts = sampling.count_votes(
            network, roofline.ours.SCHEME, image[None], indices=np.array([index]), n=6, key=random_keys.root(0), chunk=4
        )
        np.testing.assert_array_equal(np.bincount(votes[6 * index : 6 * index + 6], minlength=11), counts[0])


def test_ensembles_are_timed_in_every_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    agreed, rates = ensembles.measure(3, images)
    assert 0 <= agreed <= 1
    assert list(rates) == ["in turn", "in turn, by XLA", "stacked", "consensus of 2"]
    assert min(rates.values()) > 0


RESULT = {
    "format": 1,
    "name": "example",
    "title": "Throughput",
    "command": "python -m benchmarks.throughput",
    "machine": {
        "cpu": "A CPU", "instructions": ["avx2"], "cores": 2, "memory_gib": 8.0, "system": "Linux x86_64",
        "python": "3.11.7", "versions": {"jax": "0.10.2"}, "commit": "abc", "started": "2026-01-01", "load_before": 0.1,
    },
    "settings": {"sigma": 0.25},
    "finished": True,
    "tables": [
        {
            "title": "ResNet-20", "unit": "samples/s", "x": "",
            "rows": [
                {
                    "name": "a", "contender": OURS, "dtype": "float32", "layout": "", "size": 32, "platform": "cpu",
                    "kind": "cpu", "devices": 2, "batch": 25, "median": 1234.5, "q1": 1200.0, "q3": 1250.0,
                    "peak_rss_mib": 400.0,
                },
                {
                    "name": "b", "contender": TORCH, "dtype": "bfloat16", "layout": "contiguous", "size": 32,
                    "platform": "cpu", "kind": "cpu", "devices": 2, "batch": 50, "median": 99.25, "q1": 98.0,
                    "q3": 100.0, "peak_rss_mib": 300.0,
                },
            ],
            "ratios": [{"of": "a", "to": "b", "median": 12.438, "q1": 12.0, "q3": 13.0}],
            "left_out": {"ART": "ModuleNotFoundError: No module named 'art'"},
        }
    ],
    "facts": {"bfloat16 against float32": {"agree": 0.9975, "images": "random"}},
    "notes": ["A note."],
}  # fmt: skip


def test_a_result_as_markdown_and_figure(tmp_path):
    page = report.markdown(RESULT)
    for line in (
        "# Throughput",
        "A CPU (avx2), 2 cores; 8.0 GiB; Linux x86_64; Python 3.11.7; jax 0.10.2. Load before: 0.1.",
        "## ResNet-20, samples/s",
        "| contender | type | layout | devices, threads | batch, chunk | median | quartiles | peak memory, MiB |",
        "| idrc_jax | float32 |  | 2 | 25 | 1,234 | 1,200 – 1,250 | 400.0 |",
        "| PyTorch | bfloat16 | contiguous | 2 | 50 | 99.25 | 98 – 100.0 | 300.0 |",
        "| a | b | 12.44 | 12.00 – 13.00 |",
        "Left out: ART: ModuleNotFoundError: No module named 'art'",
        "| agree | 0.9975 |",
        "* A note.",
    ):
        assert line in page.splitlines()
    assert "cut off" not in page
    assert "cut off" in report.markdown(RESULT | {"finished": False})
    curves = [RESULT["tables"][0] | {"x": x} for x in ("devices", "batch")]
    report.draw(RESULT | {"tables": [*RESULT["tables"], *curves]}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_page_says_what_was_forced_and_what_was_seen():
    table = RESULT["tables"][0]
    rows = [table["rows"][0] | {"avx512": False}, table["rows"][1] | {"avx512": True, "says": "AVX2"}]
    forced = {"instruction_set": "avx2", "forced_by": {"LIBRARY": "AVX2"}}

    def lines(rows):
        return report.markdown(RESULT | forced | {"tables": [table | {"rows": rows}]}).splitlines()

    said = lines(rows)
    for line in (
        "# Throughput, AVX2",
        "## ResNet-20, AVX2, samples/s",
        "AVX2, forced on all. PyTorch says AVX2. The system saw registers of AVX-512 in use in the turns of b.",
        "**Not all kept to AVX2.**",
        "By `LIBRARY=AVX2`.",
    ):
        assert line in said
    kept = lines([row | {"avx512": False} for row in rows])
    assert kept[8].endswith("in use in the turns of none.")
    assert "**Not all kept to AVX2.**" not in kept
    assert any("does not tell" in line for line in lines(table["rows"]))
    native = report.markdown(RESULT | {"instruction_set": "avx512", "forced_by": {}})
    assert "## ResNet-20, AVX-512, samples/s" in native.splitlines()
    assert "forced" not in native


def test_a_summary_is_a_table_of_its_own():
    rows = [{"network": "A", "auto": 1234.5}, {"network": "B", "auto": 2.0, "xla": 0.5}]
    page = report.markdown(RESULT | {"summaries": {"All": rows}})
    assert "## All\n\n| network | auto | xla |\n|---|---|---|\n| A | 1,234 |  |\n| B | 2 | 0.5 |\n" in page


MEASURED = sorted(path for path in report.RESULTS.glob("*.json") if not path.name.startswith("gpu_programs"))


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_committed_results_are_rendered_as_they_are_committed(path):
    assert report.markdown(json.loads(path.read_text())) == path.with_suffix(".md").read_text()


def test_folders_of_this_machine_are_not_written(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--data", "/home/somebody/cifar", "--out=/tmp/x", "--rounds", "3"])
    said = throughput.command_line("throughput")
    assert said == "python -m benchmarks.throughput --data FOLDER --out=FOLDER --rounds 3"


def run(module, folder, *flags, unit="samples/s", seconds=280):
    """The result of a command in a process of its own."""
    subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *flags], check=True, cwd=ROOT, timeout=seconds)
    (path,) = folder.glob("*.json")
    assert path.with_suffix(".png").is_file()
    assert unit in path.with_suffix(".md").read_text()
    return json.loads(path.read_text())


TINY = ("--depths", "8", "--chunks", "4", "--batches", "4", "--rounds", "2", "--seconds", ".1", "--images", "20")


@pytest.mark.evidence
def test_throughput_end_to_end(tmp_path):
    result = run("throughput", tmp_path, *TINY, "--contenders", "idrc_jax", f"--out={tmp_path}")
    assert result["finished"]
    assert str(tmp_path) not in json.dumps(result)
    (table,) = result["tables"]
    assert [row["dtype"] for row in table["rows"]] == ["float32", "bfloat16"]
    for row in table["rows"]:
        assert len(row["rounds"]) == 2
        assert row["q1"] <= row["median"] <= row["q3"]
        assert row["peak_rss_mib"] > 50
    assert 0 <= result["facts"]["bfloat16 against float32"]["agree"] <= 1
    assert {"cpu", "cores", "versions", "commit", "load_before"} <= result["machine"].keys()


@pytest.mark.evidence
def test_training_end_to_end(tmp_path):
    flags = ("--depths", "8", "--batches", "4", "--contenders", OURS, "--rounds", "1", "--seconds", ".1")
    result = run("training", tmp_path, *flags, f"--out={tmp_path}", unit="images/s")
    assert result["finished"]
    (table,) = result["tables"]
    assert table["title"] == "ResNet-8, batch 4"
    assert [row["dtype"] for row in table["rows"]] == ["float32", "bfloat16"]
    assert all(row["kernel"] for row in table["rows"])


@pytest.mark.evidence
def test_training_is_timed_as_it_is_done(tmp_path, monkeypatch):
    """After the same steps on the same images its weights are those of `training.train`, to a bit."""
    monkeypatch.setattr(measure, "TRAINING_IMAGES", 64)
    monkeypatch.setattr(measure, "calibrate", lambda turn, stride: 1.0)  # no step before the turn
    with contest.host() as (_, files):
        weights, description = files.of(8, 16)
        timed = ours.Training(count=1)
        timed.prepare("x", weights=weights, description=description, dtype="float32", batch=16)
        timed.turn("x", 64 * timed._steps)
        images, labels = measure.training_set(16)
        recipe = training.Recipe(epochs=timed._steps, batch=16, lr=measure.LEARNING_RATE)
        train_set = data.Dataset("random", "train", images, labels, 10)
        done = training.train(
            train_set, ours.SCHEME, recipe, description, tmp_path, mesh=devices.mesh(1), start=weights
        )
    assert done
    tensors, _ = models.read_weights(tmp_path)
    state = timed._variants["x"].state
    assert tensors.keys() == (state.params | state.stats).keys()
    for name, value in (state.params | state.stats).items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


@pytest.mark.evidence
def test_any_network_end_to_end(tmp_path):
    flags = ("--networks", "ResNet-8", "--contenders", OURS, "--rounds", "2", "--seconds", ".1")
    result = run("any_network", tmp_path, *flags, f"--out={tmp_path}")
    assert result["finished"]
    (table,) = result["tables"]
    assert [(row["asked"], row["kernel"]) for row in table["rows"]][1] == ("xla", "xla")
    assert table["rows"][1]["logits_error"] < 1e-5
    (line,) = result["summaries"]["samples/s"]
    assert line["network"] == "ResNet-8"
    assert line["auto / xla"] > 0


def test_a_line_of_any_network_is_chosen_kernel_rates_and_paired_ratios():
    def row(contender, rounds, asked="", dtype="float32"):
        about = {"contender": contender, "dtype": dtype, "asked": asked, "kernel": "k", "devices": 2, "batch": 32}
        return about | {"rounds": rounds, "median": np.median(rounds)}

    rows = [
        row(OURS, [2, 20, 30], "auto"), row(OURS, [1, 20, 60], "xla"), row(TORCH, [1, 1, 1]), row(TORCH, [4, 4, 5]),
        row(OURS, [8, 8, 8], "xla", "bfloat16"),
    ]  # fmt: skip
    assert any_network.summary("N", rows) == [
        {
            "network": "N", "type": "float32", "chosen": "k, 2 x 32", "auto": 20, "xla": 20, "PyTorch": 4,
            "auto / xla": 1, "auto / PyTorch": 5,
        }
    ]  # fmt: skip


@pytest.mark.evidence
@pytest.mark.timeout(1800)
def test_gpu_rehearsal_end_to_end(tmp_path):
    """One run is killed after its first part, another goes to the end."""
    out = tmp_path / "result"
    flags = ("--rehearse", str(out), "--name", "gpu", "--minutes", "20")
    killed = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", *flags], cwd=ROOT)
    while killed.poll() is None and not ((out / "gpu.md").is_file() and "bfloat16" in (out / "gpu.md").read_text()):
        time.sleep(0.1)
    killed.kill()
    assert killed.wait() < 0
    left = json.loads((out / "gpu.json").read_text())
    assert not left["finished"]
    assert [row["votes"] for row in next(iter(left["summaries"].values()))] == [80] * 3
    result = run("gpu", out, *flags, seconds=1500)
    assert result["finished"]
    assert result["rehearsal"]
    assert result["title"].startswith("REHEARSAL")
    assert {"ceilings", "bfloat16 against float32"} <= result["facts"].keys()
    votes, counted = result["summaries"].values()
    assert [row["type"] for row in votes] == ["float32 without TF32", "float32", "bfloat16"] * 2
    assert all(row["votes"] == 80 for row in votes)
    assert [row["differ"] for row in votes if row["type"] == "float32 without TF32"] == [0, 0]
    rates, seconds = result["tables"]
    for row in rates["rows"]:
        assert row["tflops"] == pytest.approx(row["median"] * 25_003_264 / 1e12)
        assert row["percent_of_product"] > 0
        assert row["percent_of_copy"] > 0
    assert seconds["unit"] == "seconds an image"
    assert {row["dtype"] for row in seconds["rows"] if row["contender"] == OURS} == {"float32", "bfloat16"}
    for row in counted:
        assert row["MFLOP"] == pytest.approx(25.003264)
        assert row["measured / floor"] == pytest.approx(row["measured, s"] / row["floor, s"])


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    for said, named, where in (
        (None, "", gpu.CACHE), (None, "/named", "/named"), (tmp_path, "/named", tmp_path), (tmp_path, "", tmp_path),
    ):  # fmt: skip
        monkeypatch.setattr(os, "environ", {"JAX_COMPILATION_CACHE_DIR": named} if named else {})
        gpu.keep_compiled(said)
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(where)


class Kept:
    """A report's result, and how it was each time that it was kept."""

    def __init__(self):
        self.result = {"notes": []}
        self.kept = []

    def save(self):
        self.kept.append(json.loads(json.dumps(self.result)))


def test_a_gpu_run_goes_on_after_a_part_that_fails_and_tells_what_it_left_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measure.time, "monotonic", lambda: now[0])
    clock, kept = measure.Clock(minutes=1), Kept()

    def part(seconds, error=None):
        def run():
            now[0] += seconds
            kept.result[seconds] = "measured"
            if error:
                raise error

        return run

    parts = {
        "a": part(10), "b": part(20, ValueError("disagree")), "c": part(31, workers.WorkerError("no answer")),
        "d": part(1), "e": part(2),
    }  # fmt: skip
    assert gpu.in_order(parts, clock, kept) == (["c (cut off)", "d", "e"], ["b"])
    assert kept.result["notes"] == [
        "b: disagree", "c: no answer", "Left out for want of time: c (cut off); d; e.",
    ]  # fmt: skip
    assert "10" in kept.kept[0]  # kept before the next part began
    assert "20" not in kept.kept[0]


def test_a_counted_program_stands_beside_what_it_took():
    ceilings = {"bfloat16_product_tflops": 500.0, "float32_product_tflops": 250.0, "copy_gb_s": 2000.0}
    count = {"kernels": 120, "bytes": 5e6, "flops": 5e8}
    name = "certify, ResNet-110, bfloat16"
    row = gpu.beside(name, count, {"dtype": "bfloat16", "median": 0.5}, ceilings, n=100_000)
    tabled = json.loads((report.RESULTS / "gpu_programs_h100.json").read_text())
    (one,) = [each for each in tabled if each["program"] == name and each["devices"] == 1]
    assert row["of an H100, by its table"] == one["megabytes"]
    assert row["floor, s"] == pytest.approx(0.25)  # 500 GB at 2,000 GB/s
    assert (row["bound by"], row["measured / floor"]) == ("memory", pytest.approx(2))
    row = gpu.beside("x", count | {"flops": 5e9}, {"dtype": "float32", "median": 4.0}, ceilings, n=100_000)
    assert (row["floor, s"], row["bound by"], row["of an H100, by its table"]) == (pytest.approx(2), "products", "")


def test_a_gpu_result_needs_a_gpu_and_a_rehearsal_another_folder():
    for flags, message in (((), "Expected a GPU"), (("--rehearse", str(report.RESULTS)), "no result")):
        said = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", *flags], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert said.returncode
        assert message in said.stderr


@pytest.mark.peers
def test_all_contenders_end_to_end(tmp_path):
    pytest.importorskip("torch")
    result = run("throughput", tmp_path, *TINY, "--dtypes", "float32", "--layouts", "contiguous", f"--out={tmp_path}")
    (table,) = result["tables"]
    assert [row["contender"] for row in table["rows"]] == ["idrc_jax", "PyTorch", "ART"]
    assert not table["left_out"]
    assert len(table["ratios"]) == 2
    assert all(row["logits_error"] < 1e-5 for row in table["rows"])


@pytest.mark.peers
@pytest.mark.parametrize("name", ["ResNet-8", "ResNet-18", "U-Net+ResNet-20"])
def test_any_network_is_the_same_in_pytorch(name):
    """Logits agree, and PyTorch's bfloat16 is near them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    from benchmarks import peers

    with contest.host() as (_, files):
        weights, description = files.of(name, 0)
        classifier = ours.load(weights, description, dtype="float32", kernel="xla")
        model = peers.network(weights, description).eval()
    images = measure.probe(*description["image_shape"][1:])[:4]
    logits = np.asarray(classifier(images))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = model(batch).numpy()
        peers.to_bfloat16(model)
        half = model(batch).numpy()
    scale = np.abs(logits).max()
    assert logits.std() > 0.01 * scale
    np.testing.assert_allclose(theirs, logits, atol=1e-5 * scale, rtol=0)
    assert 1e-5 * scale < np.abs(half - logits).max() < 0.05 * scale


@pytest.mark.peers
@pytest.mark.parametrize("name", [name for name, one in networks.ANY.items() if one["architecture"] == "torch"])
def test_networks_of_transformers_have_the_size_of_the_literature(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks import modules

    millions = {"ResNet-18": 11.69, "ResNet-50": 25.56, "ConvNeXt-T": 28.59, "ViT-B/16": 86.57}
    built = modules.build(networks.ANY[name])
    assert sum(value.numel() for value in built.parameters()) / 1e6 == pytest.approx(millions[name], abs=0.01)
    assert not built.training


@pytest.mark.peers
def test_training_contenders_start_from_the_same_network():
    """Logits in training mode agree, batch statistics and all."""
    pytest.importorskip("torch")
    variants = [
        Variant(OURS, "float32", 16),
        Variant(TORCH, "float32", 16, "channels-last"),
        Variant(TORCH, "autocast", 16, "channels-last"),
    ]
    with (
        contest.host() as (_, files),
        contest.Contest(contest.TRAINERS, 8, variants, files, measure.Clock()) as held,
    ):
        assert not held.left_out
        ours, theirs, half = held.throughput(1, 0.05, lambda rows: None)
    assert theirs["logits_error"] < 1e-5 < half["logits_error"] < 0.05
    assert min(row["median"] for row in (ours, theirs, half)) > 0


@pytest.mark.peers
@pytest.mark.parametrize(("depth", "size"), [(8, 32), (20, 24)])
def test_the_twin_agrees_with_the_network_and_costs_what_is_counted(depth, size):
    """PyTorch's own counter counts the multiply-adds; hooks count the values."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import peers

    with contest.host() as (_, files):
        weights, description = files.of(depth, size)
        model = peers.twin(weights, description).eval()
        classifier = models.load_classifier(weights)
    images = measure.probe(size)
    with torch.no_grad():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(classifier(images), logits, atol=1e-4 * np.abs(logits).max())
    assert np.abs(logits).max() < 1e3

    moved = 0

    def add(values):
        nonlocal moved
        moved += values

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, made: add(given[0].numel() + made.numel()))
        elif isinstance(module, peers.Residual):  # its shortcut, and what the mean over pixels reads of the last
            module.register_forward_hook(lambda _, given, made: add(made.numel()))
    model.blocks[-1].register_forward_hook(lambda _, given, made: add(made.numel()))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, size, size))
    assert networks.count(description) == (counter.get_total_flops() // 2, moved)


@pytest.mark.peers
def test_the_plain_loop_votes_as_the_core_does():
    """The same network, image and noise level: the same distribution of votes."""
    pytest.importorskip("torch")
    from benchmarks import peers

    network = models.load_classifier(WEIGHTS)
    n, image = 1000, measure.picture(32)
    core = sampling.count_votes(
        network, roofline.ours.SCHEME, image, indices=np.array([0]), n=n, key=random_keys.root(0)
    )
    loop = peers.Loop()
    for layout in ("contiguous", "channels-last"):
        what = {"weights": str(WEIGHTS), "description": network.description, "dtype": "float32", "batch": 400}
        loop.prepare("x", **what, layout=layout)
        votes = np.array([core[0, :10], loop._counts(loop._variants["x"], n)])
        votes = votes[:, votes.sum(axis=0) > 0]
        assert votes.shape[1] > 1
        assert stats.chi2_contingency(votes).pvalue > 1e-4


def test_networks_cost_what_the_literature_says():
    """He et al. (2016): 0.27 and 1.7 million weights; 255 million multiply-adds at depth 110, as is often quoted."""
    assert networks.count(networks.describe(110)).multiply_adds == pytest.approx(255e6, rel=0.01)
    assert networks.count(networks.describe(20)).multiply_adds == pytest.approx(41e6, rel=0.01)


def test_logits_that_depend_on_place_or_chunk_are_counted():
    """Of a network that looks at its batch, by one that does not."""

    def alone(params, images):
        mean = images.mean((1, 2, 3))
        return jnp.stack([0.5 - mean, mean - 0.5], axis=1)

    def by_place(params, images):
        return alone(params, images).at[0].multiply(-1)

    noisy = np.random.default_rng(0).random((150, 2, 2, 1)).astype(np.float32)
    said = []
    pure = models.Classifier(alone, (), 2, (2, 2, 1))
    assert invariance.compare_logits(pure, noisy, said.append) == 0
    assert all("logits of 0 of 150" in line and "; 0 votes" in line for line in said)
    said.clear()
    assert invariance.compare_logits(models.Classifier(by_place, (), 2, (2, 2, 1)), noisy, said.append) == 75 - 2
    assert said[0].startswith("xla, 1 devices, chunk 2: logits of 73 of 150 images differ")


@pytest.mark.parametrize("name", ["x.tsv", "x.json", "x.safetensors", "x.npz", "x.ocdbt"])
def test_damage_is_drawn_from_a_seed_and_never_fails(name):
    draw = random.Random(0)
    content = {
        "x.tsv": b"idx\tlabel\n0\t3\n20\t1\n",
        "x.json": json.dumps({"a": [1, {"b": 0.5}], "c": "x"}).encode(),
        "x.safetensors": WEIGHTS.read_bytes()[:20_000],
    }.get(name, draw.randbytes(300))
    kinds = mutations.damage_of(Path(name))
    made = [mutations.damaged(content, kinds, random.Random(seed)) for seed in range(300)]
    assert made == [mutations.damaged(content, kinds, random.Random(seed)) for seed in range(300)]
    assert len(set(made)) > 100
    for damaged in (b"", *made):  # damage of what is damaged
        mutations.damaged(damaged, kinds, draw)


def test_a_cascade_of_stored_votes_is_between_its_large_level_and_the_better_of_both():
    folder = ROOT / "results"
    large, small = (results.read_results(folder / f"cifar10_resnet20_{sigma}/consistency") for sigma in ("0.5", "0.25"))
    found = cascades.radii(results.Results(large.rows[:60], large.manifest, large.path), small)
    alone, either = found["σ = 0.5"], found["either"]
    assert 20 < np.sum(alone > 0) < len(alone) == 60
    assert np.all(found["cascade, threshold 0.5"] > alone - 0.03)
    assert np.sum(found["cascade, threshold 0.9"] > alone) > 5
    for threshold in cascades.THRESHOLDS:
        assert np.all(found[f"cascade, threshold {threshold:g}"] <= either)
    kept, left = zip(*(cascades.room(large, threshold) for threshold in cascades.THRESHOLDS), strict=True)
    assert list(kept) == sorted(kept, reverse=True)
    assert list(left) == sorted(left)
    assert kept[0] == pytest.approx(np.mean([row.correct and row.radius >= 0.25 for row in large.rows]), abs=0.005)


def test_stepped_of_stored_votes_is_its_bins_level_as_far_as_the_edge():
    folder = ROOT / "results"
    large, small = (results.read_results(folder / f"cifar10_resnet20_{sigma}/consistency") for sigma in ("0.5", "0.25"))
    rows = [row for row in large.rows if row.correct and row.radius > 0.5][:2]
    test = np.zeros((10_000, 32, 32, 3), np.float32)
    test[rows[0].idx, 0, 0, 0], test[rows[1].idx, 0, 0, 0] = 0.9, 0.1  # the norms
    train = np.zeros((20, 32, 32, 3), np.float32)
    train[:, 0, 0, 0] = np.linspace(0.4, 0.6, 20)  # of median .5
    found = cascades.stepped(results.Results(rows, large.manifest, large.path), small, train, test)["stepped by norm"]
    others = {row.idx: row for row in small.rows}
    assert found[0] == pytest.approx(0.4, abs=1e-6)
    assert found[1] == pytest.approx(min(0.4, cascades.right(others[rows[1].idx])), abs=1e-6)
    test[rows[0].idx, 0, 0, 0] = test[rows[1].idx, 0, 0, 0] = 1.0
    test[[row.idx for row in rows], 1] = 1.0  # far from the edge
    found = cascades.stepped(results.Results(rows, large.manifest, large.path), small, train, test)["stepped by norm"]
    np.testing.assert_array_equal(found, [cascades.right(row) for row in rows])


def test_a_router_of_stored_votes_takes_each_level_where_it_is_sure_and_both_where_it_is_torn():
    folder = ROOT / "results"
    large, small = (results.read_results(folder / f"cifar10_resnet20_{sigma}/consistency") for sigma in ("0.5", "0.25"))
    bounds, rows, known = routers.courses(results.Results(large.rows[:60], large.manifest, large.path), small)
    assert len(rows) == 60
    sure, torn = 20_000, 10_000
    found = {}
    for name, votes in (("small", (sure, 0, 0)), ("large", (0, sure, 0)), ("torn", (torn, torn, 0))):
        router = {position: LevelVotes(0, int(np.argmax(votes[:2])), votes) for position in range(60)}
        found[name] = routers.radii(bounds, rows, known, router)
        assert all(one.stops([router[position]], 0) for position, one in enumerate(known))
        needed = sum(routers.needed(bounds, one, router[position]) for position, one in enumerate(known))
        of_level = [sum(one.levels[1 + (name == "large")].votes) for one in known]
        assert (needed > sum(of_level) + 60 * sure) == (name == "torn")
    others = {row.idx: row for row in small.rows}
    for name, of in (("large", rows), ("small", [others[row.idx] for row in rows])):
        alone = np.asarray([cascades.right(row) for row in of])
        for made in found[name].values():
            np.testing.assert_array_equal(made, np.minimum(made, alone))
            assert np.mean(made) > np.mean(np.minimum(alone, routers.RADII[-1])) - 0.02
    groups = routers.kept(np.array([1.0, 1, 0, 0, 1]), np.array([1.0, 0, 1, 0, 1]), np.array([1.0, 1, 0, 0, 0]), 0.5)
    assert groups == [(0.2, 0.2), (0.2, 0.0), (0.4, 0.2)]
    whole, published = found["torn"].values()
    assert np.all(published == 0)
    assert np.mean(whole >= 0.2) > 0.3
    assert np.all(whole <= np.minimum(*(found[name]["router"] for name in ("small", "large"))))


def test_correct_predictions_alone_cost_less_and_certify_as_much(linear, dataset, tmp_path):
    settings = certification.Settings(ToRadius(n=5000, radii=(0.05, 0.1)), seed=4)
    certification.certify_dataset(linear, schemes.Gaussian(0.5), dataset, np.arange(60), settings, tmp_path, chunk=64)
    read = results.read_results(tmp_path)
    (before, all_of_them), (after, alone) = (correct_only.replay(read, correct_only=one) for one in (False, True))
    assert after < 0.8 * before
    stored = [np.mean([row.correct and row.radius >= radius for row in read.rows]) for radius in (0.05, 0.1)]
    assert np.abs(all_of_them - stored).max() <= 0.05  # the shares of votes are not the probabilities
    assert np.abs(alone - all_of_them).max() <= 0.02
    with pytest.raises(ValueError, match="Expected a run of the plan to_radius under gaussian, got "):
        correct_only.replay(results.read_results(ROOT / "results/plans/fixed"), correct_only=True)
