"""policy.py: thinning, counted and the same for any packets."""

from __future__ import annotations

import numpy as np
import pytest
from stream_cases import HEIGHT, WIDTH, columns, make_events

from flowfuse.events import Events
from flowfuse.stream.policy import Thinner


def busy(seconds: float = 0.2, rate: float = 2e6) -> Events:
    return make_events(0, int(seconds * 1e6), int(seconds * rate))


def test_slow_events_all_stay():
    events = busy(rate=1e5)
    assert Thinner(HEIGHT, WIDTH, 5e5)(events) is events


def test_the_rate_comes_down():
    events, thinner = busy(), Thinner(HEIGHT, WIDTH, 2e5)
    kept = thinner(events)
    later = kept.slice_time(100_000, 200_000)
    assert 0.05 * 2e5 < len(later) / 0.1 < 2e5
    assert thinner.blind > 0
    # Every pixel that fires stays lit: only repeated events go.
    lit = {(x, y) for x, y in zip(later.x.tolist(), later.y.tolist(), strict=True)}
    assert len(lit) == HEIGHT * WIDTH


def test_a_pixel_counts_once_in_a_time_by_hand():
    thinner = Thinner(HEIGHT, WIDTH, 1.0)
    thinner(Events([0], [0], [0], [1]))
    # A budget of less than an event: in the next look, times of 500 us.
    t = [10_000, 10_100, 10_400, 10_600, 10_700]
    events = Events([3, 3, 3, 3, 4], [2] * 5, t, [1, 1, 0, 1, 1])
    kept = thinner(events)
    assert kept.t.tolist() == [10_000, 10_400, 10_600, 10_700] and thinner.blind == 500
    quiet = make_events(1_000_000, 1_050_000, 6)
    thinner.rate = 1e6
    assert len(thinner(quiet)) >= 5 and thinner.blind == 0, "it ends when it is calm again"


@pytest.mark.parametrize("packet", [1, 999, 20_000])
def test_packets_change_nothing(packet):
    events = busy(0.05)
    whole = Thinner(HEIGHT, WIDTH, 3e5)(events)
    packet = max(packet, len(events) // 300)
    thinner = Thinner(HEIGHT, WIDTH, 3e5)
    parts = [thinner(events[i : i + packet]) for i in range(0, len(events), packet)]
    found = Events.concatenate(parts)
    assert 0 < len(whole) < len(events)
    for a, b in zip(columns(whole), columns(found), strict=True):
        assert np.array_equal(a, b)
