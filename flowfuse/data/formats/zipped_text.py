"""Text files of events in .zip archives, as E2VID's: one .txt or .csv in each.

The text is unpacked once into a temporary file, which goes when the last reader does; what it may
hold is in text.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import Any

from flowfuse.data.formats.base import EventFile, Format, starts_with
from flowfuse.data.formats.column_order import ColumnOrder, parse_columns
from flowfuse.data.formats.text import TextEvents

_SUFFIXES = (".txt", ".csv")


class ZippedTextEvents(TextEvents):
    """The text file of an archive.

    Args:
        path: of the archive.
        order: of the columns; None: as the file shows it.

    Raises:
        ValueError: there is no text file, or several, or the archive is damaged.
    """

    def __init__(self, path: Path, order: ColumnOrder | None = None) -> None:
        content = _unpack(path)
        super().__init__(path, order, content)
        self._removal: Any = weakref.finalize(self, _remove, content, os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_removal": None}  # what was copied does not remove the file


def _remove(content: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process must not
        content.unlink(missing_ok=True)


def _unpack(path: Path) -> Path:
    """Unpack the only text of an archive into a temporary file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = _texts(archive)
            if len(names) != 1:
                found = ", ".join(names or archive.namelist()[:5]) or "nothing"
                raise ValueError(f"{path}: one .txt or .csv file expected, found {found}")
            handle, name = tempfile.mkstemp(prefix="flowfuse_", suffix=".txt")
            try:
                with os.fdopen(handle, "wb") as target, archive.open(names[0]) as packed:
                    shutil.copyfileobj(packed, target, 1 << 20)
            except BaseException:
                os.unlink(name)
                raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable .zip, is it truncated? ({error})") from error
    except OSError as error:
        if error.filename is not None:
            raise
        # Damaged offsets lead before the file; or there is no room for what is unpacked.
        raise OSError(f"{path}: cannot be unpacked ({error.strerror or error})") from error
    return Path(name)


def _texts(archive: zipfile.ZipFile) -> list[str]:
    """The text files of an archive; macOS leaves others in __MACOSX/."""
    return [
        name
        for name in archive.namelist()
        if name.lower().endswith(_SUFFIXES) and not name.startswith("__MACOSX/")
    ]


class ZippedTextFormat(Format):
    """One text file of events in an archive."""

    name = "zipped text"
    suffixes = (".zip",)
    rank = 35

    def recognizes(self, path: Path) -> bool:
        if not starts_with(path, b"PK"):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                return len(_texts(archive)) == 1
        except (OSError, zipfile.BadZipFile, ValueError):
            return False

    def open_events(self, path: Path) -> EventFile:
        return ZippedTextEvents(path)

    def open_columns(self, path: Path, columns: str) -> EventFile:
        return ZippedTextEvents(path, parse_columns(columns))


FORMAT = ZippedTextFormat()
