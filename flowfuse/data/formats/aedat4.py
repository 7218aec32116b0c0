"""AEDAT 4 files (iniVation cameras), read by dv-processing, which finds windows by itself.

Frames: opening reads every frame once for its time, as of a video.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flowfuse.data.formats.base import (
    EVENTS,
    FRAMES,
    EventFile,
    Format,
    FrameSource,
    StatedTimes,
    starts_with,
)
from flowfuse.events import Events

_FIRST_SPAN = 100_000  # us, looked through for the last event, doubled until there is one


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
        self._range = self._find_range(recording)

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
        columns = (found[name] for name in ("x", "y", "timestamp", "polarity"))
        try:
            return Events(*columns, height=height, width=width)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {error} (indices count from the first event at or after {t0} us)"
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
        while (batch := recording.getNextEventBatch()) is not None:
            if batch.size():
                break
        else:
            return None
        # The file's range is that of all its streams: the last event is looked for from the end.
        start, end = recording.getTimeRange()
        span = _FIRST_SPAN
        while not len(last := self._between(recording, max(start, end + 1 - span), end + 1)):
            span *= 2
        return int(batch.getLowestTime()), int(last["timestamp"][-1])


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
        exposures = np.array(durations, np.int64)
        self.times = self._starts + exposures // 2
        if (np.diff(self.times) <= 0).any():
            index = int(np.argmax(np.diff(self.times) <= 0)) + 1
            raise ValueError(
                f"{path}: frame times must increase, frame {index} has {self.times[index]} us "
                f"after {self.times[index - 1]} us"
            )
        if (exposures > 0).all():
            self.exposures = np.stack((self._starts, self._starts + exposures), axis=1)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def read(self, index: int) -> np.ndarray:
        start = int(self._starts[index])
        found = self._reader.get().getFramesTimeRange(start, start + 1)
        if not found:
            raise ValueError(f"{self.name(index)} cannot be read; is the file damaged?")
        image = np.array(found[0].image)
        if image.dtype != np.uint8:
            raise ValueError(f"{self.name(index)}: 8 bits expected, found {image.dtype}")
        if image.ndim == 3 and image.shape[2] == 1:
            return image[:, :, 0]
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image

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
        return Aedat4Events(path)

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        return Aedat4Frames(path)


FORMAT = Aedat4Format()
