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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.arange(0, 5_000_000, 10_000), np.arange(0, 6_000_000, 10)),  # 500 events, then many
        (np.arange(0, 5_000_000, 10_000), np.arange(0, 6_000_000, 10_000)),  # few, and few
        (np.arange(0, 5_000_000, 10_000), np.arange(3_000_000, 4_500_000, 5_000)),  # in its middle
        (np.arange(0, 5_000_000, 10), np.arange(0, 4_000_000, 100_000)),  # a short end
        (np.arange(1_000_000, 1_001_000, 20), np.arange(0, 9_000_000, 100)),
    ],
)
def test_short_recordings_that_were_joined_are_parts(first, second):
    order = order_of(np.concatenate((first, second)))
    assert [(p.first, p.end) for p in order.parts] == [
        (0, len(first)),
        (len(first), len(first) + len(second)),
    ]
    assert not order.dropped and "2 recordings were joined" in order.describe_faults()


def test_three_short_recordings_that_were_joined_are_parts():
    one = np.arange(0, 5_000_000, 20_000)
    order = order_of(np.concatenate((one, one + 1000, one)))
    assert [(p.first, p.end) for p in order.parts] == [(0, 250), (250, 500), (500, 750)]


def test_packets_that_were_swapped_are_out_of_order():
    times = 10 * np.arange(100_000)
    swapped = np.concatenate((times[:50_000], times[50_300:50_700], times[50_000:50_300]))
    order = order_of(np.concatenate((swapped, times[50_700:])))
    assert len(order.parts) == 1 and order.dropped == list(range(50_400, 50_700))


def test_a_packet_with_a_wrong_bit_is_out_of_order():
    times = 10 * np.arange(100_000)
    times[50_000:50_050] += 4096
    order = order_of(times)
    assert len(order.parts) == 1 and order.dropped == list(range(50_000, 50_050))
