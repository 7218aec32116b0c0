"""Text files of events: blocks, and the line that is at fault."""

from __future__ import annotations

import tracemalloc

import pytest
from event_cases import (
    OFFSET,
    make_events,
    write_format,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.formats.text import TextIndex
from flowfuse.data.registry import open_event_file
from flowfuse.events import Events


@pytest.fixture(scope="module")
def events():
    return make_events()


def test_text_windows_read_their_blocks_only(tmp_path, monkeypatch, events):
    path = write_format(tmp_path / "blank.txt", events)
    index = TextIndex(path, block_bytes=1000)
    assert index.time_range == (events.t[0], events.t[-1])
    read, original = [], TextIndex._parse

    def parse(self, text, line):
        read.append(text)
        return original(self, text, line)

    monkeypatch.setattr(TextIndex, "_parse", parse)
    _, (x, *_) = index.read(OFFSET + 5000, OFFSET + 6000)
    # The window's lines, and at most one block before and one after it.
    assert sum(map(len, read)) <= 24 * len(x) + 2 * 1100


def test_a_long_text_file_does_not_fill_memory(tmp_path):
    line = "0.000001 1 1 1\n"
    path = tmp_path / "events.txt"
    path.write_text(line * 200_000)  # 3 MB of text, 6.4 MB of float64 rows
    tracemalloc.start()
    index = TextIndex(path, block_bytes=1 << 14)
    assert index.time_range == (1, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # a block of 16 KiB and its parsed copies are 0.2 MB


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1 1 1 1\n0.2 1 1\n", r"line 2: 4 columns \(t x y p\) expected, found 3: '0.2 1 1'"),
        ("0.1 1 1 1\n0.2 1", "line 2: .* found 2.*is the file truncated"),
        ("1 1 1\n" * 3, "line 1: 4 columns"),
        ("# c\n\n0.1 1 1 1\n0.1 a 1 1\n", "line 4: x must be a number, found 'a'"),
        ("x y z p\n1 1 0.1 1\n", "line 1: names of the columns t, x, y and p .* 'x y z p'"),
        ("x y t p\n1 1 0.1\n", r"line 2: 4 columns \(x y t p\) expected, found 3"),
        ("x y t_us p\n1 1 1e20 1\n", "line 2: t must be in microseconds and fit int64"),
        ("0.2 1 1 1\n0.1 1 1 1\n", "line 2: times must be sorted, found 100000 us after 200000"),
        ("0.1 1 nan 1\n", "line 1: all values must be finite, found t x y p = 0.1 1 nan 1"),
        ("0.1 1 1 1\n0.2 1 1 2\n", "line 2: p must be in .* found t x y p = 0.2 1 1 2"),
        ("0.1 1 1 0\n0.2 1 1 -1\n", "polarities 0 and -1 are both used, by line 2"),
        ("-0.1 1 1 1\n", "line 1: t must not be negative"),
        ("0.1 1 -1 1\n", "line 1: x and y must not lie outside"),
        ("1e300 1 1 1\n", "line 1: t must be in seconds and fit"),
        ("1" * 5000, "columns t x y p|more than 4096|4 columns"),
    ],
)
def test_faults_of_text_name_the_line(tmp_path, text, message):
    path = tmp_path / "events.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(path).window(0, 10**6, 4, 4)
    assert str(caught.value).startswith(str(path))


def test_line_numbers_count_from_the_start_in_later_blocks(tmp_path):
    path = tmp_path / "events.txt"
    path.write_text("0.1 1 1 1\n" * 500 + "0.0 1 1 1\n")
    with pytest.raises(ValueError, match="line 501: times must be sorted"):
        _ = TextIndex(path, block_bytes=100).time_range


def test_columns_are_separated_by_semicolons_too(tmp_path):
    (tmp_path / "events.csv").write_text("timestamp;x;y;polarity\n0.1;3;2;1\n0.2;1;0;0  # last\n")
    events = open_event_file(tmp_path / "events.csv").window(0, 10**6, 4, 4)
    assert events.t.tolist() == [100_000, 200_000] and events.x.tolist() == [3, 1]


SHARED = [HealthCheck.function_scoped_fixture]


@settings(max_examples=80, deadline=None, suppress_health_check=SHARED)
@given(
    data=st.binary(max_size=60)
    | st.text("0123456789.,-#% \ntxypnae", max_size=80).map(str.encode)
    | st.lists(st.sampled_from(["0.1 1 1 1", "0.2,3,3,0", "# c", "", "0.2 1", "t x y p"])).map(
        lambda lines: "\n".join(lines).encode()
    ),
    block=st.integers(1, 30),
)
def test_any_text_gives_events_or_a_value_error(tmp_path, data, block):
    path = tmp_path / "events.txt"
    path.write_bytes(data)
    index = TextIndex(path, block_bytes=block)
    try:
        _, columns = index.read(0, 10**9)
    except ValueError as error:
        assert str(path) in str(error)
        return
    Events(*columns)
