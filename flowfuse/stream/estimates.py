"""From an interval in the memory of a stream to its flow."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import numpy as np
import torch

from flowfuse.estimator import Estimator
from flowfuse.estimator.late_start import shows_history
from flowfuse.estimator.pairs import FRAMES_USED
from flowfuse.events import Events
from flowfuse.geometry.carry import carry_cells
from flowfuse.inputs import (
    EventTensors,
    ModelInputs,
    assemble_inputs,
    slice_times,
    sum_events,
    unit_image,
)
from flowfuse.model.encoders import EncodedFrame, EncodedSlice
from flowfuse.model.flowfuse import STRIDE
from flowfuse.result import Result
from flowfuse.stream.buffers import EventBuffer, StoredFrame
from flowfuse.stream.features import SliceFeatures
from flowfuse.stream.schedule import Span
from flowfuse.stream.settings import StreamSettings

_TRUSTED = 1.0  # px: an expected error up to which flow is carried to the next interval


class Timing(NamedTuple):
    """How long a result took.

    Attributes:
        latency: seconds from the moment when everything for the interval had come to the result.
        estimate: seconds of these in the estimator.
    """

    latency: float
    estimate: float


class Request(NamedTuple):
    """An interval to estimate, and a copy of the events for it.

    Attributes:
        span: the interval.
        events: all that its inputs need; with ``limits``, those that are not known yet.
        clock: how often the sensors' clock had begun anew.
        scheduled: whether it is one of the intervals of the stream, which build on each other.
        limits: K + 2 limits (us) of its slices, where features of slices are used again; None:
            slices are encoded anew.
        history: whether there are events before t0.
    """

    span: Span
    events: Events
    clock: int
    scheduled: bool
    limits: list[int] | None = None
    history: bool = False


class Estimates:
    """Estimates one interval after the other, and keeps what serves the next.

    Args:
        estimator: of the stream.
        height, width: of the sensor, px.
        settings: of the stream.
        overlapping: whether each interval begins before the one before has ended.

    Attributes:
        busy: held from :meth:`request` to the end of :meth:`run`, so that what is kept belongs to
            one of them. It is taken before the lock of the stream's memory.
        timing: how long the last of the stream's intervals took; None before the first.
        features: of slices; None where they are encoded anew.
    """

    def __init__(
        self,
        estimator: Estimator,
        height: int,
        width: int,
        settings: StreamSettings,
        *,
        overlapping: bool,
    ) -> None:
        self._estimator = estimator
        self._settings = settings
        self._warm_start = overlapping if settings.warm_start is None else settings.warm_start
        self.busy = threading.Lock()
        self._last: tuple[int, Result] | None = None
        self.timing: Timing | None = None
        self.features = None
        if settings.scale_tolerance > 0:
            self.features = SliceFeatures(estimator, height, width, settings.scale_tolerance)

    @property
    def slices_reused(self) -> int:
        """How many slices were not encoded, because they had been."""
        return 0 if self.features is None else self.features.reused

    def last(self, clock: int) -> Result | None:
        """The last result of the stream's intervals, if it is of this clock."""
        return self._last[1] if self._last is not None and self._last[0] == clock else None

    def request(self, span: Span, events: EventBuffer, clock: int, *, scheduled: bool) -> Request:
        """Copy the events that an interval needs; with the lock of the memory held, too.

        Args:
            span: in memory, at least from its t0 on.
            events: the memory.
            clock: how often the sensors' clock has begun anew.
            scheduled: whether it is one of the intervals of the stream. Others are estimated as by
                a call of the estimator, and leave no trace.
        """
        slices = self._estimator.model.config.slices
        first, last = span.needs(slices)
        complete = events.complete_from <= first
        if self.features is not None:
            self.features.forget_from(events.take_added())
            if scheduled and complete and events.count(span.t0, span.t1):
                limits = slice_times(span.t0, span.t1, slices)
                before = events.count(limits[0], limits[1])
                within = events.count(span.t0, span.t1)
                shown = self._shown(span)
                history = before > 0 if shown else shows_history(before, within, slices)
                if history or shown:
                    if span.exposures == (None, None):
                        first, last = self.features.missing(limits)
                    used = events.between(first, last)
                    return Request(span, used, clock, scheduled, limits, history)
        # Without a history where that has been overwritten.
        used = events.between(first if complete else span.t0, last)
        return Request(span, used, clock, scheduled)

    def run(self, request: Request, whole: float | None = None) -> Result:
        """Estimate an interval.

        Args:
            request: what :meth:`request` gave.
            whole: when, by time.perf_counter, everything for it had come; None: not known.
        """
        span, began = request.span, time.perf_counter()
        flow_init = self._carried(span, self.last(request.clock)) if request.scheduled else None
        iterations = self._settings.iterations
        if flow_init is not None and self._settings.warm_iterations is not None:
            iterations = self._settings.warm_iterations
        if request.limits is None and flow_init is None and not self._shown(span):
            # Of events alone without a history, a call starts late (estimator/late_start.py).
            result = self._estimator(
                None,
                None,
                request.events,
                t0=span.t0,
                t1=span.t1,
                iterations=iterations,
                as_torch=self._settings.as_torch,
            )
        else:
            result = self._run_slices(request, iterations, flow_init)
        if self._estimator.device.type == "cuda":
            torch.cuda.synchronize(self._estimator.device)
        ended = time.perf_counter()
        latency = ended - (began if whole is None else min(whole, began))
        if request.scheduled:
            self.timing = Timing(latency, ended - began)
            self._last = request.clock, result
        return result

    def _run_slices(
        self, request: Request, iterations: int | None, flow_init: np.ndarray | None
    ) -> Result:
        """Estimate from slices and frames, using again what is known of them."""
        span, slices = request.span, None
        if request.limits is None:
            inputs = self._fresh_inputs(span, request.events)
        else:
            inputs, slices = self._known_inputs(request)
        (result,) = self._estimator.run(
            inputs,
            t0=span.t0,
            t1=span.t1,
            iterations=iterations,
            flow_init=None if flow_init is None else flow_init[None],
            encoded_frames=self._encoded_frames(span, inputs),
            encoded_slices=slices,
            as_torch=self._settings.as_torch,
        )
        return result

    def _fresh_inputs(self, span: Span, events: Events) -> ModelInputs:
        return self._estimator.prepare(
            None if span.first is None else span.first.image,
            None if span.last is None else span.last.image,
            events,
            t0=span.t0,
            t1=span.t1,
            exposure0=span.exposures[0],
            exposure1=span.exposures[1],
        )

    def _known_inputs(self, request: Request) -> tuple[ModelInputs, list[EncodedSlice]]:
        """The same, of slices of which some are known."""
        assert self.features is not None and request.limits is not None
        span, events, device = request.span, request.events, self._estimator.device
        encoded, event_sum = self.features.encode(request.limits, events)
        height, width = event_sum.shape[-2:]
        if span.exposures != (None, None):
            tensors, times = EventTensors.upload(events, device), (span.t0, span.t1)
            event_sum = sum_events(tensors, *times, *span.exposures, height, width)
        config = self._estimator.model.config
        # Nobody reads them, so all of them are one zero.
        empty = torch.zeros((), device=device)
        inputs = assemble_inputs(
            [unit_image(frame.image, device) for frame in self._shown(span)],
            empty.expand(config.slices + 1, config.bins, height, width),
            event_sum,
            exposure_shares=[(e or 0) / (span.t1 - span.t0) for e in span.exposures],
            has_events=True,
            history=request.history,
        )
        return inputs, encoded

    def _shown(self, span: Span) -> list[StoredFrame]:
        """The frames that the network is shown: two, the first alone, or none."""
        frames = [frame for frame in (span.first, span.last) if frame is not None]
        config = self._estimator.model.config
        one_is_enough = config.weighs_evidence
        return frames if config.frames and (len(frames) == 2 or one_is_enough) else []

    def _encoded_frames(
        self, span: Span, inputs: ModelInputs
    ) -> tuple[EncodedFrame | None, EncodedFrame | None] | None:
        """The features of the frames; the last one of an interval is the first one of another."""
        if not self._estimator.model.config.frames:
            return None
        images = zip(self._shown(span), (inputs.frame0, inputs.frame1), strict=False)
        found: list[EncodedFrame | None] = [self._encode(*pair) for pair in images]
        first, last = [*found, None, None][:2]
        return first, last

    def _encode(self, frame: StoredFrame, image: torch.Tensor) -> EncodedFrame:
        """The features of a frame in memory, made at its first use."""
        if frame.features is None:
            frame.features = self._estimator.encode_frame(image)
        return frame.features

    def _carried(self, span: Span, before: Result | None) -> np.ndarray | None:
        """The flow of an earlier result, carried to the start of a span; None where that ends
        before or begins after it."""
        if not self._warm_start or before is None or not before.t0 < span.t0 <= before.t1:
            return None
        # A start from fewer frames is worse than none at all.
        if frames_used(before) < len(self._shown(span)):
            return None
        length = before.t1 - before.t0
        moved, flow, error = (
            values.cpu().numpy() if self._settings.as_torch else values
            for values in (
                before.at((span.t0 - before.t0) / length),
                before.flow,
                before.uncertainty,
            )
        )
        share = np.float32((span.t1 - span.t0) / length)
        return share * carry_cells(flow, moved, STRIDE, error <= _TRUSTED)


def frames_used(result: Result) -> int:
    """How many frames a result was made from."""
    used = set(result.modalities)
    return next(count for count in (2, 1, 0) if used.issuperset(FRAMES_USED[count]))
