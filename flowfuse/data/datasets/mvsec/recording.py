"""MVSEC (346 x 260 DAVIS): events and gray frames of ``<seq>_data.hdf5``, ground truth beside them.

Opening reads the frame times alone. Events of a window are found by binary search on the disk, and
flow maps are read one by one, so a sequence of any length takes the memory of one window.

Times are float64 seconds since 1970 in the files. They become int64 microseconds: at 1.5e9 s a
float64 is exact to 0.24 us, so no event gets another microsecond than the camera gave it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowfuse.data.datasets.mvsec.ground_truth import GROUP, Flow, FlowMaps
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.base import FrameSource, IndexedEventFile
from flowfuse.data.formats.block_times import BlockTimes
from flowfuse.data.formats.hdf5 import (
    HDF5_FAULTS,
    Hdf5Handle,
    find_dataset,
    increasing_microseconds,
    open_hdf5,
)
from flowfuse.data.remapping import RemappedEvents, RemappedFrames, invert_map

DATA_SUFFIX = "_data.hdf5"
_STEP = 1 << 20  # events looked at together when all coordinates must be searched


class MvsecRecording(FileRecording):
    """A recording of MVSEC; made by :func:`open_mvsec`.

    Attributes:
        sequence: such as "indoor_flying1".
        maps: the ground truth, or None.
        undistorted: whether events and frames are at rectified positions.
    """

    def __init__(
        self,
        path: Path,
        event_file: IndexedEventFile | RemappedEvents,
        frame_source: FrameSource,
        maps: FlowMaps | None,
        undistorted: bool,
    ) -> None:
        super().__init__(path, event_file, frame_source)
        self.sequence = path.name.removesuffix(DATA_SUFFIX)
        self.maps = maps
        self.undistorted = undistorted
        if maps is not None and maps.size != (self.height, self.width):
            raise ValueError(
                f"{maps.path}: flow maps of {maps.size[1]} x {maps.size[0]} px, but {path} is "
                f"{self.width} x {self.height} px"
            )

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth from frame ``index`` to the next (tau = 1); None where no map covers it."""
        if self.maps is None or tau != 1 or index + 1 >= len(self.frame_times):
            return None
        return self.maps.between(*(int(t) for t in self.frame_times[index : index + 2]))


class MvsecEvents(IndexedEventFile):
    """``davis/left/events`` [N, 4] = x, y, t (s), p in {-1, 1}; kept open between windows."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        super().__init__(path)
        self._size = size
        self._handle: Hdf5Handle[h5py.Dataset] = Hdf5Handle(path)
        with self._handle.reading(self._events) as events:
            chunks = events.chunks
            self._blocks = BlockTimes(len(events), chunks and chunks[0])
            ends = [self._time(events, i) for i in (0, -1)] if len(events) else None
        if ends is not None and not 0 <= ends[0] <= ends[1]:
            raise ValueError(
                f"{path}: {GROUP}/events must be sorted by t, not negative; got {ends[0]} us first "
                f"and {ends[1]} us last"
            )
        self._ends = None if ends is None else (ends[0], ends[1])

    @property
    def time_range(self) -> tuple[int, int] | None:
        return self._ends

    @property
    def sensor_size(self) -> tuple[int, int]:
        return self._size

    def coordinate_extent(self) -> tuple[int, int]:
        largest = np.zeros(2)
        with self._handle.reading(self._events) as events:
            for first in range(0, len(events), _STEP):
                largest = np.maximum(largest, events[first : first + _STEP, :2].max(axis=0))
        return int(largest[1]) + 1, int(largest[0]) + 1

    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        t1 = max(t0, t1)
        with self._handle.reading(self._events) as events:
            low, high = self._blocks.rows(t0, t1, lambda row: self._time(events, row))
            rows = np.asarray(events[low:high], np.float64)
        if not np.isfinite(rows).all():
            row = int(np.argmin(np.isfinite(rows).all(axis=1)))
            raise ValueError(
                f"{self.path}: {GROUP}/events[{low + row}] = {rows[row].tolist()}, expected "
                "finite x, y, t, p"
            )
        times = np.rint(rows[:, 2] * 1e6).astype(np.int64)
        first, last = (int(i) for i in np.searchsorted(times, (t0, t1)))
        if low > 0 and first == 0:
            raise ValueError(
                f"{self.path}: {GROUP}/events is not sorted by t around index {low}: searched for "
                f"{t0} us, found {times[0]} us"
            )
        x, y, _, p = rows[first:last].T
        if (x % 1 == 0).all() and (y % 1 == 0).all():
            x, y = x.astype(np.int32), y.astype(np.int32)
        return low + first, (x, y, times[first:last], p)

    def _events(self, file: h5py.File) -> h5py.Dataset:
        events = find_dataset(self.path, file, f"{GROUP}/events", "[N, 4]", "f")
        if events.shape[1] != 4:
            raise ValueError(
                f"{self.path}: {GROUP}/events must have shape [N, 4] = x, y, t, p, "
                f"got {list(events.shape)}"
            )
        return events

    def _time(self, events: h5py.Dataset, index: int) -> int:
        seconds = float(events[index, 2])
        if not np.isfinite(seconds):
            raise ValueError(f"{self.path}: {GROUP}/events[{index}] has t = {seconds} s")
        return round(seconds * 1e6)


class MvsecFrames(FrameSource):
    """``davis/left/image_raw`` [F, H, W] uint8 at ``image_raw_ts`` [F] s."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path) as file:
            images = find_dataset(path, file, f"{GROUP}/image_raw", "[F, H, W]", "u")
            if images.dtype != np.uint8:
                raise ValueError(f"{path}: {GROUP}/image_raw must be uint8, got {images.dtype}")
            seconds = find_dataset(path, file, f"{GROUP}/image_raw_ts", "[F]", "f")[:]
            self.size = tuple(images.shape[1:])
            count = len(images)
        self.times = increasing_microseconds(path, f"{GROUP}/image_raw_ts", seconds)
        if len(self.times) != count:
            raise ValueError(f"{path}: {len(self.times)} image_raw_ts for {count} image_raw")

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def read(self, index: int) -> np.ndarray:
        with open_hdf5(self.path) as file:
            return np.asarray(file[f"{GROUP}/image_raw"][index])

    def name(self, index: int) -> str:
        return f"{self.path}, frame {index}"


