"""A plain recording of what comes in, written while it comes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import cv2

from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.events import Events
from flowfuse.io.atomic import atomic_directory, check_new_directory
from flowfuse.live_sources.base import LiveFrame, Packet

_WAITING = 64  # packets between who brings them and who writes them


class Recorder:
    """Writes packets into a directory that ``open_recording`` reads, complete or not at all.

    Events and frames must be in the order of time: those that come late, or after a clock began
    anew, are left out and counted.

    Args:
        path: a directory that does not exist yet, or is empty.
        height, width: of the sensors, px.

    Attributes:
        events, frames: how many were written.
        left_out: how many events and frames were not.
        path: as given.

    Raises:
        ValueError: the directory has content.
    """

    def __init__(self, path: Path, height: int, width: int) -> None:
        check_new_directory(path)
        self.path, self._size = path, (height, width)
        self.events = self.frames = self.left_out = 0
        self._last_event = self._last_frame = -1
        self._exposures = 0  # frames in a row, from the first on, whose exposure is known
        self._waiting: queue.Queue[Events | None] = queue.Queue(_WAITING)
        self._failure: BaseException | None = None

    def __enter__(self) -> Recorder:
        self._stack = ExitStack()
        self._directory = self._stack.enter_context(atomic_directory(self.path))
        self._writer = threading.Thread(target=self._write, name="flowfuse-recorder", daemon=True)
        self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put(None)
        self._writer.join()
        if error is None and self._failure is not None:
            error = self._failure
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise error
        if error is None:
            height, width = self._size
            (self._directory / "sensor.txt").write_text(f"{width} {height}\n")
        self._stack.__exit__(kind, error, trace)

    def add(self, packet: Packet) -> None:
        """Take a packet; waits while the disk is slower than the source.

        Raises:
            OSError: what came before could not be written.
        """
        if isinstance(packet, LiveFrame):
            self._add_frame(packet)
            return
        late = packet.t < self._last_event
        self.left_out += int(late.sum())
        kept = packet[~late]
        if len(kept):
            self._last_event = int(kept.t[-1])
            self.events += len(kept)
            self._put(kept)

    def _put(self, part: Events | None) -> None:
        while self._writer.is_alive():
            try:
                self._waiting.put(part, timeout=0.1)
                return
            except queue.Full:
                continue
        if self._failure is not None and part is not None:
            raise self._failure

    def _write(self) -> None:
        try:
            write_event_parts(self._directory / "events.h5", self._parts(), self._size)
        except BaseException as error:  # told to who brings the packets
            self._failure = error

    def _parts(self) -> Iterator[Events]:
        while (part := self._waiting.get()) is not None:
            yield part

    def _add_frame(self, frame: LiveFrame) -> None:
        if frame.t <= self._last_frame:
            self.left_out += 1
            return
        self._last_frame = frame.t
        images = self._directory / "images"
        images.mkdir(exist_ok=True)
        name = f"images/{self.frames:06d}.png"
        image = frame.image if frame.image.ndim == 2 else frame.image[:, :, ::-1]
        written, data = cv2.imencode(".png", image)
        if not written:
            raise OSError(f"{self.path / name}: OpenCV could not encode the image")
        (self._directory / name).write_bytes(data.tobytes())
        with open(self._directory / "images.txt", "a") as file:
            file.write(f"{_seconds(frame.t)} {name}\n")
        # One line for each frame, or no such file: exposures are known of all or of none.
        if frame.exposure is not None and self.frames in (0, self._exposures):
            start = frame.t - frame.exposure // 2
            with open(self._directory / "exposures.txt", "a") as file:
                file.write(f"{_seconds(start)} {_seconds(start + frame.exposure)}\n")
            self._exposures = self.frames + 1
        elif (self._directory / "exposures.txt").exists():
            (self._directory / "exposures.txt").unlink()
            self._exposures = -1
        self.frames += 1


def _seconds(t: int) -> str:
    whole, rest = divmod(abs(t), 10**6)
    return f"{'-' if t < 0 else ''}{whole}.{rest:06d}"
