"""Writing recordings in the layout of MVSEC, piece by piece: for tests and for conversion."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowfuse.data.datasets.mvsec.ground_truth import GROUP
from flowfuse.data.datasets.mvsec.recording import DATA_SUFFIX
from flowfuse.data.formats.hdf5_output import Hdf5Output
from flowfuse.events import Events
from flowfuse.io.atomic import atomic_path

TRUTH_SUFFIXES = {"hdf5": "_gt.hdf5", "npz": "_gt_flow_dist.npz"}
RIGHT = "davis/right"  # code that expects two cameras opens both
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
    ground_truth_format: str = "hdf5",
) -> Path:
    """Write ``<prefix>_data.hdf5`` and, with flow maps, its ground truth; each complete or not at
    all. The right camera is a link to the left one: there is no second view.

    Args:
        prefix: directory and name of the sequence.
        events: all, or parts in the order of time, which are written one by one.
        frames: uint8 [H, W], one by one.
        frame_times: [F] integer microseconds, increasing.
        flow_maps: [2, H, W] px, map i from flow_times[i] to flow_times[i + 1]; NaN, infinite or
            (0, 0) = unknown.
        flow_times: [M] integer microseconds, increasing.
        ground_truth_format: "hdf5" or "npz".

    Returns:
        The path of the data file.

    Raises:
        ValueError: naming the argument at fault.
        OSError: a file cannot be written.
    """
    prefix = Path(prefix)
    times = _checked_times("frame_times", frame_times)
    if ground_truth_format not in TRUTH_SUFFIXES:
        raise ValueError(
            f"ground_truth_format must be one of {', '.join(TRUTH_SUFFIXES)}, "
            f"got {ground_truth_format!r}"
        )
    if (flow_maps is None) != (flow_times is None):
        raise ValueError("write_mvsec: flow_maps and flow_times belong together")
    parts = [events] if isinstance(events, Events) else events
    path = Path(f"{prefix}{DATA_SUFFIX}")
    with ExitStack() as stack:
        # The truth's file is renamed first: a data file then never lacks it.
        data = stack.enter_context(atomic_path(path))
        with Hdf5Output(data) as file:
            size = _write_frames(file, frames, times)
            _write_events(file, parts, times, size)
            file[RIGHT] = h5py.SoftLink(f"/{GROUP}")
        if flow_maps is not None and flow_times is not None:
            instants = _checked_times("flow_times", flow_times)
            ground_truth = stack.enter_context(
                atomic_path(f"{prefix}{TRUTH_SUFFIXES[ground_truth_format]}")
            )
            write = _write_truth_hdf5 if ground_truth_format == "hdf5" else _write_truth_npz
            write(ground_truth, flow_maps, instants, size)
    return path


def _checked_times(name: str, times: Sequence[int] | np.ndarray) -> np.ndarray:
    times = np.asarray(times)
    wrong = times.ndim != 1 or times.dtype.kind not in "iu" or not len(times)
    if wrong or times[0] < 0 or (np.diff(times.astype(np.int64)) <= 0).any():
        raise ValueError(f"write_mvsec: {name} must be increasing integer microseconds")
    return times.astype(np.int64)


def _write_frames(
    file: Hdf5Output, frames: Iterable[np.ndarray], times: np.ndarray
) -> tuple[int, int]:
    """Write the frames and their times; returns (height, width)."""
    images: Any = None
    count = 0
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 2:
            raise ValueError(
                f"write_mvsec: frame {count} must be uint8 [H, W] (MVSEC is gray), "
                f"got {frame.dtype} {list(frame.shape)}"
            )
        if images is None:
            shape = (len(times), *frame.shape)
            images = file.create_dataset(
                f"{GROUP}/image_raw", shape, np.uint8, chunks=(1, *frame.shape), **_PACKING
            )
        if count == len(times) or frame.shape != images.shape[1:]:
            raise ValueError(
                f"write_mvsec: {len(times)} frames of {list(images.shape[1:])} px expected, "
                f"got frame {count} of {list(frame.shape)}"
            )
        file.reserve(frame.nbytes)
        images[count] = frame
        count += 1
    if count != len(times):
        raise ValueError(f"write_mvsec: {len(times)} frame_times for {count} frames")
    file.put(f"{GROUP}/image_raw_ts", times / 1e6)
    return int(images.shape[1]), int(images.shape[2])


def _write_events(
    file: Hdf5Output, parts: Iterable[Events], times: np.ndarray, size: tuple[int, int]
) -> None:
    rows = file.create_dataset(
        f"{GROUP}/events", (0, 4), np.float64, maxshape=(None, 4), chunks=(_CHUNK, 4), **_PACKING
    )
    indices = np.zeros(len(times), np.int64)  # of the first event at or after each frame
    last = -1
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
        file.extend(rows, np.stack((part.x, part.y, part.t / 1e6, 2.0 * part.p - 1), axis=1))
        indices += np.searchsorted(part.t, times)
    file.put(f"{GROUP}/image_raw_event_inds", np.minimum(indices, max(len(rows) - 1, 0)))


def _write_truth_hdf5(
    path: Path, maps: Iterable[np.ndarray], times: np.ndarray, size: tuple[int, int]
) -> None:
    with Hdf5Output(path) as file:
        flow = file.create_dataset(
            f"{GROUP}/flow_dist",
            (len(times), 2, *size),
            np.float64,
            chunks=(1, 2, *size),
            **_PACKING,
        )
        for index, one in enumerate(_checked_maps(maps, len(times), size)):
            file.reserve(8 * one.size)
            flow[index] = one
        file.put(f"{GROUP}/flow_dist_ts", times / 1e6)
        file[RIGHT] = h5py.SoftLink(f"/{GROUP}")


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
