"""Measures of flow: against ground truth (endpoint errors, trajectories, uncertainty) and without
it.

Arrays are numpy. A measure over no valid element is NaN. Percentages are in [0, 100].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from flowfuse.events import Events
from flowfuse.geometry.grid import inside, pixel_grid, warp

BOUNDARY_BAND = 5.0  # px about B_m
CERTAIN = 0.8  # share of the pixels that epe_certain keeps

# measure -> (sum over the pixels that count, their number or the sum that it is divided by)
Sums = dict[str, tuple[float, float]]


def flow_metrics(
    flow: np.ndarray,
    ground_truth: np.ndarray,
    valid: np.ndarray | None = None,
    boundary: np.ndarray | None = None,
    *,
    outlier_fraction: float = 0.0,
) -> dict[str, float]:
    """Compare flow with ground truth, averaged over the valid pixels.

    Args:
        flow: [2, H, W], px.
        ground_truth: [2, H, W], px.
        valid: [H, W] bool, where ground truth is known; None = everywhere.
        boundary: [H, W], the motion boundary B_m (bool, or > 0.5); None = unknown.
        outlier_fraction: 1pe, 2pe and 3pe also ask for an error of at least this fraction of the
            true magnitude (some protocols use 0.05); 0 asks for the pixels alone.

    Returns:
        ``epe``: mean endpoint error, px; ``1pe``, ``2pe``, ``3pe``: % of pixels with a larger error
        than 1, 2, 3 px; ``f1_all``: % with an error > 3 px and > 5 % of the true magnitude; ``ae``:
        mean angle between (u, v, 1) vectors, degrees; ``epe_below_10``, ``epe_10_to_40``,
        ``epe_above_40``: EPE where the true displacement is < 10, 10 to 40, > 40 px;
        ``epe_boundary``, ``epe_interior``: EPE within 5 px of B_m and elsewhere (NaN without
        ``boundary``); ``valid_pixels``: their number.

    Raises:
        ValueError: if shapes disagree.
    """
    sums = flow_sums(flow, ground_truth, valid, boundary, outlier_fraction=outlier_fraction)
    return _with_count(sums)


def flow_sums(
    flow: np.ndarray,
    ground_truth: np.ndarray,
    valid: np.ndarray | None = None,
    boundary: np.ndarray | None = None,
    *,
    outlier_fraction: float = 0.0,
) -> Sums:
    """The sums that :func:`flow_metrics` divides: measure -> (sum over its pixels, their number).

    Arguments as there. The divisor of ``epe`` is the number of valid pixels.
    """
    flow, ground_truth, valid = _check_fields(flow, ground_truth, valid)
    near = np.zeros(valid.shape, bool) if boundary is None else np.asarray(boundary)
    if near.shape != valid.shape:
        raise ValueError(f"boundary must have shape {list(valid.shape)}, got {list(near.shape)}")
    near = boundary_band(near)[valid]
    known = boundary is not None
    flow, ground_truth = flow[:, valid], ground_truth[:, valid]  # [2, N]
    error, length = _length(flow - ground_truth, axis=0), _length(ground_truth, axis=0)
    one = np.ones((1, flow.shape[1]))
    first, second = np.concatenate((flow, one)), np.concatenate((ground_truth, one))
    # atan2 of |cross| and dot is exact for small angles, where arccos is not.
    angle = np.arctan2(_length(np.cross(first.T, second.T), axis=1), (first * second).sum(axis=0))
    large = error >= outlier_fraction * length  # as bflow's NPE; exactly so much is a rare tie
    everywhere = np.ones(len(error), bool)
    measures = {
        "epe": (error, everywhere),
        **{f"{n}pe": (100.0 * ((error > n) & large), everywhere) for n in (1, 2, 3)},
        "f1_all": (100.0 * ((error > 3) & (error > 0.05 * length)), everywhere),
        "ae": (np.degrees(angle), everywhere),
        "epe_below_10": (error, length < 10),
        "epe_10_to_40": (error, (length >= 10) & (length <= 40)),
        "epe_above_40": (error, length > 40),
        "epe_boundary": (error, near & known),
        "epe_interior": (error, ~near & known),
    }
    return {name: _sum_of(*pair) for name, pair in measures.items()}


class FlowMetrics:
    """Accumulates :func:`flow_sums` over frames.

    Two averages are in use and differ: over all valid pixels of the set, and over the frames, of
    each frame's average. Both are given, by name.

    Attributes:
        pixel_sums: measure -> (sum, divisor) over all frames.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.valid_pixels = 0
        self.pixel_sums: Sums = {}
        self._frame_sums: Sums = {}

    def add_sums(self, sums: Sums) -> dict[str, float]:
        """Add a frame by its sums, with ``epe`` among them; returns what they are on their own."""
        self.frames += 1
        self.valid_pixels += int(sums["epe"][1])
        for name, (total, pixels) in sums.items():
            add_sum(self.pixel_sums, name, total, pixels)
            if pixels:  # a frame where nothing counts has no average
                add_sum(self._frame_sums, name, total / pixels, 1)
            else:
                add_sum(self._frame_sums, name, 0.0, 0)
        return _with_count(sums)

    def summary(self) -> dict[str, dict[str, float] | int]:
        """Both averages of every measure.

        Returns:
            ``per_pixel`` and ``per_frame``: measure -> value; ``frames`` and ``valid_pixels``:
            numbers.
        """
        return {
            "per_pixel": means(self.pixel_sums),
            "per_frame": means(self._frame_sums),
            "frames": self.frames,
            "valid_pixels": self.valid_pixels,
        }


