"""carry.py: flow that starts the next estimate."""

from __future__ import annotations

import numpy as np

from flowfuse.geometry.carry import carry_forward


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
