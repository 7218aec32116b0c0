"""TUM-VIE (Klenk et al., IROS 2021): events of 1280 x 720 px beside frames of 1024 x 1024 px.

A sequence lies at ROOT/SEQ, its calibration in it or beside it::

    SEQ-events_left.h5                     events/{x, y, t, p} with ms_to_idx, as DSEC has them
    left_images/00000.jpg
               /image_timestamps_left.txt  microseconds, one per image
    camera-calibration.json                or calibration.json, ../camera-calibrationA.json,
                                           ../camera-calibrationB.json, of Basalt

With a calibration, frames are brought into the view of the left event camera and both are
undistorted, as two cameras of :mod:`flowfuse.data.calibration`. There is no ground-truth flow.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flowfuse.data.calibration import Calibration, Camera, apply_calibration
from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.base import FrameSource
from flowfuse.data.formats.frames import read_time_column
from flowfuse.data.formats.images import images_in_order
from flowfuse.data.registry import open_event_file

SIZE = 720, 1280  # height and width of the event cameras, px
FRAMES, EVENTS = 0, 2  # the left cameras of each kind in the calibration
_IMAGES = Path("left_images")
_TIMES = _IMAGES / "image_timestamps_left.txt"
# Recorded with calibration A; the others with B.
_WITH_A = ("loop-floor", "mocap-desk", "skate-easy")


class TumVieDataSet(DataSet):
    """Sequences of TUM-VIE."""

    name = "TUM-VIE"

    def matches(self, path: Path) -> bool:
        return (path / _TIMES).is_file() and find_events(path) is not None

    def open(self, path: Path) -> FileRecording:
        events = find_events(path)
        if events is None:
            raise FileNotFoundError(f"{path}: no *events_left.h5 of TUM-VIE there")
        event_file = open_event_file(events)
        found = find_calibration(path)
        frames: FrameSource | None = None
        if found is None:
            warnings.warn(
                f"{path}: no calibration (camera-calibration{letter(path)}.json, in the folder or "
                "above it): the events alone are read, at their raw pixels",
                stacklevel=3,
            )
        else:
            times = read_time_column(path / _TIMES, "microseconds", header=True)
            frames = images_in_order(path / _IMAGES, times, path / _TIMES)
            event_file, frames = apply_calibration(  # type: ignore[assignment]
                read_basalt(found), event_file, frames, str(found)
            )
        return FileRecording(path, event_file, frames, stated_size=("TUM-VIE", SIZE))

    def sequences(self, path: Path) -> list[str]:
        return sorted(times.parent.parent.name for times in path.glob(f"*/{_TIMES}"))


DATASET = TumVieDataSet()


def find_events(path: Path) -> Path | None:
    """The events of the left camera."""
    found = sorted(path.glob("*events_left.h5")) if path.is_dir() else []
    return found[0] if found else None


def letter(path: Path) -> str:
    """Which of the two calibrations of the data set a sequence has."""
    return "A" if path.resolve().name.startswith(_WITH_A) else "B"


def find_calibration(path: Path) -> Path | None:
    """The calibration of a sequence, in its folder or above it."""
    names = ("calibration.json", "camera-calibration.json")
    shared = f"camera-calibration{letter(path)}.json"
    places = [*(path / name for name in (*names, shared)), path.resolve().parent / shared]
    return next((place for place in places if place.is_file()), None)


def read_basalt(path: Path) -> Calibration:
    """Read the left cameras of a calibration of Basalt, kannala-brandt lenses ("kb4").

    Raises:
        ValueError: naming what is missing, or another model of lenses.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))["value0"]
        cameras = [_camera(path, value, index) for index in (EVENTS, FRAMES)]
        turns = [_turn(value["T_imu_cam"][index]) for index in (EVENTS, FRAMES)]
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path}: not a calibration of Basalt with {EVENTS + 1} cameras ({error!r})"
        ) from None
    # x_imu = R x_camera: from the frame camera by way of the imu.
    return Calibration(cameras[0], cameras[1], turns[0].T @ turns[1])


def _camera(path: Path, value: dict[str, Any], index: int) -> Camera:
    entry = value["intrinsics"][index]
    if entry["camera_type"] != "kb4":
        raise ValueError(f"{path}: camera_type kb4 expected, found {entry['camera_type']!r}")
    numbers = entry["intrinsics"]
    fx, fy, cx, cy, *lens = (float(numbers[k]) for k in "fx fy cx cy k1 k2 k3 k4".split())
    width, height = (int(side) for side in value["resolution"][index])
    if (
        min(width, height) < 1
        or not min(fx, fy) > 0
        or not np.isfinite([fx, fy, cx, cy, *lens]).all()
    ):
        raise ValueError(f"{path}: camera {index}: positive sizes and focal lengths expected")
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    return Camera(height, width, matrix, np.array(lens), "fisheye")


def _turn(pose: dict[str, float]) -> np.ndarray:
    """The rotation [3, 3] of a pose with a unit quaternion."""
    axis, real = np.array([pose["qx"], pose["qy"], pose["qz"]], np.float64), float(pose["qw"])
    length = float(np.linalg.norm(axis))
    angle = 2 * np.arctan2(length, real)
    return cv2.Rodrigues(axis / length * angle if length > 0 else np.zeros(3))[0]
