"""Whether flow shows the grid of the cells that it was upsampled from."""

from __future__ import annotations

import numpy as np

from flowfuse.evaluation.boundaries import Sides
from flowfuse.evaluation.metrics import Sums

CELL = 4  # px
FLATTEST = 0.05  # px per px: less |du/dx| of the ground truth is flat
CLEAR = 10  # px from motion discontinuities
MOVING = 1.0  # px


def grid_sums(flow: np.ndarray, ground_truth: np.ndarray, valid: np.ndarray, sides: Sides) -> Sums:
    """Compare the gradient of flow across the borders of cells with that inside of them.

    Where the ground truth is flat, moves, and has no discontinuity near, |du/dx| between columns
    4 k - 1 and 4 k should be as large as between others.

    Args:
        flow, ground_truth: [2, H, W], px.
        valid: [H, W] bool, the pixels that count.
        sides: of the ground truth.

    Returns:
        ``grid``: (numerator, divisor) of mean |du/dx| across every fourth column over that across
        the others: 1 = no grid. The divisor is 0 where there is no such region, or no gradient.
    """
    counted = valid & (sides.distance > CLEAR) & (np.linalg.norm(ground_truth, axis=0) > MOVING)
    with np.errstate(invalid="ignore"):  # what is not valid may be infinite
        flat = np.abs(np.diff(ground_truth[0], axis=-1)) < FLATTEST
        steps = np.abs(np.diff(np.asarray(flow[0], np.float64), axis=-1))
    counted = counted[:, :-1] & counted[:, 1:] & flat
    at_border = np.arange(1, flow.shape[-1]) % CELL == 0
    border, inner = counted & at_border, counted & ~at_border
    if not (border.any() and inner.any()):
        return {"grid": (0.0, 0.0)}
    # Weighted by pixels: a set's value is the sum of numerators over the sum of divisors.
    share = float(inner.sum() / border.sum())
    return {"grid": (share * float(steps[border].sum()), float(steps[inner].sum()))}
