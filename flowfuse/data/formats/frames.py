"""Frames of plain recordings: a directory of images or a video, with their times."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")
_LAST_SECOND = 9.2e12  # more seconds than int64 holds as microseconds


class FrameSource(ABC):
    """Frames with their times.

    Attributes:
        times: [F] int64, microseconds, strictly increasing.
        exposures: [F, 2] int64, start and end in microseconds, or None where unknown.
    """

    times: np.ndarray
    exposures: np.ndarray | None = None

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The files that the frames are read from."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Frame ``index``: uint8 [H, W] or [H, W, 3] RGB."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error message calls frame ``index``."""


class ImageFrames(FrameSource):
    """Image files, decoded when they are asked for."""

    def __init__(self, paths: list[Path], times: np.ndarray) -> None:
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such image")
        self.paths, self.times = paths, times

    @property
    def files(self) -> list[Path]:
        return self.paths

    def read(self, index: int) -> np.ndarray:
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])


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


def open_frames(source: str | os.PathLike, times: str | os.PathLike | None = None) -> FrameSource:
    """Open frames.

    Args:
        source: a directory of images, sorted by the numbers in their names; a video; a text file
            with lines ``t path`` (t in seconds, paths relative to the file); or an .aedat4 file or
            a ROS bag, which have their own times.
        times: a text file with the times in seconds: one column, or lines ``t path`` that then name
            the images inside the directory ``source`` or beside the file. None for a video: the
            container's; for a directory: ``timestamps.txt`` or ``times.txt`` in it; for a text
            file: its own, which are replaced by those given.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file, what was found and what was expected.
    """
    # These build on this module.
    from flowfuse.data.formats.containers import is_container, open_contained_frames

    source = Path(source)
    if times is not None and not Path(times).is_file():
        raise FileNotFoundError(f"{times}: no such file of frame times")
    if source.exists() and is_container(source):
        if times is not None:
            raise ValueError(f"{times}: frame times were given, but {source} has its own")
        return open_contained_frames(source)
    if source.is_file() and source.suffix.lower() == ".txt":
        stamps, names = read_frame_list(source)
        if names is None:
            raise ValueError(f"{source}: lines of 't path' expected, found one column")
        if times is not None:
            stamps = read_frame_list(Path(times))[0]
        if len(stamps) != len(names):
            raise ValueError(f"{times}: {len(stamps)} times for {len(names)} images of {source}")
        return ImageFrames([source.parent / name for name in names], stamps)
    if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
        return VideoFrames(source, None if times is None else read_frame_list(Path(times))[0])
    if source.is_file():
        raise ValueError(
            f"{source}: unknown kind of frames, expected a directory of images, a video "
            f"({', '.join(VIDEO_SUFFIXES)}) or a text file of 't path'"
        )
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such directory of images, nor video")
    return _open_directory(source, None if times is None else Path(times))


def _open_directory(directory: Path, times: Path | None) -> ImageFrames:
    if times is None:
        candidates = [directory / name for name in ("timestamps.txt", "times.txt")]
        times = next((path for path in candidates if path.is_file()), None)
        if times is None and not list_images(directory):
            raise FileNotFoundError(f"{directory}: no images in this folder")
        if times is None:
            raise FileNotFoundError(
                f"{directory}: the times of these images are unknown; put them into "
                f"{candidates[0]}, one per line in seconds, or name a file of times"
            )
    stamps, names = read_frame_list(times)
    if names is not None:
        paths = [directory / name for name in names]
        if paths and not paths[0].is_file():
            paths = [times.parent / name for name in names]
        return ImageFrames(paths, stamps)
    paths = list_images(directory)
    if len(paths) != len(stamps):
        raise ValueError(f"{times}: {len(stamps)} times for {len(paths)} images in {directory}")
    return ImageFrames(paths, stamps)


