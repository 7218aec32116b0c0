"""The one evaluation, on flows made by hand."""

import math

import cv2
import numpy as np
import pytest

from flowfuse.evaluation.baselines import BASELINES, DIS, FARNEBACK, ZERO, baseline_flows
from flowfuse.evaluation.boundaries import boundary_sums, motion_discontinuities
from flowfuse.evaluation.evaluate import (
    ALL,
    Estimate,
    GroundTruth,
    endpoint_sums,
    evaluate,
    pair_sums,
)
from flowfuse.evaluation.metrics import means

SIZE = (4, 5)


def constant(u: float, v: float = 0.0) -> np.ndarray:
    return np.broadcast_to(np.array([u, v])[:, None, None], (2, *SIZE)).copy()


def test_pairs_masks_and_rows():
    everywhere = np.ones(SIZE, bool)
    upper = np.zeros(SIZE, bool)
    upper[:2] = True
    pairs = []
    for error, valid in ((4.0, everywhere), (1.0, upper)):
        flow = constant(10.0)
        flow[0, 0] += error  # in row 0 alone
        ground_truth = GroundTruth.of_flow(constant(10.0), valid, masks={ALL: None, "top": upper})
        zero = Estimate(constant(0.0)[None])
        pairs.append(({"fused": Estimate(flow[None]), "zero": zero}, ground_truth))
    found = evaluate(pairs)
    assert found.masks == [ALL, "top"] and found.rows("top") == ["fused", "zero"]
    # 5 px of 20, then 5 px of 10; under the mask 5 of 10 both times.
    whole, top = found.summary("fused"), found.summary("fused", "top")
    assert whole["per_pixel"]["epe"] == (5 * 4 + 5 * 1) / 30
    assert whole["per_frame"]["epe"] == ((5 * 4 / 20) + (5 * 1 / 10)) / 2
    assert top["per_pixel"]["epe"] == (5 * 4 + 5 * 1) / 20 and top["valid_pixels"] == 20
    assert whole["per_pixel"]["3pe"] == pytest.approx(100 * 5 / 30)
    assert found.summary("zero")["per_pixel"]["epe"] == 10 and whole["frames"] == 2
    assert found.latest["top"]["fused"]["epe"] == (5.0, 10)
    # 4 px is more than 3 px, and not more than 0.5 of 10 px.
    relative = evaluate(pairs, outlier_fraction=0.5)
    assert relative.summary("fused")["per_pixel"]["3pe"] == 0


def test_paths_occlusion_and_uncertainty():
    truth = np.stack((constant(2.0), constant(8.0)))
    flow = np.stack((constant(4.0), constant(8.0)))
    occluded = np.zeros(SIZE, bool)
    occluded[0] = True
    flow[1, 0, 0] += 2  # what is hidden is off by 2 px
    flow[1, 0, 1] += 1
    ground_truth = GroundTruth(truth, np.ones((2, *SIZE), bool), (0.5, 1.0), occluded=occluded)
    uncertainty = flow[1, 0] - 8
    found = evaluate([({"a": Estimate(flow, uncertainty)}, ground_truth)])
    measures = means(found.sums("a"))
    assert measures["epe"] == (5 * 2 + 5 * 1) / 20
    assert measures["epe_occluded"] == 2 and measures["epe_visible"] == 5 / 15
    assert measures["tepe"] == 2 and measures["tepe_line_true_end"] == 2
    # The true deviation is -2 px; its own is 4 px less half of 10, 9 and 8 px.
    assert measures["deviation_error"] == (5 * 1 + 5 * 1.5 + 10 * 2) / (20 * 2)
    assert measures["ause"] == 0
    alone = evaluate([({"a": Estimate(flow[1:])}, GroundTruth.of_flow(truth[1], occluded))])
    assert not {"tepe", "ause", "epe_occluded"} & set(alone.sums("a"))


def test_a_pair_without_valid_pixels_counts_for_nothing():
    nothing = GroundTruth.of_flow(np.full((2, *SIZE), np.nan), np.zeros(SIZE, bool))
    found = evaluate([({"a": Estimate(constant(1.0)[None], np.ones(SIZE))}, nothing)])
    summary = found.summary("a")
    assert math.isnan(summary["per_pixel"]["epe"]) and summary["valid_pixels"] == 0
    assert "ause" not in summary["per_pixel"]


def test_endpoint_sums():
    truth = np.stack((constant(2.0), constant(8.0))).astype(np.float32)
    valid = np.ones((2, *SIZE), bool)
    valid[0, 0], valid[1, :2] = False, False
    flow = truth + np.float32([[[[3]], [[4]]], [[[0]], [[1]]]])
    counted = valid[1]
    sums = endpoint_sums(Estimate(flow), GroundTruth(truth, valid, (0.5, 1.0)), counted, 0.0)
    assert sums == {"epe": (10.0, 10), "tepe": (75.0, 15)}


