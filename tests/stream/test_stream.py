"""stream.py: what is pushed comes out as flow; late, repeated and impossible times."""

from __future__ import annotations

import dataclasses
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from stream_cases import HEIGHT, SLICES, WIDTH, columns, make_estimator, make_events, make_frame

import flowfuse
from flowfuse.data.opening import open_recording
from flowfuse.estimator.running import NetworkRunner
from flowfuse.events import Events
from flowfuse.result import Result
from flowfuse.runner import (
    FrameReader,
    estimate_interval,
    plan_fixed_rate,
    plan_frame_pairs,
)
from flowfuse.stream import estimates
from flowfuse.stream.settings import StreamSettings
from flowfuse.stream.stream import Stream

SETTINGS = {field.name for field in dataclasses.fields(StreamSettings)}
STEP = 10_000  # us
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def estimator():
    return make_estimator()


@pytest.fixture
def stream(estimator):
    """Streams of the tiny sensor; closed in the end, so that no thread stays."""
    made: list[Stream] = []

    def make(**options) -> Stream:
        own = {name: options.pop(name) for name in SETTINGS & options.keys()}
        size = {"height": HEIGHT, "width": WIDTH}
        made.append(Stream(estimator, **size | options, settings=StreamSettings(**own)))
        return made[-1]

    yield make
    for one in made:
        one._intake.failure = None
        one.close()


def same(result: Result, other: Result) -> bool:
    return (result.t0, result.t1, result.modalities) == (other.t0, other.t1, other.modalities) and (
        np.array_equal(result.control_points, other.control_points)
        and np.array_equal(result.uncertainty, other.uncertainty)
        and np.array_equal(result.boundary, other.boundary)
    )


def spans(results) -> list[tuple[int, int]]:
    return [(result.t0, result.t1) for result in results]


# The flow of a recording


def replay(stream: Stream, recording, packet: int) -> None:
    """Push a recording as it came: packets of events, and each frame when its time has come."""
    events = recording.events(0, 10**9)
    exposures = recording.exposures
    waiting = list(range(len(recording.frame_times)))

    def push_frames(until: float) -> None:
        while waiting and recording.frame_times[waiting[0]] <= until:
            index = waiting.pop(0)
            length = int(exposures[index][1] - exposures[index][0])
            image, time = recording.frame(index), int(recording.frame_times[index])
            stream.push_frame(image, time, length)
            image[:] = 0  # it was copied

    for first in range(0, len(events), packet):
        part = events[first : first + packet]
        push_frames(part.t[0])
        stream.push_events(*columns(part))
    push_frames(np.inf)


@pytest.mark.parametrize("packet", [1_009, 50_000])
def test_the_same_bits_as_from_the_recording(packet):
    """The shipped network on the shipped recording, from frame to frame."""
    recording = open_recording(flowfuse.sample_recording())
    estimator = flowfuse.load("small")
    reader = FrameReader(recording)
    expected = [
        estimate_interval(estimator, recording, reader, window, None)[0]
        for window in plan_frame_pairs(recording)
    ]
    size = {"height": recording.height, "width": recording.width}
    stream = Stream(estimator, policy="all", **size)
    replay(stream, recording, packet)
    stream.close()
    results = list(stream)
    assert len(results) == 3
    assert all(map(same, results, expected))
    assert stream.stats.events == 175_558 and stream.stats.intervals == 3
    assert stream.stats.events_dropped == 0 and stream.stats.intervals_skipped == 0


def test_the_same_bits_from_events_alone():
    recording = open_recording(flowfuse.sample_recording())
    estimator = flowfuse.load("small")
    windows = plan_fixed_rate(recording, 30_000)
    expected = [
        estimate_interval(estimator, recording, FrameReader(recording), window, None)[0]
        for window in windows
    ]
    size = {"height": recording.height, "width": recording.width}
    settings = StreamSettings(memory=110_000)
    stream = Stream(estimator, policy="all", interval="30ms", settings=settings, **size)
    results = []
    events = recording.events(0, 10**9)
    for first in range(0, len(events), 10_000):
        stream.push(events[first : first + 10_000])
        while (result := stream.take(0)) is not None:
            results.append(result)
    stream.close()
    results += stream
    assert len(results) == len(windows) == 2
    assert all(map(same, results, expected))


# When an interval is due


