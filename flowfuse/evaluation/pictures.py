"""Pictures of frame pairs with all estimates side by side, to look at the best and the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from flowfuse.evaluation.baselines import ZERO
from flowfuse.evaluation.evaluate import Estimate, GroundTruth
from flowfuse.evaluation.thresholds import quotient
from flowfuse.events import Events
from flowfuse.visualization import (
    as_rgb,
    colour_flow,
    contact_sheet,
    largest_magnitude,
    legend,
    render_boundary,
    render_events,
    render_heat,
    write_image,
)

COLUMNS = 5
TILE = 480  # px, the width of a picture in a sheet at most


def pick(epe: Sequence[float], zero: Sequence[float]) -> dict[str, int]:
    """Choose the cases to draw.

    They are ordered by the EPE of a row over that of zero flow in the same case: by the EPE alone,
    the worst case would be the one that moves most.

    Returns:
        "best", "median" (the lower of two) and "worst" -> index, as far as there are so many cases
        with a known ratio.
    """
    ratio = quotient(np.asarray(epe, np.float64), np.asarray(zero, np.float64))
    order = [int(i) for i in np.argsort(ratio, kind="stable") if np.isfinite(ratio[i])]
    if not order:
        return {}
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    if len(order) < 3:
        places.pop("median")
    if len(order) < 2:
        places.pop("worst")
    return {name: order[place] for name, place in places.items()}


def draw_case(
    path: Path,
    frames: tuple[np.ndarray, np.ndarray],
    events: Events,
    known: GroundTruth,
    boundary: np.ndarray | None,
    estimates: Mapping[str, Estimate],
) -> None:
    """Write a sheet: what was seen and the ground truth; then each row with its errors.

    All flow has the colours of the true magnitudes, and all errors one scale, up to a quarter of
    the largest true magnitude (but 1 px at least).

    Args:
        path: the PNG file.
        frames: uint8 [H, W] or [H, W, 3].
        events: those between the frames.
        known: the ground truth.
        boundary: [2, H, W] true B_e and B_m, or None.
        estimates: row -> estimate.
    """
    ground_truth, valid = known.displacements[-1], known.valid[-1]
    magnitude = largest_magnitude(ground_truth, valid)
    scale = max(magnitude / 4, 1.0)
    frame0, frame1 = frames
    tiles = [
        ("frame 0", frame0),
        ("frame 1", frame1),
        ("events", render_events(frame0, events)),
        (f"ground truth, up to {magnitude:.1f} px", colour_flow(ground_truth, valid, magnitude)),
        ("colours", _centred(legend(magnitude), valid.shape))
        if boundary is None
        else ("true B_e cyan, B_m orange red", render_boundary(frame0, boundary)),
    ]
    blank = ("", np.full((*valid.shape, 3), 255, np.uint8))
    for row, estimate in estimates.items():
        if row == ZERO:
            continue
        flow = estimate.displacements[-1]
        error = np.hypot(*(flow - ground_truth))
        line = [
            (row, colour_flow(flow, None, magnitude)),
            (
                f"error, mean {error[valid].mean():.2f} px, yellow {scale:.1f}",
                render_heat(error, valid, scale),
            ),
        ]
        if estimate.uncertainty is not None:
            # Its own range: only its order is measured, and it never falls below 1/4 px.
            low, high = np.percentile(estimate.uncertainty, (1, 99))
            heat = render_heat(
                np.maximum(estimate.uncertainty - low, 0), None, max(high - low, 1e-3)
            )
            line.append((f"uncertainty, {low:.1f} to {high:.1f} px", heat))
        if estimate.boundary is not None:
            line.append(("boundaries", render_boundary(frame0, estimate.boundary)))
        # Rows without maps of their own are short: two of them share a line.
        tiles += line if len(line) == 2 else line + [blank] * (COLUMNS - len(line))
    tiles += [blank] * (-len(tiles) % COLUMNS)
    labels, images = zip(*tiles, strict=True)
    write_image(path, contact_sheet([_shrink(image) for image in images], labels, columns=COLUMNS))


def _shrink(image: np.ndarray) -> np.ndarray:
    """A large picture reduced by a whole factor to TILE px at most: a sheet holds dozens."""
    factor = math.ceil(image.shape[1] / TILE)
    height, width = (size // factor for size in image.shape[:2])
    return cv2.resize(as_rgb(image), (width, height), interpolation=cv2.INTER_AREA)


def _centred(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture in the middle of a white one; cut where it is larger."""
    canvas = np.full((*size, 3), 255, np.uint8)
    height, width = (min(a, b) for a, b in zip(size, image.shape, strict=False))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = as_rgb(image)[:height, :width]
    return canvas
