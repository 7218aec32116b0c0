"""Writing files so that they are either complete or absent."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\..*\.\d+-[0-9a-f]+\.tmp(\.\w+)?")  # names that atomic_path gives


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
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.stem}.{token}.tmp{path.suffix}")
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
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
    """Remove the temporary files that a killed writer left in a directory that is ours alone."""
    for path in directory.glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
