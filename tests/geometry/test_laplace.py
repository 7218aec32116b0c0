import math

import torch

from flowfuse.geometry.laplace import (
    expected_error,
    negative_log_likelihood,
    wide_log_scale,
    widened,
)


def field(logit, raw):
    return torch.tensor([logit, raw], dtype=torch.float64).view(1, 2, 1, 1)


def test_one_narrow_laplace_by_hand():
    error = torch.tensor([3.0, 0.5], dtype=torch.float64).view(1, 2, 1, 1)
    nll = negative_log_likelihood(error, field(100.0, 2.0))
    # a Laplace of scale 1/4: log(2 / 4) + 4 |e|
    torch.testing.assert_close(nll.flatten(), math.log(0.5) + 4 * error.flatten())
    assert expected_error(field(100.0, 2.0)).item() == 0.25


def test_density_integrates_to_one():
    error = torch.linspace(-400, 400, 80001, dtype=torch.float64).view(1, 1, 1, -1)
    uncertainty = field(0.3, 2.0).expand(1, 2, 1, 80001)
    density = torch.exp(-negative_log_likelihood(error, uncertainty))
    # 1e-3: the trapezoid rule at the cusp, and the tails cut off at e^-50
    assert abs(torch.trapezoid(density.flatten(), error.flatten()).item() - 1) < 1e-3
    mean = torch.trapezoid((density * error.abs()).flatten(), error.flatten()).item()
    assert abs(mean - expected_error(field(0.3, 2.0)).item()) < 1e-2


def test_scale_is_bounded_and_never_dead():
    raw = torch.tensor([-50.0, -1.0, 0.0, 50.0])
    uncertainty = torch.stack((torch.zeros(4), raw)).view(2, 1, 4).requires_grad_()
    scale = wide_log_scale(uncertainty)
    assert scale.min() >= 0 and scale.max() <= 7
    scale.sum().backward()
    assert uncertainty.grad[1, 0, 1] > 0.1  # below zero the gradient still flows


def test_the_wide_component_is_widened():
    uncertainty = (3 * torch.randn(2, 2, 5, 6)).clamp(max=6)
    wider = widened(uncertainty, 1.25)
    assert torch.equal(wider[:, :1], uncertainty[:, :1])
    expected = wide_log_scale(uncertainty).exp() * 1.25
    torch.testing.assert_close(wide_log_scale(wider).exp(), expected)
