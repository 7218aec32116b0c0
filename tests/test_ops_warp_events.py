from __future__ import annotations

import pytest
import torch

from flowfuse import ops


def times(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def random_events(count=60, height=6, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, generator=generator, dtype=dtype) * (width - 1)
    y = torch.rand(count, generator=generator, dtype=dtype) * (height - 1)
    t = torch.randint(0, 1000, (count,), generator=generator)
    p = torch.randint(0, 2, (count,), generator=generator, dtype=torch.uint8)
    return x, y, t, p, times(0, count // 2, count)


def warp(events, trajectory, mode="signed", t_ref=1000, height=6, width=7):
    items = trajectory.shape[0]
    return ops.warp_events(
        *events, trajectory, times(*[0] * items), times(*[1000] * items), times(*[t_ref] * items),
        mode, height, width,
    )  # fmt: skip


def test_hand_moved_event():
    # u = (2, 0) over [0, 1000): from t = 500 to t = 1000 the event moves 1 px; to t = 625, 0.25 px.
    events = (times(1), times(0), times(500), torch.ones(1, dtype=torch.uint8), times(0, 1))
    flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    assert warp(events, flow, height=1, width=4).tolist() == [[[[0, 0, 1, 0]]]]
    assert warp(events, flow, t_ref=625, height=1, width=4).tolist() == [[[[0, 0.75, 0.25, 0]]]]


def test_hand_modes():
    events = (times(1, 1, 2), times(0, 0, 0), times(0, 0, 0), torch.tensor([1, 0, 0]), times(0, 3))
    flow = torch.zeros(1, 2, 1, 4)
    assert warp(events, flow, "signed", height=1, width=4).tolist() == [[[[0, 0, -1, 0]]]]
    assert warp(events, flow, "unsigned", height=1, width=4).tolist() == [[[[0, 2, 1, 0]]]]
    split = warp(events, flow, "split", height=1, width=4)
    assert split.tolist() == [[[[0, 1, 1, 0]], [[0, 1, 0, 0]]]]


def test_hand_quadratic_trajectory():
    # P_1 = 0, P_2 = 4: x(tau) = 4 tau^2; from tau = 0.5 (1 px) to tau = 1 (4 px): 3 px further.
    events = (times(1), times(0), times(500), torch.ones(1, dtype=torch.uint8), times(0, 1))
    points = torch.zeros(1, 2, 2, 1, 6)
    points[0, 1, 0] = 4.0
    assert warp(events, points, height=1, width=6).tolist() == [[[[0, 0, 0, 0, 1, 0]]]]


def test_reference_flow_is_a_trajectory_of_degree_one():
    flow = torch.randn(2, 2, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = torch.stack(
        [flow / 2, flow], dim=1
    )  # P_1 = P_2 / 2 is the straight line as a quadratic
    # Two ways to the same displacement, in float64.
    torch.testing.assert_close(
        warp(random_events(), flow), warp(random_events(), linear), rtol=0, atol=1e-13
    )


def test_gradcheck():
    """Events and motion away from integers, where the splat has its kinks."""
    x = torch.tensor([1.3, 2.4, 3.6], dtype=torch.float64)
    y = torch.tensor([1.6, 2.3, 1.4], dtype=torch.float64)
    events = (x, y, times(0, 300, 700), torch.tensor([1, 0, 1]), times(0, 2, 3))
    shape = (2, 2, 2, 5, 6)
    points = 0.1 * torch.randn(
        shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for mode in ("signed", "split"):
        torch.autograd.gradcheck(
            lambda c, mode=mode: warp(events, c, mode, height=5, width=6), points.requires_grad_()
        )


def test_edge_left_out():
    x = torch.tensor([torch.nan, torch.inf, -1.0, 4.0, 1.0, 1.0, 1.0])
    events = (x, torch.zeros(7), times(0, 0, 0, 0, -1, 1000, 0), torch.ones(7).bool(), times(0, 7))
    image = warp(events, torch.zeros(1, 2, 1, 4), "unsigned", height=1, width=4)
    assert image.tolist() == [[[[0, 1, 0, 0]]]]


def test_edge_motion_out_of_the_image():
    events = (times(0, 3), times(0, 0), times(0, 0), torch.ones(2).bool(), times(0, 2))
    for u in (1e30, torch.inf, torch.nan):
        flow = torch.full((1, 2, 1, 4), u)
        assert not warp(events, flow, height=1, width=4).any()


def test_edge_empty():
    empty = times()
    events = (empty, empty, empty, empty, times(0, 0))
    assert not warp(events, torch.zeros(1, 2, 2, 3), height=2, width=3).any()


def test_same_bits():
    flow = torch.randn(2, 2, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2):
            torch.set_num_threads(count)
            results.append(warp(random_events(), flow))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("mode", "trajectory", "message"),
    [
        ("count", torch.zeros(2, 2, 6, 7), "mode must be 'signed', .* or 'split', got 'count'"),
        (
            "signed", torch.zeros(2, 2, 5, 7),
            r"trajectory must have shape \[2, 2, 6, 7\] or \[2, n, 2, 6, 7\], got \[2, 2, 5, 7\]",
        ),
        ("signed", torch.zeros(2, 2, 6, 7).half(), "trajectory must be of dtype float32, float64"),
    ],
)  # fmt: skip
def test_error_messages(mode, trajectory, message):
    with pytest.raises(ValueError, match="warp_events: " + message):
        warp(random_events(), trajectory, mode)


def test_error_window():
    x, y, t, p, offsets = random_events()
    flow = torch.zeros(2, 2, 6, 7)
    with pytest.raises(
        ValueError, match="warp_events: t1 must be later than t0, got t0 = 5, t1 = 5"
    ):
        ops.warp_events(
            x, y, t, p, offsets, flow, times(5, 5), times(5, 5), times(5, 5), "signed", 6, 7
        )
