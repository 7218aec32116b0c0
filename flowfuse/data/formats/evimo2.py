"""Events in the folders of EVIMO2 (version 2): ``dataset_events_t.npy``, ``_xy.npy``, ``_p.npy``.

t [N] or [N, 1] is in seconds, xy is [N, 2]; they are mapped into memory. The times of depth, masks
and frames are in a pickle, which is not read: a pickle may run any program. Name frames and their
times one by one. The polarity of the camera ``samsung_mono`` is inverted, as EVIMO2 says itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flowfuse.data.formats.base import EventFile, Format
from flowfuse.data.formats.columns import ColumnFile, Columns, check_columns

_PREFIX = "dataset_events_"


class Evimo2Events(ColumnFile):
    """The events of a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        t, p = (_column(path / f"{_PREFIX}{name}.npy") for name in "tp")
        xy_path = path / f"{_PREFIX}xy.npy"
        xy = _load(xy_path)
        if xy.ndim != 2 or xy.shape[1] != 2:
            raise ValueError(f"{xy_path}: shape [N, 2] expected, got {list(xy.shape)}")
        arrays: dict[str, Any] = {"x": xy[:, 0], "y": xy[:, 1], "t": t, "p": p}
        try:
            check_columns(arrays, "arrays", sorted(arrays))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        self._arrays = Columns(**arrays)
        _ = self.time_range

    @contextmanager
    def _columns(self) -> Iterator[Columns]:
        yield self._arrays


def _column(path: Path) -> np.ndarray:
    """An array [N], of [N] or [N, 1]."""
    found = _load(path)
    if found.ndim == 2 and found.shape[1] == 1:
        return found[:, 0]
    return found


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; EVIMO2 has events in {_PREFIX}t, _xy, _p")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable .npy, is it truncated? ({error})") from error


class Evimo2Format(Format):
    """Events in three arrays of a folder."""

    name = "EVIMO2"
    rank = 80

    def recognizes(self, path: Path) -> bool:
        return (path / f"{_PREFIX}t.npy").is_file()

    def open_events(self, path: Path) -> EventFile:
        return Evimo2Events(path)


FORMAT = Evimo2Format()
