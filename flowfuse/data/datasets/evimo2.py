"""EVIMO2 (Burner et al., 2022), version 2, with flow of its objects.

A sequence lies at ROOT/CAMERA/CATEGORY/SUBCATEGORY/SEQUENCE::

    dataset_events_{t,xy,p}.npy           t in seconds
    dataset_multiflow_10steps_vis.h5      the continuous flow of Hamann et al. (ECCV 2024): "time"
                                          [N] s, "multiflow" [N, S, 2, H, W] px after each 50 ms
    dataset_flow.npz                      or what evimo_flow.py of EVIMO2 makes: "t", "t_end" [N] s,
                                          "flow_<number>" [H, W, 2] px

Both flows are NaN where nothing is known, as on all walls. There are no frames of the event camera.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.base import EventFile
from flowfuse.data.formats.hdf5 import open_hdf5
from flowfuse.data.formats.npz import NUMPY_FAULTS
from flowfuse.data.recording import Flow
from flowfuse.data.registry import open_event_file
from flowfuse.events import Events

SIZE = 480, 640  # height and width of the event cameras, px
CONTINUOUS, CLASSIC = "dataset_multiflow_10steps_vis.h5", "dataset_flow.npz"
STEP = 50_000  # us between the steps of the continuous flow
STEPS = 6  # of them make an interval: 300 ms, as in the paper
HISTORY = 400_000  # us of events before an interval that the paper's evaluation asks for
INVERTED = "samsung_mono"  # the camera whose polarity is inverted


class InvertedEvents(EventFile):
    """Events of another file with the other polarity."""

    def __init__(self, source: EventFile) -> None:
        super().__init__(source.path)
        self._source = source

    @property
    def time_range(self) -> tuple[int, int] | None:
        return self._source.time_range

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        return self._source.sensor_size

    def coordinate_extent(self) -> tuple[int, int]:
        return self._source.coordinate_extent()

    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        found = self._source.window(t0, t1, height, width)
        return Events(found.x, found.y, found.t, 1 - found.p, height=height, width=width)


class Evimo2Recording(FileRecording):
    """A sequence: events, and ground truth of time intervals.

    Raises:
        ValueError: naming the file, what was found and what was expected.
    """

    def __init__(self, path: Path) -> None:
        events = open_event_file(path)
        if INVERTED in path.resolve().parts:
            events = InvertedEvents(events)
        super().__init__(path, events, None, stated_size=("EVIMO2", SIZE))
        self._continuous, self._classic = path / CONTINUOUS, path / CLASSIC
        self._rows: list[int] = []  # of the continuous flow
        self._keys: list[str] = []  # or of the classic one
        intervals: np.ndarray = np.empty((0, 2), np.int64)
        if self._continuous.is_file():
            intervals = self._continuous_intervals()
            self.ground_truth_times = tuple(step / STEPS for step in range(1, STEPS))
        elif self._classic.is_file():
            intervals = self._classic_intervals()
        self.ground_truth_intervals = intervals

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth of an interval.

        Args:
            index: of ``ground_truth_intervals``.
            tau: 1; of the continuous flow also those of ``ground_truth_times``.

        Returns:
            flow [2, H, W] float32 (px, 0 where unknown) and valid [H, W] bool; None for others.
        """
        if not 0 <= index < len(self.ground_truth_intervals):
            return None
        if self._rows:
            step = round(tau * STEPS)
            if abs(step / STEPS - tau) > 1e-6 or step < 1:
                return None
            with open_hdf5(self._continuous) as file:
                flow = np.asarray(file["multiflow"][self._rows[index], step - 1], np.float32)
        elif tau == 1:
            flow = np.moveaxis(self._read_classic(self._keys[index]), 2, 0).astype(np.float32)
        else:
            return None
        if flow.shape != (2, *SIZE):
            source = self._continuous if self._rows else self._classic
            raise ValueError(f"{source}: flow of {list(SIZE)} px expected, found {flow.shape[1:]}")
        valid = np.asarray(np.isfinite(flow).all(axis=0))
        return np.where(valid, flow, np.float32(0)), valid

    def has_ground_truth(self, index: int) -> bool:
        """Whether there is such an interval: all of them have some."""
        return 0 <= index < len(self.ground_truth_intervals)

    def _continuous_intervals(self) -> np.ndarray:
        with open_hdf5(self._continuous) as file:
            times, flow = file.get("time"), file.get("multiflow")
            fits = isinstance(times, h5py.Dataset) and isinstance(flow, h5py.Dataset)
            if not fits or flow.ndim != 5 or flow.shape[:1] != times.shape or flow.shape[1] < STEPS:
                found = {name: getattr(file[name], "shape", None) for name in file}
                raise ValueError(
                    f"{self._continuous}: time [N] and multiflow [N, >= {STEPS}, 2, H, W] "
                    f"expected, found {found}"
                )
            starts = np.rint(np.asarray(times, np.float64) * 1e6).astype(np.int64)
        first = 0 if self.event_range is None else self.event_range[0]
        self._rows = np.flatnonzero(starts - first > HISTORY).tolist()
        starts = starts[self._rows]
        return np.stack((starts, starts + STEPS * STEP), axis=1)

    def _classic_intervals(self) -> np.ndarray:
        starts, ends = (self._read_classic(name).ravel() for name in ("t", "t_end"))
        with zipfile.ZipFile(self._classic) as archive:
            names = [Path(name).stem for name in archive.namelist()]
        keys = sorted(name for name in names if re.fullmatch(r"flow_\d+", name))
        if not len(keys) == len(starts) == len(ends):
            raise ValueError(
                f"{self._classic}: as many flow_<number> as t and t_end expected, found "
                f"{len(keys)}, {len(starts)} and {len(ends)}"
            )
        times = np.rint(np.stack((starts, ends), axis=1) * 1e6).astype(np.int64)
        # Where tracking is lost, or at the end, an interval may have no length.
        kept = np.flatnonzero(times[:, 1] > times[:, 0])
        self._keys = [keys[i] for i in kept]
        return times[kept]

    def _read_classic(self, name: str) -> np.ndarray:
        try:
            with np.load(self._classic, allow_pickle=False) as archive:
                found = archive[name]
            if found.dtype.kind not in "fiu":
                raise ValueError(f"numbers expected, found {found.dtype}")
            return found
        except NUMPY_FAULTS as error:
            raise ValueError(f"{self._classic}: cannot read {name} ({error})") from error


class Evimo2DataSet(DataSet):
    """Sequences of EVIMO2 with flow."""

    name = "EVIMO2"
    own_calibration = "the flow of EVIMO2 is that of the raw, distorted image"

    def matches(self, path: Path) -> bool:
        return (path / "dataset_events_t.npy").is_file()

    def open(self, path: Path) -> Evimo2Recording:
        return Evimo2Recording(path)

    def sequences(self, path: Path) -> list[str]:
        return sorted(str(folder.relative_to(path)) for folder in _folders(path))


DATASET = Evimo2DataSet()


def _folders(path: Path) -> Iterator[Path]:
    for depth in range(1, 5):
        pattern = "/".join("*" * depth)
        yield from (file.parent for file in path.glob(f"{pattern}/dataset_events_t.npy"))
