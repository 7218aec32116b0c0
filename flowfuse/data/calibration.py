"""Calibrated rigs: an event camera and a frame camera beside it, brought onto one pixel grid.

A calibration is a YAML file::

    events:                                  # the event camera
      size: [640, 480]                       # width, height, px
      K: [556.4, 556.1, 331.0, 250.8]        # fx, fy, cx, cy, or a 3 x 3 matrix
      distortion: [-0.09, 0.13, 0, 0, 0]     # OpenCV's order k1 k2 p1 p2 (k3 ...); may be left out
      model: pinhole                         # or fisheye (k1 k2 k3 k4); may be left out
    frames:                                  # the frame camera, likewise
      size: [1440, 1080]
      K: [1164.6, 1164.5, 713.5, 570.9]
    R: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]     # directions: x_events = R x_frames

    t: [0.045, 0, 0]                         # metres: X_events = R X_frames + t; may be left out

Without ``frames`` and ``R`` both come from one sensor, as of a DAVIS. Events go to undistorted,
fractional positions in the view of the event camera (its K, no distortion); frames are resampled
into that view by the homography of infinitely distant points. What is near is then off by (focal
length) x (distance of the cameras) / (depth) px. With ``t`` and the depth of the scene
(:mod:`flowfuse.data.depth`) frames are resampled for that depth instead.

Files of Kalibr and of ROS are read as well: :mod:`flowfuse.data.rig_files`.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from flowfuse.data.depth import Depth
from flowfuse.data.formats.base import EventFile, FrameSource
from flowfuse.data.remapping import RemappedEvents, RemappedFrames
from flowfuse.data.rig_files import (
    from_camchain,
    from_camera_infos,
    is_camchain,
    is_camera_info,
)

MODELS = {"pinhole": (4, 5, 8, 12, 14), "fisheye": (4,)}  # numbers of coefficients
LEAST_OVERLAP = 0.98  # of the event camera's view, below which the user is warned
_ROTATION_ERROR = 1e-3  # of R R^T against the identity: files round
_RAY_ERROR = 1e-4  # about 0.05 px, between a ray and what its image is undistorted to
_STEP_ERROR = 1e-9  # of a ray, at which undistortion stops
_MOST_STEPS = 30


@dataclass(frozen=True)
class Camera:
    """A camera's intrinsics.

    Attributes:
        height, width: px.
        matrix: [3, 3] float64, K.
        distortion: [N] float64, OpenCV's coefficients; N = 0: none.
        model: a key of MODELS.
    """

    height: int
    width: int
    matrix: np.ndarray
    distortion: np.ndarray
    model: str = "pinhole"

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] (x, y) to rays [N, 2], their directions at depth 1."""
        points: np.ndarray = np.asarray(pixels, np.float64).reshape(-1, 1, 2)
        if self.model == "fisheye":
            rays = cv2.fisheye.undistortPoints(points, self.matrix, self.distortion)
            return rays.reshape(-1, 2)
        rays = cv2.undistortPoints(points, self.matrix, self.distortion).reshape(-1, 2)
        # OpenCV stops after five steps, and how to ask for more differs between 4 and 5.
        focal, points = self.matrix[[0, 1], [0, 1]], points.reshape(-1, 2)
        for _ in range(_MOST_STEPS):
            with np.errstate(invalid="ignore", over="ignore"):
                step = (points - self._distort(rays)) / focal
                rays = rays + step
                if not (np.abs(step) > _STEP_ERROR).any():
                    break
        return rays

    def project(self, rays: np.ndarray) -> np.ndarray:
        """Rays [N, 2] to pixels [N, 2]; NaN where the distortion has no image of them."""
        rays = np.asarray(rays, np.float64)
        if self.model == "fisheye":
            points = rays.reshape(-1, 1, 2)
            pixels = cv2.fisheye.distortPoints(points, self.matrix, self.distortion)
            pixels = pixels.reshape(-1, 2)
        else:
            pixels = self._distort(rays)
        # Far outside of the view polynomials of distortion fold back into the image.
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(self.undistort(pixels) - rays).max(axis=1, initial=0)
            pixels[~(error < _RAY_ERROR * np.maximum(1, np.abs(rays).max(axis=1, initial=0)))] = (
                np.nan
            )
        return pixels

    def _distort(self, rays: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] of rays, by the pinhole model, wherever its polynomials lead."""
        if not len(rays):
            return np.empty((0, 2))
        points, none = np.concatenate((rays, np.ones((len(rays), 1))), axis=1), np.zeros(3)
        pixels = cv2.projectPoints(points, none, none, self.matrix, self.distortion)[0]
        return pixels.reshape(-1, 2)


@dataclass(frozen=True)
class Calibration:
    """A rig.

    Attributes:
        events, frames: the cameras.
        rotation: [3, 3], takes directions of the frame camera to those of the event camera.
        translation: [3] m, then takes points there; zero where it is unknown.
    """

    events: Camera
    frames: Camera
    rotation: np.ndarray
    translation: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def forward_map(self) -> np.ndarray:
        """[H, W, 2] float32: the undistorted (x, y) of each pixel of the event camera."""
        rays = self.events.undistort(_pixels(self.events))
        places = rays @ self.events.matrix[:2, :2].T + self.events.matrix[:2, 2]
        return places.reshape(self.events.height, self.events.width, 2).astype(np.float32)

    def rays(self) -> np.ndarray:
        """[H, W, 2] float64: the directions of the pixels of the event view, at depth 1."""
        rays = (_pixels(self.events) - self.events.matrix[:2, 2]) / np.diag(self.events.matrix)[:2]
        return rays.reshape(self.events.height, self.events.width, 2)

    def backward_map(self, depth: np.ndarray | None = None) -> np.ndarray:
        """Where each pixel of the event view lies in the frame.

        Args:
            depth: [H, W] m, at the pixels of the event view; not positive or not finite: infinite.
                None: all infinite.

        Returns:
            [H, W, 2] float32 (x, y); NaN: nowhere.
        """
        pixels = _pixels(self.events)
        homogeneous = np.concatenate((pixels, np.ones((len(pixels), 1))), axis=1)
        rays = homogeneous @ np.linalg.inv(self.events.matrix).T
        if depth is not None:
            # X_frames = R^T (Z r - t), up to scale.
            with np.errstate(divide="ignore", invalid="ignore"):
                near = np.where(np.isfinite(depth) & (depth > 0), 1 / depth, 0.0)
            rays = rays - near.reshape(-1, 1) * self.translation
        directions = rays @ self.rotation  # R^T r, for row vectors
        places = np.full_like(pixels, np.nan)
        in_front = directions[:, 2] > 1e-6
        places[in_front] = self.frames.project(directions[in_front, :2] / directions[in_front, 2:])
        return places.reshape(self.events.height, self.events.width, 2).astype(np.float32)

    def overlap(self) -> float:
        """The share of the event view that the frame camera sees."""
        x, y = np.moveaxis(self.backward_map(), 2, 0)
        with np.errstate(invalid="ignore"):
            seen = (x > -0.5) & (y > -0.5)
            seen &= (x < self.frames.width - 0.5) & (y < self.frames.height - 0.5)
        return float(seen.mean())


def calibration_files(path: str | os.PathLike) -> list[Path]:
    """The files of a calibration: one, or two of ROS with a comma between."""
    names = os.fspath(path).split(",")
    return [Path(path)] if Path(path).is_file() else [Path(name) for name in names]


def read_calibration(
    path: str | os.PathLike,
    event_size: tuple[int, int] | None = None,
    frame_size: tuple[int, int] | None = None,
) -> Calibration:
    """Read a calibration file; see the top of this module.

    Args:
        path: of a file, or of two with a comma between: camera_info of the events and the frames.
        event_size, frame_size: (height, width), px, where they are known; they help to tell the
            cameras of Kalibr apart.

    Raises:
        FileNotFoundError: there is none.
        ValueError: naming the file, the key, what was found and what was expected.
    """
    paths = calibration_files(path)
    contents = [_read_yaml(name) for name in paths]
    path, content = paths[0], contents[0]
    if all(is_camera_info(found) for found in contents) and len(paths) <= 2:
        content = from_camera_infos(paths, contents)
    elif len(paths) > 1:
        raise ValueError(
            f"{path}: two files with a comma between must be camera_info of ROS, of the events and "
            f"of the frames, found the keys {sorted(map(str, content))}"
        )
    elif is_camchain(content):
        content = from_camchain(path, content, event_size, frame_size)
    _check_keys(path, "", content, {"events"}, {"frames", "R", "t"})
    if ("frames" in content) != ("R" in content):
        raise ValueError(f"{path}: frames and R belong together, found {sorted(content)}")
    events = _read_camera(path, "events", content["events"])
    if "frames" not in content:
        return Calibration(events, events, np.eye(3))
    rotation = _numbers(path, "R", content["R"])
    if rotation.shape != (3, 3):
        raise ValueError(f"{path}: R must be a 3 x 3 matrix, got shape {list(rotation.shape)}")
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if off > _ROTATION_ERROR or np.linalg.det(rotation) < 0:
        raise ValueError(f"{path}: R must be a rotation; R R^T is off the identity by {off:.2g}")
    translation = _numbers(path, "t", content.get("t", [0, 0, 0]))
    if translation.shape != (3,):
        raise ValueError(f"{path}: t must be three numbers in m, got {content['t']!r:.60}")
    frames = _read_camera(path, "frames", content["frames"])
    return Calibration(events, frames, rotation, translation)


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such calibration file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a YAML file ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: keys events, frames and R expected, found {content!r:.60}")
    return content


def apply_calibration(
    calibration: Calibration,
    events: EventFile | None,
    frames: FrameSource | None,
    name: str,
    depth: str | None = None,
) -> tuple[EventFile | None, FrameSource | None]:
    """Bring events and frames onto the undistorted grid of the event camera.

    Args:
        calibration: the rig.
        events, frames: either may be None.
        name: of the calibration, for the warning when the frames see less than the events.
        depth: of the scene, see :mod:`flowfuse.data.depth`; None: infinite.

    Raises:
        ValueError: the depth says nothing, since the distance of the cameras is unknown.
    """
    if depth is not None and not calibration.translation.any():
        raise ValueError(
            f"{name}: depth was given, but no distance of the cameras (t); without it, depth "
            "changes nothing"
        )
    if events is not None:
        events = RemappedEvents(events, calibration.forward_map())
    if frames is not None:
        share = calibration.overlap()
        if share < LEAST_OVERLAP:
            warnings.warn(
                f"{name}: the fields of view differ, the frames show {100 * share:.0f} % of the "
                "event camera's; elsewhere their border goes on, and flow is from events alone",
                stacklevel=3,
            )
        size = (calibration.frames.height, calibration.frames.width)
        if depth is None:
            frames = RemappedFrames(frames, calibration.backward_map(), size)
        else:
            scene = Depth(calibration.rays(), depth)
            scene.check_count(len(frames.times))
            frames = RemappedFrames(
                frames,
                calibration.backward_map(scene.at(0) if len(frames.times) else None),
                size,
                None if scene.is_constant else lambda i: calibration.backward_map(scene.at(i)),
            )
    return events, frames


def _pixels(camera: Camera) -> np.ndarray:
    """[H W, 2] float64: (x, y) of every pixel, row by row."""
    x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return np.stack((x.ravel(), y.ravel()), axis=1).astype(np.float64)


def _read_camera(path: Path, name: str, content: Any) -> Camera:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {name} must have the keys size and K, found {content!r:.60}")
    _check_keys(path, f"{name}.", content, {"size", "K"}, {"distortion", "model"})
    size = content["size"]
    whole = isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)
    if not whole or min(size) < 2:
        raise ValueError(f"{path}: {name}.size must be [width, height] in px, found {size!r:.60}")
    matrix = _numbers(path, f"{name}.K", content["K"])
    if matrix.shape == (4,):
        fx, fy, cx, cy = matrix
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    good = matrix.shape == (3, 3) and matrix[0, 0] > 0 and matrix[1, 1] > 0
    if not good or matrix[0, 1] != 0 or matrix[1, 0] != 0 or matrix[2].tolist() != [0, 0, 1]:
        raise ValueError(
            f"{path}: {name}.K must be [fx, fy, cx, cy] or [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] "
            f"with fx, fy > 0, found {content['K']!r:.80}"
        )
    model = content.get("model", "pinhole")
    if model not in MODELS:
        raise ValueError(f"{path}: {name}.model must be one of {list(MODELS)}, found {model!r:.40}")
    distortion = _numbers(path, f"{name}.distortion", content.get("distortion") or [])
    if not len(distortion):
        distortion = np.zeros(4)
    if distortion.ndim != 1 or len(distortion) not in MODELS[model]:
        counts = ", ".join(map(str, MODELS[model]))
        raise ValueError(
            f"{path}: {name}.distortion of a {model} camera has {counts} or no coefficients, got "
            f"shape {list(distortion.shape)}"
        )
    return Camera(size[1], size[0], matrix, distortion, model)


def _check_keys(path: Path, prefix: str, content: dict, needed: set, optional: set) -> None:
    missing, unknown = needed - set(content), set(content) - needed - optional
    for kind, names in (("missing", missing), ("unknown", unknown)):
        if names:
            listed = ", ".join(sorted(f"{prefix}{name}" for name in names))
            known = ", ".join(sorted(needed | optional))
            raise ValueError(f"{path}: {kind} key {listed}; expected {known}")


def _numbers(path: Path, name: str, value: Any) -> np.ndarray:
    try:
        array = np.array(value, np.float64)
        if not np.isfinite(array).all():
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {name} must be finite numbers, found {value!r:.80}") from None
    return array
