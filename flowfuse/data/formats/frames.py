"""What frames are made of: image files, lists of times, exposures."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from flowfuse.data.formats.base import StatedTimes
from flowfuse.io.images import as_8_bits

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp")
_MAX_SAMPLE_VALUE, _SHORT = 281, 3  # of TIFF: a tag, and the type of its value
_LAST_SECOND = 9.2e12  # more seconds than int64 holds as microseconds
_LAST_TIME = 1 << 62  # us
_UNITS = {"microseconds": 1, "milliseconds": 1000}  # in us


def is_image(path: Path) -> bool:
    """Whether a name is one of an image; macOS leaves ._NAME.png beside NAME.png, which is none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def has_images(directory: Path) -> bool:
    """Whether a directory holds images."""
    return any(is_image(path) for path in directory.iterdir())


def list_images(directory: Path, times: np.ndarray | None = None) -> list[Path]:
    """The images of a directory in the order of the numbers in their names.

    ``frame_2`` comes before ``frame_10``, and ``0.012284`` before ``0.06142``.

    Args:
        directory: of the images.
        times: [F] microseconds, increasing, of as many images: names that state the same times go
            in their order. None: unknown.

    Raises:
        ValueError: the names leave the order open, as of 1.5 and 1.25 or of 1.png and 01.png.
    """
    images = sorted(path for path in directory.iterdir() if is_image(path))
    whole, decimal = (
        {path: _numbers_of(path.stem, pattern) for path in images} for pattern in _NUMBERS
    )
    if all(_is_decimal(path.stem) for path in images):  # 5e-05, -0.5
        decimal = {path: [(Decimal(path.stem), "")] for path in images}
    by_whole, by_decimal = (sorted(images, key=key.__getitem__) for key in (whole, decimal))
    if not all(_is_decimal(path.stem) for path in images):
        _check_words(directory, by_whole)
    same_whole, same = _first_equal(by_whole, whole), _first_equal(by_decimal, decimal)
    if same_whole is not None and same is not None:
        raise ValueError(
            f"{directory}: {same[0].name} and {same[1].name} have the same numbers, so their order "
            "is open; list the images with their times ('t path' per line)"
        )
    if same_whole is not None or _states_times([decimal[path] for path in by_decimal], times):
        return by_decimal
    if same is not None or by_whole == by_decimal:
        return by_whole
    as_decimals = _are_decimals(by_whole)
    if as_decimals is None:
        pair = next((a, b) for a, b in zip(by_whole, by_decimal, strict=True) if a != b)
        raise ValueError(
            f"{directory}: the order of the images is open: {pair[0].name} or {pair[1].name} may "
            "come first, as counters or as decimals; list the images with their times ('t path' "
            "per line)"
        )
    return by_decimal if as_decimals else by_whole


# Numbers in a name: without and with a decimal point.
_NUMBERS = (re.compile(r"(\d+)"), re.compile(r"(\d+\.\d+|\d+)"))
_CLOCK_UNITS = (1e6, 1e3, 1, 1e-3)  # us in a second, ms, us, ns
_SAME_TIME = 2.0  # us, between a time in a name and one in a list: both round
_LONG_FRACTION = 3  # digits, as of a time


def _numbers_of(stem: str, pattern: re.Pattern) -> list[tuple[Decimal, str]]:
    parts = pattern.split(stem)  # the odd ones are numbers
    return [(Decimal(part), "") if i % 2 else (Decimal(0), part) for i, part in enumerate(parts)]


def _words(path: Path) -> str:
    return re.sub(r"-?\d+", "0", path.stem)


def _check_words(directory: Path, order: list[Path]) -> None:
    """Refuse names that differ in words, as left_1 and right_1, where numbers go back in order."""
    for a, b in pairwise(order):
        before, after = ([int(n) for n in re.findall(r"\d+", path.stem)] for path in (a, b))
        going_back = before and after and after < before  # a name without numbers counts nothing
        if going_back and _words(a) != _words(b):
            raise ValueError(
                f"{directory}: {a.name} and {b.name} have different words, and the numbers of the "
                "images go back between them: are they of two cameras? Keep those of one in the "
                "directory, or list them with their times ('t path' per line)"
            )


