"""Measure a checkpoint on held-out generated scenes, and on a real recording.

    python benchmarks/accuracy.py --sets fast --scenes 64
    python benchmarks/accuracy.py --recording slider_depth -o benchmarks/results/today

Rows: the model with both senses, the same checkpoint with one of them, OpenCV's DIS (medium) on the
frames, and zero flow. The scenes' seed belongs to this script alone: no training uses it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

import flowfuse
from flowfuse.atomic import atomic_path
from flowfuse.data.dataset import SceneDataset
from flowfuse.data.presets import PRESETS
from flowfuse.data.recording import open_recording
from flowfuse.data.transforms import Sample, with_present
from flowfuse.estimator import Estimator
from flowfuse.metrics import (
    FlowMetrics,
    event_sharpness,
    photometric_error,
    trajectory_metrics,
)
from flowfuse.training.samples import TEST_SEED, model_inputs
from flowfuse.training.validation import MODES, dense_inverse_search, gray_frames
from flowfuse.trajectory import bezier

COLUMNS = ("epe", "epe_below_10", "epe_10_to_40", "epe_above_40", "epe_boundary", "3pe", "tepe")


def estimate(estimator: Estimator, sample: Sample) -> np.ndarray:
    """Displacements of a generated sample at its times with truth: [T, 2, H, W] px."""
    batch = {name: tensor[None] for name, tensor in sample.items()}
    with torch.inference_mode():
        points = estimator.model(model_inputs(batch)).control_points[-1]
        return bezier(points, batch["tau"])[0].numpy()


def measure_scenes(
    estimator: Estimator, preset: str, count: int, size: tuple[int, int], cache: Path | None
) -> dict:
    """Measure all rows on ``count`` scenes of a preset.

    Flow metrics are averaged over all valid pixels of the set; what is measured over time
    (``tepe``, ``deviation_error``) over the scenes, of each scene's average.
    """
    config = estimator.model.config
    scenes = SceneDataset(
        preset, TEST_SEED, count, *size, config.slices, config.bins, cache, max_step=0.5
    )
    rows = {name: FlowMetrics() for name in (*MODES, "DIS", "zero")}
    over_time = {name: [] for name in MODES}
    for index in tqdm(range(count), desc=preset):
        sample = with_present(scenes[index])
        truth, valid = sample["flow"].numpy(), sample["valid"].numpy()
        motion_boundary = sample["boundary"][1].numpy()
        dis = dense_inverse_search(*gray_frames(sample))
        flows = {"DIS": dis, "zero": np.zeros_like(truth[-1])}
        for name, show in MODES.items():
            displacements = estimate(estimator, show(sample))
            flows[name] = displacements[-1]
            over_time[name].append(
                trajectory_metrics(
                    displacements[:-1], truth[:-1], sample["tau"][:-1].numpy(),
                    displacements[-1], truth[-1], valid[:-1] & valid[-1],
                )
            )  # fmt: skip
        for name, flow in flows.items():
            rows[name].add(flow, truth[-1], valid[-1], motion_boundary)
    table = {name: row.summary()["per_pixel"] for name, row in rows.items()}
    for name, values in over_time.items():
        for key in ("tepe", "deviation_error"):
            table[name][key] = float(np.nanmean([value[key] for value in values]))
    return {"preset": preset, "scenes": count, "size": list(size), "rows": table}


def measure_recording(estimator: Estimator, path: Path) -> dict:
    """Measure photometric error and event sharpness on a recording without truth."""
    recording = open_recording(path)
    times = recording.frame_times
    if len(times) < 2:
        raise ValueError(f"{path}: two frames or more are needed, found {len(times)}")
    pairs = []
    for i in range(len(times) - 1):
        t0, t1 = int(times[i]), int(times[i + 1])
        events = recording.events(t0 - (t1 - t0), t1)
        window = events.slice_time(t0, t1)
        frame0, frame1 = recording.frame(i), recording.frame(i + 1)
        result = estimator(frame0, frame1, events, t0=t0, t1=t1)
        zero = np.zeros_like(result.flow)
        gray = [f if f.ndim == 2 else cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (frame0, frame1)]
        u = result.flow[0]
        pairs.append(
            {
                "pair": i,
                "photometric": photometric_error(frame0, frame1, result.flow),
                "photometric_zero": photometric_error(frame0, frame1, zero),
                "photometric_dis": photometric_error(frame0, frame1, dense_inverse_search(*gray)),
                "sharpness": event_sharpness(window, result.flow, t0, t1),
                "one_sign": float(max((u > 0).mean(), (u < 0).mean())),
                "mean_u": float(u.mean()),
                "mean_abs_v": float(np.abs(result.flow[1]).mean()),
            }
        )
    # Without events in a window there is no sharpness.
    mean = {key: float(np.nanmean([p[key] for p in pairs])) for key in pairs[0] if key != "pair"}
    mean["photometric_ratio"] = mean["photometric"] / mean["photometric_zero"]
    return {"recording": path.name, "pairs": pairs, "mean": mean}


def as_markdown(report: dict) -> str:
    """Format the report as tables."""
    lines = [f"Checkpoint `{report['checkpoint']}`, {report['machine']}, {report['date']}."]
    for result in report["sets"]:
        height, width = result["size"]
        lines += [
            "",
            f"**{result['preset']}**: {result['scenes']} held-out scenes, {width} x {height} px; "
            "EPE in px",
            "",
            "| | " + " | ".join(COLUMNS) + " | EPE over zero's |",
            "|---" * (len(COLUMNS) + 2) + "|",
        ]
        zero = result["rows"]["zero"]["epe"]
        for mode, row in result["rows"].items():
            name = f"{mode} only" if mode in ("frames", "events") else mode
            cells = [f"{row[c]:.2f}" if c in row else "" for c in COLUMNS]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {row['epe'] / zero:.2f} |")
    for result in report["recordings"]:
        mean = result["mean"]
        lines += [
            "",
            f"**{result['recording']}**: {len(result['pairs'])} pairs; photometric error "
            f"{mean['photometric']:.4f} ({mean['photometric_ratio']:.2f} of zero flow's, "
            f"DIS {mean['photometric_dis'] / mean['photometric_zero']:.2f}), "
            f"event sharpness (FWL) {mean['sharpness']:.2f}, "
            f"u of one sign at {100 * mean['one_sign']:.1f} % of the pixels, "
            f"mean u {mean['mean_u']:.2f} px",
        ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, or 1 on an error, which is printed in one line."""
    try:
        run(build_parser().parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", default="small", help="shipped name or path")
    parser.add_argument(
        "--sets", nargs="*", default=["fast"], choices=list(PRESETS), help="presets"
    )
    parser.add_argument("--scenes", type=int, default=64, help="scenes of each set")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument(
        "--recording", type=Path, nargs="*", default=[], help="recordings without truth"
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps the scenes")
    parser.add_argument("-o", "--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure, print and write what was asked for."""
    estimator = flowfuse.load(options.checkpoint)
    report = {
        "checkpoint": options.checkpoint,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "sets": [
            measure_scenes(estimator, preset, options.scenes, tuple(options.size), options.cache)
            for preset in options.sets
        ],
        "recordings": [measure_recording(estimator, path) for path in options.recording],
    }
    text = as_markdown(report)
    print(text)
    if options.output:
        for suffix, content in ((".json", json.dumps(report, indent=1)), (".md", text)):
            with atomic_path(Path(f"{options.output}{suffix}")) as partial:
                partial.write_text(content)


if __name__ == "__main__":
    sys.exit(main())
