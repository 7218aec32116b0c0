"""What OpenCV asks of the names of files, and what it prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


def opencv_name(path: str | os.PathLike) -> str:
    """A path as OpenCV takes it, which crashes where the bytes of a name are not UTF-8.

    Raises:
        ValueError: they are not.
    """
    name = os.fspath(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name!r}: OpenCV opens only names that are UTF-8") from None
    return name


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Let OpenCV print nothing, where what it cannot do is told in other words."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
