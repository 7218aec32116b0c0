"""buffers.py: what is kept, in constant memory."""

from __future__ import annotations

import numpy as np
import pytest
from stream_cases import HEIGHT, WIDTH, columns, make_events, make_frame

from flowfuse.events import Events
from flowfuse.stream.buffers import EventBuffer, FrameBuffer, StoredFrame


def one(t: int, x: int = 0) -> Events:
    return Events([x], [0], [t], [1], height=HEIGHT, width=WIDTH)


def same(a: Events, b: Events) -> bool:
    return all(np.array_equal(u, v) for u, v in zip(columns(a), columns(b), strict=True))


@pytest.mark.parametrize("packet", [1, 7, 64, 100])
def test_the_newest_events_are_kept(packet):
    events, buffer = make_events(0, 5_000, 1000), EventBuffer(HEIGHT, WIDTH, 100)
    assert buffer.last is None and len(buffer.between(0, 10**9)) == 0
    lost, taken = 0, []
    for first in range(0, 1000, packet):
        lost += buffer.append(events[first : first + packet])
        taken.append(buffer._columns["t"].ctypes.data)
        assert same(buffer.between(0, 10**9), events[: first + packet][-100:])
    assert lost == 900 and len(buffer) == 100
    assert len(set(taken)) == 1, "the memory stays where it is"
    assert buffer.complete_from == events.t[899] + 1
    assert buffer.first == events.t[900] and buffer.last == events.t[999]
    part = events.slice_time(4_800, 4_900)
    assert same(buffer.between(4_800, 4_900), part) and buffer.count(4_800, 4_900) == len(part)
    assert buffer.first_from(4_800) == part.t[0] and buffer.first_from(9_999) is None


def test_what_was_copied_is_not_overwritten():
    buffer = EventBuffer(HEIGHT, WIDTH, 2)
    buffer.append(one(1))
    copy = buffer.between(0, 10)
    for t in range(2, 9):
        buffer.append(one(t, x=3))
    assert copy.t.tolist() == [1] and copy.x.tolist() == [0]


def test_late_events_find_their_place():
    buffer = EventBuffer(HEIGHT, WIDTH, 4)
    for t in (10, 20, 30):
        buffer.append(one(t))
    assert buffer.merge(Events([1, 1], [0, 0], [15, 20], [0, 0])) == 1
    assert buffer.between(0, 99).t.tolist() == [15, 20, 20, 30]
    assert buffer.between(0, 99).x.tolist() == [1, 0, 1, 0], "those that came first stay first"
    assert buffer.complete_from == 11


def test_repeated_packets_are_known():
    events, buffer = make_events(0, 1_000, 50), EventBuffer(HEIGHT, WIDTH, 100)
    buffer.append(events)
    assert buffer.is_repeated(events) and buffer.is_repeated(events.slice_time(200, 500))
    other = Events(*columns(events)[:3], 1 - events.p, height=HEIGHT, width=WIDTH)
    assert not buffer.is_repeated(other) and not buffer.is_repeated(one(500))


def test_one_kind_of_coordinates():
    buffer = EventBuffer(HEIGHT, WIDTH, 4)
    buffer.append(one(1))
    with pytest.raises(ValueError, match=r"fractional \(float32\), those of the packets before wh"):
        buffer.append(Events([0.5], [0.5], [2], [1]))


def test_frames_are_sorted_and_few():
    buffer = FrameBuffer(3)
    for t in (10, 30, 20):
        assert buffer.insert(StoredFrame(t, make_frame(t), 5)) is None
    assert [frame.t for frame in buffer.from_time(0)] == [10, 20, 30]
    assert [frame.t for frame in buffer.from_time(15)] == [20, 30]
    assert buffer.insert(StoredFrame(40, make_frame(0))).t == 10
    assert buffer.insert(StoredFrame(5, make_frame(0))).t == 5, "older than all: it is not kept"
    assert buffer.nearest(30, 0) is not None and buffer.nearest(10, 0) is None
    assert buffer.last == 40
    assert buffer.nearest(31, 2).t == 30 and buffer.nearest(25, 2) is None
    assert buffer.from_time(20)[0].half == 2 and buffer.from_time(40)[0].half == 0