def test_an_interval_is_due_when_its_events_have_come(stream):
    one = stream(interval=STEP)
    events = make_events(5_000, 40_000)
    assert one.take(0) is None and one.latest() is None
    one.push(events.slice_time(0, 15_000))
    assert one.take(0) is None, "more may come at the last time"
    one.push(Events([0], [0], [15_000], [1]))
    assert spans([one.take(0)]) == [(5_000, 15_000)] and one.take(0) is None
    one.push(events.slice_time(15_000, 40_000))
    one.close()
    assert spans(one) == [(25_000, 35_000)], "the newest; the one before was passed over"
    assert one.stats.intervals_skipped == 1 and one.stats.intervals == 2


def test_every_interval_with_policy_all(stream):
    one = stream(interval=STEP, every=4_000, policy="all")
    one.push(make_events(5_000, 28_000))
    one.close()
    assert spans(one) == [(5_000, 15_000), (9_000, 19_000), (13_000, 23_000), (17_000, 27_000)]
    assert one.timing.latency >= one.timing.estimate > 0


def test_empty_intervals_are_passed_over_at_once(stream):
    one = stream(interval=STEP, policy="all")
    one.push(make_events(0, 10_000))
    one.push(make_events(10**13, 10**13 + 15_000))
    one.close()
    assert spans(one) == [(0, 10_000), (10**13, 10**13 + 10_000)]
    assert one.stats.intervals_empty == 10**9 - 1


def test_a_silent_sensor(stream):
    """What says that no event comes any more: a later frame, or advance()."""
    one = stream(tolerance="5ms")
    one.push_frame(make_frame(0), 1_000)
    one.push_frame(make_frame(1), 11_000)
    assert one.take(0) is None
    one.push_frame(make_frame(2), 16_000)
    result = one.take(0)
    assert spans([result]) == [(1_000, 11_000)] and result.modalities == ("frames",)
    one.advance(16_000)
    assert spans([one.take(0)]) == [(11_000, 16_000)]


def test_events_of_an_exposure_are_waited_for(stream, estimator):
    one, events = stream(), make_events(0, 30_000)
    for index, t in enumerate((5_000, 15_000)):
        one.push_frame(make_frame(index), t, 4_000)
    one.push(events.slice_time(0, 16_000))
    assert one.take(0) is None
    one.push(events.slice_time(16_000, 30_000))
    expected = estimator(
        make_frame(0), make_frame(1), events, t0=5_000, t1=15_000, exposure0=4_000, exposure1=4_000
    )
    assert same(one.take(0), expected)


def test_fixed_intervals_use_frames_at_their_limits(stream, estimator):
    one, events = stream(interval=STEP, policy="all", slack="1ms"), make_events(0, 40_000)
    one.push(events.slice_time(0, 5_000))
    for index, t in enumerate((400, 10_300, 25_000)):
        one.push_frame(make_frame(index), t)
    one.push(events.slice_time(5_000, 40_000))
    first, second, third = one.take(0), one.take(0), one.take(0)
    expected = estimator(make_frame(0), make_frame(1), events, t0=0, t1=STEP)
    assert same(first, expected)
    # A frame near the start alone: this network can use it.
    assert same(second, estimator(make_frame(1), None, events, t0=STEP, t1=2 * STEP))
    assert second.modalities == ("frame0", "events") and third.modalities == ("events",)
    assert one.frame(25_000).tolist() == make_frame(2).tolist() and one.frame(30_000) is None


def test_any_past_interval(stream, estimator):
    one, events = stream(interval=STEP, memory=200), make_events(0, 40_000)
    one.push(events)
    kept = int(events.t[200])
    result = one.flow(33_000, 39_000)
    assert same(result, estimator(None, None, events, t0=33_000, t1=39_000))
    assert len(one.events(0, 10**6)) == 200
    # Its history has been overwritten: it is left out.
    early = one.flow(kept, kept + 6_000)
    assert same(
        early, estimator(None, None, events.slice_time(kept, 10**6), t0=kept, t1=kept + 6_000)
    )
    with pytest.raises(
        ValueError, match=r"\[1000, 9000\) us is not in memory any more.*200 events"
    ):
        one.flow(1_000, 9_000)
    with pytest.raises(ValueError, match=r"up to 50000 us are needed for .* they have up to 39"):
        one.flow(39_000, 50_000)
    with pytest.raises(ValueError, match="nothing has come yet"):
        stream(interval=STEP).flow(0, 10)
    with pytest.raises(ValueError, match="t1 must be later than t0"):
        one.flow(39_000, 38_000)


def test_latest_is_the_newest_and_takes_nothing(stream):
    one, events = stream(interval=STEP, policy="all"), make_events(0, 40_000)
    one.push(events.slice_time(0, 35_000))
    result = one.latest()
    assert spans([result]) == [(20_000, 30_000)] and one.latest() is result
    assert spans([one.take(0), one.take(0)]) == [(0, 10_000), (10_000, 20_000)]


