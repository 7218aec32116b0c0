"""Measure checkpoints on real recordings with ground truth: does fusing cost or gain?

    python benchmarks/real.py --recordings DIR
    python benchmarks/real.py --recordings DIR --checkpoint small --checkpoint new=runs/x

Prints a markdown table of the mean EPE (endpoint error, px) of every set: with both modalities,
with each of them alone, of OpenCV's DIS on the frames, and of zero flow. The ratio is that of the
fused error to the better single modality's: 1 means that fusing costs nothing. Below stand the
ratios' means over pairs, which are what to compare checkpoints by.

DIR holds plain recordings, searched recursively: events, frames, and `flow/`, or, for events
alone, one `flow.flo` with a `meta.json` of its interval, lens and constant rate of rotation. Such
an interval is measured twice: from its first event, without history, and with its first fifth as
history. Exposures are left out: those of these cameras are not known.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from accuracy_rows import Network
from reporting import OneLineParser

from flowfuse.cli.console import leave, parse_count, run_command
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator
from flowfuse.evaluation.metrics import flow_metrics
from flowfuse.events import Events
from flowfuse.io.flow import read_flow
from flowfuse.io.images import as_gray
from flowfuse.training.validation import dense_inverse_search

HISTORY_SHARE = 5  # one part in so many of an interval serves as history
LENS_STEPS = 30  # until the ray of a pixel is known to 1e-3 px
MODES = ("fused", "frames", "events")


@dataclass(frozen=True)
class Case:
    """One interval with ground truth.

    Attributes:
        frames: both frames, uint8; None for events alone.
        events: those of the interval, and from before it where they are history.
        t0, t1: us.
        flow: [2, H, W] px.
        valid: [H, W] bool.
    """

    frames: tuple[np.ndarray, np.ndarray] | None
    events: Events
    t0: int
    t1: int
    flow: np.ndarray
    valid: np.ndarray


def find_sets(root: Path) -> dict[str, list[Path]]:
    """Find what can be measured: recordings with `flow/`, and intervals with `flow.flo`.

    Returns:
        {"pairs": directories, "intervals": directories}, sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    found = {
        "pairs": sorted(path.parent for path in root.rglob("flow") if path.is_dir()),
        "intervals": sorted(path.parent for path in root.rglob("flow.flo")),
    }
    if not any(found.values()):
        raise FileNotFoundError(f"{root}: no recording with flow/ or flow.flo in it")
    return found


def frame_pairs(recording: Recording, slices: int) -> Iterator[Case]:
    """Yield the pairs of a recording that have ground truth, with the history that there is."""
    for first, second in recording.frame_pairs:
        ground_truth = recording.ground_truth(first)
        if ground_truth is None:
            continue
        t0, t1 = int(recording.frame_times[first]), int(recording.frame_times[second])
        frames = recording.frame(first), recording.frame(second)
        events = recording.events(t0 - (t1 - t0) // slices - 1, t1)
        yield Case(frames, events, t0, t1, *ground_truth)


def rotation_case(path: Path, *, history: bool) -> Case:
    """Read an interval of a rotating camera.

    With history, the interval begins after its first fifth, and its flow is that of the same rate
    of rotation for the time that is left.
    """
    facts = json.loads((path / "meta.json").read_text())
    recording = open_recording(path)
    t0, t1 = facts["t0_us"], facts["t1_us"]
    events = recording.events(t0, t1)
    flow, valid = read_flow(path / "flow.flo")
    if history:
        start = t0 + (t1 - t0) // HISTORY_SHARE
        flow = rotation_flow(facts, (t1 - start) * 1e-6, *valid.shape)
        return Case(None, events, start, t1, flow, valid)
    return Case(None, events, t0, t1, flow, valid)


def rotation_flow(facts: dict, seconds: float, height: int, width: int) -> np.ndarray:
    """Flow [2, H, W] px of a camera with a distorting lens that turns at a constant rate.

    Args:
        facts: "rate_rad_s" [3], and "calib": fx, fy, cx, cy, k1, k2, p1, p2, k3.
        seconds: duration.
        height, width: px.
    """
    fx, fy, cx, cy, *lens = facts["calib"]
    camera, lens = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), np.array(lens)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.stack((x.ravel(), y.ravel()), axis=1)
    rays = np.stack(((pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(pixels))), 1)
    still = np.zeros(3)
    for _ in range(LENS_STEPS):
        seen, _ = cv2.projectPoints(rays, still, still, camera, lens)
        rays[:, :2] += (pixels - seen[:, 0]) / (fx, fy)
    # The scene turns against the camera.
    angle = -np.array(facts["rate_rad_s"]) * seconds
    moved, _ = cv2.projectPoints(rays, angle, still, camera, lens)
    return (moved[:, 0] - pixels).T.reshape(2, height, width).astype(np.float32)


