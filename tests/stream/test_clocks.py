"""clocks.py: wrong times are refused by name, with a guess of their unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowfuse.stream.clocks import (
    RateCheck,
    check_event_times,
    check_frame_time,
    microseconds,
)


@pytest.mark.parametrize(
    ("value", "time"), [("20ms", 20_000), ("-0.5s", -500_000), ("0", 0), (7, 7), (np.int64(3), 3)]
)
def test_times_as_texts_and_numbers(value, time):
    assert microseconds("offset", value, least=-(10**9)) == time


@pytest.mark.parametrize("value", ["20", "fast", 0.5, True, None])
def test_no_times(value):
    with pytest.raises(ValueError, match=r"interval must be integer microseconds, or a text such"):
        microseconds("interval", value)


def test_too_short():
    with pytest.raises(ValueError, match="interval must be at least 4 us, got 3 us"):
        microseconds("interval", 3, least=4)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, float("nan")], r"t must be finite, got t\[1\] = nan"),
        ([0.01, 0.02], r"got float64 from 0.01 to 0.02 \(seconds\? give np.rint\(t \* 1e6\)"),
        ([10.0, 20.0], "whole numbers, perhaps microseconds"),
        ([1_700_000_000_000_000_000], r"nanoseconds\? give t // 1000"),
        ([[1, 2]], r"t must have shape \[N\], got \[1, 2\]"),
        ([True], "got dtype bool"),
    ],
)
def test_wrong_event_times(times, message):
    with pytest.raises(ValueError, match=message):
        check_event_times(times)


def test_event_times_are_taken():
    assert check_event_times(torch.tensor([3, 4])).tolist() == [3, 4]
    assert check_event_times([]).dtype == np.int64


@pytest.mark.parametrize(
    ("rate", "unit"), [(10_000, "milliseconds"), (200_000, "seconds"), (1_000, None)]
)
def test_more_events_than_any_sensor_gives(rate, unit):
    """``rate`` events in one tick of the clock: 10^7 a second in ms, 2 10^5 in s."""
    check, count = RateCheck(), max(60_000, 16 * rate + 1)
    times = np.arange(count) // rate
    if unit is None:
        for part in np.split(times, 10):
            check.add(part)
        return
    with pytest.raises(ValueError, match=rf"events within \d+ us, .*\({unit}\?"):
        check.add(times)


def test_a_sensor_that_reads_images_out_is_not_refused():
    """Many events of one time, with real time between them."""
    check = RateCheck()
    for image in range(40):
        check.add(np.full(30_000, 33_333 * image))


@pytest.mark.parametrize(
    ("time", "exposure", "message"),
    [
        (0.5, None, r"t must be integer microseconds, got 0.5; seconds\?"),
        (float("nan"), None, "t must be integer microseconds, got nan"),
        ("soon", None, "t must be integer microseconds, got 'soon'"),
        (5_000_000_000, None, r"events, which are at 5000000 us; got 5000000000 \(nanoseconds\?\)"),
        (5_100, None, r"\(milliseconds\?\)"),
        (5, None, r"\(seconds\?\)"),
        (2 * 10**18, None, "nanoseconds"),
        (5_000_000, -1, "exposure must not be negative, got -1 us"),
        (5_000_000, 0.008, r"exposure must be integer microseconds, got 0.008; seconds\?"),
    ],
)
def test_wrong_frame_times(time, exposure, message):
    with pytest.raises(ValueError, match=message):
        check_frame_time(time, exposure, 5_000_000)


def test_frame_times_are_taken():
    assert check_frame_time(np.int64(5_050_000), None, 5_000_000) == (5_050_000, None)
    assert check_frame_time(torch.tensor(7), 8_000, None) == (7, 8_000)
    assert check_frame_time(20, 0, 20_000) == (20, 0), "near zero, ratios say nothing"
