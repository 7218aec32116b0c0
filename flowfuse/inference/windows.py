"""Which windows of a recording to estimate, and the estimate of one; nothing else is in memory."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator
from flowfuse.model.inputs import event_window
from flowfuse.result import Result

# A pair this much longer than the median one has lost frames in between.
GAP_RATIO = 1.5


@dataclass(frozen=True)
class Window:
    """One flow field to estimate.

    Attributes:
        index: number of the output file: the first frame's index, or the window's with ``--every``.
        t0, t1: microseconds.
        frames: indices of the two frames; None for events alone.
    """

    index: int
    t0: int
    t1: int
    frames: tuple[int, int] | None


def plan_pairs(
    recording: Recording,
    pairs: tuple[int | None, int | None] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> list[Window]:
    """List the windows between successive frames.

    Args:
        recording: with at least two frames.
        pairs: first pair and the one after the last; None = open.
        start, end: microseconds; both frames of a pair lie in [start, end].

    Raises:
        ValueError: when there is none.
    """
    times = [int(t) for t in recording.frame_times]
    if len(times) < 2:
        raise ValueError(
            f"the recording has {len(times)} frame(s), and a pair needs two; "
            "use --every 10ms for flow from the events alone"
        )
    windows = [
        Window(i, times[i], times[i + 1], (i, i + 1))
        for i in range(len(times) - 1)[slice(*(pairs or (None, None)))]
        if (start is None or start <= times[i]) and (end is None or times[i + 1] <= end)
    ]
    if not windows:
        raise ValueError(
            f"no frame pair in the range asked for: the recording has {len(times) - 1} pairs, "
            f"from {times[0] * 1e-6:.6f} to {times[-1] * 1e-6:.6f} s"
        )
    return windows


def plan_steps(
    recording: Recording, every: int, start: int | None = None, end: int | None = None
) -> list[Window]:
    """List the successive windows of ``every`` microseconds, for flow from the events alone.

    Args:
        recording: its events.
        every: length of a window, us.
        start, end: microseconds; all of the recording by default.

    Raises:
        ValueError: when there are no events, or no whole window fits.
    """
    if not recording.has_events:
        raise ValueError(f"{recording.path}: no events; flow at a fixed rate is made from events")
    first, last = recording.time_range
    start = first if start is None else start
    end = last + 1 if end is None else end
    edges = range(start, end + 1, every)
    windows = [Window(i, t0, t0 + every, None) for i, t0 in enumerate(edges[:-1])]
    if not windows:
        raise ValueError(
            f"no window of {every} us fits between {start * 1e-6:.6f} and {end * 1e-6:.6f} s "
            f"(the recording goes from {first * 1e-6:.6f} to {last * 1e-6:.6f} s)"
        )
    return windows


def estimate_window(
    estimator: Estimator,
    recording: Recording,
    reader: FrameReader,
    window: Window,
    iterations: int | None,
) -> tuple[Result | None, float]:
    """Read what one window needs and estimate its flow.

    Returns:
        The result, None where there is neither a frame pair nor an event; seconds spent in the
        estimator, without reading.
    """
    exposures = reader.exposures(window)
    start, end = event_window(window.t0, window.t1, estimator.model.config.slices, *exposures)
    events = recording.events(max(start, 0), end)
    if window.frames is None and not len(events.slice_time(window.t0, window.t1)):
        return None, 0.0
    frame0, frame1 = reader.frames(window)
    begin = time.perf_counter()
    result = estimator(
        frame0,
        frame1,
        events,
        t0=window.t0,
        t1=window.t1,
        exposure0=exposures[0],
        exposure1=exposures[1],
        iterations=iterations,
    )
    if estimator.device.type == "cuda":
        torch.cuda.synchronize(estimator.device)
    return result, time.perf_counter() - begin


class FrameReader:
    """Reads the frames of successive pairs, each once."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._kept: dict[int, np.ndarray] = {}

    def frames(self, window: Window) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the two frames of a window, or two None."""
        if window.frames is None:
            return None, None
        self._kept = {
            i: self._kept[i] if i in self._kept else self.recording.frame(i) for i in window.frames
        }
        return tuple(self._kept[i] for i in window.frames)

    def exposures(self, window: Window) -> tuple[int | None, int | None]:
        """Return the exposure durations of a window's frames in microseconds, None if unknown."""
        intervals = self.recording.exposures
        if window.frames is None or intervals is None:
            return None, None
        return tuple(int(intervals[i][1] - intervals[i][0]) for i in window.frames)


def count_gaps(windows: list[Window]) -> int:
    """Count the pairs much longer than the median one."""
    durations = [window.t1 - window.t0 for window in windows]
    limit = GAP_RATIO * statistics.median(durations)
    return sum(duration > limit for duration in durations)
