"""Uncertainty as a mixture of two Laplace distributions, after Wang et al., SEA-RAFT, ECCV 2024.

A pixel is either tracked (narrow component, scale 1/4 px) or ambiguous (wide component, learned
scale >= 1 px). The network gives two numbers per pixel: the logit of the narrow component's weight,
and a raw value whose softplus is the log of the wide component's scale.

SEA-RAFT's narrow component has a scale of 1 px. An error of half a px then costs little, and where
motion is slow the flow stays that far off.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NARROW_SCALE = 0.25  # px
MAX_LOG_SCALE = 7.0  # e^7 px: wider than any image's flow


def wide_log_scale(uncertainty: Tensor) -> Tensor:
    """Log scale (px) of the wide component, in [0, 7]: [..., 2, H, W] -> [..., 1, H, W]."""
    return F.softplus(uncertainty[..., 1:, :, :]).clamp(max=MAX_LOG_SCALE)


def widened(uncertainty: Tensor, factor: float) -> Tensor:
    """Give the wide component ``factor`` times the scale; the narrow one's is fixed.

    [..., 2, H, W] as the network gives it -> same.
    """
    log_scale = wide_log_scale(uncertainty) + math.log(factor)
    raw = log_scale + torch.log(-torch.expm1(-log_scale.clamp(min=1e-4)))  # softplus^-1
    return torch.cat((uncertainty[..., :1, :, :], raw), dim=-3)


def negative_log_likelihood(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Negative log-likelihood of an error under the mixture.

    Args:
        error: [..., 2, H, W], px, estimate minus ground truth per component.
        uncertainty: [..., 2, H, W], as the network gives it.

    Returns:
        [..., 2, H, W].
    """
    magnitude = error.abs()
    logit = uncertainty[..., :1, :, :]
    log_scale = wide_log_scale(uncertainty)
    narrow = F.logsigmoid(logit) - math.log(NARROW_SCALE) - magnitude / NARROW_SCALE
    wide = F.logsigmoid(-logit) - log_scale - magnitude * torch.exp(-log_scale)
    return math.log(2) - torch.logaddexp(narrow, wide)


def expected_error(uncertainty: Tensor) -> Tensor:
    """Expected absolute error per flow component in px: [..., 2, H, W] -> [..., H, W]."""
    weight = torch.sigmoid(uncertainty[..., 0, :, :])
    wide = torch.exp(wide_log_scale(uncertainty))[..., 0, :, :]
    return NARROW_SCALE * weight + (1 - weight) * wide
