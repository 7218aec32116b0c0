"""The packets of an AEDAT 4 file, looked at before dv-processing reads them: damage makes it hang.

Source of the layout: "AEDAT 4.0", docs.inivation.com. Behind the first line stands a header, a
FlatBuffer with the size before it: the compression, and where the table of packets is, with which
the file ends. A packet is the number of its stream, its size, and data, which may be a frame of LZ4
or of Zstandard.
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable
from pathlib import Path

_FIRST_LINE = b"#!AER-DAT4.0\r\n"
_LZ4, _ZSTD = (1, 2), (3, 4)  # values of compression: fast, and high


def check_packets(path: Path) -> None:
    """Refuse a file whose packets are damaged.

    Raises:
        ValueError: saying what was found where.
    """
    state = path.stat()
    fault = _find_fault(path, state.st_size, state.st_mtime_ns)
    if fault:
        raise ValueError(f"{path}: not a readable .aedat4, is it truncated? ({fault})")


@functools.lru_cache(maxsize=64)
def _find_fault(path: Path, size: int, changed: int) -> str:
    """What is wrong with a file of this size and time of change; "" where nothing is."""
    with open(path, "rb") as file:
        try:
            if file.read(len(_FIRST_LINE)) != _FIRST_LINE:
                return ""  # dv-processing says so
            (length,) = struct.unpack("<I", file.read(4))
            compression, end = _read_header(file.read(length))
        except (struct.error, IndexError):
            return "its header is damaged"
        decompress = _find_decompress(compression)
        end = size if end < 0 else min(end, size)
        place = len(_FIRST_LINE) + 4 + length
        while place + 8 <= end:
            file.seek(place)
            _, length = struct.unpack("<ii", file.read(8))
            if length < 0 or place + 8 + length > end:
                return f"the packet at byte {place} has {length} bytes, {end - place - 8} are left"
            if decompress is not None:
                try:
                    decompress(file.read(length))
                except Exception as error:  # each package has errors of its own
                    return f"the packet at byte {place} is damaged: {error}"
            place += 8 + length
    return ""


def _find_decompress(compression: int) -> Callable[[bytes], bytes] | None:
    """What unpacks a packet; None where it is not packed, or the package is not installed."""
    try:
        if compression in _LZ4:
            from lz4.frame import decompress
        elif compression in _ZSTD and sys.version_info >= (3, 14):
            from compression.zstd import decompress
        elif compression in _ZSTD:
            from backports.zstd import decompress
        else:
            return None
    except ImportError:
        return None
    return decompress


def _read_header(header: bytes) -> tuple[int, int]:
    """Compression, and the place of the table of packets; -1: there is none."""
    (root,) = struct.unpack_from("<I", header)
    table = root - struct.unpack_from("<i", header, root)[0]
    (bytes_of_table,) = struct.unpack_from("<H", header, table)

    def value(field: int, kind: str, default: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > bytes_of_table:
            return default
        (offset,) = struct.unpack_from("<H", header, table + entry)
        return struct.unpack_from(kind, header, root + offset)[0] if offset else default

    return value(0, "<i", 0), value(1, "<q", -1)
