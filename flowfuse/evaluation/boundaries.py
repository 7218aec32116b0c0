"""The error at motion boundaries: within a few px of ground-truth motion discontinuities."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flowfuse.evaluation.metrics import Sums

DISTANCES = (2, 5, 10)  # px from the nearest discontinuity
JUMP = 1.0  # px between the flows of two neighbouring pixels
THIN = 8  # px: what moves and is narrower is a thin structure
CORNER = 12  # pixels: smaller pieces are what a disc leaves in the corners of large things


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
    down, right = _jumps(ground_truth, valid, jump)
    found = np.zeros(np.shape(ground_truth)[1:], bool)
    found[:-1] |= down
    found[1:] |= down
    found[:, :-1] |= right
    found[:, 1:] |= right
    return found


def _jumps(
    ground_truth: np.ndarray, valid: np.ndarray | None, jump: float
) -> tuple[np.ndarray, np.ndarray]:
    """Between which pixels the flow jumps: downwards [H - 1, W] and to the right [H, W - 1]."""
    flow = np.asarray(ground_truth, np.float64)
    valid = np.ones(flow.shape[1:], bool) if valid is None else np.asarray(valid, bool)
    with np.errstate(invalid="ignore"):  # what is not valid may be infinite
        down = np.linalg.norm(np.diff(flow, axis=1), axis=0) > jump
        right = np.linalg.norm(np.diff(flow, axis=2), axis=0) > jump
    return down & valid[:-1] & valid[1:], right & valid[:, :-1] & valid[:, 1:]


@dataclass(frozen=True, eq=False)
class Sides:
    """The two sides of the motion discontinuities of a pair.

    Attributes:
        distance: [H, W] px from the nearest pixel of a discontinuity; inf without any.
        faster: [H, W] bool, whether the pixel's side of the nearest one is the faster one. What
            covers the other side is mostly the faster one, and surely before a still background.
        thin: [H, W] bool, parts of the faster side that are narrower than THIN px.
    """

    distance: np.ndarray
    faster: np.ndarray
    thin: np.ndarray


def find_sides(
    ground_truth: np.ndarray, valid: np.ndarray | None = None, jump: float = JUMP
) -> Sides:
    """Tell the slower side of each motion discontinuity from the faster one.

    Arguments as of :func:`motion_discontinuities`.
    """
    down, right = _jumps(ground_truth, valid, jump)
    height, width = np.shape(ground_truth)[1:]
    nowhere = np.zeros((height, width), bool)
    if not (down.any() or right.any()):
        return Sides(np.full((height, width), np.inf), nowhere, nowhere)
    speed = np.linalg.norm(np.asarray(ground_truth, np.float64), axis=0)
    # How much faster a pixel is than what lies across: of a pixel between two, the larger counts.
    lead = np.full((height, width), -np.inf)
    below, beside = np.diff(speed, axis=0), np.diff(speed, axis=1)
    for jumps, step, first, second in (
        (down, below, np.s_[:-1], np.s_[1:]),
        (right, beside, np.s_[:, :-1], np.s_[:, 1:]),
    ):
        lead[first] = np.maximum(lead[first], np.where(jumps, -step, -np.inf))
        lead[second] = np.maximum(lead[second], np.where(jumps, step, -np.inf))
    marked = np.isfinite(lead)
    # The nearest marked pixel is on the pixel's own side: the one across is further away.
    distance, labels = cv2.distanceTransformWithLabels(
        (~marked).astype(np.uint8),
        cv2.DIST_L2,
        cv2.DIST_MASK_PRECISE,
        labelType=cv2.DIST_LABEL_PIXEL,
    )
    leads = np.zeros(labels.max() + 1)
    leads[labels[marked]] = lead[marked]
    faster = leads[labels] >= 0
    return Sides(distance, faster, _large_pieces(faster & _narrow(down, right)))


def _narrow(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels that no disc of THIN px holds which crosses no jump: [H, W] bool."""
    height, width = right.shape[0], down.shape[1]
    # Pixels at even places, what lies between them at odd ones: distances there are twice as long.
    free = np.ones((2 * height - 1, 2 * width - 1), np.uint8)
    free[1::2, ::2] = ~down
    free[::2, 1::2] = ~right
    # What the border of the image cuts goes on there.
    free = np.pad(free, THIN, mode="edge")
    room = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    centres = (room >= THIN).astype(np.uint8)  # THIN / 2 px to all sides
    if not centres.any():
        return np.ones((height, width), bool)
    away = cv2.distanceTransform(1 - centres, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away[THIN:-THIN:2, THIN:-THIN:2] >= THIN


def _large_pieces(mask: np.ndarray) -> np.ndarray:
    """The connected pieces of a mask of at least CORNER pixels."""
    _, labels, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = facts[:, cv2.CC_STAT_AREA] >= CORNER
    large[0] = False
    return large[labels]


def side_sums(flow: np.ndarray, ground_truth: np.ndarray, valid: np.ndarray, sides: Sides) -> Sums:
    """Split the endpoint error by the side of the nearest motion discontinuity.

    Args:
        flow, ground_truth: [2, H, W], px.
        valid: [H, W] bool, the pixels that count.
        sides: of the ground truth.

    Returns:
        ``epe_slower_2`` ... ``epe_slower_10`` and ``epe_faster_2`` ...: (sum, pixels) at most so
        many px from a discontinuity, on its slower and on its faster side; ``epe_thin``: of thin
        structures.
    """
    error = np.linalg.norm(np.subtract(flow, ground_truth, dtype=np.float64), axis=0)
    parts = {"epe_thin": valid & sides.thin}
    for name, side in (("slower", ~sides.faster), ("faster", sides.faster)):
        for limit in DISTANCES:
            parts[f"epe_{name}_{limit}"] = valid & side & (sides.distance <= limit)
    return {name: (float(error[part].sum()), int(part.sum())) for name, part in parts.items()}


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
