"""A recording made of one event file and one source of frames."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from flowfuse.data.formats.base import EventFile, FrameSource
from flowfuse.data.interval_units import check_unit, whole_limits
from flowfuse.data.recording import Flow
from flowfuse.events import Events


class FileRecording:
    """A :class:`~flowfuse.data.recording.Recording` of an event file and frames, either optional.

    Data sets whose ground truth is known override :meth:`ground_truth_at`. Those without frames
    list its time intervals in ``ground_truth_intervals``, [N, 2] int64, start and end in
    microseconds; the index of :meth:`ground_truth_at` then counts these.

    Args:
        path: the directory or file, or None.
        event_file: or None.
        frame_source: or None.
        exposures: [F, 2] int64, microseconds; None: those of the frames, where they are known.
        stated_size: who states the size of the sensor, such as a file, and (height, width), px.

    Attributes:
        assumption: of the event file, see :attr:`EventFile.assumption`; None: nothing was assumed.

    Raises:
        ValueError: sizes contradict each other, or there are neither events nor frames.
    """

    assumption: str | None = None
    ground_truth_step = 1
    ground_truth_times: tuple[float, ...] = ()
    ground_truth_intervals: np.ndarray = np.empty((0, 2), np.int64)

    def __init__(
        self,
        path: Path | None,
        event_file: EventFile | None,
        frame_source: FrameSource | None,
        *,
        exposures: np.ndarray | None = None,
        stated_size: tuple[str, tuple[int, int]] | None = None,
    ) -> None:
        self.path = path
        self._event_file = event_file
        self._frame_source = frame_source
        times = frame_source.times if frame_source is not None else np.empty(0, np.int64)
        self.frame_times = times
        self.has_events = event_file is not None
        self.has_frames = len(times) > 0
        self.exposures = None if frame_source is None else frame_source.exposures
        if exposures is not None:
            self.exposures = exposures
        self.height, self.width = self._find_size(stated_size)

    def __repr__(self) -> str:
        events = "events" if self.has_events else "no events"
        return (
            f"{type(self).__name__}({self.path}, {self.width} x {self.height}, "
            f"{len(self.frame_times)} frames, {events})"
        )

    @property
    def time_range(self) -> tuple[int, int]:
        """The times of the first and the last thing recorded, event or frame, in microseconds."""
        ranges = [(int(self.frame_times[0]), int(self.frame_times[-1]))] if self.has_frames else []
        if self.event_range is not None:
            ranges.append(self.event_range)
        if not ranges:
            raise ValueError(f"{self.path}: the recording has neither an event nor a frame")
        return min(first for first, _ in ranges), max(last for _, last in ranges)

    @property
    def frame_pairs(self) -> list[tuple[int, int]]:
        """The frames between which flow is wanted: successive ones."""
        return [(i, i + 1) for i in range(len(self.frame_times) - 1)]

    @property
    def source_files(self) -> list[Path]:
        """The files, or the directory, beside the frames, that estimates depend on."""
        return [] if self.path is None else [self.path]

    @property
    def event_range(self) -> tuple[int, int] | None:
        """The times of the first and the last event, microseconds; None without any event."""
        return None if self._event_file is None else self._event_file.time_range

    @property
    def event_path(self) -> Path | None:
        """The file that the events are read from; None without one."""
        return None if self._event_file is None else self._event_file.path

    @property
    def frame_files(self) -> list[Path]:
        """The files that the frames are read from: images, or one video."""
        return [] if self._frame_source is None else self._frame_source.files

    def frame(self, index: int) -> np.ndarray:
        """Read frame ``index``: uint8 [H, W], or [H, W, 3] in RGB order."""
        if self._frame_source is None or not 0 <= index < len(self.frame_times):
            raise IndexError(f"frame {index} of a recording with {len(self.frame_times)} frames")
        frame = self._frame_source.read(index)
        if frame.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"{self._frame_source.name(index)} is {frame.shape[1]} x {frame.shape[0]} px, but "
                f"{self._size_source} is {self.width} x {self.height} px; "
                "all frames must have the size of the sensor"
            )
        return frame

    def events(self, t0: int, t1: int) -> Events:
        """Read the events of the half-open interval [t0, t1), microseconds, and nothing else.

        A recording without events (``has_events`` is False) gives none. Times that seem to be in
        another unit bring a warning.
        """
        if self._event_file is None:
            return Events.empty(self.height, self.width)
        found = self._event_file.window(*whole_limits(t0, t1), self.height, self.width)
        check_unit(t0, t1, found, self.event_range)
        return found

    def ground_truth(self, index: int) -> Flow | None:
        """Ground truth from frame ``index`` to the next, and where it is valid; None if unknown."""
        return self.ground_truth_at(index, 1.0)

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth from frame ``index`` to the fraction tau of the way to the next; here None.

        Args:
            index: frame.
            tau: in (0, 1]; 1 is the next frame.

        Returns:
            flow [2, H, W] float32 (px, from the frame) and valid [H, W] bool; None if unknown.
        """
        return None

    def has_ground_truth(self, index: int) -> bool:
        """Whether :meth:`ground_truth_at` has some for tau = 1; quicker where a class knows it."""
        return self.ground_truth_at(index, 1.0) is not None

    def _find_size(self, stated_size: tuple[str, tuple[int, int]] | None) -> tuple[int, int]:
        """(height, width); what states it goes to _size_source. Statements must agree."""
        events, frames = self._event_file, self._frame_source
        stated = [] if stated_size is None else [stated_size]
        if frames is not None and self.has_frames:
            stated.append((frames.name(0), frames.read(0).shape[:2]))
        if events is not None and events.sensor_size is not None:
            stated.append((str(events.path), events.sensor_size))
        if not stated and events is None:
            raise ValueError(f"{self.path}: the recording has neither events nor frames")
        if not stated and events is not None:
            size = events.coordinate_extent()
            warnings.warn(
                f"{events.path}: the sensor size is not stated; {size[1]} x {size[0]} px "
                "is taken from the largest coordinates. State it in sensor.txt (width height) "
                "beside it",
                stacklevel=6,
            )
            stated.append((f"the extent of {events.path}", size))
        self._size_source, size = stated[0]
        for source, other in stated[1:]:
            if tuple(other) != tuple(size):
                raise ValueError(
                    f"{source} is {other[1]} x {other[0]} px, but {self._size_source} is "
                    f"{size[1]} x {size[0]} px; events and frames must share one pixel grid"
                )
        return int(size[0]), int(size[1])
