"""The rows of the accuracy benchmark: networks with all and with some of the senses, and others.

DIS and Farneback are OpenCV's; they and zero flow know no path: theirs is the straight line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from accuracy_sets import GROUND_TRUTH_BOUNDARIES, Case, Estimate, Slicing
from accuracy_statistics import Histograms, displacement_sums
from accuracy_thresholds import boundary_histogram, certainty_histogram

import flowfuse
from flowfuse.estimator import Estimator
from flowfuse.evaluation.metrics import (
    Sums,
    event_sharpness,
    flow_sums,
    photometric_error,
    trajectory_sums,
    uncertainty_metrics,
)
from flowfuse.model.checkpoint import read_header, resolve_checkpoint
from flowfuse.training.validation import dense_inverse_search

DIS, FARNEBACK, ZERO = "DIS", "Farneback", "zero"
BASELINES = (DIS, FARNEBACK, ZERO)


@dataclass(frozen=True)
class Network:
    """A checkpoint as rows of the tables.

    Attributes:
        label: what its rows begin with.
        path: of the checkpoint.
        device, bf16: how it runs.
    """

    label: str
    path: Path
    device: str
    bf16: bool

    @classmethod
    def parse(cls, text: str, *, device: str = "cpu", bf16: bool = False) -> Network:
        """From "small", "runs/x.safetensors" or "label=runs/x.safetensors".

        Raises:
            FileNotFoundError, ValueError: there is no such checkpoint.
        """
        label, path = re.fullmatch(r"(?:([^=/]+)=)?(.*)", text).groups()
        return cls(label or Path(path).stem, resolve_checkpoint(path), device, bf16)

    @cached_property
    def estimator(self) -> Estimator:
        dtype = torch.bfloat16 if self.bf16 else None
        return flowfuse.load(self.path, device=self.device, dtype=dtype)

    @cached_property
    def slicing(self) -> Slicing:
        """How it wants events sliced; read without loading the weights."""
        config = read_header(self.path)[0]
        return config.slices, config.bins

    @property
    def modes(self) -> dict[str, str]:
        """Row -> mode: first what it was built for, then, if it has both senses, each alone.

        Last what it gives when it is told the true boundaries, if it has both and is guided by any.
        """
        config = self.estimator.model.config
        if not (config.frames and config.events):
            return {self.label: "fused"}
        modes = {
            f"{self.label} fused": "fused",
            f"{self.label} frames only": "frames",
            f"{self.label} events only": "events",
        }
        if config.boundary and config.fusion == "guided":
            modes[f"{self.label} {GROUND_TRUTH_BOUNDARIES}"] = GROUND_TRUTH_BOUNDARIES
        return modes

    @property
    def row(self) -> str:
        """The row with all its senses."""
        return next(iter(self.modes))


def estimate_all(networks: Sequence[Network], case: Case) -> dict[str, Estimate]:
    """Run every row on a case, each once."""
    found = {
        row: case.estimate(network.estimator, mode)
        for network in networks
        for row, mode in network.modes.items()
        if mode != GROUND_TRUTH_BOUNDARIES or case.boundary is not None
    }
    return found | estimate_baselines(case)


def estimate_baselines(case: Case) -> dict[str, Estimate]:
    frame0, frame1 = case.gray
    flows = {
        DIS: dense_inverse_search(frame0, frame1),
        FARNEBACK: farneback(frame0, frame1),
        ZERO: np.zeros((2, *frame0.shape), np.float32),
    }
    line = case.tau[:, None, None, None]
    return {name: Estimate(line * flow) for name, flow in flows.items()}


def farneback(frame0: np.ndarray, frame1: np.ndarray) -> np.ndarray:
    """OpenCV's Farneback flow: two uint8 [H, W] -> [2, H, W] px.

    The larger of the two neighbourhoods that OpenCV's manual names, and five levels: a motion of
    60 px is 4 px at the coarsest.
    """
    flow = cv2.calcOpticalFlowFarneback(
        frame0, frame1, None, pyr_scale=0.5, levels=5, winsize=15, iterations=3,
        poly_n=7, poly_sigma=1.5, flags=0,
    )  # fmt: skip
    return flow.transpose(2, 0, 1)


def ground_truth_sums(estimate: Estimate, case: Case) -> Sums:
    """All measures of an estimate against truth, as sums over the case.

    What is no average over pixels (``ause``, ``ause_magnitude``) counts once per case;
    ``epe_certain`` and its limit count by the sum of their errors: of the set they are the EPE that
    remains over the EPE, the most certain pixels of each scene being kept.
    """
    flow, ground_truth, valid = estimate.displacements[-1], case.ground_truth[-1], case.valid[-1]
    motion_boundary = None if case.boundary is None else case.boundary[1]
    sums = flow_sums(flow, ground_truth, valid, motion_boundary)
    sums |= displacement_sums(
        end_point_error(estimate, case), np.hypot(*ground_truth.astype(np.float64))[valid]
    )
    if len(case.tau) > 1:
        sums |= trajectory_sums(
            estimate.displacements[:-1], case.ground_truth[:-1], case.tau[:-1],
            flow, ground_truth, case.valid[:-1] & valid,
        )  # fmt: skip
    if estimate.uncertainty is not None and valid.any():
        ranked = uncertainty_metrics(flow, ground_truth, estimate.uncertainty, valid)
        sums |= {name: (ranked[name], 1) for name in ("ause", "ause_magnitude")}
        total = sums["epe"][0]
        for name in ("epe_certain", "epe_certain_limit"):
            sums[name] = (ranked[name] * total, total)
    return sums


def end_point_error(estimate: Estimate, case: Case) -> np.ndarray:
    """At t1, of the valid pixels: [N] px."""
    error = np.hypot(*(estimate.displacements[-1] - case.ground_truth[-1]).astype(np.float64))
    return error[case.valid[-1]]


def histograms(estimate: Estimate, case: Case) -> Histograms:
    """What measures need whose thresholds are those of a set; empty for flow alone."""
    found = {}
    if estimate.uncertainty is not None:
        error = end_point_error(estimate, case)
        expected = estimate.uncertainty[case.valid[-1]]
        found["certain_set"] = certainty_histogram(error, expected)
        found["certain_set_limit"] = certainty_histogram(error, error)
    if estimate.boundary is not None and case.boundary is not None:
        for i, name in enumerate(("event", "motion")):
            found[name] = boundary_histogram(estimate.boundary[i], case.boundary[i] > 0.5)
    return found


def sums_without_truth(estimate: Estimate, case: Case) -> Sums:
    """Measures that need no truth, of a pair with its event stream; each counts once per pair."""
    flow = estimate.displacements[-1]
    u, v = flow.astype(np.float64)
    measures: Mapping[str, float] = {
        "photometric": photometric_error(*case.frames, flow),
        "sharpness": event_sharpness(case.events, flow, case.t0, case.t1),
        "mean_u": u.mean(),
        "mean_v": v.mean(),
        "mean_abs_v": np.abs(v).mean(),
        "one_sign": 100 * max((u > 0).mean(), (u < 0).mean()),
    }
    # Without events in the window there is no sharpness.
    return {name: (float(m), 1) for name, m in measures.items() if np.isfinite(m)}
