"""Sides of motion discontinuities and thin structures, on flows made by hand."""

from __future__ import annotations

import numpy as np

from flowfuse.evaluation.boundaries import find_sides, side_sums
from flowfuse.evaluation.evaluate import Estimate, GroundTruth, evaluate
from flowfuse.evaluation.grid import grid_sums


def strips(*parts: tuple[int, float], height: int = 1) -> np.ndarray:
    """Flow of strips from left to right: widths and u."""
    u = np.concatenate([np.full(width, value) for width, value in parts])
    flow = np.zeros((2, height, len(u)))
    flow[0] = u
    return flow


def test_sides_by_hand():
    # Columns 0 .. 11 are still, 12 .. 19 move by 3 px, 20 .. 29 by 1.5 px.
    truth = strips((12, 0.0), (8, 3.0), (10, 1.5))
    sides = find_sides(truth)
    # Marked are the columns 11 and 12, 19 and 20.
    distance = [min(abs(x - marked) for marked in (11, 12, 19, 20)) for x in range(30)]
    assert sides.distance[0].tolist() == distance
    assert sides.front[0].tolist() == [False] * 12 + [True] * 8 + [False] * 10
    flow = truth.copy()
    flow[1, 0] = np.arange(30)  # column k is off by k px
    valid = np.ones((1, 30), bool)
    valid[0, 11] = False
    sums = side_sums(flow, truth, valid, sides)
    assert sums["epe_behind_2"] == (9 + 10 + 20 + 21 + 22, 5)
    assert sums["epe_behind_5"] == (sum(range(6, 11)) + sum(range(20, 26)), 11)
    assert sums["epe_behind_10"] == (sum(range(1, 11)) + sum(range(20, 30)), 20)
    assert sums["epe_front_2"] == (12 + 13 + 14 + 17 + 18 + 19, 6)
    assert sums["epe_front_5"] == sums["epe_front_10"] == (sum(range(12, 20)), 8)
    everywhere = np.ones((1, 30), bool)
    known = GroundTruth.of_flow(truth, everywhere, masks={"some": valid})
    found = evaluate([({"a": Estimate(flow[None])}, known)]).sums("a", "some")
    assert {name: found[name] for name in sums} == sums


def test_a_corner_belongs_to_the_side_that_it_lies_on():
    truth = np.zeros((2, 12, 12))
    truth[0, 4:, 4:] = 2
    sides = find_sides(truth)
    # Column 3 of row 3 touches the moving corner only diagonally: it is not marked itself.
    assert sides.distance[3, 3] == 1 and not sides.front[3, 3] and sides.distance[4, 4] == 0
    np.testing.assert_array_equal(sides.front, truth[0] > 0)


def test_occlusion_tells_what_is_in_front():
    # A still bar, columns 30 .. 33, before a background that moves to the right by 3 px, or by 20
    # px past it. It is in front although it is slower: columns 27 .. 29, or 10 .. 13, are hidden at
    # the end.
    for motion, columns in ((3, slice(27, 30)), (20, slice(10, 14))):
        truth = np.full((2, 20, 60), 0.0)
        truth[0] = motion
        truth[0, 5:15, 30:34] = 0
        occluded = np.zeros((20, 60), bool)
        occluded[5:15, columns] = True
        sides = find_sides(truth, None, occluded)
        np.testing.assert_array_equal(sides.front, truth[0] == 0)
        np.testing.assert_array_equal(sides.thin, truth[0] == 0)
        # By the speed alone it is the other way round.
        np.testing.assert_array_equal(find_sides(truth).front, truth[0] > 0)
        known = GroundTruth.of_flow(truth, np.ones((20, 60), bool), occluded=occluded)
        np.testing.assert_array_equal(known.sides.front, sides.front)


def test_what_leaves_the_image_is_hidden_by_nothing():
    truth = strips((25, 0.0), (5, 6.0), height=4)
    gone = truth[0] > 0
    np.testing.assert_array_equal(find_sides(truth, None, gone).front, gone)


def test_opposite_motion_of_one_speed_has_two_sides_in_front():
    assert find_sides(strips((4, -2.0), (4, 2.0))).front.all()


def test_no_discontinuity_has_no_side():
    truth = strips((10, 1.0))
    sides = find_sides(truth)
    sums = side_sums(truth, truth, np.ones((1, 10), bool), sides)
    assert np.isinf(sides.distance).all() and set(sums.values()) == {(0.0, 0)}
    # A jump to what is not known is none.
    jump = strips((5, 1.0), (5, np.inf))
    assert np.isinf(find_sides(jump, np.isfinite(jump[0])).distance).all()


def test_thin_is_what_moves_and_is_narrower_than_8_px():
    for width, thin in ((1, True), (2, True), (7, True), (8, False), (12, False)):
        truth = strips((16, 0.0), (width, 4.0), (16, 0.0), height=40)
        expected = (truth[0] > 0) & thin
        np.testing.assert_array_equal(find_sides(truth).thin, expected)
    # What is narrow and slower, as a gap in a fence that moves, is none.
    gap = strips((16, 4.0), (4, 0.0), (16, 4.0), height=40)
    assert not find_sides(gap).thin.any()
    # A strip that ends at the border of the image may go on there.
    assert find_sides(strips((4, 4.0), (16, 0.0), height=40)).thin[:, :4].sum() == 0


def test_legs_are_thin_and_the_body_is_not():
    truth = np.zeros((2, 60, 60))
    truth[0, 10:30, 10:50] = 5  # the body, whose corners are no thin parts
    truth[0, 30:50, 14:18] = 5  # a leg 4 px wide
    thin = find_sides(truth).thin
    assert thin[34:50, 14:18].all()
    # Less than a half-disc of 4 px of its begin may count to the body.
    assert thin[:34].sum() <= 4 * 4 and not thin[:30].any() and not thin[:, 18:].any()


def test_grid_by_hand():
    height, width = 2, 40
    truth = np.zeros((2, height, width))
    truth[0] = 3
    valid = np.ones((height, width), bool)
    flow = truth.copy()
    # 0.4 px more from cell to cell of 4 px, 0.1 px more from column to column inside: 9 borders and
    # 30 other steps a row.
    steps = np.where(np.arange(1, width) % 4 == 0, 0.4, 0.1)
    flow[0, :, 1:] += np.cumsum(steps)
    numerator, divisor = grid_sums(flow, truth, valid, find_sides(truth))["grid"]
    np.testing.assert_allclose((numerator, divisor), (30 / 9 * 2 * 9 * 0.4, 2 * 30 * 0.1))
    assert np.isclose(numerator / divisor, 4)
    # Of a still region, of one beside a discontinuity, and of a slope there is nothing to tell.
    assert grid_sums(flow, truth / 4, valid, find_sides(truth))["grid"] == (0, 0)
    jump = truth.copy()
    jump[0, 1] = 5
    assert grid_sums(flow, jump, valid, find_sides(jump))["grid"] == (0, 0)
    slope = truth + 0.1 * np.arange(width)
    assert grid_sums(flow, slope, valid, find_sides(slope))["grid"] == (0, 0)
    assert grid_sums(truth, truth, valid, find_sides(truth))["grid"] == (0, 0)
