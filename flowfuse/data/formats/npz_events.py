"""Events in .npz archives: arrays x, y, t, p.

t is in microseconds if integer, in seconds if floating.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowfuse.data.formats.base import EventFile, Format
from flowfuse.data.formats.columns import ColumnFile, Columns, check_columns
from flowfuse.data.formats.npz import map_member, open_npz


class NpzEvents(ColumnFile):
    """Arrays x, y, t, p of an .npz archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with open_npz(path) as archive:
            stored = [Path(name).stem for name in archive.namelist() if name.endswith(".npy")]
            names = [name for name in "xytp" if name in stored]
            packed = [archive.getinfo(f"{name}.npy") for name in names]
            packed = [info for info in packed if info.compress_type != zipfile.ZIP_STORED]
            if packed:
                size = sum(info.file_size for info in packed) / 2**20
                warnings.warn(
                    f"{path} is compressed and is unpacked into temporary files of {size:.1f} "
                    "MiB; np.savez (not savez_compressed) avoids that",
                    stacklevel=6,
                )
            arrays: dict[str, Any] = {name: map_member(path, archive, name) for name in names}
            check_columns(arrays, "arrays", sorted(stored))
        self._arrays = Columns(**arrays)
        _ = self.time_range

    @contextmanager
    def _columns(self) -> Iterator[Columns]:
        yield self._arrays


class NpzFormat(Format):
    """Events in .npz archives."""

    name = "npz"
    suffixes = (".npz",)
    rank = 20

    def recognizes(self, path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as archive:
                return {f"{name}.npy" for name in "xytp"} <= set(archive.namelist())
        except (OSError, zipfile.BadZipFile):
            return False

    def open_events(self, path: Path) -> EventFile:
        return NpzEvents(path)


FORMAT = NpzFormat()