# Times that are late, repeated or impossible


def test_late_events_are_put_in_their_place(stream, estimator):
    one, events = stream(interval=STEP, tolerance="2ms"), make_events(0, 15_000)
    order = np.argsort(events.t + np.random.default_rng(0).integers(0, 900, len(events)))
    for part in np.array_split(order, 17):
        one.push_events(*(column[part] for column in columns(events)))
    assert one.events(0, 10**6).t.tolist() == events.t.tolist()
    assert one.stats.events_reordered > 0 and one.stats.events_dropped == 0
    result = one.take(0)
    expected = estimator(None, None, events, t0=0, t1=STEP)
    # Events of the same time may be in another order; sums are in fixed point.
    assert same(result, expected)


def test_too_late_events_are_dropped(stream):
    one = stream(interval=STEP, tolerance="2ms")
    one.push(Events([1] * 3, [1] * 3, [100, 5_000, 9_000], [1] * 3))
    one.push(Events([2] * 4, [2] * 4, [1_000, 6_999, 7_000, 9_500], [0] * 4))
    assert one.events(0, 10**6).t.tolist() == [100, 5_000, 7_000, 9_000, 9_500]
    assert one.stats.events_late == 2 and one.stats.events_reordered == 1
    assert one.stats.events_dropped == 2 and one.stats.resets == 0


def test_an_event_is_counted_once(stream):
    """Late or in disorder, or both: what is dropped is not also said to be in its place."""
    one = stream(interval=STEP, tolerance="2ms")

    def counts() -> tuple[int, int, int]:
        stats = one.stats
        return stats.events_late, stats.events_reordered, stats.events_repeated

    one.push_events([1, 1], [1, 1], [100, 9_000], [1, 1])
    # 6000 and 1000 come too late, 8000 late and 9100 in disorder; 7500 is both, 9200 neither.
    times = [6_000, 1_000, 8_000, 7_500, 9_200, 9_100]
    one.push_events(range(6), [2] * 6, times, [0] * 6)
    assert one.events(0, 10**6).t.tolist() == [100, 7_500, 8_000, 9_000, 9_100, 9_200]
    assert counts() == (2, 3, 0) and one.stats.events_dropped == 2
    # All of a packet in disorder comes again: it is repeated, and no more than that.
    one.push_events([3, 3], [3, 3], [9_900, 9_800], [1, 1])
    assert counts() == (2, 4, 0)
    one.push_events([3, 3], [3, 3], [9_900, 9_800], [1, 1])
    assert counts() == (2, 4, 2) and one.stats.events == 12


