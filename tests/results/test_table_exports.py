import math

import pytest
from conftest import ROOT

from idrc_jax import results
from idrc_jax.results import table_exports

OURS = ROOT / "results/cifar10_resnet20_0.25/gaussian"
UNCERTIFIED = ROOT / "results/cifar10_resnet20_0.25/uniform"


def test_the_six_columns_come_back_exactly(tmp_path):
    read = results.read_results(OURS)
    table_exports.write_log(read, tmp_path / "log.tsv")
    text = (tmp_path / "log.tsv").read_text()
    assert text.splitlines()[0] == "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    again = results.read_results(tmp_path / "log.tsv")
    assert again.manifest is None
    assert len(again.rows) == len(read.rows)
    for one, other in zip(again.rows, read.rows, strict=True):
        assert [getattr(one, name) for name in results.SIX] == [getattr(other, name) for name in results.SIX]
    table_exports.write_log(again, tmp_path / "again.tsv")
    assert (tmp_path / "again.tsv").read_text() == text


@pytest.mark.shared
def test_other_projects_logs_come_back_exactly(shared, tmp_path):
    log = next(path for path in sorted(shared.rglob("sigma_*")) if path.is_file())
    read = results.read_results(log)
    table_exports.write_log(read, tmp_path / "log.tsv")
    assert results.read_results(tmp_path / "log.tsv").rows == read.rows


@pytest.mark.peers
def test_the_fields_analysis_reads_the_log(tmp_path):
    """Certified accuracy as other projects compute it, by pandas, is ours: abstentions and nan do not count."""
    pd = pytest.importorskip("pandas")
    rows = (
        results.Row(0, 1, 1, 0.3, 1, 1.5),
        results.Row(1, 1, -1, 0.0, 0, 1.5),
        results.Row(2, 1, 1, math.nan, 1, 86_400.25),
        results.Row(3, 1, 2, 0.9, 0, 0.1),
    )
    table_exports.write_log(results.Results(rows, None, tmp_path), tmp_path / "log.tsv")
    table = pd.read_csv(tmp_path / "log.tsv", delimiter="\t")
    certified = table["correct"].astype(bool) & (table["radius"] >= 0.25)
    assert certified.tolist() == [True, False, False, False]
    assert table["time"].tolist() == [1.5, 1.5, 86_400.25, 0.1]


@pytest.mark.peers
@pytest.mark.parametrize("folder", [OURS, UNCERTIFIED])
def test_pandas_and_parquet_hold_every_column_and_the_manifest(tmp_path, folder):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    read = results.read_results(folder)
    table_exports.write_parquet(read, tmp_path / "x.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
    again = pd.read_parquet(tmp_path / "x.parquet")
    assert again.attrs["manifest"] == read.manifest
    pd.testing.assert_frame_equal(again, table_exports.to_pandas(read))
    assert tuple(again.columns) == results.COLUMNS
    for row, (_, made) in zip(read.rows, again.iterrows(), strict=True):
        for name in results.COLUMNS[:-1]:
            assert made[name] == getattr(row, name) or (math.isnan(made[name]) and math.isnan(getattr(row, name)))
        assert {int(c): int(k) for c, k in (pair.split(":") for pair in made["votes"].split(","))} == row.votes


def test_without_pandas_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[tables\]' in the checkout"):
        table_exports.to_pandas(results.read_results(OURS))
