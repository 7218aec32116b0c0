"""Plain recordings: events, frames, times and ground truth, and a named error for each fault."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from event_cases import (
    HEIGHT,
    OFFSET,
    WIDTH,
    frames,
    make_events,
    save_images,
    write_format,
)

from flowfuse.data.formats.event_writer import write_events
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.visualization import write_video


@pytest.fixture(scope="module")
def events():
    return make_events()


@pytest.mark.parametrize("start", ["", "# a comment\n", "t x y p\n", "\n"])
def test_a_byte_order_mark_is_passed_over(tmp_path, start):
    for name, text in (
        ("events.txt", f"{start}0.1 1 1 1\n0.2 2 1 0\n"),
        ("timestamps.txt", "0\n0.1\n0.2\n"),
        ("sensor.txt", f"{WIDTH} {HEIGHT}\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    save_images(tmp_path / "images", list(frames()))
    recording = open_recording(tmp_path)
    assert recording.frame_times.tolist() == [0, 100_000, 200_000]
    events = recording.events(0, 10**6)
    assert events.t.tolist() == [100_000, 200_000] and events.x.tolist() == [1, 2]


def test_image_directories_in_every_layout(tmp_path):
    images = frames(11)
    save_images(tmp_path / "a" / "images", images, "frame_{}.png")  # frame_10 sorts after frame_9
    times = "".join(f"{i / 100}\n" for i in range(11))
    (tmp_path / "a" / "timestamps.txt").write_text("# seconds\n" + times)
    save_images(tmp_path / "b", images)
    (tmp_path / "b" / "times.txt").write_text(times)
    save_images(tmp_path / "c", images)
    (tmp_path / "c" / "timestamps.txt").write_text(
        "".join(f"{i / 100} {i}.png\n" for i in range(11))
    )
    opened = [open_recording(tmp_path / name) for name in "abc"]
    opened.append(open_recording(frames=tmp_path / "c", times=tmp_path / "b" / "times.txt"))
    for recording in opened:
        np.testing.assert_array_equal(recording.frame_times, np.arange(11) * 10_000)
        np.testing.assert_array_equal(recording.frame(10), images[10])
        assert not recording.has_events and len(recording.events(0, 10**6)) == 0


def test_frame_times_that_are_not_those_of_mid_exposure(tmp_path):
    save_images(tmp_path, frames(3))
    (tmp_path / "times.txt").write_text("0\n0.05\n0.1\n")
    # A driver's stamps of the shutter's opening, or closing; short exposures hardly matter.
    for start, end, told in ((0, 0.02, "after"), (-0.02, 0, "before"), (0, 0.001, "")):
        spans = "".join(f"{t + start} {t + end}\n" for t in (0, 0.05, 0.1))
        (tmp_path / "exposures.txt").write_text(spans)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_recording(tmp_path)
        assert [str(w.message) for w in caught] == bool(told) * [
            f"{tmp_path / 'exposures.txt'}: exposures are centred 10000 us (median) {told} the "
            "times of the frames, which are taken as mid-exposure; correct one of them"
        ]


def test_given_times_replace_those_of_a_list(tmp_path):
    save_images(tmp_path, frames(2))
    (tmp_path / "images.txt").write_text("0 0.png\n0.1 1.png\n")
    other = tmp_path / "exact.txt"
    other.write_text("0.002\n0.102\n")
    assert open_recording(tmp_path).frame_times.tolist() == [0, 100_000]
    assert open_recording(tmp_path, times=other).frame_times.tolist() == [2_000, 102_000]
    other.write_text("0.002\n")
    with pytest.raises(ValueError, match=r"exact.txt: 1 times for 2 images of .*images.txt"):
        open_recording(tmp_path, times=other)


@pytest.mark.parametrize("name", ["events.h5", "events.txt", "events.aedat4"])
def test_event_files_that_lead_nowhere_are_not_taken_for_none(tmp_path, name):
    write_recording(tmp_path / "r", None, frames(), [0, 1, 2])
    path = tmp_path / "r" / name
    for target in ("gone", name):  # the second is a loop
        path.symlink_to(target)
        with pytest.raises(FileNotFoundError, match=f"{name}: is a link that leads nowhere"):
            open_recording(tmp_path / "r")
        path.unlink()


def test_a_directory_is_no_event_file(tmp_path):
    write_recording(tmp_path / "r", None, frames(), [0, 1, 2])
    (tmp_path / "r" / "events.h5").mkdir()
    with pytest.raises(ValueError, match=r"events.h5: is a directory, expected an event file"):
        open_recording(tmp_path / "r")
    with pytest.raises(ValueError, match=r"r: is a directory, expected an event file"):
        open_recording(tmp_path / "r", events=tmp_path / "r")


def test_events_without_frames(tmp_path, events):
    write_format(tmp_path / "events.csv", events).rename(tmp_path / "events.txt")
    with pytest.warns(UserWarning, match="size is not stated; 16 x 12 px is taken"):
        assert open_recording(tmp_path).height == HEIGHT
    (tmp_path / "sensor.txt").write_text("20 30\n")
    recording = open_recording(tmp_path)
    assert (recording.height, recording.width, recording.has_frames) == (30, 20, False)
    assert recording.events(0, 2 * OFFSET).height == 30
    with pytest.raises(IndexError, match="0 frames"):
        recording.frame(0)
    write_events(tmp_path / "more.h5", events)
    assert open_recording(tmp_path / "more.h5").width == WIDTH
    with pytest.raises(ValueError, match=r"more.h5 is 16 x 12 px, but .*sensor.txt is 20 x 30 px"):
        open_recording(tmp_path, events=tmp_path / "more.h5")


def test_the_sensor_of_a_file_alone(tmp_path, events):
    path = write_format(tmp_path / "events.csv", events)
    (tmp_path / "sensor.txt").write_text("20 30\n")
    for recording in (open_recording(path), open_recording(events=path)):
        assert (recording.height, recording.width) == (30, 20)
    # Beside frames, sensor.txt may be of another camera; a file that states its own needs none.
    write_recording(tmp_path / "r", None, frames(), [0, 1, 2])
    (tmp_path / "r" / "sensor.txt").unlink(missing_ok=True)
    assert open_recording(tmp_path / "r", events=path).width == WIDTH
    write_events(tmp_path / "more.h5", events)
    assert open_recording(tmp_path / "more.h5").width == WIDTH


def test_faults_of_recordings(tmp_path, events):
    with pytest.raises(ValueError, match="open_recording: nothing to open, expected a path"):
        open_recording()
    with pytest.raises(FileNotFoundError, match="no such recording"):
        open_recording(tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"neither events .* nor frames .*; name them \(events, frames\)"
    ):
        open_recording(tmp_path)
    images = list(frames())
    save_images(tmp_path, [images[0], images[1][:-1], images[2]])
    with pytest.raises(FileNotFoundError, match="times of these images are unknown"):
        open_recording(tmp_path)
    listing = tmp_path / "images.txt"
    for text, message in [
        ("0.1 0.png\n0.1 1.png\n", "frame times must increase, frame 1: .*1.png has 100000 us"),
        ("-1 0.png\n", "line 1: negative time"),
        ("a 0.png\n", "line 1: a time in seconds expected first, found 'a'"),
        ("1e17 0.png\n", "line 1: a time in seconds expected first, found '1e17'"),
        ("0 0.png\n0.1\n", "line 2: found 1 columns, the lines before have 2"),
        ("", "no frame time found"),
        ("0\n", "lines of 't path' expected"),
    ]:
        listing.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_recording(tmp_path)
    listing.write_text("0 9.png\n")
    with pytest.raises(FileNotFoundError, match=r"9.png: no such image"):
        open_recording(tmp_path)
    listing.write_text("0 0.png\n0.1 1.png\n")
    with pytest.raises(ValueError, match=r"1.png is 16 x 11 px, but .*0.png is 16 x 12 px"):
        open_recording(tmp_path).frame(1)
    (tmp_path / "exposures.txt").write_text("0 0.01\n")
    with pytest.raises(ValueError, match="1 exposures for 2 frames"):
        open_recording(tmp_path)
    (tmp_path / "exposures.txt").write_text("0 0.01\n0.1 1e18\n")
    with pytest.raises(ValueError, match="line 2: 'start end' in seconds expected"):
        open_recording(tmp_path)
    (tmp_path / "exposures.txt").write_text("0 0.01\n0.1 0.09\n")
    with pytest.raises(ValueError, match="line 2: the exposure ends before it starts"):
        open_recording(tmp_path)
    (tmp_path / "exposures.txt").unlink()
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "frame1.flo").touch()
    with pytest.warns(UserWarning, match="'frame1.flo'; expected names like 000000.flo"):
        open_recording(tmp_path)
    (tmp_path / "flow" / "frame1.flo").unlink()
    (tmp_path / "flow" / "._000000.flo").touch()  # as macOS leaves them
    (tmp_path / "flow_at").mkdir()
    (tmp_path / "flow_at" / ".DS_Store").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_recording(tmp_path)
    (tmp_path / "sensor.txt").write_text("20")
    with pytest.raises(ValueError, match="'width height' in px expected, found '20'"):
        open_recording(tmp_path)
    write_format(tmp_path / "events.csv", events)
    write_events(tmp_path / "events.h5", events)
    with pytest.raises(ValueError, match=r"several event files \(events.h5, events.csv\)"):
        open_recording(tmp_path)


def test_slider_depth(shared_data):
    recording = open_recording(shared_data / "slider_depth")
    assert (recording.height, recording.width, len(recording.frame_times)) == (180, 240, 6)
    assert recording.frame_times[1] == 38_766 and recording.exposures is None
    everything = recording.events(0, 10**6)
    assert len(everything) == 50_000 and recording.time_range == (0, 193_827)
    t0, t1 = recording.frame_times[1:3]
    np.testing.assert_array_equal(recording.events(t0, t1).t, everything.slice_time(t0, t1).t)
    assert recording.frame(5).shape == (180, 240) and recording.ground_truth(0) is None


def test_frames_without_events(shared_data):
    recording = open_recording(shared_data / "gopro240")
    assert len(recording.frame_times) == 20 and not recording.has_events
    assert recording.frame(0).shape == (recording.height, recording.width, 3)


def test_a_still_image_beside_a_video_is_no_frame(tmp_path):
    images = [np.full((32, 48, 3), value, np.uint8) for value in (40, 120, 200)]
    write_video(tmp_path / "a.mp4", images, [0, 0.1, 0.2])
    save_images(tmp_path, frames(1), "cover{}.png")
    recording = open_recording(tmp_path)
    assert (len(recording.frame_times), recording.frame(0).shape[:2]) == (3, (32, 48))
    save_images(tmp_path, frames(2), "cover{}.png")
    (tmp_path / "times.txt").write_text("0\n0.1\n")
    with pytest.warns(UserWarning, match=r"2 images and a.mp4; the images are taken"):
        recording = open_recording(tmp_path)
    assert recording.frame(0).shape[:2] == (HEIGHT, WIDTH)
