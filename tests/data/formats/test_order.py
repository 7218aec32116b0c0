"""Why times go back: overflows, resets, single events."""

from __future__ import annotations

import numpy as np
import pytest

from flowfuse.data.formats.order import TooManyStepsBackError, added_times, find_order

MINUTE = 60_000_000


def order_of(times):
    times = np.asarray(times, np.int64)
    return find_order(len(times), lambda first, end: times[first:end])


def test_sorted_times_are_in_order():
    for times in ([], [3], [1, 1, 2]):
        order = order_of(times)
        assert order.is_sorted and not order.wraps and order.describe_faults() == ""


@pytest.mark.parametrize(
    ("kind", "bits", "starts"),
    [(np.uint32, 32, 0), (np.int32, 32, 0), (np.uint32, 32, 70 * MINUTE)],
)
def test_a_counter_of_32_bits_goes_on(kind, bits, starts):
    true = starts + np.sort(np.random.default_rng(0).integers(0, 80 * MINUTE, 20_000))
    stored = true.astype(kind).astype(np.int64)
    order = order_of(stored)
    assert order.is_sorted and len(order.parts) == 1
    np.testing.assert_array_equal(stored + added_times(order.wraps, 0, len(true)), true)
    assert f"of 2^{bits} us (71.6 min) at event" in order.describe_wraps()


def test_a_counter_of_31_bits_overflows_twice():
    true = np.arange(0, 80 * MINUTE, 100_000)
    order = order_of(true % 2**31)
    np.testing.assert_array_equal(true % 2**31 + added_times(order.wraps, 0, len(true)), true)
    assert len(order.periods) == 2 and "2^31 us (35.8 min)" in order.describe_wraps()


def test_joined_recordings_are_parts():
    first, second = np.arange(0, 2_000_000, 100), np.arange(50, 3_000_000, 100)
    order = order_of(np.concatenate((first, second, first)))
    assert [(p.first, p.end) for p in order.parts] == [
        (0, 20_000),
        (20_000, 50_000),
        (50_000, 70_000),
    ]
    assert (order.parts[1].start, order.parts[1].last) == (50, 2_999_950)
    told = order.describe_faults()
    assert (
        "3 recordings were joined: part 1 has the events [0, 20000) from 0.000000 to 1.9999" in told
    )
    assert "--part 1" in told and "--split" in told


def test_an_overflow_before_a_reset_counts_in_its_part_only():
    first = np.arange(2**32 - 1_000_000, 2**32 + 1_000_000, 100)
    order = order_of(np.concatenate((first % 2**32, np.arange(0, 2_000_000, 100))))
    assert len(order.parts) == 2 and order.parts[0].last == first[-1]
    assert order.parts[1].start == 0 and added_times(order.wraps, 20_000, 20_001) == [0]


@pytest.mark.parametrize(
    ("place", "time"), [(1000, 3), (1000, 10**9), (1000, 9_989), (1, 10**6), (1999, 0)]
)
def test_a_single_event_out_of_place(place, time):
    times = 10 * np.arange(2000)
    times[place] = time
    order = order_of(times)
    assert order.dropped == [place] and len(order.parts) == 1
    assert "1 of 2000 events is out of order" in order.describe_faults()
    assert "--repair drops it" in order.describe_faults()


def test_a_wrong_bit_is_no_overflow():
    times = 10 * np.arange(2000)
    times[700] += 2**32
    assert order_of(times).dropped == [700]


def test_times_without_order():
    rng = np.random.default_rng(0)
    few = order_of(rng.integers(0, 10**6, 500))
    assert not few.is_repairable and "sort the events by time" in few.describe_faults()
    with pytest.raises(TooManyStepsBackError, match="more than 10000 times, at first at event"):
        order_of(rng.integers(0, 10**6, 100_000))
