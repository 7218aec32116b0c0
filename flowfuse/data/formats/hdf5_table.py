"""Events in HDF5 files as one array: the data set ``events`` [N, 4], as v2e and UEOF have it.

Or the only data set [N, 4] at the root, or a data set of records with the fields x, y, t and p.
Optional: the attributes ``height`` and ``width``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowfuse.data.formats.base import EventFile, Format, starts_with
from flowfuse.data.formats.column_order import ColumnOrder, parse_columns
from flowfuse.data.formats.columns import Columns, check_columns
from flowfuse.data.formats.hdf5 import HDF5_FAULTS, open_hdf5
from flowfuse.data.formats.hdf5_events import SIGNATURE, Hdf5Events
from flowfuse.data.formats.table import table_columns, tell


class Field:
    """A field of a data set of records, read when it is indexed."""

    def __init__(self, records: h5py.Dataset, name: str) -> None:
        self._records, self._name = records, name
        self.shape, self.chunks = records.shape, records.chunks
        self.dtype = records.dtype[name]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        return np.asarray(self._records.fields(self._name)[rows])


class Hdf5TableEvents(Hdf5Events):
    """A table, as above. The file stays open between windows.

    Args:
        path: of the file.
        order: of the columns; None: as values show it.
    """

    def __init__(self, path: Path, order: ColumnOrder | None = None) -> None:
        self._order = order
        self._told: list[str] = []
        super().__init__(path)
        tell(path, self._told)

    def _find_columns(self, file: h5py.File) -> Columns:
        table = find_table(file)
        if table is None:
            raise ValueError(f"a data set 'events' of shape [N, 4] expected, found {sorted(file)}")
        if table.dtype.names is not None:
            if self._order is not None:
                raise ValueError(f"columns are stated, but {table.name} has named fields")
            columns: dict[str, Any] = {name: Field(table, name) for name in "xytp"}
            check_columns(columns, f"fields of {table.name}", list(table.dtype.names))
            return Columns(**columns)
        found, self._told = table_columns(table, self._order)
        return found


def find_table(file: Any) -> h5py.Dataset | None:
    """The data set of a file that is a table of events, or None."""
    named = file.get("events")
    if isinstance(named, h5py.Dataset):
        return named if is_table(named) else None
    found = [item for item in file.values() if isinstance(item, h5py.Dataset) and is_table(item)]
    return found[0] if len(found) == 1 else None


def is_table(item: h5py.Dataset) -> bool:
    """Whether a data set has four columns of numbers, or the four fields."""
    if item.dtype.names is not None:
        return item.ndim == 1 and set("xytp") <= set(item.dtype.names)
    return item.ndim == 2 and item.shape[1] == 4 and item.dtype.kind in "iuf"


class Hdf5TableFormat(Format):
    """Events in one data set."""

    name = "HDF5 table"
    suffixes = (".h5", ".hdf5")
    rank = 11

    def recognizes(self, path: Path) -> bool:
        if not starts_with(path, SIGNATURE):
            return False
        try:
            with open_hdf5(path) as file:
                return find_table(file) is not None
        except (ValueError, *HDF5_FAULTS):
            return False

    def open_events(self, path: Path) -> EventFile:
        return Hdf5TableEvents(path)

    def open_columns(self, path: Path, columns: str) -> EventFile:
        return Hdf5TableEvents(path, parse_columns(columns))


FORMAT = Hdf5TableFormat()
