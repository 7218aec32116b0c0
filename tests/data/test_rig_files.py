"""Calibrations of Kalibr and of ROS."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from flowfuse.data.calibration import calibration_files, read_calibration
from flowfuse.data.formats.event_writer import write_events
from flowfuse.data.opening import open_recording
from flowfuse.events import Events

ANGLE = 0.03
TURN = np.array(
    [[np.cos(ANGLE), 0, np.sin(ANGLE)], [0, 1, 0], [-np.sin(ANGLE), 0, np.cos(ANGLE)]]
)  # takes the frame camera's directions to the event camera's
SHIFT = np.array([0.05, -0.01, 0.002])


def camchain(**changes):
    """cam0 has the frames, cam1 the events, as Kalibr writes them."""
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = TURN, SHIFT
    cam0 = {
        "cam_overlaps": [1],
        "camera_model": "pinhole",
        "distortion_coeffs": [-0.1, 0.02, 0.001, -0.0005],
        "distortion_model": "radtan",
        "intrinsics": [30.0, 31.0, 15.5, 11.5],
        "resolution": [32, 24],
        "rostopic": "/flir/image_raw",
    }
    cam1 = {
        "T_cn_cnm1": transform.tolist(),
        "camera_model": "pinhole",
        "distortion_coeffs": [0.01, 0.002, 0.0, 0.0],
        "distortion_model": "equidistant",
        "intrinsics": [20.0, 20.0, 7.5, 5.5],
        "resolution": [16, 12],
        "rostopic": "/prophesee/left/events",
    }
    return {"cam0": cam0, "cam1": {**cam1, **changes.pop("cam1", {})}, **changes}


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_kalibr(tmp_path):
    rig = read_calibration(write(tmp_path / "camchain.yaml", camchain()))
    assert (rig.events.height, rig.events.width, rig.events.model) == (12, 16, "fisheye")
    assert (rig.frames.height, rig.frames.width, rig.frames.model) == (24, 32, "pinhole")
    np.testing.assert_allclose(rig.rotation, TURN)
    np.testing.assert_allclose(rig.translation, SHIFT)
    np.testing.assert_allclose(rig.frames.distortion, [-0.1, 0.02, 0.001, -0.0005])
    assert rig.events.matrix[0].tolist() == [20, 0, 7.5]


def test_kalibr_with_the_events_first_and_three_cameras(tmp_path):
    content = camchain(events="cam0", frames="cam1")
    rig = read_calibration(write(tmp_path / "a.yaml", content))
    np.testing.assert_allclose(rig.rotation, TURN.T)
    np.testing.assert_allclose(rig.translation, -TURN.T @ SHIFT)
    content = camchain()
    content["cam2"] = {**content["cam1"], "rostopic": "/other"}
    with pytest.raises(ValueError, match="which of cam0, cam2 has the frames is open; add a line"):
        read_calibration(write(tmp_path / "b.yaml", content))
    content |= {"events": "cam2", "frames": "cam0"}
    rig = read_calibration(write(tmp_path / "b.yaml", content))
    np.testing.assert_allclose(rig.rotation, TURN @ TURN)
    np.testing.assert_allclose(rig.translation, TURN @ SHIFT + SHIFT)


def test_cameras_of_kalibr_are_told_apart_by_their_sizes(tmp_path):
    path = write(tmp_path / "camchain.yaml", camchain(cam1={"rostopic": "/right"}))
    with pytest.raises(ValueError, match="which of cam0, cam1 sees the events is open; add a line"):
        read_calibration(path)
    assert read_calibration(path, (12, 16)).events.width == 16
    assert read_calibration(path, None, (24, 32)).events.width == 16
    write_events(tmp_path / "events.h5", Events([3], [4], [5], [1], height=12, width=16))
    recording = open_recording(tmp_path / "events.h5", calibration=path)
    assert (recording.height, recording.width) == (12, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            camchain(cam1={"camera_model": "omni"}),
            "cam1 is of the model omni-equidistant, expected",
        ),
        (camchain(cam1={"T_cn_cnm1": [1]}), "cam1.T_cn_cnm1 must be a 4 x 4 matrix, got"),
        (camchain(events="cam7"), "events must be one of cam0, cam1, got 'cam7'"),
        ({"cam0": {"camera_model": "pinhole"}}, r"missing \['intrinsics', 'resolution'\]"),
    ],
)
def test_faults_of_kalibr(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_calibration(write(tmp_path / "camchain.yaml", content))


def camera_info(size, focal, turn=None, shift=0.0):
    width, height = size
    matrix = [focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1]
    projection = [focal, 0, width / 2, focal * shift, 0, focal, height / 2, 0, 0, 0, 1, 0]
    return {
        "image_width": width,
        "image_height": height,
        "camera_name": "camera",
        "camera_matrix": {"rows": 3, "cols": 3, "data": matrix},
        "distortion_model": "plumb_bob",
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": [-0.1, 0, 0, 0, 0]},
        "rectification_matrix": {"data": (np.eye(3) if turn is None else turn).ravel().tolist()},
        "projection_matrix": {"rows": 3, "cols": 4, "data": projection},
    }


def test_camera_info_of_one_sensor(tmp_path):
    rig = read_calibration(write(tmp_path / "info.yaml", camera_info((16, 12), 20.0)))
    assert rig.frames is rig.events and rig.events.matrix[0].tolist() == [20, 0, 8]
    assert rig.events.distortion.tolist() == [-0.1, 0, 0, 0, 0]
    message = {"width": 16, "height": 12, "distortion_model": "equidistant"}
    message |= {"k": [20, 0, 8, 0, 20, 6, 0, 0, 1], "d": [0.1, 0, 0, 0], "r": [0] * 9}
    rig = read_calibration(write(tmp_path / "message.yaml", message))
    assert rig.events.model == "fisheye" and rig.events.height == 12


def test_two_camera_infos_are_a_rig(tmp_path):
    events = write(tmp_path / "e.yaml", camera_info((16, 12), 20.0))
    frames = write(tmp_path / "f.yaml", camera_info((32, 24), 40.0, TURN, -0.08))
    rig = read_calibration(f"{events},{frames}")
    np.testing.assert_allclose(rig.rotation, TURN)
    # The first camera is 0.08 m to the left of the second in its view.
    np.testing.assert_allclose(rig.translation, [0.08, 0, 0])
    assert calibration_files(f"{events},{frames}") == [events, frames]
    with pytest.warns(UserWarning, match="they are taken as parallel, at one place"):
        read_calibration(f"{events},{write(frames, camera_info((32, 24), 40.0))}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distortion_model": "thin_prism"}, "distortion_model must be one of plumb_bob"),
        ({"camera_matrix": {"data": [1, 2]}}, "camera_matrix must be 9 finite numbers, found"),
    ],
)
def test_faults_of_camera_info(tmp_path, change, message):
    content = camera_info((16, 12), 20.0) | change
    with pytest.raises(ValueError, match=message):
        read_calibration(write(tmp_path / "info.yaml", content))
    other = write(tmp_path / "chain.yaml", camchain())
    with pytest.raises(ValueError, match="must be camera_info of ROS, of the events and of the"):
        read_calibration(f"{other},{other}")
