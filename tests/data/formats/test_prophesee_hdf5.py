"""Prophesee's HDF5 files: chunks of ECF by hand and from an encoder of its own, windows, damage."""

from __future__ import annotations

import struct

import h5py
import numpy as np
import pytest
from ecf_cases import CODES, encode, write
from event_cases import HEIGHT, OFFSET, WIDTH, make_events, windows_that_are_slices
from hypothesis import given, settings
from hypothesis import strategies as st

from flowfuse.data.formats.ecf import EVENT, decode_chunk
from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file


def rows(events):
    return [(int(e["x"]), int(e["y"]), int(e["t"]), int(e["p"])) for e in events]


BY_HAND = struct.pack("<IQ", 4 << 2, 1000) + bytes(
    [
        0x02,  # two events at 1000 us
        0xF4, 0xF1, 0x31,  # 0x14 = 20 us later, and 3 more: one event at 1023 us
        0x0F, 1, 0,  # one event, by the long number
        5 << 5 & 255 | 3, 5 << 5 >> 8, 0xFF, 0x2F, 1, 0,  # row 5 three times; row 383, long number
        0x30, 1, 0x21, 0,  # columns 9 and 9 + 1; column 1 and 1 + 5
        0x82, 0x7F, 2, 0,  # ON twice; OFF twice, by the long number
    ]
)  # fmt: skip


def test_bytes_by_hand():
    assert rows(decode_chunk(BY_HAND)) == [
        (9, 5, 1000, 1), (10, 5, 1000, 1), (1, 5, 1023, 0), (6, 383, 1023, 0),
    ]  # fmt: skip
    values = 0x123456, 0x0ABCDE, 0x700003, 0x400000
    data = struct.pack("<IQB", 4 << 2 | 2, 7, 4) + struct.pack(
        "<3I", 0x123456_DE, 0x0ABC_0003, 0x70_400000
    )
    expected = [(v >> 1 & 0x7FF, v >> 12 & 0x7FF, 7, v & 1) for v in values]
    assert rows(decode_chunk(data)) == expected
    data = struct.pack("<IQBH", 3 << 2 | 1, 7, 3, 9 << 5 | 3) + struct.pack(
        "<3H", 0x123_6, 0x45_89, 0x7_000
    )
    expected = [(v >> 1, 9, 7, v & 1) for v in (0x123, 0x456, 0x789)]
    assert rows(decode_chunk(data)) == expected
    assert len(decode_chunk(struct.pack("<IQ", 0, 5))) == 0


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 40) | st.integers(0, 2047), st.integers(0, 2) | st.integers(0, 2047),
        st.integers(0, 3) | st.integers(0, 1 << 20), st.integers(0, 1),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(events=EVENTS, code=st.sampled_from(CODES), repeats=st.sampled_from([1, 1, 1, 40, 300]))
def test_any_events_come_back(events, code, repeats):
    time, found = 1 << 41, []
    for x, y, step, p in events:
        time += step
        found += [(x, y, time, p)] * repeats
    found = found[:1500]
    assert rows(decode_chunk(encode(found, code))) == found


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60), count=st.integers(0, 40), code=st.integers(0, 3))
def test_any_bytes_give_events_or_a_value_error(data, count, code):
    chunk = struct.pack("<IQ", count << 2 | code, 9) + data
    try:
        assert len(decode_chunk(chunk)) == count
    except ValueError as error:
        assert "a chunk of ECF" in str(error)


def test_windows_are_slices_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("flowfuse.data.formats.block_times._LEAST_BLOCK", 100)
    events = make_events()
    path = write(tmp_path / "a.hdf5", events)
    recording = open_recording(path)
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    file = open_event_file(path)
    windows_that_are_slices(file, events)
    assert file.triggers().tolist() == [(OFFSET, 1, 5), (OFFSET + 9, 0, 5)]


def test_records_without_ecf(tmp_path):
    events = make_events()
    records = np.zeros(len(events), EVENT)
    for name in "xytp":
        records[name] = getattr(events, name)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("CD/events", data=records, chunks=(99,), compression="gzip")
    file = open_event_file(tmp_path / "a.h5")
    np.testing.assert_array_equal(file.window(0, 2 * OFFSET, HEIGHT, WIDTH).t, events.t)
    assert file.sensor_size is None and len(file.triggers()) == 0


def test_faults(tmp_path):
    events, path = make_events(), tmp_path / "a.h5"
    write(path, events, geometry="big")
    with pytest.raises(ValueError, match=r"a.h5: the attribute geometry must be like '1280x720'"):
        open_recording(path)
    for name, chunk, message in (
        ("c.h5", b"\0\1\2", "c.h5: a chunk of ECF ends too early"),
        ("d.h5", encode([(1, 1, 1, 1)], 0), "chunk 2 of /CD/events has 1 events, 256 expected"),
    ):
        with h5py.File(write(tmp_path / name, events), "a") as file:
            file["CD/events"].id.write_direct_chunk((512,), chunk)
        with pytest.raises(ValueError, match=message):
            open_event_file(tmp_path / name).window(0, 2 * OFFSET, HEIGHT, WIDTH)
    with h5py.File(write(tmp_path / "e.h5", events), "a") as file:
        del file["EXT_TRIGGER/events"]
        file["EXT_TRIGGER/events"] = [1, 2]
    with pytest.raises(ValueError, match="EXT_TRIGGER/events must be records of p, t and id"):
        open_event_file(tmp_path / "e.h5").triggers()
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["CD/events"] = [1, 2]
    with pytest.raises(ValueError, match="CD/events must be records of x, y, p and t, got"):
        open_event_file(tmp_path / "b.h5")
