"""Reading HDF5 files with errors that name the file, the key and what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading; what h5py raises on damaged files becomes a ValueError with the path."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as HDF5, is it truncated? ({error})") from error


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
