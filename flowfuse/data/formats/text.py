"""Text files of events, ``t x y p`` per line: checked once, then read by blocks.

Columns are separated by blanks, commas or semicolons. A line of names before the events says their
order and the unit of t; else values do where they leave no doubt (column_order.py), with a warning;
else it is t x y p, t in seconds. A first line of two whole numbers is the width and height of the
sensor. Lines that start with # or % are skipped.
"""

from __future__ import annotations

import io
import warnings
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flowfuse.data.formats import column_order
from flowfuse.data.formats.base import (
    Arrays,
    EventFile,
    Format,
    IndexedEventFile,
    UnsortedError,
)
from flowfuse.data.formats.column_order import ColumnOrder, parse_columns

BLOCK_BYTES = 1 << 20  # about 50,000 events
_LONGEST_LINE = 4096
_SAMPLE_BYTES = 1 << 16  # looked at for the order of the columns
_MARKS = bytes.maketrans(b",;%", b"  #")  # what separates columns, what begins a comment
_LAST_SECOND = 9.2e12  # more seconds than int64 holds as microseconds


class TextIndex:
    """Time -> place in the file, sparse: one entry per block of whole lines.

    The index is made by one streaming pass when it is first needed; the pass checks every line. It
    is kept in memory, and nothing is written beside the user's file. A 10 GB file has an index of
    10,000 entries.

    Args:
        path: an existing file, which messages name.
        block_bytes: the size of a block.
        order: of the columns; None: as the file shows it.
        content: where the text is, if not in ``path`` itself.
    """

    def __init__(
        self,
        path: Path,
        block_bytes: int = BLOCK_BYTES,
        order: ColumnOrder | None = None,
        content: Path | None = None,
    ) -> None:
        self.path = path
        self.block_bytes = block_bytes
        self._content = path if content is None else content
        self._stated = order
        self._order = ColumnOrder()
        self._unit = 1e6  # microseconds
        self._told = False  # what was assumed
        self.assumption: str | None = None
        self._size: tuple[int, int] | None = None
        self._built = False
        self._cached: tuple[int, np.ndarray] | None = None  # the block read last

    @property
    def time_range(self) -> tuple[int, int] | None:
        """Times of the first and the last event, microseconds; None without events."""
        self._build()
        return (int(self._times[0]), self._last) if len(self._times) else None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) that the first line states, or None."""
        with open(self._content, "rb") as file:
            self._skip_header(file)
        return self._size

    @property
    def extent(self) -> tuple[int, int]:
        """(height, width): the largest coordinates plus one."""
        self._build()
        return int(np.ceil(self._largest[1])) + 1, int(np.ceil(self._largest[0])) + 1

    def read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        """The events of [t0, t1), microseconds.

        Returns:
            The index of the first one in the file, and x, y, t, p: int32 (float32 if any coordinate
            of the file is fractional), int64 microseconds, int8 as in the file.
        """
        self._build()
        # Events at t0 itself may begin in the block before the first one that starts at t0.
        first = max(0, int(np.searchsorted(self._times, t0, side="left")) - 1)
        last = max(first, int(np.searchsorted(self._times, t1, side="left")))
        blocks = [self._block(index) for index in range(first, last)]
        rows = np.concatenate(blocks) if blocks else np.empty((0, 4))
        t = self._microseconds(rows[:, 0])
        window = slice(*np.searchsorted(t, (t0, max(t0, t1)), side="left"))
        kind = np.int32 if self._integral else np.float32
        start = int(self._events[first]) + window.start if blocks else 0
        x, y, p = rows[window, 1].astype(kind), rows[window, 2].astype(kind), rows[window, 3]
        return start, (x, y, t[window], p.astype(np.int8))

    def _block(self, index: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != index:
            with open(self._content, "rb") as file:
                file.seek(self._offsets[index])
                text = file.read(self._offsets[index + 1] - self._offsets[index])
            self._cached = index, self._parse(text, int(self._lines[index]))
        return self._cached[1]

    def stream(self) -> Iterator[Arrays]:
        """All events in the order of the lines; x, y, t (int64 microseconds), p per block."""
        with open(self._content, "rb") as file:
            for _, line, text in self._blocks(file):
                rows = self._parse(text, line)
                self._check_values(rows, text, line, places=False)
                yield rows[:, 1], rows[:, 2], self._microseconds(rows[:, 0]), rows[:, 3]

    def _build(self) -> None:
        if self._built:
            return
        offsets: list[int] = []
        times: list[int] = []
        lines: list[int] = []
        events = [0]
        largest, integral, last = np.zeros(2), True, 0
        polarities: set[float] = set()
        end = 0
        with open(self._content, "rb") as file:
            for offset, line, text in self._blocks(file):
                rows = self._parse(text, line)
                end = offset + len(text)
                if len(rows) == 0:
                    continue
                self._check(rows, text, line, last if offsets else None)
                polarities |= set(np.unique(rows[:, 3]))
                if {0.0, -1.0} <= polarities:
                    raise ValueError(
                        f"{self.path}: polarities 0 and -1 are both used, by line "
                        f"{_line_of(text, line, len(rows) - 1)}; expected {{0, 1}} or {{-1, 1}}"
                    )
                t = self._microseconds(rows[[0, -1], 0])
                offsets.append(offset)
                lines.append(line)
                times.append(int(t[0]))
                events.append(events[-1] + len(rows))
                last = int(t[1])
                largest = np.maximum(largest, rows[:, 1:3].max(axis=0))
                integral = integral and bool((rows[:, 1:3] % 1 == 0).all())
        self._offsets = [*offsets, end]
        self._times, self._lines = np.array(times, np.int64), lines
        self._events, self._last, self._largest, self._integral = events, last, largest, integral
        self._built = True

    def _microseconds(self, times: np.ndarray) -> np.ndarray:
        return np.rint(times * self._unit).astype(np.int64)

    def _blocks(self, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
        """Blocks of whole lines: byte offset, number of the first line, text."""
        offset, line = self._skip_header(file)
        file.seek(offset)
        while text := file.read(self.block_bytes):
            if not text.endswith(b"\n"):
                rest = file.readline(_LONGEST_LINE)
                if len(rest) == _LONGEST_LINE and not rest.endswith(b"\n"):
                    raise ValueError(
                        f"{self.path}: a line after byte {offset} has more than {_LONGEST_LINE} "
                        f"characters; expected lines of {self._order}"
                    )
                text += rest
            yield offset, line, text
            offset += len(text)
            line += text.count(b"\n")

    def _skip_header(self, file: BinaryIO) -> tuple[int, int]:
        """Byte offset and number of the first line of events; what stands before is understood."""
        line, named, size = 1, None, None
        if file.read(len(BOM_UTF8)) != BOM_UTF8:  # which editors and spreadsheets on Windows write
            file.seek(0)
        while True:
            offset = file.tell()
            text = file.readline(_LONGEST_LINE)
            fields = _fields(text)
            if text and not fields:
                line += 1
                continue
            if size is None and named is None and _is_size(fields):
                here = file.tell()
                behind = next((found for found in map(_fields, _lines(file)) if found), ())
                file.seek(here)
                if len(behind) == 4:
                    size = int(fields[1]), int(fields[0])
                    line += 1
                    continue
            if not text or named is not None or _is_number(fields[0]):
                self._size = size
                self._find_order(file, offset, named)
                return offset, line
            named = self._stated
            if named is None:
                named = column_order.read_header([field.decode("latin-1") for field in fields])
            if named is None:
                raise ValueError(
                    f"{self.path}, line {line}: names of the columns t, x, y and p expected, "
                    f"found {_shown(text)}; state them (columns), as 't,x,y,p'"
                )
            line += 1

    def _find_order(self, file: BinaryIO, offset: int, named: ColumnOrder | None) -> None:
        """Find the order of the columns and the unit of t, from the names or the first lines."""
        rows = self._sample(file, offset)
        order, told = self._stated or named, []
        if order is None:
            try:
                order, evident = column_order.infer_order(rows)
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from error
            if evident and order.names != "txyp":
                told.append(f"the columns are taken as {order}, which alone fits their values")
        self._order, unit = order, order.microseconds
        if unit is None:
            unit, reason = column_order.infer_unit(rows[:, order.names.index("t")])
            if unit == 1:
                told.append(f"t is taken as microseconds, since {reason}")
            elif len(rows):
                other = ",".join(order.names.replace("t", "T")).replace("T", "t_ms")
                self.assumption = (
                    f"{self.path}: t is taken as seconds, since {reason}; state another unit as "
                    f"columns (--columns {other})"
                )
        if told and not self._told:
            warnings.warn(
                f"{self.path}: {', and '.join(told)}; state them (columns), as 'x,y,t_us,p', if "
                "that is wrong",
                stacklevel=8,
            )
        self._unit, self._told = unit, True

    def _sample(self, file: BinaryIO, offset: int) -> np.ndarray:
        """[N, 4] of the first lines, up to one that is no event."""
        file.seek(offset)
        rows = []
        for content in file.read(_SAMPLE_BYTES).split(b"\n")[: column_order.SAMPLE]:
            fields = _fields(content)
            if not fields:
                continue
            if len(fields) != 4 or not all(map(_is_number, fields)):
                break
            rows.append([float(field) for field in fields])
        # The last line may be cut off.
        return np.array(rows[:-1] if len(rows) > 1 else rows, np.float64).reshape(-1, 4)

    def _parse(self, text: bytes, line: int) -> np.ndarray:
        """[N, 4] float64, t x y p, of a block that starts at the given line."""
        plain = text.translate(_MARKS)
        # np.loadtxt would warn about a block of blank lines and comments.
        if not any(_fields(content) for content in text.split(b"\n")):
            return np.empty((0, 4))
        try:
            rows = np.loadtxt(io.BytesIO(plain), ndmin=2, encoding="latin-1")
        except ValueError as error:
            raise self._fault_of_format(text, line, error) from error
        if rows.shape[1] != 4:
            raise self._fault_of_format(text, line, ValueError("wrong number of columns"))
        return rows if self._order.names == "txyp" else rows[:, self._order.columns()]

    def _fault_of_format(self, text: bytes, line: int, cause: ValueError) -> ValueError:
        """Find the line that cannot be read."""
        for number, content in enumerate(text.split(b"\n"), line):
            fields = _fields(content)
            if not fields:
                continue
            if len(fields) != 4:
                cut = "" if text.endswith(b"\n") else " (is the file truncated?)"
                return ValueError(
                    f"{self.path}, line {number}: 4 columns ({self._order}) expected, "
                    f"found {len(fields)}: {_shown(content)}{cut}"
                )
            for name, field in zip(self._order.names, fields, strict=True):
                if not _is_number(field):
                    return ValueError(
                        f"{self.path}, line {number}: {name} must be a number, "
                        f"found {_shown(field)}"
                    )
        return ValueError(f"{self.path}, near line {line}: {cause}")

    def _of_unit(self) -> str:
        names = {1e6: "in seconds", 1e3: "in milliseconds", 1.0: "in microseconds"}
        return names.get(self._unit, "in nanoseconds")

    def _check_values(
        self, rows: np.ndarray, text: bytes, line: int, *, places: bool = True
    ) -> None:
        """Refuse what is no event; off the sensor only where ``places``: it can be dropped."""
        t, x, y, p = rows.T
        faults = [
            (~np.isfinite(rows).all(axis=1), "all values must be finite"),
            (t < 0, "t must not be negative"),
            (t * self._unit > _LAST_SECOND * 1e6, f"t must be {self._of_unit()} and fit int64"),
            (
                places
                & ((x <= -1) | (y <= -1) | ((x < 0) & (x % 1 == 0)) | ((y < 0) & (y % 1 == 0))),
                "x and y must not lie outside the sensor",
            ),
            (~np.isin(p, (-1, 0, 1)), "p must be in {0, 1} or {-1, 1}"),
        ]
        for bad, expected in faults:
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"{self.path}, line {_line_of(text, line, row)}: {expected}, "
                    f"found t x y p = {' '.join(f'{value:g}' for value in rows[row])}"
                )

    def _check(self, rows: np.ndarray, text: bytes, line: int, last: int | None) -> None:
        """Check the values of a block; ``last`` is the time of the event before it."""
        self._check_values(rows, text, line)
        microseconds = self._microseconds(rows[:, 0])
        before = np.concatenate(([microseconds[0] if last is None else last], microseconds[:-1]))
        unsorted = microseconds < before
        if unsorted.any():
            row = int(np.argmax(unsorted))
            raise UnsortedError(
                f"{self.path}, line {_line_of(text, line, row)}: times must be sorted, found "
                f"{microseconds[row]} us after {before[row]} us"
            )


class TextEvents(IndexedEventFile):
    """Lines of events, indexed when first needed.

    Args:
        path: of the file.
        order, content: as of :class:`TextIndex`.
    """

    def __init__(
        self, path: Path, order: ColumnOrder | None = None, content: Path | None = None
    ) -> None:
        super().__init__(path)
        self._index = TextIndex(path, order=order, content=content)

    @property
    def assumption(self) -> str | None:
        return self._index.assumption

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        return self._index.size

    @property
    def time_range(self) -> tuple[int, int] | None:
        return self._index.time_range

    def coordinate_extent(self) -> tuple[int, int]:
        return self._index.extent

    def stream(self) -> Iterator[Arrays]:
        return self._index.stream()

    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        return self._index.read(t0, t1)


class TextFormat(Format):
    """Events in text files. Content does not tell: any text could be one."""

    name = "text"
    suffixes = (".txt", ".csv")
    rank = 30

    def open_events(self, path: Path) -> EventFile:
        return TextEvents(path)

    def open_columns(self, path: Path, columns: str) -> EventFile:
        return TextEvents(path, parse_columns(columns))


FORMAT = TextFormat()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.readline(_LONGEST_LINE), b"")


def _is_size(fields: list[bytes]) -> bool:
    return len(fields) == 2 and all(field.isdigit() and int(field) > 0 for field in fields)


def _fields(line: bytes) -> list[bytes]:
    """The columns of a line without its comment."""
    return line.translate(_MARKS).split(b"#", 1)[0].split()


def _line_of(text: bytes, line: int, row: int) -> int:
    """The number of the line that holds the row-th event of a block."""
    for number, content in enumerate(text.split(b"\n"), line):
        if _fields(content):
            row -= 1
            if row < 0:
                return number
    return line


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _shown(content: bytes) -> str:
    return repr(content.strip()[:60].decode("latin-1"))
