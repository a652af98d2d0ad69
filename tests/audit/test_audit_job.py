import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import budgets
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from idrc_jax import audit, certification, data, results
from idrc_jax.audit import Settings
from idrc_jax.certificates import sampling_plans, schemes
from idrc_jax.core import files
from idrc_jax.core.time_budget import Budget
from idrc_jax.results import audit_file, audit_rows
from idrc_jax.results.recertify import recertify
from idrc_jax.sampling import devices

SCHEME = schemes.L1(sigma=0.5, ref=0.5)
SETTINGS = Settings(
    images=12, fractions=(0.5, 1.0, 4.0), radii=(0.1, 0.3), votes=400, screening=100, steps=4, samples=8, restarts=1
)
INDICES = np.arange(0, 60, 4)


@pytest.fixture(scope="module")
def certified(linear, dataset, tmp_path_factory):
    """A result file; half of its labels are right."""
    workdir = tmp_path_factory.mktemp("certified")
    settings = certification.Settings(sampling_plans.Fixed(n0=20, n=300), seed=4)
    certification.certify_dataset(linear, SCHEME, dataset, INDICES, settings, workdir, chunk=64)
    return results.read_results(workdir)


@pytest.fixture(scope="module")
def audited(linear, dataset, certified, tmp_path_factory):
    out = tmp_path_factory.mktemp("audited")
    assert run(linear, dataset, certified, out)
    return audit_rows.read_audit(out)


def run(linear, dataset, read, out, settings=SETTINGS, **more):
    return audit.audit_certificates(
        linear, dataset, INDICES, read, settings, out, chunk=512, mesh=devices.mesh(1), **more
    )


def test_every_row_of_the_audit_says_what_is_so(dataset, certified, audited):
    rows, manifest = {row.idx: row for row in certified.rows}, audited.manifest
    seen = [certified.rows[i * 15 // 12] for i in range(12)]
    expected = [
        (row.idx, kind, fraction)
        for row in seen
        if row.predict >= 0
        for kind in ("radius", "radius_published")
        for fraction in (0.5, 1.0, 4.0)
        if getattr(row, kind) > 0
    ]
    found = [(row.idx, row.kind, row.fraction) for row in audited.rows if row.kind != "table"]
    assert sorted(found) == sorted(expected)
    table = {(row.idx, row.radius) for row in audited.rows if row.kind == "table"}
    assert table == {(row.idx, radius) for row in seen if row.correct for radius in (0.1, 0.3)}
    claims = 0
    for row in audited.rows:
        origin = rows[row.idx]
        assert (row.label, row.predict) == (origin.label, origin.predict)
        assert row.kind == "table" or row.radius == getattr(origin, row.kind)
        assert 0 < row.distance < row.radius * row.fraction
        assert row.broken == (row.p_value <= manifest["threshold"])
        if row.votes:
            own, rival = row.votes.get(row.predict, 0), row.votes.get(row.rival, 0)
            assert sum(row.votes.values()) == 400
            p_value = stats.binomtest(rival, own + rival, 0.5, alternative="greater").pvalue
            assert row.p_value == pytest.approx(p_value, rel=1e-9)
        else:
            assert (row.p_value, row.broken) == (1, 0)
        claims += row.broken
    assert claims > 5


def test_a_part_of_a_runs_votes_is_not_audited(linear, dataset, certified, tmp_path):
    """What is another is neither the classifier nor the data."""
    part = recertify(certified, n=100)
    with pytest.raises(
        ValueError, match=r"Expected a run's own votes in .*, got 100 of each image's 300: audit the run"
    ):
        run(linear, dataset, part, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_no_valid_radius_is_broken_and_far_distances_are(audited):
    """The smoothed linear classifier is the linear one, whatever the level of the noise."""
    inside = [row for row in audited.rows if row.kind == "radius" and row.fraction <= 1]
    assert len(inside) > 8
    assert not any(row.broken for row in inside)
    assert any(row.broken for row in audited.rows if row.fraction == 4)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-50], lambda whole: whole[:60] + bytes(99)])
def test_damaged_images_of_an_audit_are_named_when_it_goes_on(linear, dataset, certified, audited, tmp_path, damage):
    shutil.copytree(audited.path.parent, tmp_path / "audit")
    path = tmp_path / "audit" / audit_rows.IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"Expected the images of an audit in {path}, got .* Remove it to go on"):
        run(linear, dataset, certified, tmp_path / "audit")


