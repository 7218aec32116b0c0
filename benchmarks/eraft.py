"""E-RAFT (Gehrig et al., 3DV 2021), written anew from its description, with random weights.

RAFT (Teed and Deng 2020) on two voxel grids of adjoining windows; the context comes from the new
one. Two things differ from the published code, both to its advantage or neutral to its speed: the
flow of the last iteration alone is brought to full resolution, and zeros are added at the right and
bottom rather than at the left and top.
"""

from __future__ import annotations

import torch
from peers import all_pairs_volume, sample_windows, upsample_unfold, voxelize_put
from torch import Tensor, nn
from torch.nn import functional as F

from flowfuse.events import Events
from flowfuse.geometry.grid import pad_to_multiple, pixel_grid

BINS = 15
ITERATIONS = 12
STRIDE, PADDING = 8, 32
LEVELS, RADIUS = 4, 4
HIDDEN = CONTEXT = MOTION = 128


def voxel_grid(events: Events, t0: int, t1: int, device: str) -> Tensor:
    """The events of [t0, t1) as E-RAFT takes them: [1, 15, H, W], non-zero cells standardized."""
    window = events.slice_time(t0, t1)
    x, y, t, p = (torch.from_numpy(getattr(window, name)).to(device) for name in "xytp")
    grid = voxelize_put(x, y, t, p, t0, t1, BINS, events.height, events.width)
    filled = grid.nonzero(as_tuple=True)
    values = grid[filled]
    if len(values) > 1:
        grid[filled] = (values - values.mean()) / values.std()
    return grid[None]


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity, or beside a 1 x 1 convolution with a stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1), norm(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1), norm(outputs), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.skip = nn.Identity()
        if stride > 1:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


def encoder(outputs: int, norm: type[nn.Module]) -> nn.Sequential:
    """[B, 15, H, W] -> [B, outputs, H/8, W/8]."""
    return nn.Sequential(
        nn.Conv2d(BINS, 64, 7, stride=2, padding=3), norm(64), nn.ReLU(inplace=True),
        Residual(64, 64, 1, norm), Residual(64, 64, 1, norm),
        Residual(64, 96, 2, norm), Residual(96, 96, 1, norm),
        Residual(96, 128, 2, norm), Residual(128, 128, 1, norm),
        nn.Conv2d(128, outputs, 1),
    )  # fmt: skip


class MotionEncoder(nn.Module):
    """The correlations looked up and the flow, as 126 + 2 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.correlation = nn.Sequential(
            nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.flow = nn.Sequential(
            nn.Conv2d(2, 128, 7, padding=3), nn.ReLU(inplace=True),
            nn.Conv2d(128, 64, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.merge = nn.Conv2d(192 + 64, MOTION - 2, 3, padding=1)

    def forward(self, correlation: Tensor, flow: Tensor) -> Tensor:
        both = torch.cat((self.correlation(correlation), self.flow(flow)), dim=1)
        return torch.cat((F.relu(self.merge(both)), flow), dim=1)


class DirectionalGRU(nn.Module):
    """A gated recurrent unit whose convolutions run along one axis."""

    def __init__(self, kernel: tuple[int, int]) -> None:
        super().__init__()
        channels, padding = HIDDEN + CONTEXT + MOTION, (kernel[0] // 2, kernel[1] // 2)
        self.take, self.reset, self.candidate = (
            nn.Conv2d(channels, HIDDEN, kernel, padding=padding) for _ in range(3)
        )

    def forward(self, state: Tensor, inputs: Tensor) -> Tensor:
        both = torch.cat((state, inputs), dim=1)
        take, reset = torch.sigmoid(self.take(both)), torch.sigmoid(self.reset(both))
        candidate = torch.tanh(self.candidate(torch.cat((reset * state, inputs), dim=1)))
        return (1 - take) * state + take * candidate


class ERaft(nn.Module):
    """[B, 15, H, W] twice, old and new voxel grid -> flow [B, 2, H, W] float32, px."""

    def __init__(self) -> None:
        super().__init__()
        self.features = encoder(256, nn.InstanceNorm2d)
        self.context = encoder(HIDDEN + CONTEXT, nn.BatchNorm2d)
        self.motion = MotionEncoder()
        self.across, self.down = DirectionalGRU((1, 5)), DirectionalGRU((5, 1))
        self.head = nn.Sequential(
            nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 2, 3, padding=1),
        )  # fmt: skip
        self.mask = nn.Sequential(
            nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 9 * STRIDE**2, 1),
        )  # fmt: skip
        # Nearly no motion: with the untrained head look-ups would run off the image, where less is
        # to be read.
        nn.init.normal_(self.head[-1].weight, std=1e-3)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, old: Tensor, new: Tensor, iterations: int = ITERATIONS) -> Tensor:
        height, width = new.shape[-2:]
        old, new = (pad_to_multiple(grid, PADDING, mode="constant") for grid in (old, new))
        f0, f1 = self.features(torch.cat((old, new))).chunk(2)
        with torch.autocast(new.device.type, enabled=False):  # in float32, as RAFT has them
            pyramid = all_pairs_volume(f0.float(), f1.float(), LEVELS)
        state, context = self.context(new).split((HIDDEN, CONTEXT), dim=1)
        state, context = torch.tanh(state), F.relu(context)
        grid = pixel_grid(*f0.shape[-2:], device=new.device)
        flow = torch.zeros_like(grid).expand(len(new), -1, -1, -1)
        for _ in range(iterations):
            motion = self.motion(sample_windows(pyramid, grid + flow, RADIUS), flow)
            inputs = torch.cat((context, motion), dim=1)
            state = self.down(self.across(state, inputs), inputs)
            flow = flow + self.head(state).float()
        fine = upsample_unfold(STRIDE * flow, 0.25 * self.mask(state).float(), STRIDE)
        return fine[..., :height, :width]
