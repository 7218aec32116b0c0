"""Which time intervals of a recording to estimate, and the estimate of one, alone in memory."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flowfuse.data.recording import Recording
from flowfuse.data.registry import event_suffixes
from flowfuse.estimator import Estimator
from flowfuse.events import Events
from flowfuse.inputs import input_interval
from flowfuse.result import Result

# A pair this much longer than the median one has lost frames in between.
GAP_RATIO = 1.5
# A pair or time interval this many times as long as frames usually are apart is told of.
LONG_RATIO = 5
# An interval with fewer events, but some, is told of: on a still scene, noise alone makes more.
FEW_EVENTS = 50
# Wrong units make events and frames differ at least a thousandfold in duration.
UNIT_RATIO = 300
MODALITIES = ("frames", "events")  # all that a recording has
FIRST_FRAME = "frame0"  # in place of "frames": the first frame of each pair alone
MAX_INTERVALS = 1_000_000  # the names of flow files count with six digits


@dataclass(frozen=True)
class Interval:
    """One flow field to estimate.

    Attributes:
        index: number of the output file: that of the first frame, or with ``--every`` its own.
        t0, t1: microseconds.
        frames: indices of the two frames; None for events alone.
    """

    index: int
    t0: int
    t1: int
    frames: tuple[int, int] | None

    @property
    def pair(self) -> tuple[int, int]:
        """The indices of the two frames, of an interval that has some."""
        assert self.frames is not None
        return self.frames


def plan_frame_pairs(
    recording: Recording,
    pairs: tuple[int | None, int | None] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> list[Interval]:
    """List the intervals between frames: successive ones, or as the data set wants them.

    Args:
        recording: with at least two frames.
        pairs: first pair and the one after the last; None = open.
        start, end: microseconds; both frames of a pair lie in [start, end].

    Raises:
        ValueError: when there is none.
    """
    times = [int(t) for t in recording.frame_times]
    wanted = recording.frame_pairs
    if not wanted:
        raise ValueError(
            f"the recording has {len(times)} frame(s), and a pair needs two; "
            "use --every 10ms for flow from the events alone"
        )
    intervals = [
        Interval(i, times[i], times[j], (i, j))
        for i, j in wanted[slice(*(pairs or (None, None)))]
        if (start is None or start <= times[i]) and (end is None or times[j] <= end)
    ]
    if not intervals:
        raise ValueError(
            f"no frame pair in the range asked for: the recording has {len(wanted)} pairs, "
            f"from {times[0] * 1e-6:.6f} to {times[-1] * 1e-6:.6f} s"
        )
    return intervals


def has_intervals(recording: Recording) -> bool:
    """Whether a recording has no frames, but time intervals with ground truth."""
    return not recording.has_frames and len(_intervals(recording)) > 0


def plan_intervals(
    recording: Recording,
    wanted: tuple[int | None, int | None] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> list[Interval]:
    """List the time intervals with ground truth of a recording without frames.

    Args:
        recording: one that :func:`has_intervals`.
        wanted: first interval and the one after the last; None = open.
        start, end: microseconds; an interval lies in [start, end].

    Raises:
        ValueError: when there is none.
    """
    every = _intervals(recording)
    intervals = [
        Interval(index, t0, t1, None)
        for index, (t0, t1) in list(enumerate(every))[slice(*(wanted or (None, None)))]
        if (start is None or start <= t0) and (end is None or t1 <= end)
    ]
    if not intervals:
        raise ValueError(
            f"no interval with ground truth in the range asked for: the recording has "
            f"{len(every)}, from {_seconds(every[0][0], every[-1][1], 'to')}"
        )
    return intervals


def is_measured(recording: Recording, interval: Interval) -> bool:
    """Whether ``recording.ground_truth_at(interval.index, tau)`` is that of an interval."""
    if interval.frames is not None:
        return True
    known = _intervals(recording)
    return interval.index < len(known) and known[interval.index] == (interval.t0, interval.t1)


def _intervals(recording: Recording) -> list[tuple[int, int]]:
    # Not of the interface: recordings of other packages need not have any.
    found = getattr(recording, "ground_truth_intervals", ())
    return [(int(t0), int(t1)) for t0, t1 in found]


def plan_fixed_rate(
    recording: Recording, every: int, start: int | None = None, end: int | None = None
) -> list[Interval]:
    """List the successive intervals of ``every`` microseconds, for flow from the events alone.

    Args:
        recording: its events.
        every: length of an interval, us.
        start, end: microseconds; from the first to the last event by default.

    Raises:
        ValueError: when there are no events, no whole interval fits, or more than MAX_INTERVALS do.
    """
    if recording.event_range is None:
        missing = describe_missing_events(recording)
        raise ValueError(f"flow at a fixed rate needs events, but there is {missing}")
    first, last = recording.event_range
    start = first if start is None else start
    end = last + 1 if end is None else end
    count = (end - start) // every
    if not 1 <= count <= MAX_INTERVALS:
        many = f"at most {MAX_INTERVALS} expected, {count} time intervals"
        found = "no time interval" if count < 1 else many
        raise ValueError(
            f"{found} of {every} us {'fits' if count < 1 else 'fit'} between "
            f"{_seconds(start, end)} (the events go from {_seconds(first, last, 'to')})"
        )
    return [Interval(i, start + i * every, start + (i + 1) * every, None) for i in range(count)]


def find_earlier(
    recording: Recording, intervals: Sequence[Interval], written: Sequence[int]
) -> list[Interval]:
    """List the intervals that earlier runs with the same settings wrote, beside those planned now.

    Args:
        recording: of the intervals.
        intervals: planned now by :func:`plan_frame_pairs` or :func:`plan_fixed_rate`.
        written: indices of the flow files.
    """
    planned, first = {interval.index for interval in intervals}, intervals[0]
    earlier = [index for index in written if index not in planned]
    if first.frames is None and is_measured(recording, first):
        known = _intervals(recording)
        return [Interval(i, *known[i], None) for i in earlier if i < len(known)]
    if first.frames is None:
        every = first.t1 - first.t0
        starts = [first.t0 + (index - first.index) * every for index in earlier]
        return [
            Interval(i, start, start + every, None)
            for i, start in zip(earlier, starts, strict=True)
        ]
    times, pairs = [int(t) for t in recording.frame_times], dict(recording.frame_pairs)
    return [Interval(i, times[i], times[pairs[i]], (i, pairs[i])) for i in earlier if i in pairs]


def check_events(recording: Recording, *, units: bool = True) -> None:
    """Warn where the flow of frame pairs is made without events, or the units seem wrong.

    Args:
        recording: with frames.
        units: whether to ask for the units; no, where their cause is told.

    Raises:
        ValueError: when frames and events are of different times.
    """
    if recording.event_range is None:
        missing = describe_missing_events(recording)
        warnings.warn(f"{missing}: flow from the frames alone", stacklevel=2)
        return
    (first, last), frames = recording.event_range, recording.frame_times[[0, -1]].tolist()
    if last < frames[0] or frames[1] < first:
        raise ValueError(f"no event lies between two frames: {describe_times(recording)}")
    shorter, longer = sorted((last - first, frames[1] - frames[0]))
    if units and longer > UNIT_RATIO * max(shorter, 1):
        warnings.warn(f"are the units right? {describe_times(recording)}", stacklevel=2)


def describe_missing_events(recording: Recording) -> str:
    """Say of a recording without any event where one was looked for, and what was found there."""
    if recording.has_events:
        # Not of the interface: recordings of other packages need not have it.
        file = getattr(recording, "event_path", None) or recording.path or "the recording"
        return f"no event in {file} (0 found, at least one expected)"
    if recording.path is None or not recording.path.is_dir():
        return "no event file"
    names = ", ".join(f"events{suffix}" for suffix in event_suffixes())
    return f"no event file in {recording.path} ({names})"


def describe_times(recording: Recording) -> str:
    """Say from when to when events and frames go, and what is expected of them."""
    first, last = recording.frame_times[[0, -1]].tolist()
    start, end = recording.event_range or (0, 0)
    return (
        f"{recording.path or 'the recording'}: the events go from "
        f"{_seconds(start, end, 'to')}, the frames from {_seconds(first, last, 'to')}; "
        "both need one clock, in the units that the formats expect "
        "(text: seconds; integer t of .h5 and .npz: microseconds)"
    )


def _seconds(start: int, end: int, word: str = "and") -> str:
    return f"{start * 1e-6:.6f} {word} {end * 1e-6:.6f} s"


def estimate_interval(
    estimator: Estimator,
    recording: Recording,
    reader: FrameReader,
    interval: Interval,
    iterations: int | None,
    flow_init: np.ndarray | None = None,
    modalities: Sequence[str] = MODALITIES,
    event_counts: dict[int, int] | None = None,
) -> tuple[Result | None, float]:
    """Read what one interval needs and estimate its flow.

    Args:
        flow_init: flow to start from, see :class:`~flowfuse.estimator.Estimator`.
        modalities: what the network is given, of what the recording has: "frames", "events", or
            both; FIRST_FRAME is the first frame of a pair alone.
        event_counts: if given, gets the number of events of the interval, under its index.

    Returns:
        The result, None where the network has nothing to go by: no event in the interval, and
        neither frames nor a use for them; seconds spent in the estimator, without reading.

    Raises:
        ValueError: naming the interval, or the file at fault; unknown modalities.
    """
    used = _read_inputs(estimator, recording, reader, interval, modalities)
    if used is None:
        return None, 0.0
    if event_counts is not None and used.events is not None:
        event_counts[interval.index] = len(used.events.slice_time(interval.t0, interval.t1))
    begin = time.perf_counter()
    result = _estimate(estimator, recording, interval, used, iterations, flow_init)
    if estimator.device.type == "cuda":
        torch.cuda.synchronize(estimator.device)
    return result, time.perf_counter() - begin


def estimate_backward(
    estimator: Estimator,
    recording: Recording,
    reader: FrameReader,
    interval: Interval,
    iterations: int | None,
    modalities: Sequence[str] = MODALITIES,
) -> np.ndarray | None:
    """Estimate the flow of the pixels of t1 back to t0: the same network sees time run backwards.

    Args:
        modalities: as for :func:`estimate_interval`.

    Returns:
        [2, H, W] float32, px; None where the network has nothing to go by.

    Raises:
        ValueError: as :func:`estimate_interval`.
    """
    used = _read_inputs(estimator, recording, reader, interval, modalities, backward=True)
    if used is None:
        return None
    return _estimate(estimator, recording, interval, used, iterations).flow


@dataclass(frozen=True)
class _Inputs:
    """What the estimator is given for an interval; forwards or backwards in time."""

    frames: tuple[np.ndarray | None, np.ndarray | None]
    events: Events | None
    t0: int
    t1: int
    exposures: tuple[int | None, int | None]


def _read_inputs(
    estimator: Estimator,
    recording: Recording,
    reader: FrameReader,
    interval: Interval,
    modalities: Sequence[str],
    *,
    backward: bool = False,
) -> _Inputs | None:
    """Read frames and events, None where there is nothing to estimate flow from."""
    unknown = set(modalities) - {*MODALITIES, FIRST_FRAME}
    if unknown:
        raise ValueError(
            f"modalities must be of {', '.join((*MODALITIES, FIRST_FRAME))}; got {min(unknown)!r}"
        )
    uses_both = "frames" in modalities
    needed = (uses_both or FIRST_FRAME in modalities, uses_both)
    exposures = reader.exposures(interval) if uses_both else (None, None)
    frames = reader.frames(interval, needed[::-1] if backward else needed)
    t0, t1 = interval.t0, interval.t1
    if backward:
        exposures, frames = exposures[::-1], frames[::-1]
    start, end = input_interval(t0, t1, estimator.model.config.slices, *exposures)
    if backward:  # as much after t1 as forwards before t0
        start, end = t0 + t1 - end, t0 + t1 - start
    events = recording.events(max(start, 0), end) if "events" in modalities else None
    uses_frames = frames[1] is not None and estimator.model.config.frames
    if not uses_frames and not (events and len(events.slice_time(t0, t1))):
        return None
    if backward:
        duration = t1 - t0
        # A clock of its own, since times are not negative: an exposure is at most twice as long.
        t0, t1, last = 2 * duration, 3 * duration, t1 - 1
        events = events and Events(
            events.x[::-1],
            events.y[::-1],
            t0 + last - events.t[::-1],
            1 - events.p[::-1],  # what grew brighter grows darker
            height=events.height,
            width=events.width,
        )
    return _Inputs(frames, events, t0, t1, exposures)


def _estimate(
    estimator: Estimator,
    recording: Recording,
    interval: Interval,
    used: _Inputs,
    iterations: int | None,
    flow_init: np.ndarray | None = None,
) -> Result:
    try:
        return estimator(
            *used.frames,
            used.events,
            t0=used.t0,
            t1=used.t1,
            exposure0=used.exposures[0],
            exposure1=used.exposures[1],
            iterations=iterations,
            flow_init=flow_init,
        )
    except ValueError as error:
        raise ValueError(f"{_name(recording, interval)}: {error}") from error


def _name(recording: Recording, interval: Interval) -> str:
    """What an error message calls an interval."""
    kind = f"time interval {interval.index}"
    if interval.frames is not None:
        kind = f"frames {interval.frames[0]} and {interval.frames[1]}"
    times = _seconds(interval.t0, interval.t1, "to")
    return f"{recording.path or 'the recording'}, {kind} ({times})"


class FrameReader:
    """Reads the frames of successive pairs, each once."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._kept: dict[int, np.ndarray] = {}

    def frames(
        self, interval: Interval, needed: tuple[bool, bool] = (True, True)
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the frames of an interval that are needed; None for others, and without frames."""
        if interval.frames is None:
            return None, None
        self._kept = {i: frame for i, frame in self._kept.items() if i in interval.frames}
        for i, wanted in zip(interval.frames, needed, strict=True):
            if wanted and i not in self._kept:
                self._kept[i] = self.recording.frame(i)
        first, last = (
            self._kept[i] if wanted else None
            for i, wanted in zip(interval.frames, needed, strict=True)
        )
        return first, last

    def exposures(self, interval: Interval) -> tuple[int | None, int | None]:
        """Return the exposure durations of both frames in microseconds, None if unknown."""
        exposures = self.recording.exposures
        if interval.frames is None or exposures is None:
            return None, None
        first, last = (int(exposures[i][1] - exposures[i][0]) for i in interval.frames)
        return first, last


def describe_long(recording: Recording, intervals: Sequence[Interval]) -> str | None:
    """Say which intervals are far longer than frames usually are apart; None: there is none.

    Args:
        recording: without frame pairs, nothing is usual.
        intervals: all that are estimated.
    """
    times = recording.frame_times
    steps = [int(times[j]) - int(times[i]) for i, j in recording.frame_pairs]
    if not steps:
        return None
    usual = statistics.median_low(steps)
    found = [one for one in intervals if one.t1 - one.t0 > LONG_RATIO * usual]
    if not found:
        return None
    longest = max(found, key=lambda one: one.t1 - one.t0)
    unit = "pair" if longest.frames else "time interval"
    return (
        f"{len(found)} of {len(intervals)} {unit}s longer than {LONG_RATIO} x the usual distance "
        f"of frames, {usual / 1000:.3f} ms (the longest: {unit} {longest.index}, "
        f"{(longest.t1 - longest.t0) / 1000:.3f} ms): expect wrong flow there"
    )


def count_gaps(intervals: list[Interval]) -> int:
    """Count the pairs much longer than the median one."""
    durations = [interval.t1 - interval.t0 for interval in intervals]
    limit = GAP_RATIO * statistics.median(durations)
    return sum(duration > limit for duration in durations)
