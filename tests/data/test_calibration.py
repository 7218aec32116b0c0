"""Calibrated rigs: known points seen by two synthetic cameras, and an error for each wrong key."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml

from flowfuse.cli.infer import main
from flowfuse.data.calibration import Calibration, Camera, read_calibration
from flowfuse.data.formats.base import FrameSource
from flowfuse.data.formats.event_writer import write_events
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.remapping import RemappedFrames, invert_map, smooth_to_shrink
from flowfuse.events import Events

NONE = np.zeros(4)


def camera(width, height, focal, distortion=NONE, model="pinhole"):
    matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return Camera(height, width, matrix, np.asarray(distortion, float), model)


def rotation(degrees, axis):
    return cv2.Rodrigues(np.radians(degrees) * np.asarray(axis, float))[0]


LENS = [-0.25, 0.08, 0.001, -0.002]
RIG = Calibration(
    camera(64, 48, 60.0, LENS),
    camera(160, 120, 130.0, [-0.1, 0.02, 0, 0, 0]),
    rotation(3, (0, 1, 0)),
)


def test_points_at_infinity_meet(tmp_path):
    """A far point: where its event goes is where the frame, resampled, shows it."""
    rng = np.random.default_rng(0)
    points = np.concatenate((rng.uniform(-0.3, 0.3, (50, 2)), np.ones((50, 1))), axis=1)
    to_frames = RIG.rotation.T
    seen, shown = (
        cv2.projectPoints(p, np.zeros(3), np.zeros(3), c.matrix, c.distortion)[0][:, 0]
        for p, c in ((points, RIG.events), (points @ to_frames.T, RIG.frames))
    )
    # By the definition of the view: K, without distortion.
    ideal = points @ RIG.events.matrix.T
    forward, backward = RIG.forward_map(), RIG.backward_map()

    def look_up(table, places):
        x, y = (places[:, i].astype(np.float32).reshape(1, -1) for i in (0, 1))
        return cv2.remap(table, x, y, cv2.INTER_LINEAR)[0]

    # Bilinear look-ups at steps of 1/32 px in maps that bend a little.
    np.testing.assert_allclose(look_up(forward, seen), ideal[:, :2], atol=0.06)
    np.testing.assert_allclose(look_up(backward, ideal[:, :2]), shown, atol=0.12)


def test_a_rotation_by_hand():
    """No distortion, one focal length: a turn by a about y moves the centre by f tan a."""
    turn = rotation(5, (0, 1, 0))  # x_events = R x_frames: the frame camera looks to the left
    rig = Calibration(camera(65, 49, 60.0), camera(65, 49, 60.0), turn)
    x, y = rig.backward_map()[24, 32]
    # The event camera's axis in the frame camera: R^T (0, 0, 1) = (-sin a, 0, cos a).
    centre = np.array([32 - 32.5, 24 - 24.5, 60.0]) @ turn
    assert (x, y) == pytest.approx((60 * centre[0] / centre[2] + 32.5, 24.5 - 0.5), abs=0.01)
    assert x == pytest.approx(32 - 60 * np.tan(np.radians(5)), abs=0.05)
    np.testing.assert_allclose(rig.forward_map()[3, 4], [4, 3], atol=1e-4)


def test_a_fisheye_undistorts_what_it_distorts():
    fish = camera(64, 48, 40.0, [0.05, -0.01, 0.002, 0], "fisheye")
    rays = np.random.default_rng(0).uniform(-0.6, 0.6, (20, 2))
    np.testing.assert_allclose(fish.undistort(fish.project(rays)), rays, atol=1e-6)
    radius = np.hypot(*rays[0])
    angle = np.arctan(radius)
    bent = angle * (1 + 0.05 * angle**2 - 0.01 * angle**4 + 0.002 * angle**6)
    expected = 40 * rays[0] / radius * bent + (32, 24)
    np.testing.assert_allclose(fish.project(rays[:1])[0], expected, atol=1e-6)


def test_what_the_lens_folds_back_is_nowhere():
    wide = camera(64, 48, 20.0, [-0.3, 0, 0, 0])
    assert np.isnan(wide.project(np.array([[3.0, 0.0]]))).all()
    np.testing.assert_allclose(wide.project(np.array([[0.1, 0.0]]))[0], [32 + 20 * 0.0997, 24])


def test_an_inverted_map_leads_back():
    forward = camera(64, 48, 60.0, LENS)
    forward = Calibration(forward, forward, np.eye(3)).forward_map()
    backward = invert_map(forward)
    x, y = np.moveaxis(np.nan_to_num(backward, nan=-99), 2, 0)
    again = cv2.remap(forward, x, y, cv2.INTER_LINEAR, borderValue=np.nan)
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(48)), axis=2)
    known = np.isfinite(again).all(axis=2)
    assert known.mean() > 0.9
    np.testing.assert_allclose(again[known], grid[known], atol=0.05)


def describe(one):
    matrix = one.matrix
    return {
        "size": [one.width, one.height],
        "K": [float(v) for v in (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])],
        "distortion": one.distortion.tolist(),
    }


def write_rig(path, rig=RIG, **changes):
    content = {"events": describe(rig.events), "frames": describe(rig.frames)}
    content["R"] = rig.rotation.tolist()
    content.update(changes)
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


def test_recordings_of_a_rig_share_one_grid(tmp_path):
    path = write_rig(tmp_path / "rig.yaml")
    found = read_calibration(path)
    np.testing.assert_allclose(found.events.matrix, RIG.events.matrix)
    np.testing.assert_allclose(found.rotation, RIG.rotation)
    events = Events([32, 0, 63], [24, 0, 47], [10, 20, 30], [1, 0, 1], height=48, width=64)
    frames = np.random.default_rng(0).integers(0, 256, (2, 120, 160)).astype(np.uint8)
    write_events(tmp_path / "events.h5", events)
    write_recording(tmp_path / "frames", None, frames, [0, 1000])
    paths = {"events": tmp_path / "events.h5", "frames": tmp_path / "frames" / "images.txt"}
    with pytest.raises(ValueError, match="events and frames must share one pixel grid"):
        open_recording(**paths)
    recording = open_recording(**paths, calibration=path)
    assert (recording.height, recording.width) == (48, 64)
    window = recording.events(0, 100)
    # The barrel lens shrinks: undistorted corners leave the view.
    assert len(window) == 1 and window.x.dtype == np.float32
    np.testing.assert_allclose((window.x[0], window.y[0]), (32, 24), atol=0.3)
    backward = RIG.backward_map()
    # About 130 / 60 px of a frame become one.
    smooth = smooth_to_shrink(frames[1], np.linalg.norm(backward[24, 33] - backward[24, 32]))
    expected = cv2.remap(smooth, backward[..., 0], backward[..., 1], cv2.INTER_LINEAR)
    np.testing.assert_allclose(recording.frame(1).astype(int), expected, atol=1)
    wrong = write_rig(tmp_path / "wrong.yaml", events=describe(camera(32, 48, 60.0)))
    with pytest.raises(ValueError, match="calibration of the event camera is of 32 x 48 px"):
        open_recording(**paths, calibration=wrong)
    wrong = write_rig(tmp_path / "wrong.yaml", frames=describe(camera(80, 60, 65.0)))
    with pytest.raises(ValueError, match=r"is 160 x 120 px, but the calibration .* 80 x 60 px"):
        open_recording(**paths, calibration=wrong)


def test_frames_are_smoothed_before_they_are_made_smaller():
    """Columns of 0 and 255, every second of which is looked up: 0 without smoothing."""
    stripes = np.tile(np.array([0, 255], np.uint8), (40, 20))
    y, x = np.mgrid[:20, :20].astype(np.float32)
    same = RemappedFrames(Still(stripes), np.stack((x, y), axis=2)).read(0)
    np.testing.assert_array_equal(same, stripes[:20, :20])
    half = RemappedFrames(Still(stripes), 2 * np.stack((x, y), axis=2)).read(0)
    # One pixel in two: a Gaussian of 0.5 px, whose weights are 0.106, 0.787, 0.106.
    assert half[5:15, 5:15].min() == half[5:15, 5:15].max() == pytest.approx(255 * 0.213, abs=1.5)


class Still(FrameSource):
    times = np.array([0])
    files = ()

    def __init__(self, image):
        self.image = image

    def read(self, index):
        return self.image

    def name(self, index):
        return "still"


def test_a_narrow_frame_camera_is_told(tmp_path):
    rig = Calibration(camera(64, 48, 60.0), camera(64, 48, 120.0), np.eye(3))
    assert rig.overlap() == pytest.approx(0.25, abs=0.03)
    path = write_rig(tmp_path / "rig.yaml", rig)
    write_recording(tmp_path / "r", None, np.zeros((1, 48, 64), np.uint8), [0])
    with pytest.warns(UserWarning, match=r"fields of view differ, the frames show 2\d % of"):
        open_recording(tmp_path / "r", calibration=path)


def test_one_sensor_has_one_calibration(tmp_path):
    path = write_rig(tmp_path / "davis.yaml", frames=None, R=None)
    rig = read_calibration(path)
    assert rig.frames is rig.events and (rig.rotation == np.eye(3)).all()


def test_undistorted_events_are_not_undistorted_again(tmp_path):
    path = write_rig(tmp_path / "davis.yaml", frames=None, R=None)
    events = Events([32.5], [24.0], [10], [1], height=48, width=64)
    write_events(tmp_path / "events.h5", events)
    recording = open_recording(tmp_path / "events.h5", calibration=path)
    with pytest.raises(ValueError, match="seem to be undistorted already"):
        recording.events(0, 100)


GOOD = describe(camera(64, 48, 60.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": None}, "missing key events; expected R, events, frames"),
        ({"extra": 1}, "unknown key extra"),
        ({"R": None}, "frames and R belong together"),
        ({"R": [1, 2, 3]}, r"R must be a 3 x 3 matrix, got shape \[3\]"),
        ({"R": (2 * np.eye(3)).tolist()}, r"R must be a rotation; R R\^T is off the identity by 3"),
        ({"R": np.diag([1.0, 1, -1]).tolist()}, "R must be a rotation"),
        ({"events": [1]}, "events must have the keys size and K, found"),
        ({"events": {**GOOD, "K": [1, 2, 3]}}, r"events.K must be \[fx, fy, cx, cy\] or"),
        ({"events": {**GOOD, "K": [0, 2, 3, 4]}}, "fx, fy > 0"),
        ({"events": {**GOOD, "K": [[9, 1, 3], [0, 9, 4], [0, 0, 1]]}}, r"\[\[fx, 0, cx\]"),
        ({"events": {**GOOD, "K": "x"}}, "events.K must be finite numbers, found 'x'"),
        ({"events": {**GOOD, "size": [64.5, 3]}}, r"events.size must be \[width, height\] in px"),
        ({"events": {**GOOD, "distortion": [1, 2]}}, "4, 5, 8, 12, 14 or no coefficients, got"),
        ({"frames": {**GOOD, "model": "omni"}}, "frames.model must be one of"),
        ({"frames": {"size": [1, 2]}}, "missing key frames.K"),
    ],
)
def test_faults_of_calibrations(tmp_path, changes, message):
    path = write_rig(tmp_path / "rig.yaml", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_no_calibration(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such calibration file"):
        read_calibration(tmp_path / "none.yaml")
    path = tmp_path / "rig.yaml"
    for text, message in [("a: [", "not a YAML file"), ("", "keys events, frames and R expected")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_calibration(path)


def test_the_command_takes_a_calibration(tmp_path, capsys):
    events = Events([32] * 50, [24] * 50, range(0, 1000, 20), [1] * 50, height=48, width=64)
    frames = np.random.default_rng(0).integers(0, 256, (2, 120, 160)).astype(np.uint8)
    write_events(tmp_path / "events.h5", events)
    write_recording(tmp_path / "frames", None, frames, [0, 1000])
    argv = ["--events", tmp_path / "events.h5", "--frames", tmp_path / "frames" / "images.txt"]
    argv += ["--calibration", write_rig(tmp_path / "rig.yaml"), "-o", tmp_path / "out"]
    assert main([str(part) for part in [*argv, "--device", "cpu", "--no-video"]]) == 0
    assert "1 pair of 64 x 48 px: 1 estimated" in capsys.readouterr().out
