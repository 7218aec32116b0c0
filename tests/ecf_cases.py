"""An encoder of ECF, written from its description, and Prophesee's HDF5 files made with it."""

from __future__ import annotations

import struct

import h5py
import numpy as np
from event_cases import HEIGHT, OFFSET, WIDTH

from flowfuse.data.formats.ecf import EVENT, FILTER

CODES = (0, 1, 2)  # columns and polarities apart; both together; rows, too


def runs(values):
    """(value, how often) of successive equal values."""
    found = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return found


def encode_times(times):
    data, last = struct.pack("<Q", times[0]), times[0]
    for time, count in runs(times):
        step = time - last
        if step >= 15:
            parts = []
            while step:
                parts.append(0xF0 | step & 15)
                step >>= 4
            data += bytes(parts)
        if count >= 15:
            data += bytes((step << 4 | 15, count & 255, count >> 8))
        else:
            data += bytes((step << 4 | count,))
        last = time
    return data


def pack(values, bits):
    """Four values of ``bits`` bits to three words: the low parts of a value come first."""
    third, data = bits // 3, b""
    values = [*values, *[0] * (-len(values) % 4)]
    for a, b, c, d in zip(*(values[i::4] for i in range(4)), strict=True):
        words = [a << third | b % (1 << third), b >> third << 2 * third | c % (1 << 2 * third)]
        words.append(c >> 2 * third << 3 * third | d)
        data += b"".join(word.to_bytes(bits // 6, "little") for word in words)
    return data


def encode(events, code):
    """A chunk of events (x, y, t, p)."""
    x, y, t, p = (list(column) for column in zip(*events, strict=True))
    data = struct.pack("<I", len(events) << 2 | code) + encode_times(t)
    if code == 2:
        return data + pack([b << 12 | a << 1 | c for a, b, c in zip(x, y, p, strict=True)], 24)
    for row, count in runs(y):
        data += struct.pack("<H", row << 5 | min(count, 31))
        data += struct.pack("<H", count) if count >= 31 else b""
    if code == 1:
        return data + pack([a << 1 | c for a, c in zip(x, p, strict=True)], 12)
    place = 0
    while place < len(x):
        first, mask = x[place], 0
        place += 1
        for step in range(1, 6):
            if place < len(x) and x[place] == first + step:
                mask |= 1 << 5 - step
                place += 1
        data += struct.pack("<H", first << 5 | mask)
    for value, count in runs(p):
        data += bytes((value << 7 | min(count, 127),))
        data += struct.pack("<H", count) if count >= 127 else b""
    return data


def write(path, events, chunk=256, geometry=f"{WIDTH}x{HEIGHT}"):
    """The layout of Prophesee: chunks of ECF, the last one with the events that are left."""
    columns = (events.x, events.y, events.t, events.p)
    found = [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((chunk,))
        plist.set_filter(FILTER, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((len(found),))
        group = file.create_group("CD")
        kind = h5py.h5t.py_create(EVENT)
        dataset = h5py.h5d.create(group.id, b"events", kind, space, dcpl=plist)
        for number, first in enumerate(range(0, len(found), chunk)):
            part = found[first : first + chunk]
            if number == 1:  # a chunk that its writer left as it is
                values = np.zeros(chunk, EVENT)
                for name, column in zip("xytp", zip(*part, strict=True), strict=True):
                    values[name] = column
                dataset.write_direct_chunk((first,), values.tobytes(), filter_mask=1)
            else:
                dataset.write_direct_chunk((first,), encode(part, CODES[number % 3]))
        if geometry is not None:
            file.attrs["geometry"] = geometry
        triggers = np.zeros(2, [("p", "<i2"), ("t", "<i8"), ("id", "<i2")])
        triggers["p"], triggers["t"], triggers["id"] = (1, 0), (OFFSET, OFFSET + 9), (5, 5)
        file["EXT_TRIGGER/events"] = triggers
    return path
