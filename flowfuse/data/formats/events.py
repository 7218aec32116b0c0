"""Event files of plain recordings: windows are read without loading the file.

What each format costs (N events):

=========  ==============================  =====================================================
format     on opening                      per window
=========  ==============================  =====================================================
.h5        the shapes                      the window's chunks; before that, without ms_to_idx,
                                           at first about log2(N) chunks of ``t``, later none
.npz       stored members: nothing;        the window's pages; at first about log2(N) of ``t``
           compressed members: unpacked
           once into unnamed temporary
           files (as large as the arrays)
.txt .csv  one pass over the whole file    the blocks of 1 MiB that the window touches
           (about 0.3 s per million
           events); 1 index entry per MiB
.raw       one pass over the whole file;   the blocks of 4 MiB that the window touches
           1 index entry per 4 MiB
.aedat4    the file's own index            the packets that the window touches
.bag       one pass over the event topic   the messages that the window touches
=========  ==============================  =====================================================

HDF5 files stay open between windows, in each process that reads them, with the chunks decoded last.
The passes check all that they see. The other formats are checked window by window, as they are
read.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowfuse.data.formats.block_times import BlockTimes
from flowfuse.data.formats.hdf5 import Hdf5Handle, open_hdf5
from flowfuse.data.formats.hdf5_output import Hdf5Output
from flowfuse.data.formats.npz import map_member, open_npz
from flowfuse.data.formats.text import TextIndex
from flowfuse.events import Events
from flowfuse.io.atomic import atomic_path

EVENT_SUFFIXES = (".h5", ".hdf5", ".npz", ".txt", ".csv", ".raw", ".aedat4", ".bag")

_LAST_TIME = 1 << 62  # us
_STEP = 1 << 20  # events looked at together when a whole column must be searched


class EventFile(ABC):
    """A file of events sorted by time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def time_range(self) -> tuple[int, int] | None:
        """Times of the first and of the last event, microseconds; None without events."""

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        """(height, width) that the file states, or None."""
        return None

    @abstractmethod
    def coordinate_extent(self) -> tuple[int, int]:
        """(height, width) of the smallest sensor that has all the events; reads all of x and y."""

    @abstractmethod
    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        """The events in [t0, t1), microseconds, checked against the sensor size."""


class IndexedEventFile(EventFile):
    """A file that knows the index of a window's first event, to name the one at fault."""

    @abstractmethod
    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        """The index of the window's first event in the file, and its x, y, t, p."""

    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        first, columns = self._read(t0, t1)
        try:
            return Events(*columns, height=height, width=width)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {error} (indices count from event {first} of the file)"
            ) from error


def open_event_file(path: str | os.PathLike) -> EventFile:
    """Open an event file.

    Args:
        path: the suffix tells the format:
            ``.txt`` / ``.csv``: lines ``t x y p``, t in seconds, separated by blanks or commas;
            an optional header line; lines starting with # or % are skipped.
            ``.npz``: arrays x, y, t, p; t in microseconds if integer, in seconds if floating.
            ``.h5`` / ``.hdf5``: datasets x, y, t, p at the root or in the group ``events``; t as in
            .npz; optionally ``t_offset`` (microseconds, added to t) and ``ms_to_idx`` (DSEC), and
            the attributes ``height`` and ``width``.
            ``.raw``: Prophesee's EVT 2.0 or 3.0. ``.aedat4``: the stream "events". ``.bag``, or the
            directory of a ROS 2 bag: a topic of dvs_msgs/EventArray.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: the package that reads the format is not installed; says which.
        ValueError: naming the file, what was found and what was expected.
    """
    # These build on this module.
    from flowfuse.data.formats.containers import is_container, open_contained_events
    from flowfuse.data.formats.prophesee_raw import RawEvents

    path = Path(path)
    check_event_path(path)
    suffix = path.suffix.lower()
    if is_container(path):
        return open_contained_events(path)
    if suffix == ".raw":
        return RawEvents(path)
    if suffix in (".h5", ".hdf5"):
        return Hdf5Events(path)
    if suffix == ".npz":
        return NpzEvents(path)
    if suffix in (".txt", ".csv"):
        return TextEvents(path)
    raise ValueError(
        f"{path}: unknown event format {suffix!r}, expected one of {', '.join(EVENT_SUFFIXES)}"
    )


def check_event_path(path: Path) -> None:
    """Refuse a path at which no event file can be.

    Raises:
        FileNotFoundError: there is nothing, or a link that leads nowhere.
        ValueError: there is a directory that is no bag.
    """
    from flowfuse.data.formats.containers import is_container  # builds on this module

    if path.is_dir():
        if not is_container(path):
            raise ValueError(f"{path}: is a directory, expected an event file")
    elif path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path}: is a link that leads nowhere, expected an event file")
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such event file")


