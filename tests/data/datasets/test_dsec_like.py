"""TUM-VIE and VECtor: event files like those of DSEC, read by the same reader."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from flowfuse.data.calibration import Calibration
from flowfuse.data.datasets.dsec.writer import write_raw_events
from flowfuse.data.datasets.tum_vie import find_calibration, letter, read_basalt
from flowfuse.data.opening import open_recording
from flowfuse.events import Events
from flowfuse.visualization import write_image

SIZES = {"tum-vie": (720, 1280), "vector": (480, 640)}


def make_events(kind: str) -> Events:
    height, width = SIZES[kind]
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 100_000, 2000))
    x, y = rng.integers(0, width, 2000), rng.integers(0, height, 2000)
    return Events(x, y, t, rng.integers(0, 2, 2000), height=height, width=width)


def basalt(turn: float = 0.0) -> dict:
    """Four fisheye cameras (radius = f angle); those of frames are turned about z, rad."""
    lens = {"fx": 500.0, "fy": 500.0, "cx": 511.5, "cy": 511.5} | dict.fromkeys(
        ("k1", "k2", "k3", "k4"), 0.0
    )
    wide = lens | {"fx": 1000.0, "fy": 1000.0, "cx": 639.5, "cy": 359.5}
    still = {"px": 0, "py": 0, "pz": 0, "qx": 0, "qy": 0, "qz": 0, "qw": 1}
    turned = still | {"qz": np.sin(turn / 2), "qw": np.cos(turn / 2)}
    return {
        "value0": {
            "T_imu_cam": [turned, turned, still, still],
            "intrinsics": [
                {"camera_type": "kb4", "intrinsics": i} for i in (lens, lens, wide, wide)
            ],
            "resolution": [[1024, 1024]] * 2 + [[1280, 720]] * 2,
        }
    }


@pytest.fixture
def tum_vie(tmp_path):
    path = tmp_path / "mocap-desk"
    (path / "left_images").mkdir(parents=True)
    write_raw_events(path / "mocap-desk-events_left.h5", make_events("tum-vie"), 0)
    for i in range(3):
        image = np.zeros((1024, 1024), np.uint8)
        image[500:524, 500:524] = 200
        write_image(path / "left_images" / f"{i:05d}.png", image)
    times = path / "left_images" / "image_timestamps_left.txt"
    times.write_text("# timestamps [us]\n10000.5\n60000.25\n90000\n")
    return path


def test_tum_vie_without_its_calibration_has_events_alone(tum_vie):
    with pytest.warns(UserWarning, match=r"no calibration \(camera-calibrationA.json"):
        recording = open_recording(tum_vie)
    assert (recording.height, recording.width) == (720, 1280) and not recording.has_frames
    found, expected = recording.events(20_000, 70_000), make_events("tum-vie")
    kept = (expected.t >= 20_000) & (expected.t < 70_000)
    for name in "xytp":
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name)[kept])


def test_tum_vie_in_one_view(tum_vie):
    (tum_vie.parent / "camera-calibrationA.json").write_text(json.dumps(basalt()))
    recording = open_recording(tum_vie)
    assert recording.frame_times.tolist() == [10_000, 60_000, 90_000]
    events, raw = recording.events(0, 100_000), make_events("tum-vie")
    x, y = raw.x - 639.5, raw.y - 359.5
    angle = np.hypot(x, y) / 1000
    x, y = (place * np.tan(angle) / angle for place in (x, y))  # without the lens
    inside = (np.abs(x) < 640) & (np.abs(y) < 360)
    assert 1000 < inside.sum() <= len(events) < 2000
    places = dict(zip(raw.t.tolist(), x + 639.5, strict=True))  # of the last event of each time
    found = {time: place for time, place in zip(events.t.tolist(), events.x, strict=True)}
    once = [time for time in found if (raw.t == time).sum() == 1]
    assert max(abs(found[time] - places[time]) for time in once) < 0.01
    frame = recording.frame(0)
    assert frame.shape == (720, 1280, 3)
    # Twice the focal length: the square of 24 px about the middle is 48 px wide.
    assert frame[359, 622:658].min() > 190 and frame[359, [604, 675]].max() < 10


def test_the_rotation_of_a_rig(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(basalt(np.pi / 2)))
    rig = read_basalt(path)
    assert isinstance(rig, Calibration)
    # A quarter turn about z: what the frame camera has to the right, the imu has below.
    np.testing.assert_allclose(rig.rotation @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    assert find_calibration(tmp_path) == path and letter(tmp_path / "slide") == "B"
    for text, message in (
        ("{}", "not a calibration of Basalt with 3 cameras .*value0"),
        (json.dumps(basalt()).replace("kb4", "ds"), "camera_type kb4 expected, found 'ds'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_basalt(path)


def test_tum_vie_names_what_is_wrong(tum_vie):
    (tum_vie / "calibration.json").write_text(json.dumps(basalt()))
    times = tum_vie / "left_images" / "image_timestamps_left.txt"
    for text, message in (
        ("1\n2\n", "2 times for 3 images"),
        ("1\n2\nx\n", "line 3: a time in microseconds expected, found 'x'"),
        ("1\n3\n2\n", "times must increase, found 2 us after 3 us"),
    ):
        times.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_recording(tum_vie)
    with pytest.raises(ValueError, match=r"holds sequences of TUM-VIE; .*mocap-desk"):
        open_recording(tum_vie.parent)


def test_vector(tmp_path):
    path = tmp_path / "desk-fast"
    path.mkdir()
    file = path / "desk_fast1.synced.left_event.hdf5"
    write_raw_events(file, make_events("vector"), 0)
    with h5py.File(file, "a") as content:
        del content["t_offset"]
        content["t_offset"] = [7_000_000]  # an array of one number
    for given in (path, file):
        recording = open_recording(given)
        assert (recording.height, recording.width) == (480, 640)
        assert len(recording.events(7_000_000, 7_100_000)) == 2000
    (path / "desk_fast1.synced.left_camera").mkdir()
    with pytest.warns(UserWarning, match="--frames desk_fast1.synced.left_camera"):
        open_recording(path)
    with pytest.raises(ValueError, match=r"holds sequences of VECtor; .*desk-fast"):
        open_recording(tmp_path)
