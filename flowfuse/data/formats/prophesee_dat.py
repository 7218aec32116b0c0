"""Prophesee .dat files (version 2, events of type 2D or CD): indexed by one pass, read by blocks.

Source of the layout: "DAT File Format", docs.prophesee.ai. Behind the header lines stand the type
and the size of an event, a byte each. An event is a 64-bit word: bits 31-0 are the time in
microseconds, which overflows after 71 minutes, 45-32 the column, 59-46 the row, 60 the polarity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowfuse.data.formats.base import EventFile, Format
from flowfuse.data.formats.prophesee_raw import Encoding, RawEvents, read_header
from flowfuse.data.formats.prophesee_words import BITS, Columns, DecoderState, times_32_bits

_EVENT_TYPES = {0: "2D", 12: "CD"}
_EVENT_BYTES = 8


def decode_dat(words: np.ndarray, state: DecoderState) -> tuple[Columns, DecoderState]:
    """Decode events of 64 bits.

    Args:
        words: [N] uint64.
        state: before the first word; ``high`` is the last time as in the file.

    Returns:
        x, y, t, p, t int64 microseconds with the overflows undone; the state after the last word.
    """
    t, state = times_32_bits(words, state)
    upper = (words >> np.uint64(32)).astype(np.uint32)
    x, y = (upper & 0x3FFF).astype(np.int32), (upper >> 14 & 0x3FFF).astype(np.int32)
    return (x, y, t, (upper >> 28 & 1).astype(np.uint8)), state


class DatEvents(RawEvents):
    """A .dat file."""

    def _find_layout(self, path: Path) -> tuple[Encoding, int, tuple[int, int] | None]:
        header, start = read_header(path)
        version = header.get("version", "none")
        if version != "2":
            raise ValueError(f"{path}: version {version} of .dat, expected 2")
        with open(path, "rb") as file:
            file.seek(start)
            stated = file.read(2)
        if len(stated) < 2:
            raise ValueError(f"{path}: ends with its header; is the file truncated?")
        if stated[0] not in _EVENT_TYPES or stated[1] != _EVENT_BYTES:
            raise ValueError(
                f"{path}: events of type {stated[0]} with {stated[1]} bytes, expected type 0 (2D) "
                f"or 12 (CD) with {_EVENT_BYTES} bytes"
            )
        encoding = Encoding("<u8", decode_dat, counter=BITS)
        return encoding, start + 2, _find_size(path, header)


def _find_size(path: Path, header: dict[str, str]) -> tuple[int, int] | None:
    sides = [header.get(name, "") for name in ("height", "width")]
    if sides == ["", ""]:
        return None
    if not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"{path}: height and width must be px, got {sides[0]!r} and {sides[1]!r}")
    return int(sides[0]), int(sides[1])


class PropheseeDatFormat(Format):
    """Events of type 2D or CD."""

    name = "Prophesee DAT"
    suffixes = (".dat",)
    rank = 42

    def recognizes(self, path: Path) -> bool:
        try:
            header, _ = read_header(path)
        except (OSError, ValueError):
            return False
        return "version" in header and "evt" not in header and "format" not in header

    def open_events(self, path: Path) -> EventFile:
        return DatEvents(path)


FORMAT = PropheseeDatFormat()
