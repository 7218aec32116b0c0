"""Flow that starts the next estimate: where the motion of one time interval has carried it."""

from __future__ import annotations

import numpy as np


def carry_forward(flow: np.ndarray, moved: np.ndarray | None = None) -> np.ndarray:
    """Take the flow of an interval along itself: a start for the next, at the same velocity.

    Args:
        flow: [2, H, W] px.
        moved: [2, H, W] px, how far each pixel is carried; None: as far as ``flow``.

    Returns:
        [2, H, W] float32: at each pixel, the mean flow of those that end nearest to it; NaN where
        none does.
    """
    height, width = flow.shape[1:]
    step = flow if moved is None else moved
    y, x = np.mgrid[:height, :width]
    x, y = (np.rint(place).astype(np.int64) for place in (x + step[0], y + step[1]))
    kept = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cells = y[kept] * width + x[kept]
    count = np.bincount(cells, minlength=height * width)
    sums = [np.bincount(cells, values[kept], minlength=height * width) for values in flow]
    with np.errstate(invalid="ignore"):
        return (np.stack(sums) / count).reshape(2, height, width).astype(np.float32)
