"""AEDAT 3.1 files (iniVation cameras recorded by cAER): events and frames, indexed by one pass.

Behind header lines stand packets of events of one type, each with a header of 28 bytes. All numbers
have their lowest byte first. An event has the lower 31 bits of its time in microseconds, its
packet the upper ones. Source of the layout: "AEDAT 3.1", docs.inivation.com.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flowfuse.data.formats.aedat2 import SIGNATURE, read_header
from flowfuse.data.formats.base import (
    EVENTS,
    FRAMES,
    Arrays,
    EventFile,
    Format,
    FrameSource,
    IndexedEventFile,
    StatedTimes,
    UnsortedError,
    starts_with,
)
from flowfuse.data.formats.prophesee_words import TRIGGER

_PACKET = struct.Struct("<hhiiiiii")  # type, source, size, place of time, overflow, 3 counts
_SPECIAL, _POLARITY, _FRAME = 0, 1, 2
_PAIR = np.dtype([("data", "<u4"), ("t", "<i4")])
_FRAME_HEAD = struct.Struct("<I8i")  # info, 4 times, width, height, column, row
_RISES, _FALLS = 2, 3  # kinds of special events
_SIZES = {  # by the name of the source: (height, width)
    "DVS128": (128, 128),
    "EDVS4337": (128, 128),
    "DAVIS128": (128, 128),
    "DAVIS208": (192, 208),
    "DAVIS240": (180, 240),
    "DAVIS346": (260, 346),
    "DAVIS640": (480, 640),
}


@dataclass(frozen=True)
class Packet:
    """Events of one type from one source.

    Attributes:
        kind: of the events.
        source: number of the camera.
        offset: of the first event, bytes.
        size: of one event, bytes.
        base: what is added to their times, microseconds.
        count: events that are there.
    """

    kind: int
    source: int
    offset: int
    size: int
    base: int
    count: int


class Packets:
    """The packets of a file, of events and of frames.

    Raises:
        ValueError: naming the file and the packet at fault.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines, start = read_header(path)
        version = lines[0].removeprefix(SIGNATURE.decode()) if lines else "1.0"
        if version != "3.1":
            raise ValueError(f"{path}: AEDAT version {version}, expected 3.1; DV converts others")
        named = (re.fullmatch(r"#Source (\d+): (.*)", line) for line in lines)
        self._names = {int(found[1]): found[2].strip() for found in named if found}
        self.packets = self._read(start)

    def of(self, kind: int) -> list[Packet]:
        """The packets of one kind, of the source with the lowest number, that have an event."""
        found = [packet for packet in self.packets if packet.kind == kind and packet.count]
        sources = sorted({packet.source for packet in found})
        if len(sources) > 1:
            warnings.warn(
                f"{self.path}: source {sources[0]} ({self._names.get(sources[0], 'unnamed')}) is "
                f"taken, of {', '.join(map(str, sources))}",
                stacklevel=6,
            )
        return [packet for packet in found if packet.source == sources[0]]

    def size(self, source: int) -> tuple[int, int] | None:
        """(height, width) of a source, by its name; None where that is unknown."""
        name = self._names.get(source, "").upper().replace(" ", "")
        return next((size for known, size in _SIZES.items() if name.startswith(known)), None)

    def read(self, packet: Packet) -> bytes:
        """The bytes of a packet's events."""
        with open(self.path, "rb") as file:
            file.seek(packet.offset)
            return file.read(packet.count * packet.size)

    def pairs(self, packet: Packet) -> tuple[np.ndarray, np.ndarray]:
        """The data and times (us) of a packet's valid events of 8 bytes."""
        rows = np.frombuffer(self.read(packet), _PAIR)
        rows = rows[(rows["data"] & 1).astype(bool)]
        return rows["data"], packet.base + rows["t"].astype(np.int64)

    def _read(self, place: int) -> list[Packet]:
        packets: list[Packet] = []
        end = self.path.stat().st_size
        with open(self.path, "rb") as file:
            while place < end:
                file.seek(place)
                head = file.read(_PACKET.size)
                if len(head) < _PACKET.size:
                    self._tell_cut("a packet's header is cut off")
                    break
                kind, source, size, _, overflow, _, count, _ = _PACKET.unpack(head)
                self._check(place, kind, size, overflow, count)
                place += _PACKET.size
                there = min(count, (end - place) // size)
                if there < count:
                    self._tell_cut(f"{count - there} of {count} events of the last packet are lost")
                packets.append(Packet(kind, source, place, size, overflow << 31, there))
                place += count * size
        return packets

    def _tell_cut(self, what: str) -> None:
        warnings.warn(f"{self.path}: the file is truncated, {what}", stacklevel=8)

    def _check(self, place: int, kind: int, size: int, overflow: int, count: int) -> None:
        fixed = {_SPECIAL: _PAIR.itemsize, _POLARITY: _PAIR.itemsize}
        least = _FRAME_HEAD.size if kind == _FRAME else 1
        if kind < 0 or size < least or count < 0 or overflow < 0 or size != fixed.get(kind, size):
            raise ValueError(
                f"{self.path}: the packet at byte {place} has {count} events of type {kind} with "
                f"{size} bytes and overflow {overflow}; is the file damaged?"
            )


class Aedat3Events(IndexedEventFile):
    """The polarity events of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._packets = Packets(path)
        self._chosen: list[Packet] = []
        bounds: list[tuple[int, int]] = []
        counts = [0]
        self._fault: str | None = None
        for packet in self._packets.of(_POLARITY):
            _, t = self._packets.pairs(packet)
            if not len(t):
                continue
            before = np.concatenate(([bounds[-1][1] if bounds else t[0]], t[:-1]))
            if (t < before).any() and self._fault is None:
                index = int(np.argmax(t < before))
                self._fault = (
                    f"{path}: times must be sorted, event {counts[-1] + index} has {t[index]} us "
                    f"after {before[index]} us"
                )
            self._chosen.append(packet)
            bounds.append((int(t[0]), int(t[-1])))
            counts.append(counts[-1] + len(t))
        self._bounds = np.array(bounds, np.int64).reshape(-1, 2)
        self._counts = counts

    def check_order(self) -> None:
        if self._fault is not None:
            raise UnsortedError(self._fault)

    def stream(self) -> Iterator[Arrays]:
        for packet in self._chosen:
            x, y, t, p = self._columns(packet)
            yield x, y, t, p

    @property
    def time_range(self) -> tuple[int, int] | None:
        return (int(self._bounds[0, 0]), int(self._bounds[-1, 1])) if self._chosen else None

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        return self._packets.size(self._chosen[0].source) if self._chosen else None

    def coordinate_extent(self) -> tuple[int, int]:
        largest = np.zeros(2, int)
        for packet in self._chosen:
            x, y, _, _ = self._columns(packet)
            largest = np.maximum(largest, (x.max(), y.max()))
        return int(largest[1]) + 1, int(largest[0]) + 1

    def triggers(self) -> np.ndarray:
        parts = [np.empty(0, TRIGGER)]
        for packet in self._packets.of(_SPECIAL):
            data, t = self._packets.pairs(packet)
            kind = data >> 1 & 0x7F
            found = (kind == _RISES) | (kind == _FALLS)
            triggers = np.zeros(int(found.sum()), TRIGGER)
            triggers["t"], triggers["p"] = t[found], kind[found] == _RISES
            parts.append(triggers)
        return np.concatenate(parts)

    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        first = int(np.searchsorted(self._bounds[:, 1], t0, side="left"))
        last = max(first, int(np.searchsorted(self._bounds[:, 0], t1, side="left")))
        parts = [self._columns(packet) for packet in self._chosen[first:last]]
        if not parts:
            none = np.empty(0, np.int32)
            return self._counts[first], (none, none, np.empty(0, np.int64), np.empty(0, np.uint8))
        x, y, t, p = (np.concatenate(column) for column in zip(*parts, strict=True))
        rows = slice(*np.searchsorted(t, (t0, max(t0, t1)), side="left"))
        return self._counts[first] + int(rows.start), (x[rows], y[rows], t[rows], p[rows])

    def _columns(self, packet: Packet) -> tuple[np.ndarray, ...]:
        """x, y, t, p: bits 31-17 are the column, 16-2 the row, 1 the polarity."""
        data, t = self._packets.pairs(packet)
        x, y = (data >> 17).astype(np.int32), (data >> 2 & 0x7FFF).astype(np.int32)
        return x, y, t, (data >> 1 & 1).astype(np.uint8)


class Aedat3Frames(FrameSource):
    """The frames of a file; times are mid-exposure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._packets = Packets(path)
        self._places: list[tuple[int, int]] = []  # of each frame: offset and size, bytes
        exposures = []
        with open(path, "rb") as file:
            for packet in self._packets.of(_FRAME):
                for number in range(packet.count):
                    place = packet.offset + number * packet.size
                    file.seek(place)
                    info, _, _, start, end, *_ = _FRAME_HEAD.unpack(file.read(_FRAME_HEAD.size))
                    if info & 1:
                        self._places.append((place, packet.size))
                        exposures.append((packet.base + start, packet.base + end))
        bounds = np.array(exposures, np.int64).reshape(-1, 2)
        if (bounds[:, 1] < bounds[:, 0]).any():
            index = int(np.argmax(bounds[:, 1] < bounds[:, 0]))
            raise ValueError(f"{self.name(index)}: the exposure ends before it starts")
        self.times = bounds.sum(axis=1) // 2
        self.exposures = bounds

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def read(self, index: int) -> np.ndarray:
        place, size = self._places[index]
        with open(self.path, "rb") as file:
            file.seek(place)
            data = file.read(size)
        info, _, _, _, _, width, height, _, _ = _FRAME_HEAD.unpack_from(data)
        channels = info >> 1 & 7
        needed = _FRAME_HEAD.size + 2 * width * height * channels
        if width < 1 or height < 1 or channels not in (1, 3, 4) or needed > len(data):
            raise ValueError(
                f"{self.name(index)}: {width} x {height} px of {channels} channels do not fit its "
                f"{len(data)} bytes; is the file damaged?"
            )
        pixels = np.frombuffer(data, "<u2", width * height * channels, _FRAME_HEAD.size)
        if channels == 1:
            return pixels.reshape(height, width).astype(np.uint16)
        image = pixels.reshape(height, width, channels).astype(np.uint16)
        return image if channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)

    def white(self, index: int) -> int:
        return 65535  # as the format has it, whatever the converter gives

    def name(self, index: int) -> str:
        return f"{self.path}, frame {index}"


class Aedat3Format(Format):
    """Events and frames of AEDAT 3.1 files."""

    name = "AEDAT 3"
    suffixes = (".aedat",)
    holds = (EVENTS, FRAMES)
    rank = 54

    def recognizes(self, path: Path) -> bool:
        return starts_with(path, SIGNATURE + b"3.")

    def contents(self, path: Path) -> tuple[bool, bool]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it is opened
            found = {packet.kind for packet in Packets(path).packets if packet.count}
        return _POLARITY in found or _FRAME not in found, _FRAME in found

    def open_events(self, path: Path) -> EventFile:
        return Aedat3Events(path)

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        return Aedat3Frames(path)


FORMAT = Aedat3Format()
