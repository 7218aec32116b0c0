"""Measures with a threshold that all scenes of a set share: what is certain, what is a boundary.

Thresholds are known once all scenes are, and differ where the scenes are drawn anew. So a scene
keeps histograms, which are small.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from flowfuse.evaluation.metrics import CERTAIN

# Limits of the bins of expected error, px: 64 per octave, as far as a network can say it.
EXPECTED = np.concatenate(([0.0], np.geomspace(2.0**-3, 2.0**11, 14 * 64 + 1), [math.inf]))
PROBABILITIES = 100  # bins of a boundary's probability
TOLERANCE = 2  # px between a boundary that is found and a true one


def certainty_histogram(error: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Sums of errors and counts by expected error.

    Args:
        error: [N] px, of the valid pixels.
        expected: [N] px, the error that the estimate expects; NaN is the least certain.

    Returns:
        [2, bins], the bins of ``EXPECTED``.
    """
    bins = len(EXPECTED) - 1
    place = np.minimum(np.searchsorted(EXPECTED, expected, side="right") - 1, bins - 1)
    return np.stack((np.bincount(place, error, bins), np.bincount(place, minlength=bins)))


def certain_values(
    weights: np.ndarray, histograms: np.ndarray, share: float = CERTAIN
) -> np.ndarray:
    """EPE that remains, over the EPE, where the least certain pixels of all scenes are removed.

    Unlike with a share of every scene, a scene that is wrong everywhere can be left out altogether.

    Args:
        weights: [R, N], how often each scene counts.
        histograms: [N, 2, bins] of every scene.
        share: of the pixels that are kept.

    Returns:
        [R]; NaN where there is no error at all.
    """
    errors, counts = np.tensordot(weights, histograms, axes=1).transpose(1, 0, 2)  # [R, bins]
    before = np.cumsum(counts, axis=1) - counts
    wanted = share * counts.sum(axis=1, keepdims=True)
    # Of the bin in which the limit lies, every pixel counts in part.
    kept = np.clip((wanted - before) / np.maximum(counts, 1), 0, 1)
    return quotient((errors * kept).sum(axis=1) / share, errors.sum(axis=1))


def boundary_histogram(probability: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """Counts of pixels by probability of a boundary.

    Args:
        probability: [H, W] in [0, 1]; NaN counts as 0.
        ground_truth: [H, W] bool.

    Returns:
        [3, bins]: all pixels; those with a true boundary within TOLERANCE; the true pixels by the
        largest probability within TOLERANCE.
    """
    y, x = np.mgrid[-TOLERANCE : TOLERANCE + 1, -TOLERANCE : TOLERANCE + 1]
    near = (x**2 + y**2 <= TOLERANCE**2).astype(np.uint8)
    place = (PROBABILITIES * np.nan_to_num(probability)).astype(int).clip(0, PROBABILITIES - 1)
    around = cv2.dilate(place.astype(np.uint8), near)
    beside = cv2.dilate(ground_truth.astype(np.uint8), near) > 0
    counted = (place.ravel(), place[beside], around[ground_truth])
    return np.stack([np.bincount(places, minlength=PROBABILITIES) for places in counted])


def boundary_values(weights: np.ndarray, histograms: np.ndarray) -> dict[str, np.ndarray]:
    """How well boundaries are found, at the threshold that is best for the whole set.

    Args:
        weights: [R, N], how often each scene counts.
        histograms: [N, 3, bins] of every scene.

    Returns:
        measure -> [R], NaN where there is no true boundary: ``precision``, the share of what is
        found that has a true boundary within TOLERANCE; ``recall``, the share of the true pixels
        that have one that is found; ``f``, the harmonic mean of both, which the threshold
        maximizes; ``f_everywhere``, that of a map that says "boundary" at every pixel.
    """
    totals = np.tensordot(weights, histograms, axes=1)
    above = totals[..., ::-1].cumsum(axis=-1)[..., ::-1]  # [R, 3, thresholds]
    found, right, matched = above.transpose(1, 0, 2)
    true = np.where(matched[:, :1] > 0, matched[:, :1], np.nan)
    precision = np.where(np.isnan(true), np.nan, right / np.maximum(found, 1))
    recall = matched / true
    # Where nothing is found both are 0, and so is F.
    f = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = np.argmax(np.nan_to_num(f), axis=1)[:, None]
    values = {"precision": precision, "recall": recall, "f": f}
    found_values = {
        name: np.take_along_axis(value, best, axis=1)[:, 0] for name, value in values.items()
    }
    return found_values | {"f_everywhere": f[:, 0]}


def quotient(numerators: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    """Elementwise quotient, NaN where the divisor is 0 or not known."""
    known = np.nan_to_num(divisors) != 0
    return np.where(known, numerators / np.where(known, divisors, 1), np.nan)
