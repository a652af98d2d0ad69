"""A bfloat16 variant certified by the command from a float32 run, and audited."""

import json

import pytest
import running
import trained_runs

from idrc_jax import results
from idrc_jax.commands import audit, certify
from idrc_jax.report import page, run_summaries
from idrc_jax.results import runs

FEW = ("--config.data.skip=16", "--config.certify.n=400", "--config.certify.alpha=0.01", "--config.devices=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, `float32`, as if trained there."""
    folder = tmp_path_factory.mktemp("paired")
    trained_runs.save(folder / "float32", 0)
    return folder


def variant(place, *more):
    weights = f"--config.model.weights={place / 'float32'}"
    return (f"--workdir={place / 'bfloat16'}", weights, "--config.model.dtype=bfloat16", *FEW, *more)


@pytest.mark.evidence
def test_a_variant_is_certified_and_audited(place):
    status, _, error = running.run(certify.main, f"--workdir={place / 'float32'}", *FEW)
    assert status == 0, error
    pairs = (f"--config.paired.run={place / 'float32'}", "--config.paired.n=60")
    status, told, error = running.run(certify.main, *variant(place, *pairs))
    assert status == 0, error
    made, of_run = results.read_results(place / "bfloat16"), results.read_results(place / "float32")
    guarantee = json.loads((place / "bfloat16" / "manifest.json").read_text())["guarantee"]
    assert (guarantee["dtype"], guarantee["certificate"]) == ("bfloat16", "incremental")
    assert guarantee["paired"] == {"n": 60, "share": 0.5, "of": {"dtype": "float32"}}
    assert [row.votes for row in made.rows] == [row.votes for row in of_run.rows]
    assert all(new.radius <= old.radius for new, old in zip(made.rows, of_run.rows, strict=True))
    assert any(row.radius > 0 for row in made.rows)
    agreement = 1 - sum(sum(row.differing.values()) for row in made.rows) / (60 * len(made.rows))
    assert agreement > 0.9
    assert f"of {60 * len(made.rows):,} pairs (60 an image)" in told
    assert run_summaries.command(made) is None
    assert "incremental" in page.render(runs.read([str(place / "bfloat16")]))

    before = (place / "bfloat16" / "certificates.tsv").read_bytes()
    status, _, error = running.run(certify.main, *variant(place, *pairs))
    assert (status, "were certified already" in error) == (0, True)
    assert (place / "bfloat16" / "certificates.tsv").read_bytes() == before

    status, _, error = running.run(
        audit.main,
        f"--workdir={place / 'bfloat16'}",
        f"--config.model.weights={place / 'float32'}",
        "--config.model.dtype=bfloat16",
        "--config.devices=1",
        "--config.audit.images=1",
        "--config.audit.steps=1",
        "--config.audit.samples=2",
        "--config.audit.votes=50",
        "--config.audit.screening=20",
        "--config.audit.restarts=1",
        "--config.audit.refinements=0",
        "--config.audit.fractions=(0.9,)",
        "--config.audit.radii=(0.1,)",
    )
    assert status == 0, error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.paired.n=60"], "Expected paired.run with paired.n = 60, got none"),
        (["{run}", "--config.certify.certificate=two_sided"], "no certify.certificate beside paired.run, got two_si"),
        (["{run}", "--config.paired.share=1.0"], "paired.share"),
        (["{run}", "--dry_run"], "without paired.run, got both"),
        (["--config.paired.run=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(place, arguments, message):
    run = f"--config.paired.run={place / 'float32'}"
    given = variant(place, *(one.format(run=run) for one in arguments))
    assert message in running.refused(certify.main, f"--workdir={place / 'other'}", *given[1:])
    assert not (place / "other" / "certificates.tsv").exists()
