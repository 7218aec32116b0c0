"""Metrics on flows made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flowfuse.evaluation.metrics import (
    FlowMetrics,
    boundary_band,
    event_sharpness,
    flow_metrics,
    flow_sums,
    photometric_error,
    trajectory_metrics,
    trajectory_sums,
    uncertainty_metrics,
)
from flowfuse.events import Events

# True (u, v) and estimates of five pixels; errors 0, 1.5, 5, 2.5 and, invalid, 1000.
TRUTH = np.array([[[0, 6, 30, 60, 0]], [[0, 0, 40, 0, 0]]], float)
FLOW = np.array([[[0, 6, 33, 60, 1000]], [[0, 1.5, 44, 2.5, 0]]], float)
VALID = np.array([[1, 1, 1, 1, 0]], bool)


def field(u, v, height=6, width=8):
    return np.broadcast_to(np.array([u, v], float)[:, None, None], (2, height, width))


def test_endpoint_errors_by_hand():
    found = flow_metrics(FLOW, TRUTH, VALID)
    expected = {
        "epe": (0 + 1.5 + 5 + 2.5) / 4,
        "1pe": 75,
        "2pe": 50,
        "3pe": 25,
        "f1_all": 25,
        "epe_below_10": 0.75,
        "epe_above_40": 3.75,
        "valid_pixels": 4,
    }
    assert {name: found[name] for name in expected} == expected
    assert math.isnan(found["epe_10_to_40"]) and math.isnan(found["epe_boundary"])


def test_outliers_relative_to_the_magnitude():
    ground_truth, flow = field(100, 0), field(104, 0)  # 4 px are 4 % of 100 px
    assert (
        flow_metrics(flow, ground_truth)["f1_all"] == 0
        and flow_metrics(flow, ground_truth)["3pe"] == 100
    )
    assert flow_metrics(flow, ground_truth, outlier_fraction=0.05)["3pe"] == 0
    # "At least" this fraction: 4 px of 64 px are exactly 1/16.
    found = flow_metrics(field(68, 0), field(64, 0), outlier_fraction=1 / 16)
    assert found["3pe"] == 100 and found["1pe"] == 100


@pytest.mark.parametrize(
    ("flow", "ground_truth", "angle"),
    [((0, 0), (1, 0), 45), ((1, 0), (0, 1), 60), ((1, 0), (1, 0), 0), ((0, 0), (0, 1e-9), 5.7e-8)],
)
def test_angle_between_space_time_vectors(flow, ground_truth, angle):
    found = flow_metrics(field(*flow), field(*ground_truth))["ae"]
    assert found == pytest.approx(angle, rel=0.01, abs=1e-12)  # 0.01: 5.7e-8 is rounded


def test_boundary_band_is_a_disc():
    line = np.zeros((1, 20), bool)
    line[0, 3] = True
    assert np.flatnonzero(boundary_band(line)[0]).tolist() == list(range(0, 9))
    point = np.zeros((21, 21))
    point[10, 10] = 1
    y, x = np.mgrid[-10:11, -10:11]
    np.testing.assert_array_equal(boundary_band(point), x**2 + y**2 <= 25)
    ground_truth, flow = np.zeros((2, 1, 20)), np.zeros((2, 1, 20))
    flow[0, 0, :9], flow[0, 0, 9:] = 2, 1
    found = flow_metrics(flow, ground_truth, boundary=line)
    assert (found["epe_boundary"], found["epe_interior"]) == (2, 1)
    found = flow_metrics(flow, ground_truth, boundary=np.zeros_like(line))
    assert math.isnan(found["epe_boundary"]) and found["epe_interior"] == pytest.approx(1.45)


def test_no_valid_pixel_is_nan():
    found = flow_metrics(FLOW, TRUTH, np.zeros((1, 5), bool))
    assert found.pop("valid_pixels") == 0 and all(math.isnan(value) for value in found.values())


def test_invalid_pixels_have_no_say():
    spoiled = np.where(VALID, FLOW, np.nan)
    assert flow_metrics(spoiled, TRUTH, VALID)["epe"] == flow_metrics(FLOW, TRUTH, VALID)["epe"]


def test_both_averages():
    metrics = FlowMetrics()
    metrics.add_sums(
        flow_sums(field(1, 0), field(0, 0), np.arange(48).reshape(6, 8) < 10)
    )  # 10 px, EPE 1
    metrics.add_sums(
        flow_sums(field(4, 0), field(0, 0), np.arange(48).reshape(6, 8) < 30)
    )  # 30 px, EPE 4
    metrics.add_sums(flow_sums(field(9, 0), field(0, 0), np.zeros((6, 8), bool)))
    found = metrics.summary()
    assert found["per_pixel"]["epe"] == (10 * 1 + 30 * 4) / 40
    assert found["per_frame"]["epe"] == (1 + 4) / 2
    assert found["frames"] == 3 and found["valid_pixels"] == 40
    assert math.isnan(found["per_pixel"]["epe_above_40"])
    assert math.isnan(found["per_frame"]["epe_above_40"])
    assert FlowMetrics().summary()["per_pixel"] == {}


def test_trajectories():
    tau = np.array([0.25, 0.5])
    true_end, end = field(8, 0), field(8, 2)
    ground_truths = np.stack([field(2, 3), field(4, 0.5)])  # 3 and 0.5 px off the straight line
    estimates = np.stack([field(2, 3 + 0.5), field(4, 1)])  # the true deviation from its own line
    found = trajectory_metrics(estimates, ground_truths, tau, end, true_end)
    assert found["tepe"] == 0.5 and found["deviation_error"] == pytest.approx(0)
    assert found["tepe_line_true_end"] == (3 + 0.5) / 2
    assert found["tepe_line_own_end"] == (2.5 + 0.5) / 2
    straight = tau[:, None, None, None] * end
    assert trajectory_metrics(straight, ground_truths, tau, end, true_end)["deviation_error"] == 1
    # Two pairs together: 48 pixels that deviate by 3 px each, all of it missed in one of them.
    missed = trajectory_sums(straight, ground_truths, tau, end, true_end)["deviation_error"]
    found = trajectory_sums(estimates, ground_truths, tau, end, true_end)["deviation_error"]
    assert (missed[0] + found[0]) / (missed[1] + found[1]) == pytest.approx(0.5)
    # Where nothing deviates by 1 px, the deviation error is undefined.
    found = trajectory_metrics(estimates[1:], ground_truths[1:], tau[1:], end, true_end)
    assert math.isnan(found["deviation_error"]) and found["tepe"] == 0.5
    found = trajectory_metrics(estimates, ground_truths, tau, end, true_end, np.zeros((6, 8), bool))
    assert all(math.isnan(value) for value in found.values())


def test_uncertainty_ranking():
    rng = np.random.default_rng(0)
    ground_truth = np.zeros((2, 20, 20))
    flow = rng.normal(size=(2, 20, 20)) + 50
    flow[1] = 0
    ground_truth[0] = 50
    error = np.abs(flow[0] - 50)
    found = uncertainty_metrics(flow, ground_truth, np.exp(error))
    assert found["ause"] == 0 < found["ause_magnitude"]
    assert uncertainty_metrics(flow, ground_truth, -error)["ause"] > found["ause_magnitude"]
    perfect = {"ause": 0.0, "ause_magnitude": 0.0, "epe_certain": 1.0, "epe_certain_limit": 1.0}
    assert uncertainty_metrics(ground_truth, ground_truth, error) == perfect
    nothing = uncertainty_metrics(flow, ground_truth, error, np.zeros((20, 20)))
    assert set(nothing) == set(perfect) and all(map(math.isnan, nothing.values()))
    # Four errors 1, 1, 1, 5 and two portions: all, then the better half (1, 1). Ranked wrongly the
    # half is (1, 5) with mean 3; relative to the mean of all, 2, the curves differ by 0 and 1.
    four = np.array([[[1.0, 1, 1, 5]], [[0, 0, 0, 0]]])
    found = uncertainty_metrics(four, np.zeros((2, 1, 4)), np.array([[3, 4, 2, 1]]), steps=2)
    assert found["ause"] == 0.5
    # Of five errors 1, 1, 1, 1, 6 (mean 2) the four most certain leave out one 1: mean 9 / 4.
    five = np.array([[[1.0, 1, 1, 1, 6]], [[0, 0, 0, 0, 0]]])
    found = uncertainty_metrics(five, np.zeros((2, 1, 5)), np.array([[9, 1, 1, 1, 1]]))
    assert found["epe_certain"] == 1.125 and found["epe_certain_limit"] == 0.5


@pytest.mark.parametrize("channels", [(), (3,)])
def test_photometric_error(channels):
    frame0 = np.random.default_rng(0).integers(0, 256, (6, 8, *channels)).astype(np.uint8)
    frame1 = np.roll(frame0, 2, axis=1)
    # 1e-6: rounding of the sampling grid.
    assert photometric_error(frame0, frame1, field(2, 0)) == pytest.approx(0, abs=1e-6)
    still = np.abs(frame0 / 255 - frame1 / 255).mean()
    assert photometric_error(frame0, frame1, field(0, 0)) == pytest.approx(still, abs=1e-6)
    assert photometric_error(frame0 / 255, frame1 / 255, field(0, 0)) == pytest.approx(still)
    assert math.isnan(photometric_error(frame0, frame1, field(99, 0)))
    with pytest.raises(ValueError, match="frame1 must have shape"):
        photometric_error(frame0, frame1[1:], field(0, 0))


def test_event_sharpness():
    # One point moves from x = 0 to 7 and fires in each column: undone, 8 events meet in one pixel.
    x = np.arange(8)
    events = Events(x, np.full(8, 2), 1000 + x * 10, x % 2, height=6, width=8)
    flow = field(8, 0)  # px in 80 us
    still, sharp = np.zeros((6, 8)), np.zeros((6, 8))
    still[2], sharp[2, 0] = 1, 8
    assert event_sharpness(events, flow, 1000, 1080) == pytest.approx(sharp.var() / still.var())
    assert event_sharpness(events, 0 * flow, 1000, 1080) == 1
    assert event_sharpness(events, -flow, 1000, 1080) < 1
    assert math.isnan(event_sharpness(Events.empty(6, 8), flow, 1000, 1080))
    with pytest.raises(ValueError, match="t1 must be later than t0"):
        event_sharpness(events, flow, 5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow_metrics(FLOW[0], TRUTH), r"flow must have shape \[2, H, W\], got \[1, 5\]"),
        (
            lambda: flow_metrics(FLOW, TRUTH[:, :, 1:]),
            r"flow is \[2, 1, 5\], ground truth is \[2, 1, 4\]",
        ),
        (lambda: flow_metrics(FLOW, TRUTH, VALID.T), r"valid must have shape \[1, 5\]"),
        (lambda: flow_metrics(FLOW, TRUTH, boundary=FLOW), r"boundary must have shape \[1, 5\]"),
        (lambda: uncertainty_metrics(FLOW, TRUTH, FLOW), "uncertainty must have shape"),
        (lambda: trajectory_metrics(FLOW[None], TRUTH[None], [0.1, 0.2], FLOW, TRUTH), "tau must"),
        (lambda: trajectory_metrics(FLOW[None], TRUTH[None], [0.5], FLOW[..., 1:], TRUTH), "end"),
        (lambda: trajectory_metrics(FLOW[None], TRUTH[None], [0.5], FLOW, TRUTH[..., 1:]), "end"),
    ],
)
def test_bad_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