def test_the_adversarial_images_are_what_the_rows_say(linear, dataset, audited):
    with np.load(audited.path.parent / audit_rows.IMAGES, allow_pickle=False) as file:
        saved = {name: file[name] for name in file.files}
    nearest = {row.idx: row for row in audited.rows if row.broken}
    assert set(saved["idx"].tolist()) == set(nearest)
    weights = np.asarray(linear.params, np.float64)
    for i, idx in enumerate(saved["idx"].tolist()):
        row, image = nearest[idx], saved["image"][i]
        assert image.dtype == np.float32
        np.testing.assert_array_equal(saved["original"][i], data.to_unit(dataset.images[idx]))
        assert np.linalg.norm(image.astype(float) - saved["original"][i]) == pytest.approx(row.distance, rel=1e-6)
        assert (saved["predict"][i], saved["rival"][i]) == (row.predict, row.rival)
        logits = weights @ image.astype(float).ravel()
        assert logits[row.rival] > logits[row.predict]
        assert float(schemes.host_scale(SCHEME, image[None])[1][0]) == row.sigma_x


def test_the_tables_count_the_rows(certified, audited):
    manifest = audited.manifest
    assert manifest["finished"]
    for one in manifest["claims"]:
        own = [row for row in audited.rows if row.kind == one["kind"]]
        assert one["images"] == len(own) / 3
        assert one["broken"] == len({row.idx for row in own if row.broken and row.distance < row.radius})
        ratios = [row.distance / row.radius for row in own if row.broken]
        assert one["smallest_fraction"] == (min(ratios) if ratios else None)
        for fraction, count in one["broken_within"].items():
            assert count == sum(row.broken for row in own if row.fraction == float(fraction))
    seen = [certified.rows[i * 15 // 12] for i in range(12)]
    assert manifest["images"]["seen"] == 12
    right, abstained = (sum(row.correct for row in seen), sum(row.predict < 0 for row in seen))
    for one in manifest["robust_accuracy"]:
        lost = {row.idx for row in audited.rows if row.kind == "table" and row.radius == one["radius"] and row.broken}
        assert one["empirical"] == (right - len(lost) + abstained) / 12
        assert one["certified"] == sum(row.correct and row.radius >= one["radius"] for row in seen) / 12
        assert one["certified"] <= one["empirical"]
    assert sum(manifest["attacks"].values()) == len({row.idx for row in audited.rows if row.broken})
    cells = {row.idx: set() for row in audited.rows}
    for row in audited.rows:
        cells[row.idx].add(row.radius * row.fraction)
    assert manifest["attempts"] == sum(1 + len(distances) + SETTINGS.refinements for distances in cells.values())
    assert manifest["threshold"] == 0.001 / manifest["attempts"]
    text = audit_rows.table(manifest)
    assert "radius_published" in text
    assert f"{manifest['attempts']:,} attempts at most, 400 fresh votes each, level 0.001" in text


def test_an_audit_that_was_cut_off_goes_on_to_the_same_rows(linear, dataset, certified, audited, tmp_path):
    for path in audited.path.parent.iterdir():
        if path.suffix in (".tsv", ".json", ".npz"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    content = audited.path.read_bytes()
    (tmp_path / audit_rows.NAME).write_bytes(content[: content.index(b"\n", len(content) * 2 // 3) - 7])
    assert run(linear, dataset, certified, tmp_path)
    again = audit_rows.read_audit(tmp_path)

    def plain(rows):
        return [dataclasses.replace(row, distance=0.0, sigma_x=0.0, p_value=0.0, votes={}) for row in rows]

    by_image = sorted(again.rows, key=lambda row: row.idx)
    expected = sorted(audited.rows, key=lambda row: row.idx)
    assert plain(by_image) == plain(expected)
    np.testing.assert_allclose([r.distance for r in by_image], [r.distance for r in expected], rtol=1e-4)
    assert len(again.manifest["sessions"]) == 2
    with np.load(tmp_path / audit_rows.IMAGES, allow_pickle=False) as file:
        assert sorted(file["idx"].tolist()) == sorted({row.idx for row in expected if row.broken})
    before = (tmp_path / audit_rows.NAME).read_bytes()
    assert run(linear, dataset, certified, tmp_path)  # nothing left to do
    assert (tmp_path / audit_rows.NAME).read_bytes() == before


def test_a_time_limit_stops_it_and_the_same_call_goes_on(linear, dataset, certified, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("idrc_jax.audit.search._ROWS", 1)
        assert not run(linear, dataset, certified, tmp_path, budget=budgets.Three())
    half = audit_rows.read_audit(tmp_path)
    assert len({row.idx for row in half.rows}) == 3
    assert not half.manifest["finished"]
    assert "smallest" in audit_rows.table(half.manifest)
    assert not json.loads((tmp_path / "audit_status.json").read_text())["finished"]
    assert run(linear, dataset, certified, tmp_path)
    assert audit_rows.read_audit(tmp_path).manifest["finished"]


def test_ctrl_c_ends_it_between_two_images_with_its_tables(linear, dataset, certified, tmp_path, monkeypatch):
    class AfterTwo(Budget):
        def tick(self, count=1):
            super().tick(count)
            if self._ticks == 2:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("idrc_jax.audit.search._ROWS", 1)
    with pytest.raises(KeyboardInterrupt):
        run(linear, dataset, certified, tmp_path, budget=AfterTwo())
    found = audit_rows.read_audit(tmp_path)
    assert len({row.idx for row in found.rows}) == 2
    assert found.manifest["claims"] == audit_rows.claims(found.rows)
    assert json.loads((tmp_path / "audit_status.json").read_text())["done"] == 2


def test_an_error_is_told_as_it_is_and_finished_rows_are_kept(linear, dataset, certified, tmp_path, monkeypatch):
    """After two images the disk is full, for status and manifest, too, whose own failures are not told."""
    monkeypatch.setattr("idrc_jax.audit.search._ROWS", 1)
    append = audit_file.FindingsFile.append

    def full(*_, **__):
        raise OSError("No space left on device")

    def twice(file, rows):
        append(file, rows)
        if len(file.done) == 2:
            monkeypatch.setattr(audit_file.FindingsFile, "append", full)
            monkeypatch.setattr(files, "write_text", full)

    monkeypatch.setattr(audit_file.FindingsFile, "append", twice)
    with pytest.raises(OSError, match="No space"):
        run(linear, dataset, certified, tmp_path)
    assert len({row.idx for row in audit_rows.read_audit(tmp_path).rows}) == 2


def test_an_error_leaves_status_and_tables_of_what_is_done(linear, dataset, certified, tmp_path, monkeypatch):
    monkeypatch.setattr("idrc_jax.audit.search._ROWS", 1)
    append = audit_file.FindingsFile.append

    def twice(file, rows):
        if len(file.done) == 2:
            raise RuntimeError("device lost")
        append(file, rows)

    monkeypatch.setattr(audit_file.FindingsFile, "append", twice)
    with pytest.raises(RuntimeError, match="device lost"):
        run(linear, dataset, certified, tmp_path)
    assert json.loads((tmp_path / "audit_status.json").read_text())["done"] == 2
    assert "broken" in audit_rows.table(audit_rows.read_audit(tmp_path).manifest)


def test_another_audit_is_refused_and_nothing_is_touched(linear, dataset, certified, audited):
    before = audited.path.read_bytes()
    with pytest.raises(ValueError, match=r"settings of the audit in .*level was 0\.001, is 0\.01: use another folder"):
        run(linear, dataset, certified, audited.path.parent, dataclasses.replace(SETTINGS, level=0.01))
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        run(linear, dataset, certified, audited.path.parent, seed=1)
    assert audited.path.read_bytes() == before


def test_what_cannot_be_audited_is_refused(linear, dataset, certified, tmp_path):
    other = dataclasses.replace(linear, params=linear.params + 1)
    with pytest.raises(ValueError, match="was made with, got weights_sha256 was"):
        run(other, dataset, certified, tmp_path / "a")
    moved = data.from_arrays(dataset.images[::-1], dataset.labels, name="made", classes=3)
    with pytest.raises(ValueError, match="was made with, got data_sha256 was"):
        run(linear, moved, certified, tmp_path / "a")
    with pytest.raises(ValueError, match=r"Expected manifest\.json beside"):
        run(linear, dataset, dataclasses.replace(certified, manifest=None), tmp_path / "a")
    with pytest.raises(ValueError, match="at least one row"):
        run(linear, dataset, dataclasses.replace(certified, rows=()), tmp_path / "a")
    six = tuple(dataclasses.replace(row, radius_published=None) for row in certified.rows)
    with pytest.raises(ValueError, match="radius_published, got only six"):
        run(linear, dataset, dataclasses.replace(certified, rows=six), tmp_path / "a")
    strange = (dataclasses.replace(certified.rows[0], idx=60),)
    with pytest.raises(ValueError, match=r"Expected images 0 \.\. 59 of made/test in .*, got 60\."):
        run(linear, dataset, dataclasses.replace(certified, rows=strange), tmp_path / "a")
    with pytest.raises(ValueError, match=r"Expected votes >= \d\d, the fewest that can claim a break"):
        run(linear, dataset, certified, tmp_path / "a", dataclasses.replace(SETTINGS, votes=10))
    assert not (tmp_path / "a").exists()


def test_where_all_abstained_the_table_says_so(linear, dataset, certified, tmp_path):
    rows = tuple(
        dataclasses.replace(row, predict=-1, correct=0, radius=0.0, radius_published=0.0) for row in certified.rows
    )
    assert run(linear, dataset, dataclasses.replace(certified, rows=rows), tmp_path)
    found = audit_rows.read_audit(tmp_path)
    assert found.rows == ()
    assert "every image abstained" in audit_rows.table(found.manifest)
    assert found.manifest["robust_accuracy"][0] == {"radius": 0.1, "certified": 0, "empirical": 1}


def test_results_in_memory_are_refused(linear, dataset, certified, tmp_path):
    held = dataclasses.replace(certified, path=results.MEMORY)
    with pytest.raises(ValueError, match=r"Expected results of a file, .* got results in memory: save them"):
        run(linear, dataset, held, tmp_path)


def test_radii_that_claim_nothing_are_not_tried(certified):
    row = dataclasses.replace(certified.rows[0], correct=0, radius=0.0, radius_published=float("nan"))
    assert audit.cells(row, SETTINGS) == []
    assert len(audit.cells(dataclasses.replace(row, correct=1, radius=0.2), SETTINGS)) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expected a header"),
        (b"idx\tlabel\n", "Expected a header"),
        (b"\xff\xfe\n", "text file"),
        ("\t".join(audit_rows.COLUMNS).encode() + b"\n1\t2\n", "line 2: got 2 columns"),
    ],
)
def test_damaged_files_are_refused(audited, tmp_path, content, message):
    (tmp_path / audit_rows.MANIFEST).write_bytes((audited.path.parent / audit_rows.MANIFEST).read_bytes())
    (tmp_path / audit_rows.NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        audit_rows.read_audit(tmp_path)
    (tmp_path / audit_rows.MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="manifest of an audit"):
        audit_rows.read_audit(tmp_path)
    with pytest.raises(ValueError, match="run idrc-audit"):
        audit_rows.read_audit(tmp_path / "nowhere")


def test_an_audit_of_images_without_labels_claims_no_accuracy(linear, dataset, tmp_path):
    unknown = data.from_arrays(dataset.images, name="made")
    settings = certification.Settings(sampling_plans.Fixed(n0=20, n=300), seed=4)
    certification.certify_dataset(linear, SCHEME, unknown, INDICES, settings, tmp_path, chunk=64)
    few = dataclasses.replace(SETTINGS, images=4)
    assert run(linear, unknown, results.read_results(tmp_path), tmp_path, few)
    found = audit_rows.read_audit(tmp_path)
    assert {row.kind for row in found.rows} == {"radius", "radius_published"}
    assert "right" not in found.manifest["images"]
    assert "robust_accuracy" not in found.manifest
    assert "right" not in audit_rows.table(found.manifest)


NETWORK = """
import jax.numpy as jnp
import idrc_jax as idrc

def logits(params, images):
    return images.reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4) * params

def make():
    return idrc.Classifier(apply_fn=logits, params=jnp.float32(20), classes=4, image_shape=(8, 8, 1))
"""


@pytest.mark.evidence
def test_the_command(tmp_path):
    (tmp_path / "my_networks.py").write_text(NETWORK)
    own = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "SLURM_", "JOB_COMPLETION_INDEX")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(own)} | {"PYTHONPATH": str(ROOT)}

    def call(*arguments):
        return subprocess.run(
            [sys.executable, *arguments, "--config.data.name=synthetic", "--config.devices=1", "--config.data.skip=16"],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=clean,
        )  # fmt: skip

    network = "--config.model.factory=my_networks:make"
    certify = "from idrc_jax.commands import certify; certify.main()"
    made = call("-c", certify, "--workdir=run", "--config.certify.n=200", "--config.noise.sigma=0.5", network)
    assert made.returncode == 0, made.stderr
    small = ["--config.audit.votes=100", "--config.audit.steps=2", "--config.audit.fractions=(0.5, 3.0)"]
    done = call("-m", "idrc_jax.commands.audit", "run", network, *small, "--out=found")
    assert done.returncode == 0, done.stderr
    assert "4 images of synthetic/test" in done.stdout
    assert "Rows: found/audit.tsv" in done.stdout
    assert {row.fraction for row in audit_rows.read_audit(tmp_path / "found").rows} == {0.5, 1.0, 3.0}
    assert {"versions", "started"} <= audit_rows.read_audit(tmp_path / "found").manifest["sessions"][0].keys()
    refused = call("-c", "from idrc_jax.commands import audit; audit.main()", "nowhere", network)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "error: Expected a result file at nowhere, got no such file: give it, or a run's folder.\n"
