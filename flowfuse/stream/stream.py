"""A stream: push what arrives, ask at any time, without a growing lag.

stream = Stream("small", height=480, width=640, interval="20ms")
stream.push_events(x, y, t, p)        # by the thread of the event camera
stream.push_frame(image, t)           # by the thread of the frame camera
for result in stream: ...             # by the thread that uses the flow
"""

from __future__ import annotations

import dataclasses
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowfuse.estimator import Estimator, as_frame, load
from flowfuse.events import Events
from flowfuse.geometry.carry import carry_forward
from flowfuse.model.encoders import EncodedFrame
from flowfuse.result import Array, Result
from flowfuse.stream.buffers import FOREVER, EventBuffer, FrameBuffer, StoredFrame
from flowfuse.stream.clocks import (
    RateCheck,
    check_event_times,
    check_frame_time,
    microseconds,
)
from flowfuse.stream.policy import POLICIES, StreamStats, Thinner
from flowfuse.stream.schedule import FixedRate, FramePairs, Schedule, Span, find_span

BETWEEN_FRAMES = "frames"
_ARRIVALS = 4096  # pushes whose time of arrival is remembered


class Timing(NamedTuple):
    """How long a result took.

    Attributes:
        latency: seconds from the moment when everything for the interval had come to the result.
        estimate: seconds of these in the estimator.
    """

    latency: float
    estimate: float


