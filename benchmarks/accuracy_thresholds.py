"""Measures with a threshold that all scenes of a set share: what is certain, what is a boundary.

Thresholds are known once all scenes are. Until then a scene keeps histograms, which are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from accuracy_sets import Case, Estimate

from flowfuse.metrics import CERTAIN

# Limits of the bins of expected error, px: 64 per octave, as far as a network can say it.
EXPECTED = np.concatenate(([0.0], np.geomspace(2.0**-3, 2.0**11, 14 * 64 + 1), [math.inf]))
PROBABILITIES = 100  # bins of a boundary's probability
TOLERANCE = 2  # px between a boundary that is found and a true one
BOUNDARIES = ("event", "motion")  # B_e, B_m

Histograms = dict[str, np.ndarray]


def scene_histograms(estimate: Estimate, case: Case) -> Histograms:
    """What :func:`set_sums` needs of a scene; empty for an estimate of flow alone."""
    found = {}
    if estimate.uncertainty is not None:
        valid = case.valid[-1]
        error = np.hypot(*(estimate.displacements[-1] - case.truth[-1]).astype(np.float64))
        found["certain"] = certainty_histogram(error[valid], estimate.uncertainty[valid])
    if estimate.boundary is not None and case.boundary is not None:
        for name, probability, truth in zip(
            BOUNDARIES, estimate.boundary, case.boundary, strict=True
        ):
            found[name] = boundary_histogram(probability, truth > 0.5)
    return found


def set_sums(scenes: Sequence[Histograms]) -> dict[str, np.ndarray]:
    """Numerators and divisors of each measure in each scene: measure -> [N, 2]."""
    # All scenes of a row have the same histograms.
    stacked = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
    found = {}
    if "certain" in stacked:
        found["epe_certain_set"] = certain_sums(stacked["certain"])
    for name in BOUNDARIES:
        if name in stacked:
            parts = boundary_sums(stacked[name])
            found |= {f"boundary_{name}_{measure}": sums for measure, sums in parts.items()}
    return found


def certainty_histogram(error: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Sums of errors and counts by expected error.

    Args:
        error: [N] px, of the valid pixels.
        expected: [N] px, the error that the estimate expects.

    Returns:
        [2, bins], the bins of ``EXPECTED``.
    """
    bins = len(EXPECTED) - 1
    place = np.searchsorted(EXPECTED, expected, side="right") - 1
    return np.stack((np.bincount(place, error, bins), np.bincount(place, minlength=bins)))


def certain_sums(histograms: np.ndarray, share: float = CERTAIN) -> np.ndarray:
    """What remains where the least certain pixels of all scenes together are removed.

    Unlike with a share of every scene, a scene that is wrong everywhere can be left out altogether.

    Args:
        histograms: [N, 2, bins] of every scene.
        share: of the pixels that are kept.

    Returns:
        [N, 2] numerators and divisors of the EPE that remains over the EPE.
    """
    counts = histograms[:, 1].sum(axis=0)
    before = np.cumsum(counts) - counts
    # Of the bin in which the limit lies, every pixel counts in part.
    kept = np.clip((share * counts.sum() - before) / np.maximum(counts, 1), 0, 1)
    errors = histograms[:, 0]
    return np.stack((errors @ kept / share, errors.sum(axis=1)), axis=1)


def boundary_histogram(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts of pixels by probability of a boundary.

    Args:
        probability: [H, W] in [0, 1].
        truth: [H, W] bool.

    Returns:
        [3, bins]: all pixels; those with a true boundary within TOLERANCE; the true pixels by the
        largest probability within TOLERANCE.
    """
    y, x = np.mgrid[-TOLERANCE : TOLERANCE + 1, -TOLERANCE : TOLERANCE + 1]
    near = (x**2 + y**2 <= TOLERANCE**2).astype(np.uint8)
    place = np.minimum((PROBABILITIES * probability).astype(int), PROBABILITIES - 1)
    around = cv2.dilate(place.astype(np.uint8), near)
    beside = cv2.dilate(truth.astype(np.uint8), near) > 0
    counted = (place.ravel(), place[beside], around[truth])
    return np.stack([np.bincount(places, minlength=PROBABILITIES) for places in counted])


def boundary_sums(histograms: np.ndarray) -> dict[str, np.ndarray]:
    """How well boundaries are found, at the threshold that is best for the whole set.

    Args:
        histograms: [N, 3, bins] of every scene.

    Returns:
        measure -> [N, 2] numerators and divisors: ``precision``, the share of what is found that
        has a true boundary within TOLERANCE; ``recall``, the share of the true pixels that have
        one that is found; ``f``, the share of both together, which the threshold maximizes.
    """
    above = histograms[..., ::-1].cumsum(axis=-1)[..., ::-1]  # [N, 3, thresholds]
    found, right, matched = above.transpose(1, 0, 2)
    true = np.broadcast_to(matched[:, :1], matched.shape)
    quality = (right + matched).sum(axis=0) / np.maximum((found + true).sum(axis=0), 1)
    best = int(np.argmax(quality))
    parts = {"precision": (right, found), "recall": (matched, true)}
    parts["f"] = (right + matched, found + true)
    return {
        name: np.stack((part[:, best], whole[:, best]), axis=1)
        for name, (part, whole) in parts.items()
    }
