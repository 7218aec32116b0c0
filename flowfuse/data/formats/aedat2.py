"""AEDAT 2.0 files (iniVation cameras recorded by jAER): indexed by one pass, read by blocks.

Behind header lines that start with # stand pairs of an address and a time in microseconds, both of
32 bits, the highest byte first. What an address means depends on the chip, which a header line
names. Frames (samples of the chip's converter) and IMU are passed over.

Source of the bits: the extractors of jAER (DVS128, DavisBaseCamera). They count columns from the
right and rows from the bottom; here both are turned around. In a DVS128, bit 0 is 0 for ON.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from flowfuse.data.formats.base import EventFile, Format, starts_with
from flowfuse.data.formats.prophesee_raw import Encoding, RawEvents
from flowfuse.data.formats.prophesee_words import (
    BITS,
    TRIGGER,
    Columns,
    DecoderState,
    times_32_bits,
)

SIGNATURE = b"#!AER-DAT"
_SIZES = {  # by the name of the chip: (height, width)
    "dvs128": (128, 128),
    "davis128": (128, 128),
    "davis208": (192, 208),
    "davis240": (180, 240),
    "davis346": (260, 346),
    "davis640": (480, 640),
}
_HEADER_BYTES = 1 << 20  # jAER writes all its settings there
_SAMPLE_WORDS = 1 << 17

Split = Callable[[np.ndarray], tuple[np.ndarray, ...]]  # is event, x, y, p, is trigger, rises


def split_dvs128(address: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Addresses of a DVS128: bit 15 is a trigger, 14-8 the row, 7-1 the column, 0 the polarity."""
    x = width - 1 - (address >> 1 & 0x7F).astype(np.int32)
    y = height - 1 - (address >> 8 & 0x7F).astype(np.int32)
    trigger = (address >> 15 & 1).astype(bool)
    return ~trigger, x, y, (~address & 1).astype(np.uint8), trigger, np.ones(len(address), np.uint8)


def split_davis(address: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Addresses of a DAVIS: bits 30-22 are the row, 21-12 the column, 11 the polarity.

    Bit 31 marks samples of frames and IMU, bit 10 a trigger, of which bits 2-0 are 2 where it falls
    and 3 where it rises.
    """
    x = width - 1 - (address >> 12 & 0x3FF).astype(np.int32)
    y = height - 1 - (address >> 22 & 0x1FF).astype(np.int32)
    own = address >> 31 == 0
    trigger = own & (address >> 10 & 1).astype(bool)
    rises = (address & 7 != 2).astype(np.uint8)
    return own & ~trigger, x, y, (address >> 11 & 1).astype(np.uint8), trigger, rises


def _decode(words: np.ndarray, state: DecoderState, split: Split) -> tuple[Columns, DecoderState]:
    t, state = times_32_bits(words, state)
    events, x, y, p, _, _ = split((words >> np.uint64(32)).astype(np.uint32))
    return (x[events], y[events], t[events], p[events]), state


def _triggers(words: np.ndarray, state: DecoderState, split: Split) -> np.ndarray:
    t, _ = times_32_bits(words, state)
    *_, found, rises = split((words >> np.uint64(32)).astype(np.uint32))
    triggers = np.zeros(int(found.sum()), TRIGGER)
    triggers["t"], triggers["p"] = t[found], rises[found]
    return triggers


class Aedat2Events(RawEvents):
    """A file of AEDAT 2.0."""

    def _find_layout(self, path: Path) -> tuple[Encoding, int, tuple[int, int] | None]:
        lines, start = read_header(path)
        version = lines[0].removeprefix(SIGNATURE.decode()) if lines else "1.0"
        if version != "2.0":
            raise ValueError(
                f"{path}: AEDAT version {version}, expected 2.0, 3.1 or 4.0; DV converts others"
            )
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(8 * _SAMPLE_WORDS)
        addresses = np.frombuffer(data[: len(data) // 8 * 8], ">u4")[::2]
        chip = self._find_chip(path, lines, addresses)
        height, width = _SIZES[chip]
        split = split_dvs128 if chip == "dvs128" else split_davis
        of_chip = partial(split, height=height, width=width)
        if chip != "dvs128" and (addresses >> 31).any():
            warnings.warn(
                f"{path}: samples of frames or of the IMU are passed over; DV converts the file to "
                "AEDAT 4, of which frames are read",
                stacklevel=6,
            )
        encoding = Encoding(
            ">u8", partial(_decode, split=of_chip), partial(_triggers, split=of_chip), BITS
        )
        return encoding, start, (height, width)

    def _find_chip(self, path: Path, lines: list[str], addresses: np.ndarray) -> str:
        """The key of _SIZES."""
        stated = [line.split(":", 1)[1].strip() for line in lines if line.startswith("# AEChip:")]
        if stated:
            name = stated[-1].rpartition(".")[2].lower()
            found = re.match(r"(dvs|davis)\d{3}", name)
            if found is None or found[0] not in _SIZES or "rgbw" in name:
                raise ValueError(
                    f"{path}: chip {stated[-1]!r}, expected one of {', '.join(_SIZES)}; DV "
                    "converts files of others to AEDAT 4"
                )
            return found[0]
        if len(addresses) and (addresses >> 16).any():
            raise ValueError(
                f"{path}: no line '# AEChip: ...' says what its addresses mean; add the one of "
                f"the camera ({', '.join(_SIZES)}) behind the first line"
            )
        warnings.warn(
            f"{path}: no line '# AEChip: ...' names the chip; a DVS128 is assumed, since all "
            "addresses have 16 bits",
            stacklevel=7,
        )
        return "dvs128"


def read_header(path: Path) -> tuple[list[str], int]:
    """The lines that start with #, and where the pairs begin.

    The first pair may begin with the byte of #: a line with other bytes than text is none.

    Raises:
        ValueError: the header has no end.
    """
    with open(path, "rb") as file:
        data = file.read(_HEADER_BYTES)
    lines: list[str] = []
    start = 0
    while data[start : start + 1] == b"#":
        end = data.find(b"\n", start)
        line = data[start:end].rstrip(b"\r") if end >= 0 else data[start:]
        is_text = all(32 <= byte < 127 or byte in b"\t" or byte >= 160 for byte in line)
        if end < 0 and is_text:
            raise ValueError(f"{path}: a header line without an end; is the file truncated?")
        if not is_text:
            break
        lines.append(line.decode("latin-1"))
        start = end + 1
        if lines[-1].strip().lower() in ("#end of ascii header", "#!end-header"):
            break
    return lines, start


class Aedat2Format(Format):
    """Events of AEDAT 2.0 files."""

    name = "AEDAT 2"
    suffixes = (".aedat", ".dat")  # the latter in the first years
    rank = 52

    def recognizes(self, path: Path) -> bool:
        return starts_with(path, SIGNATURE + b"2.")

    def open_events(self, path: Path) -> EventFile:
        return Aedat2Events(path)


FORMAT = Aedat2Format()
