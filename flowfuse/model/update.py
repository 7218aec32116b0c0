"""The first estimate and the recurrent update of Bezier trajectories."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.model.encoders import ResidualBlock, activate, group_count, normalize

LOGIT_SCALE = 0.25  # keeps the softmax of the upsampling from saturating early, as RAFT found


class InitHead(nn.Module):
    """Regress trajectories from all latents at 1/16 and 1/32, where large motions are small.

    Args:
        in_channels: channels of the stacked latents.
        channels: width.
        degree: control points per trajectory.
    """

    def __init__(self, in_channels: int, channels: int, degree: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, channels, 1)
        self.down1 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(group_count(channels), channels)
        self.down2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.block = ResidualBlock(2 * channels)
        self.up = nn.Conv2d(2 * channels, channels, 1)
        self.mix = ResidualBlock(channels)
        self.head = nn.Conv2d(channels, 2 * degree, 3, padding=1)
        start_near_zero(self.head)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> control points [B, 2 n, h, w] in px of the latent."""
        x = activate(self.squeeze(latents))
        x1 = normalize(self.norm1, self.down1(x))  # 1/16
        x2 = self.block(activate(self.down2(x1)))  # 1/32
        x2 = F.interpolate(self.up(x2), size=x1.shape[-2:], mode="bilinear", align_corners=False)
        estimate = self.head(self.mix(x1 + x2)).float()
        return F.interpolate(
            estimate, size=latents.shape[-2:], mode="bilinear", align_corners=False
        )


class MotionEncoder(nn.Module):
    """Merge the tokens with the present estimate and the change that the matches propose.

    [B, tokens C_t, h, w] and [B, 4 n, h, w] -> [B, channels, h, w].
    """

    def __init__(self, token_channels: int, degree: int, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(token_channels, channels, 1)
        self.points = nn.Conv2d(4 * degree, channels // 2, 3, padding=1)
        self.mix = nn.Conv2d(channels + channels // 2, channels, 3, padding=1)
        # Correlations have no natural scale; unnormalized they would saturate the recurrent state.
        self.norm = nn.GroupNorm(group_count(channels), channels)

    def forward(self, tokens: Tensor, control_points: Tensor) -> Tensor:
        x = activate(self.tokens(tokens))
        points = activate(self.points(control_points))
        return normalize(self.norm, self.mix(torch.cat((x, points), dim=1)))


class ConvGRU(nn.Module):
    """Gated recurrent unit with 3 x 3 convolutions; the context's share is computed once."""

    def __init__(self, hidden: int, inputs: int, context: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.context = nn.Conv2d(context, 3 * hidden, 3, padding=1)
        self.gates = nn.Conv2d(hidden + inputs, 2 * hidden, 3, padding=1, bias=False)
        self.candidate = nn.Conv2d(hidden + inputs, hidden, 3, padding=1, bias=False)

    def forward(self, state: Tensor, inputs: Tensor, context: Tensor) -> Tensor:
        """One step; ``context`` is ``self.context(features)``."""
        gate_context, candidate_context = context.split((2 * self.hidden, self.hidden), dim=1)
        gates = torch.sigmoid(self.gates(torch.cat((state, inputs), dim=1)) + gate_context)
        update, reset = gates.chunk(2, dim=1)
        candidate = self.candidate(torch.cat((reset * state, inputs), dim=1)) + candidate_context
        # Autocast on a GPU has the state in float32, as it comes out of a norm.
        candidate, update = (part.to(state.dtype) for part in (torch.tanh(candidate), update))
        return torch.lerp(state, candidate, update)


class UpdateHead(nn.Module):
    """Read changes of the control points, px of the latent: [B, hidden, h, w] -> [B, 2 n, h, w].

    Args:
        hidden: channels of the state.
        degree: control points per trajectory.
    """

    def __init__(self, hidden: int, degree: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, 2 * degree, 3, padding=1)
        start_near_zero(self.out)

    def forward(self, state: Tensor) -> Tensor:
        return self.out(activate(self.mix(state))).float()


def start_near_zero(layer: nn.Conv2d) -> None:
    """Start from nearly no motion: a random first estimate would look up random places."""
    nn.init.uniform_(layer.weight, -1e-3, 1e-3)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def start_at_zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start without any say: what the layer's output is added to is as it would be without it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class UpsampleMask(nn.Module):
    """Weights of the convex upsampling: [B, channels, h, w] -> [B, 9 factor^2, h, w] float32.

    They start as those of a quadratic B-spline: what is smooth stays smooth. Started from equal
    weights, every cell begins flat, and the grid of cells shows in the flow for good.

    Args:
        channels: of the features.
        factor: of the upsampling.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(channels, 9 * factor * factor, 1)
        assert self.out.bias is not None
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor(log_spline(factor)) / LOGIT_SCALE)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(features).float().mul_(LOGIT_SCALE)


def log_spline(factor: int) -> np.ndarray:
    """Logs of the weights that the 3 x 3 cells around have for the pixels of one.

    Args:
        factor: f, pixels of a cell in each direction.

    Returns:
        [9 f^2] float32, as the mask of :func:`flowfuse.ops.convex_upsample` has them.
    """
    t = (np.arange(factor, dtype=np.float32) + 0.5) / factor
    row = np.stack(((1 - t) ** 2 / 2, 0.75 - (t - 0.5) ** 2, t**2 / 2))  # [3, f]
    return np.log(row[:, None, :, None] * row[None, :, None, :]).reshape(-1)