class Stream:
    """Flow of what sensors push, in constant memory.

    One thread may push the events, one the frames, and one take results; they may be the same. All
    times are integer microseconds on the clock of the events, unless ``offset`` says otherwise.

    An interval is estimated when all of its events have come: when an event, or :meth:`advance`,
    says so, or a frame that is later by ``tolerance``. Where frames lie at both of its limits, the
    flow comes from these and the events, as of a call of the estimator; with one at its start
    alone, as the estimator takes that; otherwise from the events. ``Result.modalities`` tells.
    docs/guides/live.md has a table of what happens to late, repeated and impossible times.

    Args:
        model: a checkpoint, see :func:`flowfuse.load`, or an estimator.
        height, width: of the sensors, px.
        interval: "frames": from each frame to the next; or the length of intervals that begin at
            the first event: microseconds, or a text such as "20ms".
        every: from the start of an interval to that of the next; None: its length.
        device, dtype: see :func:`flowfuse.load`; of a checkpoint.
        iterations: recurrent updates; None: the network's default.
        policy: when more comes in than can be estimated: "latest" passes over all but the newest
            interval, "all" lets the sensors wait, "thin" is "latest" with fewer events, see
            ``rate``. :attr:`stats` counts what was lost.
        rate: events per second that "thin" lets through.
        memory: events that are kept. An interval with its history must fit in.
        frames: frames that are kept.
        tolerance: by how much the sensors may lag behind each other, and events be out of order.
        slack: a frame this near to a limit of a fixed interval counts as taken there.
        offset: added to the times of frames, to bring them to the clock of the events.
        reset_after: a clock that jumps back by more than this began anew: the stream does too.
        wait: the longest time that "all" lets a sensor wait for room.
        warm_start: an estimate starts from the flow of the one before, carried along. The shipped
            network was not trained for this; measure before you use it.
        as_torch: results give tensors on the estimator's device.

    Attributes:
        estimator, height, width, policy: as given.

    Raises:
        ValueError: naming the argument, what was found and what was expected.
    """

    def __init__(  # noqa: PLR0913 - all that a user may choose
        self,
        model: str | Path | Estimator = "small",
        *,
        height: int,
        width: int,
        interval: int | str = BETWEEN_FRAMES,
        every: int | str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        iterations: int | None = None,
        policy: str = "latest",
        rate: float = 2e6,
        memory: int = 2_000_000,
        frames: int = 8,
        tolerance: int | str = "50ms",
        slack: int | str = "1ms",
        offset: int | str = 0,
        reset_after: int | str = "1s",
        wait: float = 30.0,
        warm_start: bool = False,
        as_torch: bool = False,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"Stream: policy must be one of {', '.join(POLICIES)}; got {policy!r}")
        if not rate > 0:
            raise ValueError(f"Stream: rate must be positive events per second, got {rate}")
        if not wait >= 0:
            raise ValueError(f"Stream: wait must be seconds >= 0, got {wait}")
        limits = [("memory", memory, 1), ("frames", frames, 2)]
        limits += [] if iterations is None else [("iterations", iterations, 1)]
        for name, value, least in limits:
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"Stream: {name} must be a whole number >= {least}, got {value!r}")
        self.estimator = (
            model if isinstance(model, Estimator) else load(model, device=device, dtype=dtype)
        )
        self.policy = policy
        self._events = EventBuffer(height, width, int(memory))
        self.height, self.width = Events.empty(height, width).height, width
        self._frames = FrameBuffer(int(frames))
        self._tolerance = microseconds("tolerance", tolerance)
        self._slack = microseconds("slack", slack)
        self._offset = microseconds("offset", offset, least=-FOREVER)
        self._reset_after = microseconds("reset_after", reset_after, least=self._tolerance + 1)
        self._slices = self.estimator.model.config.slices
        self._schedule = self._make_schedule(interval, every)
        self._iterations, self._as_torch = iterations, as_torch
        self._wait, self._warm_start = wait, warm_start
        self._thinner = Thinner(height, width, rate) if policy == "thin" else None
        self._stats = StreamStats()
        self._changed = threading.Condition()
        self._estimating = threading.Lock()
        self._worker: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = self._told_too_small = False
        self._last_timing: Timing | None = None
        self._begin()

    def _make_schedule(self, interval: int | str, every: int | str | None) -> Schedule:
        if interval == BETWEEN_FRAMES:
            if every is not None:
                raise ValueError(
                    f"Stream: every belongs to intervals of a fixed length, got every={every!r} "
                    "between frames"
                )
            return FramePairs(self._slices)
        length = microseconds("interval", interval, least=self._slices)
        step = length if every is None else microseconds("every", every, least=1)
        return FixedRate(length, step, self._slices, self._slack)

    def _begin(self) -> None:
        """Empty memory: at first, and when a clock began anew."""
        self._events.clear()
        self._frames.clear()
        self._schedule.reset()
        self._newest: int | None = None  # time of the newest event, be it thinned
        self._silent_to = -FOREVER  # nothing comes any more before it
        self._rate_check = RateCheck()
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=_ARRIVALS)
        self._last_result: Result | None = None
        if self._thinner is not None:
            self._thinner.reset()

    def __repr__(self) -> str:
        return f"Stream({self.width} x {self.height} px, {self.policy}, {self.estimator!r})"

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # What sensors call.

    def push_events(self, x: Any, y: Any, t: Any, p: Any) -> None:
        """Take the next packet of events, of any size.

        Args:
            x, y, t, p: [N] as of :class:`flowfuse.Events`; numpy, torch or lists. Times may be out
                of order by up to the tolerance.

        Raises:
            ValueError: NaN, places outside the sensor, times of another unit, or, with policy
                "all", an interval that does not fit into memory.
            TimeoutError: with policy "all", nobody took results meanwhile.
            RuntimeError: the stream is closed, or what runs in the background has failed.
        """
        times = check_event_times(t)
        # Where times go back further than a disorder, another clock begins.
        cuts = np.flatnonzero(np.diff(times.astype(np.int64)) < -self._reset_after) + 1
        columns = {"x": x, "y": y, "p": p}
        arrays = {name: _vector(name, values) for name, values in columns.items()}
        lengths = {name: len(array) for name, array in {**arrays, "t": times}.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"push_events: x, y, t and p must have the same length, got {found}")
        for first, last in zip((0, *cuts.tolist()), (*cuts.tolist(), len(times)), strict=True):
            part = slice(first, last)
            self._push_part({name: array[part] for name, array in arrays.items()}, times[part])

    def push(self, events: Events) -> None:
        """Take a packet of events that is an :class:`flowfuse.Events`; as :meth:`push_events`."""
        size = (events.height, events.width)
        if size != (None, None) and size != (self.height, self.width):
            raise ValueError(
                f"push: events of a sensor of {events.width} x {events.height} px, the stream is "
                f"of {self.width} x {self.height} px"
            )
        self.push_events(events.x, events.y, events.t, events.p)

    def push_frame(self, image: Array, t: int, exposure: int | None = None) -> None:
        """Take the next frame.

        Args:
            image: as of a call of the estimator; it is copied.
            t: time of the middle of its exposure, integer microseconds of the frames' clock.
            exposure: duration, integer microseconds; None where unknown.

        Raises:
            ValueError: an image of another size, NaN, or a time of another unit.
            TimeoutError: with policy "all", nobody took results meanwhile.
            RuntimeError: as of :meth:`push_events`.
        """
        picture = as_frame("push_frame: image", image)
        if picture is None:
            raise ValueError("push_frame: image must be a numpy array or a tensor, got None")
        if tuple(picture.shape[:2]) != (self.height, self.width):
            raise ValueError(
                f"push_frame: image is of {picture.shape[1]} x {picture.shape[0]} px, the stream "
                f"is of {self.width} x {self.height} px"
            )
        if isinstance(image, torch.Tensor):  # numpy arrays were copied
            picture = picture.clone()
        with self._changed:
            self._check_open("push_frame")
            newest = None if self._newest is None else self._newest - self._offset
            given, length = check_frame_time(t, exposure, newest)
            self._store_frame(StoredFrame(given + self._offset, picture, length))
            self._arrived()

    def advance(self, t: int) -> None:
        """Say that no event before ``t`` (us, of the events' clock) will come any more.

        For a sensor that is silent while nothing moves, or that is not there.
        """
        with self._changed:
            self._check_open("advance")
            self._silent_to = max(self._silent_to, int(t))
            self._arrived()

    def close(self) -> None:
        """Say that nothing more will come; what is still to be estimated can be taken.

        Raises:
            RuntimeError: what runs in the background has failed.
        """
        with self._changed:
            if not self._closed:
                self._closed = True
                self._note_arrival()
            self._changed.notify_all()
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()
            self._worker = None
            self._raise_failure()

    # What takes results.

    def take(self, timeout: float | None = None) -> Result | None:
        """Estimate the next interval, and wait until there is one.

        Args:
            timeout: seconds to wait at most; None: without end; 0: not at all.

        Returns:
            The result; None when the time is up, or when the stream is closed and nothing is left.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (found := self._next_due()) is None:
                if self._closed:
                    return None
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            self._changed.notify_all()  # there is room for what comes next
            resets = self._stats.resets
        span, events, began = found
        result = self._estimate(span, events, resets)
        with self._changed:
            self._stats.intervals += 1
            if began is not None and self._last_timing is not None:
                latency = max(time.perf_counter() - began, self._last_timing.estimate)
                self._last_timing = self._last_timing._replace(latency=latency)
            self._changed.notify_all()
        return result

    def __iter__(self) -> Iterator[Result]:
        """Results one after the other, until the stream is closed and nothing is left."""
        while True:
            result = self.take()
            if result is None:
                return
            yield result

    def start(self, callback: Callable[[Result], object]) -> None:
        """Take results in a thread of their own.

        Args:
            callback: called there with each result. When it fails, the stream closes, and the next
                push, or :meth:`close`, says so.

        Raises:
            RuntimeError: there is such a thread already.
        """
        if self._worker is not None:
            raise RuntimeError("Stream: results are taken in the background already")

        def work() -> None:
            try:
                for result in self:
                    callback(result)
            except BaseException as error:  # told to the threads that push
                self._failure = error
                with self._changed:
                    self._closed = True
                    self._changed.notify_all()

        self._worker = threading.Thread(target=work, name="flowfuse-stream", daemon=True)
        self._worker.start()

    def flow(self, t0: int, t1: int) -> Result:
        """Estimate any past interval that is still in memory; results taken elsewhere go on.

        Args:
            t0, t1: microseconds of the events' clock.

        Raises:
            ValueError: it is not in memory any more, not over yet, or nothing came in it.
        """
        t0, t1 = int(t0), int(t1)
        with self._changed:
            span = find_span(self._frames, t0, t1, self._slack)
            first, last = span.needs(self._slices)
            clock = self._clock()
            if clock is None or clock < last:
                found = "nothing has come yet" if clock is None else f"they have up to {clock} us"
                raise ValueError(
                    f"flow: the events up to {last} us are needed for [{t0}, {t1}) us, and {found}"
                )
            if self._events.complete_from > span.t0:
                raise ValueError(
                    f"flow: [{t0}, {t1}) us is not in memory any more, which goes back to "
                    f"{self._events.complete_from} us; give Stream more memory= than "
                    f"{self._events.capacity} events"
                )
            events = self._events.between(self._kept_from(span, first), last)
            resets = self._stats.resets
        return self._estimate(span, events, resets)

    def latest(self) -> Result | None:
        """Estimate the newest interval of the stream that is whole, unless it has been.

        Returns:
            The result; that of the last estimate when nothing new has come; None before the first
            of the present clock. It does not change what :meth:`take` gives next.
        """
        with self._changed:
            clock = self._clock()
            span = None
            if clock is not None:
                span = self._schedule.newest(self._events, self._frames, clock)
            known = self._last_result
            if span is None or (known is not None and span.t1 <= known.t1):
                return known
            first, last = span.needs(self._slices)
            lost = self._events.complete_from > span.t0
            empty = not (span.is_frame_pair or self._events.count(span.t0, span.t1))
            if lost or empty:
                return known
            events = self._events.between(self._kept_from(span, first), last)
            resets = self._stats.resets
        return self._estimate(span, events, resets)

    @property
    def stats(self) -> StreamStats:
        """A copy of what was counted so far."""
        with self._changed:
            return dataclasses.replace(self._stats)

    @property
    def timing(self) -> Timing | None:
        """How long the last result that was taken took; None before the first."""
        return self._last_timing

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    def events(self, t0: int, t1: int) -> Events:
        """A copy of the events of [t0, t1) us that are in memory."""
        with self._changed:
            return self._events.between(t0, t1)

    def frame(self, t: int) -> np.ndarray | None:
        """The frame in memory that was taken at ``t`` us, give or take the slack; None without."""
        with self._changed:
            found = self._frames.nearest(int(t), self._slack)
        return None if found is None else found.image.cpu().numpy()

    # Below, what is called with the lock held.

    def _push_part(self, columns: dict[str, np.ndarray], times: np.ndarray) -> None:
        """Take events of one clock, in whatever order."""
        if not len(times):
            return
        times = times.astype(np.int64)
        disordered = int((np.maximum.accumulate(times) > times).sum())
        if disordered:
            order = np.argsort(times, kind="stable")
            times = times[order]
            columns = {name: values[order] for name, values in columns.items()}
        try:
            events = Events(**columns, t=times, height=self.height, width=self.width)
        except ValueError as error:
            text = str(error).removeprefix("Events: ")
            raise ValueError(f"push_events: {text}") from error
        with self._changed:
            self._check_open("push_events")
            self._rate_check.add(events.t)
            self._stats.events += len(events)
            self._stats.events_reordered += disordered
            self._store_events(events)
            self._arrived()

    def _store_events(self, events: Events) -> None:
        if self._newest is not None and int(events.t[0]) <= self._newest:
            if self._newest - int(events.t[0]) > self._reset_after:
                self._stats.resets += 1
                self._begin()
            elif self._events.is_repeated(events):
                self._stats.events_repeated += len(events)
                return
            else:
                events = self._merge_late(events)
                if not len(events):
                    return
        last = int(events.t[-1])
        if self._thinner is not None:
            kept = self._thinner(events)
            self._stats.events_thinned += len(events) - len(kept)
            events = kept
        while len(events):
            room = min(self._room("push_events"), len(events))
            self._count_overwritten(room)
            self._events.append(events[:room])
            self._newest = int(events.t[room - 1])  # the rest has not come yet
            events = events[room:]
            self._note_arrival()
        self._newest = last

    def _merge_late(self, events: Events) -> Events:
        """Put late events in their place, and give the rest, which is not late."""
        assert self._newest is not None, "there was an event"
        late = int(np.searchsorted(events.t, self._newest))
        lost = int(np.searchsorted(events.t, self._newest - self._tolerance))
        lost = min(lost, late)
        self._stats.events_late += lost
        self._stats.events_reordered += late - lost
        first = lost
        while first < late:
            room = min(self._room("push_events"), late - first)
            self._count_overwritten(room)
            self._events.merge(events[first : first + room])
            first += room
        return events[late:]

    def _room(self, caller: str) -> int:
        """How many events can be stored now, at least one; with policy "all", wait for it."""
        deadline = time.monotonic() + self._wait
        while self.policy == "all":
            needed = self._schedule.needed_from(self._events, self._frames)
            kept = 0 if needed is None else self._events.count(needed, FOREVER)
            if kept < self._events.capacity:
                return self._events.capacity - kept
            if isinstance(self._schedule, FixedRate) and not self._is_due():
                raise ValueError(
                    f"{caller}: an interval has more events than memory, which holds "
                    f"{self._events.capacity}; give Stream more memory=, or are the times of "
                    "another unit than microseconds?"
                )
            self._wait_for_room(caller, f"the memory of {self._events.capacity} events", deadline)
        return self._events.capacity

    def _is_due(self) -> bool:
        clock = self._clock()
        if clock is None:
            return False
        due = self._schedule.due(self._events, self._frames, clock, False)
        self._stats.intervals_empty += due.empty
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
        self._check_open(caller)

    def _count_overwritten(self, count: int) -> None:
        """Count those events that adding ``count`` overwrites and that are still needed."""
        lost = len(self._events) + count - self._events.capacity
        if lost <= 0:
            return
        needed = self._schedule.needed_from(self._events, self._frames)
        kept = 0 if needed is None else self._events.count(needed, FOREVER)
        free = len(self._events) - kept
        self._stats.events_overwritten += max(0, lost - free)

    def _store_frame(self, frame: StoredFrame) -> None:
        self._stats.frames += 1
        last = self._frames.last
        if last is not None and last - frame.t > self._reset_after:
            self._stats.resets += 1
            self._begin()
        elif self._frames.has(frame.t):
            self._stats.frames_repeated += 1
            return
        if isinstance(self._schedule, FramePairs):
            done_to = self._schedule.done_to
            self._stats.frames_late += done_to is not None and frame.t < done_to
            deadline = time.monotonic() + self._wait
            while self.policy == "all" and self._pending_frames() >= self._frames.capacity:
                what = f"the memory of {self._frames.capacity} frames"
                self._wait_for_room("push_frame", what, deadline)
        waiting = self._pending_frames()
        dropped = self._frames.insert(frame)
        if dropped is not None and (waiting >= self._frames.capacity or dropped is frame):
            self._stats.frames_overwritten += 1
        self._silent_to = max(self._silent_to, frame.t - self._tolerance)

    def _pending_frames(self) -> int:
        """Frames in memory whose pair with the next has not been estimated."""
        if not isinstance(self._schedule, FramePairs):
            return 0
        done_to = self._schedule.done_to
        return len(self._frames.from_time(-FOREVER if done_to is None else done_to))

    def _clock(self) -> int | None:
        """All events before this time (us) have come; None before there is anything."""
        if self._closed:
            final = self._schedule.final_clock(self._events, self._frames)
            return None if final is None else max(final, self._silent_to)
        newest = -FOREVER if self._newest is None else self._newest
        clock = max(newest, self._silent_to)
        return None if clock == -FOREVER else clock

    def _arrived(self) -> None:
        self._note_arrival()
        self._changed.notify_all()

    def _note_arrival(self) -> None:
        clock = self._clock()
        if clock is not None and (not self._arrivals or clock > self._arrivals[-1][0]):
            self._arrivals.append((clock, time.perf_counter()))

    def _next_due(self) -> tuple[Span, Events, float | None] | None:
        """The next interval, its events, and when it was whole; None without one."""
        while (clock := self._clock()) is not None:
            newest = self.policy != "all"
            due = self._schedule.due(self._events, self._frames, clock, newest)
            self._stats.intervals_skipped += due.skipped
            self._stats.intervals_empty += due.empty
            if due.span is None:
                return None
            self._schedule.done(due.span)
            first, last = due.span.needs(self._slices)
            if self._events.complete_from > due.span.t0:
                self._stats.intervals_skipped += 1
                self._tell_too_small(due.span)
                continue
            events = self._events.between(self._kept_from(due.span, first), last)
            began = next((at for t, at in self._arrivals if t >= last), None)
            return due.span, events, began
        return None

    def _kept_from(self, span: Span, first: int) -> int:
        """Where the events of a span begin: without a history where that has been overwritten."""
        return first if self._events.complete_from <= first else span.t0

    def _tell_too_small(self, span: Span) -> None:
        if not self._told_too_small:
            self._told_too_small = True
            warnings.warn(
                f"Stream: the events of [{span.t0}, {span.t1}) us left the memory of "
                f"{self._events.capacity} events before they were estimated, perhaps not for the "
                "last time; give Stream more memory=",
                RuntimeWarning,
                stacklevel=4,
            )

    def _check_open(self, caller: str) -> None:
        self._raise_failure()
        if self._closed:
            raise RuntimeError(f"{caller}: the stream is closed")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure = self._failure
            raise RuntimeError(f"Stream: what takes results has failed: {failure}") from failure

    # Without the lock: an estimate takes its time, and sensors go on.

    def _estimate(self, span: Span, events: Events, resets: int) -> Result:
        """Estimate an interval that was found when so many clocks had begun anew."""
        with self._estimating:
            first, last = span.first, span.last
            began = time.perf_counter()
            inputs = self.estimator.prepare(
                None if first is None else first.image,
                None if last is None else last.image,
                events,
                t0=span.t0,
                t1=span.t1,
                exposure0=span.exposures[0],
                exposure1=span.exposures[1],
            )
            encoded = None
            if first is not None and last is not None and self.estimator.model.config.frames:
                # The last frame of an interval is the first one of the next.
                first_features = self._encode(first, inputs.frame0)
                encoded = first_features, self._encode(last, inputs.frame1)
            flow_init = self._carried(span)
            (result,) = self.estimator.run(
                inputs,
                t0=span.t0,
                t1=span.t1,
                iterations=self._iterations,
                flow_init=None if flow_init is None else flow_init[None],
                encoded_frames=encoded,
                as_torch=self._as_torch,
            )
            if self.estimator.device.type == "cuda":
                torch.cuda.synchronize(self.estimator.device)
            seconds = time.perf_counter() - began
            self._last_timing = Timing(seconds, seconds)
            with self._changed:
                if resets == self._stats.resets:  # else it is of another clock
                    self._last_result = result
            return result

    def _encode(self, frame: StoredFrame, image: torch.Tensor) -> EncodedFrame:
        """The features of a frame in memory, made at its first use."""
        if frame.features is None:
            frame.features = self.estimator.encode_frame(image)
        return frame.features

    def _carried(self, span: Span) -> np.ndarray | None:
        """The flow of the last result, carried to the start of a span; None where it ends before
        or begins after it."""
        before = self._last_result
        if not self._warm_start or before is None or not before.t0 < span.t0 <= before.t1:
            return None
        length = before.t1 - before.t0
        moved, flow = (
            values.cpu().numpy() if self._as_torch else values
            for values in (before.at((span.t0 - before.t0) / length), before.flow)
        )
        return (span.t1 - span.t0) / length * carry_forward(flow, moved)


def _vector(name: str, values: Any) -> np.ndarray:
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"push_events: {name} must have shape [N], got {list(array.shape)}")
    return array
