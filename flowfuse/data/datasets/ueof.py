"""UEOF (Truong et al., WACV Workshops 2026): rendered scenes under water.

A scene lies at ROOT/{deep,shallow}/sceneN::

    events.h5                events [N, 4]: t (us), x, y, p, made by v2e
    images/00000.png
    gt_flow/00000.flo        from image 0 to image 1
    image_timestamps.txt     milliseconds, one per image
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.base import FrameSource
from flowfuse.data.formats.frames import list_images, read_image
from flowfuse.data.recording import Flow
from flowfuse.data.registry import open_event_file
from flowfuse.io.flow import read_flow

_TIMES = "image_timestamps.txt"
_LAST_TIME = 1 << 62  # us
_ENVIRONMENTS = ("deep", "shallow")


class ImagesInOrder(FrameSource):
    """The images of a directory in the order of their numbers, with times.

    Args:
        directory: of the images.
        times: [F] int64, microseconds.
        source: of the times, for messages.

    Raises:
        ValueError: there are not as many images as times, or the times do not increase.
    """

    def __init__(self, directory: Path, times: np.ndarray, source: Path) -> None:
        self._paths = list_images(directory) if directory.is_dir() else []
        if len(self._paths) != len(times):
            raise ValueError(
                f"{source}: {len(times)} times for {len(self._paths)} images in {directory}"
            )
        if (np.diff(times) <= 0).any():
            place = int(np.argmax(np.diff(times) <= 0))
            raise ValueError(
                f"{source}: times must increase, found {times[place + 1]} us after "
                f"{times[place]} us"
            )
        self.times = times

    @property
    def files(self) -> list[Path]:
        return list(self._paths)

    def read(self, index: int) -> np.ndarray:
        return read_image(self._paths[index])

    def name(self, index: int) -> str:
        return str(self._paths[index])


class UeofRecording(FileRecording):
    """A scene: events, images, and flow from each image to the next.

    Raises:
        FileNotFoundError, ValueError: naming the file, what was found and what was expected.
    """

    def __init__(self, path: Path) -> None:
        times = path / _TIMES
        images = ImagesInOrder(path / "images", read_milliseconds(times), times)
        super().__init__(path, open_event_file(path / "events.h5"), images)

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth from an image to the next.

        Returns:
            flow [2, H, W] float32 (px) and valid [H, W] bool: finite and not (0, 0), as the data
            set's own evaluation has it; None for another tau than 1, and without the file.
        """
        path = self.path / "gt_flow" / f"{index:05d}.flo" if self.path is not None else None
        if tau != 1 or path is None or not path.is_file():
            return None
        flow, valid = read_flow(path)
        if valid.shape != (self.height, self.width):
            raise ValueError(
                f"{path} is {valid.shape[1]} x {valid.shape[0]} px, but {self._size_source} is "
                f"{self.width} x {self.height} px"
            )
        return flow, valid & (flow != 0).any(axis=0)

    def has_ground_truth(self, index: int) -> bool:
        """Whether there is a file of flow from an image to the next; it is not read."""
        return self.path is not None and (self.path / "gt_flow" / f"{index:05d}.flo").is_file()


class UeofDataSet(DataSet):
    """Scenes of UEOF."""

    name = "UEOF"
    own_calibration = "UEOF is rendered without distortion"

    def matches(self, path: Path) -> bool:
        return (path / "gt_flow").is_dir() and (path / _TIMES).is_file()

    def open(self, path: Path) -> UeofRecording:
        return UeofRecording(path)

    def sequences(self, path: Path) -> list[str]:
        places = [path, *(path / name for name in _ENVIRONMENTS)]
        return sorted(
            str(scene.relative_to(path))
            for place in places
            if place.is_dir()
            for scene in place.iterdir()
            if self.matches(scene)
        )


DATASET = UeofDataSet()


def read_milliseconds(path: Path) -> np.ndarray:
    """Read times in milliseconds, one per line, as [F] int64 microseconds.

    Raises:
        ValueError: naming the line that is no time.
    """
    times = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1
    ):
        if not line.split("#", 1)[0].strip():
            continue
        try:
            times.append(round(float(line) * 1000))
            if abs(times[-1]) > _LAST_TIME:
                raise ValueError
        except (ValueError, OverflowError):
            raise ValueError(
                f"{path}, line {number}: a time in milliseconds expected, found {line[:40]!r}"
            ) from None
    return np.array(times, np.int64)