class TextEvents(IndexedEventFile):
    """Lines ``t x y p``; see :func:`open_event_file`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._index = TextIndex(path)

    @property
    def time_range(self) -> tuple[int, int] | None:
        return self._index.time_range

    def coordinate_extent(self) -> tuple[int, int]:
        return self._index.extent

    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        return self._index.read(t0, t1)


@dataclass(frozen=True)
class _Columns:
    """Event arrays that are indexed, not loaded: HDF5 data sets or memory maps."""

    x: Any
    y: Any
    t: Any
    p: Any
    offset: int = 0  # microseconds, added to t
    ms_to_idx: Any = None
    blocks: BlockTimes = field(init=False)

    def __post_init__(self) -> None:
        chunks = getattr(self.t, "chunks", None)
        object.__setattr__(self, "blocks", BlockTimes(len(self), chunks and chunks[0]))

    def __len__(self) -> int:
        return self.t.shape[0]

    def times(self, index: int | slice) -> np.ndarray:
        """Times in int64 microseconds."""
        t = np.asarray(self.t[index])
        if t.dtype.kind != "f":
            t = t.astype(np.int64)
        elif np.isfinite(t).all():
            t = np.rint(t.astype(np.float64) * 1e6).astype(np.int64)
        else:
            raise ValueError(f"t must be finite, got NaN or infinity in {index}")
        t += self.offset
        return t

    def window(self, t0: int, t1: int) -> tuple[int, np.ndarray]:
        """The index of the first event of [t0, t1), and the times of all: int64 microseconds."""
        t1 = max(t0, t1)
        low, high, end = self._rows(t0, t1)
        times = self.times(slice(low, high))
        first, last = (int(i) for i in np.searchsorted(times, (t0, t1)))
        if (low > 0 and first == 0) or (high < end and last == len(times)):
            table = "" if self.ms_to_idx is None else " or ms_to_idx does not belong to it"
            raise ValueError(
                f"t is not sorted{table}: events [{low}, {high}) should hold all of "
                f"[{t0}, {t1}) us, but go from {times[0]} to {times[-1]} us"
            )
        return low + first, times[first:last]

    def _rows(self, t0: int, t1: int) -> tuple[int, int, int]:
        """Which rows hold a window, [low, high); from the third number on, times are t1 or later.

        Where a table tells, the rows have one more on each side, so that a wrong one shows.
        """
        count, entries = len(self), 0 if self.ms_to_idx is None else len(self.ms_to_idx)
        # ms_to_idx[ms] = the first event with t >= 1000 ms; the file's end bounds the rest.
        begin, end = (t0 - self.offset) // 1000, -(-(t1 - self.offset) // 1000)
        if not entries or begin >= entries:
            low, high = self.blocks.rows(t0, t1, self._time)
            return low, high, high
        begin, end = max(begin, 0), max(end, 0)
        table = self.ms_to_idx[begin : end + 1]
        low, high = int(table[0]), int(table[-1])
        last = count
        if end >= entries:
            last = high = self.blocks.rows(t1, t1, self._time)[1]
        if not 0 <= low <= high <= count:
            raise ValueError(f"ms_to_idx is wrong at {begin} ms: [{low}, {high}] of {count}")
        return max(low - 1, 0), high if end >= entries else min(high + 1, count), last

    def _time(self, row: int) -> int:
        return int(self.times(row))


class _ColumnFile(IndexedEventFile):
    """What .h5 and .npz have in common."""

    @abstractmethod
    def _columns(self) -> Any:
        """A context manager that gives the _Columns."""

    @contextmanager
    def _open(self) -> Iterator[_Columns]:
        try:
            with self._columns() as columns:
                yield columns
        except ValueError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise ValueError(f"{self.path}: {error}") from error

    def _check_ends(self) -> None:
        """Refuse negative times, which no window would ever show, and an end before the start."""
        time_range = self.time_range
        if time_range is None:
            return
        first, last = time_range
        if first < 0:
            raise ValueError(f"{self.path}: t must not be negative, got t[0] = {first} us")
        if last < first:
            raise ValueError(
                f"{self.path}: t must be sorted, got t[0] = {first} us and t[-1] = {last} us"
            )

    @property
    def time_range(self) -> tuple[int, int] | None:
        with self._open() as columns:
            if len(columns) == 0:
                return None
            return int(columns.times(0)), int(columns.times(len(columns) - 1))

    def coordinate_extent(self) -> tuple[int, int]:
        with self._open() as columns:
            return _extent("y", columns.y), _extent("x", columns.x)

    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        with self._open() as columns:
            first, times = columns.window(t0, t1)
            rows = slice(first, first + len(times))
            x, y, p = (_in_memory(column[rows]) for column in (columns.x, columns.y, columns.p))
        return first, (x, y, times, p)


class Hdf5Events(_ColumnFile):
    """Flat or DSEC layout; see :func:`open_event_file`. The file stays open between windows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle: Hdf5Handle[_Columns] = Hdf5Handle(path)
        self._check_ends()  # a fault of the layout shows now, too, not at the first window

    @contextmanager
    def _columns(self) -> Iterator[_Columns]:
        with self._handle.reading(self._find_columns) as columns:
            yield columns

    def _find_columns(self, file: h5py.File) -> _Columns:
        group = file["events"] if isinstance(file.get("events"), h5py.Group) else file
        found = {name: group.get(name) for name in "xytp"}
        columns = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}
        _check_columns(columns, f"data sets in {group.name!r}", sorted(group))
        offset = file.get("t_offset", group.get("t_offset"))
        table = file.get("ms_to_idx", group.get("ms_to_idx"))
        for name, item, shape in (("t_offset", offset, "[]"), ("ms_to_idx", table, "[M]")):
            wanted = isinstance(item, h5py.Dataset) and item.dtype.kind in "iu"
            if item is not None and not (wanted and item.ndim == (name == "ms_to_idx")):
                raise ValueError(f"{name} must be integers of shape {shape}, got {item}")
        start = 0 if offset is None else int(offset[()])
        if abs(start) > _LAST_TIME:
            raise ValueError(f"t_offset must be microseconds, got {start}")
        return _Columns(**columns, offset=start, ms_to_idx=table)

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        with open_hdf5(self.path) as file:
            for node in (file, file.get("events")):
                if node is not None and "height" in node.attrs and "width" in node.attrs:
                    return self._side(node, "height"), self._side(node, "width")
        return None

    def _side(self, node: h5py.Group, name: str) -> int:
        value = np.asarray(node.attrs[name])
        if value.size != 1 or value.dtype.kind not in "iuf" or not value.item() >= 1:
            raise ValueError(
                f"{self.path}: the attribute {name} must be one positive number of px, "
                f"got {str(node.attrs[name])[:40]!r}"
            )
        return int(value.item())