def test_a_frame_is_counted_once(stream):
    one = stream(frames=2)
    one.push(make_events(0, 40_000))
    for number in range(3):
        one.push_frame(make_frame(number), STEP * number)
    one.advance(40_000)
    assert one.take(0) is not None
    before = one.stats
    one.push_frame(make_frame(3), STEP // 2)  # late, and older than all in memory
    assert one.stats.frames_overwritten == before.frames_overwritten + 1
    assert one.stats.frames_late == before.frames_late == 0


def test_repeated_packets_are_dropped(stream):
    one, events = stream(interval=STEP), make_events(0, 9_000)
    for _ in range(3):
        one.push(events)
    one.push(events.slice_time(3_000, 6_000))
    assert len(one.events(0, 10**6)) == len(events)
    assert one.stats.events_repeated == 2 * len(events) + len(events.slice_time(3_000, 6_000))


def test_repeated_and_late_frames(stream):
    one = stream(policy="all")
    one.push(make_events(0, 90_000))
    for index, t in enumerate((1_000, 41_000, 41_000, 21_000)):
        one.push_frame(make_frame(index), t)
    assert one.stats.frames_repeated == 1
    assert spans([one.take(0), one.take(0)]) == [(1_000, 21_000), (21_000, 41_000)]
    one.push_frame(make_frame(9), 31_000)
    assert one.stats.frames_late == 1 and one.take(0) is None
    assert one.flow(31_000, 41_000).modalities == ("frames", "events"), "it is in memory"


@pytest.mark.parametrize("sensor", ["events", "frames"])
def test_a_clock_that_begins_anew(stream, sensor):
    one = stream(interval=STEP if sensor == "events" else "frames")
    late = make_events(7_000_000, 7_015_000)
    one.push(late)
    one.push_frame(make_frame(0), 7_000_500)
    if sensor == "events":
        one.push(make_events(0, 15_000))
    else:
        one.push_frame(make_frame(1), 1_000)
        one.push(make_events(0, 15_000))
        one.push_frame(make_frame(2), 11_000)
    assert one.stats.resets == 1
    result = one.take(0)
    assert spans([result]) == [(0, STEP) if sensor == "events" else (1_000, 11_000)]
    assert one.events(0, 10**8).t[-1] < 15_000, "nothing of the old clock is left"


def test_latest_forgets_results_of_an_old_clock(stream, estimator, monkeypatch):
    one = stream(interval=STEP)
    one.push(make_events(7_000_000, 7_015_000))
    assert spans([one.latest()]) == [(7_000_000, 7_010_000)]
    one.push(make_events(0, 5_000))
    assert one.latest() is None, "no interval of the new clock is whole"
    one.push(make_events(5_000, 15_000))
    assert spans([one.latest()]) == [(0, STEP)]

    # The clock begins anew while an interval of the old one is being estimated.
    one.push(make_events(7_000_000, 7_025_000))
    network = estimator._network

    def run_and_reset(*args, **options):
        monkeypatch.setattr(estimator, "_network", network)
        one.push(make_events(0, 15_000))
        return network(*args, **options)

    monkeypatch.setattr(estimator, "_network", run_and_reset)
    assert one.flow(7_000_000, 7_010_000).t1 == 7_010_000
    assert spans([one.latest()]) == [(0, STEP)]


def test_a_clock_that_begins_anew_in_a_packet(stream):
    one = stream(interval=STEP)
    parts = make_events(9_000_000, 9_012_000), make_events(0, 12_000)
    one.push_events(*map(np.concatenate, zip(*map(columns, parts), strict=True)))
    assert one.stats.resets == 1 and spans([one.take(0)]) == [(0, STEP)]


def test_one_wrong_time_far_ahead_heals(stream):
    one = stream(interval=STEP)
    one.push(make_events(0, 4_000))
    one.push(Events([0], [0], [2**45], [1]))
    one.push(make_events(4_000, 17_000))
    assert one.stats.resets == 1 and spans([one.take(0)]) == [(4_000, 14_000)]


def test_two_clocks(stream, estimator):
    one, events = stream(offset="-2.5s"), make_events(0, 30_000)
    one.push(events)
    for index, t in enumerate((2_501_000, 2_511_000)):
        one.push_frame(make_frame(index), t)
    assert same(one.take(0), estimator(make_frame(0), make_frame(1), events, t0=1_000, t1=11_000))


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (([WIDTH], [0], [5], [1]), r"push_events: x\[0\] = 24 lies outside the sensor.*24 x 16 px"),
        (([0], [-1], [5], [1]), r"push_events: y\[0\] = -1 lies outside the sensor"),
        (([np.nan], [0.0], [5], [1]), r"push_events: x must be finite, got x\[0\] = nan"),
        (([0], [0], [np.nan], [1]), r"push_events: t must be finite, got t\[0\] = nan"),
        (([0], [0], [0.25], [1]), r"push_events: t must be integer microseconds.*seconds\?"),
        (([0], [0], [16 * 10**17], [1]), r"push_events: .*nanoseconds\?"),
        (([0], [0], [5], [7]), r"push_events: p must be bool.*p\[0\] = 7"),
        (([0, 1], [0], [5], [1]), "must have the same length, got x has 2"),
        (([[0]], [0], [5], [1]), r"x must have shape \[N\], got \[1, 1\]"),
    ],
)
def test_wrong_packets_are_refused(stream, packet, message):
    one = stream(interval=STEP)
    with pytest.raises(ValueError, match=message):
        one.push_events(*packet)
    assert one.stats.events == 0
    one.push_events([], [], [], [])
    one.push(make_events(0, 5_000))
    assert one.stats.events == 400, "and the stream goes on"


def test_refused_packets_are_not_counted(stream):
    one = stream(interval=STEP)
    one.push(make_events(0, 5_000))
    message = r"push_events: coordinates are fractional \(float32\), those of the packets before"
    with pytest.raises(ValueError, match=message):
        one.push_events([1.5], [2.5], [6_000], [1])
    assert one.stats.events == 400
    one.push(make_events(5_000, 15_000))
    assert spans([one.take(0)]) == [(0, STEP)]


def test_frames_that_leave_no_time_between_are_dropped(stream):
    """An interval needs a microsecond for each slice; one that has less would stop the stream."""
    one = stream(policy="all")
    one.push(make_events(0, 30_000))
    for index, t in enumerate((1_000, 1_001, 11_000)):
        one.push_frame(make_frame(index), t)
    assert one.stats.frames_repeated == 1 and spans([one.take(0)]) == [(1_000, 11_000)]


