"""Events in .npz archives as one array: ``events`` [N, 4], as EVIMO and EVIMO2v1 have it."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowfuse.data.formats.base import EventFile, Format
from flowfuse.data.formats.column_order import ColumnOrder, parse_columns
from flowfuse.data.formats.columns import ColumnFile, Columns
from flowfuse.data.formats.npz import map_member, open_npz
from flowfuse.data.formats.table import table_columns, tell

_MEMBER = "events"


class NpzTableEvents(ColumnFile):
    """The array ``events`` of an archive.

    Args:
        path: of the archive.
        order: of the columns; None: as values show it.
    """

    def __init__(self, path: Path, order: ColumnOrder | None = None) -> None:
        super().__init__(path)
        with open_npz(path) as archive:
            info = archive.getinfo(f"{_MEMBER}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                warnings.warn(
                    f"{path} is compressed and {_MEMBER} is unpacked into a temporary file of "
                    f"{info.file_size / 2**20:.1f} MiB; np.savez avoids that",
                    stacklevel=6,
                )
            table = map_member(path, archive, _MEMBER)
            if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
                raise ValueError(
                    f"{_MEMBER} must be numbers of shape [N, 4], got {table.dtype} of "
                    f"{list(table.shape)}"
                )
            self._arrays, told = table_columns(table, order)
        tell(path, told)
        _ = self.time_range

    @contextmanager
    def _columns(self) -> Iterator[Columns]:
        yield self._arrays


class NpzTableFormat(Format):
    """Events in one array."""

    name = "npz table"
    suffixes = (".npz",)
    rank = 21

    def recognizes(self, path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as archive:
                return f"{_MEMBER}.npy" in archive.namelist()
        except (OSError, zipfile.BadZipFile, ValueError):
            return False

    def open_events(self, path: Path) -> EventFile:
        return NpzTableEvents(path)

    def open_columns(self, path: Path, columns: str) -> EventFile:
        return NpzTableEvents(path, parse_columns(columns))


FORMAT = NpzTableFormat()
