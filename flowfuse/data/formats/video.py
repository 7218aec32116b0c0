"""Frames in video files, with the container's times or given ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flowfuse.data.formats.base import FRAMES, Format, FrameSource, StatedTimes
from flowfuse.data.formats.frames import read_frame_list
from flowfuse.io.opencv import opencv_name


class VideoFrames(FrameSource):
    """A video file.

    Opening it decodes it once, for the times. Frames are then decoded in order, because seeking is
    inexact in many containers: going forward is cheap, going back by more than one frame starts
    again from the beginning.

    Args:
        path: the video.
        times: [F] microseconds, or None to take the time stamps of the container.
    """

    def __init__(self, path: Path, times: np.ndarray | None = None) -> None:
        self.path = path
        stamps = self._read_stamps()
        if times is None:
            times = np.rint(np.array(stamps) * 1000).astype(np.int64)
            if (np.diff(times) <= 0).any():
                index = int(np.argmax(np.diff(times) <= 0)) + 1
                raise ValueError(
                    f"{path}: the time stamps of the container do not increase, frame {index} has "
                    f"{times[index]} us after {times[index - 1]} us; give a file of times"
                )
        elif len(times) != len(stamps):
            raise ValueError(f"{path}: {len(times)} frame times for {len(stamps)} frames")
        self.times = times
        self._capture: cv2.VideoCapture | None = None
        self._next = 0
        self._recent: dict[int, np.ndarray] = {}  # a pair of frames, so that pairs go in order

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(opencv_name(self.path))
        if not capture.isOpened():
            raise ValueError(f"{self.path}: OpenCV cannot open this video; is it truncated?")
        return capture

    def _read_stamps(self) -> list[float]:
        """Milliseconds of every frame."""
        capture, stamps = self._open(), []
        while capture.grab():
            stamps.append(capture.get(cv2.CAP_PROP_POS_MSEC))
        capture.release()
        if not stamps:
            raise ValueError(f"{self.path}: no frame of this video can be decoded")
        return stamps

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def read(self, index: int) -> np.ndarray:
        if index not in self._recent:
            if self._capture is None or index < self._next:
                self._capture, self._next, self._recent = self._open(), 0, {}
            while self._next <= index:
                decoded, image = self._capture.read()
                if not decoded:
                    raise ValueError(f"{self.path}: frame {self._next} cannot be decoded")
                self._recent[self._next] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                self._recent.pop(self._next - 2, None)
                self._next += 1
        return self._recent[index].copy()

    def name(self, index: int) -> str:
        return f"{self.path}, frame {index}"


class VideoFormat(Format):
    """Videos that OpenCV decodes."""

    name = "video"
    suffixes = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")
    holds = (FRAMES,)
    rank = 70
    has_frame_times = False

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        return VideoFrames(path, None if times is None else read_frame_list(times)[0])


FORMAT = VideoFormat()
