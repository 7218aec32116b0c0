"""Prophesee's HDF5 event files: records x, y, p, t in ``CD/events``, compressed as ECF.

t is in microseconds. ``EXT_TRIGGER/events`` has the triggers. The attribute ``geometry``, such as
"1280x720", is the size of the sensor. ECF is decoded here, chunk by chunk: no plugin is needed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowfuse.data.formats.base import EventFile, Format, starts_with
from flowfuse.data.formats.columns import Columns, check_columns
from flowfuse.data.formats.ecf import EVENT, FILTER, decode_chunk
from flowfuse.data.formats.hdf5 import HDF5_FAULTS, open_hdf5
from flowfuse.data.formats.hdf5_events import SIGNATURE, Hdf5Events
from flowfuse.data.formats.hdf5_table import Field, is_table
from flowfuse.data.formats.prophesee_words import TRIGGER

_EVENTS, _TRIGGERS = "CD/events", "EXT_TRIGGER/events"
_KEPT_CHUNKS = 64  # decoded; of 16384 events each, as Prophesee writes them, 16 MiB


class EcfRecords:
    """A data set of events that is compressed as ECF.

    Args:
        records: the data set.

    Raises:
        ValueError: it has other filters, too.
    """

    def __init__(self, records: h5py.Dataset) -> None:
        self._records = records
        self.chunk = int(records.chunks[0])
        plist = records.id.get_create_plist()
        filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
        if filters != [FILTER]:
            raise ValueError(f"{records.name} has the filters {filters}, expected [{FILTER}] (ECF)")
        self._decoded = lru_cache(_KEPT_CHUNKS)(self._decode)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The records [start, stop)."""
        first, last = start // self.chunk, -(-stop // self.chunk)
        parts = [self._decoded(number) for number in range(first, last)]
        if not parts:
            return np.empty(0, EVENT)
        return np.concatenate(parts)[start - first * self.chunk : stop - first * self.chunk]

    def _decode(self, number: int) -> np.ndarray:
        begin = number * self.chunk
        skipped, data = self._records.id.read_direct_chunk((begin,))
        events = np.frombuffer(data, EVENT) if skipped else decode_chunk(data)
        expected = min(self.chunk, len(self._records) - begin)
        if len(events) < expected:
            raise ValueError(
                f"chunk {number} of {self._records.name} has {len(events)} events, "
                f"{expected} expected"
            )
        return events[:expected]


class EcfColumn:
    """A field of such records, read when it is indexed."""

    def __init__(self, records: EcfRecords, name: str, count: int) -> None:
        self._records, self._name = records, name
        self.shape, self.chunks, self.dtype = (count,), (records.chunk,), EVENT[name]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._records.read(start, max(start, stop))[self._name]
        return self._records.read(rows, rows + 1)[self._name][0]


class PropheseeHdf5Events(Hdf5Events):
    """The events of ``CD/events``. The file stays open between windows."""

    def _find_columns(self, file: h5py.File) -> Columns:
        records = file.get(_EVENTS)
        if not isinstance(records, h5py.Dataset) or not is_table(records):
            raise ValueError(f"{_EVENTS} must be records of x, y, p and t, got {records}")
        columns: dict[str, Any] = {name: Field(records, name) for name in "xytp"}
        plist = records.id.get_create_plist()
        filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
        if FILTER in filters:
            decoded = EcfRecords(records)
            columns = {name: EcfColumn(decoded, name, len(records)) for name in "xytp"}
        check_columns(columns, f"fields of {records.name}", list(records.dtype.names))
        return Columns(**columns)

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        with open_hdf5(self.path) as file:
            stated = file.attrs.get("geometry")
        if stated is None:
            return super().sensor_size
        text = stated.decode("latin-1") if isinstance(stated, bytes) else str(stated)
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
        if found is None:
            raise ValueError(
                f"{self.path}: the attribute geometry must be like '1280x720', got {text[:40]!r}"
            )
        return int(found[2]), int(found[1])

    def triggers(self) -> np.ndarray:
        with open_hdf5(self.path) as file:
            records = file.get(_TRIGGERS)
            if records is None:
                return np.empty(0, TRIGGER)
            names = getattr(getattr(records, "dtype", None), "names", None) or ()
            if not {"t", "p", "id"} <= set(names):
                raise ValueError(
                    f"{self.path}: {_TRIGGERS} must be records of p, t and id, got {records}"
                )
            found = records[:]
        triggers = np.empty(len(found), TRIGGER)
        for name in TRIGGER.names or ():
            triggers[name] = found[name]
        return triggers


class PropheseeHdf5Format(Format):
    """Prophesee's HDF5 event files."""

    name = "Prophesee HDF5"
    suffixes = (".h5", ".hdf5")
    rank = 13

    def recognizes(self, path: Path) -> bool:
        if not starts_with(path, SIGNATURE):
            return False
        try:
            with open_hdf5(path) as file:
                return isinstance(file.get(_EVENTS), h5py.Dataset)
        except (ValueError, *HDF5_FAULTS):
            return False

    def open_events(self, path: Path) -> EventFile:
        return PropheseeHdf5Events(path)


FORMAT = PropheseeHdf5Format()
