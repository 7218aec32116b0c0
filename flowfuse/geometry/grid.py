"""Pixel grids, the one wrapper of ``grid_sample``, warping and padding.

Pixel centres have integer coordinates everywhere: the image spans [-0.5, W - 0.5] in x and
[-0.5, H - 0.5] in y.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_grid(
    height: int,
    width: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the coordinates of every pixel centre.

    Returns:
        [2, H, W]: channel 0 = x (columns), channel 1 = y (rows), in px.
    """
    y = torch.arange(height, device=device, dtype=dtype)
    x = torch.arange(width, device=device, dtype=dtype)
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)))


def sample(
    image: Tensor, coords: Tensor, *, padding: str = "zeros", mode: str = "bilinear"
) -> Tensor:
    """Sample an image at float pixel coordinates.

    Args:
        image: [B, C, H, W], floating point.
        coords: [B, 2, h, w] in px of ``image``: channel 0 = x, channel 1 = y.
        padding: ``"zeros"`` (every tap outside the image is 0) or ``"border"``.
        mode: ``"bilinear"`` or ``"nearest"``.

    Returns:
        [B, C, h, w], the dtype of ``image``.
    """
    height, width = image.shape[-2:]
    # align_corners=False maps pixel x to (2 x + 1) / W - 1: defined for an axis of size one too,
    # where the other convention divides by W - 1 = 0.
    # Filled there: a tensor of two numbers would be copied to a GPU, which waits for it.
    size = torch.full((2,), width, device=coords.device, dtype=coords.dtype)
    size[1:].fill_(height)
    grid = (2 * coords.permute(0, 2, 3, 1) + 1) / size - 1
    # Half-precision images are sampled in the coordinates' precision: bfloat16 coordinates would be
    # 4 px apart at 600 px.
    sampled = F.grid_sample(
        image.to(grid.dtype), grid, mode=mode, padding_mode=padding, align_corners=False
    )
    return sampled.to(image.dtype)


def warp(image: Tensor, flow: Tensor, *, padding: str = "border") -> Tensor:
    """Backward-warp ``image`` (seen at t1) to t0: out(x) = image(x + flow(x)).

    Args:
        image: [B, C, H, W].
        flow: [B, 2, H, W] in px, from t0 to t1.
        padding: as in :func:`sample`.

    Returns:
        [B, C, H, W].
    """
    height, width = flow.shape[-2:]
    grid = pixel_grid(height, width, device=flow.device, dtype=flow.dtype)
    return sample(image, grid + flow, padding=padding)


def inside(coords: Tensor, height: int, width: int) -> Tensor:
    """Tell which coordinates lie on the image, pixel centres included.

    Args:
        coords: [B, 2, h, w] in px.

    Returns:
        [B, 1, h, w] bool. NaN counts as outside.
    """
    x, y = coords[:, :1], coords[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def pad_to_multiple(image: Tensor, multiple: int, *, mode: str = "replicate") -> Tensor:
    """Pad right and bottom so that height and width become multiples of ``multiple``.

    Args:
        image: [B, C, H, W] or [B, T, C, H, W].
        mode: ``"replicate"`` for frames, ``"constant"`` (zeros) for event sums.
    """
    height, width = image.shape[-2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    if not any(pad):
        return image
    flat = image.flatten(0, -4) if image.dim() == 5 else image
    padded = F.pad(flat, pad, mode=mode)
    return padded.unflatten(0, image.shape[:2]) if image.dim() == 5 else padded
