"""Frames in video files, read by PyAV, with the container's time stamps or given ones."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np

from flowfuse.data.formats.base import FRAMES, Format, FrameSource, StatedTimes
from flowfuse.data.formats.frames import read_frame_list

_FORWARD = 30  # frames that are rather decoded than jumped over
_BLACK = 3  # of 255: no pixel of a black frame is brighter, but for noise
_MOST_BRIGHT = 0.001  # share of brighter pixels in a black frame
# Rows of two fields of moving things differ more from their neighbours than rows of one field two
# further on; of one still picture they differ less, of noise as much.
_COMBED = 1.1
_MOST_MISSING = 2.5  # frame intervals from the last frame to the stated end
# Plain packets, those of .m2ts with a stamp before them, those with error correction after them.
_TS_STEPS = ((0, 188), (4, 192), (0, 204))
_TS_PACKET, _TS_TAIL = 188, 10_000  # bytes of a transport packet; packets looked at, at the end
_BOTTOM_FIRST = (3, 4)  # of FFmpeg's AVFieldOrder: BB, TB


@dataclass
class _Survey:
    """What decoding a whole video once has shown."""

    stamps: list[int | None] = field(default_factory=list)  # in units of the stream's time base
    black: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    corrupt: list[int] = field(default_factory=list)
    errors: int = 0
    late: int = 0  # frames left out: they came after later ones
    interlaced: int = 0
    bottom_first: bool = False  # whether the odd rows are the earlier field
    between: float = 0.0  # second differences of rows of both fields,
    within: float = 0.0  # and of one
    end: float | None = None  # us, of the stream, where the container states it
    cut: bool = False  # the file ends within a frame
    faults: list[str] = field(default_factory=list)  # in the words of the decoder


class VideoFrames(FrameSource):
    """A video file.

    Opening it decodes it once, for the times and to look for damage, which a warning tells. Frames
    near the one read last are then decoded in order; others from the key frame before them.

    Of interlaced frames with motion between their two fields, the first field is taken, and the
    rows between are interpolated. A warning says so.

    Args:
        path: the video.
        times: [F] microseconds, or None to take the time stamps of the container, which need not
            begin at 0.

    Raises:
        ValueError: it cannot be opened, no frame can be decoded, or its times do not increase.
    """

    def __init__(self, path: Path, times: np.ndarray | None = None) -> None:
        self.path = path
        self._opened: tuple[int, Any, Iterator[Any]] | None = None
        self._next = 0
        self._recent: dict[int, np.ndarray] = {}  # a pair of frames, so that pairs go in order
        found, stated, base = self._look_through()
        self._stamps = found.stamps
        self._deinterlace = found.interlaced > 0 and found.between > _COMBED * found.within
        self._bottom_first = found.bottom_first
        self._tell(found, stated, base)
        if times is None:
            times = self._container_times(base)
        elif len(times) != len(found.stamps):
            raise ValueError(f"{path}: {len(times)} frame times for {len(found.stamps)} frames")
        self.times = times

    def _open(self) -> Any:
        try:
            str(self.path).encode()
            source: Any = str(self.path)
        except UnicodeEncodeError:  # FFmpeg takes names in UTF-8
            source = _NamelessFile(self.path)
        try:
            container = av.open(source, "r")
        except (av.FFmpegError, OSError) as error:
            raise ValueError(
                f"{self.path}: PyAV cannot open this video, is it truncated? ({error})"
            ) from error
        if not container.streams.video:
            raise ValueError(f"{self.path}: holds no video stream")
        return container

    def _decoded(self, container: Any, errors: list[Exception] | None = None) -> Iterator[Any]:
        """The frames from where the container is; damaged packets are counted and left out."""
        stream = container.streams.video[0]
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except av.EOFError:
                return
            except av.FFmpegError as error:
                if errors is None:
                    continue
                errors.append(error)
                if len(errors) > 100_000:  # of a demuxer that does not move on
                    return

    def _look_through(self) -> tuple[_Survey, int, float]:
        """What is found, how many frames the container states (0: nothing), us per stamp."""
        found = _Survey()
        errors: list[Exception] = []
        with _faults_logged(found.faults), self._open() as container:
            stream = container.streams.video[0]
            stated, base = int(stream.frames or 0), float(stream.time_base or 0) * 1e6
            found.end = _stated_end(stream.metadata.get("DURATION", ""))
            before: np.ndarray | None = None
            for frame in self._decoded(container, errors):
                last, index = found.stamps[-1] if found.stamps else None, len(found.stamps)
                if errors and frame.pts is not None and last is not None and frame.pts <= last:
                    found.late += 1
                    continue
                gray = frame.to_ndarray(format="gray")
                found.stamps.append(frame.pts)
                if (gray > _BLACK).mean() <= _MOST_BRIGHT:
                    found.black.append(index)
                elif before is not None and np.array_equal(gray, before):
                    found.repeated.append(index)
                if frame.is_corrupt:
                    found.corrupt.append(index)
                if frame.interlaced_frame:
                    found.interlaced += 1
                    rows = gray.astype(np.int16)
                    found.between += float(np.abs(_bend(rows, 1)).mean())
                    found.within += float(np.abs(_bend(rows, 2)).mean())
                before = gray
            found.bottom_first = stream.codec_context.field_order in _BOTTOM_FIRST
            if container.format.name == "mpegts":
                found.cut = _ends_within_a_frame(self.path, stream.id)
        found.errors = len(errors)
        if not found.stamps:
            reason = f" ({errors[0]})" if errors else ""
            raise ValueError(f"{self.path}: no frame of this video can be decoded{reason}")
        return found, stated, base

    def _tell(self, found: _Survey, stated: int, base: float) -> None:
        count, told = len(found.stamps), []
        if found.errors or found.corrupt or found.faults:
            faults = []
            if found.errors:
                faults.append(f"{found.errors} packets cannot be decoded")
            if found.corrupt:
                at = f"at first frame {found.corrupt[0]}"
                faults.append(f"{len(found.corrupt)} frames are incomplete, {at}")
            if found.late:
                faults.append(f"{found.late} frames came too late and are left out")
            if found.faults:
                faults.append(f"the decoder says: {found.faults[0]}")
            told.append(f"the stream is damaged: {', '.join(faults)}")
        if found.cut:
            told.append(
                "the file ends in the middle of a frame: it is cut, and later ones are lost"
            )
        if count < stated:
            told.append(f"{count} frames can be decoded, the container states {stated}")
        times = np.array([stamp for stamp in found.stamps if stamp is not None]) * base
        if found.end is not None and len(times) > 1:
            missing = found.end - times[-1]
            if missing > _MOST_MISSING * float(np.median(np.diff(times))):
                told.append(
                    f"the last frame that can be decoded has {times[-1] / 1e6:.3f} s, the "
                    f"container states an end at {found.end / 1e6:.3f} s"
                )
        if found.black:
            told.append(f"{len(found.black)} of {count} frames are black, {_named(found.black)}")
        if found.repeated:
            told.append(
                f"{len(found.repeated)} of {count} frames repeat the one before, "
                f"{_named(found.repeated)}"
            )
        if self._deinterlace:
            told.append(
                f"{found.interlaced} of {count} frames are interlaced: the first field of each is "
                "taken, the rows between are interpolated"
            )
        if told:
            warnings.warn(f"{self.path}: {'; '.join(told)}", stacklevel=6)

    def _container_times(self, base: float) -> np.ndarray:
        if None in self._stamps or base == 0:
            raise ValueError(
                f"{self.path}: frame {self._stamps.index(None)} has no time stamp in the "
                "container; give a file of times"
            )
        times = np.rint(np.array(self._stamps, np.float64) * base).astype(np.int64)
        if (np.diff(times) <= 0).any():
            index = int(np.argmax(np.diff(times) <= 0)) + 1
            raise ValueError(
                f"{self.path}: the time stamps of the container do not increase, frame {index} has "
                f"{times[index]} us after {times[index - 1]} us; give a file of times"
            )
        if times[0] < 0:
            raise ValueError(
                f"{self.path}: the first frame has {times[0]} us in the container, before 0; give "
                "a file of times"
            )
        return times

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def read(self, index: int) -> np.ndarray:
        if index not in self._recent:
            in_reach = self._next <= index < self._next + _FORWARD
            if self._opened is None or self._opened[0] != os.getpid() or not in_reach:
                self._go_to(index)
            while self._next <= index:
                assert self._opened is not None
                frame = next(self._opened[2], None)
                if frame is None:
                    raise ValueError(f"{self.path}: frame {self._next} cannot be decoded")
                if frame.pts != self._stamps[self._next]:
                    continue  # one that came late
                self._recent[self._next] = self._image(frame)
                self._recent.pop(self._next - 2, None)
                self._next += 1
        return self._recent[index].copy()

    def _go_to(self, index: int) -> None:
        """Open the video anew, at or before a frame."""
        container = self._open()
        self._next, self._recent = 0, {}
        stamp = self._stamps[index]
        unique = stamp is not None and self._stamps.count(stamp) == 1
        if index >= _FORWARD and unique:
            stream = container.streams.video[0]
            container.seek(stamp, stream=stream, backward=True)
            frames = self._decoded(container)
            for frame in frames:
                if frame.pts == stamp:
                    self._opened = os.getpid(), container, _first(frame, frames)
                    self._next = index
                    return
            container = self._open()  # not found: from the beginning
        self._opened = os.getpid(), container, self._decoded(container)

    def _image(self, frame: Any) -> np.ndarray:
        """uint8 or uint16 [H, W, 3], or [H, W] of gray videos."""
        deep = max(component.bits for component in frame.format.components) > 8
        gray = frame.format.name.startswith("gray")
        kind = ("gray16le" if deep else "gray") if gray else ("rgb48le" if deep else "rgb24")
        image = frame.to_ndarray(format=kind)
        if self._deinterlace and frame.interlaced_frame:
            image = _first_field(image, bottom=self._bottom_first)
        turns = round(frame.rotation / 90) % 4  # counterclockwise, as phones state it
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def white(self, index: int) -> int | None:
        return 65535

    def name(self, index: int) -> str:
        return f"{self.path}, frame {index}"


class _NamelessFile(io.FileIO):
    """A file that PyAV reads for as long as it wants, and that is closed at last."""

    def __del__(self) -> None:
        self.close()


@contextmanager
def _faults_logged(faults: list[str]) -> Iterator[None]:
    """Collect what FFmpeg logs of errors: a decoder hides damage in pictures as well as it can."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False) as logged:
            yield
        faults += [f"{name}: {text.strip()}" for _, name, text in logged]
    finally:
        av.logging.set_level(before)


