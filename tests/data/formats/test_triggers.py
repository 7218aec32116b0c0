"""Frame times from triggers: chosen by edge and input, and refused where that is left open."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from event_cases import save_images

from flowfuse.data.formats.base import EventFile
from flowfuse.data.formats.prophesee_words import TRIGGER
from flowfuse.data.formats.triggers import is_trigger_spec, trigger_times
from flowfuse.data.opening import open_recording
from flowfuse.events import Events

HEIGHT, WIDTH = 4, 6


class Triggered(EventFile):
    """A file with these triggers (t, p, id)."""

    def __init__(self, path, triggers):
        super().__init__(path)
        self._triggers = np.array(triggers, TRIGGER)

    time_range = None

    def coordinate_extent(self):
        return 1, 1

    def window(self, t0, t1, height, width):
        return Events.empty(height, width)

    def triggers(self):
        return self._triggers


BOTH = [(10, 1, 0), (12, 0, 0), (30, 1, 0), (32, 0, 0)]
INPUTS = [(10, 1, 0), (11, 1, 6), (20, 1, 0), (21, 1, 6)]


@pytest.mark.parametrize(
    ("triggers", "spec", "times"),
    [
        (BOTH[::2], "triggers", [10, 30]),
        (BOTH, "triggers:rising", [10, 30]),
        (BOTH, "triggers:falling", [12, 32]),
        (INPUTS, "triggers:6", [11, 21]),
        (INPUTS, "triggers:rising:0", [10, 20]),
    ],
)
def test_the_triggers_that_are_asked_for(tmp_path, triggers, spec, times):
    found = trigger_times(Triggered(tmp_path / "a.raw", triggers), spec)
    assert found.times.tolist() == times and found.times.dtype == np.int64
    assert str(found) == f"{spec} of {tmp_path / 'a.raw'}"


@pytest.mark.parametrize(
    ("triggers", "spec", "message"),
    [
        ([], "triggers", "no trigger for 'triggers', the file has none"),
        (BOTH[::2], "triggers:falling", "no trigger for .*the file has 2 rising at input 0"),
        (
            BOTH,
            "triggers",
            "leaves open .* has 2 rising at input 0, 2 falling at input 0; .*rising",
        ),
        (INPUTS, "triggers:rising", "leaves open .*2 rising at input 6; say so, as '.*rising:0'"),
        (INPUTS, "triggers:3", "no trigger for 'triggers:3'"),
        (INPUTS, "triggers:up", r"'triggers:up': expected a file, or triggers\[:rising|falling\]"),
        ([(5, 1, 0), (5, 1, 0)], "triggers", "must increase, found 5 us after 5 us"),
    ],
)
def test_faults(tmp_path, triggers, spec, message):
    with pytest.raises(ValueError, match=message):
        trigger_times(Triggered(tmp_path / "a.raw", triggers), spec)


def test_what_asks_for_triggers():
    assert is_trigger_spec("triggers") and is_trigger_spec("triggers:x")
    assert not is_trigger_spec("triggers.txt") and not is_trigger_spec("a/triggers:rising")


def write_raw(path):
    """EVT 3.0: three events, three triggers that rise at input 1, and one that falls."""
    words = []
    for high in (2, 3, 4):
        words += [0x8000 | high, 0x6000 | 5, 1, 0x2000 | 0x800 | 2, 0x6000 | 9, 0xA101]
    words += [0x6000 | 20, 0xA100]
    header = f"% evt 3.0\n% format EVT3;height={HEIGHT};width={WIDTH}\n% end\n"
    path.write_bytes(header.encode() + np.array(words, "<u2").tobytes())


RISING = [(high << 12) + 9 for high in (2, 3, 4)]


def test_frames_at_triggers(tmp_path):
    write_raw(tmp_path / "a.raw")
    images = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)
    save_images(tmp_path / "images", images)
    (tmp_path / "images" / "timestamps.txt").write_text("1\n2\n3\n")  # others are stated
    recording = open_recording(
        tmp_path / "a.raw", frames=tmp_path / "images", times="triggers:rising"
    )
    assert recording.frame_times.tolist() == RISING
    np.testing.assert_array_equal(recording.frame(1), images[1])
    video = cv2.VideoWriter(
        str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDTH, HEIGHT)
    )
    for image in images:
        video.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    video.release()
    recording = open_recording(
        events=tmp_path / "a.raw", frames=tmp_path / "a.avi", times="triggers:rising:1"
    )
    assert recording.frame_times.tolist() == RISING


def test_faults_of_frames_at_triggers(tmp_path):
    write_raw(tmp_path / "a.raw")
    save_images(tmp_path / "images", np.zeros((2, HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ValueError, match=r"triggers:rising of .*a.raw: 3 times for 2 images in"):
        open_recording(tmp_path / "a.raw", frames=tmp_path / "images", times="triggers:rising")
    with pytest.raises(ValueError, match="frame times of triggers need an event file"):
        open_recording(frames=tmp_path / "images", times="triggers")
    np.savez(tmp_path / "a.npz", x=[1], y=[1], t=[1], p=[1])
    with pytest.raises(ValueError, match=r"a.npz: files of this format hold no triggers"):
        open_recording(tmp_path / "a.npz", frames=tmp_path / "images", times="triggers")
