"""Calibrations that other programs write: Kalibr's camchain and ROS's camera_info.

Kalibr writes ``cam0``, ``cam1``, ... with intrinsics and ``T_cn_cnm1``, which takes points of the
camera before to those of the camera itself. Which one sees events is told by the words event, dvs
or prophesee in its ``rostopic``, by its size, or by the added lines ``events: cam1`` and
``frames: cam0``.

A camera_info file (of camera_calibration or as a message is printed) has one camera. A rig is two
of them, ``events.yaml,frames.yaml``: rectification and projection matrices of a stereo calibration
say how the two stand to each other.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

Size = tuple[int, int]  # height, width, px
# Of a camera as the calibration files of this package have it; see flowfuse.data.calibration.
Plain = dict[str, Any]

_KALIBR_MODELS = {"radtan": "pinhole", "none": "pinhole", "equidistant": "fisheye"}
_ROS_MODELS = {
    "plumb_bob": "pinhole",
    "rational_polynomial": "pinhole",
    "equidistant": "fisheye",
    "fisheye": "fisheye",
}
_EVENT_WORDS = ("event", "dvs", "prophesee")
_CAMERA = re.compile(r"cam\d+")


def is_camchain(content: dict) -> bool:
    """Whether the content of a YAML file is Kalibr's."""
    return any(_CAMERA.fullmatch(str(key)) for key in content)


def is_camera_info(content: dict) -> bool:
    """Whether the content of a YAML file is a camera_info of ROS."""
    return "distortion_model" in content and bool(
        {"image_width", "width"} & content.keys() and {"camera_matrix", "K", "k"} & content.keys()
    )


def from_camchain(
    path: Path, content: dict, event_size: Size | None, frame_size: Size | None
) -> Plain:
    """Turn Kalibr's content into that of a calibration file of this package.

    Args:
        path: for messages.
        content: of the file.
        event_size, frame_size: where they are known; they help to tell the cameras apart.

    Raises:
        ValueError: naming the file, the key, what was found and what was expected.
    """
    names = sorted(
        (key for key in content if _CAMERA.fullmatch(str(key))), key=lambda n: int(n[3:])
    )
    cameras = {name: _kalibr_camera(path, name, content[name]) for name in names}
    if len(names) == 1:
        return {"events": cameras[names[0]]}
    events = _choose_events(path, content, cameras, event_size, frame_size)
    others = [name for name in names if name != events]
    frames = content.get("frames", others[0] if len(others) == 1 else None)
    if frames not in others:
        raise ValueError(
            f"{path}: which of {', '.join(others)} has the frames is open; add a line "
            f"'frames: {others[0]}'"
        )
    transform = _to_first(path, names, content, events) @ np.linalg.inv(
        _to_first(path, names, content, str(frames))
    )
    return {
        "events": cameras[events],
        "frames": cameras[frames],
        "R": transform[:3, :3].tolist(),
        "t": transform[:3, 3].tolist(),
    }


def _kalibr_camera(path: Path, name: str, camera: Any) -> Plain:
    needed = ("camera_model", "intrinsics", "resolution")
    missing = [key for key in needed if not isinstance(camera, dict) or key not in camera]
    if missing:
        raise ValueError(
            f"{path}: {name} must have the keys {', '.join(needed)}, missing {missing}"
        )
    model, distortion = camera["camera_model"], camera.get("distortion_model", "none")
    if model != "pinhole" or distortion not in _KALIBR_MODELS:
        raise ValueError(
            f"{path}: {name} is of the model {model}-{distortion}, expected pinhole with "
            f"{', '.join(_KALIBR_MODELS)}"
        )
    coefficients = camera.get("distortion_coeffs", []) if distortion != "none" else []
    return {
        "size": camera["resolution"],
        "K": camera["intrinsics"],
        "distortion": coefficients,
        "model": _KALIBR_MODELS[distortion],
    }


def _choose_events(
    path: Path,
    content: dict,
    cameras: dict[str, Plain],
    event_size: Size | None,
    frame_size: Size | None,
) -> str:
    stated = content.get("events")
    if stated is not None:
        if stated not in cameras:
            raise ValueError(f"{path}: events must be one of {', '.join(cameras)}, got {stated!r}")
        return stated
    topics = {name: str(content[name].get("rostopic", "")).lower() for name in cameras}
    found = [name for name, topic in topics.items() if any(word in topic for word in _EVENT_WORDS)]
    if len(found) != 1 and event_size is not None:
        found = [name for name in cameras if _has_size(cameras[name], event_size)]
    if len(found) != 1 and frame_size is not None and len(cameras) == 2:
        found = [name for name in cameras if not _has_size(cameras[name], frame_size)]
    if len(found) != 1:
        raise ValueError(
            f"{path}: which of {', '.join(cameras)} sees the events is open; add a line "
            f"'events: {next(iter(cameras))}'"
        )
    return found[0]


