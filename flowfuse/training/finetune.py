"""Finetuning on a recording without ground truth: what it learns from, and what tells if it
helps.

The last frames of the recording are held out. Pairs of the frames before them are learned from, and
pairs among them measured; a pair with one frame on each side is neither, so no frame is both.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.data.samples import Sample, unlabelled_sample
from flowfuse.estimator import Estimator
from flowfuse.evaluation.metrics import event_sharpness, photometric_error
from flowfuse.events import Events
from flowfuse.inputs import InputSpec
from flowfuse.io.images import as_gray
from flowfuse.model import FlowFuse
from flowfuse.result import Result
from flowfuse.runner import FrameReader, Interval, describe_times, estimate_interval
from flowfuse.visualization import (
    colour_flow,
    contact_sheet,
    largest_magnitude,
    render_boundary,
    render_events,
    write_image,
)

SPANS = (1, 2)  # frames from a pair's first to its last: longer motion is learned from, too
FEWEST_FRAMES = 4  # two to learn from, two others to measure on


class RecordingPairs(Dataset):
    """Frame pairs of a recording with their events, as samples without ground truth.

    Args:
        path: of the recording.
        held_out: share of the pairs of successive frames, the last ones, that are measured on.
        slices, bins: of the event slices, see :class:`flowfuse.model.ModelConfig`.

    Attributes:
        learned: pairs to learn from, of successive frames and of every other one; the items are
            their samples.
        measured: held-out pairs of successive frames.

    Raises:
        FileNotFoundError: there is no such recording.
        ValueError: it has no events, or too few frames.
    """

    def __init__(self, path: Path, held_out: float, slices: int, bins: int) -> None:
        self.path, self._spec = path, InputSpec(slices, bins)
        self._owner = 0
        self._recording: Recording | None = None
        recording = self.recording
        count = len(recording.frame_times)
        if count < FEWEST_FRAMES:
            raise ValueError(
                f"{path}: has {count} frame(s); finetuning needs {FEWEST_FRAMES}: a pair to learn "
                "from, and another to measure on"
            )
        if recording.event_range is None:
            raise ValueError(f"{path}: has no events; finetuning learns from frames and events")
        held = max(1, round(held_out * (count - 1))) + 1
        learned = count - held
        if learned < 2:
            raise ValueError(
                f"{path}: with {held} of {count} frames held out, no pair is left to learn from: "
                f"held_out must be less than {held_out}"
            )
        first, last = (int(recording.frame_times[i]) for i in (0, learned - 1))
        if recording.event_range[1] < first or last <= recording.event_range[0]:
            raise ValueError(
                f"no event lies between the frames to learn from: {describe_times(recording)}"
            )
        self.learned = [w for span in SPANS for w in _intervals(recording, range(learned), span)]
        self.measured = _intervals(recording, range(learned, count), 1)

    @property
    def recording(self) -> Recording:
        """The recording, opened anew in a forked process: an open file has one position for all."""
        if self._recording is None or self._owner != os.getpid():
            self._recording = open_recording(self.path)
            self._owner = os.getpid()
        return self._recording

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is not forked: it opens the recording itself."""
        return {**self.__dict__, "_owner": 0, "_recording": None}

    def __len__(self) -> int:
        return len(self.learned)

    def __getitem__(self, index: int) -> Sample:
        first, last = self.learned[index].pair
        return unlabelled_sample(self.recording, first, last, self._spec)


