"""Events in four columns that are searched on the disk: what .h5 and .npz have in common."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flowfuse.data.formats.base import Arrays, IndexedEventFile, UnsortedError
from flowfuse.data.formats.block_times import BlockTimes
from flowfuse.data.formats.order import added_times, find_order

_STEP = 1 << 20  # events looked at together when a whole column must be searched
_LOOK_AT_ALL = 1 << 23  # events: if there are more, opening looks at some of them
_LOOK_AT_SOME = 512


@dataclass(frozen=True)
class Columns:
    """Event arrays that are indexed, not loaded: HDF5 data sets or memory maps."""

    x: Any
    y: Any
    t: Any
    p: Any
    offset: int = 0  # microseconds, added to t
    ms_to_idx: Any = None
    wraps: tuple[tuple[int, int], ...] = ()  # of Order: (row, microseconds added from there on)
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
        if self.wraps:
            first = index if isinstance(index, int) else index.indices(len(self))[0]
            added = added_times(self.wraps, first, first + t.size)
            t += added[0] if t.ndim == 0 else added
        return t

    def window(self, t0: int, t1: int) -> tuple[int, np.ndarray]:
        """The index of the first event of [t0, t1), and the times of all: int64 microseconds."""
        t1 = max(t0, t1)
        low, high, end = self._rows(t0, t1)
        times = self.times(slice(low, high))
        back = times[1:] < times[:-1]
        if back.any():
            row = low + int(np.argmax(back)) + 1
            raise ValueError(
                f"t is not sorted: event {row} has {times[row - low]} us after "
                f"{times[row - low - 1]} us"
            )
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


class ColumnFile(IndexedEventFile):
    """A file of events in columns x, y, t, p."""

    _wraps: tuple[tuple[int, int], ...] = ()  # of Order, once check_order has looked
    _continued: tuple[Columns, Columns] | None = None  # as found, and with the overflows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_continued": None}

    @abstractmethod
    def _columns(self) -> Any:
        """A context manager that gives the Columns."""

    @contextmanager
    def _open(self) -> Iterator[Columns]:
        try:
            with self._columns() as columns:
                if self._wraps and (self._continued is None or self._continued[0] is not columns):
                    # A table by time counts as the times do, which go back where they overflow.
                    continued = replace(columns, wraps=self._wraps, ms_to_idx=None)
                    self._continued = columns, continued
                yield self._continued[1] if self._continued else columns
        except ValueError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise ValueError(f"{self.path}: {error}") from error

    def check_order(self) -> None:
        """Continue times that overflowed, with a warning; refuse those that go back otherwise.

        All times are looked at where there are few or where some that are looked at go back;
        elsewhere each window looks at its own.
        """
        with self._open() as columns:
            if len(columns) == 0:
                return
            below = columns.t.dtype == np.int32 and int(columns.times(0)) < columns.offset
        if below and not self._wraps:
            self._continue_signed()
        with self._open() as columns:
            if len(columns) > _LOOK_AT_ALL and not _goes_back(columns):
                order = None
            else:
                order = find_order(len(columns), lambda a, b: columns.times(slice(a, b)))
        if order is not None and not order.is_sorted:
            raise UnsortedError(f"{self.path}: times must be sorted: {order.describe_faults()}")
        if order is not None and order.wraps:
            base = self._wraps[-1][1] if self._wraps else 0
            added = ((row, base + value) for row, value in order.wraps)
            self._wraps = (*self._wraps, *added)
            warnings.warn(f"{self.path}: {order.describe_wraps()}", stacklevel=4)
        first = self.time_range
        if first is not None and first[0] < 0:
            raise ValueError(
                f"{self.path}: t must not be negative, got t[0] = {first[0]} us; "
                "--repair drops the events before 0"
            )

    def _continue_signed(self) -> None:
        """Times of a signed counter of 32 bits that begin below zero: it overflowed before."""
        self._wraps = ((0, 1 << 32),)
        warnings.warn(
            f"{self.path}: the first times are negative, in 32 bits with a sign: the clock "
            "overflowed before; 2^32 us (71.6 min) are added",
            stacklevel=4,
        )

    def stream(self) -> Iterator[Arrays]:
        with self._open() as columns:
            count = len(columns)
        for first in range(0, count, _STEP):
            with self._open() as columns:
                rows = slice(first, min(first + _STEP, count))
                x, y, p = (np.asarray(c[rows]) for c in (columns.x, columns.y, columns.p))
                t = columns.times(rows)
            yield x, y, t, p

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


def _goes_back(columns: Columns) -> bool:
    """Whether a few times, evenly spread, are out of order."""
    rows = np.unique(np.linspace(0, len(columns) - 1, _LOOK_AT_SOME).astype(np.int64))
    times = np.array([int(columns.times(int(row))) for row in rows])
    return bool((times[1:] < times[:-1]).any())


def _in_memory(values: np.ndarray) -> np.ndarray:
    """A copy of a mapped array, so that a window does not keep the file mapped; else as it is."""
    return np.array(values) if isinstance(values, np.memmap) else values


def check_columns(columns: dict[str, Any], kind: str, found: list[str]) -> None:
    """Refuse columns of events that are missing, not numbers [N], or of different lengths."""
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
        got = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"x, y, t and p must have the same length, got {got}")


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
