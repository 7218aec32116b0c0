"""AEDAT 4 files, written by the package that reads them; skipped where it is absent."""

from __future__ import annotations

import struct
from datetime import timedelta

import numpy as np
import pytest
from container_cases import FRAME_TIMES, HEIGHT, START, WIDTH, check, images, make_events

from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file


@pytest.fixture(scope="module")
def events():
    return make_events()


def write_aedat4(path, events, frames=True, compression="LZ4"):
    dv = pytest.importorskip("dv_processing")
    kind = dv.io.MonoCameraWriter.DAVISConfig if frames else dv.io.MonoCameraWriter.DVSConfig
    packing = getattr(dv.CompressionType, compression)
    writer = dv.io.MonoCameraWriter(str(path), kind("DVXplorer_test", (WIDTH, HEIGHT), packing))
    store = dv.EventStore()
    for x, y, t, p in zip(events.x, events.y, events.t, events.p, strict=True):
        store.push_back(int(t), int(x), int(y), bool(p))
    writer.writeEvents(store)
    for time, image in zip(FRAME_TIMES if frames else [], images(), strict=False):
        frame = dv.Frame(time - 1000, image)  # exposed from 1 ms before to 1 ms after
        frame.exposure = timedelta(milliseconds=2)
        writer.writeFrame(frame)
    del writer  # closes the file
    return path


def test_aedat4(tmp_path, events):
    recording = open_recording(write_aedat4(tmp_path / "a.aedat4", events))
    check(recording, events)
    assert recording.frame_times.tolist() == FRAME_TIMES
    assert recording.exposures[1].tolist() == [FRAME_TIMES[1] - 1000, FRAME_TIMES[1] + 1000]
    for index in (0, 2, 1):
        np.testing.assert_array_equal(recording.frame(index), images()[index])
    assert open_event_file(tmp_path / "a.aedat4").coordinate_extent() == (HEIGHT, WIDTH)
    # As the events of a recording it brings its frames, unless there are others.
    (tmp_path / "r").mkdir()
    (tmp_path / "a.aedat4").rename(tmp_path / "r" / "events.aedat4")
    assert len(open_recording(tmp_path / "r").frame_times) == 3
    times = tmp_path / "times.txt"
    times.write_text("1\n")
    with pytest.raises(ValueError, match=r"frame times were given, but .* has its own"):
        open_recording(frames=tmp_path / "r" / "events.aedat4", times=times)


def test_aedat4_without_frames(tmp_path, events):
    recording = open_recording(write_aedat4(tmp_path / "a.aedat4", events, frames=False))
    assert not recording.has_frames and len(recording.events(0, 2 * START)) == len(events)
    with pytest.raises(ValueError, match="stream 'frames' expected, found"):
        open_recording(frames=tmp_path / "a.aedat4")


def fields_of(data, table):
    """Where the fields of a table of flatbuffers are, 0 for those left out."""
    layout = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, layout)[0]
    offsets = struct.unpack_from(f"<{size // 2 - 2}H", data, layout + 4)
    return [offset and table + offset for offset in offsets]


def remove_times(path):
    """Rewrite the table of packets as older versions of DV wrote it: places alone."""
    frame = pytest.importorskip("lz4.frame")
    data = path.read_bytes()
    header = data[18 : 18 + struct.unpack_from("<I", data, 14)[0]]
    place = fields_of(header, struct.unpack_from("<I", header)[0])[1]
    place = struct.unpack_from("<q", header, place)[0]
    table = bytearray(frame.decompress(data[place:]))
    view = memoryview(table)[4:]  # behind its size
    vector = fields_of(view, struct.unpack_from("<I", view)[0])[0]
    vector += struct.unpack_from("<I", view, vector)[0]
    for index in range(struct.unpack_from("<I", view, vector)[0]):
        entry = vector + 4 * (index + 1)
        entry += struct.unpack_from("<I", view, entry)[0]
        for number in fields_of(view, entry)[2:]:  # of elements, first and last time
            if number:
                struct.pack_into("<q", view, number, 0)
    path.write_bytes(data[:place] + frame.compress(bytes(table)))


