"""Prophesee .dat: bytes by hand, windows, overflow of the time, another reader, faults."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from flowfuse.data.formats.prophesee_dat import DatEvents
from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file

HEADER = b"% Data file containing CD events.\n% Version 2\n% Height 480\n% Width 640\n"


def encode(events):
    """Events (x, y, t, p) as records of 8 bytes."""
    return b"".join(struct.pack("<II", t % 2**32, x | y << 14 | p << 28) for x, y, t, p in events)


def rows(window):
    columns = (window.x, window.y, window.t, window.p)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    t = 2**32 - 20_000 + np.sort(rng.integers(0, 40_000, 2000))
    columns = rng.integers(0, 640, 2000), rng.integers(0, 480, 2000), t, rng.integers(0, 2, 2000)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("kind", [0, 12])
def test_windows_are_slices_of_the_whole(tmp_path, events, kind):
    path = tmp_path / "events.dat"
    path.write_bytes(HEADER + bytes((kind, 8)) + encode(events))
    with pytest.warns(UserWarning, match=r"overflowed 1 time at 2\^32 us \(71.6 min\); the times"):
        recording = open_recording(path)
    assert (recording.height, recording.width) == (480, 640) and not recording.has_frames
    assert recording.event_range == (events[0][2], events[-1][2])  # the overflow is undone
    small = DatEvents(path, block_bytes=800)
    for t0, t1 in [(0, 2**40), (2**32 - 500, 2**32 + 500), (2**32, 2**32), (0, 5)]:
        expected = [event for event in events if t0 <= event[2] < t1]
        assert rows(small.window(t0, t1, 480, 640)) == expected
        assert rows(recording.events(t0, t1)) == expected
    with pytest.raises(ValueError, match=r"events.dat: files of this format hold no triggers"):
        small.triggers()


def test_a_reset_after_forty_minutes_is_no_overflow(tmp_path):
    path = tmp_path / "events.dat"
    late = [(1, 1, 2_400_000_000 + 1000 * i, 1) for i in range(500)]
    path.write_bytes(
        HEADER + b"\x0c\x08" + encode(late + [(x, y, i, p) for i, (x, y, _, p) in enumerate(late)])
    )
    with pytest.raises(
        ValueError, match=r"2 recordings were joined: part 1 has .* to 2400.499000 s"
    ):
        open_recording(path)
    assert open_recording(path, part=2).event_range == (0, 499)


def test_bytes_by_hand_without_a_size(tmp_path):
    path = tmp_path / "td.dat"
    # 0x10021407: polarity 1, row 8, column 5127 = 0x1407.
    path.write_bytes(b"% Version 2\n\x00\x08" + bytes.fromhex("0102030007140210"))
    file = open_event_file(path)
    assert file.sensor_size is None and file.coordinate_extent() == (9, 5128)
    assert rows(file.window(0, 10**9, 9, 5128)) == [(5127, 8, 0x030201, 1)]
    path.rename(tmp_path / "td")  # found by its content
    assert open_event_file(tmp_path / "td").time_range == (0x030201, 0x030201)


def test_another_reader_agrees(tmp_path, events):
    expelliarmus = pytest.importorskip("expelliarmus")
    path = tmp_path / "events.dat"
    first = [event for event in events if event[2] < 2**32]
    path.write_bytes(HEADER + b"\x0c\x08" + encode(first))
    other = expelliarmus.Wizard(encoding="dat").read(str(path))
    found = zip(*(other[name] for name in "xytp"), strict=True)
    assert [tuple(int(v) for v in row) for row in found] == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no header"),
        (b"% Version 1\n\x00\x08", "version 1 of .dat, expected 2"),
        (b"% Width 3\n\x00\x08", "version none of .dat, expected 2"),
        (HEADER, "ends with its header; is the file truncated"),
        (HEADER + b"\x0e\x18", "events of type 14 with 24 bytes, expected type 0"),
        (b"% Version 2\n% Width x\n% Height 3\n\x00\x08", "must be px, got '3' and 'x'"),
    ],
)
def test_faults_of_headers(tmp_path, content, message):
    path = tmp_path / "events.dat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(path)
    assert str(caught.value).startswith(str(path))


def test_times_that_jump_back_are_refused(tmp_path):
    path = tmp_path / "events.dat"
    path.write_bytes(HEADER + b"\x0c\x08" + encode([(1, 1, 500, 1), (2, 2, 400, 0)]))
    with pytest.raises(ValueError, match="event 1 has 400 us after 500 us"):
        open_recording(path).events(0, 1000)


def test_an_event_cut_off_at_the_end_is_told(tmp_path, events):
    path = tmp_path / "events.dat"
    path.write_bytes(HEADER + b"\x0c\x08" + encode(events[:3])[:-5])
    with pytest.warns(UserWarning, match=r"events.dat: .* last word has 3 of 8 bytes"):
        file = open_event_file(path)
    assert rows(file.window(0, 2**40, 480, 640)) == events[:2]
