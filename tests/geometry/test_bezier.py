import pytest
import torch

from flowfuse.geometry.bezier import bernstein, bezier, bezier_velocity, fit_bezier, restrict_bezier


def points(*values):
    """Control points of a one-pixel field that moves in x only."""
    field = torch.zeros(1, len(values), 2, 1, 1, dtype=torch.float64)
    field[0, :, 0, 0, 0] = torch.tensor(values)
    return field


def test_quadratic_by_hand():
    # x(tau) = 2 tau (1 - tau) P1 + tau^2 P2 with P1 = 1, P2 = 4: x(0.5) = 0.5 + 1
    assert bezier(points(1, 4), 0.5)[0, 0, 0, 0] == 1.5
    # x'(tau) = 2 (1 - 2 tau) P1 + 2 tau P2
    assert bezier_velocity(points(1, 4), 0.5)[0, 0, 0, 0] == 4
    assert bezier_velocity(points(1, 4), 0.0)[0, 0, 0, 0] == 2


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_ends(degree):
    control = torch.randn(2, degree, 2, 3, 4)
    assert bezier(control, 0.0).abs().max() == 0
    torch.testing.assert_close(bezier(control, 1.0), control[:, -1])


def test_evenly_spaced_points_are_a_straight_line():
    control = points(1, 2, 3)
    for tau in (0.2, 0.7):
        assert bezier(control, tau)[0, 0, 0, 0].item() == pytest.approx(3 * tau)
        assert bezier_velocity(control, tau)[0, 0, 0, 0].item() == pytest.approx(3)


def test_velocity_is_the_derivative():
    control = torch.randn(1, 4, 2, 3, 3, dtype=torch.float64)
    step = 1e-6
    slope = (bezier(control, 0.3 + step) - bezier(control, 0.3 - step)) / (2 * step)
    # 1e-8: the second-order error of the central difference and float64 rounding / step
    torch.testing.assert_close(bezier_velocity(control, 0.3), slope, atol=1e-8, rtol=1e-7)


def test_several_times_per_item():
    control = torch.randn(2, 3, 2, 4, 5)
    tau = torch.tensor([[0.1, 1.0], [0.4, 0.9]])
    many = bezier(control, tau)
    assert many.shape == (2, 2, 2, 4, 5)
    torch.testing.assert_close(many[1, 1], bezier(control, 0.9)[1])
    torch.testing.assert_close(bezier(control, tau[:, 0])[1], many[1, 0])


def test_fit_recovers_control_points():
    control = torch.randn(1, 3, 2, 4, 5)
    tau = torch.tensor([0.2, 0.4, 0.7, 1.0])
    samples = bezier(control, tau[None])
    torch.testing.assert_close(fit_bezier(samples, tau, 3), control, atol=1e-4, rtol=1e-4)
    # Each item its own times: four of them, and as many as control points.
    control, tau = (
        torch.randn(2, 3, 2, 4, 5),
        torch.tensor([[0.2, 0.4, 0.7, 1], [0.1, 0.5, 0.8, 1]]),
    )
    samples = bezier(control, tau)
    for times in (slice(None), slice(1, None)):
        found = fit_bezier(samples[:, times], tau[:, times], 3)
        torch.testing.assert_close(found, control, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="5 control points need at least 5 times, got 4"):
        fit_bezier(samples, tau[0], 5)


def test_autocast_keeps_positions_exact():
    control = torch.full((1, 3, 2, 1, 1), 601.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert bezier(control, 1.0).flatten().tolist() == [601.0, 601.0]


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("span", [(-0.25, 1.0), (0.25, 0.75), (0.0, 1.0)])
def test_restricting_keeps_the_curve(degree, span):
    control = torch.randn(2, degree, 2, 3, 4, dtype=torch.float64)
    new = restrict_bezier(control, *span)
    assert new.shape == (2, degree + 1, 2, 3, 4)
    for tau in (0.0, 0.3, 1.0):
        there = span[0] + (span[1] - span[0]) * tau
        old = torch.einsum(
            "n,bn...->b...", bernstein(degree, torch.tensor(there).double()), control
        )
        moved = bezier(new[:, 1:] - new[:, :1], tau) + new[:, 0]
        torch.testing.assert_close(moved, old)
