"""Whatever happens to the writer, the table holds whole rows, all of those that were appended, in their order."""

import multiprocessing
import os
import signal
import time

import pytest
from disks import no_file_above

from idrc_jax.core import append_only
from idrc_jax.core.append_only import AppendOnlyTable

COLUMNS = ("idx", "name")
HEADER, A, B, C = b"idx\tname\n", b"0\tnull\n", b"20\tzw\xc3\xb6lf\n", b"40\t\n"


def append(path, *lines):
    with AppendOnlyTable(path, COLUMNS) as table:
        for line in lines:
            table.append(line.decode())


def test_rows_follow_the_header_and_each_other(tmp_path):
    path = tmp_path / "table.tsv"
    append(path)
    assert path.read_bytes() == HEADER
    assert not append_only.has_rows(path)
    append(path, A)
    append(path, B, C)
    assert path.read_bytes() == HEADER + A + B + C
    assert append_only.has_rows(path)
    assert not append_only.has_rows(tmp_path / "nowhere")
    assert append_only.line(("40", "")) == C.decode()


def test_after_a_crash_at_any_byte_the_next_writer_goes_on_behind_the_last_whole_row(tmp_path):
    path, whole = tmp_path / "table.tsv", HEADER + A + B + C
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        append(path, C)
        kept = whole[: whole[:length].rfind(b"\n") + 1]
        assert path.read_bytes() == (kept or HEADER) + C, length


@pytest.mark.parametrize("end", [b"\n", b"\n\n", b" \t\r\n", b"\n ", b"\x00\x00"])
def test_blank_lines_and_a_torn_end_are_cut_off(tmp_path, end):
    (tmp_path / "table.tsv").write_bytes(HEADER + A + end)
    append(tmp_path / "table.tsv", B)
    assert (tmp_path / "table.tsv").read_bytes() == HEADER + A + B


def test_a_lone_header_of_other_columns_of_its_kind_is_replaced(tmp_path):
    path = tmp_path / "table.tsv"

    def opened(content, check=lambda _: None):
        path.write_bytes(content)
        with AppendOnlyTable(path, COLUMNS, check, [COLUMNS, ("idx", "radius")]) as table:
            table.append(A.decode())
        return path.read_bytes()

    assert opened(HEADER) == opened(b"") == opened(b"idx\tradius\n") == HEADER + A
    for kept in (b"someone else's\n", b"idx\tradius\n" + B, HEADER + B):
        assert opened(kept) == kept + A
    seen = []
    opened(b"idx\tradius\n", seen.append)
    assert seen == [[b"idx\tradius"]]


def test_a_row_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "table.tsv"
    with AppendOnlyTable(path, COLUMNS) as table:
        table.append(A.decode())
        for room in range(len(B + C)):
            before = path.read_bytes()
            with no_file_above(len(before) + room), pytest.raises(OSError, match=r"Expected to write a row .* free sp"):
                table.append((B + C).decode())
            assert path.read_bytes() == before == HEADER + A
        table.append((B + C).decode())
    assert path.read_bytes() == HEADER + A + B + C


@pytest.mark.parametrize("room", range(len(HEADER)))
def test_a_header_that_does_not_fit_is_written_by_the_next_call(tmp_path, room):
    path = tmp_path / "table.tsv"
    with no_file_above(room), pytest.raises(OSError, match="Expected to write a row"):
        append(path)
    assert path.read_bytes() == b""
    append(path, A)
    assert path.read_bytes() == HEADER + A


def test_a_row_that_is_not_known_to_be_on_the_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "table.tsv"
    append(path, A)

    def fail(descriptor):
        raise OSError("Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=r"got: Input/output error\. Finished rows are kept"):
            append(path, B)
    assert path.read_bytes() == HEADER + A


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_rows_are_cut_from_the_end(tmp_path, rows):
    path = tmp_path / "table.tsv"
    append(path, A, B, C)
    with AppendOnlyTable(path, COLUMNS) as table:
        table.cut(rows)
        assert path.read_bytes() == HEADER + b"".join((A, B, C)[:rows])
        table.append(A.decode())
    assert path.read_bytes() == HEADER + b"".join((A, B, C)[:rows]) + A


def _hold(path, ready):
    with AppendOnlyTable(path, COLUMNS) as table:
        table.append(A.decode())
        ready.set()
        time.sleep(60)


def test_two_processes_cannot_write_one_table_and_a_killed_one_lets_go(tmp_path):
    path = tmp_path / "table.tsv"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match="no other process"):
        append(path, B)
    assert path.read_bytes() == HEADER + A
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    append(path, B)
    assert path.read_bytes() == HEADER + A + B
