"""One command at a time in a directory, on this machine and on others that share it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory while the block runs; a killed process loses it.

    Args:
        directory: exists; gets the file ``.lock``, which says who holds it and is removed again.

    Raises:
        ValueError: another process holds the lock.
        OSError: the directory cannot be written.
    """
    path = directory / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise ValueError(
                f"{directory}: {holder} is writing there; wait for it, or give another directory"
            ) from None
        except OSError as error:
            os.close(file)
            if error.errno not in _UNSUPPORTED:
                raise
            warnings.warn(
                f"{directory}: this file system has no locks ({error.strerror}): see to it that no "
                "other command writes there",
                stacklevel=3,
            )
            path.unlink(missing_ok=True)
            yield
            return
        # A holder removes the file before it lets go: then this is no longer the directory's lock.
        try:
            current = os.stat(path).st_ino == os.fstat(file).st_ino
        except FileNotFoundError:
            current = False
        if current:
            break
        os.close(file)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
