"""Measure a checkpoint on a sequence of MVSEC by a published protocol.

    python data_tools/evaluate_mvsec.py MVSEC/outdoor_day1_data.hdf5 --protocol evflownet --dt 1

The ground truth (<sequence>_gt.hdf5 or <sequence>_gt_flow_dist.npz) is looked for beside it.
"""

from __future__ import annotations

import json
import warnings
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, parse_count, run_command
from flowfuse.data.datasets.mvsec.protocols import (
    PROTOCOLS,
    EvaluationInterval,
    Protocol,
    find_protocol,
)
from flowfuse.data.datasets.mvsec.recording import MvsecRecording, open_mvsec
from flowfuse.estimator import Estimator, load
from flowfuse.evaluation.evaluate import Estimate, GroundTruth, Pair, evaluate
from flowfuse.events import Events
from flowfuse.inputs import input_interval
from flowfuse.io.atomic import atomic_path, check_file_path
from flowfuse.io.progress import progress

MEASURES = {
    "epe": "EPE, px",
    "3pe": "outliers, %",
    "1pe": "> 1 px, %",
    "2pe": "> 2 px, %",
    "ae": "AE, degrees",
    "ause": "AUSE",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(
        "evaluate_mvsec", lambda: measure(arguments), interrupted="nothing is written"
    )


def measure(arguments: Namespace) -> None:
    """Print the errors, and write them where that is asked for."""
    if arguments.output is not None:
        check_file_path(arguments.output)
    recording = open_mvsec(
        arguments.recording, ground_truth=arguments.ground_truth, undistort=arguments.undistort
    )
    protocol = choose_protocol(arguments.protocol, recording.sequence, arguments.seconds)
    estimator = load(arguments.model, arguments.device)
    conditions = describe(recording, protocol, arguments)
    print("\n".join(conditions))
    intervals = protocol.intervals(recording, arguments.dt, arguments.stride)
    result = compare(estimator, recording, protocol, intervals, arguments.input == "crop")
    print("\n".join(table(result)))
    if arguments.output is not None:
        content = {"model": arguments.model, "conditions": conditions, **result}
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("recording", type=Path, help="<sequence>_data.hdf5")
    add("--protocol", choices=tuple(PROTOCOLS), default="evflownet", help="of which paper")
    add("--dt", type=int, default=1, help="frames that a time interval spans; eraft20 knows none")
    add("--stride", type=parse_count, default=1, help="take every so many-th time interval")
    add("--model", default="small", help="shipped checkpoint or a .safetensors file")
    add("--ground-truth", type=Path, help="its file, where not beside the recording")
    add(
        "--undistort",
        metavar="DIR",
        type=Path,
        help="rectify events and frames by *_left_{x,y}_map.txt in DIR; the papers feed raw ones",
    )
    add(
        "--input",
        choices=("crop", "full"),
        default="crop",
        help="what the network sees: the crop alone, as in the papers, or the full frame",
    )
    add(
        "--seconds",
        metavar="A:B",
        type=parse_seconds,
        help="evaluate there, counted from the first event or frame, not where the paper does",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("-o", "--output", metavar="FILE", type=Path, help="write the numbers as JSON")
    parser.accept_former_name("--truth", "--ground-truth")
    return parser


def parse_seconds(text: str) -> tuple[float, float]:
    """Parse ``222.4:240.4``."""
    try:
        first, last = (float(part) for part in text.split(":"))
        if not 0 <= first < last:
            raise ValueError
    except ValueError:
        raise ArgumentTypeError(f"expected A:B with 0 <= A < B, got {text!r}") from None
    return first, last


def choose_protocol(name: str, sequence: str, seconds: tuple[float, float] | None) -> Protocol:
    """A preset; with ``seconds``, its intervals lie there, whatever it names."""
    protocol = find_protocol(name)
    if seconds is None:
        return protocol
    return replace(
        protocol,
        name=f"{name} (other seconds)",
        frames={},
        starts={},
        seconds={sequence: seconds},
        only_listed=False,
    )


def describe(recording: MvsecRecording, protocol: Protocol, arguments: Namespace) -> list[str]:
    """Say all that the numbers depend on."""
    inputs = "rectified" if recording.undistorted else "raw"
    frames = "events and frames" if protocol.steps else "events alone, there are no frames then"
    extent = "the crop" if arguments.input == "crop" else "the full frame"
    stride = f"; one time interval in {arguments.stride}" if arguments.stride > 1 else ""
    return [
        *protocol.describe(recording.sequence, arguments.dt),
        f"input: {inputs} {frames}; {extent}{stride}; model {arguments.model}",
    ]


def compare(
    estimator: Estimator,
    recording: MvsecRecording,
    protocol: Protocol,
    intervals: Sequence[EvaluationInterval],
    crop_input: bool,
) -> dict:
    """Estimate the flow of all intervals and compare it, and zero flow, with the ground truth.

    Returns:
        ``windows``: how many were measured, ``empty``: how many were not, for they have neither
        frames nor an event; for each mask ``model`` and ``zero flow``, summaries of
        :class:`FlowMetrics`.

    Raises:
        ValueError: there was nothing to estimate flow from in any of them.
    """
    empty: list[EvaluationInterval] = []

    def pairs() -> Iterator[Pair]:
        for interval in progress(intervals, unit=" intervals"):
            estimate = estimate_interval(estimator, recording, protocol, interval, crop_input)
            if estimate is None:
                empty.append(interval)
                continue
            masks = {mask: None for mask in protocol.masks}
            if "events" in masks:
                masks["events"] = protocol.event_mask(recording.events(interval.t0, interval.t1))
            ground_truth = GroundTruth.of_flow(
                *protocol.ground_truth(recording, interval), masks=masks
            )
            still = Estimate(np.zeros_like(estimate.displacements))
            yield {"model": estimate, "zero flow": still}, ground_truth

    found = evaluate(pairs(), outlier_fraction=protocol.outlier_fraction)
    if len(empty) == len(intervals):
        raise ValueError(f"{recording.path}: no event in any of {len(intervals)} time intervals")
    if empty:
        first = empty[0]
        warnings.warn(
            f"{recording.path}: {len(empty)} of {len(intervals)} time intervals have no event, and "
            f"no flow was estimated there; the first is {first.t0} to {first.t1} us",
            stacklevel=2,
        )
    summaries = {
        mask: {row: defined(found.summary(row, mask)) for row in found.rows(mask)}
        for mask in found.masks
    }
    measured = len(intervals) - len(empty)
    return {"windows": measured, "empty": len(empty), "masks": summaries}


def defined(summary: dict) -> dict:
    """A summary of FlowMetrics without the measures that nothing counted for."""
    averages = {
        average: {name: value for name, value in summary[average].items() if value == value}
        for average in ("per_pixel", "per_frame")
    }
    return {**summary, **averages}


@torch.no_grad()
def estimate_interval(
    estimator: Estimator,
    recording: MvsecRecording,
    protocol: Protocol,
    interval: EvaluationInterval,
    crop_input: bool,
) -> Estimate | None:
    """Estimate the flow of the crop, [1, 2, c, c] px, and its uncertainty; None without input."""
    start, end = input_interval(interval.t0, interval.t1, estimator.model.config.slices, None, None)
    events = recording.events(max(start, 0), end)
    frames = [None, None]
    if interval.frames is not None:
        frames = [recording.frame(i) for i in interval.frames]
    if crop_input:
        events = crop_events(events, protocol)
        frames = [None if frame is None else protocol.cut(frame) for frame in frames]
    config = estimator.model.config
    uses_events = config.events and len(events.slice_time(interval.t0, interval.t1))
    if not uses_events and (interval.frames is None or not config.frames):
        return None
    result = estimator(*frames, events, t0=interval.t0, t1=interval.t1)
    found = (result.flow, result.uncertainty)
    flow, uncertainty = found if crop_input else map(protocol.cut, found)
    return Estimate(flow[None], uncertainty)


def crop_events(events: Events, protocol: Protocol) -> Events:
    """The events inside of the centre crop, at their places in it."""
    top, left = protocol.corner(events.height, events.width)
    # Signed: unsigned coordinates left of the crop would come back from the right.
    kind = np.float32 if events.x.dtype.kind == "f" else np.int32
    x, y = events.x.astype(kind) - kind(left), events.y.astype(kind) - kind(top)
    side = protocol.crop
    inside = (x > -1) & (y > -1) & (x < side) & (y < side)
    return Events(x[inside], y[inside], events.t[inside], events.p[inside], height=side, width=side)


def table(result: dict) -> list[str]:
    """The results in lines."""
    heads = "".join(f"{text:>14}" for text in MEASURES.values())
    without = f", {result['empty']} without events left out" if result["empty"] else ""
    lines = [f"{result['windows']} time intervals{without}", f"{'':28}{heads}"]
    for mask, rows in result["masks"].items():
        for row, summary in rows.items():
            for average in ("per_frame", "per_pixel"):
                numbers = summary[average]
                cells = "".join(f"{numbers.get(name, float('nan')):14.3f}" for name in MEASURES)
                lines.append(f"{mask + ', ' + row:18}{average.replace('_', ' '):10}{cells}")
    return lines


if __name__ == "__main__":
    leave(main())
