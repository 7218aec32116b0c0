"""Events in the HDF5 files of M3ED: x, y, t, p of several cameras, in ``prophesee/left`` and so on.

t is in microseconds. The left camera is taken where there are several. Its size is in
``calib/resolution``.

The table ``ms_map_idx`` beside the events is not needed: times are searched in t itself.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import numpy as np

from flowfuse.data.formats.base import EventFile, Format, starts_with
from flowfuse.data.formats.columns import Columns, check_columns
from flowfuse.data.formats.hdf5 import HDF5_FAULTS, open_hdf5
from flowfuse.data.formats.hdf5_events import SIGNATURE, Hdf5Events

_CAMERAS = "prophesee"


class M3edEvents(Hdf5Events):
    """One camera of a file. The file stays open between windows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with open_hdf5(path) as file:
            names = _cameras(file)
        if len(names) > 1:
            warnings.warn(
                f"{path}: {names[0]} is taken, of {', '.join(names)}; a file with another alone "
                "chooses that one",
                stacklevel=5,
            )

    def _find_columns(self, file: h5py.File) -> Columns:
        group = file[_cameras(file)[0]]
        columns = {name: group[name] for name in "xytp"}
        check_columns(columns, f"data sets in {group.name!r}", sorted(group))
        return Columns(**columns)

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        with open_hdf5(self.path) as file:
            stated = file[_cameras(file)[0]].get("calib/resolution")
            if not isinstance(stated, h5py.Dataset):
                return None
            sides = np.asarray(stated[()]).ravel()
            if len(sides) != 2 or sides.dtype.kind not in "iuf" or not (sides >= 1).all():
                raise ValueError(
                    f"{self.path}: {stated.name} must be width and height in px, got "
                    f"{sides[:4].tolist()}"
                )
            return int(sides[1]), int(sides[0])


def _cameras(file: h5py.File) -> list[str]:
    """The groups with events, left ones first."""
    parent = file.get(_CAMERAS)
    if not isinstance(parent, h5py.Group):
        return []
    found = [
        f"{_CAMERAS}/{name}"
        for name, group in parent.items()
        if isinstance(group, h5py.Group)
        and all(isinstance(group.get(column), h5py.Dataset) for column in "xytp")
    ]
    return sorted(found, key=lambda name: ("left" not in name, name))


class M3edFormat(Format):
    """Events of several cameras."""

    name = "M3ED"
    suffixes = (".h5", ".hdf5")
    rank = 12

    def recognizes(self, path: Path) -> bool:
        if not starts_with(path, SIGNATURE):
            return False
        try:
            with open_hdf5(path) as file:
                return bool(_cameras(file))
        except (ValueError, *HDF5_FAULTS):
            return False

    def open_events(self, path: Path) -> EventFile:
        return M3edEvents(path)


FORMAT = M3edFormat()
