"""What a recording is: the interface that every data set gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from flowfuse.events import Events

Flow = tuple[np.ndarray, np.ndarray]  # flow [2, H, W] float32 px, valid [H, W] bool

PART_EVENTS = 1 << 20  # in memory at once, about
_FIRST_SPAN = 10_000  # us


@runtime_checkable
class Recording(Protocol):
    """Events, frames and ground truth on one common pixel grid; see ``flowfuse.open_recording``.

    A class need not inherit from this one: what has these members is a recording. All times are
    int64 microseconds, all time intervals half-open, [t0, t1).
    :class:`flowfuse.data.file_recording.FileRecording` has all of this for one event file and one
    source of frames.
    """

    @property
    def path(self) -> Path | None:
        """The directory or file; None where events and frames were named one by one."""

    @property
    def height(self) -> int:
        """Rows of the sensor and of every frame, px."""

    @property
    def width(self) -> int:
        """Columns of the sensor and of every frame, px."""

    @property
    def frame_times(self) -> np.ndarray:
        """[F] int64, microseconds, mid-exposure, strictly increasing; F = 0 without frames."""

    @property
    def exposures(self) -> np.ndarray | None:
        """[F, 2] int64, microseconds, start and end of each exposure; None where unknown."""

    @property
    def has_events(self) -> bool:
        """Whether there is a source of events, be it an empty one."""

    @property
    def has_frames(self) -> bool:
        """Whether there is a frame."""

    @property
    def event_range(self) -> tuple[int, int] | None:
        """The times of the first and the last event, microseconds; None without any event."""

    @property
    def time_range(self) -> tuple[int, int]:
        """The times of the first and the last thing recorded, event or frame, in microseconds.

        Raises:
            ValueError: there is neither.
        """

    @property
    def frame_pairs(self) -> Sequence[tuple[int, int]]:
        """The indices of the frames between which flow is wanted."""

    @property
    def source_files(self) -> list[Path]:
        """The files, or the directory, beside the frames, that estimates depend on."""

    @property
    def frame_files(self) -> list[Path]:
        """The files that the frames are read from: images, or one video."""

    @property
    def ground_truth_step(self) -> int:
        """How many frames further :meth:`ground_truth` leads: 1 is the next frame."""

    @property
    def ground_truth_times(self) -> tuple[float, ...]:
        """The tau in (0, 1), increasing, at which :meth:`ground_truth_at` may have some."""

    def frame(self, index: int) -> np.ndarray:
        """Read frame ``index``: uint8 [H, W], or [H, W, 3] in RGB order.

        Raises:
            IndexError: there is no such frame.
            ValueError: it cannot be read, or is not of the size of the sensor; names the file.
        """

    def events(self, t0: int, t1: int) -> Events:
        """Read the events of [t0, t1), microseconds, and nothing else; none without ``has_events``.

        Raises:
            ValueError: naming the file and the event at fault.
        """

    def ground_truth(self, index: int) -> Flow | None:
        """Ground truth from frame ``index`` to the frame ``ground_truth_step`` further.

        Returns:
            flow [2, H, W] float32 (px, from the frame) and valid [H, W] bool; None if unknown.
        """

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth from frame ``index`` to the fraction tau, in (0, 1], of that way in time.

        Returns:
            As :meth:`ground_truth`, which is the case tau = 1.
        """


def iterate_events(recording: Recording, part: int = PART_EVENTS) -> Iterator[Events]:
    """Read all events of a recording in parts, in the order of time.

    Args:
        recording: may be without events.
        part: a part has about so many events; the time it spans follows their rate.
    """
    if recording.event_range is None:
        return
    start, last = recording.event_range
    span = _FIRST_SPAN
    while start <= last:
        events = recording.events(start, start + span)
        yield events
        start += span
        # Towards the wanted number, at most fourfold at a time: rates change.
        wanted = span * part / max(len(events), 1)
        span = max(1, round(min(max(wanted, span / 4), span * 4)))