def trajectory_metrics(
    estimates: np.ndarray,
    ground_truths: np.ndarray,
    tau: Sequence[float] | np.ndarray,
    end: np.ndarray,
    true_end: np.ndarray,
    valid: np.ndarray | None = None,
) -> dict[str, float]:
    """Compare displacement over time with the ground truth.

    Args:
        estimates: [T, 2, H, W] estimated displacement from t0 to each tau, px.
        ground_truths: [T, 2, H, W] true displacement at the same times, px.
        tau: [T] in (0, 1).
        end: [2, H, W] estimated displacement at tau = 1.
        true_end: [2, H, W] true displacement at tau = 1.
        valid: [H, W] or [T, H, W] bool; None = everywhere.

    Returns:
        ``tepe``: mean EPE over pixels and times; ``tepe_line_own_end`` and ``tepe_line_true_end``:
        the same for the two references that know nothing of the path, straight lines to the
        estimated and to the TRUE end; ``deviation_error``: mean |d - d*| over mean |d*|, where
        d = x(tau) - tau x(1) is the deviation from the straight line, d* the true one, over pixels
        and times with |d*| > 1 px (0 = perfect, 1 = as a straight line).
    """
    return means(trajectory_sums(estimates, ground_truths, tau, end, true_end, valid))


def trajectory_sums(
    estimates: np.ndarray,
    ground_truths: np.ndarray,
    tau: Sequence[float] | np.ndarray,
    end: np.ndarray,
    true_end: np.ndarray,
    valid: np.ndarray | None = None,
) -> Sums:
    """The sums that :func:`trajectory_metrics` divides, for averages over many pairs.

    Returns:
        measure -> (sum, divisor). A set's value is the sum of sums over the sum of divisors: then
        ``deviation_error`` weighs a pair by how much deviates there, and a pair in which a few
        pixels do cannot outweigh the others.
    """
    estimates = _field("estimates", estimates, 4)
    ground_truths = _field("ground_truths", ground_truths, 4)
    end, true_end = _field("end", end, 3), _field("true_end", true_end, 3)
    tau = np.asarray(tau, np.float64)
    if estimates.shape != ground_truths.shape or {end.shape, true_end.shape} != {
        ground_truths.shape[1:]
    }:
        raise ValueError(
            f"estimates {list(estimates.shape)}, ground_truths {list(ground_truths.shape)}, end "
            f"{list(end.shape)} and true_end {list(true_end.shape)} do not belong together"
        )
    if tau.shape != ground_truths.shape[:1]:
        raise ValueError(f"tau must have shape [{len(ground_truths)}], got {list(tau.shape)}")
    shape = (ground_truths.shape[0], *ground_truths.shape[2:])
    valid = np.ones(shape, bool) if valid is None else np.asarray(valid, bool)
    if valid.shape not in (shape, shape[1:]):
        raise ValueError(f"valid must have shape {list(shape)}, got {list(valid.shape)}")
    valid = np.broadcast_to(valid, shape)
    along = tau[:, None, None, None]

    def error(field: np.ndarray) -> tuple[float, int]:
        return _sum_of(_length(field - ground_truths, axis=1), valid)

    true_deviation = ground_truths - along * true_end
    off_line = valid & (_length(true_deviation, axis=1) > 1)
    wrong, _ = _sum_of(_length(estimates - along * end - true_deviation, axis=1), off_line)
    size, _ = _sum_of(_length(true_deviation, axis=1), off_line)
    return {
        "tepe": error(estimates),
        "tepe_line_own_end": error(along * end),
        "tepe_line_true_end": error(along * true_end),
        "deviation_error": (wrong, size),
    }


