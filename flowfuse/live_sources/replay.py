"""A recording as a source: packets as they came, in real time or faster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from flowfuse.data.recording import Recording
from flowfuse.live_sources.base import LiveFrame, Packet, SourceLostError

PACKET = 5_000  # us of events in one packet


class Replay:
    """Replays a recording.

    A frame comes when its exposure is over, after the events before.

    Args:
        recording: with events, frames, or both.
        speed: 1 is real time, 2 is twice as fast; 0: as fast as it can be read, for a stream of the
            policy "all": any other would pass over what it cannot estimate meanwhile.
        packet: us of events that come at a time.

    Raises:
        ValueError: naming the argument; or nothing was recorded.
    """

    def __init__(self, recording: Recording, *, speed: float = 1.0, packet: int = PACKET) -> None:
        if not 0 <= speed < float("inf"):
            raise ValueError(f"speed must be a number >= 0, got {speed}")
        if packet < 1:
            raise ValueError(f"packet must be at least 1 us, got {packet}")
        self.recording, self.speed, self.packet = recording, speed, packet
        self.name = str(recording.path or "the recording")
        self.height, self.width = recording.height, recording.width
        self.has_frames = recording.has_frames
        self._range = recording.time_range
        self._closed = threading.Event()

    def packets(self) -> Iterator[Packet]:
        first, last = self._range
        frames = [(self._available(i), i) for i in range(len(self.recording.frame_times))]
        frames.sort()
        began, start = time.monotonic(), first
        while start <= last and not self._closed.is_set():
            end = min(start + self.packet, last + 1)
            events = self._read(lambda start=start, end=end: self.recording.events(start, end))
            shown = start
            while frames and (frames[0][0] < end or end > last):
                available, index = frames.pop(0)
                if len(part := events.slice_time(shown, available)):
                    yield part
                shown = max(shown, available)
                self._wait_until(began, available - first)
                if self._closed.is_set():
                    return
                yield self._read(lambda index=index: self._frame(index))
            self._wait_until(began, end - first)
            if self._closed.is_set():
                return
            if len(part := events.slice_time(shown, end)):
                yield part
            start = end

    def close(self) -> None:
        self._closed.set()

    def _available(self, index: int) -> int:
        """When a frame is there, us: at the end of its exposure."""
        t = int(self.recording.frame_times[index])
        exposures = self.recording.exposures
        return t if exposures is None else max(t, int(exposures[index][1]))

    def _frame(self, index: int) -> LiveFrame:
        exposures = self.recording.exposures
        length = None if exposures is None else int(exposures[index][1] - exposures[index][0])
        image = self.recording.frame(index)
        return LiveFrame(image, int(self.recording.frame_times[index]), length)

    def _read(self, read):
        try:
            return read()
        except (OSError, ValueError) as error:
            raise SourceLostError(f"{self.name} cannot be read any more: {error}") from error

    def _wait_until(self, began: float, elapsed: int) -> None:
        """Wait until so many us of the recording would have passed since the start."""
        if self.speed:
            rest = began + elapsed * 1e-6 / self.speed - time.monotonic()
            self._closed.wait(min(max(0.0, rest), threading.TIMEOUT_MAX))