def test_exposures_that_cannot_be_are_left_out(stream, estimator):
    one, events = stream(), make_events(0, 30_000)
    one.push(events)
    for index, t in enumerate((1_000, 11_000)):
        one.push_frame(make_frame(index), t, 8_000_000)
    with pytest.warns(RuntimeWarning, match=r"exposure of 8000000 us is more than .*nanoseconds"):
        result = one.take(0)
    expected = estimator(make_frame(0), make_frame(1), events, t0=1_000, t1=11_000)
    assert same(result, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.advance("soon"), "advance: t must be integer microseconds, got 'soon'"),
        (lambda one: one.advance(6 * 10**9), r"advance: t must be .*got 6000000000 \(nanoseconds"),
        (lambda one: one.flow(0.5, 7), r"flow: t0 must be integer microseconds, got 0.5; seconds"),
        (lambda one: one.flow(0, None), "flow: t1 must be integer microseconds, got None"),
    ],
)
def test_wrong_times_are_refused(stream, call, message):
    one = stream(interval=STEP)
    one.push(make_events(6_000_000, 6_015_000))
    with pytest.raises(ValueError, match=message):
        call(one)
    assert spans([one.take(0)]) == [(6_000_000, 6_000_000 + STEP)]


def test_wrong_frames_are_refused(stream):
    one = stream()
    one.push(make_events(6_000_000, 6_001_000))
    for image, t, message in (
        (make_frame(0)[1:], 6_000_000, "image is of 24 x 15 px|at least 16 x 16 px"),
        (np.zeros((HEIGHT, WIDTH + 8), np.uint8), 0, "image is of 32 x 16 px, the stream is of 24"),
        (np.full((HEIGHT, WIDTH), np.nan, np.float32), 0, "image must be finite, got NaN"),
        (None, 0, "image must be a numpy array or a tensor, got None"),
        (make_frame(0), 6_000, r"got 6000 \(milliseconds\?\)"),
        (make_frame(0), 6.0, r"must be integer microseconds, got 6.0"),
    ):
        with pytest.raises(ValueError, match=message):
            one.push_frame(image, t)
    assert one.stats.frames == 0
    with pytest.raises(ValueError, match="sensor of 5 x 4 px, the stream is of 24 x 16 px"):
        one.push(Events.empty(4, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "some"}, "policy must be one of latest, all, thin; got 'some'"),
        ({"interval": "20"}, "interval must be integer microseconds, or a text"),
        ({"interval": 1}, "interval must be at least 2 us, got 1 us"),
        ({"every": "5ms"}, "every belongs to intervals of a fixed length, got every='5ms'"),
        ({"memory": 0}, "memory must be a whole number >= 1, got 0"),
        ({"frames": 1}, "frames must be a whole number >= 2, got 1"),
        ({"rate": 0}, "rate must be positive"),
        ({"wait": -1.0}, "wait must be seconds >= 0, got -1.0"),
        ({"iterations": 0}, "iterations must be a whole number >= 1, got 0"),
        (
            {"warm_iterations": 1, "warm_start": False},
            "warm_iterations belong to a warm start, got warm_iterations=1 and warm_start=False",
        ),
        ({"scale_tolerance": 1.0}, r"scale_tolerance must be in \[0, 1\), got 1.0"),
        ({"scale_tolerance": 0.1}, "scale_tolerance needs intervals of a fixed length"),
        ({"scale_tolerance": 0.1, "interval": 9}, "interval must be a multiple of 2 us, and every"),
        (
            {"scale_tolerance": 0.1, "interval": 10, "every": 3},
            r"every a multiple of interval / 2 .*got interval 10 us, every 3 us",
        ),
        ({"scale_tolerance": 0.1, "interval": 10, "every": 15}, "no longer than interval; got"),
        (
            {"tolerance": "2s"},
            "tolerance must be less than reset_after, got tolerance 2000000 us and reset_after "
            "1000000 us",
        ),
        ({"as_torch": "np"}, "as_torch must be True or False, got 'np'"),
        ({"height": 8}, "Stream: height must be a whole number of px >= 16, got 8"),
        ({"width": "a"}, "Stream: width must be a whole number of px >= 16, got 'a'"),
    ],
)
def test_wrong_options_are_refused(stream, options, message):
    with pytest.raises(ValueError, match=message):
        stream(**options)


# Too much


