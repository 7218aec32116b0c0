"""What sensors push, taken into the memory of a stream: late, repeated and impossible times."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np

from flowfuse.events import Events
from flowfuse.stream.buffers import FOREVER, EventBuffer, FrameBuffer, StoredFrame
from flowfuse.stream.clocks import RateCheck, check_event_times
from flowfuse.stream.policy import StreamStats, Thinner
from flowfuse.stream.schedule import FixedRate, FramePairs, Schedule
from flowfuse.stream.settings import StreamSettings

_ARRIVALS = 4096  # pushes whose time of arrival is remembered


class Intake:
    """The memory of a stream, and the order in which things come into it.

    All methods but :meth:`parts` are called with the lock of ``changed`` held; those that add may
    wait on it for room.

    Args:
        height, width: of the sensor, px.
        policy: one of :data:`flowfuse.stream.policy.POLICIES`.
        settings: of the stream.
        schedule: which intervals still need what is in memory.
        changed: told when something has come.

    Attributes:
        events, frames: what is in memory.
        stats: what was counted.
        closed: nothing more will come.
        failure: what went wrong where results are taken; None while nothing has.
    """

    def __init__(
        self,
        height: int,
        width: int,
        policy: str,
        settings: StreamSettings,
        schedule: Schedule,
        changed: threading.Condition,
    ) -> None:
        self.events = EventBuffer(height, width, settings.memory)
        self.frames = FrameBuffer(settings.frames)
        self.stats = StreamStats()
        self.closed = False
        self.failure: BaseException | None = None
        self._height, self._width = Events.empty(height, width).height, width
        self._waits, self._wait = policy == "all", settings.wait
        self._tolerance, self._reset_after = int(settings.tolerance), int(settings.reset_after)
        self._schedule, self._changed = schedule, changed
        # Between two frames there must be room for the slices of an interval.
        self._shortest = schedule.slices
        self._thinner = Thinner(height, width, settings.rate) if policy == "thin" else None
        self._begin()

    def _begin(self) -> None:
        """Empty memory: at first, and when a clock began anew."""
        self.events.clear()
        self.frames.clear()
        self._schedule.reset()
        self.newest: int | None = None  # time of the newest event, be it thinned
        self._silent_to = -FOREVER  # nothing comes any more before it
        self._rate_check = RateCheck()
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=_ARRIVALS)
        if self._thinner is not None:
            self._thinner.reset()

    def _reset(self) -> None:
        self.stats.resets += 1
        self._begin()

    def parts(self, x: Any, y: Any, t: Any, p: Any) -> list[tuple[Events, np.ndarray]]:
        """Check a packet, and put it in order.

        Args:
            x, y, t, p: as of :meth:`flowfuse.Stream.push_events`.

        Returns:
            The events of one clock after the other, sorted, each with [N] bool: which of them came
            after a later one of their packet.

        Raises:
            ValueError: as of :meth:`flowfuse.Stream.push_events`.
        """
        times = check_event_times(t)
        columns = {"x": x, "y": y, "p": p}
        arrays = {name: _vector(name, values) for name, values in columns.items()}
        lengths = {name: len(array) for name, array in {**arrays, "t": times}.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"push_events: x, y, t and p must have the same length, got {found}")
        if not len(times):
            return []
        times = times.astype(np.int64)
        # Where times go back further than a disorder, another clock begins.
        cuts = (np.flatnonzero(np.diff(times) < -self._reset_after) + 1).tolist()
        found_parts = []
        for first, last in zip((0, *cuts), (*cuts, len(times)), strict=True):
            part = slice(first, last)
            ordered = {name: array[part] for name, array in arrays.items()} | {"t": times[part]}
            disordered = np.maximum.accumulate(ordered["t"]) > ordered["t"]
            if disordered.any():
                order = np.argsort(ordered["t"], kind="stable")
                ordered = {name: values[order] for name, values in ordered.items()}
                disordered = disordered[order]
            try:
                events = Events(**ordered, height=self._height, width=self._width)
            except ValueError as error:
                text = str(error).removeprefix("Events: ")
                raise ValueError(f"push_events: {text}") from error
            found_parts.append((events, disordered))
        return found_parts

    def add_events(self, events: Events, disordered: np.ndarray) -> None:
        """Take events of one clock, and which of them were out of order, as of :meth:`parts`."""
        self.check_open("push_events")
        try:
            self.events.check_kind(events)
        except ValueError as error:
            raise ValueError(f"push_events: {error}") from error
        self._rate_check.add(events.t)
        self.stats.events += len(events)
        self._store_events(events, disordered)
        self.note_arrival()

    def _store_events(self, events: Events, disordered: np.ndarray) -> None:
        if self.newest is not None and int(events.t[0]) <= self.newest:
            if self.newest - int(events.t[0]) > self._reset_after:
                self._reset()
            elif self.events.is_repeated(events):
                self.stats.events_repeated += len(events)
                return
            else:
                count = len(events)
                events = self._merge_late(events)
                disordered = disordered[count - len(events) :]  # of the others each is counted
                if not len(events):
                    return
        self.stats.events_reordered += int(disordered.sum())
        last = int(events.t[-1])
        if self._thinner is not None:
            kept = self._thinner(events)
            self.stats.events_thinned += len(events) - len(kept)
            events = kept
        while len(events):
            room = min(self._room("push_events"), len(events))
            self._count_overwritten(room)
            self.events.append(events[:room])
            self.newest = int(events.t[room - 1])  # the rest has not come yet
            events = events[room:]
            self.note_arrival()
        self.newest = last

    def _merge_late(self, events: Events) -> Events:
        """Put late events in their place, and give the rest, which is not late."""
        assert self.newest is not None, "there was an event"
        late = int(np.searchsorted(events.t, self.newest))
        lost = int(np.searchsorted(events.t, self.newest - self._tolerance))
        lost = min(lost, late)
        self.stats.events_late += lost
        self.stats.events_reordered += late - lost
        first = lost
        while first < late:
            room = min(self._room("push_events"), late - first)
            self._count_overwritten(room)
            self.events.merge(events[first : first + room])
            first += room
        return events[late:]

    def add_frame(self, frame: StoredFrame) -> None:
        """Take a frame, at a time of the events' clock."""
        self.stats.frames += 1
        last = self.frames.last
        if last is not None and last - frame.t > self._reset_after:
            self._reset()
        elif self.frames.nearest(frame.t, self._shortest - 1) is not None:
            self.stats.frames_repeated += 1
            return
        late = False
        if isinstance(self._schedule, FramePairs):
            done_to = self._schedule.done_to
            late = done_to is not None and frame.t < done_to
            deadline = time.monotonic() + self._wait
            while self._waits and self._pending_frames() >= self.frames.capacity:
                what = f"the memory of {self.frames.capacity} frames"
                self._wait_for_room("push_frame", what, deadline)
        waiting = self._pending_frames()
        dropped = self.frames.insert(frame)
        if dropped is not None and (waiting >= self.frames.capacity or dropped is frame):
            self.stats.frames_overwritten += 1
        if dropped is not frame:  # else it is not in memory, and counted above
            self.stats.frames_late += late
        self.advance(frame.t - self._tolerance)

    def advance(self, t: int) -> None:
        """Take note that no event before ``t`` us will come any more."""
        self._silent_to = max(self._silent_to, t)
        self.note_arrival()

    def close(self) -> None:
        """Take note that nothing more will come."""
        self.closed = True
        self.note_arrival()

    def clock(self) -> int | None:
        """All events before this time (us) have come; None before there is anything."""
        if self.closed:
            final = self._schedule.final_clock(self.events, self.frames)
            return None if final is None else max(final, self._silent_to)
        newest = -FOREVER if self.newest is None else self.newest
        clock = max(newest, self._silent_to)
        return None if clock == -FOREVER else clock

    def note_arrival(self) -> None:
        """Take note of how far the clock has come, and wake whoever waits for it."""
        clock = self.clock()
        if clock is not None and (not self._arrivals or clock > self._arrivals[-1][0]):
            self._arrivals.append((clock, time.perf_counter()))
        self._changed.notify_all()

    def arrival(self, t: int) -> float | None:
        """When, by time.perf_counter, all events before ``t`` us had come; None if forgotten."""
        return next((at for clock, at in self._arrivals if clock >= t), None)

    def check_open(self, caller: str) -> None:
        """Raise where nothing more can be pushed."""
        self.raise_failure()
        if self.closed:
            raise RuntimeError(f"{caller}: the stream is closed")

    def raise_failure(self) -> None:
        """Raise what went wrong where results are taken."""
        if self.failure is not None:
            failure = self.failure
            raise RuntimeError(f"Stream: what takes results has failed: {failure}") from failure

    def _room(self, caller: str) -> int:
        """How many events can be stored now, at least one; with policy "all", wait for it."""
        deadline = time.monotonic() + self._wait
        while self._waits:
            kept = self._needed()
            if kept < self.events.capacity:
                return self.events.capacity - kept
            if isinstance(self._schedule, FixedRate) and not self._is_due():
                raise ValueError(
                    f"{caller}: an interval has more events than memory, which holds "
                    f"{self.events.capacity}; give StreamSettings more memory= (flowfuse-live: "
                    "--memory), or are the times of another unit than microseconds?"
                )
            self._wait_for_room(caller, f"the memory of {self.events.capacity} events", deadline)
        return self.events.capacity

    def _needed(self) -> int:
        """How many of the events in memory an interval still needs."""
        needed = self._schedule.needed_from(self.events, self.frames)
        return 0 if needed is None else self.events.count(needed, FOREVER)

    def _is_due(self) -> bool:
        clock = self.clock()
        if clock is None:
            return False
        due = self._schedule.due(self.events, self.frames, clock, False)
        self.stats.intervals_empty += due.empty
        return due.span is not None

    def _wait_for_room(self, caller: str, what: str, deadline: float) -> None:
        self._changed.notify_all()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(
                f"{caller}: {what} is full, and has been for {self._wait:g} s: take results in "
                "another thread, give more of it, or choose the policy 'latest'"
            )
        self._changed.wait(left)
        self.check_open(caller)

    def _count_overwritten(self, count: int) -> None:
        """Count those events that adding ``count`` overwrites and that are still needed."""
        lost = len(self.events) + count - self.events.capacity
        if lost > 0:
            free = len(self.events) - self._needed()
            self.stats.events_overwritten += max(0, lost - free)

    def _pending_frames(self) -> int:
        """Frames in memory whose pair with the next has not been estimated."""
        if not isinstance(self._schedule, FramePairs):
            return 0
        done_to = self._schedule.done_to
        return len(self.frames.from_time(-FOREVER if done_to is None else done_to))


def _vector(name: str, values: Any) -> np.ndarray:
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"push_events: {name} must have shape [N], got {list(array.shape)}")
    return array