def is_mvsec(path: Path) -> bool:
    """Whether a file has the layout of ``<seq>_data.hdf5``."""
    if path.suffix.lower() not in (".hdf5", ".h5") or not path.is_file():
        return False
    try:
        with h5py.File(path, "r") as file:
            return f"{GROUP}/events" in file
    except HDF5_FAULTS:
        return False


def open_mvsec(
    path: str | os.PathLike,
    *,
    ground_truth: str | os.PathLike | None = None,
    undistort: str | os.PathLike | None = None,
) -> MvsecRecording:
    """Open a sequence of MVSEC.

    Args:
        path: ``<seq>_data.hdf5``.
        ground_truth: file of ground truth; None = ``<seq>_gt.hdf5`` or ``<seq>_gt_flow_dist.npz``
            beside it, where there is one.
        undistort: directory with ``*_left_x_map.txt`` and ``*_left_y_map.txt``, [H, W] tables of
            the rectified position of each raw pixel. Events then have float positions, frames are
            resampled. None = raw, as published protocols feed them (though the ground truth
            belongs to rectified positions).

    Raises:
        FileNotFoundError, ValueError: naming the file, the key and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected <sequence>{DATA_SUFFIX}")
    raw_frames = MvsecFrames(path)
    raw_events = MvsecEvents(path, raw_frames.size)
    if ground_truth is None:
        stem = str(path).removesuffix(DATA_SUFFIX)
        found = (Path(stem + end) for end in ("_gt.hdf5", "_gt_flow_dist.npz"))
        ground_truth = next((file for file in found if file.is_file()), None)
    maps = None if ground_truth is None else FlowMaps(Path(ground_truth))
    if undistort is None:
        return MvsecRecording(path, raw_events, raw_frames, maps, undistorted=False)
    forward = _read_rectification(Path(undistort), raw_frames.size)
    events = RemappedEvents(raw_events, forward)
    frames = RemappedFrames(raw_frames, invert_map(forward))
    return MvsecRecording(path, events, frames, maps, undistorted=True)


def _read_rectification(directory: Path, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 2] float32: the rectified (x, y) of each raw pixel."""
    tables = []
    for axis in "xy":
        found = sorted(directory.glob(f"*_left_{axis}_map.txt"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise ValueError(
                f"{directory}: exactly one *_left_{axis}_map.txt expected, found {names}"
            )
        try:
            table = np.loadtxt(found[0], dtype=np.float32, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{found[0]}: a table of numbers expected ({error})") from None
        if table.shape != size:
            raise ValueError(
                f"{found[0]}: {size[0]} rows of {size[1]} numbers expected, got {table.shape[0]} "
                f"of {table.shape[1]}"
            )
        tables.append(table)
    return np.stack(tables, axis=2)
