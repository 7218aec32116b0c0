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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowfuse.estimator import Estimator, as_frame, load
from flowfuse.events import Events
from flowfuse.model.flowfuse import MINIMUM_SIZE
from flowfuse.result import Array, Result
from flowfuse.stream.buffers import StoredFrame
from flowfuse.stream.clocks import check_frame_time, check_time, microseconds, whole_time
from flowfuse.stream.estimates import Estimates, Request, Timing
from flowfuse.stream.intake import Intake
from flowfuse.stream.policy import POLICIES, StreamStats
from flowfuse.stream.schedule import FixedRate, FramePairs, Schedule, Span, find_span
from flowfuse.stream.settings import StreamSettings

BETWEEN_FRAMES = "frames"


class Stream:
    """Flow of what sensors push, in constant memory.

    One thread may push the events, one the frames, and one take results; they may be the same. All
    times are integer microseconds on the clock of the events, unless ``offset`` of the settings
    says otherwise.

    An interval is estimated when all of its events have come: when an event, or :meth:`advance`,
    says so, or a frame that is later by ``tolerance``. Where frames lie at both of its limits, the
    flow comes from these and the events, as of a call of the estimator; with one at its start
    alone, as the estimator takes that; otherwise from the events. ``Result.modalities`` tells.
    docs/guides/live.md has a table of what happens to late, repeated and impossible times.

    Args:
        model: a checkpoint, see :func:`flowfuse.load`, or an estimator.
        height, width: of the sensors, px; at least 16.
        interval: "frames": from each frame to the next; or the length of intervals that begin at
            the first event: microseconds, or a text such as "20ms".
        every: from the start of an interval to that of the next; None: its length.
        policy: when more comes in than can be estimated: "latest" passes over all but the newest
            interval, "all" lets the sensors wait, "thin" is "latest" with fewer events.
            :attr:`stats` counts what was lost.
        device: see :func:`flowfuse.load`; of a checkpoint.
        settings: all else, see :class:`StreamSettings`.

    Attributes:
        estimator, height, width, policy, settings: as given.

    Raises:
        ValueError: naming the argument, what was found and what was expected.
    """

    def __init__(
        self,
        model: str | Path | Estimator = "small",
        *,
        height: int,
        width: int,
        interval: int | str = BETWEEN_FRAMES,
        every: int | str | None = None,
        policy: str = "latest",
        device: str | torch.device = "cpu",
        settings: StreamSettings | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"Stream: policy must be one of {', '.join(POLICIES)}; got {policy!r}")
        self.estimator = model if isinstance(model, Estimator) else load(model, device=device)
        self.height, self.width = _sensor_side("height", height), _sensor_side("width", width)
        self.policy = policy
        self.settings = StreamSettings() if settings is None else settings
        self._slack, self._offset = int(self.settings.slack), int(self.settings.offset)
        self._slices = self.estimator.model.config.slices
        self._schedule = self._make_schedule(interval, every)
        # Its lock guards memory and schedule; where both are taken, that of the estimates is first.
        self._changed = threading.Condition()
        size = self.height, self.width
        self._intake = Intake(*size, policy, self.settings, self._schedule, self._changed)
        fixed = self._schedule if isinstance(self._schedule, FixedRate) else None
        self._estimates = Estimates(
            self.estimator,
            *size,
            self.settings,
            overlapping=fixed is not None and fixed.every < fixed.length,
        )
        self._worker: threading.Thread | None = None
        self._told: set[str] = set()  # warnings that were given

    def _make_schedule(self, interval: int | str, every: int | str | None) -> Schedule:
        if interval == BETWEEN_FRAMES:
            if every is not None:
                raise ValueError(
                    f"Stream: every belongs to intervals of a fixed length, got every={every!r} "
                    "between frames"
                )
            self._check_reuse(None, None)
            return FramePairs(self._slices)
        length = microseconds("interval", interval, least=self._slices)
        step = length if every is None else microseconds("every", every, least=1)
        self._check_reuse(length, step)
        return FixedRate(length, step, self._slices, self._slack)

    def _check_reuse(self, length: int | None, step: int | None) -> None:
        """Refuse to use slices again where no two intervals share one."""
        if not self.settings.scale_tolerance:
            return
        if not self.estimator.model.config.events:
            raise ValueError("Stream: scale_tolerance needs a network that uses events")
        if length is None or step is None:
            raise ValueError("Stream: scale_tolerance needs intervals of a fixed length")
        part, rest = divmod(length, self._slices)
        if rest or step % part or step > length:
            raise ValueError(
                "Stream: scale_tolerance needs intervals that share slices: interval must be a "
                f"multiple of {self._slices} us, and every a multiple of interval / {self._slices} "
                f"that is no longer than interval; got interval {length} us, every {step} us"
            )

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
        for events, disordered in self._intake.parts(x, y, t, p):
            with self._changed:
                self._intake.add_events(events, disordered)

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
            self._intake.check_open("push_frame")
            newest = self._intake.newest
            known = None if newest is None else newest - self._offset
            given, length = check_frame_time(t, exposure, known)
            self._intake.add_frame(StoredFrame(given + self._offset, picture, length))

    def advance(self, t: int) -> None:
        """Say that no event before ``t`` (us, of the events' clock) will come any more.

        For a sensor that is silent while nothing moves, or that is not there.

        Raises:
            ValueError: a time of another unit.
            RuntimeError: as of :meth:`push_events`.
        """
        with self._changed:
            self._intake.check_open("advance")
            self._intake.advance(check_time("advance", t, self._intake.newest))

    def close(self) -> None:
        """Say that nothing more will come; what is still to be estimated can be taken.

        Raises:
            RuntimeError: what runs in the background has failed.
        """
        with self._changed:
            self._intake.close()
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()
            self._worker = None
            self._intake.raise_failure()

    # What takes results.

    def take(self, timeout: float | None = None) -> Result | None:
        """Estimate the next interval, and wait until there is one.

        Args:
            timeout: seconds to wait at most; None: without end; 0: not at all.

        Returns:
            The result; None when the time is up, or when the stream is closed and nothing is left.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._wait_for_due(deadline):
            with self._estimates.busy:
                found = self._next_request()
                if found is None:  # memory lost it meanwhile, or another thread took it
                    continue
                result = self._estimates.run(*found)
                with self._changed:
                    self._intake.stats.intervals += 1
                    self._intake.stats.slices_reused = self._estimates.slices_reused
            return result
        return None

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
                with self._changed:
                    self._intake.failure = error
                    self._intake.close()

        self._worker = threading.Thread(target=work, name="flowfuse-stream", daemon=True)
        self._worker.start()

    def flow(self, t0: int, t1: int) -> Result:
        """Estimate any past interval that is still in memory; results taken elsewhere go on.

        It is estimated as by a call of the estimator, and changes no other.

        Args:
            t0, t1: microseconds of the events' clock.

        Raises:
            ValueError: it is not in memory any more, not over yet, or nothing came in it.
        """
        times = whole_time("flow: t0", t0), whole_time("flow: t1", t1)
        with self._estimates.busy:
            return self._estimates.run(self._past_request(*times))

    def latest(self) -> Result | None:
        """Estimate the newest interval of the stream that is whole, unless it has been.

        Returns:
            The result; that of before when nothing new has come; None before the first of the
            present clock. It does not change what :meth:`take` gives next.
        """
        with self._estimates.busy:
            with self._changed:
                memory, clock = self._intake.events, self._intake.clock()
                span = None
                if clock is not None:
                    span = self._schedule.newest(memory, self._intake.frames, clock)
                known = self._estimates.last(self._intake.stats.resets)
                if span is None or (known is not None and span.t1 <= known.t1):
                    return known
                empty = not (span.is_frame_pair or memory.count(span.t0, span.t1))
                if memory.complete_from > span.t0 or empty:
                    return known
                request = self._request(span, scheduled=True)
            return self._estimates.run(request)

    @property
    def stats(self) -> StreamStats:
        """A copy of what was counted so far."""
        with self._changed:
            return dataclasses.replace(self._intake.stats)

    @property
    def timing(self) -> Timing | None:
        """How long the last result that was taken took; None before the first."""
        return self._estimates.timing

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._intake.closed

    def events(self, t0: int, t1: int) -> Events:
        """A copy of the events of [t0, t1) us that are in memory."""
        with self._changed:
            return self._intake.events.between(t0, t1)

    def frame(self, t: int) -> np.ndarray | None:
        """The frame in memory that was taken at ``t`` us, give or take the slack; None without."""
        with self._changed:
            found = self._intake.frames.nearest(int(t), self._slack)
        return None if found is None else found.image.cpu().numpy()

    # Below, what finds the next interval.

    def _wait_for_due(self, deadline: float | None) -> bool:
        """Wait for an interval; tell whether there is one, else the time is up or all is done."""
        with self._changed:
            while self._find_due() is None:
                left = None if deadline is None else deadline - time.monotonic()
                if self._intake.closed or (left is not None and left <= 0):
                    return False
                self._changed.wait(left)
            return True

    def _find_due(self) -> Span | None:
        """The next interval of which memory still has the events; None without one."""
        intake = self._intake
        while (clock := intake.clock()) is not None:
            newest = self.policy != "all"
            due = self._schedule.due(intake.events, intake.frames, clock, newest)
            intake.stats.intervals_skipped += due.skipped
            intake.stats.intervals_empty += due.empty
            if due.span is None:
                return None
            if intake.events.complete_from <= due.span.t0:
                return due.span
            self._schedule.done(due.span)
            intake.stats.intervals_skipped += 1
            self._tell_too_small(due.span)
        return None

    def _next_request(self) -> tuple[Request, float | None] | None:
        """Take the next interval, and when it was whole; None without one."""
        with self._changed:
            span = self._find_due()
            if span is None:
                return None
            self._schedule.done(span)
            request = self._request(span, scheduled=True)
            self._changed.notify_all()  # there is room for what comes next
            return request, self._intake.arrival(span.needs(self._slices)[1])

    def _past_request(self, t0: int, t1: int) -> Request:
        with self._changed:
            memory, clock = self._intake.events, self._intake.clock()
            span = find_span(self._intake.frames, t0, t1, self._slack)
            last = span.needs(self._slices)[1]
            if clock is None or clock < last:
                found = "nothing has come yet" if clock is None else f"they have up to {clock} us"
                raise ValueError(
                    f"flow: the events up to {last} us are needed for [{t0}, {t1}) us, and {found}"
                )
            if memory.complete_from > span.t0:
                raise ValueError(
                    f"flow: [{t0}, {t1}) us is not in memory any more, which goes back to "
                    f"{memory.complete_from} us; give StreamSettings more memory= than "
                    f"{memory.capacity} events"
                )
            return self._request(span, scheduled=False)

    def _request(self, span: Span, *, scheduled: bool) -> Request:
        self._tell_exposure(span)
        clock = self._intake.stats.resets
        return self._estimates.request(span, self._intake.events, clock, scheduled=scheduled)

    def _tell_too_small(self, span: Span) -> None:
        self._tell(
            "memory",
            f"the events of [{span.t0}, {span.t1}) us left the memory of "
            f"{self._intake.events.capacity} events before they were estimated, perhaps not for "
            "the last time; give StreamSettings more memory= (flowfuse-live: --memory)",
        )

    def _tell_exposure(self, span: Span) -> None:
        if span.wrong_exposure is not None:
            self._tell(
                "exposure",
                f"an exposure of {span.wrong_exposure} us is more than twice the time between its "
                f"frames, [{span.t0}, {span.t1}) us; such exposures are taken as unknown (is it in "
                "nanoseconds?)",
            )

    def _tell(self, kind: str, text: str) -> None:
        """Warn, of each kind of thing once."""
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(f"Stream: {text}", RuntimeWarning, stacklevel=5)


def _sensor_side(name: str, value: Any) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < MINIMUM_SIZE:
        raise ValueError(
            f"Stream: {name} must be a whole number of px >= {MINIMUM_SIZE}, got {value!r}"
        )
    return int(value)