def case_errors(
    estimators: dict[str, Estimator], case: Case, iterations: int | None
) -> dict[str, float]:
    """Mean EPE of every row on one case, px."""
    times = {"t0": case.t0, "t1": case.t1}
    flows = {"zero": np.zeros_like(case.flow)}
    if case.frames is not None:
        flows["DIS"] = dense_inverse_search(*(as_gray(frame) for frame in case.frames))
    frames = case.frames or (None, None)
    for label, estimator in estimators.items():
        shown = {"events": (None, None, case.events)}
        if case.frames is not None:
            shown |= {"fused": (*frames, case.events), "frames": (*frames, None)}
        for mode, inputs in shown.items():
            flows[f"{label} {mode}"] = estimator(*inputs, **times, iterations=iterations).flow
    return {name: flow_metrics(f, case.flow, case.valid)["epe"] for name, f in flows.items()}


def measure(
    estimators: dict[str, Estimator], root: Path, iterations: int | None
) -> dict[str, list[dict[str, float]]]:
    """Measure all sets: name of the set -> the errors of its cases."""
    sets = find_sets(root)
    found = {}
    slices = min(estimator.model.config.slices for estimator in estimators.values())
    for path in sets["pairs"]:
        cases = frame_pairs(open_recording(path), slices)
        name = str(path.relative_to(root))
        found[name] = [case_errors(estimators, case, iterations) for case in cases]
    for history in (True, False):
        for path in sets["intervals"]:
            name = f"{path.relative_to(root)}, {'with' if history else 'no'} history"
            case = rotation_case(path, history=history)
            found[name] = [case_errors(estimators, case, iterations)]
    return found


def as_table(found: dict[str, list[dict[str, float]]], labels: Sequence[str]) -> str:
    """Write the means over the cases of every set as a markdown table."""
    columns = [f"{label} {mode}" for label in labels for mode in (*MODES, "ratio")]
    columns += ["DIS", "zero"]
    lines = [
        "| set (cases) | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, cases in found.items():
        means = {row: float(np.mean([case[row] for case in cases])) for row in cases[0]}
        for label in labels:
            if f"{label} fused" in means:
                best = min(means[f"{label} frames"], means[f"{label} events"])
                means[f"{label} ratio"] = means[f"{label} fused"] / best
        values = (f"{means[column]:.2f}" if column in means else "" for column in columns)
        lines.append(f"| {name} ({len(cases)}) | " + " | ".join(values) + " |")
    return "\n".join(lines)


def pair_ratios(found: dict[str, list[dict[str, float]]], label: str) -> np.ndarray:
    """Fused error over the better single modality's, of every case with both."""
    cases = [case for cases in found.values() for case in cases if f"{label} fused" in case]
    return np.array(
        [
            case[f"{label} fused"] / min(case[f"{label} frames"], case[f"{label} events"])
            for case in cases
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = OneLineParser(
        prog="real.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recordings", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--checkpoint", action="append", metavar="[LABEL=]CHECKPOINT", help="default: small"
    )
    parser.add_argument("--iterations", type=parse_count, help="recurrent updates (the model's)")
    parser.add_argument("--threads", type=parse_count, help="CPU threads (torch's own number)")
    options = parser.parse_args(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    networks = [Network.parse(text) for text in options.checkpoint or ["small"]]
    estimators = {network.label: network.estimator for network in networks}
    found = measure(estimators, options.recordings, options.iterations)
    print(as_table(found, list(estimators)))
    for label in estimators:
        ratios = pair_ratios(found, label)
        if len(ratios):
            print(
                f"\n{label}: fused / better single modality, geometric mean over "
                f"{len(ratios)} pairs: {np.exp(np.log(ratios).mean()):.3f}"
            )
    return 0


if __name__ == "__main__":
    leave(run_command("real.py", lambda: main(sys.argv[1:])))