def _ends_within_a_frame(path: Path, pid: int) -> bool:
    """Whether an MPEG transport stream stops before its last frame is whole.

    The last packet of a frame is stuffed, so that the next frame begins with a packet (ISO/IEC
    13818-1); one that is full by chance, once in 184 files, cannot be told from a cut.

    Args:
        path: of the file.
        pid: the number that packets of the video have.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        found = _packet_layout(file.read(4 * _TS_STEPS[-1][1]))
        if found is None:
            return False
        prefix, step = found
        if size % step:
            return True
        file.seek(max(0, size - _TS_TAIL * step))
        tail = file.read()
    for place in range(len(tail) - step + prefix, -1, -step):
        packet = tail[place : place + _TS_PACKET]
        if int.from_bytes(packet[1:3], "big") & 0x1FFF == pid:
            return packet[3] >> 4 & 3 == 1  # data alone, no stuffing
    return False


def _packet_layout(head: bytes) -> tuple[int, int] | None:
    """Bytes before a transport packet and from one to the next; None: these are no such packets."""
    for prefix, step in _TS_STEPS:
        starts = head[prefix::step]
        if starts and set(starts) == {0x47}:  # each packet begins with it
            return prefix, step
    return None


def _stated_end(text: str) -> float | None:
    """Microseconds of "00:00:00.800000000", as Matroska states the end of a stream."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text.strip("\0 "))
    if match is None:
        return None
    return (int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])) * 1e6


