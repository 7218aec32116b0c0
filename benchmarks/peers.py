"""The algorithms that others use, written anew from their description in a few lines each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


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
