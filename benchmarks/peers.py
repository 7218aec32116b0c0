"""The algorithms that others use, written anew from their description.

The last one is a network, E-RAFT (Gehrig et al., 3DV 2021), with random weights: RAFT (Teed and
Deng 2020) on two voxel grids of adjoining windows, the context from the new one. Two things differ
from the published code, both to its advantage or neutral to its speed: the flow of the last
iteration alone is brought to full resolution, and zeros are added at the right and bottom rather
than at the left and top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowfuse.events import Events
from flowfuse.geometry.grid import pad_to_multiple, pixel_grid

# Of E-RAFT
BINS = 15
ITERATIONS = 12
STRIDE, PADDING = 8, 32
LEVELS, RADIUS = 4, 4
HIDDEN = CONTEXT = MOTION = 128


def all_pairs_volume(f0: Tensor, f1: Tensor, levels: int) -> list[Tensor]:
    """RAFT (Teed and Deng 2020), section 3.2: all products, averaged over the second map's cells.

    Returns maps [B H W, 1, H1 >> l, W1 >> l].
    """
    product = torch.matmul(f0.flatten(2).transpose(1, 2), f1.flatten(2)) / math.sqrt(f0.shape[1])
    pyramid = [product.reshape(-1, 1, *f1.shape[2:])]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, 2))
    return pyramid


def sample_windows(pyramid: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    """RAFT's look-up: grid_sample of (2r + 1)^2 positions around coords / 2^l on each level."""
    batch, _, height, width = coords.shape
    step = torch.arange(-radius, radius + 1, device=coords.device, dtype=coords.dtype)
    x, y = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2).unbind(-1)  # [B H W, 1, 1]
    found = []
    for level, volume in enumerate(pyramid):
        rows, columns = volume.shape[2:]
        across = 2 * (x / 2**level + step[:, None]) / (columns - 1) - 1  # x slow
        down = 2 * (y / 2**level + step) / (rows - 1) - 1
        grid = torch.stack(torch.broadcast_tensors(across, down), dim=-1)
        window = F.grid_sample(volume, grid, align_corners=True)
        found.append(window.view(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2).contiguous()


def correlate(
    f0: Tensor, f1: Tensor, lookups: Sequence[Tensor], levels: int, radius: int
) -> list[Tensor]:
    """The whole of RAFT's correlation for one pair; the sums in float32, as RAFT has them."""
    pyramid = all_pairs_volume(f0.float(), f1.float(), levels)
    return [sample_windows(pyramid, coords, radius) for coords in lookups]


def voxelize_put(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, t0: int, t1: int, bins: int, height: int, width: int
) -> Tensor:
    """Rectified events, the way of DSEC and E-RAFT: eight masked accumulating puts in float32."""
    grid = torch.zeros(bins * height * width, device=x.device)
    time = (bins - 1) * (t - t0).float() / (t1 - t0)
    sign = 2 * p.float() - 1
    column, row, bin_ = x.int(), y.int(), time.int()
    for c in (column, column + 1):
        for r in (row, row + 1):
            for b in (bin_, bin_ + 1):
                inside = (c >= 0) & (c < width) & (r >= 0) & (r < height) & (b >= 0) & (b < bins)
                weight = sign * (1 - (c - x).abs()) * (1 - (r - y).abs()) * (1 - (b - time).abs())
                cell = (b.long() * height + r.long()) * width + c.long()
                grid.put_(cell[inside], weight[inside], accumulate=True)
    return grid.view(bins, height, width)


def voxelize_add_at(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, t0: int, t1: int, bins: int, height: int, width: int
) -> Tensor:
    """Raw events: one pass of np.add.at for the earlier bin of each event, one for the later."""
    x, y, t, p = (values.numpy() for values in (x, y, t, p))
    grid = np.zeros(bins * height * width, dtype=np.float32)
    time = (t - t0).astype(np.float32) * np.float32((bins - 1) / (t1 - t0))
    bin_ = time.astype(np.int64)
    late = time - bin_.astype(np.float32)
    sign = np.where(p, np.float32(1), np.float32(-1))
    cell = (bin_ * height + y) * width + x
    np.add.at(grid, cell, sign * (1 - late))
    inside = bin_ + 1 < bins
    np.add.at(grid, cell[inside] + height * width, (sign * late)[inside])
    return torch.from_numpy(grid).view(bins, height, width)


def upsample_unfold(field: Tensor, mask: Tensor, factor: int) -> Tensor:
    """RAFT, section 3.3: softmax over nine unfolded neighbours, zeros beyond the border."""
    batch, channels, height, width = field.shape
    weight = mask.view(batch, 1, 9, factor, factor, height, width).softmax(dim=2)
    near = F.unfold(field, 3, padding=1).view(batch, channels, 9, 1, 1, height, width)
    fine = (weight * near).sum(dim=2).permute(0, 1, 4, 2, 5, 3)  # [B, D, h, f, w, f]
    return fine.reshape(batch, channels, factor * height, factor * width)


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


def encoder(bins: int, outputs: int, norm: type[nn.Module]) -> nn.Sequential:
    """[B, bins, H, W] -> [B, outputs, H/8, W/8]."""
    return nn.Sequential(
        nn.Conv2d(bins, 64, 7, stride=2, padding=3), norm(64), nn.ReLU(inplace=True),
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
    """[B, bins, H, W] twice, old and new voxel grid -> flow [B, 2, H, W] float32, px."""

    def __init__(self, bins: int = BINS) -> None:
        super().__init__()
        self.features = encoder(bins, 256, nn.InstanceNorm2d)
        self.context = encoder(bins, HIDDEN + CONTEXT, nn.BatchNorm2d)
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
        *_, (flow, state) = self._updates(old, new, iterations)
        return self._upsample(flow, state, new)

    def flows(self, old: Tensor, new: Tensor, iterations: int = ITERATIONS) -> list[Tensor]:
        """The flow of every iteration, as training needs them."""
        return [self._upsample(*pair, new) for pair in self._updates(old, new, iterations)]

    def _updates(self, old: Tensor, new: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The coarse flow and the state after each iteration."""
        old, new = (pad_to_multiple(grid, PADDING, mode="constant") for grid in (old, new))
        f0, f1 = self.features(torch.cat((old, new))).chunk(2)
        with torch.autocast(new.device.type, enabled=False):  # in float32, as RAFT has them
            pyramid = all_pairs_volume(f0.float(), f1.float(), LEVELS)
        state, context = self.context(new).split((HIDDEN, CONTEXT), dim=1)
        state, context = torch.tanh(state), F.relu(context)
        grid = pixel_grid(*f0.shape[-2:], device=new.device)
        flow = torch.zeros_like(grid).expand(len(new), -1, -1, -1)
        for _ in range(count):
            flow = flow.detach()  # no gradient through the positions, as RAFT trains
            motion = self.motion(sample_windows(pyramid, grid + flow, RADIUS), flow)
            inputs = torch.cat((context, motion), dim=1)
            state = self.down(self.across(state, inputs), inputs)
            flow = flow + self.head(state).float()
            yield flow, state

    def _upsample(self, flow: Tensor, state: Tensor, like: Tensor) -> Tensor:
        height, width = like.shape[-2:]
        fine = upsample_unfold(STRIDE * flow, 0.25 * self.mask(state).float(), STRIDE)
        return fine[..., :height, :width]
