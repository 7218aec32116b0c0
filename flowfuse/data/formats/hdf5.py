"""Reading HDF5 files: kept open between reads, with errors that name the file and the key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import h5py
import numpy as np

# Bytes per data set: several chunks, of which h5py proposes 1 MiB at most. Without room for a whole
# chunk HDF5 decodes it again at every read.
CHUNK_CACHE = 1 << 22
# What h5py raises on damaged files, beside ValueError.
HDF5_FAULTS = (OSError, RuntimeError, KeyError, TypeError, OverflowError, MemoryError)
Content = TypeVar("Content")


class Hdf5Handle(Generic[Content]):
    """A file that stays open between reads, with its data sets and the chunks they decoded last.

    A process that is forked, or that gets a pickled copy, opens it for itself. After an error it is
    closed; the next read opens it again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, h5py.File, Content] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def process(self) -> int | None:
        """The process that has it open, or None."""
        return None if self._opened is None else self._opened[0]

    @contextmanager
    def reading(self, find: Callable[[h5py.File], Content]) -> Iterator[Content]:
        """Give what ``find`` found in the file when it was opened.

        Raises:
            ValueError: the file is damaged; names it.
        """
        try:
            with named_faults(self.path):
                if self._opened is None or self.process != os.getpid():
                    self._opened = None  # first, or HDF5 shares what another process opened
                    file = h5py.File(self.path, "r", rdcc_nbytes=CHUNK_CACHE)
                    self._opened = os.getpid(), file, find(file)
                yield self._opened[2]
        except BaseException:
            self._opened = None
            raise


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for one reading; faults of the file become ValueErrors that name it."""
    with named_faults(path), h5py.File(path, "r") as file:
        yield file


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a ValueError that names it."""
    advice = (
        "is it truncated?"
        if register_codecs()
        else "it may be compressed with a codec of hdf5plugin, which is not installed"
    )
    try:
        yield
    except HDF5_FAULTS as error:
        raise ValueError(f"{path}: cannot be read as HDF5, {advice} ({error})") from error


def register_codecs() -> bool:
    """Make the codecs that DSEC uses known to HDF5; False when hdf5plugin is not installed."""
    try:
        import hdf5plugin  # noqa: F401 -- registers its codecs when imported
    except ImportError:
        return False
    return True


def find_dataset(path: Path, file: h5py.File, name: str, shape: str, kinds: str) -> h5py.Dataset:
    """Find a data set and check it.

    Args:
        path: of the file, for messages.
        file: open.
        name: path of the data set in it.
        shape: what is expected, such as "[F, 2, H, W]": the number of axes counts.
        kinds: of numpy dtypes ("f", "u", "iuf").

    Raises:
        ValueError: naming the file, the key, what was found and what was expected.
    """
    item = file.get(name)
    if not isinstance(item, h5py.Dataset):
        parent = file.get(name.rpartition("/")[0] or "/")
        found = sorted(parent) if isinstance(parent, h5py.Group) else sorted(file)
        raise ValueError(f"{path}: data set {name} expected, found {found}")
    if item.ndim != shape.count(",") + 1 or item.dtype.kind not in kinds:
        kind = {"f": "floating", "u": "unsigned integers"}.get(kinds, "numbers")
        raise ValueError(
            f"{path}: {name} must be {kind} of shape {shape}, "
            f"got {item.dtype} of {list(item.shape)}"
        )
    return item


def increasing_microseconds(path: Path, name: str, seconds: np.ndarray) -> np.ndarray:
    """Turn seconds into int64 microseconds; they must be finite, not negative, and increase."""
    seconds = np.asarray(seconds, np.float64)
    if not np.isfinite(seconds).all() or (seconds < 0).any():
        raise ValueError(f"{path}: {name} must be finite seconds, not negative")
    times = np.rint(seconds * 1e6).astype(np.int64)
    if (np.diff(times) <= 0).any():
        index = int(np.argmax(np.diff(times) <= 0)) + 1
        raise ValueError(
            f"{path}: {name} must increase, got {times[index]} us after {times[index - 1]} us "
            f"(index {index})"
        )
    return times
