"""Events alone without history: the network starts late, and its trajectories are extended."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimator_cases import make_events
from thread_cases import using_threads

from flowfuse.estimator.late_start import begin_earlier, late_start
from flowfuse.events import Events
from flowfuse.geometry.bezier import bezier
from flowfuse.geometry.grid import pixel_grid

T0, T1 = 20_000, 60_000
START = 28_000  # with K = 4 slices


def test_a_uniform_motion_is_extended():
    motion = torch.tensor([4.0, -8.0]).view(1, 1, 2, 1, 1)
    points = motion * torch.tensor([1 / 3, 2 / 3, 1.0]).view(1, 3, 1, 1, 1)
    points = points.expand(-1, -1, -1, 6, 7).contiguous()
    extended, others = begin_earlier(points, torch.full((1, 4, 6, 7), 3.0), 0.25)
    torch.testing.assert_close(extended, 1.25 * points)
    torch.testing.assert_close(others, torch.full((1, 4, 6, 7), 3.0))


def test_a_turning_image_is_traced_back():
    """The true trajectories of a rotation about the image's middle, cut off at a later start."""
    height, width, rate = 40, 48, 0.1  # radians from the later start to t1
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2]).view(2, 1, 1)
    grid = pixel_grid(height, width) - centre

    def turned(angle: float) -> torch.Tensor:
        sine, cosine = np.sin(angle), np.cos(angle)
        x, y = grid
        return torch.stack((cosine * x - sine * y, sine * x + cosine * y)) - grid

    # A cubic with the rotation's ends and velocities: as good as the arc.
    speed = torch.stack((-grid[1], grid[0])) * rate
    end = turned(rate)
    end_speed = torch.stack((-(grid + end)[1], (grid + end)[0])) * rate
    points = torch.stack((speed / 3, end - end_speed / 3, end))[None]
    place = pixel_grid(height, width)[None]  # to be seen where each trajectory is read
    extended, read = begin_earlier(points, place, 0.25)
    inner = (..., slice(8, -8), slice(8, -8))
    for tau in (0.2, 0.6, 1.0):
        expected = turned(1.25 * rate * tau)
        torch.testing.assert_close(
            bezier(extended, tau)[0][inner], expected[inner], atol=2e-3, rtol=0
        )
    torch.testing.assert_close(
        (read - place)[0][inner], turned(0.25 * rate)[inner], atol=2e-3, rtol=0
    )


def test_a_call_without_history_is_one_from_a_later_start(estimator, events):
    late = events.slice_time(T0, T1)
    result = estimator(None, None, late, t0=T0, t1=T1)
    assert (result.t0, result.t1) == (T0, T1)
    start = T0 + (T1 - T0) // (estimator.model.config.slices + 1)
    shorter = estimator(None, None, late, t0=start, t1=T1)
    points, _ = begin_earlier(
        torch.from_numpy(shorter.control_points)[None],
        torch.zeros(1, 1, *shorter.flow.shape[1:]),
        (start - T0) / (T1 - start),
    )
    np.testing.assert_allclose(result.control_points, points[0].numpy(), atol=1e-5)
    # the same where the caller says that there is no history, and in a batch
    told = estimator(None, None, events, t0=T0, t1=T1, history=False)
    assert np.array_equal(told.flow, result.flow)
    with using_threads(1):  # sums of a batch are rounded in another order by several
        both = estimator.estimate_batch(None, None, [late, events], t0=T0, t1=T1)
        result = estimator(None, None, late, t0=T0, t1=T1)
        with_history = estimator(None, None, events, t0=T0, t1=T1)
    # 5e-4: 1.6e-4 px seen; weights of neighbours enlarge what is rounded in another order
    np.testing.assert_allclose(both[0].flow, result.flow, atol=5e-4)
    np.testing.assert_allclose(both[1].flow, with_history.flow, atol=5e-4)


def test_one_frame_without_history_is_not_shown(estimator, events):
    """It shows t0, not the later start."""
    late = events.slice_time(T0, T1)
    frame = np.full((events.height, events.width), 90, np.uint8)
    result = estimator(frame, None, late, t0=T0, t1=T1)
    alone = estimator(None, None, late, t0=T0, t1=T1)
    assert np.array_equal(result.flow, alone.flow)
    assert result.modalities == alone.modalities == ("events",)
    shown = estimator(frame, None, events, t0=T0, t1=T1)
    assert shown.modalities == ("frame0", "events")


def test_a_stray_event_before_is_no_history(estimator, events):
    late = events.slice_time(T0, T1)
    added = (3, 3, T0 - 900, 1)
    columns = (
        np.concatenate(([value], column))
        for value, column in zip(added, (late.x, late.y, late.t, late.p), strict=True)
    )
    stray = Events(*columns, height=late.height, width=late.width)
    expected = estimator(None, None, late, t0=T0, t1=T1).flow
    assert np.array_equal(estimator(None, None, stray, t0=T0, t1=T1).flow, expected)
    claimed = estimator(None, None, stray, t0=T0, t1=T1, history=True).flow
    assert not np.array_equal(claimed, expected)


def test_a_longer_motion_is_less_certain(estimator, events):
    late = events.slice_time(T0, T1)
    start = T0 + (T1 - T0) // (estimator.model.config.slices + 1)
    longer = estimator(None, None, late, t0=T0, t1=T1).uncertainty.mean()
    shorter = estimator(None, None, late, t0=start, t1=T1).uncertainty.mean()
    assert longer > 1.1 * shorter


def test_frames_a_given_flow_and_a_claimed_history_keep_the_start(estimator, frames, events):
    late = events.slice_time(T0, T1)

    def without(**given):
        inputs = estimator.prepare(*given.pop("frames", (None, None)), late, t0=T0, t1=T1, **given)
        return inputs

    for given in ({"frames": frames}, {"history": True}):
        shown = given.get("frames", (None, None))
        rest = {key: value for key, value in given.items() if key != "frames"}
        found = estimator(*shown, late, t0=T0, t1=T1, **rest)
        expected = estimator.run(without(**given), t0=T0, t1=T1)[0]
        assert np.array_equal(found.flow, expected.flow)
    start = np.ones((2, *frames[0].shape), np.float32)
    found = estimator(None, None, late, t0=T0, t1=T1, flow_init=start)
    expected = estimator.run(without(), t0=T0, t1=T1, flow_init=start[None])[0]
    np.testing.assert_allclose(found.flow, expected.flow, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "last", "start"),
    [
        (T0, T1, START),
        (START, T1, T0),  # nothing in the first slice
        (T0, START, T0),  # nothing after it
    ],
)
def test_when_the_network_starts(first, last, start):
    assert late_start(make_events(first, last), T0, T1, 4) == start


def test_an_interval_of_a_few_microseconds_starts_at_once():
    events = Events([1] * 5, [1] * 5, range(100, 105), [1] * 5, height=20, width=20)
    assert late_start(events, 100, 105, 4) == 101  # slices of 1 us
    assert late_start(events, 100, 104, 4) == 100