def _is_decimal(stem: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", stem) is not None


def _first_equal(paths: list[Path], keys: dict[Path, list]) -> tuple[Path, Path] | None:
    return next(((a, b) for a, b in pairwise(paths) if keys[a] == keys[b]), None)


def _states_times(keys: list[list[tuple[Decimal, str]]], times: np.ndarray | None) -> bool:
    """Whether the only number of each name is its time, in any unit and from any start."""
    if times is None or len(times) != len(keys) or len(keys) < 2:
        return False
    numbers = [[number for number, text in key if not text] for key in keys]
    numbers = [[n for n in found if n] or found[:1] for found in numbers]
    if any(len(found) != 1 for found in numbers):
        return False
    stated = np.array([float(found[0] - numbers[0][0]) for found in numbers])
    given = (times - times[0]).astype(np.float64)
    return any(bool((np.abs(stated * unit - given) <= _SAME_TIME).all()) for unit in _CLOCK_UNITS)


def _are_decimals(by_whole: list[Path]) -> bool | None:
    """Whether 1.10 is 1.1, and not what follows 1.9; None if the names do not tell."""
    stems = [path.stem for path in by_whole]
    if all(map(_is_decimal, stems)) and any(set("-eE") & set(stem) for stem in stems):
        return True
    found = [re.findall(r"(\d+)\.(\d+)", path.stem) for path in by_whole]
    fractions = [fraction for pairs in found for _, fraction in pairs]
    if len({len(fraction) for fraction in fractions}) < 2:
        return None
    leading = any(len(f) > 1 and f.startswith("0") for f in fractions)
    trailing = any(len(f) > 1 and f.endswith("0") for f in fractions)
    if leading != trailing:
        return leading
    if any(
        not _is_decimal(path.stem) or len(p) != 1 for path, p in zip(by_whole, found, strict=True)
    ):
        return None
    steps = [int(b[0][1]) - int(a[0][1]) for a, b in pairwise(found) if a[0][0] == b[0][0]]
    if not leading and steps and set(steps) == {1}:
        return False
    return True if max(map(len, fractions)) >= _LONG_FRACTION else None


def read_frame_list(
    path: Path | StatedTimes, *, increasing: bool = True
) -> tuple[np.ndarray, list[str] | None]:
    """Read frame times.

    Args:
        path: lines ``t`` or ``t name``, t in seconds; # starts a comment. Or times that are known.
        increasing: refuse times that do not increase.

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
        if increasing and times and time <= times[-1]:
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


def read_time_column(path: Path, unit: str, *, header: bool = False) -> np.ndarray:
    """Read times, one per line; # starts a comment.

    Args:
        path: a text file.
        unit: "microseconds" or "milliseconds".
        header: whether the first line may be one.

    Returns:
        [F] int64 microseconds, in the order of the file.

    Raises:
        ValueError: naming the line that is no time.
    """
    times: list[int] = []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        word = line.split("#", 1)[0].strip()
        if not word:
            continue
        try:
            time = round(float(word) * _UNITS[unit])
            if abs(time) > _LAST_TIME:
                raise ValueError
        except (ValueError, OverflowError):
            if header and number == 1:
                continue
            raise ValueError(
                f"{path}, line {number}: a time in {unit} expected, found {line[:40]!r}"
            ) from None
        times.append(time)
    return np.array(times, np.int64)


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
        :func:`decode_image` keeps all bits.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    return as_8_bits(decode_image(str(path), path.read_bytes()))


def decode_image(name: str, data: bytes) -> np.ndarray:
    """Decode the content of an image file.

    Args:
        name: what an error message calls it.
        data: the bytes.

    Returns:
        uint8 or uint16, as in the file, [H, W], or [H, W, 3] in RGB order, without alpha.

    Raises:
        ValueError: naming the image.
    """
    # Decoders give a partly filled image when the end is missing, so the end marker is looked for.
    cut_png = data.startswith(b"\x89PNG") and b"IEND" not in data[-12:]
    cut_jpeg = data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]
    if not data or cut_png or cut_jpeg:
        raise ValueError(f"{name}: truncated image, {len(data)} bytes without an end marker")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{name}: not an image that OpenCV can decode, or it is damaged")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{name}: images of 8 or 16 bits expected, found {image.dtype}")
    if image.ndim == 3 and image.shape[2] == 1:
        return image[:, :, 0]
    if image.ndim == 3:
        return np.ascontiguousarray(image[:, :, 2::-1])  # BGR or BGRA to RGB
    return image


def stated_white(data: bytes) -> int | None:
    """The value of white that an image file of 16 bits states: 4095 for 12 bits.

    PNG states how many bits are significant (sBIT); of less than 16 it is not clear whether the
    values are scaled, so they count as nothing said. PGM and PPM state the largest value, TIFF may.

    Args:
        data: the content of a file.

    Returns:
        The value; None where nothing is stated.
    """
    if data.startswith(b"\x89PNG"):
        place = data.find(b"sBIT", 0, 1024)
        return 65535 if place > 0 and data[place + 4] == 16 else None
    if data[:2] in (b"P5", b"P6"):
        fields = re.match(rb"P[56](?:\s+(?:#[^\n]*\n\s*)*)(\d+)\s+(\d+)\s+(\d+)\s", data[:1024])
        return int(fields[3]) if fields else None
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_white(data)
    return None


def _tiff_white(data: bytes) -> int | None:
    """Tag 281, MaxSampleValue, of the first image of a TIFF file."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        place = directory + 2 + 12 * entry
        if number(place, 2) == _MAX_SAMPLE_VALUE and number(place + 2, 2) == _SHORT:
            value = number(place + 8, 2) if number(place + 4, 4) <= 2 else 0
            return value if value > 255 else None
    return None
