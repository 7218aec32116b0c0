"""Writing HDF5 files so that a full disk is an ordinary error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from typing import Any

import h5py


@contextmanager
def create_hdf5(path: str | os.PathLike) -> Iterator[Callable[..., Any]]:
    """Create an HDF5 file and close it; in between, functions write to it.

    HDF5 crashes when it closes a file that it could not write. So it writes to a Python file that
    keeps errors from it. It would crash as well where a signal, such as Ctrl-C, raised an exception
    in that file: all that it does it does in a thread, which signals do not reach.

    Args:
        path: of the file; one that is there is replaced.

    Yields:
        write(function, *arguments), which calls function(file, *arguments) with the h5py.File and
        gives what it returns.

    Raises:
        OSError: the file cannot be written; from `write` or, at the latest, the end of ``with``.
    """
    with _Sink(os.fspath(path), "w+") as sink, ThreadPoolExecutor(1) as thread:

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return thread.submit(function, *arguments).result()
            finally:
                sink.check()  # whatever HDF5 made of it

        file = call(h5py.File, sink, "w")
        try:
            yield lambda function, *arguments: call(function, file, *arguments)
        finally:
            call(file.close)


class _Sink(FileIO):
    """A file that keeps the first error of its writes and lets HDF5 go on as if there was none."""

    error: Exception | None = None

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        with self._keeping_errors():
            while len(rest):  # the last write that fits may be cut short
                rest = rest[super().write(rest) :]
        return size

    def truncate(self, size: int | None = None) -> int | None:
        with self._keeping_errors():
            return super().truncate(size)
        return size

    def check(self) -> None:
        """Raise the first error, if any."""
        if self.error is not None:
            raise self.error

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
