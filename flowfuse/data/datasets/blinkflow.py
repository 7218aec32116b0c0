"""BlinkFlow (Li et al., IROS 2023): rendered events with flow, without frames.

A sequence lies at ROOT/{training,test}/SCENE/SEQUENCE::

    config.yaml              duration (s) and fps; 1 and 10 where it is missing
    events_left/events.h5    events/{x, y, t, p} with ms_to_idx, as DSEC has them
    forward_flow/000001.npy  [H, W, 3]: flow from step 1 to 2, and where it leads back
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.npz import NUMPY_FAULTS
from flowfuse.data.recording import Flow
from flowfuse.data.registry import open_event_file

SIZE = 480, 640  # height and width, px
_SPLITS = ("training", "test")
_EVENTS = Path("events_left", "events.h5")


class BlinkFlowRecording(FileRecording):
    """A sequence: events, and ground truth of time intervals.

    ``ground_truth_intervals`` begin with step 1, as in the data set's own loader: the one before
    has no history.

    Raises:
        ValueError: naming the file, what was found and what was expected.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, open_event_file(path / _EVENTS), None, stated_size=("BlinkFlow", SIZE)
        )
        duration, rate = _read_config(path / "config.yaml")
        step = int(1000 / rate) * 1000  # us; whole milliseconds, as the data set's own loader
        self._files = {
            number: path / "forward_flow" / f"{number:06d}.npy"
            for number in range(1, int(duration * rate))
        }
        intervals = [(number * step, (number + 1) * step) for number in self._files]
        self.ground_truth_intervals = np.array(intervals, np.int64).reshape(-1, 2)

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth of an interval; occluded pixels have some, too.

        Args:
            index: of ``ground_truth_intervals``.
            tau: 1.

        Returns:
            flow [2, H, W] float32 (px) and valid [H, W] bool, where it is finite; None for another
            tau, and without the file, as in the test split.
        """
        path = self._files.get(index + 1)
        if tau != 1 or path is None or not path.is_file():
            return None
        try:
            found = np.load(path, allow_pickle=False)
        except NUMPY_FAULTS as error:
            raise ValueError(f"{path}: not a readable .npy, is it truncated? ({error})") from error
        if found.shape != (*SIZE, 3):
            raise ValueError(f"{path}: shape {[*SIZE, 3]} expected, found {list(found.shape)}")
        flow = np.moveaxis(found[:, :, :2], 2, 0).astype(np.float32)
        return flow, np.isfinite(flow).all(axis=0)

    def has_ground_truth(self, index: int) -> bool:
        """Whether there is a file of flow of an interval; it is not read."""
        path = self._files.get(index + 1)
        return path is not None and path.is_file()


class BlinkFlowDataSet(DataSet):
    """Sequences of BlinkFlow."""

    name = "BlinkFlow"
    rank = 5  # before DSEC, which has events_left/events.h5 in one of its layouts
    own_calibration = "BlinkFlow is rendered without distortion"

    def matches(self, path: Path) -> bool:
        if not (path / _EVENTS).is_file():
            return False
        return (path / "forward_flow").is_dir() or (path / "config.yaml").is_file()

    def open(self, path: Path) -> BlinkFlowRecording:
        return BlinkFlowRecording(path)

    def sequences(self, path: Path) -> list[str]:
        patterns = ["*", "*/*", *(f"{split}/*/*" for split in _SPLITS)]
        found = (place for pattern in patterns for place in path.glob(f"{pattern}/{_EVENTS}"))
        folders = {file.parent.parent for file in found}
        return sorted(str(folder.relative_to(path)) for folder in folders if self.matches(folder))


DATASET = BlinkFlowDataSet()


def _read_config(path: Path) -> tuple[float, float]:
    """Duration in seconds, and flow maps per second."""
    if not path.is_file():
        return 1.0, 10.0  # as the data set's own loader
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        duration, rate = (float(content[name]) for name in ("duration", "fps"))
        if not (duration > 0 and 0 < rate <= 1000):
            raise ValueError("both must be positive, and fps at most 1000")
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: numbers duration and fps are expected ({reason})") from None
    return duration, rate
