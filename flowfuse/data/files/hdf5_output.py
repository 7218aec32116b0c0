"""Writing HDF5 files so that a full disk is an ordinary error."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from types import FrameType

import h5py


@contextmanager
def create_hdf5(path: str | os.PathLike) -> Iterator[Hdf5Output]:
    """Give a new HDF5 file to write to, and close it.

    By itself HDF5 crashes when it closes a file that it cannot write. Here it never learns of an
    error: the first one is raised by :meth:`Hdf5Output.check` and at the end of ``with``. So is
    Ctrl-C, as HDF5 must not be interrupted while it calls Python to write.

    Args:
        path: of the file; one that is there is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    with _Sink(path) as sink:
        in_charge = threading.current_thread() is threading.main_thread()
        holding = in_charge and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if holding:
            signal.signal(signal.SIGINT, sink.interrupt)
        try:
            with Hdf5Output(sink) as file:
                yield file
        finally:
            if holding:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            sink.check()  # whatever HDF5 made of it


class Hdf5Output(h5py.File):
    """The file that :func:`create_hdf5` gives."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        super().__init__(sink, "w")

    def check(self) -> None:
        """Raise what has kept the file from being written, if anything: long work then stops."""
        self._sink.check()


class _Sink(FileIO):
    """A file that keeps the first error of its writes and lets HDF5 go on as if there was none."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path, "w+")
        self._error: BaseException | None = None

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

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT: later."""
        self._error = self._error or KeyboardInterrupt()

    def check(self) -> None:
        """Raise the first error."""
        if self._error is not None:
            raise self._error

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._error = self._error or error