def _first(frame: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield frame
    yield from others


def _bend(rows: np.ndarray, step: int) -> np.ndarray:
    """Second differences of rows, ``step`` apart."""
    return 2 * rows[step:-step] - rows[: -2 * step] - rows[2 * step :]


def _first_field(image: np.ndarray, *, bottom: bool) -> np.ndarray:
    """The rows of the first field, and between them the means of their neighbours."""
    kept = image[1::2] if bottom else image[0::2]
    above = kept[:-1].astype(np.uint32)
    mean = ((above + kept[1:] + 1) // 2).astype(image.dtype)
    result = image.copy()
    start = 2 if bottom else 1
    result[start : start + 2 * len(mean) : 2] = mean
    if bottom:
        result[0] = kept[0]
    if len(image) % 2 == (1 if bottom else 0):
        result[-1] = kept[-1]
    return result


def _named(indices: list[int]) -> str:
    listed = ", ".join(map(str, indices[:5]))
    return f"{listed}{', ...' if len(indices) > 5 else ''}"


class VideoFormat(Format):
    """Videos that PyAV decodes, with the FFmpeg that it brings along."""

    name = "video"
    suffixes = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".ts", ".mts")
    holds = (FRAMES,)
    rank = 70
    has_frame_times = False

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        return VideoFrames(path, None if times is None else read_frame_list(times)[0])


FORMAT = VideoFormat()
