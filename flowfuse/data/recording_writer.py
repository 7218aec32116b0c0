"""Writing plain recordings."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from flowfuse.data.formats.event_writer import write_events
from flowfuse.events import Events
from flowfuse.io.atomic import atomic_directory
from flowfuse.io.flow import tau_directory, write_flow

_AFTER_IHDR = 33  # bytes: the signature of a PNG, and its first chunk


def _all_bits(channels: int) -> bytes:
    """The chunk sBIT of a PNG that says that all 16 bits are used: nothing is to be guessed."""
    content = b"sBIT" + bytes([16] * channels)
    return struct.pack(">I", channels) + content + struct.pack(">I", zlib.crc32(content))


_ALL_BITS = {2: _all_bits(1), 3: _all_bits(3)}  # by the axes of an image


def write_recording(
    path: str | os.PathLike,
    events: Events | None,
    frames: Sequence[np.ndarray] | np.ndarray | None,
    frame_times: Sequence[int] | np.ndarray | None,
    exposures: np.ndarray | None = None,
    flow: Sequence | np.ndarray | None = None,
    flow_at: Mapping[float, Sequence | np.ndarray] | None = None,
    *,
    flow_suffix: str = ".flo",
) -> None:
    """Write a plain recording, complete or not at all, that ``open_recording`` reads.

    Args:
        path: a directory that does not exist yet, or is empty.
        events: of a sensor of the frames' size.
        frames: [F, H, W] or [F, H, W, 3] RGB, uint8 or uint16; written as PNG.
        frame_times: [F] integer microseconds, increasing, mid-exposure.
        exposures: [F, 2] start and end, or [F] durations about the frame times; microseconds.
        flow: per frame but the last: flow [2, H, W], or (flow, valid), or None.
        flow_at: tau in (0, 1) -> the same, for the displacement at tau.
        flow_suffix: format of the flow files: ".flo", ".npy", ".npz", or ".png" (16 bit, KITTI's
            encoding: steps of 1/64 px, a fifth of the size).

    Raises:
        ValueError: naming the argument at fault, or if the directory has content.
        OSError: if the recording cannot be written.
    """
    frames = [] if frames is None else [np.asarray(frame) for frame in frames]
    times = np.asarray([] if frame_times is None else frame_times)
    _check_frames(frames, times, events)
    if exposures is not None:
        exposures = _exposure_intervals(np.asarray(exposures), times)
    for tau in flow_at or {}:
        if not 0 < tau < 1:
            raise ValueError(f"flow_at: tau must lie in (0, 1), got {tau}")
    with atomic_directory(path) as temporary:
        if events is not None:
            write_events(temporary / "events.h5", events)
        if frames:
            write_frames(temporary, frames, times.astype(np.int64), exposures)
        _write_truth(temporary / "flow", flow, len(frames), flow_suffix)
        for tau, fields in (flow_at or {}).items():
            directory = tau_directory(temporary / "flow_at", tau)
            _write_truth(directory, fields, len(frames), flow_suffix)


def _check_frames(frames: list[np.ndarray], times: np.ndarray, events: Events | None) -> None:
    if not frames and events is None:
        raise ValueError("write_recording: neither events nor frames were given")
    if len(frames) != len(times):
        raise ValueError(f"write_recording: {len(times)} frame_times for {len(frames)} frames")
    for index, frame in enumerate(frames):
        right = frame.dtype in (np.uint8, np.uint16) and frame.ndim in (2, 3)
        if not right or frame.shape[2:] not in ((), (3,)):
            raise ValueError(
                f"write_recording: frame {index} must be uint8 or uint16 [H, W] or [H, W, 3], "
                f"got {frame.dtype} {list(frame.shape)}"
            )
        if frame.shape[:2] != frames[0].shape[:2]:
            raise ValueError(
                f"write_recording: frame {index} is {list(frame.shape[:2])}, "
                f"frame 0 is {list(frames[0].shape[:2])}"
            )
    if len(times) and (times.dtype.kind not in "iu" or times[0] < 0 or (np.diff(times) <= 0).any()):
        raise ValueError("write_recording: frame_times must be increasing integer microseconds")
    if events is not None and frames and events.height is not None:
        if (events.height, events.width) != frames[0].shape[:2]:
            raise ValueError(
                f"write_recording: events of {events.width} x {events.height} px with frames of "
                f"{frames[0].shape[1]} x {frames[0].shape[0]} px"
            )


def _exposure_intervals(exposures: np.ndarray, times: np.ndarray) -> np.ndarray:
    if exposures.shape == times.shape:
        start = times - exposures // 2
        exposures = np.stack((start, start + exposures), axis=1)
    if exposures.shape != (len(times), 2) or exposures.dtype.kind not in "iu":
        raise ValueError(
            f"write_recording: exposures must be integers of shape [{len(times)}] or "
            f"[{len(times)}, 2], got {exposures.dtype} {list(exposures.shape)}"
        )
    return exposures


def write_frames(
    directory: Path, frames: Iterable[np.ndarray], times: np.ndarray, exposures: np.ndarray | None
) -> None:
    """Write images/, images.txt and exposures.txt; one frame after the other.

    Args:
        directory: exists.
        frames: uint8, or uint16 of full range, [H, W] or [H, W, 3] RGB; as many as times.
        times: [F] integer microseconds.
        exposures: [F, 2] integer microseconds, or None.
    """
    (directory / "images").mkdir()
    lines = []
    for index, (frame, time) in enumerate(zip(frames, times, strict=True)):
        name = f"images/{index:06d}.png"
        written, data = cv2.imencode(".png", frame if frame.ndim == 2 else frame[:, :, ::-1])
        if not written:
            raise OSError(f"{directory / name}: OpenCV could not encode the image")
        png = data.tobytes()
        if frame.dtype == np.uint16:
            png = png[:_AFTER_IHDR] + _ALL_BITS[frame.ndim] + png[_AFTER_IHDR:]
        (directory / name).write_bytes(png)
        lines.append(f"{_seconds(time)} {name}\n")
    (directory / "images.txt").write_text("".join(lines))
    if exposures is not None:
        lines = [f"{_seconds(start)} {_seconds(end)}\n" for start, end in exposures]
        (directory / "exposures.txt").write_text("".join(lines))


def _write_truth(
    directory: Path, fields: Sequence | np.ndarray | None, frame_count: int, suffix: str
) -> None:
    if fields is None:
        return
    if len(fields) >= max(frame_count, 1):
        raise ValueError(f"{directory.name}: {len(fields)} flow fields for {frame_count} frames")
    directory.mkdir(parents=True)
    for index, field in enumerate(fields):
        if field is not None:
            flow, valid = field if isinstance(field, tuple) else (field, None)
            write_flow(directory / f"{index:06d}{suffix}", flow, valid)


def _seconds(microseconds: int) -> str:
    """Exact decimal seconds."""
    whole, rest = divmod(abs(int(microseconds)), 10**6)
    return f"{'-' if microseconds < 0 else ''}{whole}.{rest:06d}"