class RecordingValidator:
    """Measures a model on pairs of a recording, learned from and held out.

    Args:
        pairs: of the recording.
        count: pairs of each kind at most, evenly spaced.
        device: where to compute.

    Attributes:
        criterion: the measure that is smallest for the best model: not one of the held-out pairs,
            which are to choose nothing.
    """

    criterion = "photometric_learned"

    def __init__(self, pairs: RecordingPairs, count: int, device: torch.device) -> None:
        self._pairs = pairs
        self._device = device
        steps = [interval for interval in pairs.learned if interval.pair[1] - interval.pair[0] == 1]
        self._intervals = {"": _spread(pairs.measured, count), "_learned": _spread(steps, count)}

    def measure(self, model: FlowFuse) -> dict[str, float]:
        """Measure a model as flowfuse-infer runs it.

        Args:
            model: the model, in eval mode, on the device.

        Returns:
            Means over the held-out pairs: `photometric` error, that of zero flow
            (`photometric_zero`), and event `sharpness`, which is 1 for zero flow; then the same of
            pairs that are learned from, `photometric_learned` and so on. Sharpness is NaN where
            there is no event.
        """
        values: dict[str, float] = {}
        for kind, intervals in self._intervals.items():
            rows = [
                self._measure(self._estimate(model, interval), interval) for interval in intervals
            ]
            for name in rows[0]:
                found = [row[name] for row in rows if not np.isnan(row[name])]
                values[name + kind] = float(np.mean(found)) if found else float("nan")
        return values

    def draw(self, model: FlowFuse, path: Path, scenes: int = 4) -> None:
        """Write a picture of the first held-out pairs, one per row.

        Args:
            model: the model, in eval mode, on the device.
            path: the PNG file; its directory must exist.
            scenes: rows at most.
        """
        images: list[np.ndarray] = []
        labels: list[str] = []
        for interval in self._intervals[""][:scenes]:
            result = self._estimate(model, interval)
            frame = self._pairs.recording.frame(interval.pair[0])
            magnitude = largest_magnitude(result.flow)
            row = {
                f"frame {interval.pair[0]}, events": render_events(frame, self._events(interval)),
                f"flow, up to {magnitude:.1f} px": colour_flow(result.flow, None, magnitude),
                "B_e cyan, B_m orange red": render_boundary(frame, result.boundary),
            }
            labels += row
            images += row.values()
        write_image(path, contact_sheet(images, labels, columns=3))

    def _estimate(self, model: FlowFuse, interval: Interval) -> Result:
        estimator, recording = Estimator(model, device=self._device), self._pairs.recording
        result, _ = estimate_interval(estimator, recording, FrameReader(recording), interval, None)
        if result is None:
            raise ValueError(
                f"{self._pairs.path}, frames {interval.pair}: no event between them, and this "
                "network uses events alone"
            )
        return result

    def _measure(self, result: Result, interval: Interval) -> dict[str, float]:
        frame0, frame1 = (as_gray(self._pairs.recording.frame(i)) for i in interval.pair)
        return {
            "photometric": photometric_error(frame0, frame1, result.flow),
            "photometric_zero": photometric_error(frame0, frame1, np.zeros_like(result.flow)),
            "sharpness": event_sharpness(
                self._events(interval), result.flow, interval.t0, interval.t1
            ),
        }

    def _events(self, interval: Interval) -> Events:
        return self._pairs.recording.events(interval.t0, interval.t1)


def compare(table: Path) -> str:
    """Say what a finetuning has changed, from its validation.csv."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    before, after = ({k: float(v) for k, v in rows[i].items()} for i in (0, -1))
    return (
        f"held-out pairs, step {before['step']:g} -> {after['step']:g}: photometric error "
        f"{before['photometric']:.4f} -> {after['photometric']:.4f} "
        f"(zero flow {after['photometric_zero']:.4f}), event sharpness "
        f"{before['sharpness']:.3f} -> {after['sharpness']:.3f} (zero flow 1)"
    )


def _intervals(recording: Recording, frames: range, span: int) -> list[Interval]:
    """The pairs of frames that are so many frames apart."""
    times = [int(t) for t in recording.frame_times]
    return [Interval(i, times[i], times[i + span], (i, i + span)) for i in frames[:-span]]


def _spread(intervals: list[Interval], count: int) -> list[Interval]:
    """At most so many of them, evenly spaced."""
    places = np.linspace(0, len(intervals) - 1, min(count, len(intervals)))
    return [intervals[int(place)] for place in places]
