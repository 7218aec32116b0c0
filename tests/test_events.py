"""Events: what is accepted, what is kept, and the message for each fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowfuse.events import Events


def make(**changes):
    given = {"x": [1, 2, 3], "y": [0, 1, 2], "t": [5, 5, 9], "p": [0, 1, 1]}
    return Events(**{**given, "height": 3, "width": 4, **changes})


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
@pytest.mark.parametrize("p", [[0, 1, 1], [-1, 1, 1], [False, True, True], [-1.0, 1.0, 1.0]])
def test_inputs_are_converted(convert, p):
    events = make(x=convert([1, 2, 3]), t=convert([5, 5, 9]), p=convert(p))
    assert events.t.dtype == np.int64 and events.p.dtype == np.uint8 and events.x.dtype == np.int32
    assert events.p.tolist() == [0, 1, 1] and events.x.tolist() == [1, 2, 3] and len(events) == 3


def test_inputs_are_kept_without_a_copy_and_unchanged():
    x, t = np.array([1, 2, 3], np.int32), np.array([5, 5, 9])
    p = np.array([-1, 1, 1], np.int8)
    events = make(x=x, t=t, p=p)
    assert np.shares_memory(events.x, x) and np.shares_memory(events.t, t)
    assert p.tolist() == [-1, 1, 1]


def test_mixed_integer_coordinates_become_one_type():
    x, y = np.array([1, 2, 3], np.uint16), np.array([0, 1, 1], np.int64)
    events = Events(x, y, [5, 5, 9], [0, 1, 1], height=3, width=4)
    assert events.x.dtype == events.y.dtype == np.int32
    assert events.x.tolist() == [1, 2, 3] and events.y.tolist() == [0, 1, 1]


def test_rectified_coordinates():
    events = make(x=[-0.5, 1.25, 3.75])
    assert events.x.dtype == events.y.dtype == np.float32


def test_windows_are_half_open_views():
    events = make(t=[5, 5, 9])
    assert [len(events.slice_time(*w)) for w in [(5, 9), (5, 10), (6, 9), (0, 5), (9, 5)]] == [
        2,
        3,
        0,
        0,
        0,
    ]
    window = events.slice_time(6, 10)
    assert window.t.tolist() == [9] and window.height == 3 and np.shares_memory(window.t, events.t)


def test_empty_and_single():
    for events in (Events([], [], [], []), Events.empty(3, 4)):
        assert len(events) == 0 and len(events.slice_time(0, 9)) == 0
        assert (events.x.dtype, events.t.dtype, events.p.dtype) == (np.uint16, np.int64, np.uint8)
    assert len(make(x=[1], y=[1], t=[0], p=[1])) == 1


def test_concatenate():
    joined = Events.concatenate([make(), Events.empty(3, 4), make(t=[9, 10, 11])])
    assert joined.t.tolist() == [5, 5, 9, 9, 10, 11] and joined.width == 4
    assert joined.x.dtype == np.int32
    with pytest.raises(ValueError, match=r"t\[3\] = 5 us after t\[2\] = 9 us"):
        Events.concatenate([make(), make()])
    with pytest.raises(ValueError, match="different sensors: 4 x 3, 5 x 3"):
        Events.concatenate([make(), make(width=5, t=[9, 9, 9])])
    with pytest.raises(ValueError, match="nothing to join"):
        Events.concatenate([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [1, 2]}, "same length, got x has 2, y has 3, t has 3, p has 3"),
        ({"x": [[1, 2, 3]]}, r"x must have shape \[N\], got \[1, 3\]"),
        ({"x": ["a", "b", "c"]}, "x must hold numbers"),
        ({"t": [5, 9, 8]}, r"t must be sorted, got t\[2\] = 8 us after t\[1\] = 9 us"),
        ({"t": [-1, 0, 0]}, r"must not be negative, got t\[0\] = -1 us"),
        ({"t": [0.1, 0.2, 0.3]}, "t must be integer microseconds, got dtype float64"),
        ({"t": np.array([0, 1, 2**63], np.uint64)}, r"t\[2\] = 9223372036854775808 us"),
        ({"y": [0, np.nan, 1]}, r"y must be finite, got y\[1\] = nan"),
        ({"x": [0, 1, 1e300]}, r"x must be finite, got x\[2\] = 1e\+300, beyond float32"),
        ({"x": [0, 4, 1]}, r"x\[1\] = 4 lies outside the sensor, expected 0 <= x < 4 .* 4 x 3 px"),
        ({"y": [0, -1, 1]}, r"y\[1\] = -1 lies outside"),
        ({"y": [0, 1, 3.0]}, r"y\[2\] = 3.0 lies outside the sensor, expected -1 < y < 3"),
        ({"x": [0, 1, 2**40]}, r"x\[2\] = 1099511627776 does not fit int32"),
        ({"x": [True] * 3}, "got dtype bool"),
        ({"p": [0, 2, 1]}, r"\{0, 1\} or \{-1, 1\}, got p\[1\] = 2"),
        ({"p": [0, 1, -1]}, "mixes 0 .first at index 0. and -1 .first at index 2."),
        ({"p": [0, np.nan, 1]}, r"got p\[1\] = nan"),
        ({"width": 0}, "width must be a positive integer, got 0"),
    ],
)
def test_faults_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_negative_pixels_are_faults_even_of_an_unknown_sensor():
    with pytest.raises(ValueError, match=r"x\[0\] = -1 lies outside the sensor, expected 0 <= x$"):
        Events([-1], [0], [0], [1])


def test_parts_keep_the_order():
    events = Events([1, 2, 3, 4], [0] * 4, [5, 6, 7, 8], [0, 1, 0, 1], height=2, width=6)
    part = events[1:3]
    assert part.t.tolist() == [6, 7] and (part.height, part.width) == (2, 6)
    assert np.shares_memory(part.x, events.x)
    assert events[events.p == 1].x.tolist() == [2, 4] and len(events[4:]) == 0
    for wrong in (0, [0, 1], slice(None, None, -1), np.array([1, 0])):
        with pytest.raises(ValueError, match="expected a forward slice or a mask"):
            events[wrong]
