"""Times, exposures, iterations and flows that a caller gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimator_cases import FLAT, GOOD

from flowfuse.estimator.arguments import as_flow_init, check_flow_init, is_torch


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(t0=5, t1=5), "t1 must be later than t0, got t0 = 5 us"),
        (dict(t0=0, t1=1), "too short for 2 slices"),
        (dict(t0=0.1, t1=0.2), "t0 must be integer microseconds, got 0.1"),
        (dict(t0=7, t1=2**43), f"most {2**40} us, got t0 = 7 us, t1 = {2**43}"),
        (dict(GOOD, history="yes"), "True, False or None, got 'yes'"),
        (dict(GOOD, flow_init="zero"), r"numbers of shape \[2, 37, 50\], got str"),
        (dict(GOOD, flow_init=[None]), r"numbers of shape \[2, 37, 50\], got list"),
        (dict(GOOD, exposure0=-1), "exposure0 must not be negative"),
        (dict(GOOD, iterations=0), "iterations must be at least 1"),
        (dict(GOOD, iterations=1.5), "iterations must be an integer, got 1.5"),
        (dict(GOOD, iterations="a"), "iterations must be an integer, got 'a'"),
        (dict(GOOD, iterations=True), "iterations must be an integer, got True"),
        (dict(t0=False, t1=5), "t0 must be integer microseconds, got False"),
        (dict(GOOD, as_torch="np"), "as_torch must be True, False or None, got 'np'"),
        (
            dict(GOOD, flow_init=np.full((2, 37, 50), -1e6)),
            "flow_init must be px of an image of 50 x 37 px, .* side, 500 px; got 1e\\+06 px",
        ),
        (dict(t0=0, t1=2**70), r"t1 must be within \+-2305843009213693952 us"),
    ],
)
def test_wrong_numbers_are_named(estimator, given, message):
    with pytest.raises(ValueError, match=message):
        estimator(FLAT, FLAT, None, **given)


def test_a_flow_to_start_from_gets_a_batch_axis():
    flow = np.ones((2, 3, 4))
    found = as_flow_init(flow, 3, 4)
    assert found.shape == (1, 2, 3, 4) and found.dtype == torch.float32
    assert as_flow_init(flow[None].repeat(2, axis=0), 3, 4, 2).shape == (2, 2, 3, 4)
    assert as_flow_init(None, 3, 4) is None
    with pytest.raises(ValueError, match=r"must have shape \[2, 2, 3, 4\], got \[2, 3, 4\]"):
        as_flow_init(flow, 3, 4, 2)


def test_a_flow_that_cannot_be_px_is_refused():
    flow = torch.full((1, 2, 3, 4), 40.0)
    flow[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, -40.0])
    check_flow_init(flow)
    check_flow_init(None)
    flow[0, 1, 2, 3] = -40.5
    with pytest.raises(ValueError, match=r"image of 4 x 3 px, .*, 40 px; got 40\.5 px"):
        check_flow_init(flow)


def test_tensors_give_tensors():
    array, tensor = np.zeros(3), torch.zeros(3)
    for frame0, frame1, events, expected in (
        (array, None, (tensor,) * 4, False),
        (array, tensor, None, True),
        (None, None, (array, array, tensor, array), True),
        (None, None, {"t": tensor}, True),
        (None, None, None, False),
    ):
        assert is_torch(frame0, frame1, events) == expected
