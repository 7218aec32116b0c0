"""Writing files so that they are either complete or absent."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Names that atomic_path gives; those of before 2026-12 have no machine.
_TEMPORARY = re.compile(r"\..*\.(?:(?P<machine>[0-9a-f]{8})-)?(?P<pid>\d+)-[0-9a-f]+\.tmp(\.\w+)?")
_OLD = 86_400.0  # s without a change after which a file of another machine counts as abandoned


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and rename it to ``path`` when the block succeeds.

    The content is flushed to the disk before the rename, so that a crash, a kill or a full disk
    leaves the former file or none, never half a file. When the block raises, the temporary file is
    removed and the error passes on.

    Args:
        path: the file to write; its directory must exist.

    Yields:
        The path to write to: in the same directory, hidden, with the same suffix.

    Raises:
        FileNotFoundError: if the directory does not exist.
        OSError: if the path is a directory or a device, the block wrote no file, or the directory
            cannot be written.
    """
    path = Path(path)
    check_file_path(path)
    temporary = path.with_name(f".{path.stem}.{_token()}.tmp{path.suffix}")
    try:
        yield temporary
        if not temporary.exists():
            raise OSError(f"{path}: nothing was written")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _name(error, temporary, path)
        raise


@contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary directory beside ``path`` and rename it to ``path`` when the block succeeds.

    Args:
        path: a directory that does not exist yet, or is empty; parents are made.

    Yields:
        The directory to fill. When the block raises, it is removed and the error passes on.

    Raises:
        ValueError: if the directory has content.
        OSError: if it cannot be written.
    """
    path = Path(path)
    check_new_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkdtemp, which makes private directories.
    temporary = path.with_name(f".{path.name}.{_token()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, temporary, path)
        raise


def _name(error: BaseException, temporary: Path, path: Path) -> None:
    """Let an error of the system tell the path that the caller knows."""
    if not isinstance(error, OSError):
        return
    if error.filename is None and error.errno in _FULL:  # a write knows no name
        error.filename = str(path)
    elif error.filename is not None and str(error.filename).startswith(str(temporary)):
        error.filename = str(path) + str(error.filename).removeprefix(str(temporary))


def check_file_path(path: str | os.PathLike) -> None:
    """Refuse, before the work is done, what :func:`atomic_path` would refuse.

    Raises:
        FileNotFoundError: the directory does not exist.
        OSError: the directory cannot be written, or the path is a directory or a device.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot write, {path.parent} is not an existing directory")
    # A rename would put a file in the place of /dev/null, too.
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: cannot write, it exists and is no regular file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: cannot write, {path.parent} is not writable")


def check_new_directory(path: str | os.PathLike) -> None:
    """Refuse, before the work is done, what :func:`atomic_directory` would refuse.

    Raises:
        ValueError: the path is a file, or a directory with content.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: exists already, expected a new or empty directory")


def remove_abandoned(directory: Path) -> None:
    """Remove the temporary files that killed writers left in a directory of results.

    Those of a process that still runs stay: it may write into the same directory. Of a process of
    another machine nothing is known, so its files stay for a day after their last change.
    """
    for path in directory.glob(".*.tmp*"):
        name = _TEMPORARY.fullmatch(path.name)
        if name is not None and path.is_file() and not _is_written(path, name):
            path.unlink(missing_ok=True)


def _token() -> str:
    """Machine, process and a random part: who writes a temporary file."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_written(path: Path, name: re.Match[str]) -> bool:
    """Whether the process that made a temporary file may still write it."""
    if name["machine"] not in (None, _machine()):
        with suppress(OSError):
            return time.time() - path.stat().st_mtime < _OLD
        return False
    try:
        os.kill(int(name["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, for another user
        return True
    return True
