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
        front: [H, W] bool, whether the pixel is on the side of the nearest one that is in front.
        thin: [H, W] bool, parts of the side in front that are narrower than THIN px.
    """

    distance: np.ndarray
    front: np.ndarray
    thin: np.ndarray


def find_sides(
    ground_truth: np.ndarray,
    valid: np.ndarray | None = None,
    occluded: np.ndarray | None = None,
    jump: float = JUMP,
) -> Sides:
    """Tell which side of each motion discontinuity is in front.

    Of two regions between which the flow jumps, the one is behind of which parts are hidden at the
    end where the other one is seen then. Where occlusion does not tell, the faster side is taken
    to be in front, which is so before a still background; of equally fast sides, both.

    Args:
        ground_truth, valid, jump: as of :func:`motion_discontinuities`.
        occluded: [H, W] bool, what is hidden at the end; None = unknown.
    """
    down, right = _jumps(ground_truth, valid, jump)
    height, width = np.shape(ground_truth)[1:]
    nowhere = np.zeros((height, width), bool)
    if not (down.any() or right.any()):
        return Sides(np.full((height, width), np.inf), nowhere, nowhere)
    index = np.arange(height * width).reshape(height, width)
    first = np.concatenate((index[:-1][down], index[:, :-1][right]))
    second = np.concatenate((index[1:][down], index[:, 1:][right]))
    flow = np.asarray(ground_truth, np.float64)
    speed = np.linalg.norm(flow, axis=0).ravel()
    over = np.sign(speed[second] - speed[first])
    if occluded is not None:
        told = _covering(flow, occluded, _regions(down, right), first, second)
        over = np.where(told == 0, over, told)
    # A pixel between what is behind and what is in front of it counts as in front.
    lead = np.full(height * width, -2)
    np.maximum.at(lead, first, -over)
    np.maximum.at(lead, second, over)
    lead = lead.reshape(height, width)
    marked = lead > -2
    # The nearest marked pixel is on the pixel's own side: the one across is further away.
    distance, labels = cv2.distanceTransformWithLabels(
        (~marked).astype(np.uint8),
        cv2.DIST_L2,
        cv2.DIST_MASK_PRECISE,
        labelType=cv2.DIST_LABEL_PIXEL,
    )
    leads = np.zeros(labels.max() + 1)
    leads[labels[marked]] = lead[marked]
    front = leads[labels] >= 0
    return Sides(distance, front, _large_pieces(front & _narrow(down, right)))


def _regions(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The connected region of every pixel, between whose pixels no flow jumps: [H W]."""
    free = _between(down, right)
    free[1::2, 1::2] = 0  # from pixel to pixel only, not between four of them
    return cv2.connectedComponents(free, connectivity=4)[1][::2, ::2].ravel()


def _covering(
    flow: np.ndarray,
    occluded: np.ndarray,
    regions: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """Which of two regions is in front, by which one is seen where the other is hidden at the end.

    Args:
        flow: [2, H, W] px.
        occluded: [H, W] bool.
        regions: [H W] region of every pixel.
        first, second: [N] pixels on both sides of every jump.

    Returns:
        [N] 1 where the second one's region is in front, -1 where the first one's is, 0 where
        nothing tells.
    """
    height, width = flow.shape[1:]
    y, x = np.rint(np.mgrid[:height, :width] + flow[::-1])
    stays = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).ravel()
    place = np.where(stays, (y * width + x).ravel(), 0).astype(int)
    hidden = np.asarray(occluded, bool).ravel()
    at_end = np.full(height * width, -1)
    at_end[place[stays & ~hidden]] = regions[stays & ~hidden]
    behind, cover = regions[stays & hidden], at_end[place[stays & hidden]]
    known = (cover >= 0) & (cover != behind)
    count = int(regions.max()) + 1

    def pair_of(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A number of the two regions, and 1 where the other is the one of the higher number."""
        pair = np.minimum(one, other) * count + np.maximum(one, other)
        return pair, np.where(other > one, 1, -1)

    found, vote = pair_of(behind[known], cover[known])
    wanted, turn = pair_of(regions[first], regions[second])
    pairs, place = np.unique(np.concatenate((found, wanted)), return_inverse=True)
    votes = np.bincount(place[: len(found)], vote, len(pairs))
    return np.sign(votes[place[len(found) :]]) * turn


def _between(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where no jump is, [2 H - 1, 2 W - 1]: pixels at even places, jumps at odd ones."""
    free = np.ones((2 * right.shape[0] - 1, 2 * down.shape[1] - 1), np.uint8)
    free[1::2, ::2] = ~down
    free[::2, 1::2] = ~right
    return free


def _narrow(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels that no disc of THIN px holds which crosses no jump: [H, W] bool."""
    # Distances there are twice as long. What the border of the image cuts goes on there.
    free = np.pad(_between(down, right), THIN, mode="edge")
    room = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    centres = (room >= THIN).astype(np.uint8)  # THIN / 2 px to all sides
    if not centres.any():
        return np.ones((right.shape[0], down.shape[1]), bool)
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
        ``epe_behind_2`` ... ``epe_behind_10`` and ``epe_front_2`` ...: (sum, pixels) at most so
        many px from a discontinuity, on the side behind and on the side in front; ``epe_thin``: of
        thin structures.
    """
    error = np.linalg.norm(np.subtract(flow, ground_truth, dtype=np.float64), axis=0)
    parts = {"epe_thin": valid & sides.thin}
    for name, side in (("behind", ~sides.front), ("front", sides.front)):
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
