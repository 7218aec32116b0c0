"""AEDAT 4 files (iniVation cameras), read by dv-processing, which finds windows by itself.

Opening goes through all packets of events and frames once: their times are checked.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flowfuse.data.formats.aedat4_packets import check_packets
from flowfuse.data.formats.base import (
    EVENTS,
    FRAMES,
    Arrays,
    EventFile,
    Format,
    FrameSource,
    StatedTimes,
    UnsortedError,
    off_sensor_hint,
    starts_with,
)
from flowfuse.data.formats.spool import SpooledEvents
from flowfuse.events import Events


def open_aedat4(path: Path) -> Any:
    """Open a file with dv-processing.

    Raises:
        ModuleNotFoundError: dv-processing is not installed.
        ValueError: the file is damaged.
    """
    try:
        import dv_processing
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path}: .aedat4 is read by dv-processing, which is not installed: "
            "pip install dv-processing"
        ) from error
    check_packets(path)
    try:
        return dv_processing.io.MonoCameraRecording(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0][-120:]
        raise ValueError(f"{path}: not a readable .aedat4, is it truncated? ({reason})") from error


class _Reader:
    """A recording opened in this process: a forked one must not share its place in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, Any] | None = None

    def get(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_aedat4(self.path)
        return self._opened[1]


class Aedat4Events(EventFile):
    """The stream "events" of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._reader = _Reader(path)
        recording = self._reader.get()
        if not recording.isEventStreamAvailable():
            names = recording.getStreamNames()
            raise ValueError(f"{path}: stream 'events' expected, found {names}")
        size = recording.getEventResolution()
        self._size = None if size is None else (int(size[1]), int(size[0]))
        self._fault: str | None = None
        self._range = self._find_range(recording)

    def check_order(self) -> None:
        if self._fault is not None:
            raise UnsortedError(self._fault)

    @property
    def is_searchable(self) -> bool:
        """Whether the file has a table of times; DV wrote none until mid 2020."""
        if self._range is None:
            return True
        start, end = self._reader.get().getTimeRange()
        return self._fault is not None or bool(start <= self._range[0] and self._range[1] <= end)

    def stream(self) -> Iterator[Arrays]:
        recording = self._reader.get()
        recording.resetSequentialRead()
        while (batch := recording.getNextEventBatch()) is not None:
            if batch.size():
                found = np.array(batch.numpy())
                yield found["x"], found["y"], found["timestamp"], found["polarity"]

    @property
    def time_range(self) -> tuple[int, int] | None:
        return self._range

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        return self._size

    def coordinate_extent(self) -> tuple[int, int]:
        largest = np.zeros(2, int)
        recording = self._reader.get()
        recording.resetSequentialRead()
        while (batch := recording.getNextEventBatch()) is not None:
            if batch.size():
                largest = np.maximum(largest, batch.coordinates().max(axis=0))
        return int(largest[1]) + 1, int(largest[0]) + 1

    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        found = self._between(self._reader.get(), t0, t1)
        x, y, t, p = (found[name] for name in ("x", "y", "timestamp", "polarity"))
        try:
            return Events(x, y, t, p, height=height, width=width)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {error} (indices count from the first event at or after {t0} us)"
                f"{off_sensor_hint(x, y, height, width)}"
            ) from error

    def _between(self, recording: Any, t0: int, t1: int) -> np.ndarray:
        """The events of [t0, t1), as a copy."""
        start, end = recording.getTimeRange()
        t0, t1 = max(t0, start), min(t1, end + 1)
        try:
            store = recording.getEventsTimeRange(t0, max(t0, t1))
        except RuntimeError as error:
            reason = str(error).splitlines()[0][-120:]
            raise ValueError(
                f"{self.path}: the events from {t0} to {t1} us cannot be read ({reason})"
            ) from error
        # An empty store has no array at all.
        return np.array(store.numpy()) if store is not None and store.size() else _NO_EVENTS

    def _find_range(self, recording: Any) -> tuple[int, int] | None:
        recording.resetSequentialRead()
        first = last_time = None
        while (batch := recording.getNextEventBatch()) is not None:
            if not batch.size():
                continue
            start, end = int(batch.getLowestTime()), int(batch.getHighestTime())
            first = start if first is None else first
            if last_time is not None and start < last_time and self._fault is None:
                self._fault = (
                    f"{self.path}: times must be sorted, found a packet from {start} us after one "
                    f"up to {last_time} us"
                )
            last_time = end
        if first is None or last_time is None:
            return None
        return first, last_time


_NO_EVENTS = np.empty(
    0, [("timestamp", np.int64), ("x", np.int16), ("y", np.int16), ("polarity", np.int8)]
)


class Aedat4Frames(FrameSource):
    """The stream "frames" of a file; times are mid-exposure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _Reader(path)
        recording = self._reader.get()
        if not recording.isFrameStreamAvailable():
            names = recording.getStreamNames()
            raise ValueError(f"{path}: stream 'frames' expected, found {names}")
        starts, durations = [], []
        recording.resetSequentialRead()
        while (frame := recording.getNextFrame()) is not None:
            starts.append(frame.timestamp)
            # A negative duration is how an unknown one is stored.
            durations.append(max(0, round(frame.exposure.total_seconds() * 1e6)))
        # The time stamp of a frame is the start of its exposure.
        self._starts = np.array(starts, np.int64)
        # Of a sequential read: the process, what it reads, and its next frame.
        self._place: tuple[int, Any, int] = (-1, None, 0)
        first, last = recording.getTimeRange()
        self._searchable = not starts or (first <= min(starts) and max(starts) <= last)
        exposures = np.array(durations, np.int64)
        self.times = self._starts + exposures // 2
        if (exposures > 0).all():
            self.exposures = np.stack((self._starts, self._starts + exposures), axis=1)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def read(self, index: int) -> np.ndarray:
        start = int(self._starts[index])
        if self._searchable:
            # Several may have one stamp: the one meant is counted from their first.
            among = index - int(np.argmax(self._starts == start))
            found = self._reader.get().getFramesTimeRange(start, start + 1) or []
            frame = found[among] if among < len(found) else None
        else:
            frame = self._read_in_order(index)
        if frame is None:
            raise ValueError(f"{self.name(index)} cannot be read; is the file damaged?")
        image = np.array(frame.image)
        if image.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{self.name(index)}: 8 or 16 bits expected, found {image.dtype}")
        if image.ndim == 3 and image.shape[2] == 1:
            return image[:, :, 0]
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image

    def _read_in_order(self, index: int) -> Any:
        process, recording = os.getpid(), self._reader.get()
        if (process, recording) != self._place[:2] or index < self._place[2]:
            recording.resetSequentialRead()
            self._place = (process, recording, 0)
        frame = None
        for _ in range(index + 1 - self._place[2]):
            frame = recording.getNextFrame()
        self._place = (process, recording, index + 1)
        return frame

    def name(self, index: int) -> str:
        return f"{self.path}, frame {index}"


class Aedat4Format(Format):
    """The streams "events" and "frames" of AEDAT 4 files."""

    name = "AEDAT 4"
    suffixes = (".aedat4",)
    holds = (EVENTS, FRAMES)
    rank = 50

    def recognizes(self, path: Path) -> bool:
        return starts_with(path, b"#!AER-DAT4.0")

    def contents(self, path: Path) -> tuple[bool, bool]:
        recording = open_aedat4(path)
        return recording.isEventStreamAvailable(), recording.isFrameStreamAvailable() and (
            recording.getNextFrame() is not None
        )

    def open_events(self, path: Path) -> EventFile:
        events = Aedat4Events(path)
        if events.is_searchable:
            return events
        warnings.warn(
            f"{path}: its table has no times, as DV wrote it before mid 2020: all events are "
            "unpacked into temporary files, 17 bytes each",
            stacklevel=4,
        )
        return SpooledEvents(path, events.stream(), events.sensor_size)

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        return Aedat4Frames(path)


FORMAT = Aedat4Format()
