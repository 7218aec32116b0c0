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


def carry_cells(
    flow: np.ndarray, moved: np.ndarray, cell: int, known: np.ndarray | None = None
) -> np.ndarray:
    """Take the flow of an interval along itself, coarsely: as :func:`carry_forward`, but cheap.

    A part of the pixels, four in a row of a cell, gives the means of the cells. Where none ends in
    a cell, its flow stays where it was.

    Args:
        flow: [2, H, W] px.
        moved: [2, H, W] px, how far each pixel is carried.
        cell: px; a multiple of 4.
        known: [H, W] bool, pixels whose flow is carried; None: all.

    Returns:
        [2, H, W] float32, the same all over a cell; NaN where no known pixel is or ends.
    """
    height, width = flow.shape[1:]
    step = cell // 4
    rows, columns = -(-height // cell), -(-width // cell)
    # A cell at the border has a pixel at least: its first.
    part = np.s_[::step, ::step]
    taken = np.ones((height, width), bool)[part] if known is None else known[part]
    y, x = np.mgrid[:height:step, :width:step]
    values = [axis[part][taken] for axis in flow]
    u, v = (axis[part] for axis in moved)

    def means(column: np.ndarray, row: np.ndarray) -> np.ndarray:
        column, row = (
            np.floor((place[taken] + 0.5) / cell).astype(np.int64) for place in (column, row)
        )
        kept = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        cells = row[kept] * columns + column[kept]
        count = np.bincount(cells, minlength=rows * columns)
        sums = [np.bincount(cells, axis[kept], minlength=rows * columns) for axis in values]
        with np.errstate(invalid="ignore"):
            return (np.stack(sums) / count).reshape(2, rows, columns)

    carried, stayed = means(x + u, y + v), means(x, y)
    full = np.where(np.isfinite(carried), carried, stayed).astype(np.float32)
    return full.repeat(cell, axis=1).repeat(cell, axis=2)[:, :height, :width]