def test_motion_discontinuities_by_hand():
    flow = np.zeros((2, 3, 6))
    flow[0, :, 3:] = 1.5  # a jump between columns 2 and 3
    flow[1, 2, :] = 0.5  # too small for one
    expected = np.zeros((3, 6), bool)
    expected[:, 2:4] = True
    assert np.array_equal(motion_discontinuities(flow), expected)
    valid = np.ones((3, 6), bool)
    valid[0, 3] = False
    expected[0] = False
    assert np.array_equal(motion_discontinuities(flow, valid), expected)
    assert not motion_discontinuities(flow, jump=1.5).any()
    assert motion_discontinuities(np.zeros((2, 1, 1))).shape == (1, 1)


def test_errors_by_distance_to_a_discontinuity():
    truth = np.zeros((2, 1, 20))
    truth[0, 0, 4:] = 6.0  # columns 3 and 4 are at the jump
    valid = np.ones((1, 20), bool)
    valid[0, 0] = False
    flow = truth.copy()
    flow[1, 0] = np.arange(20)  # column k is off by k px
    boundary = motion_discontinuities(truth, valid)
    sums = boundary_sums(flow, truth, valid, boundary)
    assert sums == {
        "epe_within_2": (float(sum(range(1, 7))), 6),
        "epe_within_5": (float(sum(range(1, 10))), 9),
        "epe_within_10": (float(sum(range(1, 15))), 14),
        "epe_beyond_10": (float(sum(range(15, 20))), 5),
    }
    nowhere = boundary_sums(flow, truth, valid, np.zeros((1, 20), bool))
    assert nowhere["epe_within_10"] == (0, 0) and nowhere["epe_beyond_10"] == (190, 19)
    known = GroundTruth.of_flow(truth, valid, motion_boundary=np.eye(1, 20))
    given = evaluate([({"a": Estimate(flow[None])}, known)]).sums("a")
    assert given["epe_within_2"] == (1 + 2, 2)  # columns 1 and 2: column 0 does not count


def test_all_measures_by_hand():
    truth = np.zeros((2, 2, 4, 5))
    truth[0, 0], truth[1, 0] = 6, 8  # at tau = 1/2 and 1: 2 px ahead of the straight line
    valid = np.ones((4, 5), bool)
    valid[0] = False
    flow = np.zeros_like(truth)
    flow[1, 0] = 8
    flow[1, 0, 1] += 4  # row 1 is off by 4 px, and said to be uncertain
    uncertainty = np.zeros((4, 5))
    uncertainty[1] = 1
    valid = np.broadcast_to(valid, (2, 4, 5))
    known = GroundTruth(truth, valid, (0.5, 1.0), motion_boundary=np.zeros((4, 5)))
    sums = pair_sums(Estimate(flow, uncertainty), known, valid[1], 0.0)
    assert sums["epe"] == (20, 15)
    assert sums["epe_boundary"] == (0, 0) and sums["epe_interior"] == (20, 15)
    assert sums["tepe"] == (6 * 15, 15)
    # Its own deviation is 0 - 4 px (0 - 6 px in row 1), the true one 2 px.
    assert sums["deviation_error"] == (10 * 6 + 5 * 8, 15 * 2)
    assert sums["ause"] == (0, 1)
    # 12 of 15 pixels are kept: 10 without an error and 2 with 4 px.
    assert sums["epe_certain"] == (pytest.approx(20 * (8 / 12) / (20 / 15)), 20)
    assert sums["epe_certain_limit"] == sums["epe_certain"]
    alone = pair_sums(Estimate(flow[1:]), GroundTruth.of_flow(truth[1], valid[1]), valid[1], 0.0)
    assert not {"tepe", "ause", "epe_certain"} & set(alone) and alone["epe_interior"] == (0, 0)


def test_baselines_find_the_motion():
    noise = np.random.default_rng(0).random((64, 80), np.float32)
    image = cv2.normalize(cv2.GaussianBlur(noise, None, 2), None, 0, 255, cv2.NORM_MINMAX)
    frame0 = image.astype(np.uint8)
    found = baseline_flows(frame0, np.roll(frame0, 3, axis=1))
    assert list(found) == list(BASELINES)
    for name in (DIS, FARNEBACK):
        # Wide: how well they do is not tested, but right and down have their places.
        assert np.median(found[name][0]) == pytest.approx(3, abs=0.5)
        assert np.median(found[name][1]) == pytest.approx(0, abs=0.5)
    assert found[ZERO].shape == (2, 64, 80) and not found[ZERO].any()
