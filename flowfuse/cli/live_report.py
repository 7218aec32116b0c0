"""What a live run has to say: rates, latency, and what was lost."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from flowfuse.events import Events
from flowfuse.result import Result
from flowfuse.stream.policy import StreamStats
from flowfuse.stream.stream import Stream
from flowfuse.tracking import TrackStep

_SPAN = 2.0  # s that present rates are averaged over
_KEPT = 10_000  # latencies that the summary is made from: the last ones


@dataclass(frozen=True)
class Rates:
    """How a live run is going.

    Attributes:
        results: per second.
        events: per second, as they came.
        latency: seconds, of the last result; from the moment when all of its events had come.
        dropped: events so far that were dropped, or overwritten too early.
        skipped: intervals so far that were not estimated.
    """

    results: float
    events: float
    latency: float
    dropped: int
    skipped: int

    def line(self) -> str:
        """Say it in one line."""
        return (
            f"{self.results:.1f} results/s, {self.events:.3g} events/s, latency "
            f"{1e3 * self.latency:.0f} ms, {self.skipped} intervals skipped, "
            f"{self.dropped} events dropped"
        )


@dataclass(frozen=True)
class Shot:
    """All that a view may show of one result.

    Attributes:
        result: the newest.
        frame, frame1: at its t0 and t1; None without.
        events: right after its t0.
        step: what it did to the tracks; None without.
        rates: present ones.
    """

    result: Result
    frame: np.ndarray | None
    frame1: np.ndarray | None
    events: Events
    step: TrackStep | None
    rates: Rates


class Meter:
    """Measures a live run.

    Args:
        stream: whose results are counted.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        # (when, results, events) from about _SPAN ago on
        self._marks: deque[tuple[float, int, int]] = deque([(self._began, 0, 0)])
        self._from: dict[tuple[str, ...], int] = {}

    def count(self, result: Result) -> None:
        """Take note of the result that the stream has just given."""
        timing = self._stream.timing
        assert timing is not None, "there is a result"
        self._latencies.append(timing.latency)
        self._from[result.modalities] = self._from.get(result.modalities, 0) + 1
        stats, now = self._stream.stats, time.monotonic()
        self._marks.append((now, stats.intervals, stats.events))
        while len(self._marks) > 2 and now - self._marks[1][0] > _SPAN:
            self._marks.popleft()

    def rates(self) -> Rates:
        """Present rates, after at least one result."""
        (then, results, events), (now, new_results, new_events) = self._marks[0], self._marks[-1]
        span, stats = max(now - then, 1e-6), self._stream.stats
        return Rates(
            results=(new_results - results) / span,
            events=(new_events - events) / span,
            latency=self._latencies[-1],
            dropped=stats.events_dropped,
            skipped=stats.intervals_skipped,
        )

    def summary(self) -> str:
        """Say how it went, over all."""
        stats, seconds = self._stream.stats, time.monotonic() - self._began
        lines = [
            f"{stats.intervals} results in {seconds:.1f} s from {stats.events} events and "
            f"{stats.frames} frames"
        ]
        if self._from:
            kinds = {" and ".join(kind): count for kind, count in self._from.items()}
            told = ", ".join(f"{count} from {kind}" for kind, count in kinds.items())
            median, most = (1e3 * np.percentile(self._latencies, q) for q in (50, 99))
            lines += [told, f"latency: median {median:.0f} ms, 99 % within {most:.0f} ms"]
        lost = describe_losses(stats)
        return "\n".join([*lines, f"lost: {lost}" if lost else "nothing was lost"])


def describe_losses(stats: StreamStats) -> str:
    """Say what a stream lost, or "" for nothing."""
    counts = {
        "intervals skipped": stats.intervals_skipped,
        "intervals empty": stats.intervals_empty,
        "events thinned": stats.events_thinned,
        "events overwritten": stats.events_overwritten,
        "events late": stats.events_late,
        "events repeated": stats.events_repeated,
        "frames late": stats.frames_late,
        "frames repeated": stats.frames_repeated,
        "frames overwritten": stats.frames_overwritten,
        "clocks reset": stats.resets,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def explain_no_results(stats: StreamStats, length: int | None, came: tuple[int, int] | None) -> str:
    """Say why a run that has ended gave nothing.

    Args:
        stats: of its stream, without an interval that was estimated or passed over.
        length: of its intervals, us; None: from each frame to the next.
        came: us, the times of the first and the last event; None without any.
    """
    if not stats.events and not stats.frames:
        return "neither an event nor a frame came"
    if length is None:
        if stats.frames < 2:
            return (
                f"flow from frame to frame needs two of them, got {stats.frames}; --interval 20ms "
                "estimates from the events of fixed times"
            )
        return "it ended before the events up to the second frame had come"
    if came is None:
        return f"no event came, and intervals of {length / 1e3:g} ms begin at the first"
    span = came[1] - came[0] + 1
    if span < length:
        return (
            f"the events span {span / 1e3:.4g} ms, less than one interval of {length / 1e3:g} ms; "
            "choose a shorter --interval"
        )
    return f"it ended before an interval of {length / 1e3:g} ms was estimated"
