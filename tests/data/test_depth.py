"""Depth of the scene, and frames aligned by it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flowfuse.data.calibration import read_calibration
from flowfuse.data.depth import Depth
from flowfuse.data.opening import open_recording

HEIGHT, WIDTH = 12, 16
RIG = """\
events: {size: [16, 12], K: [20.0, 20.0, 7.5, 5.5]}
frames: {size: [32, 24], K: [40.0, 40.0, 15.5, 11.5]}
R: [[1, 0, 0], [0, 0.9998, -0.02], [0, 0.02, 0.9998]]
t: [0.1, 0.02, -0.01]
"""
NORMAL, DISTANCE = np.array([0.1, 0.2, 1.0]), 1.5


@pytest.fixture
def rig(tmp_path):
    (tmp_path / "rig.yaml").write_text(RIG)
    return read_calibration(tmp_path / "rig.yaml")


def seen_by_the_frames(rig, depth):
    """Pixels in the frame of the points that the event view has at a depth, one by one."""
    expected = np.empty((HEIGHT, WIDTH, 2))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            ray = np.array([(column - 7.5) / 20, (row - 5.5) / 20, 1.0])
            point = rig.rotation.T @ (depth[row, column] * ray - rig.translation)
            expected[row, column] = 40 * point[:2] / point[2] + (15.5, 11.5)
    return expected


def test_a_point_of_the_scene_lands_where_the_frame_camera_sees_it(rig):
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 5, (HEIGHT, WIDTH))
    np.testing.assert_allclose(rig.backward_map(depth), seen_by_the_frames(rig, depth), atol=1e-3)
    far = np.full((HEIGHT, WIDTH), 1e9)
    np.testing.assert_allclose(rig.backward_map(far), rig.backward_map(), atol=1e-4)
    unknown = np.full((HEIGHT, WIDTH), np.nan)
    unknown[0] = -1
    unknown[1] = 0
    np.testing.assert_array_equal(rig.backward_map(unknown), rig.backward_map())


def test_numbers_and_planes(rig):
    rays = rig.rays()
    assert rays[0, 0].tolist() == [-7.5 / 20, -5.5 / 20]
    depth = Depth(rays, "2.5")
    assert depth.is_constant and (depth.at(3) == 2.5).all() and (Depth(rays, "2m").at(0) == 2).all()
    plane = Depth(rays, "plane:0.1,0.2,1,1.5").at(0)
    points = plane[..., None] * np.concatenate((rays, np.ones((HEIGHT, WIDTH, 1))), axis=2)
    np.testing.assert_allclose(points @ NORMAL, DISTANCE)


def test_maps_of_frames(tmp_path, rig):
    rays = rig.rays()
    maps = np.stack([np.full((HEIGHT, WIDTH), depth, np.float32) for depth in (1.0, 2.5)])
    np.save(tmp_path / "all.npy", maps)
    np.save(tmp_path / "one.npy", maps[1])
    assert Depth(rays, str(tmp_path / "one.npy")).is_constant
    depth = Depth(rays, str(tmp_path / "all.npy"))
    assert not depth.is_constant and (depth.at(1) == 2.5).all()
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "000000.npy", maps[0])
    cv2.imwrite(str(tmp_path / "maps" / "000001.png"), (maps[1] * 1000).astype(np.uint16))
    depth = Depth(rays, str(tmp_path / "maps"))
    assert (depth.at(0) == 1).all() and (depth.at(1) == 2.5).all()
    depth.check_count(2)
    with pytest.raises(ValueError, match="maps: 2 depth maps for 3 frames"):
        depth.check_count(3)


def test_faults_of_depth(tmp_path, rig):
    rays = rig.rays()
    np.save(tmp_path / "small.npy", np.ones((3, 4)))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "none").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.ones((HEIGHT, WIDTH), np.uint8))
    for text, message in [
        ("0", "depth must be more than 0 m, got 0"),
        ("nan", "depth must be more than 0 m"),
        ("plane:1,2", "expected plane:NX,NY,NZ,D, four numbers"),
        ("plane:0,0,0,1", "expected plane"),
        ("far", "expected metres, plane:NX,NY,NZ,D, or a file or folder of maps"),
        (str(tmp_path / "small.npy"), r"numbers of shape \[12, 16\] or \[F, 12, 16\], got float64"),
        (str(tmp_path / "text.npy"), "not a readable .npy"),
        (str(tmp_path / "none"), "no depth maps"),
        (str(tmp_path / "a.png"), "16 bits in millimetres expected, found uint8"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Depth(rays, text)


def test_a_recording_is_aligned_by_depth(tmp_path):
    """A ramp of gray over the frame tells where each pixel of the event view was taken from."""
    (tmp_path / "rig.yaml").write_text(RIG)
    ramp = np.tile(np.arange(32, dtype=np.uint8) * 8, (24, 1))
    (tmp_path / "images").mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), ramp)
    (tmp_path / "timestamps.txt").write_text("0\n0.1\n")
    maps = np.stack([np.full((HEIGHT, WIDTH), depth) for depth in (1.0, 4.0)])
    np.save(tmp_path / "maps.npy", maps)
    rig = read_calibration(tmp_path / "rig.yaml")
    given = {"calibration": tmp_path / "rig.yaml", "depth": str(tmp_path / "maps.npy")}
    recording = open_recording(tmp_path, **given)
    for index in (0, 1, 0):
        column = np.clip(seen_by_the_frames(rig, maps[index])[..., 0], 0, 31)
        assert np.abs(recording.frame(index) / 8 - column).max() < 0.3  # smoothed at the border
    np.save(tmp_path / "maps.npy", maps[:1])
    with pytest.raises(ValueError, match="1 depth maps for 2 frames"):
        open_recording(tmp_path, **given)
    (tmp_path / "rig.yaml").write_text(RIG.rpartition("t:")[0])
    with pytest.raises(ValueError, match="no distance of the cameras"):
        open_recording(tmp_path, **given)