def test_latest_never_lags(stream):
    one = stream(interval=STEP, memory=300)
    for first in range(0, 400_000, 10_000):
        one.push(make_events(first, first + 10_000, 100))
    result = one.take(0)
    assert spans([result]) == [(380_000, 390_000)] and one.stats.intervals_skipped == 38
    assert one.take(0) is None
    assert one.stats.events_overwritten > 3_000 and one.stats.events == 4_000


def test_an_interval_that_does_not_fit_is_told(stream):
    latest = stream(interval=STEP, memory=50)
    latest.push(make_events(0, 25_000))
    with pytest.warns(RuntimeWarning, match="left the memory of 50 events before they were"):
        assert latest.take(0) is None
    every = stream(interval=STEP, memory=50, policy="all")
    with pytest.raises(
        ValueError, match=r"more events than memory, which holds 50; .*another unit"
    ):
        every.push(make_events(0, 25_000))


def test_all_waits_for_whoever_takes_results(stream):
    """A producer far faster than the consumer: nothing is lost, and memory stays."""
    one = stream(interval=STEP, memory=500, policy="all")
    events = make_events(0, 200_000, 4_000)

    def produce() -> None:
        for first in range(0, len(events), 333):
            one.push(events[first : first + 333])
        one.close()

    producer = threading.Thread(target=produce)
    producer.start()
    results = list(one)
    producer.join()
    start = int(events.t[0])
    assert spans(results) == [(start + i * STEP, start + (i + 1) * STEP) for i in range(19)]
    assert one.stats.events_dropped == 0 and one.stats.events == 4_000
    expected = one.estimator(None, None, events, t0=start + 9 * STEP, t1=start + 10 * STEP)
    assert same(results[9], expected)


def test_nobody_takes_results(stream):
    one = stream(interval=STEP, memory=500, policy="all", wait=0.05)
    with pytest.raises(
        TimeoutError, match=r"memory of 500 events is full, and has been for 0.05 s"
    ):
        one.push(make_events(0, 100_000, 2_000))
    frames = stream(frames=2, policy="all", wait=0.05)
    frames.push(make_events(0, 100_000))
    with pytest.raises(TimeoutError, match="push_frame: the memory of 2 frames is full"):
        for index in range(3):
            frames.push_frame(make_frame(index), 1_000 * (index + 1))


def test_thinning_is_counted(stream):
    one = stream(interval=STEP, policy="thin", rate=1e5, memory=50_000)
    one.push(make_events(0, 100_000, 100_000))
    stats = one.stats
    assert stats.events_thinned > 50_000 and stats.events_dropped == stats.events_thinned
    assert len(one.events(0, 10**6)) == 100_000 - stats.events_thinned
    assert spans([one.take(0)]) == [(80_000, 90_000)]


def test_overwritten_frames_are_counted(stream):
    one = stream(frames=3)
    one.push(make_events(0, 100_000))
    for index in range(5):
        one.push_frame(make_frame(index), 1_000 + 10_000 * index)
    assert one.stats.frames_overwritten == 2
    assert spans([one.take(0)]) == [(31_000, 41_000)] and one.stats.intervals_skipped == 1


# Threads, callbacks, the end


