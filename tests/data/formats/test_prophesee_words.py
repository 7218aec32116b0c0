"""EVT 2.1, EVT 4.0 and the triggers of all encodings: words by hand, in blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest

from flowfuse.data.formats.prophesee_raw import ENCODINGS, RawEvents
from flowfuse.data.formats.prophesee_words import DecoderState, decode_evt4, decode_evt21


def rows(columns):
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


def evt21(kind, low, x, y, mask):
    return (kind << 28 | low << 22 | x << 11 | y) << 32 | mask


EVT21_WORDS = [
    evt21(1, 5, 9, 9, 1),  # an event before any time: left out
    (0x8 << 28 | 3) << 32 | 0xFFFF,  # upper bits 3: 192 us; the lower half means nothing
    evt21(0, 10, 96, 200, 1 << 31 | 0b101),  # OFF at columns 96, 98, 127
    evt21(0xA, 11, 0, 3 << 8 | 1, 7),  # a trigger rises at input 3
    evt21(1, 63, 2016, 0, 1 << 31),  # ON at column 2047, 255 us
    evt21(0xE, 1, 2, 3, 4),  # of the camera itself
    evt21(1, 63, 0, 7, 0),  # no pixel at all
    (0x8 << 28 | 0xFFFFFFF) << 32,
    (0x8 << 28 | 0) << 32,  # wrapped around
    evt21(1, 2, 1, 2, 1),
    evt21(0xA, 3, 0, 3 << 8, 0),  # falls
]
EVT21_EVENTS = [
    (96, 200, 202, 0), (98, 200, 202, 0), (127, 200, 202, 0), (2047, 0, 255, 1),
    (1, 2, (1 << 34) + 2, 1),
]  # fmt: skip
EVT21_TRIGGERS = [(203, 1, 3), ((1 << 34) + 3, 0, 3)]

MASK_LIKE_A_TIME = 0xE0000001  # a mask of four pixels that looks like upper bits
MASK_LIKE_A_VECTOR = 0xC0000001
EVT4_WORDS = [
    0xB << 28 | 5 << 22 | 9 << 11 | 9,  # an event before any time: left out
    0xE << 28 | 3,  # upper bits 3: 192 us
    0xA << 28 | 10 << 22 | 100 << 11 | 200,  # OFF at 202 us
    0xC << 28 | 11 << 22 | 32 << 11 | 300,  # OFF from column 32 on
    MASK_LIKE_A_TIME,
    0xD << 28 | 12 << 22 | 64 << 11 | 301,  # ON from column 64 on
    MASK_LIKE_A_VECTOR,
    0xD << 28 | 12 << 22 | 96 << 11 | 301,
    0x90000002,  # a mask that looks like a trigger
    0xFFFFFFFF,  # padding
    0x9 << 28 | 13 << 22 | 5 << 8 | 1,  # a trigger rises at input 5
    0x6 << 28 | 7,  # of the camera itself
    0x7 << 28 | 9,
    0xE << 28 | 0xFFFFFFF,
    0xE << 28 | 0,  # wrapped around
    0xB << 28 | 1 << 22 | 2 << 11 | 3,
    0x9 << 28 | 2 << 22 | 5 << 8,  # falls
]
EVT4_EVENTS = [
    (100, 200, 202, 0),
    (32, 300, 203, 0), (61, 300, 203, 0), (62, 300, 203, 0), (63, 300, 203, 0),
    (64, 301, 204, 1), (94, 301, 204, 1), (95, 301, 204, 1),
    (97, 301, 204, 1), (124, 301, 204, 1), (127, 301, 204, 1),
    (2, 3, (1 << 34) + 1, 1),
]  # fmt: skip
EVT4_TRIGGERS = [(205, 1, 5), ((1 << 34) + 2, 0, 5)]

EVT3_WORDS = [
    0xA001,  # before any time: left out
    0x8000 | 2,
    0x6000 | 5,
    0xA000 | 7 << 8 | 1,  # input 7 rises at 8197 us
    0x6000 | 9,
    0x2000 | 20,
    0xA000 | 7 << 8,  # falls
    0x8000 | 3,
    0xA001,  # input 0
]
EVT3_TRIGGERS = [(8197, 1, 7), (8201, 0, 7), (12288, 1, 0)]
EVT2_WORDS = [0xA << 28 | 1, 0x8 << 28 | 3, 0xA << 28 | 5 << 22 | 2 << 8 | 1, 0xA << 28 | 6 << 22]
EVT2_TRIGGERS = [(197, 1, 2), (198, 0, 0)]


def swapped(words):
    return [word >> 32 | (word & 0xFFFFFFFF) << 32 for word in words]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("name", "words", "events"),
    [
        ("2.1", EVT21_WORDS, EVT21_EVENTS),
        ("2.1 legacy", swapped(EVT21_WORDS), EVT21_EVENTS),
        ("4", EVT4_WORDS, EVT4_EVENTS),
    ],
)
def test_words_by_hand_in_blocks_of_any_size(name, words, events, size):
    encoding, state, found = ENCODINGS[name], DecoderState(), []
    words = np.array(words, encoding.dtype)
    for first in range(0, len(words), size):
        columns, state = encoding.decode(words[first : first + size], state)
        found += rows(columns)
    assert found == events
    assert rows(encoding.decode(words[:0], state)[0]) == []


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("name", "words", "triggers"),
    [
        ("2", EVT2_WORDS, EVT2_TRIGGERS),
        ("2.1", EVT21_WORDS, EVT21_TRIGGERS),
        ("2.1 legacy", swapped(EVT21_WORDS), EVT21_TRIGGERS),
        ("3", EVT3_WORDS, EVT3_TRIGGERS),
        ("4", EVT4_WORDS, EVT4_TRIGGERS),
    ],
)
def test_triggers_by_hand_in_blocks_of_any_size(tmp_path, name, words, triggers, size):
    path = tmp_path / "events.raw"
    order = ";endianness=little" if name == "2.1" else ""
    header = f"% format EVT{name.split()[0]}{order};height=9;width=9\n% end\n"
    content = np.array(words, ENCODINGS[name].dtype)
    path.write_bytes(header.encode() + content.tobytes())
    blocks = -(-size * content.itemsize // 8) * 8
    assert RawEvents(path, block_bytes=blocks).triggers().tolist() == triggers


@pytest.mark.parametrize(
    ("name", "words", "lost"),
    [
        ("2", [1 << 28, 0, 8 << 28, 1 << 28], 2),
        ("2.1", [evt21(1, 0, 0, 0, 0b1011), 8 << 60, evt21(1, 0, 0, 0, 1)], 3),
        ("3", [1, 0x2000, 0x3000, 0x5000 | 0b11, 0x8001, 0x2000], 3),
        ("4", [0xB << 28, 0xC << 28, 0b101, 0xE << 28, 0xB << 28], 3),
    ],
)
def test_events_before_the_first_time_are_counted(tmp_path, name, words, lost):
    path = tmp_path / "events.raw"
    order = ";endianness=little" if name == "2.1" else ""
    header = f"% format EVT{name}{order};height=9;width=9\n% end\n".encode()
    path.write_bytes(header + np.array(words, ENCODINGS[name].dtype).tobytes())
    with pytest.warns(UserWarning, match=f"{lost} events stand before the first time and are left"):
        assert len(RawEvents(path).window(0, 2**40, 9, 9)) == 1


def test_a_vector_without_its_mask_at_the_end_has_no_events():
    words = np.array([0xE << 28 | 3, 0xD << 28 | 5], np.uint32)
    columns, state = decode_evt4(words, DecoderState())
    assert rows(columns) == [] and state.pending == 0xD << 28 | 5
    assert decode_evt21(words[:0].astype(np.uint64), DecoderState())[1] == DecoderState()
