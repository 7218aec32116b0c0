"""``flowfuse-live``: frames and events as they come in, flow out at once."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from flowfuse.cli.console import INTERRUPTED, leave, run_command, run_with_arguments
from flowfuse.cli.live_options import COMMAND, LiveConfig, build_parser, parse_config
from flowfuse.cli.live_report import Meter, Shot, explain_no_results
from flowfuse.cli.live_views import View, make_view
from flowfuse.config import parse_duration
from flowfuse.estimator import load
from flowfuse.live_sources.base import LiveFrame, Source, SourceLostError
from flowfuse.live_sources.opening import open_source
from flowfuse.live_sources.recorder import Recorder
from flowfuse.live_sources.replay import Replay
from flowfuse.precision import DTYPES
from flowfuse.stream.settings import StreamSettings
from flowfuse.stream.stream import BETWEEN_FRAMES, Stream
from flowfuse.tracking import Tracker

FIXED_INTERVAL = "20ms"  # where no frames come
_GLANCE = 0.1  # s between two looks at whether to end
_EVENT_SHARE = 0.2  # of an interval: its first events are drawn over the frame


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None takes those of the process.

    Returns:
        0 when the source has ended; 1 on an error, or when the source was lost; 2 on wrong usage,
        130 after Ctrl-C, 141 when the reader of what is printed has gone.
    """
    missing = f"expected a source: {COMMAND} RECORDING, or a camera such as {COMMAND} webcam:0"
    return run_with_arguments(build_parser(), argv, parse_config, _start, missing)


def _start(config: LiveConfig, _: Sequence[str]) -> int:
    return run_command(COMMAND, lambda: run(config), output=config.record or config.output)


def run(config: LiveConfig) -> int:
    """Estimate what comes in until the source ends, or Ctrl-C.

    Raises:
        OSError, ValueError: with a message that names the source, file or setting at fault.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    source = open_source(config.source, speed=config.speed)
    try:
        return _run(config, source)
    finally:
        source.close()


def _run(config: LiveConfig, source: Source) -> int:
    interval = config.interval or (BETWEEN_FRAMES if source.has_frames else FIXED_INTERVAL)
    stream = Stream(
        load(config.checkpoint, config.device, DTYPES[config.precision]),
        height=source.height,
        width=source.width,
        interval=interval,
        every=config.every,
        policy=config.policy or ("all" if _waits(source) else "latest"),
        settings=StreamSettings(
            memory=config.memory,
            tolerance=config.tolerance,
            offset=config.offset,
            rate=config.rate,
            iterations=config.iterations,
            warm_start=config.warm_start,
            warm_iterations=config.warm_iterations,
            scale_tolerance=config.scale_tolerance,
        ),
    )
    with ExitStack() as stack:
        view = stack.enter_context(make_view(config.view, config.output, source.name))
        recorder = None
        if config.record is not None:
            recorder = stack.enter_context(Recorder(config.record, source.height, source.width))
        feeder = Feeder(source, stream, recorder)
        meter, stopped = Meter(stream), False
        try:
            feeder.start()
            _watch(config, stream, view, meter)
        except KeyboardInterrupt:  # the ordinary end of a live camera; what was made is kept
            stopped = True
        finally:
            feeder.stop()
    print(meter.summary(), file=sys.stderr)
    if not stream.stats.intervals and not stream.stats.intervals_skipped:
        length = None if interval == BETWEEN_FRAMES else parse_duration(interval)
        why = explain_no_results(stream.stats, length, feeder.came)
        print(f"{COMMAND}: no results: {why}", file=sys.stderr)
    if recorder is not None:
        left_out = f", {recorder.left_out} out of order left out" if recorder.left_out else ""
        kept = f"{recorder.events} events, {recorder.frames} frames{left_out}"
        print(f"recorded: {recorder.path} ({kept})", file=sys.stderr)
    if feeder.failure is not None:
        raise feeder.failure
    return INTERRUPTED if stopped else 0


def _waits(source: Source) -> bool:
    """Whether a source comes as fast as it is taken: then nothing need be passed over."""
    return isinstance(source, Replay) and source.speed == 0


def _watch(config: LiveConfig, stream: Stream, view: View, meter: Meter) -> None:
    """Show one result after the other, until there are no more or the view is closed."""
    tracker = Tracker(max_points=config.tracks) if config.tracks else None
    ends = None if config.seconds is None else time.monotonic() + config.seconds
    while ends is None or time.monotonic() < ends:
        closed = stream.closed  # asked first: what came before is still taken
        result = stream.take(_GLANCE)
        if result is None and closed:
            return
        if result is not None:
            meter.count(result)
            end = result.t0 + max(1, round(_EVENT_SHARE * (result.t1 - result.t0)))
            step = None if tracker is None else tracker.update(result)
            frames = stream.frame(result.t0), stream.frame(result.t1)
            view.show(Shot(result, *frames, stream.events(result.t0, end), step, meter.rates()))
        if view.closed:
            return


class Feeder:
    """Brings what a source gives to a stream and a recorder, in a thread of its own.

    Attributes:
        failure: what went wrong; None while nothing has.
        came: us; the times of the first and the last event; None before there is one.
    """

    def __init__(self, source: Source, stream: Stream, recorder: Recorder | None) -> None:
        self._source, self._stream, self._recorder = source, stream, recorder
        self._stopping = False
        self.failure: Exception | None = None
        self.came: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._run, name="flowfuse-source", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the source and the stream, whatever they are doing."""
        self._stopping = True
        self._source.close()
        self._stream.close()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            for packet in self._source.packets():
                if self._recorder is not None:
                    self._recorder.add(packet)
                if isinstance(packet, LiveFrame):
                    self._stream.push_frame(packet.image, packet.t, packet.exposure)
                    continue
                self._stream.push(packet)
                if len(packet):
                    first, last = int(packet.t[0]), int(packet.t[-1])
                    if self.came is not None and last >= self.came[0]:  # else the clock began anew
                        first = min(first, self.came[0])
                    self.came = first, last
        except SourceLostError as error:
            self.failure = SourceLostError(f"{error}; what was made so far is kept")
        except Exception as error:  # told when all is tidied up
            if not self._stopping:
                self.failure = error
        finally:
            self._stream.close()


def command() -> None:
    """Entry point of flowfuse-live."""
    leave(main())


if __name__ == "__main__":
    command()
