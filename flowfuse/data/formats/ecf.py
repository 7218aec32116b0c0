"""The event compression format (ECF) of Prophesee's HDF5 files: one chunk to the events in it.

Source of the layout: the public codec, github.com/prophesee-ai/hdf5_ecf. A chunk begins with 32
bits: the number of events, times 4, and two flags. Then come the times, the rows, the columns and
the polarities, each in its own code; the flags say which of them are packed together instead.
"""

from __future__ import annotations

import struct

import numpy as np

FILTER = 0x8ECF  # its number in HDF5
EVENT = np.dtype(
    {
        "names": ["x", "y", "p", "t"],
        "formats": ["<u2", "<u2", "<i2", "<i8"],
        "offsets": [0, 2, 4, 8],
        "itemsize": 16,
    }
)
_MOST_EVENTS = 65535  # in a chunk
_LAST_TIME = 1 << 62
_HEAD_BYTES = 12


def decode_chunk(data: bytes) -> np.ndarray:
    """Decode a chunk.

    Args:
        data: of the chunk, as it is stored.

    Returns:
        [N] of the fields x, y, p and t (microseconds).

    Raises:
        ValueError: the chunk is damaged.
    """
    try:
        return _decode(data)
    except (IndexError, struct.error) as error:
        raise ValueError("a chunk of ECF ends too early") from error


def _decode(data: bytes) -> np.ndarray:
    head, start = struct.unpack_from("<IQ", data)
    count, all_packed, pairs_packed = head >> 2, head >> 1 & 1, head & 1
    if count > _MOST_EVENTS or start > _LAST_TIME:
        raise ValueError(f"a chunk of ECF has {count} events from {start} us on")
    events = np.zeros(count, EVENT)
    if not count:
        return events
    events["t"], place = _times(data, count, start)
    if all_packed:
        values = _unpack(data, place, count, 24)
        events["y"], events["x"] = values >> 12 & 0x7FF, values >> 1 & 0x7FF
        events["p"] = values & 1
        return events
    events["y"], place = _rows(data, place, count)
    if pairs_packed:
        values = _unpack(data, place, count, 12)
        events["x"], events["p"] = values >> 1, values & 1
        return events
    events["x"], place = _columns(data, place, count)
    events["p"] = _polarities(data, place, count)
    return events


def _times(data: bytes, count: int, start: int) -> tuple[np.ndarray, int]:
    """The times of events, and where their code ends.

    A byte has a step of time in its upper and a number of events in its lower half. 15 events: the
    number is in the next two bytes. A step of 15: the lower half is a part of a longer step, the
    lowest part first, up to the next byte with a smaller one.
    """
    time, place, found = start, _HEAD_BYTES, 0
    times, counts = [], []
    while found < count:
        step, number = divmod(data[place], 16)
        place += 1
        if step == 15:
            shift = 0
            while step == 15:
                time += number << shift
                shift += 4
                step, number = divmod(data[place], 16)
                place += 1
            place -= 1  # that byte has a step of its own
            if time > _LAST_TIME:
                raise ValueError(f"a chunk of ECF has a time of {time} us")
            continue
        if number == 15:
            number = data[place] | data[place + 1] << 8
            place += 2
        time += step
        times.append(time)
        counts.append(number)
        found += number
    return _repeat(times, counts, count, "times"), place


def _rows(data: bytes, place: int, count: int) -> tuple[np.ndarray, int]:
    """The rows of events, 16 bits each: the row times 32, and how many events it has.

    31 events: the number is in the next 16 bits.
    """
    words = _words(data, place)
    values, counts, found, used = [], [], 0, 0
    while found < count:
        value, number = divmod(words[used], 32)
        used += 1
        if number == 31:
            number = words[used]
            used += 1
        values.append(value)
        counts.append(number)
        found += number
    return _repeat(values, counts, count, "rows"), place + 2 * used


def _columns(data: bytes, place: int, count: int) -> tuple[np.ndarray, int]:
    """The columns of events, 16 bits for up to six: the first times 32, and a bit for each of the
    five behind it, the nearest in the highest bit."""
    words = np.frombuffer(data, "<u2", (len(data) - place) // 2, place)
    bits = words[:, None] >> np.arange(4, -1, -1, dtype=np.uint16) & 1
    ends = np.cumsum(1 + bits.sum(axis=1))
    used = int(np.searchsorted(ends, count)) + 1
    if used > len(words):
        raise IndexError
    there = np.concatenate((np.ones((used, 1), bool), bits[:used].astype(bool)), axis=1)
    columns = (words[:used, None] >> 5) + np.arange(6, dtype=np.uint16)
    return columns[there][:count], place + 2 * used  # bits behind the last event mean nothing


def _polarities(data: bytes, place: int, count: int) -> np.ndarray:
    """The polarities of events, 8 bits each: the polarity, and how many events have it.

    127 events: the number is in the next two bytes.
    """
    values, counts, found = [], [], 0
    while found < count:
        value, number = divmod(data[place], 128)
        place += 1
        if number == 127:
            number = data[place] | data[place + 1] << 8
            place += 2
        values.append(value)
        counts.append(number)
        found += number
    return _repeat(values, counts, count, "polarities")


def _unpack(data: bytes, place: int, count: int, bits: int) -> np.ndarray:
    """Values of 12 (or 24) bits, four to three words of 16 (or 32) bits, high parts first."""
    word = "<u2" if bits == 12 else "<u4"
    groups = -(-count // 4)
    size = groups * 3 * np.dtype(word).itemsize
    if place + size > len(data):
        raise IndexError
    words = np.frombuffer(data, word, groups * 3, place).reshape(groups, 3).astype(np.uint32)
    third = bits // 3  # the lower bits of a word go to the next value: a third, two thirds, all
    first, second, last = words.T
    values = np.stack(
        (
            first >> third,
            (first & ((1 << third) - 1)) | second >> 2 * third << third,
            (second & ((1 << 2 * third) - 1)) | last >> 3 * third << 2 * third,
            last & ((1 << 3 * third) - 1),
        ),
        axis=1,
    )
    return values.ravel()[:count]


def _words(data: bytes, place: int) -> list[int]:
    return np.frombuffer(data, "<u2", (len(data) - place) // 2, place).tolist()


def _repeat(values: list[int], counts: list[int], count: int, name: str) -> np.ndarray:
    """Each value as often as its count says, which must come to ``count`` together."""
    if sum(counts) != count:
        raise ValueError(f"a chunk of ECF has {sum(counts)} {name} for {count} events")
    return np.repeat(np.array(values, np.int64), counts)
