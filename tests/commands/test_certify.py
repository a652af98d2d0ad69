"""What a finished certification leaves in its folder."""

import pytest
from test_result_rows import row, write

from idrc_jax import results
from idrc_jax.commands import certify


def united(folder):
    read = certify._united(folder)
    assert read == results.read_results(folder)
    return [one.idx for one in read.rows]


def test_the_sorted_file_of_one_worker_stays_the_file_it_is(tmp_path, monkeypatch):
    write(tmp_path, [row(0), row(20), row(40)])
    file = tmp_path / "certificates.tsv"
    before, content = file.stat(), file.read_bytes()
    monkeypatch.delattr(results, "merge")
    assert united(tmp_path) == [0, 20, 40]
    assert file.stat().st_ino == before.st_ino
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "others", [[], ["certificates.0-of-2.tsv"], ["certificates.0-of-2.tsv", "certificates.1-of-2.tsv"]]
)
def test_rows_out_of_order_and_those_of_other_workers_are_sorted_into_one_file(tmp_path, others):
    write(tmp_path, [row(40), row(0)])
    for number, name in enumerate(others):
        write(tmp_path, [row(20 + number)], name=name)
    assert united(tmp_path) == [0, *range(20, 20 + len(others)), 40]


def test_one_that_had_nothing_left_to_do_gets_the_others_rows(tmp_path):
    write(tmp_path, [row(20), row(0)], name="certificates.0-of-2.tsv")
    write(tmp_path, [])
    assert united(tmp_path) == [0, 20]