def test_a_table_without_times(tmp_path, events):
    path = write_aedat4(tmp_path / "a.aedat4", events)
    remove_times(path)
    with pytest.warns(UserWarning, match="its table has no times, as DV wrote it before mid 2020"):
        recording = open_recording(path)
    check(recording, events)
    assert recording.frame_times.tolist() == FRAME_TIMES
    for index in (1, 2, 0, 2):
        np.testing.assert_array_equal(recording.frame(index), images()[index])


class Batches:
    """Packets of events as dv-processing gives them: first and last time of each."""

    def __init__(self, spans):
        self.spans, self.left = spans, []

    def resetSequentialRead(self):  # noqa: N802 - of dv-processing
        self.left = list(self.spans)

    def getNextEventBatch(self):  # noqa: N802
        return Batch(*self.left.pop(0)) if self.left else None


class Batch:
    def __init__(self, first, last):
        self.size = lambda: last - first + 1
        self.getLowestTime, self.getHighestTime = lambda: first, lambda: last


def test_packets_that_go_back_are_refused(tmp_path, events):
    """Its writer refuses to make such a file."""
    file = open_event_file(write_aedat4(tmp_path / "a.aedat4", events))
    assert file._find_range(Batches([(5, 9), (9, 8), (9, 20)])) == (5, 20)
    file.check_order()
    assert file._find_range(Batches([])) is None
    file._find_range(Batches([(5, 90), (7, 20)]))
    with pytest.raises(ValueError, match="found a packet from 7 us after one up to 90 us"):
        file.check_order()


def test_deep_frames(tmp_path):
    dv = pytest.importorskip("dv_processing")
    kind = dv.io.MonoCameraWriter.FrameOnlyConfig("camera", (WIDTH, HEIGHT))
    writer = dv.io.MonoCameraWriter(str(tmp_path / "a.aedat4"), kind)
    deep = images().astype(np.uint16) * 16
    deep[1, 0, 0] = 4095
    for time, image in zip(FRAME_TIMES, deep, strict=True):
        writer.writeFrame(dv.Frame(time, image))
    del writer
    with pytest.warns(UserWarning, match=r"frame 1 and the other .* up to 4095: 12 bits are"):
        recording = open_recording(tmp_path / "a.aedat4")
    np.testing.assert_array_equal(recording.frame(2), np.rint(deep[2] * (65535 / 4095)))


def test_faults_of_aedat4(tmp_path, events):
    path = write_aedat4(tmp_path / "a.aedat4", events)
    data = path.read_bytes()
    for content in (b"", b"#!AER-DAT4.0\r\n", data[:300], data[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.aedat4: not a readable .aedat4, is it truncated"):
            open_recording(path)
    with pytest.raises(FileNotFoundError, match="no such event file"):
        open_event_file(tmp_path / "b.aedat4")


@pytest.mark.parametrize("compression", ["LZ4", "LZ4_HIGH", "ZSTD", "ZSTD_HIGH"])
@pytest.mark.parametrize("part", ["content", "size"])
def test_damaged_packets_are_refused(tmp_path, events, part, compression):
    path = write_aedat4(tmp_path / "a.aedat4", events, compression=compression)
    check(open_recording(path), events)
    data = path.read_bytes()
    first = 18 + struct.unpack_from("<I", data, 14)[0]  # behind the header
    size = struct.unpack_from("<i", data, first + 4)[0]
    content = bytearray(data)
    if part == "content":  # of a packet: dv-processing would never return
        content[first + 40 : first + 8 + size] = b"\xff" * (size - 32)
        told = rf"the packet at byte {first} is damaged"
    else:
        struct.pack_into("<i", content, first + 4, -1)
        told = rf"the packet at byte {first} has -1 bytes, \d+ are left"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a.aedat4: not a readable .aedat4, .*\({told}"):
        open_recording(path)
