"""The words of Prophesee's streams: what all encodings share, EVT 2.1, EVT 4.0, and triggers.

:mod:`flowfuse.data.formats.prophesee_raw` has EVT 2.0 and EVT 3.0, and reads files.

Source of the bit layouts: "EVT 2.1 Format" and "EVT 3.0 Format", docs.prophesee.ai, and the public
decoders of OpenEB (EVT 4.0 has no page).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, y, t, p
BITS = 32  # of the clock in words of 64 bits
_LEAST_BACK = (1 << BITS) - (1 << BITS) // 400  # us: less of a step back is a reset, no overflow


@dataclass(frozen=True)
class DecoderState:
    """What the words before a place have set.

    Attributes:
        high: the last upper bits of the time, as in the word; -1 before the first.
        loops: how often they have wrapped around.
        low: EVT 3.0: the last lower 12 bits of the time.
        y: EVT 3.0: the row.
        x: EVT 3.0: the column of the next vector.
        polarity: EVT 3.0: of vectors.
        pending: EVT 4.0: the start of a vector whose mask comes next; -1 where none does.
    """

    high: int = -1
    loops: int = 0
    low: int = 0
    y: int = 0
    x: int = 0
    polarity: int = 0
    pending: int = -1


Decoder = Callable[[np.ndarray, DecoderState], tuple[Columns, DecoderState]]


def count_untimed(decode: Decoder, words: np.ndarray, state: DecoderState) -> int:
    """How many events a decoder leaves out since no word has set the time before them."""
    if state.high >= 0:
        return 0
    timed = decode(words, replace(state, high=0))[0]
    return len(timed[2]) - len(decode(words, state)[0][2])


def hold(sets: np.ndarray, value: np.ndarray, initial: int) -> np.ndarray:
    """[N] int64: at each word, the value of the last word that sets it; before, the initial one."""
    place = np.maximum.accumulate(np.where(sets, np.arange(len(sets)), -1))
    return np.where(place >= 0, value[place], initial).astype(np.int64)


def times_high(
    sets: np.ndarray, value: np.ndarray, state: DecoderState, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """The upper bits of the time at each word (-1 before the first), and their wraps, [N] int64."""
    places = np.flatnonzero(sets)
    values = value[places].astype(np.int64)
    before = np.concatenate(((state.high,), values[:-1]))[: len(values)]
    # A step back by more than half of the range is a wrap; a smaller one is not.
    wraps = state.loops + np.cumsum(before - values > 1 << (bits - 1))
    high, loops = np.zeros(len(sets), np.int64), np.zeros(len(sets), np.int64)
    high[places], loops[places] = values, wraps
    return hold(sets, high, state.high), hold(sets, loops, state.loops)


def times_32_bits(words: np.ndarray, state: DecoderState) -> tuple[np.ndarray, DecoderState]:
    """The times of words of 64 bits with a time in their lower half, overflows undone.

    Args:
        words: [N] uint64.
        state: before the first word; ``high`` is the last time as in the file.

    Returns:
        [N] int64 microseconds; the state after the last word.
    """
    low = (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
    before = np.concatenate(((state.high,), low[:-1]))[: len(low)]
    loops = state.loops + np.cumsum(before - low >= _LEAST_BACK)
    if len(words):
        state = DecoderState(high=int(low[-1]), loops=int(loops[-1]))
    return loops << BITS | low, state


def decode_evt21(words: np.ndarray, state: DecoderState) -> tuple[Columns, DecoderState]:
    """Decode 64-bit words of EVT 2.1.

    Bits 63-60 are the type. 0 and 1, OFF and ON events: bits 59-54 are the lower 6 bits of the time
    in microseconds, 53-43 a column, 42-32 the row, 31-0 the pixels from that column on, a bit for
    each that fired. 8: bits 59-32 are the upper bits of the time. Other words are passed over.

    Args:
        words: [N] uint64.
        state: before the first word.

    Returns:
        x, y, t, p of the events, t int64 microseconds; events before the first time are left out;
        the state after the last word.
    """
    upper = (words >> np.uint64(32)).astype(np.uint32)
    kind = upper >> 28
    high, loops = times_high(kind == 8, upper & 0xFFFFFFF, state, 28)
    found = (kind <= 1) & (high >= 0)
    masks = (words[found] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    columns = _expand(upper[found], masks, kind[found], high[found], loops[found])
    if len(words):
        state = replace(state, high=int(high[-1]), loops=int(loops[-1]))
    return columns, state


def decode_evt21_legacy(words: np.ndarray, state: DecoderState) -> tuple[Columns, DecoderState]:
    """Decode EVT 2.1 as older cameras write it: with the halves of each word swapped."""
    return decode_evt21(swap_halves(words), state)


def swap_halves(words: np.ndarray) -> np.ndarray:
    """[N] uint64: the upper 32 bits of each word below the lower ones."""
    return (words >> np.uint64(32)) | (words << np.uint64(32))


def decode_evt4(words: np.ndarray, state: DecoderState) -> tuple[Columns, DecoderState]:
    """Decode 32-bit words of EVT 4.0.

    Bits 31-28 are the type. 10 and 11, an OFF and an ON event: bits 27-22 are the lower 6 bits of
    the time in microseconds, 21-11 the column, 10-0 the row. 12 and 13, OFF and ON events: the
    same, and the next word has a bit for each pixel from that column on that fired. 14: bits 27-0
    are the upper bits of the time. Other words are passed over.

    Args and returns as of :func:`decode_evt21`, with words [N] uint32.
    """
    words, heads = _split_vectors(words, state)
    is_mask = np.concatenate(((False,), heads[:-1]))[: len(words)]
    kind = np.where(is_mask, 15, words >> 28)
    high, loops = times_high(kind == 14, words & 0xFFFFFFF, state, 28)
    pending = -1
    if len(words):
        state = replace(state, high=int(high[-1]), loops=int(loops[-1]))
        if heads[-1]:
            pending, heads[-1] = int(words[-1]), False
    state = replace(state, pending=pending)
    single = (kind == 10) | (kind == 11)
    found = np.flatnonzero((single | heads) & (high >= 0))
    masks = np.ones(len(found), np.uint32)
    vectors = heads[found]
    masks[vectors] = words[found[vectors] + 1]
    return _expand(words[found], masks, kind[found] & 1, high[found], loops[found]), state


def _split_vectors(words: np.ndarray, state: DecoderState) -> tuple[np.ndarray, np.ndarray]:
    """The words, with the one that the last block left unfinished, and which start a vector.

    The word behind a start is a mask, whatever its type looks like: in a row of words that look
    like starts, every second one is.
    """
    if state.pending >= 0:
        words = np.concatenate((np.array([state.pending], words.dtype), words))
    looks = (words >> 28 == 12) | (words >> 28 == 13)
    places = np.arange(len(words))
    row = np.maximum.accumulate(np.where(looks, -1, places))  # the last word of another kind
    return words, looks & ((places - row) % 2 == 1)


def _expand(
    word: np.ndarray, masks: np.ndarray, kind: np.ndarray, high: np.ndarray, loops: np.ndarray
) -> Columns:
    """The events of words that have low time, column and row in the bits of EVT 2.0."""
    octets = masks.astype("<u4").view(np.uint8).reshape(-1, 4)
    row, bit = np.nonzero(np.unpackbits(octets, axis=1, bitorder="little"))
    t = ((loops << 28 | high) << 6) | (word >> 22 & 0x3F).astype(np.int64)
    x = (word >> 11 & 0x7FF).astype(np.int32)[row] + bit.astype(np.int32)
    y = (word & 0x7FF).astype(np.int32)[row]
    return x, y, t[row], kind[row].astype(np.uint8)


# What a trigger is: its time in microseconds, whether it rose (1) or fell (0), its input.
TRIGGER = np.dtype([("t", "<i8"), ("p", "u1"), ("id", "u1")])


def triggers_evt2(words: np.ndarray, state: DecoderState) -> np.ndarray:
    """Triggers of EVT 2.0: words of type 10, bit 0 the edge, bits 12-8 the input; [N] TRIGGER."""
    return _triggers(words, words >> 28 == 10, words >> 28 == 8, state)


def triggers_evt21(words: np.ndarray, state: DecoderState) -> np.ndarray:
    """Triggers of EVT 2.1: as of EVT 2.0, in the upper half; the edge is bit 32."""
    return triggers_evt2((words >> np.uint64(32)).astype(np.uint32), state)


def triggers_evt21_legacy(words: np.ndarray, state: DecoderState) -> np.ndarray:
    """Triggers of EVT 2.1 with swapped halves."""
    return triggers_evt21(swap_halves(words), state)


def triggers_evt4(words: np.ndarray, state: DecoderState) -> np.ndarray:
    """Triggers of EVT 4.0: words of type 9, with the bits of EVT 2.0."""
    words, heads = _split_vectors(words, state)
    own = ~np.concatenate(((False,), heads[:-1]))[: len(words)]
    return _triggers(words, own & (words >> 28 == 9), own & (words >> 28 == 14), state)


def triggers_evt3(words: np.ndarray, state: DecoderState) -> np.ndarray:
    """Triggers of EVT 3.0: words of type 10, bit 0 the edge, bits 11-8 the input."""
    if not len(words):
        return np.empty(0, TRIGGER)
    kind, value = words >> 12, (words & 0xFFF).astype(np.int64)
    t, high, _ = times_evt3(kind, value, state)
    places = np.flatnonzero((kind == 10) & (high >= 0))
    return _as_triggers(t[places], value[places] & 1, value[places] >> 8)


def times_evt3(
    kind: np.ndarray, value: np.ndarray, state: DecoderState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The time at each word of EVT 3.0, its upper bits (-1 before the first) and their wraps."""
    high, loops = times_high(kind == 8, value, state, 12)
    # New upper bits start the lower ones at 0; repeated ones change nothing.
    begun = np.concatenate(((state.high,), high[:-1])) != high
    low = hold((kind == 6) | begun, np.where(kind == 6, value, 0), state.low)
    return (loops << 12 | high) << 12 | low, high, loops


def _triggers(
    words: np.ndarray, found: np.ndarray, sets_time: np.ndarray, state: DecoderState
) -> np.ndarray:
    high, loops = times_high(sets_time, words & 0xFFFFFFF, state, 28)
    places = np.flatnonzero(found & (high >= 0))
    word = words[places].astype(np.int64)
    t = ((loops[places] << 28 | high[places]) << 6) | (word >> 22 & 0x3F)
    return _as_triggers(t, word & 1, word >> 8 & 0x1F)


def _as_triggers(t: np.ndarray, edge: np.ndarray, channel: np.ndarray) -> np.ndarray:
    triggers = np.empty(len(t), TRIGGER)
    triggers["t"], triggers["p"], triggers["id"] = t, edge, channel
    return triggers
