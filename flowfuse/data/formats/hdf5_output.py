"""Writing HDF5 files so that a full disk is an ordinary error."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_BLOCK = 1 << 23  # bytes that are written at a time
_METADATA = 1 << 16  # bytes, of a small file
# Bytes that HDF5 holds back: of each data set, and of all that are written in turns.
_CACHE = 1 << 20
_HELD = 16 * _CACHE


class Hdf5Output(h5py.File):
    """A new HDF5 file whose space is reserved before it is written.

    HDF5 crashes when it closes a file that it could not write. So every write is announced by
    :meth:`reserve`, which fails where there is no room, while HDF5 can still close the file.

    Args:
        path: of the file; one that is there is replaced.

    Raises:
        OSError: there is no room.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = Path(path)
        self._announced = 0
        # Asked before, too: from here on there is a file that HDF5 has to close.
        self._path.write_bytes(b"")
        _allocate(self._path, _METADATA)
        super().__init__(self._path, "w", rdcc_nbytes=_CACHE)
        self.reserve(0)

    def reserve(self, size: int) -> None:
        """Make sure that so many bytes more can be written, before compression.

        Raises:
            OSError: there is no room for them.
        """
        # A chunk that grows is written elsewhere before its old place is free.
        held = 2 * min(self._announced, _HELD)
        self._announced += size
        _allocate(self._path, self.id.get_filesize() + held + size + size // 64 + _METADATA)

    def extend(self, dataset: h5py.Dataset, values: np.ndarray) -> None:
        """Append rows to a data set of this file whose first axis can grow."""
        self.reserve(values.nbytes)
        count = len(dataset)
        dataset.resize(count + len(values), axis=0)
        dataset[count:] = values

    def put(self, name: str, values: np.ndarray, **packing: Any) -> None:
        """Write a data set, block by block, packed as h5py's create_dataset takes it."""
        if not values.ndim or not values.size:  # what has no extent cannot be chunked
            self.reserve(values.nbytes)
            self.create_dataset(name, data=values)
            return
        target = self.create_dataset(name, values.shape, values.dtype, **packing)
        rows = max(_BLOCK * len(values) // values.nbytes, 1)
        for first in range(0, len(values), rows):
            block = values[first : first + rows]
            self.reserve(block.nbytes)
            target[first : first + rows] = block

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            super().__exit__(*exception)
            return
        self.flush()
        size = self.id.get_filesize()
        super().__exit__(*exception)
        if os.path.getsize(self._path) > size:
            os.truncate(self._path, size)  # what was reserved and not needed


def _allocate(path: Path, size: int) -> None:
    """Let a file take up so many bytes of the disk, at least."""
    with open(path, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # macOS and Windows have no such call
            refused = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV)
            if isinstance(error, OSError) and error.errno not in refused:
                raise
            if shutil.disk_usage(path.parent).free < size - path.stat().st_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
