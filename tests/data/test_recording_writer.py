"""Writing plain recordings: what is written comes back, or nothing is left."""

from __future__ import annotations

import os

import numpy as np
import pytest
from event_cases import (
    HEIGHT,
    OFFSET,
    WIDTH,
    frames,
    make_events,
)

from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording


@pytest.fixture(scope="module")
def events():
    return make_events()


@pytest.mark.parametrize("channels", [(), (3,)])
def test_write_and_open(tmp_path, events, channels):
    images, times = frames(3, channels), np.array([OFFSET, OFFSET + 9_999, OFFSET + 20_001])
    flow = np.arange(2 * 2 * HEIGHT * WIDTH, dtype=np.float32).reshape(2, 2, HEIGHT, WIDTH)
    valid = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3 > 0
    write_recording(
        tmp_path / "r",
        events,
        images,
        times,
        exposures=np.array([100, 201, 300]),
        flow=flow,
        flow_at={0.25: [(flow[0], valid), None], 1 / 3: flow},
    )
    recording = open_recording(tmp_path / "r")
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(recording.frame_times, times)
    assert recording.exposures[1].tolist() == [OFFSET + 9_899, OFFSET + 10_100]
    for index in range(3):
        np.testing.assert_array_equal(recording.frame(index), images[index])
    assert recording.time_range == (OFFSET, events.t[-1])
    assert recording.event_range == (events.t[0], events.t[-1])
    assert [path.parent.name for path in recording.frame_files] == ["images"] * 3
    assert len(recording.events(OFFSET, OFFSET + 9_999)) == len(
        events.slice_time(OFFSET, OFFSET + 9_999)
    )
    np.testing.assert_array_equal(recording.ground_truth(1)[0], flow[1])
    assert recording.ground_truth(2) is None and recording.ground_truth_at(1, 0.25) is None
    assert recording.ground_truth_times == (0.25, 1 / 3)
    partly, mask = recording.ground_truth_at(0, 0.25)
    np.testing.assert_array_equal(mask, valid)
    np.testing.assert_array_equal(partly, np.where(valid, flow[0], 0))
    assert (
        recording.ground_truth_at(0, 1 / 3) is not None
        and recording.ground_truth_at(0, 0.5) is None
    )
    assert os.listdir(tmp_path) == ["r"]


def test_a_failed_write_leaves_nothing(tmp_path, events, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("flowfuse.data.recording_writer.write_flow", full)
    with pytest.raises(OSError, match="No space left"):
        write_recording(tmp_path / "r", events, frames(), [0, 1, 2], flow=np.zeros((2, 2, 12, 16)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_times": [0, 1]}, "2 frame_times for 3 frames"),
        ({"frame_times": [0, 2, 1]}, "frame_times must be increasing integer"),
        ({"frame_times": [0.0, 1.0, 2.0]}, "frame_times must be increasing integer"),
        ({"frames": [frames()[0], frames()[0], frames()[0, 1:]]}, r"frame 2 is \[11, 16\]"),
        ({"frames": frames().astype(float)}, "must be uint8"),
        ({"frames": frames()[:, 1:]}, "events of 16 x 12 px with frames of 16 x 11"),
        ({"exposures": np.zeros((2, 2), int)}, "exposures must be integers of shape"),
        ({"flow": np.zeros((3, 2, 12, 16))}, "flow: 3 flow fields for 3 frames"),
        ({"flow_at": {1.5: []}}, "tau must lie in"),
        ({"frames": None, "frame_times": None, "events": None}, "neither events nor frames"),
    ],
)
def test_faults_of_writing(tmp_path, events, changes, message):
    given = {"events": events, "frames": frames(), "frame_times": [0, 1, 2]}
    with pytest.raises(ValueError, match=message):
        write_recording(tmp_path / "r", **{**given, **changes})
    assert os.listdir(tmp_path) == []


def test_writing_never_overwrites(tmp_path, events):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="exists already"):
        write_recording(tmp_path, events, None, None)
