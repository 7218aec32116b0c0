"""carry.py: flow that starts the next estimate."""

from __future__ import annotations

import numpy as np

from flowfuse.geometry.carry import carry_cells, carry_forward


def test_flow_is_carried_along_itself():
    flow = np.zeros((2, 3, 4), np.float32)
    flow[0, 1, 0] = 2  # lands on column 2 of row 1, where (0, 0) stays, too
    flow[1, 0, 3] = -1  # leaves the image
    carried = carry_forward(flow)
    assert carried[:, 1, 2].tolist() == [1.0, 0.0]  # the mean of both
    missing = np.isnan(carried).any(axis=0)
    assert missing.sum() == 2 and missing[1, 0] and missing[0, 3]
    assert (carried[:, ~missing][:, :1] == 0).all()


def test_flow_can_be_carried_part_of_the_way():
    flow = np.zeros((2, 2, 5), np.float32)
    flow[0] = 4.0
    carried = carry_forward(flow, flow / 4)
    assert np.isnan(carried[:, :, 0]).all() and (carried[0, :, 1:] == 4).all()


def test_flow_is_carried_from_cell_to_cell():
    """Cells of 4 px; the third column of cells moves one cell to the left, over what stays."""
    flow = np.zeros((2, 4, 14), np.float32)
    flow[0, :, 8:12] = -4.0
    carried = carry_cells(flow, flow, 4)
    assert carried.shape == flow.shape and carried.dtype == np.float32
    # Two cells meet; where none ends, the flow stays; the last cell is cut off by the border.
    assert carried[0, 0, ::4].tolist() == [0.0, -2.0, -4.0, 0.0]
    assert (carried[0] == np.repeat(carried[0, :1, ::4], 4, axis=1)[:, :14]).all()
    assert (carried[1] == 0).all()


def test_unknown_flow_is_not_carried():
    flow = np.full((2, 8, 8), 1.0, np.float32)
    known = np.ones((8, 8), bool)
    known[:4, 4:] = False
    flow[:, ~known] = np.nan
    carried = carry_cells(flow, np.zeros_like(flow), 4, known)
    missing = np.isnan(carried).any(axis=0)
    assert (missing == ~known).all() and (carried[:, known] == 1).all()
    nothing = carry_cells(flow, np.zeros_like(flow), 4, np.zeros((8, 8), bool))
    assert np.isnan(nothing).all()


def test_what_leaves_the_image_is_not_carried():
    flow = np.full((2, 8, 8), 100.0, np.float32)
    assert (carry_cells(flow, flow, 8) == 100).all(), "it stays, as nothing else comes"
