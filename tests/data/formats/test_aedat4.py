"""AEDAT 4 files, written by the package that reads them; skipped where it is absent."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from container_cases import FRAME_TIMES, HEIGHT, START, WIDTH, check, images, make_events

from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file


@pytest.fixture(scope="module")
def events():
    return make_events()


def write_aedat4(path, events, frames=True):
    dv = pytest.importorskip("dv_processing")
    kind = dv.io.MonoCameraWriter.DAVISConfig if frames else dv.io.MonoCameraWriter.DVSConfig
    writer = dv.io.MonoCameraWriter(str(path), kind("DVXplorer_test", (WIDTH, HEIGHT)))
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


def test_faults_of_aedat4(tmp_path, events):
    path = write_aedat4(tmp_path / "a.aedat4", events)
    data = path.read_bytes()
    for content in (b"", b"#!AER-DAT4.0\r\n", data[:300], data[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.aedat4: not a readable .aedat4, is it truncated"):
            open_recording(path)
    with pytest.raises(FileNotFoundError, match="no such event file"):
        open_event_file(tmp_path / "b.aedat4")