class NpzEvents(_ColumnFile):
    """Arrays x, y, t, p of an .npz archive; see :func:`open_event_file`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with open_npz(path) as archive:
            stored = [Path(name).stem for name in archive.namelist() if name.endswith(".npy")]
            names = [name for name in "xytp" if name in stored]
            packed = [archive.getinfo(f"{name}.npy") for name in names]
            packed = [info for info in packed if info.compress_type != zipfile.ZIP_STORED]
            if packed:
                size = sum(info.file_size for info in packed) / 2**20
                warnings.warn(
                    f"{path} is compressed and is unpacked into temporary files of {size:.1f} "
                    "MiB; np.savez (not savez_compressed) avoids that",
                    stacklevel=4,
                )
            arrays = {name: map_member(path, archive, name) for name in names}
            _check_columns(arrays, "arrays", sorted(stored))
        self._arrays = _Columns(**arrays)
        self._check_ends()

    @contextmanager
    def _columns(self) -> Iterator[_Columns]:
        yield self._arrays


def write_events(path: str | os.PathLike, events: Events) -> None:
    """Write events as .h5, atomically: gzip-compressed chunks that any HDF5 program reads.

    Layout: the group ``events`` with x, y, t (microseconds), p; attributes ``height`` and ``width``
    at the root when they are known.
    """
    path = Path(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(f"{path}: events are written as .h5, got {path.suffix!r}")
    packing = {"compression": "gzip", "shuffle": True, "chunks": (min(len(events), 1 << 15),)}
    with atomic_path(path) as temporary, Hdf5Output(temporary) as file:
        if events.height is not None and events.width is not None:
            file.attrs["height"], file.attrs["width"] = events.height, events.width
        for name in "xytp":
            file.put(f"events/{name}", getattr(events, name), **packing)


def _in_memory(values: np.ndarray) -> np.ndarray:
    """A copy of a mapped array, so that a window does not keep the file mapped; else as it is."""
    return np.array(values) if isinstance(values, np.memmap) else values


def _check_columns(columns: dict[str, Any], kind: str, found: list[str]) -> None:
    missing = [name for name in "xytp" if name not in columns]
    if missing:
        raise ValueError(f"{kind} x, y, t, p expected, found {found}, missing {missing}")
    for name, column in columns.items():
        if len(column.shape) != 1 or column.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} must be numbers of shape [N], got {column.dtype} of {list(column.shape)}"
            )
    lengths = {name: column.shape[0] for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"x, y, t and p must have the same length, got {found}")


def _extent(name: str, column: Any) -> int:
    """The largest pixel of a coordinate column, plus one."""
    largest = 0.0
    for start in range(0, column.shape[0], _STEP):
        part = np.asarray(column[start : start + _STEP])
        if not np.isfinite(part).all():
            index = start + int(np.argmin(np.isfinite(part)))
            raise ValueError(f"{name} must be finite, got {name}[{index}] = {column[index]}")
        largest = max(largest, float(part.max()))
    return int(np.ceil(largest)) + 1
