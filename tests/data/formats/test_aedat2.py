"""AEDAT 2.0: pairs packed by hand for the chips, windows, overflow, triggers, faults."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.formats.aedat2 import Aedat2Events, read_header
from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file

FIRST = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
DAVIS = FIRST + b"# AEChip: eu.seebetter.ini.chips.davis.Davis346B\r\n#End Of ASCII Header\r\n"
DVS128 = FIRST + b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n"


def rows(window):
    columns = (window.x, window.y, window.t, window.p)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


def davis(x, y, t, p):
    """An event as a DAVIS346 sends it: from the right, from the bottom."""
    return struct.pack(">II", (259 - y) << 22 | (345 - x) << 12 | p << 11, t % 2**32)


def dvs128(x, y, t, p):
    return struct.pack(">II", (127 - y) << 8 | (127 - x) << 1 | (1 - p), t % 2**32)


def make_events(width, height):
    rng = np.random.default_rng(0)
    t = 2**32 - 20_000 + np.sort(rng.integers(0, 40_000, 900))
    columns = rng.integers(0, width, 900), rng.integers(0, height, 900), t, rng.integers(0, 2, 900)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(
    ("header", "encode", "size"), [(DAVIS, davis, (260, 346)), (DVS128, dvs128, (128, 128))]
)
def test_windows_are_slices_of_the_whole(tmp_path, header, encode, size):
    events, path = make_events(size[1], size[0]), tmp_path / "a.aedat"
    path.write_bytes(header + b"".join(encode(*event) for event in events))
    with pytest.warns(UserWarning, match=r"overflowed 1 time at 2\^32 us \(71.6 min\); the times"):
        recording = open_recording(path.rename(tmp_path / "a.dat"))
    assert (recording.height, recording.width) == size and not recording.has_frames
    assert recording.event_range == (events[0][2], events[-1][2])  # the overflow is undone
    small = Aedat2Events(tmp_path / "a.dat", block_bytes=160)
    for t0, t1 in [(0, 2**40), (2**32 - 500, 2**32 + 500), (2**32, 2**32), (0, 5)]:
        expected = [event for event in events if t0 <= event[2] < t1]
        assert rows(small.window(t0, t1, *size)) == expected
        assert rows(recording.events(t0, t1)) == expected


def test_words_by_hand(tmp_path):
    words = [
        (0x00000000, 100),  # row 0 from the bottom, column 0 from the right, OFF
        (0x40D59800, 101),  # row 259 from the bottom, column 345 from the right, ON
        (0x80000123, 102),  # a sample of a frame
        (0x00000402, 103),  # a trigger falls
        (0x00000403, 104),  # and rises
    ]
    path = tmp_path / "a.aedat"
    path.write_bytes(DAVIS + b"".join(struct.pack(">II", *word) for word in words))
    with pytest.warns(UserWarning, match="samples of frames or of the IMU are passed over"):
        file = open_event_file(path)
    assert rows(file.window(0, 10**9, 260, 346)) == [(345, 259, 100, 0), (0, 0, 101, 1)]
    assert file.triggers().tolist() == [(103, 0, 0), (104, 1, 0)]
    # DVS128: bit 15 is a trigger; bit 0 is 0 for ON.
    words = [(0x7F00 | 5 << 1, 7), (0x8000, 8), (0x0001, 9)]
    path.write_bytes(DVS128 + b"".join(struct.pack(">II", *word) for word in words))
    file = open_event_file(path)
    assert rows(file.window(0, 10**9, 128, 128)) == [(122, 0, 7, 1), (127, 127, 9, 0)]
    assert file.triggers().tolist() == [(8, 1, 0)]


def test_a_pair_that_begins_like_a_header_line(tmp_path):
    events, path = [(12, 118, 1000, 1), (13, 118, 2000, 0)], tmp_path / "a.aedat"
    path.write_bytes(
        DAVIS.replace(b"#End Of ASCII Header\r\n", b"")
        + b"".join(davis(*event) for event in events)
    )
    assert davis(*events[0])[:1] == b"#" and read_header(path)[0][-1].endswith("Davis346B")
    assert rows(open_event_file(path).window(0, 10**9, 260, 346)) == events


def test_files_that_do_not_name_their_chip(tmp_path):
    path = tmp_path / "a.aedat"
    path.write_bytes(FIRST + dvs128(5, 6, 7, 1))
    with pytest.warns(UserWarning, match="names the chip; a DVS128 is assumed, since all addr"):
        file = open_event_file(path)
    assert rows(file.window(0, 100, 128, 128)) == [(5, 6, 7, 1)]
    path.write_bytes(FIRST + davis(5, 6, 7, 1))
    with pytest.raises(ValueError, match=r"no line '# AEChip: ...' says what its addresses mean"):
        open_event_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "AEDAT version 1.0, expected 2.0, 3.1 or 4.0"),
        (b"#!AER-DAT1.0\r\n", "AEDAT version 1.0"),
        (FIRST + b"# AEChip: a.b.DavisRGBW640\r\n", "chip 'a.b.DavisRGBW640', expected one of"),
        (FIRST + b"# AEChip: a.b.Davis346rgbw\r\n", "chip 'a.b.Davis346rgbw'"),
        (FIRST + b"# cut", "a header line without an end; is the file truncated"),
        (DVS128 + dvs128(1, 1, 9, 1) + dvs128(1, 1, 8, 1), "event 1 has 8 us after 9 us"),
    ],
)
def test_faults(tmp_path, content, message):
    path = tmp_path / "a.aedat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(path).window(0, 100, 128, 128)
    assert str(caught.value).startswith(str(path))


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=st.sampled_from([FIRST, DAVIS, DVS128]), data=st.binary(max_size=200))
def test_any_words_give_events_or_a_value_error(tmp_path, header, data):
    path = tmp_path / "a.aedat"
    path.write_bytes(header + data)
    try:
        whole = open_event_file(path).window(0, 2**60, 1024, 1024)
        parts = Aedat2Events(path, block_bytes=16).window(0, 2**60, 1024, 1024)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert rows(whole) == rows(parts)


def test_a_pair_cut_off_at_the_end_is_told(tmp_path):
    path = tmp_path / "a.aedat"
    path.write_bytes(DAVIS + davis(1, 2, 3, 1) + davis(4, 5, 6, 0)[:-3])
    with pytest.warns(UserWarning, match=r"a.aedat: .* last word has 5 of 8 bytes"):
        file = open_event_file(path)
    assert rows(file.window(0, 10, 260, 346)) == [(1, 2, 3, 1)]
