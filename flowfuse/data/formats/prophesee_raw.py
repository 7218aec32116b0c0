"""Prophesee .raw files (EVT 2.0, 2.1, 3.0, 4.0): indexed by one pass, then read by blocks.

Source of the bit layouts: "EVT 2.0 Format" and "EVT 3.0 Format", docs.prophesee.ai.

Both formats are streams of words of which some set a state (time, row) that later words refer to.
Here a block of words is decoded at once: the state at a word is that of the last word that set it,
found by a running maximum over the places of such words. What a block inherits is in the index.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowfuse.data.formats import prophesee_words
from flowfuse.data.formats.base import (
    EventFile,
    Format,
    IndexedEventFile,
    UnsortedError,
    starts_with,
)
from flowfuse.data.formats.prophesee_words import (
    Columns,
    DecoderState,
    hold,
    times_evt3,
    times_high,
)

BLOCK_BYTES = 1 << 22
_DOUBTFUL = 1_000_000  # us without events where a clock overflows: it may have been reset
_HEADER_BYTES = 1 << 16  # more than any header has

# What names the sensor in headers without a geometry, and (height, width) of those sold.
_SENSOR_KEYS = ("sensor_name", "plugin_name")
_GENERATION_KEYS = ("sensor_generation", "generation")
_SENSORS = {"imx636": (720, 1280), "imx646": (720, 1280), "genx320": (320, 320)}
_SENSORS |= {"gen3": (480, 640), "gen41": (720, 1280), "gen42": (720, 1280)}
_GENERATIONS = {"3.1": (480, 640), "4.1": (720, 1280), "4.2": (720, 1280)}


def decode_evt2(words: np.ndarray, state: DecoderState) -> tuple[Columns, DecoderState]:
    """Decode 32-bit words.

    Bits 31-28 are the type. 0 and 1, an OFF and an ON event: bits 27-22 are the lower 6 bits of the
    time in microseconds, 21-11 the column, 10-0 the row. 8: bits 27-0 are the upper bits of the
    time. Other words (triggers, extensions) are passed over.

    Args:
        words: [N] uint32.
        state: before the first word.

    Returns:
        x, y, t, p of the events, t int64 microseconds; events before the first time are left out;
        the state after the last word.
    """
    kind = words >> 28
    high, loops = times_high(kind == 8, words & 0xFFFFFFF, state, 28)
    events = (kind <= 1) & (high >= 0)
    found = words[events]
    t = ((loops[events] << 28 | high[events]) << 6) | (found >> 22 & 0x3F)
    columns = (found >> 11 & 0x7FF).astype(np.int32), (found & 0x7FF).astype(np.int32)
    if len(words):
        state = replace(state, high=int(high[-1]), loops=int(loops[-1]))
    return (*columns, t, kind[events].astype(np.uint8)), state


def decode_evt3(words: np.ndarray, state: DecoderState) -> tuple[Columns, DecoderState]:
    """Decode 16-bit words.

    Bits 15-12 are the type. 0: bits 10-0 are the row. 2: one event, bit 11 its polarity, bits 10-0
    its column. 3: the same of the vectors that follow. 4 and 5: a vector of 12 or 8 pixels from
    there on, a bit for each that fired; the next one starts behind it. 6 and 8: the lower and upper
    12 bits of the time in microseconds. Other words are passed over.

    Args and returns as of :func:`decode_evt2`, with words [N] uint16.
    """
    if not len(words):
        return _no_events(), state
    kind, value = words >> 12, (words & 0xFFF).astype(np.int64)
    t, high, loops = times_evt3(kind, value, state)
    y = hold(kind == 0, value & 0x7FF, state.y)
    is_base, length = kind == 3, np.where(kind == 4, 12, np.where(kind == 5, 8, 0))
    polarity = hold(is_base, value >> 11, state.polarity)
    # The column of a vector: that of its base, and the lengths of the vectors in between.
    passed = np.cumsum(length)
    x = hold(is_base, (value & 0x7FF) - passed, state.x) + passed - length

    single = np.flatnonzero((kind == 2) & (high >= 0))
    vectors = np.flatnonzero((length > 0) & (high >= 0))
    bits = (value[vectors, None] >> np.arange(12)) & 1
    bits[length[vectors] == 8, 8:] = 0
    row, bit = np.nonzero(bits)
    source = np.concatenate((single, vectors[row]))
    order = np.argsort(source, kind="stable")  # bits of one vector stay in their order
    source = source[order]
    columns = np.concatenate((value[single] & 0x7FF, x[vectors[row]] + bit))[order]
    polarities = np.concatenate((value[single] >> 11, polarity[vectors[row]]))[order]
    state = DecoderState(
        high=int(high[-1]),
        loops=int(loops[-1]),
        low=int(t[-1] & 0xFFF),
        y=int(y[-1]),
        x=int(x[-1] + length[-1]),
        polarity=int(polarity[-1]),
    )
    if is_base[-1]:
        state = replace(state, x=int(value[-1] & 0x7FF))
    found = columns.astype(np.int32), y[source].astype(np.int32), t[source]
    return (*found, polarities.astype(np.uint8)), state


def _no_events() -> Columns:
    none = np.empty(0, np.int32)
    return none, none, np.empty(0, np.int64), np.empty(0, np.uint8)


@dataclass(frozen=True)
class Encoding:
    """How a stream of words becomes events and triggers."""

    dtype: str  # of a word
    decode: Callable[[np.ndarray, DecoderState], tuple[Columns, DecoderState]]
    triggers: Callable[[np.ndarray, DecoderState], np.ndarray] | None = None
    counter: int | None = None  # bits of the clock, where it overflows within hours


ENCODINGS = {
    "2": Encoding("<u4", decode_evt2, prophesee_words.triggers_evt2),
    "2.1": Encoding("<u8", prophesee_words.decode_evt21, prophesee_words.triggers_evt21),
    "2.1 legacy": Encoding(
        "<u8", prophesee_words.decode_evt21_legacy, prophesee_words.triggers_evt21_legacy
    ),
    "3": Encoding("<u2", decode_evt3, prophesee_words.triggers_evt3, 24),
    "4": Encoding("<u4", prophesee_words.decode_evt4, prophesee_words.triggers_evt4),
}


@dataclass(frozen=True)
class _Block:
    """A stretch of words with at least one event."""

    offset: int  # bytes
    size: int
    state: DecoderState
    first: int  # time of the first event, us
    index: int  # of the first event in the file


class RawEvents(IndexedEventFile):
    """A .raw file of EVT 2.0, 2.1, 3.0 or 4.0; other streams of words are subclasses.

    The index is made by one streaming pass when it is first needed; nothing is written.

    Args:
        path: an existing file.
        block_bytes: what is decoded together, a multiple of 8.
    """

    def __init__(self, path: Path, block_bytes: int = BLOCK_BYTES) -> None:
        super().__init__(path)
        self.block_bytes = block_bytes
        encoding, self._start, self._size = self._find_layout(path)
        self._dtype, self._decode, self._trigger_decoder = (
            encoding.dtype,
            encoding.decode,
            encoding.triggers,
        )
        self._counter = encoding.counter
        self._blocks: list[_Block] | None = None
        self._tell_cut()

    def _find_layout(self, path: Path) -> tuple[Encoding, int, tuple[int, int] | None]:
        """The encoding, where the words begin, and (height, width), or None where not stated."""
        header, start = read_header(path)
        return ENCODINGS[_find_format(path, header)], start, find_size(path, header)

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        return self._size

    @property
    def time_range(self) -> tuple[int, int] | None:
        blocks = self._index()
        return (blocks[0].first, self._last) if blocks else None

    def coordinate_extent(self) -> tuple[int, int]:
        self._index()
        return int(self._extent[1]) + 1, int(self._extent[0]) + 1

    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        blocks = self._index()
        starts = [block.first for block in blocks]
        # Events at t0 itself may begin in the block before the first one that starts at t0.
        first = max(0, int(np.searchsorted(starts, t0, side="left")) - 1)
        last = max(first, int(np.searchsorted(starts, t1, side="left")))
        parts = []
        with open(self.path, "rb") as file:
            for block in blocks[first:last]:
                file.seek(block.offset)
                words = np.frombuffer(file.read(block.size), self._dtype)
                parts.append(self._decode(words, block.state)[0])
        columns = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else _no_events()
        window = slice(*np.searchsorted(columns[2], (t0, max(t0, t1)), side="left"))
        start = (blocks[first].index if parts else 0) + int(window.start)
        x, y, t, p = (column[window] for column in columns)
        return start, (x, y, t, p)

    def triggers(self) -> np.ndarray:
        if self._trigger_decoder is None:
            return super().triggers()
        state, parts = DecoderState(), [np.empty(0, prophesee_words.TRIGGER)]
        width = np.dtype(self._dtype).itemsize
        with open(self.path, "rb") as file:
            file.seek(self._start)
            while data := file.read(self.block_bytes):
                words = np.frombuffer(data[: len(data) - len(data) % width], self._dtype)
                parts.append(self._trigger_decoder(words, state))
                state = self._decode(words, state)[1]
        return np.concatenate(parts)

    def stream(self) -> Iterator[Columns]:
        return (columns for _, _, _, columns in self._decoded())

    def _decoded(self) -> Iterator[tuple[int, int, DecoderState, Columns]]:
        """Offset and size in bytes, state before, and events of the blocks that have some."""
        state, width = DecoderState(), np.dtype(self._dtype).itemsize
        with open(self.path, "rb") as file:
            file.seek(offset := self._start)
            while data := file.read(self.block_bytes):
                # A word cut off at the end is passed over; cameras leave such files.
                size = len(data) - len(data) % width
                before = state
                columns, state = self._decode(np.frombuffer(data[:size], self._dtype), before)
                if len(columns[2]):
                    yield offset, size, before, columns
                offset += len(data)

    def _index(self) -> list[_Block]:
        if self._blocks is not None:
            return self._blocks
        blocks, count, last = [], 0, 0
        doubtful: tuple[int, int, int] | None = None
        self._extent = np.zeros(2, np.int64)
        for offset, size, before, (x, y, t, _) in self._decoded():
            self._check_order(t, last, count)
            doubtful = doubtful or self._find_doubtful(t, last if count else int(t[0]), count)
            blocks.append(_Block(offset, size, before, int(t[0]), count))
            self._extent = np.maximum(self._extent, (x.max(), y.max()))
            count, last = count + len(t), int(t[-1])
        self._last = last
        self._blocks = blocks
        self._tell_overflow(doubtful)
        self._tell_untimed()
        return blocks

    def _find_doubtful(self, t: np.ndarray, last: int, count: int) -> tuple[int, int, int] | None:
        """An overflow that a reset of the clock may have been: its event, and times around it."""
        if self._counter is None:
            return None
        before = np.concatenate(((last,), t[:-1]))
        found = (t >> self._counter != before >> self._counter) & (t - before > _DOUBTFUL)
        if not found.any():
            return None
        index = int(np.argmax(found))
        return count + index, int(before[index]), int(t[index])

    def _tell_overflow(self, doubtful: tuple[int, int, int] | None) -> None:
        """Warn of overflows of a clock that runs for an hour, and of those that may be none."""
        if self._counter == prophesee_words.BITS and self._last >> self._counter:
            times = self._last >> self._counter
            warnings.warn(
                f"{self.path}: the clock overflowed {times} time{'s' * (times > 1)} at 2^32 us "
                "(71.6 min); the times are continued",
                stacklevel=5,
            )
        elif doubtful is not None and self._counter is not None:
            event, before, after = doubtful
            warnings.warn(
                f"{self.path}: at event {event} the clock of {self._counter} bits goes back, which "
                f"is taken as its overflow after {2**self._counter / 1e6:.1f} s: no event from "
                f"{before / 1e6:.6f} to {after / 1e6:.6f} s; if two recordings were joined there, "
                "split the file",
                stacklevel=5,
            )

    def _tell_cut(self) -> None:
        """Warn of a word that is cut off at the end of the file."""
        width = np.dtype(self._dtype).itemsize
        rest = max(0, self.path.stat().st_size - self._start) % width
        if rest:
            warnings.warn(
                f"{self.path}: the file is truncated: its last word has {rest} of {width} bytes "
                "and is passed over",
                stacklevel=5,
            )

    def _tell_untimed(self) -> None:
        """Warn of events at the beginning that have no time: recording began amid the stream."""
        with open(self.path, "rb") as file:
            file.seek(self._start)
            data = file.read(self.block_bytes)
        width = np.dtype(self._dtype).itemsize
        words = np.frombuffer(data[: len(data) - len(data) % width], self._dtype)
        lost = prophesee_words.count_untimed(self._decode, words, DecoderState())
        if lost:
            warnings.warn(
                f"{self.path}: {lost} events stand before the first time and are left out",
                stacklevel=5,
            )

    def _check_order(self, t: np.ndarray, last: int, count: int) -> None:
        before = np.concatenate(((last,), t[:-1]))
        if (t < before).any():
            index = int(np.argmax(t < before))
            raise UnsortedError(
                f"{self.path}: times must be sorted, event {count + index} has {t[index]} us after "
                f"{before[index]} us"
            )


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """Keys and values of the lines that start with %, and where the words begin."""
    with open(path, "rb") as file:
        data = file.read(_HEADER_BYTES)
    header: dict[str, str] = {}
    start = 0
    while data[start : start + 1] == b"%":
        end = data.find(b"\n", start)
        if header and not _is_header_line(data[start : end if end >= 0 else start + 2]):
            break  # a word of data: 0x..25 begins with "%", too
        if end < 0:
            raise ValueError(f"{path}: a header line without an end; is the file truncated?")
        key, _, value = data[start + 1 : end].decode("latin-1").strip().partition(" ")
        start = end + 1
        if key.lower() == "end":
            break
        header[key.lower()] = value.strip()
    if not header:
        raise ValueError(f"{path}: not a Prophesee .raw file, it has no header of lines with '% '")
    return header, start


def _is_header_line(line: bytes) -> bool:
    """Whether bytes are text that follows "% "; words of data are hardly ever so for long."""
    try:
        text = line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        return False
    return text[:2] in ("%", "% ") and (text + " ").replace("\t", " ").isprintable()


def _find_format(path: Path, header: dict[str, str]) -> str:
    """The key of ENCODINGS."""
    name, *fields = header.get("format", "").split(";")
    stated = name or f"EVT{header.get('evt', '?')}"
    match = re.fullmatch(r"EVT\s*(2\.?1|[234])(\.0)?", stated, re.IGNORECASE)
    if match is None:
        raise ValueError(
            f"{path}: encoding {stated!r}, expected EVT2, EVT21, EVT3 or EVT4; Prophesee's "
            "metavision_file_to_raw converts others"
        )
    key = "2.1" if len(match[1]) > 1 else match[1]
    order = dict(field.split("=", 1) for field in fields if "=" in field).get("endianness")
    order = order or header.get("endianness")
    if key == "2.1" and order in (None, "legacy"):  # as cameras wrote before this was stated
        return "2.1 legacy"
    if order not in (None, "little"):
        raise ValueError(f"{path}: endianness {order!r}, expected little")
    return key


def find_size(path: Path, header: dict[str, str]) -> tuple[int, int] | None:
    """(height, width), of "geometry 1280x720" or "format EVT3;height=720;width=1280"."""
    geometry = re.fullmatch(r"(\d+)x(\d+)", header.get("geometry", ""))
    fields = dict(re.findall(r"(height|width)=(\d+)", header.get("format", "")))
    if geometry:
        fields = {"width": geometry[1], "height": geometry[2]}
    if len(fields) == 2 and min(map(int, fields.values())) > 0:
        return int(fields["height"]), int(fields["width"])
    named = " ".join(header.get(key, "") for key in _SENSOR_KEYS).lower()
    generation = next((header[key] for key in _GENERATION_KEYS if key in header), "")
    found = [size for name, size in _SENSORS.items() if name in named]
    return found[0] if found else _GENERATIONS.get(generation[:3])


class PropheseeRawFormat(Format):
    """EVT 2.0, 2.1, 3.0 and 4.0."""

    name = "Prophesee RAW"
    suffixes = (".raw",)
    rank = 40

    def recognizes(self, path: Path) -> bool:
        return starts_with(path, b"% ") and _is_prophesee(path)

    def open_events(self, path: Path) -> EventFile:
        return RawEvents(path)


FORMAT = PropheseeRawFormat()


def _is_prophesee(path: Path) -> bool:
    try:
        header, _ = read_header(path)
    except ValueError:
        return False
    return "evt" in header or "format" in header
