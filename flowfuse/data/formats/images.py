"""Frames in image files: a directory of them, or a text file with lines ``t path``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowfuse.data.formats.base import FRAMES, Format, FrameSource, StatedTimes
from flowfuse.data.formats.frames import (
    decode_image,
    has_images,
    list_images,
    read_frame_list,
    stated_white,
)
from flowfuse.data.formats.wrapped_frames import DeepFrames


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
        path = self.paths[index]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such image")
        return decode_image(str(path), path.read_bytes())

    def white(self, index: int) -> int | None:
        return stated_white(self.paths[index].read_bytes())

    def name(self, index: int) -> str:
        return str(self.paths[index])


def images_in_order(directory: Path, times: np.ndarray, source: Path) -> FrameSource:
    """The images of a directory in the order of the numbers in their names, with known times.

    Those of more than 8 bits are as of :class:`DeepFrames`.

    Args:
        directory: of the images.
        times: [F] int64, microseconds.
        source: of the times, for messages.

    Raises:
        ValueError: there are not as many images as times, or the times do not increase.
    """
    paths = list_images(directory) if directory.is_dir() else []
    if len(paths) != len(times):
        raise ValueError(f"{source}: {len(times)} times for {len(paths)} images in {directory}")
    if (np.diff(times) <= 0).any():
        place = int(np.argmax(np.diff(times) <= 0))
        raise ValueError(
            f"{source}: times must increase, found {times[place + 1]} us after {times[place]} us"
        )
    return DeepFrames(ImageFrames(paths, times))


class ImagesFormat(Format):
    """Image files, sorted by the numbers in their names, or as a list of ``t path`` names them."""

    name = "images"
    holds = (FRAMES,)
    rank = 1000  # of directories that no other format recognizes
    has_frame_times = False

    def recognizes(self, path: Path) -> bool:
        return path.is_dir() or path.suffix.lower() == ".txt"

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        return _open_directory(path, times) if path.is_dir() else _open_list(path, times)


FORMAT = ImagesFormat()


def _open_list(path: Path, times: Path | StatedTimes | None) -> ImageFrames:
    stamps, names = read_frame_list(path, increasing=False)
    if names is None:
        raise ValueError(f"{path}: lines of 't path' expected, found one column")
    if times is not None:
        stamps = read_frame_list(times, increasing=False)[0]
    if len(stamps) != len(names):
        raise ValueError(f"{times}: {len(stamps)} times for {len(names)} images of {path}")
    return ImageFrames([path.parent / name for name in names], stamps)


def _open_directory(directory: Path, times: Path | StatedTimes | None) -> ImageFrames:
    if times is None:
        candidates = [directory / name for name in ("timestamps.txt", "times.txt")]
        times = next((path for path in candidates if path.is_file()), None)
        if times is None and not has_images(directory):
            raise FileNotFoundError(f"{directory}: no images in this folder")
        if times is None:
            raise FileNotFoundError(
                f"{directory}: the times of these images are unknown; put them into "
                f"{candidates[0]}, one per line in seconds, or name a file of times"
            )
    stamps, names = read_frame_list(times, increasing=False)
    if names is not None:
        paths = [directory / name for name in names]
        if isinstance(times, Path) and paths and not paths[0].is_file():
            paths = [times.parent / name for name in names]
        return ImageFrames(paths, stamps)
    paths = list_images(directory, stamps)
    if len(paths) != len(stamps):
        raise ValueError(f"{times}: {len(stamps)} times for {len(paths)} images in {directory}")
    return ImageFrames(paths, stamps)
