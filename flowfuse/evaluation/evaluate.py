"""Compare estimates with ground truth over many frame pairs.

Every command that tells errors goes through here: flowfuse-infer, validation while training, the
MVSEC tool and the accuracy benchmark. What differs between them is given as data: which estimates
stand side by side (the rows: methods, or one network with some of its modalities), which pixels
count (the masks) and which error makes a pixel an outlier (``outlier_fraction`` of a protocol).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from flowfuse.evaluation.boundaries import (
    Sides,
    boundary_sums,
    find_sides,
    motion_discontinuities,
    side_sums,
)
from flowfuse.evaluation.grid import grid_sums
from flowfuse.evaluation.metrics import (
    FlowMetrics,
    Sums,
    flow_sums,
    trajectory_sums,
    uncertainty_metrics,
)

ALL = "all"  # the mask that leaves nothing out


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a method finds for a pair.

    Attributes:
        displacements: [T, 2, H, W] px, at the times of the ground truth; the last is the flow.
        uncertainty: [H, W] px, or None where the method gives none.
        boundary: [2, H, W] probabilities of B_e and B_m, or None.
    """

    displacements: np.ndarray
    uncertainty: np.ndarray | None = None
    boundary: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is known about a pair.

    Attributes:
        displacements: [T, 2, H, W] px at the times ``tau``; the last is what the flow is held to.
        valid: [T, H, W] bool, where it is known.
        tau: [T]; the last is 1 where there is a path.
        motion_boundary: [H, W], the motion boundary B_m (bool, or > 0.5); None = unknown.
        occluded: [H, W] bool, what cannot be seen at the last time; None = unknown.
        masks: name -> [H, W] bool, which of the valid pixels count; every estimate is measured
            under each. None = all of them.
    """

    displacements: np.ndarray
    valid: np.ndarray
    tau: Sequence[float] | np.ndarray = (1.0,)
    motion_boundary: np.ndarray | None = None
    occluded: np.ndarray | None = None
    masks: Mapping[str, np.ndarray | None] = field(default_factory=lambda: {ALL: None})

    @classmethod
    def of_flow(cls, flow: np.ndarray, valid: np.ndarray, **known: Any) -> GroundTruth:
        """Of flow alone: [2, H, W] px and [H, W] bool."""
        return cls(flow[None], valid[None], **known)

    @cached_property
    def edges(self) -> np.ndarray:
        """[H, W] bool: B_m where it is known, else where the ground truth jumps."""
        if self.motion_boundary is not None:
            return np.asarray(self.motion_boundary) > 0.5
        return motion_discontinuities(self.displacements[-1], self.valid[-1])

    @cached_property
    def sides(self) -> Sides:
        """What is in front and what is behind where the ground truth jumps."""
        return find_sides(self.displacements[-1], self.valid[-1], self.occluded)


# (estimate, ground truth, [H, W] bool pixels that count, outlier_fraction) -> sums
Measure = Callable[[Estimate, GroundTruth, np.ndarray, float], Sums]
PairSums = dict[str, dict[str, Sums]]  # mask -> row -> sums of a pair
Pair = tuple[Mapping[str, Estimate], GroundTruth]  # row -> estimate


def pair_sums(
    estimate: Estimate, ground_truth: GroundTruth, counted: np.ndarray, outlier_fraction: float
) -> Sums:
    """All measures of an estimate, as sums over a pair.

    Returns:
        the measures of :func:`flow_sums`; ``epe_within_2`` ... of :func:`boundary_sums`, about
        B_m where it is known, else about the jumps of the ground truth; those of :func:`side_sums`
        and :func:`grid_sums`, about these jumps; ``epe_occluded`` and
        ``epe_visible`` where occlusion is known; those of :func:`trajectory_sums` where there is
        ground truth at earlier times; where there is an uncertainty ``ause`` and
        ``ause_magnitude``, which count once per pair, and ``epe_certain`` with its limit, which
        count by the sum of the pair's errors: of a set they are the EPE that remains over the EPE,
        the most certain pixels of each pair being kept.
    """
    flow, target = estimate.displacements[-1], ground_truth.displacements[-1]
    boundary = ground_truth.motion_boundary
    sums = flow_sums(flow, target, counted, boundary, outlier_fraction=outlier_fraction)
    sums |= boundary_sums(flow, target, counted, ground_truth.edges)
    sums |= side_sums(flow, target, counted, ground_truth.sides)
    sums |= grid_sums(flow, target, counted, ground_truth.sides)
    if ground_truth.occluded is not None:
        for name, part in (("occluded", True), ("visible", False)):
            chosen = counted & (ground_truth.occluded == part)
            sums[f"epe_{name}"] = flow_sums(flow, target, chosen)["epe"]
    if len(ground_truth.displacements) > 1:
        sums |= trajectory_sums(
            estimate.displacements[:-1], ground_truth.displacements[:-1], ground_truth.tau[:-1],
            flow, target, ground_truth.valid[:-1] & counted,
        )  # fmt: skip
    if estimate.uncertainty is not None and counted.any():
        ranked = uncertainty_metrics(flow, target, estimate.uncertainty, counted)
        sums |= {name: (ranked[name], 1) for name in ("ause", "ause_magnitude")}
        total = sums["epe"][0]
        for name in ("epe_certain", "epe_certain_limit"):
            sums[name] = (ranked[name] * total, total)
    return sums


def endpoint_sums(
    estimate: Estimate, ground_truth: GroundTruth, counted: np.ndarray, outlier_fraction: float
) -> Sums:
    """EPE and TEPE alone, for measurements that are made often; errors in float32.

    Unlike in :func:`pair_sums`, TEPE counts a pixel whenever its ground truth is known at tau,
    whether or not it is known at the end.
    """
    error = torch.from_numpy(estimate.displacements - ground_truth.displacements).norm(dim=1)
    error = error.double().numpy()
    valid = ground_truth.valid[:-1]
    return {
        "epe": (float(error[-1][counted].sum()), int(counted.sum())),
        "tepe": (float(error[:-1][valid].sum()), int(valid.sum())),
    }


class Evaluation:
    """The measures of every row under every mask, over the pairs so far.

    Args:
        outlier_fraction: see :func:`flow_sums`; protocols differ in it.
        measure: what is measured.

    Attributes:
        latest: of the last pair, mask -> row -> sums, for statistics over pairs.
    """

    def __init__(self, *, outlier_fraction: float = 0.0, measure: Measure = pair_sums) -> None:
        self.outlier_fraction = outlier_fraction
        self.measure = measure
        self.latest: PairSums = {}
        self._metrics: dict[str, dict[str, FlowMetrics]] = {}

    def add(
        self, estimates: Mapping[str, Estimate], ground_truth: GroundTruth
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Measure the estimates of one pair.

        Returns:
            mask -> row -> measure -> value.
        """
        sums: PairSums = {}
        valid = np.asarray(ground_truth.valid[-1], bool)
        for mask, pixels in ground_truth.masks.items():
            counted = valid if pixels is None else valid & pixels
            sums[mask] = {
                row: self.measure(estimate, ground_truth, counted, self.outlier_fraction)
                for row, estimate in estimates.items()
            }
        return self.add_sums(sums)

    def add_sums(self, sums: PairSums) -> dict[str, dict[str, dict[str, float]]]:
        """Add a pair by what ``latest`` had of it; returns what :meth:`add` does."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for mask, rows in sums.items():
            found[mask] = {}
            for row, one in rows.items():
                metrics = self._metrics.setdefault(mask, {}).setdefault(row, FlowMetrics())
                found[mask][row] = metrics.add_sums(one)
        self.latest = sums
        return found

    @property
    def masks(self) -> list[str]:
        """The masks, in the order in which they came."""
        return list(self._metrics)

    def rows(self, mask: str = ALL) -> list[str]:
        """The rows under a mask, in the order in which they came."""
        return list(self._metrics.get(mask, {}))

    def sums(self, row: str, mask: str = ALL) -> Sums:
        """measure -> (sum, divisor) over all pairs."""
        return self._metrics[mask][row].pixel_sums

    def summary(self, row: str, mask: str = ALL) -> dict[str, Any]:
        """Both averages of every measure, as :meth:`FlowMetrics.summary` gives them."""
        return self._metrics[mask][row].summary()


def evaluate(
    pairs: Iterable[Pair], *, outlier_fraction: float = 0.0, measure: Measure = pair_sums
) -> Evaluation:
    """Measure estimates over frame pairs, of which one is held at a time.

    Args:
        pairs: of each pair, row -> estimate, and the ground truth with its masks.
        outlier_fraction: see :func:`flow_sums`; ``Protocol.outlier_fraction`` of MVSEC.
        measure: :func:`pair_sums` for all measures, :func:`endpoint_sums` for EPE and TEPE.
    """
    evaluation = Evaluation(outlier_fraction=outlier_fraction, measure=measure)
    for estimates, ground_truth in pairs:
        evaluation.add(estimates, ground_truth)
    return evaluation
