"""Memory of a stream: the newest events and frames, in a space that never grows."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowfuse.events import Events

FOREVER = 2**62  # us, later than any time that the estimator takes


class EventBuffer:
    """The newest events of one sensor, sorted by time.

    The columns are twice as long as what is kept, so that any stretch of time lies in one piece:
    events are appended at the end, and when the end is reached, those still kept move to the front.
    All of the space is taken when the first event comes, and stays the same.

    Args:
        height, width: of the sensor, px.
        capacity: events that are kept.

    Attributes:
        complete_from: us; from this time on nothing has been overwritten.
    """

    def __init__(self, height: int, width: int, capacity: int) -> None:
        self.height, self.width, self.capacity = height, width, capacity
        self._columns: dict[str, np.ndarray] = {}
        self.clear()

    def __len__(self) -> int:
        return self._end - self._start

    def clear(self) -> None:
        """Forget all events; the memory stays."""
        self._start = self._end = 0
        self.complete_from = self._added_from = -FOREVER

    @property
    def last(self) -> int | None:
        """The time of the newest event, us; None without any."""
        return int(self._columns["t"][self._end - 1]) if len(self) else None

    @property
    def first(self) -> int | None:
        """The time of the oldest event that is kept, us; None without any."""
        return int(self._columns["t"][self._start]) if len(self) else None

    def between(self, t0: int, t1: int) -> Events:
        """Copy the events of [t0, t1), us."""
        return self._events(*self._range(t0, t1))

    def count(self, t0: int, t1: int) -> int:
        """Count the events of [t0, t1), us."""
        first, last = self._range(t0, t1)
        return last - first

    def first_from(self, t: int) -> int | None:
        """The time of the first event at ``t`` us or later; None without any."""
        first, _ = self._range(t, FOREVER)
        return int(self._columns["t"][first]) if first < self._end else None

    def take_added(self) -> int:
        """From which time on (us) events were added, or all forgotten, since this was last asked;
        FOREVER where nothing was."""
        added, self._added_from = self._added_from, FOREVER
        return added

    def is_repeated(self, events: Events) -> bool:
        """Whether memory holds exactly these events in the time that they span."""
        first, last = self._range(int(events.t[0]), int(events.t[-1]) + 1)
        if last - first != len(events):
            return False
        return all(
            np.array_equal(self._columns[name][first:last], getattr(events, name))
            for name in "txyp"
        )

    def append(self, events: Events) -> int:
        """Add events that are not older than the newest.

        Args:
            events: at most ``capacity`` of them; not empty.

        Returns:
            How many of the oldest were overwritten.

        Raises:
            ValueError: as of :meth:`check_kind`.
        """
        self._allocate(events)
        self._added_from = min(self._added_from, int(events.t[0]))
        count = len(events)
        if self._end + count > 2 * self.capacity:
            self._move_to_front(min(len(self), self.capacity))
        place = slice(self._end, self._end + count)
        for name, column in self._columns.items():
            column[place] = getattr(events, name)
        self._end += count
        return self._drop_oldest(len(self) - self.capacity)

    def check_kind(self, events: Events) -> None:
        """Refuse fractional coordinates after whole ones, and whole ones after fractional.

        Raises:
            ValueError: saying what there was before.
        """
        fractional = events.x.dtype.kind == "f"
        if self._columns and fractional != (self._columns["x"].dtype.kind == "f"):
            kinds_told = ("fractional", "whole") if fractional else ("whole", "fractional")
            raise ValueError(
                f"coordinates are {kinds_told[0]} ({events.x.dtype}), those of the packets before "
                f"{kinds_told[1]}; a stream takes one kind"
            )

    def merge(self, events: Events) -> int:
        """Add events that belong among those in memory, in the order of time; as :meth:`append`."""
        first, last = self._range(int(events.t[0]), FOREVER)
        tail = self._events(first, last)
        self._added_from = min(self._added_from, int(events.t[0]))
        order = np.argsort(np.concatenate((tail.t, events.t)), kind="stable")
        joined = {
            name: np.concatenate((getattr(tail, name), getattr(events, name)))[order]
            for name in "xytp"
        }
        self._end = first
        merged, lost = Events(**joined, height=self.height, width=self.width), 0
        for start in range(0, len(merged), self.capacity):
            lost += self.append(merged[start : start + self.capacity])
        return lost

    def free_before(self, t: int) -> int:
        """Give up the events before ``t`` us; returns how many."""
        first, _ = self._range(t, FOREVER)
        return self._drop_oldest(first - self._start)

    def _range(self, t0: int, t1: int) -> tuple[int, int]:
        if not len(self):
            return self._start, self._start
        times = self._columns["t"][self._start : self._end]
        first, last = np.searchsorted(times, (t0, t1))
        return self._start + int(first), self._start + max(int(first), int(last))

    def _events(self, first: int, last: int) -> Events:
        if first == last:
            return Events.empty(self.height, self.width)
        x, y, t, p = (self._columns[name][first:last].copy() for name in "xytp")
        # They have been checked when they came.
        return Events._trusted(x, y, t, p, self.height, self.width)

    def _allocate(self, events: Events) -> None:
        fractional = events.x.dtype.kind == "f"
        if not self._columns:
            kind = np.float32 if fractional else np.int32
            kinds = {"x": kind, "y": kind, "t": np.int64, "p": np.uint8}
            # Filled with ones: zeroed memory is only taken when it is first written.
            self._columns = {n: np.ones(2 * self.capacity, k) for n, k in kinds.items()}
        self.check_kind(events)

    def _move_to_front(self, kept: int) -> None:
        for column in self._columns.values():
            column[:kept] = column[self._end - kept : self._end]
        self._start, self._end = 0, kept

    def _drop_oldest(self, count: int) -> int:
        if count <= 0:
            return 0
        # At the time of the last one lost, others may have been lost or kept.
        self.complete_from = int(self._columns["t"][self._start + count - 1]) + 1
        self._start += count
        return count


@dataclass(order=True)
class StoredFrame:
    """A frame in memory.

    Attributes:
        t: mid-exposure on the events' clock, us.
        image: [H, W] or [H, W, 3].
        exposure: duration, us; None where unknown.
        features: what the encoder made of it, kept for the next estimate; None before.
    """

    t: int
    image: Any = field(compare=False)
    exposure: int | None = field(compare=False, default=None)
    features: Any = field(compare=False, default=None)

    @property
    def half(self) -> int:
        """Half of the exposure, us; 0 where unknown."""
        return (self.exposure or 0) // 2


class FrameBuffer:
    """The newest frames, sorted by time.

    Args:
        capacity: frames that are kept, at least 2.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._frames: list[StoredFrame] = []

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        """Forget all frames."""
        self._frames = []

    @property
    def last(self) -> int | None:
        """The time of the newest frame, us; None without any."""
        return self._frames[-1].t if self._frames else None

    def insert(self, frame: StoredFrame) -> StoredFrame | None:
        """Add a frame in the order of time.

        Returns:
            The oldest frame, if it had to make room; it may be the one given.
        """
        insort(self._frames, frame)
        return self._frames.pop(0) if len(self._frames) > self.capacity else None

    def from_time(self, t: int) -> list[StoredFrame]:
        """The frames at ``t`` us or later."""
        return self._frames[bisect_left(self._frames, t, key=_time) :]

    def nearest(self, t: int, tolerance: int) -> StoredFrame | None:
        """The frame nearest to ``t``, at most ``tolerance`` us away; None without one."""
        close = (frame for frame in self._frames if abs(frame.t - t) <= tolerance)
        return min(close, key=lambda frame: abs(frame.t - t), default=None)

    def free_before(self, t: int) -> None:
        """Give up the frames before ``t`` us."""
        self._frames = self.from_time(t)


def _time(frame: StoredFrame) -> int:
    return frame.t
