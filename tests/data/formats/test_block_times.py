"""Where the rows of a window are looked for, on columns counted by hand."""

from __future__ import annotations

import pytest

from flowfuse.data.formats import block_times
from flowfuse.data.formats.block_times import BlockTimes


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        ((0, 1), (0, 0)),  # before the first row
        ((10, 11), (0, 4)),
        ((11, 41), (0, 4)),  # row 4 has 50
        ((50, 50), (0, 4)),  # the first row at 50 may be among those before row 4
        ((51, 60), (4, 8)),
        ((50, 51), (0, 8)),
        ((90, 91), (4, 10)),
        ((95, 10**9), (8, 10)),
        ((10**9, 10**9), (8, 10)),
    ],
)
def test_rows_of_windows(monkeypatch, window, rows):
    monkeypatch.setattr(block_times, "_LEAST_BLOCK", 3)
    times = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    blocks = BlockTimes(len(times), chunk=2)
    assert blocks.block == 4  # two chunks
    assert blocks.rows(*window, times.__getitem__) == rows


def test_a_row_is_read_once(monkeypatch):
    monkeypatch.setattr(block_times, "_LEAST_BLOCK", 10)
    read = []

    def time(row):
        read.append(row)
        return 2 * row

    blocks = BlockTimes(1000)
    assert blocks.rows(500, 510, time) == (240, 260)
    assert set(read) <= set(range(0, 1000, 10)) and len(read) == len(set(read)) <= 2 * 7
    read.clear()
    assert blocks.rows(500, 510, time) == (240, 260) and read == []


def test_no_rows():
    assert BlockTimes(0).rows(0, 10, [].__getitem__) == (0, 0)
