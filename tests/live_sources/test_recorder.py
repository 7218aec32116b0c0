"""recorder.py: what comes in can be read back."""

from __future__ import annotations

import numpy as np
import pytest

from flowfuse.data.opening import open_recording
from flowfuse.events import Events
from flowfuse.live_sources import recorder as module
from flowfuse.live_sources.base import LiveFrame
from flowfuse.live_sources.recorder import Recorder

HEIGHT, WIDTH = 16, 24


def events(*times: int) -> Events:
    count = len(times)
    return Events(
        np.arange(count) % WIDTH, np.zeros(count, int), list(times), [1] * count,
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip


def frame(t: int, exposure: int | None = None) -> LiveFrame:
    image = np.random.default_rng(t).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return LiveFrame(image, t, exposure)


def test_what_came_in_is_read_back(tmp_path):
    path = tmp_path / "rec"
    with Recorder(path, HEIGHT, WIDTH) as recorder:
        for packet in (events(1, 2), frame(1_000_002, 10), events(2, 7), frame(2_000_000, 20)):
            recorder.add(packet)
        assert not path.exists(), "complete or not at all"
    recording = open_recording(path)
    assert recording.events(0, 10).t.tolist() == [1, 2, 2, 7]
    assert recording.frame_times.tolist() == [1_000_002, 2_000_000]
    assert recording.exposures.tolist() == [[999_997, 1_000_007], [1_999_990, 2_000_010]]
    assert np.array_equal(recording.frame(1), frame(2_000_000).image)
    assert (recorder.events, recorder.frames, recorder.left_out) == (4, 2, 0)


def test_what_is_out_of_order_is_left_out(tmp_path):
    with Recorder(tmp_path / "rec", HEIGHT, WIDTH) as recorder:
        for packet in (events(5, 6), events(4, 7), frame(10), frame(10), events(1, 2), frame(9)):
            recorder.add(packet)
    recording = open_recording(tmp_path / "rec")
    assert recording.events(0, 10).t.tolist() == [5, 6, 7] and len(recording.frame_times) == 1
    assert recorder.left_out == 5


@pytest.mark.parametrize("exposures", [(None, 10), (10, None), (10, None, 10)])
def test_exposures_of_some_frames_are_none(tmp_path, exposures):
    with Recorder(tmp_path / "rec", HEIGHT, WIDTH) as recorder:
        recorder.add(events(1))
        for index, exposure in enumerate(exposures):
            recorder.add(frame(100 + 100 * index, exposure))
    recording = open_recording(tmp_path / "rec")
    assert recording.exposures is None and len(recording.frame_times) == len(exposures)


def test_a_run_without_events_or_frames(tmp_path):
    with Recorder(tmp_path / "rec", HEIGHT, WIDTH):
        pass
    recording = open_recording(tmp_path / "rec")
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    assert recording.event_range is None and not recording.has_frames


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def fail(path, parts, size):
        next(iter(parts))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_event_parts", fail)
    with pytest.raises(OSError, match="No space left"), Recorder(tmp_path / "rec", 16, 24) as one:
        for t in range(1_000):
            one.add(events(t))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with pytest.raises(KeyError), Recorder(tmp_path / "rec", HEIGHT, WIDTH) as one:
        one.add(events(1))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_content_is_refused(tmp_path):
    (tmp_path / "there").write_text("x")
    with pytest.raises(ValueError, match="exists already, expected a new or empty directory"):
        Recorder(tmp_path, HEIGHT, WIDTH)
