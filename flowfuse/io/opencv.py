"""What OpenCV asks of the names of files."""

from __future__ import annotations

import os


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
