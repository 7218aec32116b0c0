"""Measure what a stream's savings cost: the error of flow from overlapping intervals.

    python benchmarks/live_accuracy.py --markdown today.md
    python benchmarks/live_accuracy.py RECORDING RECORDING

For each frame pair with ground truth, a stream estimates the intervals of the pair's length that
begin a slice (a K-th of it) after each other, up to the pair; there are two lengths before, where
the recording has them. The error is that of the pair's own flow: mean endpoint error (EPE) over
pixels with ground truth, then over pairs.

"anew" is what the estimator gives. "scale kept" uses slices again (scale_tolerance=0.05). "warm"
also starts from the interval before; "warm, 1 iteration" then makes one update alone.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from measuring import (
    OneLineParser,
    Row,
    add_result_arguments,
    fill,
    heading,
    new_report,
    number,
    parse_count,
    reason,
    table,
    tell_failures,
)

import flowfuse
from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator
from flowfuse.evaluation.report import head, line
from flowfuse.events import Events

ANEW = flowfuse.StreamSettings(warm_start=False)
KEPT = replace(ANEW, scale_tolerance=0.05)
WARM = replace(KEPT, warm_start=True)
WAYS = {
    "anew": ANEW,
    "scale kept": KEPT,
    "warm": WARM,
    "warm, 1 iteration": replace(WARM, warm_iterations=1),
}
BEFORE = 2  # lengths of an interval before a pair
INPUTS = {"frames and events": True, "events": False}


def sliding_flow(
    estimator: Estimator,
    recording: Recording,
    pair: tuple[int, int],
    settings: flowfuse.StreamSettings,
    with_frames: bool,
) -> tuple[np.ndarray, float]:
    """The flow of a frame pair at the end of overlapping intervals.

    Returns:
        The flow [2, H, W] px, and the share of all slices that were encoded.
    """
    t0, t1 = (int(recording.frame_times[i]) for i in pair)
    slices = estimator.model.config.slices
    part = (t1 - t0) // slices
    found = recording.event_range
    earliest = t0 if found is None else found[0]
    begin = t0 - part * min(BEFORE * slices, max(0, (t0 - earliest) // part - 1))
    events = recording.events(begin - part, t1 + part)
    # The first event sets the grid of the intervals.
    size = {"height": recording.height, "width": recording.width}
    mark = Events([0], [0], [begin - part], [1], **size)
    stream = flowfuse.Stream(
        estimator,
        interval=slices * part,
        every=part,
        policy="all",
        settings=replace(settings, memory=len(events) + 1, frames=len(recording.frame_times)),
        **size,
    )
    if with_frames:
        exposures = recording.exposures
        for index in range(pair[1] + 1):
            t = int(recording.frame_times[index])
            length = None if exposures is None else int(np.diff(exposures[index])[0])
            if t >= begin - part:
                stream.push_frame(recording.frame(index), t, length)
    stream.push(mark)
    stream.push(events)
    stream.advance(t1 + part)
    while (result := stream.take(0)) is not None:
        if result.t0 == t0:
            stats = stream.stats
            used = stats.intervals * (slices + 1)
            return result.flow, 1 - stats.slices_reused / used
    raise ValueError(f"no interval of the stream begins at {t0} us, where frame {pair[0]} is")


def measure(estimator: Estimator, path: Path, with_frames: bool) -> Row:
    """The errors of all ways on one recording."""
    recording = flowfuse.open_recording(path)
    errors: dict[str, list[float]] = {name: [] for name in WAYS}
    shares: list[float] = []
    for index in range(len(recording.frame_times) - recording.ground_truth_step):
        truth = recording.ground_truth(index)
        if truth is None:
            continue
        flow, valid = truth
        pair = index, index + recording.ground_truth_step
        for name, settings in WAYS.items():
            found, share = sliding_flow(estimator, recording, pair, settings, with_frames)
            errors[name].append(float(np.hypot(*(found - flow))[valid].mean()))
            if name == "scale kept":
                shares.append(share)
    if not shares:
        raise ValueError("no ground truth")
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    return {"pairs": len(shares), "encoded": float(np.mean(shares)), **means}


KEYS = ("recording", "inputs", "pairs", *WAYS, "encoded", "error")
COLUMNS = ("recording", "from", "pairs", *WAYS, "slices encoded", "note")


def cells(row: Row) -> list[str]:
    """The texts of one row of the table."""
    return [
        str(row["recording"]),
        str(row["inputs"]),
        number(row["pairs"], ".0f"),
        *(number(row[name], ".3f") for name in WAYS),
        number(row["encoded"], ".2f"),
        f"failed: {row['error']}" if row["error"] else "",
    ]


def as_markdown(report: Mapping) -> str:
    """A report as text with one table."""
    lines = [
        "EPE, px, of frame pairs at the end of intervals that overlap.",
        "",
        *table(COLUMNS, [cells(row) for row in report["rows"]]),
    ]
    return "\n".join([*heading(report), *lines]) + "\n"


def measured_rows(estimator: Estimator, paths: Sequence[Path]) -> Iterator[Row]:
    """The rows, printed as they come."""
    print(*head(COLUMNS), sep="\n", flush=True)
    for path in paths:
        for inputs, with_frames in INPUTS.items():
            row: Row = dict.fromkeys(KEYS)
            row |= {"recording": path.name, "inputs": inputs}
            try:
                row |= measure(estimator, path, with_frames)
            except Exception as error:
                row["error"] = reason(error)
            print(line(cells(row)), flush=True)
            yield row


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        __doc__, prog="live_accuracy", formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recordings", nargs="*", metavar="RECORDING", type=str,
        help="with ground truth (the shipped one)",
    )  # fmt: skip
    parser.add_argument("--threads", type=parse_count, help="CPU threads (torch's own number)")
    parser.add_argument("--checkpoint", type=str, default="small", help="what is measured")
    add_result_arguments(parser)
    return parser


def run(options: Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    estimator = flowfuse.load(options.checkpoint)
    report = new_report("cpu", False, None)
    paths = [Path(path) for path in options.recordings] or [flowfuse.sample_recording()]
    fill(report, "rows", measured_rows(estimator, paths), options, as_markdown)
    return tell_failures("live_accuracy", report["rows"], ("recording", "inputs"))


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