def is_image(path: Path) -> bool:
    """Whether a name is one of an image; macOS leaves ._NAME.png beside NAME.png, which is none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(directory: Path) -> list[Path]:
    """The images of a directory, ``frame_2`` before ``frame_10``."""
    images = [path for path in directory.iterdir() if is_image(path)]
    return sorted(
        images,
        key=lambda path: [
            (int(part), "") if part.isdigit() else (0, part)
            for part in re.split(r"(\d+)", path.name)
        ],
    )


def read_frame_list(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """Read frame times.

    Args:
        path: lines ``t`` or ``t name``, t in seconds; # starts a comment.

    Returns:
        [F] int64 microseconds, strictly increasing and not negative; the names, or None.
    """
    times, names = [], []
    for number, fields in _numbered_fields(path):
        try:
            time = _microseconds(fields[0])
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: a time in seconds expected first, found {fields[0]!r}"
            ) from None
        if time < 0:
            raise ValueError(f"{path}, line {number}: negative time {fields[0]} s")
        if times and time <= times[-1]:
            raise ValueError(
                f"{path}, line {number}: times must increase, found {time} us after {times[-1]} us"
            )
        times.append(time)
        if len(fields) > 1:
            names.append(fields[1])
        if len(names) not in (0, len(times)):
            raise ValueError(
                f"{path}, line {number}: found {len(fields)} columns, the lines before have "
                f"{3 - len(fields)}; is the file truncated?"
            )
    if not times:
        raise ValueError(f"{path}: no frame time found, expected lines 't' or 't path'")
    return np.array(times, np.int64), names or None


def read_exposures(path: Path, count: int) -> np.ndarray:
    """Read exposure intervals: lines ``start end`` in seconds, one per frame.

    Returns:
        [F, 2] int64 microseconds.
    """
    rows = []
    for number, fields in _numbered_fields(path):
        try:
            start, end = map(_microseconds, " ".join(fields).split())
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: 'start end' in seconds expected, found {fields}"
            ) from None
        if end < start:
            raise ValueError(f"{path}, line {number}: the exposure ends before it starts: {fields}")
        rows.append((start, end))
    if len(rows) != count:
        raise ValueError(f"{path}: {len(rows)} exposures for {count} frames")
    return np.array(rows, np.int64).reshape(-1, 2)


def _microseconds(seconds: str) -> int:
    value = float(seconds)
    if not abs(value) <= _LAST_SECOND:
        raise ValueError("NaN, infinite, or beyond int64 microseconds")
    return round(value * 1e6)


def _numbered_fields(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, first column and rest) of every line that is not blank or a comment."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows may put a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    lines = [(number, line.split("#", 1)[0]) for number, line in enumerate(text.splitlines(), 1)]
    return [(n, line.strip().split(maxsplit=1)) for n, line in lines if line.strip()]


def opencv_name(path: str | os.PathLike) -> str:
    """A path as OpenCV takes it, which crashes where the bytes of a name are not UTF-8.

    Raises:
        ValueError: they are not.
    """
    name = os.fspath(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name!r}: OpenCV opens only names that are UTF-8") from None
    return name


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file.

    Returns:
        uint8 [H, W], or [H, W, 3] in RGB order. 16-bit images are scaled from their full range
        (65535 becomes 255), whatever part of it they use; an alpha channel is dropped.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    return decode_image(str(path), path.read_bytes())


def decode_image(name: str, data: bytes) -> np.ndarray:
    """Decode the content of an image file; as :func:`read_image`.

    Args:
        name: what an error message calls it.
        data: the bytes.
    """
    # Decoders give a partly filled image when the end is missing, so the end marker is looked for.
    cut_png = data.startswith(b"\x89PNG") and b"IEND" not in data[-12:]
    cut_jpeg = data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]
    if not data or cut_png or cut_jpeg:
        raise ValueError(f"{name}: truncated image, {len(data)} bytes without an end marker")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{name}: not an image that OpenCV can decode, or it is damaged")
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{name}: images of 8 or 16 bits expected, found {image.dtype}")
    if image.ndim == 3 and image.shape[2] == 1:
        return image[:, :, 0]
    if image.ndim == 3:
        return np.ascontiguousarray(image[:, :, 2::-1])  # BGR or BGRA to RGB
    return image
