"""Which interval of a stream is to be estimated next: on a fixed grid, or between frames."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from flowfuse.inputs import Exposures, input_interval
from flowfuse.stream.buffers import FOREVER, EventBuffer, FrameBuffer, StoredFrame


@dataclass(frozen=True)
class Span:
    """One time interval to estimate.

    Attributes:
        t0, t1: half-open, us.
        first, last: the frames at t0 and t1; None where there is none. ``last`` comes with
            ``first`` only.
    """

    t0: int
    t1: int
    first: StoredFrame | None = None
    last: StoredFrame | None = None

    @property
    def exposures(self) -> Exposures:
        """Of both frames, us; unknown unless there are both, as the estimator takes them.

        One that is longer than twice the interval cannot be right, and is unknown, too.
        """
        if self.first is None or self.last is None:
            return None, None
        longest = 2 * (self.t1 - self.t0)
        first, last = (
            None if frame.exposure is None or frame.exposure > longest else frame.exposure
            for frame in (self.first, self.last)
        )
        return first, last

    @property
    def wrong_exposure(self) -> int | None:
        """An exposure (us) of the frames that cannot be right, and is left out; None without."""
        given = [frame.exposure for frame in (self.first, self.last) if frame is not None]
        wrong = (e for e in given if e is not None and e not in self.exposures)
        return next(wrong, None) if self.is_frame_pair else None

    @property
    def is_frame_pair(self) -> bool:
        """Whether there are both frames."""
        return self.last is not None

    def needs(self, slices: int) -> tuple[int, int]:
        """The half-open interval (us) of the events that the inputs are made of."""
        return input_interval(self.t0, self.t1, slices, *self.exposures)


@dataclass
class Due:
    """What :meth:`Schedule.due` finds.

    Attributes:
        span: the next interval to estimate; None: there is none yet.
        skipped: intervals passed over, because a newer one is there.
        empty: intervals passed over, because nothing came in them.
    """

    span: Span | None = None
    skipped: int = 0
    empty: int = 0


class Schedule(Protocol):
    """The order in which intervals are estimated.

    Attributes:
        slices: K of the network.
    """

    slices: int

    def reset(self) -> None:
        """Begin anew, as after a clock did."""

    def due(self, events: EventBuffer, frames: FrameBuffer, clock: int, newest: bool) -> Due:
        """Find the next interval for which everything has come, and pass over others.

        Args:
            events, frames: what is in memory.
            clock: us; all events before it have come.
            newest: the newest one, not the next one.
        """

    def done(self, span: Span) -> None:
        """Go on behind an interval."""

    def newest(self, events: EventBuffer, frames: FrameBuffer, clock: int) -> Span | None:
        """Find the newest interval for which everything has come, and change nothing."""

    def needed_from(self, events: EventBuffer, frames: FrameBuffer) -> int | None:
        """The time (us) from which events are still needed; None: no event is yet."""

    def final_clock(self, events: EventBuffer, frames: FrameBuffer) -> int | None:
        """The clock (us) when nothing more will come; None where nothing has."""


class FixedRate:
    """Intervals of one length that begin at fixed times, counted from the first event.

    Args:
        length: of an interval, us.
        every: from the start of one to that of the next, us.
        slices: K of the network.
        slack: a frame this near (us) to a limit of an interval counts as taken there.
    """

    def __init__(self, length: int, every: int, slices: int, slack: int) -> None:
        self.length, self.every, self.slices, self.slack = length, every, slices, slack
        self.reset()

    def reset(self) -> None:
        self._start: int | None = None
        self._next = 0

    def due(self, events: EventBuffer, frames: FrameBuffer, clock: int, newest: bool) -> Due:
        if not self._begin(events):
            return Due()
        found = Due()
        last = self._last_whole(frames, clock)
        if newest and last > self._next:
            found.skipped = last - self._next
            self._next = last
        while self._next <= last:
            span = self._span(self._next, frames)
            lost = events.complete_from > span.t0  # it only looks empty
            if span.is_frame_pair or lost or events.count(span.t0, span.t1):
                found.span = span
                return found
            # On to the first interval that ends after the next event.
            following = events.first_from(span.t1)
            target = last + 1 if following is None else self._last_before(following) + 1
            target = min(max(target, self._next + 1), last + 1)
            found.empty += target - self._next
            self._next = target
        return found

    def done(self, span: Span) -> None:
        assert self._start is not None, "there was an interval"
        self._next = (span.t0 - self._start) // self.every + 1

    def newest(self, events: EventBuffer, frames: FrameBuffer, clock: int) -> Span | None:
        if not self._begin(events):
            return None
        last = self._last_whole(frames, clock)
        return self._span(last, frames) if last >= 0 else None

    def needed_from(self, events: EventBuffer, frames: FrameBuffer) -> int | None:
        if not self._begin(events):
            return None
        return self._span(self._next, frames).needs(self.slices)[0]

    def final_clock(self, events: EventBuffer, frames: FrameBuffer) -> int | None:
        return None if events.last is None else events.last + 1

    def _begin(self, events: EventBuffer) -> bool:
        if self._start is None:
            self._start = events.first
        return self._start is not None

    def _last_whole(self, frames: FrameBuffer, clock: int) -> int:
        """The number of the last interval whose events have come, those of exposures too."""
        last = self._last_before(clock)
        while last >= 0 and self._span(last, frames).needs(self.slices)[1] > clock:
            last -= 1
        return last

    def _last_before(self, clock: int) -> int:
        """The number of the last interval that ends at the clock or before."""
        assert self._start is not None, "there was an event"
        return (clock - self._start - self.length) // self.every

    def _span(self, number: int, frames: FrameBuffer) -> Span:
        assert self._start is not None, "there was an event"
        t0 = self._start + number * self.every
        return find_span(frames, t0, t0 + self.length, self.slack)


class FramePairs:
    """Intervals from each frame to the next.

    Args:
        slices: K of the network.
    """

    def __init__(self, slices: int) -> None:
        self.slices = slices
        self.reset()

    def reset(self) -> None:
        self.done_to: int | None = None
        self._length = 0

    def due(self, events: EventBuffer, frames: FrameBuffer, clock: int, newest: bool) -> Due:
        ready = self._ready(self._pending(frames), clock)
        if not ready:
            return Due()
        chosen = len(ready) - 1 if newest else 0
        self.done_to = ready[chosen].t0
        return Due(ready[chosen], skipped=chosen)

    def done(self, span: Span) -> None:
        self.done_to, self._length = span.t1, span.t1 - span.t0

    def newest(self, events: EventBuffer, frames: FrameBuffer, clock: int) -> Span | None:
        ready = self._ready(frames.from_time(-FOREVER), clock)
        return ready[-1] if ready else None

    def needed_from(self, events: EventBuffer, frames: FrameBuffer) -> int | None:
        pending = self._pending(frames)
        if not pending:
            return None
        if len(pending) > 1:
            return _span_of(pending[0], pending[1]).needs(self.slices)[0]
        # As long as the pair before: the next frame is not there to tell.
        history = -(-self._length // self.slices)
        return pending[0].t - max(history, pending[0].half)

    def final_clock(self, events: EventBuffer, frames: FrameBuffer) -> int | None:
        known = [frame.t + frame.half for frame in self._pending(frames)]
        known += [] if events.last is None else [events.last + 1]
        return max(known, default=None)

    def _pending(self, frames: FrameBuffer) -> list[StoredFrame]:
        return frames.from_time(-FOREVER if self.done_to is None else self.done_to)

    def _ready(self, frames: list[StoredFrame], clock: int) -> list[Span]:
        spans = map(_span_of, frames[:-1], frames[1:])
        return list(takewhile(lambda span: span.needs(self.slices)[1] <= clock, spans))


def _span_of(first: StoredFrame, last: StoredFrame) -> Span:
    return Span(first.t, last.t, first, last)


def find_span(frames: FrameBuffer, t0: int, t1: int, slack: int) -> Span:
    """A time interval with the frames at its limits, at most ``slack`` us away."""
    first, last = frames.nearest(t0, slack), frames.nearest(t1, slack)
    return Span(t0, t1, first, None if first is None or last is first else last)
