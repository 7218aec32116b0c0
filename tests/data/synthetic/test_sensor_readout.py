from __future__ import annotations

import numpy as np
import pytest

from flowfuse.data.synthetic.sensor_readout import ReadoutConfig, read_out
from flowfuse.events import Events


def events_at(times: list[int] | np.ndarray) -> Events:
    number = np.arange(len(times))
    return Events(number % 5, number // 5 % 4, np.asarray(times), number % 2, height=4, width=5)


def read(events: Events, end: int = 10**6, **settings) -> Events:
    rng = np.random.default_rng(0)
    return read_out(events, ReadoutConfig(**settings), rng, start=0, end=end)


def test_perfect_readout_changes_nothing():
    events = events_at([0, 3, 3, 999])
    assert read(events) is events


def test_batches_by_hand():
    events = read(events_at([0, 1, 100, 101, 199, 250]), end=250, batch_us=100)
    # Stamped at the next multiple; the last batch, at 300, is read after the end of the recording.
    assert events.t.tolist() == [0, 100, 100, 200, 200]
    assert events.x.tolist() == [0, 1, 2, 3, 4] and events.p.tolist() == [0, 1, 0, 1, 0]


def test_rate_is_capped_in_every_millisecond():
    # 20 pixels x 250 Hz x 1 ms: 5 events a bin. The bins hold 40, 3 and 40.
    times = np.concatenate((np.arange(0, 1000, 25), (1100, 1200, 1300), np.arange(2000, 3000, 25)))
    events = read(events_at(times), rate_cap_hz=250.0)
    assert np.bincount(events.t // 1000).tolist() == [5, 3, 5]
    # What is left are events that were there, lost ones lie anywhere in their bin.
    given = {(t, i % 5, i // 5 % 4) for i, t in enumerate(times.tolist())}
    assert set(zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), strict=True)) <= given
    lost = [np.setdiff1d(times[:40], read_out_times(seed, times)) for seed in range(40)]
    assert np.mean(np.concatenate(lost)) == pytest.approx(487.5, abs=30)


def read_out_times(seed: int, times: np.ndarray) -> np.ndarray:
    config = ReadoutConfig(rate_cap_hz=250.0)
    rng = np.random.default_rng(seed)
    return read_out(events_at(times), config, rng, start=0, end=10**6).t


def test_jitter_is_bounded_and_the_order_restored():
    times = np.arange(200, 20_200, 10)
    events = events_at(times)
    shaken = read(events, jitter_us=80)
    assert len(shaken) == len(events) and (np.diff(shaken.t) >= 0).all()
    # x, y and p go with their time stamp: match each pixel's events, 20 apart in number, 200 us in
    # time, so that they stay in order.
    off = []
    for x in range(5):
        before, after = (e.t[(e.x == x) & (e.y == 2)] for e in (events, shaken))
        off.append(after - before)
    off = np.concatenate(off)
    assert np.abs(off).max() <= 80 and np.abs(off).max() > 60
    assert off.mean() == pytest.approx(0, abs=8)  # 500 events, deviation 46: four standard errors
    # What is shaken out of the recording is lost.
    assert read(events_at(np.zeros(400, np.int64)), jitter_us=50).t.min() >= 0


def test_no_events_and_same_seed_same_events():
    assert len(read(Events.empty(4, 5), jitter_us=5, rate_cap_hz=1.0, batch_us=7)) == 0
    events = events_at(np.arange(0, 9000, 3))
    settings = {"jitter_us": 40, "rate_cap_hz": 900.0, "batch_us": 30}
    first, second = (read(events, **settings) for _ in range(2))
    for name in "xytp":
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.t % 30 == 0).all() and 0 < len(first) < len(events)


@pytest.mark.parametrize("change", [{"jitter_us": -1}, {"rate_cap_hz": 0.0}, {"batch_us": 0}])
def test_bad_settings_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ReadoutConfig(**change)