def uncertainty_metrics(
    flow: np.ndarray,
    ground_truth: np.ndarray,
    uncertainty: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    steps: int = 20,
) -> dict[str, float]:
    """Area under the sparsification error (AUSE), of uncertainty and of flow magnitude.

    The most uncertain pixels are removed in ``steps`` equal portions; the EPE of the rest, relative
    to the EPE of all, is compared with removing the pixels of largest true error first. 0 = ranks
    as the errors do. An uncertainty is worth having when it ranks better than the magnitude.

    Args:
        flow, ground_truth: [2, H, W], px.
        uncertainty: [H, W], larger = less certain; only its order counts.
        valid: [H, W] bool; None = everywhere.
        steps: number of portions.

    Returns:
        ``ause`` and ``ause_magnitude``; 0 when there is no error at all, NaN without valid pixels.
        ``epe_certain``: EPE of the 80 % most certain pixels over the EPE of all, and
        ``epe_certain_limit``: that of the 80 % with the smallest errors, which no ranking can
        fall below; 1 when there is no error at all, NaN without valid pixels.
    """
    flow, ground_truth, valid = _check_fields(flow, ground_truth, valid)
    uncertainty = np.asarray(uncertainty)
    if uncertainty.shape != valid.shape:
        raise ValueError(
            f"uncertainty must have shape {list(valid.shape)}, got {list(uncertainty.shape)}"
        )
    errors = _length(flow - ground_truth, axis=0)[valid]

    def remaining(ranks: np.ndarray) -> np.ndarray:
        """EPE of what remains after each portion, relative to the EPE of all."""
        kept = errors[np.argsort(ranks, kind="stable")]  # the most certain first
        count = np.ceil(len(kept) * (1 - np.arange(steps) / steps)).astype(int)
        return np.cumsum(kept)[count - 1] / count / errors.mean()

    if not len(errors):
        names = ("ause", "ause_magnitude", "epe_certain", "epe_certain_limit")
        return dict.fromkeys(names, math.nan)
    if errors.mean() == 0:
        return {"ause": 0.0, "ause_magnitude": 0.0, "epe_certain": 1.0, "epe_certain_limit": 1.0}
    best = remaining(errors)
    kept = math.ceil(CERTAIN * len(errors))
    certain = errors[np.argsort(uncertainty[valid], kind="stable")[:kept]]
    smallest = np.partition(errors, kept - 1)[:kept]
    magnitude = _length(flow, axis=0)[valid]
    return {
        "ause": float(np.mean(remaining(uncertainty[valid]) - best)),
        "ause_magnitude": float(np.mean(remaining(magnitude) - best)),
        "epe_certain": float(certain.mean() / errors.mean()),
        "epe_certain_limit": float(smallest.mean() / errors.mean()),
    }


def photometric_error(frame0: np.ndarray, frame1: np.ndarray, flow: np.ndarray) -> float:
    """Mean absolute difference between frame 0 and frame 1 warped back by the flow.

    Args:
        frame0, frame1: [H, W] or [H, W, 3]; uint8, uint16, or floating in [0, 1].
        flow: [2, H, W], px.

    Returns:
        The error as a fraction of the full range, over the pixels whose target is inside frame 1;
        NaN if there is none.
    """
    flow = _field("flow", flow, 3)
    images = []
    for name, frame in (("frame0", frame0), ("frame1", frame1)):
        frame = np.asarray(frame)
        if frame.shape[:2] != flow.shape[1:] or frame.shape != np.shape(frame0):
            raise ValueError(
                f"{name} must have shape {list(flow.shape[1:])} as the flow and the shape of the "
                f"other frame, got {list(frame.shape)}"
            )
        scale = float(np.iinfo(frame.dtype).max) if frame.dtype.kind == "u" else 1.0
        planes = frame.reshape(*frame.shape[:2], -1).transpose(2, 0, 1) / scale
        images.append(torch.from_numpy(np.ascontiguousarray(planes, np.float64))[None])
    motion = torch.tensor(flow)[None]
    visible = inside(pixel_grid(*flow.shape[1:], dtype=motion.dtype) + motion, *flow.shape[1:])
    error = (warp(images[1], motion) - images[0]).abs().mean(dim=1, keepdim=True)
    return _masked_mean(error.numpy(), visible.numpy())


