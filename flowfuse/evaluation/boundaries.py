"""The error at motion boundaries: within a few px of ground-truth motion discontinuities."""

from __future__ import annotations

import cv2
import numpy as np

from flowfuse.evaluation.metrics import Sums

DISTANCES = (2, 5, 10)  # px from the nearest discontinuity
JUMP = 1.0  # px between the flows of two neighbouring pixels


def motion_discontinuities(
    ground_truth: np.ndarray, valid: np.ndarray | None = None, jump: float = JUMP
) -> np.ndarray:
    """Find the pixels at which the ground-truth flow jumps.

    Args:
        ground_truth: [2, H, W], px.
        valid: [H, W] bool, where it is known; None = everywhere.
        jump: the smallest difference of flow between neighbours (4-connected) that counts, px.

    Returns:
        [H, W] bool; both pixels of a pair of neighbours are marked. A jump to a pixel without
        ground truth is none.
    """
    flow = np.asarray(ground_truth, np.float64)
    valid = np.ones(flow.shape[1:], bool) if valid is None else np.asarray(valid, bool)
    found = np.zeros(valid.shape, bool)
    for axis in (0, 1):
        first, second = (np.arange(valid.shape[axis] - 1) + shift for shift in (0, 1))
        step = np.linalg.norm(np.diff(flow, axis=axis + 1), axis=0)
        jumps = (step > jump) & valid.take(first, axis) & valid.take(second, axis)
        padding = [(0, 0), (0, 0)]
        padding[axis] = (0, 1)
        found |= np.pad(jumps, padding)
        padding[axis] = (1, 0)
        found |= np.pad(jumps, padding)
    return found


def boundary_sums(
    flow: np.ndarray, ground_truth: np.ndarray, valid: np.ndarray, boundary: np.ndarray
) -> Sums:
    """Split the endpoint error by the distance to the nearest motion discontinuity.

    Args:
        flow, ground_truth: [2, H, W], px.
        valid: [H, W] bool, the pixels that count.
        boundary: [H, W] bool, e.g. of :func:`motion_discontinuities`.

    Returns:
        ``epe_within_2``, ``epe_within_5``, ``epe_within_10``: (sum, pixels) at most so many px
        away, Euclidean; ``epe_beyond_10``: elsewhere.
    """
    error = np.linalg.norm(np.subtract(flow, ground_truth, dtype=np.float64), axis=0)
    distance = np.full(valid.shape, np.inf)
    if boundary.any():
        away = (~boundary).astype(np.uint8)
        distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    parts = {f"epe_within_{limit}": valid & (distance <= limit) for limit in DISTANCES}
    parts[f"epe_beyond_{DISTANCES[-1]}"] = valid & (distance > DISTANCES[-1])
    return {name: (float(error[part].sum()), int(part.sum())) for name, part in parts.items()}
