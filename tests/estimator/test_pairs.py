"""What a frame pair is estimated from, and which pairs are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from estimator_cases import FLAT, GOOD, HEIGHT, T0, T1, WIDTH, make_events, make_model

from flowfuse.estimator import Estimator
from flowfuse.events import Events
from flowfuse.model import CONFIGS, FlowFuse


def test_absent_modalities(estimator, frames, events):
    fused = estimator(*frames, events, t0=T0, t1=T1)
    frames_only = estimator(*frames, None, t0=T0, t1=T1)
    events_only = estimator(None, None, events, t0=T0, t1=T1)
    assert frames_only.modalities == ("frames",) and events_only.modalities == ("events",)
    flows = [fused.flow, frames_only.flow, events_only.flow]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((flows[0], flows[1]), (flows[0], flows[2])))
    # the second frame alone is not used
    assert np.array_equal(estimator(None, frames[1], events, t0=T0, t1=T1).flow, flows[2])
    # events outside the window only: the same as none
    silent = estimator(*frames, make_events(0, T0 // 2), t0=T0, t1=T1)
    assert silent.modalities == ("frames",) and np.array_equal(silent.flow, flows[1])
    single = estimator(None, None, events.slice_time(30_000, 30_030), t0=T0, t1=T1)
    assert np.isfinite(single.flow).all()


def test_history_is_used_when_it_is_there(estimator, frames, events):
    late = events.slice_time(T0, T1)
    with_history = estimator(*frames, events, t0=T0, t1=T1).flow
    without = estimator(*frames, late, t0=T0, t1=T1).flow
    assert np.abs(with_history - without).max() > 1e-4
    assert np.array_equal(estimator(*frames, events, t0=T0, t1=T1, history=False).flow, without)
    # nothing happened before t0, and the caller knows it
    assert np.abs(estimator(*frames, late, t0=T0, t1=T1, history=True).flow - without).max() > 1e-5


def test_a_long_first_exposure_reaches_back_beyond_the_first_slice(estimator, frames, events):
    times = {"t0": 50_000, "t1": 90_000, "exposure0": 60_000}  # E_0 begins at 30 ms
    whole = estimator(*frames, events, **times).flow
    cut = estimator(*frames, events.slice_time(30_000, 70_000), **times).flow
    assert np.abs(whole - cut).max() > 1e-4
    assert np.array_equal(
        estimator(*frames, events.slice_time(20_000, 70_000), **times).flow, whole
    )


def test_without_frames_there_are_no_exposures(estimator, frames, events):
    exposures = {"exposure0": 20_000, "exposure1": 10_000}
    for frame0 in (None, frames[0]):
        reference = estimator(frame0, None, events, t0=T0, t1=T1).flow
        result = estimator(frame0, None, events, t0=T0, t1=T1, **exposures)
        assert np.array_equal(result.flow, reference)


def test_frame_0_alone_is_used_where_the_network_can(frames, events):
    by_evidence, guided = (
        Estimator(FlowFuse(replace(CONFIGS["nano"], fusion=fusion)))
        for fusion in ("evidence", "guided")
    )
    one = by_evidence(frames[0], None, events, t0=T0, t1=T1)
    assert one.modalities == ("frame0", "events")
    none = by_evidence(None, None, events, t0=T0, t1=T1)
    both = by_evidence(*frames, events, t0=T0, t1=T1)
    assert np.abs(one.flow - none.flow).max() > 1e-6 and np.abs(one.flow - both.flow).max() > 1e-6
    alone = guided(frames[0], None, events, t0=T0, t1=T1)
    assert alone.modalities == ("events",)
    assert np.array_equal(alone.flow, guided(None, None, events, t0=T0, t1=T1).flow)
    with pytest.raises(ValueError, match="both frames, or events"):
        by_evidence(frames[0], None, None, t0=T0, t1=T1)


def test_modalities_are_those_that_the_network_used(frames, events):
    times = {"t0": T0, "t1": T1}
    assert Estimator(make_model())(*frames, events, **times).modalities == ("frames", "events")
    for given, used in (({"frames": False}, "events"), ({"events": False}, "frames")):
        result = Estimator(make_model(**given))(*frames, events, **times)
        assert result.modalities == (used,)


def test_an_exposure_that_cannot_be_is_named(estimator, frames, events):
    with pytest.raises(ValueError, match=r"exposure1 must be at most 2 \(t1 - t0\) = 80000 us"):
        estimator(*frames, events, t0=T0, t1=T1, exposure0=80_000, exposure1=80_001)


OUTSIDE = ([WIDTH], [0], [T0 + 5], [1])


@pytest.mark.parametrize(
    ("frame0", "frame1", "events", "message"),
    [
        (FLAT, FLAT[1:], None, "one size in px, got frame0 is 50 x 37, frame1 is 50 x 36"),
        (None, None, None, "frames and events are None"),
        (FLAT, None, None, "got no frame pair, and no event in"),
        (None, None, Events.empty(HEIGHT, WIDTH), "got no frame pair, and no event in"),
        (None, None, ([1], [1], [T0], [1]), "the sensor size must be known"),
        (FLAT, FLAT, OUTSIDE, r"x\[0\] = 50 lies outside the sensor"),
        (FLAT, FLAT, Events.empty(5, 6), "events is 6 x 5"),
        (None, None, Events([1], [1], [T0], [1], height=8, width=99), "at least 16 x 16"),
        (FLAT, FLAT, ([1], [1], [T0]), r"tuple \(x, y, t, p\), got 3 arrays"),
        (FLAT, FLAT, dict(x=[1]), "must have the keys x, y, t, p; got x"),
        (FLAT, FLAT, "events.h5", "got str"),
        (FLAT, FLAT, ([1, 2], [1, 2], [T1, T0], [1, 1]), "t must be sorted"),
        (FLAT, FLAT, ([np.nan], [1], [T0], [1]), "x must be finite"),
    ],
)
def test_wrong_pairs_are_named(estimator, frame0, frame1, events, message):
    with pytest.raises(ValueError, match=message):
        estimator(frame0, frame1, events, **GOOD)


def test_networks_of_one_modality_say_what_they_need(frames, events):
    with pytest.raises(ValueError, match="uses frames only"):
        Estimator(make_model(events=False))(None, None, events, t0=T0, t1=T1)
    with pytest.raises(ValueError, match="uses events only"):
        Estimator(make_model(frames=False))(*frames, None, t0=T0, t1=T1)