def event_sharpness(events: Events, flow: np.ndarray, t0: int, t1: int) -> float:
    """Flow warp loss (FWL): how much sharper the image of events is when the flow is undone.

    Every event moves back to t0 along a straight line, by the flow at the pixel where it fired (an
    approximation: the flow belongs to where the event's point was at t0). The image counts events,
    without polarity, splatted bilinearly; events that leave it are dropped.

    Args:
        events: those of [t0, t1) count.
        flow: [2, H, W], px from t0 to t1.
        t0, t1: microseconds.

    Returns:
        Variance of the warped image over variance of the image of unmoved events: 1 for zero flow,
        above 1 when the flow sharpens. NaN without events. Only together with a photometric error
        is it a measure of flow: gathering all events in one point is sharper still.

    Source: Stoffregen et al., Reducing the Sim-to-Real Gap for Event Cameras, ECCV 2020.
    """
    if t1 <= t0:
        raise ValueError(f"t1 must be later than t0, got the time interval [{t0}, {t1}) us")
    flow = _field("flow", flow, 3)
    height, width = flow.shape[1:]
    events = events.slice_time(t0, t1)
    x, y = events.x.astype(np.float64), events.y.astype(np.float64)
    column = np.clip(np.rint(x).astype(int), 0, width - 1)
    row = np.clip(np.rint(y).astype(int), 0, height - 1)
    elapsed = (events.t - t0) / (t1 - t0)
    u, v = flow[:, row, column]
    still = _splat(x, y, height, width).var()
    moved = _splat(x - u * elapsed, y - v * elapsed, height, width).var()
    return float(moved / still) if still > 0 else math.nan


def boundary_band(boundary: np.ndarray, radius: float = BOUNDARY_BAND) -> np.ndarray:
    """[H, W] bool: the pixels within ``radius`` px (Euclidean) of the boundary."""
    on_boundary = np.asarray(boundary) > 0.5
    if not on_boundary.any():
        return np.zeros(on_boundary.shape, bool)
    away = (~on_boundary).astype(np.uint8)
    return cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius


def _sum_of(values: np.ndarray, mask: np.ndarray) -> tuple[float, int]:
    return float(values[mask].sum()), int(mask.sum())


def _check_fields(
    flow: np.ndarray, ground_truth: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flow, ground_truth = _field("flow", flow, 3), _field("ground_truth", ground_truth, 3)
    if flow.shape != ground_truth.shape:
        raise ValueError(f"flow is {list(flow.shape)}, ground truth is {list(ground_truth.shape)}")
    valid = np.ones(flow.shape[1:], bool) if valid is None else np.asarray(valid).astype(bool)
    if valid.shape != flow.shape[1:]:
        raise ValueError(f"valid must have shape {list(flow.shape[1:])}, got {list(valid.shape)}")
    return flow, ground_truth, valid


def _field(name: str, value: np.ndarray, dimensions: int) -> np.ndarray:
    """value as float64 [2, H, W] or [T, 2, H, W]."""
    array = np.asarray(value, np.float64)
    if array.ndim != dimensions or array.shape[-3] != 2:
        expected = "[2, H, W]" if dimensions == 3 else "[T, 2, H, W]"
        raise ValueError(f"{name} must have shape {expected}, got {list(array.shape)}")
    return array


def _length(vectors: np.ndarray, axis: int) -> np.ndarray:
    return np.linalg.norm(vectors, axis=axis)


def means(sums: Sums) -> dict[str, float]:
    """Divide the sums of every measure; NaN where there is nothing to divide by."""
    return {name: _mean(*pair) for name, pair in sums.items()}


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def _with_count(sums: Sums) -> dict[str, float]:
    return {**means(sums), "valid_pixels": float(sums["epe"][1])}


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> float:
    return _mean(*_sum_of(values, mask))


def add_sum(sums: Sums, name: str, total: float, count: float) -> None:
    """Add a sum and its divisor to those of a measure that are there already."""
    former_total, former_count = sums.get(name, (0.0, 0))
    sums[name] = (former_total + total, former_count + count)


def _splat(x: np.ndarray, y: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W] sum of bilinear votes; votes outside are dropped."""
    image = np.zeros((height, width))
    left, top = np.floor(x), np.floor(y)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row))
            hit = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            np.add.at(image, (row[hit].astype(int), column[hit].astype(int)), weight[hit])
    return image
