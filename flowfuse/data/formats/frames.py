"""What frames are made of: image files, lists of times, exposures."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np

from flowfuse.data.formats.base import StatedTimes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp")
_LAST_SECOND = 9.2e12  # more seconds than int64 holds as microseconds


def is_image(path: Path) -> bool:
    """Whether a name is one of an image; macOS leaves ._NAME.png beside NAME.png, which is none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(directory: Path) -> list[Path]:
    """The images of a directory, ``frame_2`` before ``frame_10``."""
    images = [path for path in directory.iterdir() if is_image(path)]
    return sorted(
        images,
        key=lambda path: [
            (int(part), "") if part.isdigit() else (0, part)
            for part in re.split(r"(\d+)", path.name)
        ],
    )


def read_frame_list(path: Path | StatedTimes) -> tuple[np.ndarray, list[str] | None]:
    """Read frame times.

    Args:
        path: lines ``t`` or ``t name``, t in seconds; # starts a comment. Or times that are known.

    Returns:
        [F] int64 microseconds, strictly increasing and not negative; the names, or None.
    """
    if isinstance(path, StatedTimes):
        return path.times, None
    times: list[int] = []
    names: list[str] = []
    for number, fields in _numbered_fields(path):
        try:
            time = _microseconds(fields[0])
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: a time in seconds expected first, found {fields[0]!r}"
            ) from None
        if time < 0:
            raise ValueError(f"{path}, line {number}: negative time {fields[0]} s")
        if times and time <= times[-1]:
            raise ValueError(
                f"{path}, line {number}: times must increase, found {time} us after {times[-1]} us"
            )
        times.append(time)
        if len(fields) > 1:
            names.append(fields[1])
        if len(names) not in (0, len(times)):
            raise ValueError(
                f"{path}, line {number}: found {len(fields)} columns, the lines before have "
                f"{3 - len(fields)}; is the file truncated?"
            )
    if not times:
        raise ValueError(f"{path}: no frame time found, expected lines 't' or 't path'")
    return np.array(times, np.int64), names or None


def read_exposures(path: Path, count: int) -> np.ndarray:
    """Read exposure intervals: lines ``start end`` in seconds, one per frame.

    Returns:
        [F, 2] int64 microseconds.
    """
    rows = []
    for number, fields in _numbered_fields(path):
        try:
            start, end = map(_microseconds, " ".join(fields).split())
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: 'start end' in seconds expected, found {fields}"
            ) from None
        if end < start:
            raise ValueError(f"{path}, line {number}: the exposure ends before it starts: {fields}")
        rows.append((start, end))
    if len(rows) != count:
        raise ValueError(f"{path}: {len(rows)} exposures for {count} frames")
    return np.array(rows, np.int64).reshape(-1, 2)


def _microseconds(seconds: str) -> int:
    value = float(seconds)
    if not abs(value) <= _LAST_SECOND:
        raise ValueError("NaN, infinite, or beyond int64 microseconds")
    return round(value * 1e6)


def _numbered_fields(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, first column and rest) of every line that is not blank or a comment."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows may put a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    lines = [(number, line.split("#", 1)[0]) for number, line in enumerate(text.splitlines(), 1)]
    return [(n, line.strip().split(maxsplit=1)) for n, line in lines if line.strip()]


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file.

    Returns:
        uint8 [H, W], or [H, W, 3] in RGB order. 16-bit images are scaled from their full range
        (65535 becomes 255), whatever part of it they use; an alpha channel is dropped.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    return decode_image(str(path), path.read_bytes())


def decode_image(name: str, data: bytes) -> np.ndarray:
    """Decode the content of an image file; as :func:`read_image`.

    Args:
        name: what an error message calls it.
        data: the bytes.
    """
    # Decoders give a partly filled image when the end is missing, so the end marker is looked for.
    cut_png = data.startswith(b"\x89PNG") and b"IEND" not in data[-12:]
    cut_jpeg = data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]
    if not data or cut_png or cut_jpeg:
        raise ValueError(f"{name}: truncated image, {len(data)} bytes without an end marker")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{name}: not an image that OpenCV can decode, or it is damaged")
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{name}: images of 8 or 16 bits expected, found {image.dtype}")
    if image.ndim == 3 and image.shape[2] == 1:
        return image[:, :, 0]
    if image.ndim == 3:
        return np.ascontiguousarray(image[:, :, 2::-1])  # BGR or BGRA to RGB
    return image