def _has_size(camera: Plain, size: Size) -> bool:
    return list(camera["size"]) == [size[1], size[0]]


def _to_first(path: Path, names: list[str], content: dict, camera: str) -> np.ndarray:
    """[4, 4]: takes points of the first camera to those of a camera."""
    transform = np.eye(4)
    for name in names[1 : names.index(camera) + 1]:
        step = np.array(content[name].get("T_cn_cnm1", np.nan), np.float64)
        if step.shape != (4, 4) or not np.isfinite(step).all():
            raise ValueError(
                f"{path}: {name}.T_cn_cnm1 must be a 4 x 4 matrix, got {step.tolist()}"
            )
        transform = step @ transform
    return transform


def from_camera_infos(paths: list[Path], contents: list[dict]) -> Plain:
    """Turn one camera_info, or two of events and frames, into the content of a calibration file.

    Raises:
        ValueError: naming the file, the key, what was found and what was expected.
    """
    cameras = [_ros_camera(*pair) for pair in zip(paths, contents, strict=True)]
    if len(cameras) == 1:
        return {"events": cameras[0]}
    stands = [_rectified(*pair) for pair in zip(paths, contents, strict=True)]
    (events_turn, events_shift), (frames_turn, frames_shift) = stands
    rotation = events_turn.T @ frames_turn
    shift = events_turn.T @ (events_shift - frames_shift)
    if np.array_equal(rotation, np.eye(3)) and not shift.any():
        warnings.warn(
            f"{paths[0]} and {paths[1]}: neither rectification nor projection says how the cameras "
            "stand to each other: they are taken as parallel, at one place",
            stacklevel=4,
        )
    return {
        "events": cameras[0],
        "frames": cameras[1],
        "R": rotation.tolist(),
        "t": shift.tolist(),
    }


def _ros_camera(path: Path, content: dict) -> Plain:
    model = content["distortion_model"] or "plumb_bob"
    if model not in _ROS_MODELS:
        raise ValueError(
            f"{path}: distortion_model must be one of {', '.join(_ROS_MODELS)}, got {model!r}"
        )
    matrix = _values(path, content, ("camera_matrix", "K", "k"), 9)
    distortion = _values(path, content, ("distortion_coefficients", "D", "d"), None)
    size = [
        _first_of(content, pair) for pair in (("image_width", "width"), ("image_height", "height"))
    ]
    return {
        "size": size,
        "K": matrix.reshape(3, 3).tolist(),
        "distortion": distortion.tolist() if distortion.any() else [],
        "model": _ROS_MODELS[model],
    }


def _rectified(path: Path, content: dict) -> tuple[np.ndarray, np.ndarray]:
    """The rotation to the rectified view, and the place of the first camera in it."""
    turn = _values(path, content, ("rectification_matrix", "R", "r"), 9, np.eye(3).ravel())
    projection = _values(path, content, ("projection_matrix", "P", "p"), 12, np.zeros(12))
    turn, projection = turn.reshape(3, 3), projection.reshape(3, 4)
    if not turn.any():
        turn = np.eye(3)  # as uncalibrated messages have it
    if not projection[0, 0] or not projection[1, 1]:
        return turn, np.zeros(3)
    x, y = projection[0, 3] / projection[0, 0], projection[1, 3] / projection[1, 1]
    return turn, np.array([x, y, 0.0])


def _first_of(content: dict, names: tuple[str, ...]) -> Any:
    return next((content[name] for name in names if name in content), None)


def _values(
    path: Path,
    content: dict,
    names: tuple[str, ...],
    count: int | None,
    default: np.ndarray | None = None,
) -> np.ndarray:
    """The numbers of a matrix, which is a list or has them as ``data``."""
    value = _first_of(content, names)
    if value is None and default is not None:
        return default
    value = value.get("data") if isinstance(value, dict) else value
    try:
        found = np.array(value, np.float64).ravel()
        if not np.isfinite(found).all() or (count is not None and len(found) != count):
            raise ValueError
    except (TypeError, ValueError):
        many = f"{count} " if count is not None else ""
        raise ValueError(
            f"{path}: {names[0]} must be {many}finite numbers, found {value!r:.80}"
        ) from None
    return found
