"""Writing recordings in the layout of MVSEC, piece by piece: for tests and for conversion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from flowfuse.atomic import atomic_path
from flowfuse.data.files.hdf5_output import create_hdf5
from flowfuse.data.mvsec.recording import DATA_SUFFIX
from flowfuse.data.mvsec.truth import GROUP
from flowfuse.events import Events

TRUTH_SUFFIXES = {"hdf5": "_gt.hdf5", "npz": "_gt_flow_dist.npz"}
_PACKING = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
_CHUNK = 1 << 14  # events


def write_mvsec(
    prefix: str | os.PathLike,
    events: Events | Iterable[Events],
    frames: Iterable[np.ndarray],
    frame_times: Sequence[int] | np.ndarray,
    flow_maps: Iterable[np.ndarray] | None = None,
    flow_times: Sequence[int] | np.ndarray | None = None,
    *,
    truth_format: str = "hdf5",
) -> Path:
    """Write ``<prefix>_data.hdf5`` and, with flow maps, its truth; each complete or not at all.

    Args:
        prefix: directory and name of the sequence.
        events: all, or parts in the order of time, which are written one by one.
        frames: uint8 [H, W], one by one.
        frame_times: [F] integer microseconds, increasing.
        flow_maps: [2, H, W] px, map i from flow_times[i] to flow_times[i + 1]; NaN, infinite or
            (0, 0) = unknown.
        flow_times: [M] integer microseconds, increasing.
        truth_format: "hdf5" or "npz".

    Returns:
        The path of the data file.

    Raises:
        ValueError: naming the argument at fault.
        OSError: a file cannot be written.
    """
    prefix = Path(prefix)
    times = _checked_times("frame_times", frame_times)
    if truth_format not in TRUTH_SUFFIXES:
        raise ValueError(
            f"truth_format must be one of {', '.join(TRUTH_SUFFIXES)}, got {truth_format!r}"
        )
    if (flow_maps is None) != (flow_times is None):
        raise ValueError("write_mvsec: flow_maps and flow_times belong together")
    parts = [events] if isinstance(events, Events) else events
    path = Path(f"{prefix}{DATA_SUFFIX}")
    with ExitStack() as stack:
        # The truth's file is renamed first: a data file then never lacks it.
        data = stack.enter_context(atomic_path(path))
        with create_hdf5(data) as write:
            size = _write_frames(write, frames, times)
            _write_events(write, parts, times, size)
        if flow_maps is not None:
            instants = _checked_times("flow_times", flow_times)
            truth = stack.enter_context(atomic_path(f"{prefix}{TRUTH_SUFFIXES[truth_format]}"))
            write = _write_truth_hdf5 if truth_format == "hdf5" else _write_truth_npz
            write(truth, flow_maps, instants, size)
    return path


def _checked_times(name: str, times: Sequence[int] | np.ndarray) -> np.ndarray:
    times = np.asarray(times)
    wrong = times.ndim != 1 or times.dtype.kind not in "iu" or not len(times)
    if wrong or times[0] < 0 or (np.diff(times.astype(np.int64)) <= 0).any():
        raise ValueError(f"write_mvsec: {name} must be increasing integer microseconds")
    return times.astype(np.int64)


def _write_frames(
    write: Callable, frames: Iterable[np.ndarray], times: np.ndarray
) -> tuple[int, int]:
    """Write the frames and their times; returns (height, width)."""
    key, size = f"{GROUP}/image_raw", None
    count = 0
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 2:
            raise ValueError(
                f"write_mvsec: frame {count} must be uint8 [H, W] (MVSEC is gray), "
                f"got {frame.dtype} {list(frame.shape)}"
            )
        if size is None:
            size = frame.shape
            write(_create_maps, key, (len(times), *size), np.uint8)
        if count == len(times) or frame.shape != size:
            raise ValueError(
                f"write_mvsec: {len(times)} frames of {list(size)} px expected, "
                f"got frame {count} of {list(frame.shape)}"
            )
        write(_set_map, key, count, frame)
        count += 1
    if count != len(times):
        raise ValueError(f"write_mvsec: {len(times)} frame_times for {count} frames")
    write(_set, f"{GROUP}/image_raw_ts", times / 1e6)
    return int(size[0]), int(size[1])


def _write_events(
    write: Callable, parts: Iterable[Events], times: np.ndarray, size: tuple[int, int]
) -> None:
    write(_append, np.zeros((0, 4)))
    indices = np.zeros(len(times), np.int64)  # of the first event at or after each frame
    last, count = -1, 0
    for part in parts:
        if part.height is not None and (part.height, part.width) != size:
            raise ValueError(
                f"write_mvsec: events of {part.width} x {part.height} px with frames of "
                f"{size[1]} x {size[0]} px"
            )
        if not len(part):
            continue
        if part.t[0] < last:
            raise ValueError(
                f"write_mvsec: events must follow each other in time, got a part from {part.t[0]} "
                f"us after one up to {last} us"
            )
        last = int(part.t[-1])
        count = write(_append, np.stack((part.x, part.y, part.t / 1e6, 2.0 * part.p - 1), axis=1))
        indices += np.searchsorted(part.t, times)
    write(_set, f"{GROUP}/image_raw_event_inds", np.minimum(indices, max(count - 1, 0)))


def _write_truth_hdf5(
    path: Path, maps: Iterable[np.ndarray], times: np.ndarray, size: tuple[int, int]
) -> None:
    key = f"{GROUP}/flow_dist"
    with create_hdf5(path) as write:
        write(_create_maps, key, (len(times), 2, *size), np.float64)
        for index, one in enumerate(_checked_maps(maps, len(times), size)):
            write(_set_map, key, index, one)
        write(_set, f"{GROUP}/flow_dist_ts", times / 1e6)


def _create_maps(file: h5py.File, key: str, shape: tuple[int, ...], dtype: type) -> None:
    file.create_dataset(key, shape, dtype, chunks=(1, *shape[1:]), **_PACKING)


def _set_map(file: h5py.File, key: str, index: int, values: np.ndarray) -> None:
    file[key][index] = values


def _set(file: h5py.File, key: str, values: np.ndarray) -> None:
    file[key] = values


def _append(file: h5py.File, values: np.ndarray) -> int:
    """Append rows to the events; returns how many there are."""
    key = f"{GROUP}/events"
    if key not in file:
        file.create_dataset(
            key, (0, 4), np.float64, maxshape=(None, 4), chunks=(_CHUNK, 4), **_PACKING
        )
    rows = file[key]
    rows.resize(len(rows) + len(values), axis=0)
    rows[len(rows) - len(values) :] = values
    return len(rows)


def _write_truth_npz(
    path: Path, maps: Iterable[np.ndarray], times: np.ndarray, size: tuple[int, int]
) -> None:
    stacked = np.stack(list(_checked_maps(maps, len(times), size))).astype(np.float64)
    np.savez(path, timestamps=times / 1e6, x_flow_dist=stacked[:, 0], y_flow_dist=stacked[:, 1])


def _checked_maps(
    maps: Iterable[np.ndarray], count: int, size: tuple[int, int]
) -> Iterable[np.ndarray]:
    found = 0
    for one in maps:
        one = np.asarray(one)
        if one.shape != (2, *size):
            raise ValueError(
                f"write_mvsec: flow map {found} must have shape {[2, *size]}, got {list(one.shape)}"
            )
        if found == count:
            raise ValueError(f"write_mvsec: {count} flow_times for more flow maps")
        yield one
        found += 1
    if found != count:
        raise ValueError(f"write_mvsec: {count} flow_times for {found} flow maps")