def test_a_callback_and_two_producers(stream):
    one, results = stream(policy="all", tolerance="1s", reset_after="2s"), []
    events = make_events(0, 100_000, 3_000)
    one.start(results.append)
    with pytest.raises(RuntimeError, match="in the background already"):
        one.start(results.append)

    def push_events() -> None:
        for first in range(0, len(events), 100):
            one.push(events[first : first + 100])

    def push_frames() -> None:
        for index in range(9):
            one.push_frame(make_frame(index), 5_000 + STEP * index)

    threads = [threading.Thread(target=target) for target in (push_events, push_frames)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    assert spans(results) == [(5_000 + STEP * i, 5_000 + STEP * (i + 1)) for i in range(8)]
    expected = one.estimator(make_frame(3), make_frame(4), events, t0=35_000, t1=45_000)
    assert same(results[3], expected)


def test_a_failing_callback_is_told(stream):
    one = stream(interval=STEP)
    called = threading.Event()

    def fail(result: Result) -> None:
        called.set()
        raise KeyError("no such thing")

    one.start(fail)
    one.push(make_events(0, 15_000))
    assert called.wait(30)
    with pytest.raises(RuntimeError, match="what takes results has failed: 'no such thing'"):
        one.close()
    with pytest.raises(RuntimeError, match="what takes results has failed"):
        one.push(make_events(20_000, 30_000))


def test_a_closed_stream(stream):
    with stream(interval=STEP) as one:
        one.push(make_events(0, 15_000))
    assert one.closed and spans(one) == [(0, STEP)] and one.take() is None
    for push in (
        lambda: one.push(make_events(20_000, 30_000)),
        lambda: one.push_frame(make_frame(0), 5),
        lambda: one.advance(7),
    ):
        with pytest.raises(
            RuntimeError, match=r"(push_events|push_frame|advance): the stream is c"
        ):
            push()


def test_waiting_ends_in_time(stream):
    one = stream(interval=STEP)
    assert one.take(timeout=0.02) is None
    threading.Timer(0.05, lambda: one.push(make_events(0, 15_000))).start()
    assert spans([one.take(timeout=30)]) == [(0, STEP)]


# The rest


@pytest.fixture
def given_starts(monkeypatch):
    """What estimates start from, and in how many iterations, in turn."""
    given = []
    called = NetworkRunner.__call__

    def spy(self, inputs, iterations, flow_init, *others, **options):
        given.append((None if flow_init is None else flow_init.numpy(), iterations))
        return called(self, inputs, iterations, flow_init, *others, **options)

    monkeypatch.setattr(NetworkRunner, "__call__", spy)
    monkeypatch.setattr(estimates, "_TRUSTED", 1e9)  # this network trusts itself nowhere
    return given


def test_a_warm_start_begins_with_the_flow_before(stream, given_starts):
    """Where intervals overlap it is the default."""
    one = stream(interval=STEP, every=5_000, policy="all", warm_iterations=3)
    one.push(make_events(0, 25_000))
    first = one.take(0)
    one.take(0)
    (none, usual), (flow_init, fewer) = given_starts
    assert none is None and usual is None and fewer == 3
    assert flow_init.shape == (1, 2, HEIGHT, WIDTH) and np.isfinite(flow_init).all()
    assert np.abs(flow_init).max() <= np.abs(first.flow).max() + 1e-6


def test_flow_that_is_not_trusted_starts_nothing(stream, given_starts, monkeypatch):
    monkeypatch.setattr(estimates, "_TRUSTED", 0.0)
    one = stream(interval=STEP, every=5_000, policy="all")
    one.push(make_events(0, 25_000))
    one.take(0), one.take(0)
    assert np.isnan(given_starts[1][0]).all()


@pytest.mark.parametrize(("every", "warm_start", "warm"), [(None, None, False),
    (None, True, True), (5_000, False, False), (5_000, None, True)])  # fmt: skip
def test_when_estimates_start_warm(stream, given_starts, every, warm_start, warm):
    one = stream(interval=STEP, every=every, policy="all", warm_start=warm_start)
    one.push(make_events(0, 35_000))
    one.take(0), one.take(0)
    assert (given_starts[1][0] is not None) == warm


def test_any_interval_starts_from_nothing_and_starts_nothing(stream, estimator, given_starts):
    """Where results build on each other, it has the bits of the estimator, and disturbs none."""
    events = make_events(0, 40_000)
    one, other = (stream(interval=STEP, every=5_000, policy="all") for _ in range(2))
    for each in (one, other):
        each.push(events)
        each.take(0)
    taken = one.timing
    assert same(one.flow(4_000, 12_000), estimator(None, None, events, t0=4_000, t1=12_000))
    assert one.timing == taken
    assert same(one.take(0), other.take(0)) and given_starts[-1][0] is not None


def test_a_warm_start_never_comes_from_another_clock(stream, given_starts):
    one = stream(interval=STEP, every=5_000, policy="all")
    one.push(make_events(7_000_000, 7_012_000))
    one.take(0)
    one.push(make_events(0, 12_000))
    one.take(0)
    assert [start is None for start, _ in given_starts] == [True, True]


# Slices that intervals share


def overlapping(stream, **options) -> Stream:
    settings = {"scale_tolerance": 0.9, "warm_start": False, **options}
    return stream(interval=STEP, every=STEP // 2, policy="all", **settings)


def test_slices_of_overlapping_intervals_are_used_again(stream, estimator):
    """With a scale that is the same in all intervals: the same bits as by themselves."""
    # All at the beginning of a slice, each at a place of its own: all magnitudes are 1.
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.permutation(HEIGHT * WIDTH)[:100] for _ in range(8)])
    t, p = np.repeat(np.arange(8) * 5_000, 100), rng.integers(0, 2, 800)
    events = Events(places % WIDTH, places // WIDTH, t, p, height=HEIGHT, width=WIDTH)
    one = overlapping(stream)
    for index in (0, 2):
        one.push_frame(make_frame(index), 5_000 * index)
    one.push(events)
    results = [one.take(0) for _ in range(6)]
    assert one.stats.slices_reused == 5 * SLICES
    expected = estimator(make_frame(0), make_frame(2), events, t0=0, t1=STEP)
    assert same(results[0], expected) and results[0].modalities == ("frames", "events")
    for result in results[1:]:
        frame = make_frame(2) if result.t0 == STEP else None
        assert same(result, estimator(frame, None, events, t0=result.t0, t1=result.t1))


def test_exposures_with_shared_slices(stream, estimator):
    one, events = overlapping(stream), make_events(0, 40_000)
    for index, t in enumerate((0, STEP)):
        one.push_frame(make_frame(index), t, 3_000)
    one.push(events)
    frames = make_frame(0), make_frame(1)
    expected = estimator(*frames, events, t0=0, t1=STEP, exposure0=3_000, exposure1=3_000)
    assert same(one.take(0), expected)


def test_late_events_change_the_slices_that_they_belong_to(stream):
    """A stream to which they came in time gives the same."""
    events = make_events(0, 30_000, 3_000)
    late = Events([3] * 40, [3] * 40, range(13_000, 13_040), [1] * 40)
    found = []
    for order in ((events.slice_time(0, 17_000), late, events.slice_time(17_000, 30_000)),
                  (events.slice_time(0, 13_000), Events.concatenate([late]),
                   events.slice_time(13_000, 30_000))):  # fmt: skip
        one = overlapping(stream)
        for part in order:
            one.push(part)
            if part is order[0]:
                one.take(0)  # [0, 10 ms), and where events have come in time, no more
        found.append([one.take(0) for _ in range(3)])
    assert all(map(same, *found)) and len(found[0]) == 3


def test_any_interval_beside_shared_slices(stream, estimator):
    """It has the bits of the estimator, and those that follow are as if it had not been."""
    events = make_events(0, 40_000)
    one, other = overlapping(stream), overlapping(stream)
    for each in (one, other):
        each.push(events)
        each.take(0)
    assert same(one.flow(3_000, 9_000), estimator(None, None, events, t0=3_000, t1=9_000))
    assert same(one.take(0), other.take(0))
    assert one.latest().t1 == 35_000 and spans([one.take(0)]) == [(10_000, 20_000)]


def test_a_reset_forgets_slices(stream):
    one, other = overlapping(stream), overlapping(stream)
    one.push(make_events(7_000_000, 7_012_000))
    one.take(0)
    for each in (one, other):
        each.push(make_events(0, 22_000))
    assert all(same(one.take(0), other.take(0)) for _ in range(2))


def test_a_frame_is_encoded_once(stream, estimator, monkeypatch):
    """By successive intervals, and by any other that is asked for."""
    encoded = []
    called = type(estimator).encode_frame

    def spy(self, frame):
        encoded.append(frame)
        return called(self, frame)

    monkeypatch.setattr(type(estimator), "encode_frame", spy)
    one = stream(policy="all")
    one.push(make_events(0, 90_000))
    for index in range(4):
        one.push_frame(make_frame(index), 1_000 + STEP * index)
    results = [one.take(0) for _ in range(3)]
    assert len(encoded) == 4
    assert same(one.flow(11_000, 21_000), results[1]) and len(encoded) == 4


def test_tensors_on_request(stream):
    one = stream(as_torch=True)
    one.push(make_events(0, 30_000))
    image = torch.from_numpy(make_frame(0))
    one.push_frame(image, 1_000)
    image.zero_()
    one.push_frame(make_frame(1), 11_000)
    assert isinstance(one.take(0).flow, torch.Tensor)
    assert one.frame(1_000).any(), "tensors are copied, too"


def test_memory_is_flat(stream):
    """Half a minute of a sensor, in no more memory than its first seconds."""
    one = stream(interval=STEP, memory=2_000, frames=4)
    packets = [make_events(0, 100_000, 4_000, seed) for seed in range(3)]
    image = make_frame(0)

    def second(number: int) -> None:
        for index in range(10):
            start = number * 1_000_000 + index * 100_000
            x, y, t, p = columns(packets[index % 3])
            one.push_events(x, y, t + start, p)
            one.push_frame(image, start + 1)
        one.take(0)

    for number in range(3):
        second(number)
    tracemalloc.start()
    try:
        second(3)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(4, 34):
            second(number)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # One entry a push says when it came, until there are 4096 of them: some 100 bytes each.
    assert after - before < 200_000
    assert one.stats.events == 34 * 40_000 and one.stats.resets == 0
