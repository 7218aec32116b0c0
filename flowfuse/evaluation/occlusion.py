"""Which pixels of t0 cannot be seen at t1, told by forward and backward flow."""

from __future__ import annotations

import numpy as np
import torch

from flowfuse.geometry.grid import inside, pixel_grid, sample

# Both flows cancel where a pixel is seen twice, up to this: alpha of their squares, and beta px^2.
ALPHA, BETA = 0.01, 0.5


def find_occluded(flow: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Find what is hidden at t1 or has left the image.

    A pixel x of t0 lands at y = x + flow(x). If it is seen there, backward(y) leads back to x. It
    counts as occluded where |flow(x) + backward(y)|^2 > 0.01 (|flow(x)|^2 + |backward(y)|^2) + 0.5,
    or where y lies outside the image.

    Args:
        flow: [2, H, W] px, from t0 to t1.
        backward: [2, H, W] px, from t1 to t0.

    Returns:
        [H, W] bool; True also where either flow is not finite.

    Raises:
        ValueError: the two do not have one shape [2, H, W].

    Source: Sundaram, Brox and Keutzer, Dense Point Trajectories by GPU-accelerated Large
    Displacement Optical Flow, ECCV 2010, equation 5.
    """
    if flow.ndim != 3 or flow.shape[0] != 2 or flow.shape != backward.shape:
        raise ValueError(
            "find_occluded: flow and backward must both have shape [2, H, W], "
            f"got {list(flow.shape)} and {list(backward.shape)}"
        )
    height, width = flow.shape[1:]
    forward = torch.from_numpy(np.asarray(flow, np.float32))[None]
    target = pixel_grid(height, width) + forward  # [1, 2, H, W]
    reverse = torch.from_numpy(np.asarray(backward, np.float32))[None]
    returned = sample(reverse, target, padding="border")
    gap = (forward + returned).square().sum(1)
    allowed = ALPHA * (forward.square().sum(1) + returned.square().sum(1)) + BETA
    seen = (gap <= allowed) & inside(target, height, width)[:, 0]  # NaN compares false
    return ~seen[0].numpy()
