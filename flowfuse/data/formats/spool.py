"""Events unpacked into temporary files, where a file cannot be searched, or must be repaired."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowfuse.data.formats.base import Arrays, UnsortedError
from flowfuse.data.formats.columns import ColumnFile, Columns
from flowfuse.data.formats.order import Order, TooManyStepsBackError, added_times, find_order

_STEP = 1 << 20  # events handled together
_KINDS: dict[str, np.dtype[Any]] = {
    "x": np.dtype("i4"),
    "y": np.dtype("i4"),
    "t": np.dtype("i8"),
    "p": np.dtype("i1"),
}
_FRACTIONS: np.dtype[Any] = np.dtype("f4")  # of coordinates, while they are written


@dataclass(frozen=True)
class Repairs:
    """What :meth:`SpooledEvents.repair` did.

    Attributes:
        out_of_order, off_sensor, before_zero: events dropped.
        fault: the first one out of order, in words.
        off: index, x and y of the first one off the sensor.
    """

    out_of_order: int = 0
    off_sensor: int = 0
    before_zero: int = 0
    fault: str = ""
    off: tuple[int, float, float] = (0, 0, 0)


class SpooledEvents(ColumnFile):
    """Events in unnamed temporary files of 17 bytes an event, which go with the process.

    Args:
        path: where they come from, for messages.
        parts: x, y, t (int64 microseconds), p of each part, in the order of the file; not checked.
        size: (height, width), px, or None.
    """

    def __init__(
        self, path: Path, parts: Iterable[Arrays], size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(path)
        self._size = size
        self._arrays = _write(parts)

    def __len__(self) -> int:
        return len(self._arrays)

    @contextmanager
    def _columns(self) -> Iterator[Columns]:
        yield self._arrays

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        return self._size

    def find_order(self) -> Order:
        """What is wrong with the times as they came.

        Raises:
            UnsortedError: they are not sorted at all.
        """
        t = self._arrays.t
        try:
            return find_order(len(t), lambda first, end: np.asarray(t[first:end]))
        except TooManyStepsBackError as error:
            raise UnsortedError(f"{self.path}: {error}") from error

    def repair(self, order: Order, first: int, end: int, size: tuple[int, int] | None) -> Repairs:
        """Keep the rows [first, end), without those out of order or off the sensor.

        Args:
            order: of :meth:`find_order`.
            first, end: rows, of a part.
            size: (height, width) of the sensor, px; None: unknown, none is off it.
        """
        x, y, t, p = (getattr(self._arrays, name) for name in "xytp")
        bad = np.array([row for row in order.dropped if first <= row < end], np.int64)
        kept, off_count, early_count, off = 0, 0, 0, (0, 0.0, 0.0)
        for start in range(first, end, _STEP):
            rows = slice(start, min(start + _STEP, end))
            times = np.asarray(t[rows]) + added_times(order.wraps, rows.start, rows.stop)
            good = np.ones(len(times), bool)
            good[bad[(bad >= rows.start) & (bad < rows.stop)] - rows.start] = False
            off_sensor = good & _off_sensor(x[rows], y[rows], size)
            if off_sensor.any() and not off_count:
                row = start + int(np.argmax(off_sensor))
                off = row, float(x[row]), float(y[row])
            off_count += int(off_sensor.sum())
            good &= ~off_sensor
            early_count += int((good & (times < 0)).sum())
            good &= times >= 0
            to = slice(kept, kept + int(good.sum()))
            t[to] = times[good]
            x[to], y[to], p[to] = x[rows][good], y[rows][good], p[rows][good]
            kept = to.stop
        self._arrays = Columns(x[:kept], y[:kept], t[:kept], p[:kept])
        return Repairs(len(bad), off_count, early_count, order.first_fault, off)


def _off_sensor(x: np.ndarray, y: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    lowest = -1 if x.dtype.kind == "f" else -1e-9
    off = ~((x > lowest) & (y > lowest))  # NaN compares false
    return off if size is None else off | (x >= size[1]) | (y >= size[0])


def _write(parts: Iterable[Arrays]) -> Columns:
    files = {name: tempfile.TemporaryFile() for name in "xytp"}
    count, fractional = 0, False
    for part in parts:
        for name, values in zip("xytp", part, strict=True):
            kind = _FRACTIONS if name in "xy" and values.dtype.kind == "f" else _KINDS[name]
            if kind.kind == "f":
                fractional = fractional or bool((values % 1 != 0).any())
            if name in "xy" and kind.kind == "i":  # one kind in the file, until all are known
                values = np.clip(values, -(1 << 24), 1 << 24)
            values = values.astype(_FRACTIONS if name in "xy" else kind)
            files[name].write(np.ascontiguousarray(values).data)
        count += len(part[2])
    arrays: dict[str, Any] = {}
    for name, file in files.items():
        file.flush()
        kind = _FRACTIONS if name in "xy" else _KINDS[name]
        # Nothing cannot be mapped.
        arrays[name] = np.memmap(file, kind, "r+", shape=count) if count else np.empty(0, kind)
        if count and name in "xy" and not fractional:
            whole: Any = arrays[name].view(_KINDS[name])  # as many bytes: converted in place
            for start in range(0, count, _STEP):
                rows = slice(start, start + _STEP)
                whole[rows] = arrays[name][rows].astype(_KINDS[name])
            arrays[name] = whole
        file.close()
    return Columns(**arrays)
