"""UEOF (Truong et al., WACV Workshops 2026): rendered scenes under water.

A scene lies at ROOT/{deep,shallow}/sceneN::

    events.h5                events [N, 4]: t (us), x, y, p, made by v2e
    images/00000.png
    gt_flow/00000.flo        from image 0 to image 1
    image_timestamps.txt     milliseconds, one per image
"""

from __future__ import annotations

from pathlib import Path

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.frames import read_time_column
from flowfuse.data.formats.images import images_in_order
from flowfuse.data.recording import Flow
from flowfuse.data.registry import open_event_file
from flowfuse.io.flow import read_flow

_TIMES = "image_timestamps.txt"
_ENVIRONMENTS = ("deep", "shallow")


class UeofRecording(FileRecording):
    """A scene: events, images, and flow from each image to the next.

    Raises:
        FileNotFoundError, ValueError: naming the file, what was found and what was expected.
    """

    def __init__(self, path: Path) -> None:
        times = path / _TIMES
        images = images_in_order(path / "images", read_time_column(times, "milliseconds"), times)
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
        return self.find_below(path, _ENVIRONMENTS)


DATASET = UeofDataSet()
