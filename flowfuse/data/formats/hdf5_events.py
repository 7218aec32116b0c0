"""Events in HDF5 files, flat or in the layout of DSEC.

Data sets x, y, t, p at the root or in the group ``events``; t in microseconds if integer, in
seconds if floating. Optional: ``t_offset`` (microseconds, added to t) and ``ms_to_idx`` (DSEC), and
the attributes ``height`` and ``width``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from flowfuse.data.formats.base import EventFile, Format, starts_with
from flowfuse.data.formats.columns import ColumnFile, Columns, check_columns
from flowfuse.data.formats.hdf5 import HDF5_FAULTS, Hdf5Handle, open_hdf5

_LAST_TIME = 1 << 62  # us
SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Hdf5Events(ColumnFile):
    """Flat or DSEC layout, as above. The file stays open between windows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle: Hdf5Handle[Columns] = Hdf5Handle(path)
        _ = self.time_range  # a fault of the layout shows now, too, not at the first window

    @contextmanager
    def _columns(self) -> Iterator[Columns]:
        with self._handle.reading(self._find_columns) as columns:
            yield columns

    def _find_columns(self, file: h5py.File) -> Columns:
        group = file["events"] if isinstance(file.get("events"), h5py.Group) else file
        found = {name: group.get(name) for name in "xytp"}
        columns = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}
        check_columns(columns, f"data sets in {group.name!r}", sorted(group))
        offset = file.get("t_offset", group.get("t_offset"))
        table = file.get("ms_to_idx", group.get("ms_to_idx"))
        for name, item, shape in (("t_offset", offset, "[]"), ("ms_to_idx", table, "[M]")):
            wanted = isinstance(item, h5py.Dataset) and item.dtype.kind in "iu"
            # One number in an array, as in VECtor, is a number.
            fits = wanted and (item.ndim == 1 if name == "ms_to_idx" else item.shape in ((), (1,)))
            if item is not None and not fits:
                raise ValueError(f"{name} must be integers of shape {shape}, got {item}")
        start = 0 if offset is None else int(np.ravel(offset[()])[0])
        if abs(start) > _LAST_TIME:
            raise ValueError(f"t_offset must be microseconds, got {start}")
        return Columns(**columns, offset=start, ms_to_idx=table)

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        with open_hdf5(self.path) as file:
            for node in (file, file.get("events")):
                if node is not None and "height" in node.attrs and "width" in node.attrs:
                    return self._side(node, "height"), self._side(node, "width")
        return None

    def _side(self, node: h5py.Group, name: str) -> int:
        value = np.asarray(node.attrs[name])
        if value.size != 1 or value.dtype.kind not in "iuf" or not value.item() >= 1:
            raise ValueError(
                f"{self.path}: the attribute {name} must be one positive number of px, "
                f"got {str(node.attrs[name])[:40]!r}"
            )
        return int(value.item())


class Hdf5Format(Format):
    """Events in HDF5 files."""

    name = "HDF5"
    suffixes = (".h5", ".hdf5")
    rank = 10

    def recognizes(self, path: Path) -> bool:
        if not starts_with(path, SIGNATURE):
            return False
        try:
            with open_hdf5(path) as file:
                group = file["events"] if isinstance(file.get("events"), h5py.Group) else file
                return all(isinstance(group.get(name), h5py.Dataset) for name in "xytp")
        except (ValueError, *HDF5_FAULTS):
            return False

    def open_events(self, path: Path) -> EventFile:
        return Hdf5Events(path)


FORMAT = Hdf5Format()
