"""Writing HDF5 files so that a full disk is an ordinary error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

import h5py


class Hdf5Output(h5py.File):
    """A new HDF5 file. Where it cannot be written, :meth:`check` and the end of ``with`` say so.

    HDF5 by itself crashes when it closes a file that it cannot write.

    Args:
        path: of the file; one that is there is replaced.

    Raises:
        OSError: the file cannot be written, from ``check`` or the end of ``with`` on.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._sink = _Sink(path)
        super().__init__(self._sink, "w")

    def check(self) -> None:
        """Raise the first error that a write had, if any: so that long work stops early."""
        if self._sink.error is not None:
            raise self._sink.error

    def __exit__(self, *exception: object) -> None:
        try:
            super().__exit__(*exception)
        finally:
            self._sink.close()
            self.check()  # instead of what HDF5 made of it


class _Sink(FileIO):
    """A file that keeps the first error of its writes and lets HDF5 go on as if there was none."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        with self._keeping_errors():
            while len(rest):  # the last write that fits may be cut short
                rest = rest[super().write(rest) :]
        return size

    def truncate(self, size: int | None = None) -> int:
        with self._keeping_errors():
            return super().truncate(size)
        return size

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
