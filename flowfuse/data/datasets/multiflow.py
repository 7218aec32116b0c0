"""MultiFlow (Gehrig et al., Dense Continuous-Time Optical Flow from Event Cameras, TPAMI 2024).

A sample is a recording of its own, of one second and one frame pair::

    ROOT/{train,val}/SAMPLE/events/events.h5       x, y, t, p; t in microseconds from 0
                           /images/0400000.png     the frames, named by their time in microseconds
                                  /0900000.png
                           /flow/0410000.h5 ...    "flow" [H, W, 2]: from 400 ms to that time, px

Ground truth is the displacement from 400 ms on at many times, so it is known at any tau: at the
times of files it is theirs, between them a Bezier curve follows them.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.base import FrameSource
from flowfuse.data.formats.hdf5 import open_hdf5
from flowfuse.data.formats.images import ImageFrames
from flowfuse.data.formats.wrapped_frames import DeepFrames
from flowfuse.data.recording import Flow
from flowfuse.data.registry import open_event_file
from flowfuse.geometry.bezier import bezier, fit_bezier

REFERENCE, TARGET = 400_000, 900_000  # us, of the two frames
BEZIER_DEGREE = 8  # the highest that the fit has digits for
SHOWN = 4  # times in (0, 1) at which errors are reported, of those with a file
_SPLITS = ("train", "val")
_SAME_TIME = 1e-6  # of tau


def timed_images(directory: Path) -> FrameSource:
    """The images of a directory, which are named by their times in whole microseconds.

    Raises:
        ValueError: another name.
    """
    paths = sorted(directory.glob("*.png"), key=lambda path: path.stem.zfill(20))
    strange = [path.name for path in paths if not path.stem.isdecimal()]
    if strange:
        raise ValueError(f"{directory / strange[0]}: a time in microseconds is expected")
    times = np.array([int(path.stem) for path in paths], np.int64)
    return DeepFrames(ImageFrames(paths, times))


class MultiFlowRecording(FileRecording):
    """A sample of MultiFlow: one frame pair, with ground truth at any tau.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: naming the file, what was found and what was expected.
    """

    def __init__(self, path: Path) -> None:
        images = timed_images(path / "images")
        for time in (REFERENCE, TARGET):
            if time not in images.times:
                name = path / "images" / f"{time:07d}.png"
                raise FileNotFoundError(f"{name}: no such image, MultiFlow has flow from there")
        super().__init__(path, open_event_file(path / "events" / "events.h5"), images)
        self._pair = tuple(int(np.searchsorted(images.times, t)) for t in (REFERENCE, TARGET))
        self.ground_truth_step = self._pair[1] - self._pair[0]
        found = {}
        for file in sorted((path / "flow").glob("*.h5")):
            if not file.stem.isdecimal():
                raise ValueError(f"{file}: a time in microseconds is expected as its name")
            if REFERENCE < int(file.stem) <= TARGET:
                found[(int(file.stem) - REFERENCE) / (TARGET - REFERENCE)] = file
        if 1.0 not in found:
            name = path / "flow" / f"{TARGET:07d}.h5"
            raise FileNotFoundError(f"{name}: no such flow file")
        self._flow_files = found
        inner = [tau for tau in found if tau < 1]
        chosen = np.linspace(0, len(inner), min(SHOWN, len(inner)) + 2)[1:-1].astype(int)
        self.ground_truth_times = tuple(inner[i] for i in chosen)
        self._curve: np.ndarray | None = None

    @property
    def frame_pairs(self) -> list[tuple[int, int]]:
        """The one pair with ground truth."""
        return [(self._pair[0], self._pair[1])]

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth from the frame at 400 ms to the fraction tau of the 500 ms to the other.

        Args:
            index: of the frame at 400 ms; others have none.
            tau: in (0, 1].

        Returns:
            flow [2, H, W] float32 (px) and valid [H, W] bool, True where it is finite: everywhere,
            occluded or not. Between the times of files, flow is on the Bezier curve
            (:meth:`control_points`).
        """
        if index != self._pair[0] or not 0 < tau <= 1:
            return None
        nearest = min(self._flow_files, key=lambda known: abs(known - tau))
        if abs(nearest - tau) < _SAME_TIME:
            flow = self._read(self._flow_files[nearest])
        else:
            flow = bezier(torch.from_numpy(self.control_points())[None], tau)[0].numpy()
        return flow, np.isfinite(flow).all(axis=0)

    def has_ground_truth(self, index: int) -> bool:
        """Whether it is the frame at 400 ms."""
        return index == self._pair[0]

    def control_points(self) -> np.ndarray:
        """The Bezier curve of the ground truth.

        Returns:
            [n, 2, H, W] float32 px, control points P_1 .. P_n of the displacement by least squares,
            P_0 = 0; n is BEZIER_DEGREE, or the number of files if that is less. P_n is the flow to
            the second frame, up to what the fit leaves.
        """
        if self._curve is None:
            flows = np.stack([self._read(file) for file in self._flow_files.values()])
            degree = min(BEZIER_DEGREE, len(flows))
            times = torch.tensor(list(self._flow_files), dtype=torch.float64)
            self._curve = fit_bezier(torch.from_numpy(flows)[None], times, degree)[0].numpy()
        return self._curve

    def _read(self, path: Path) -> np.ndarray:
        with open_hdf5(path) as file:
            item = file.get("flow")
            shape = [self.height, self.width, 2]
            if not isinstance(item, h5py.Dataset) or list(item.shape) != shape:
                found = sorted(file) if item is None else getattr(item, "shape", item)
                raise ValueError(f"{path}: flow of shape {shape} expected, found {found}")
            return np.moveaxis(np.asarray(item, np.float32), 2, 0)


class MultiFlowDataSet(DataSet):
    """Samples of MultiFlow."""

    name = "MultiFlow"
    own_calibration = "MultiFlow is rendered without distortion"

    def matches(self, path: Path) -> bool:
        return (path / "flow" / f"{TARGET:07d}.h5").is_file() and (path / "events").is_dir()

    def open(self, path: Path) -> MultiFlowRecording:
        return MultiFlowRecording(path)

    def sequences(self, path: Path) -> list[str]:
        return self.find_below(path, _SPLITS)


DATASET = MultiFlowDataSet()
