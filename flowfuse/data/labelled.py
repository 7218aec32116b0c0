"""Recordings with ground truth as training samples, some of them held out.

What has ground truth is a pair of frames, or, of a recording without frames, a time interval. Of a
recording that knows the way between, samples have it at some more times.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from flowfuse.data.augment import crop_centre
from flowfuse.data.datasets.base import DataSet
from flowfuse.data.opening import DATASETS, open_recording
from flowfuse.data.recording import Recording
from flowfuse.data.samples import Sample, recording_inputs
from flowfuse.geometry.grid import inside, pixel_grid
from flowfuse.inputs import InputSpec

MOST_OPEN = 32  # recordings at once; the last used ones
MOST_TIMES = 4  # with ground truth in a sample, the end among them
HeldOutBy = Literal["time", "recording"]


class Item(NamedTuple):
    """Something with ground truth.

    Attributes:
        recording: which one.
        gt_index: what ``ground_truth_at`` takes.
        t0, t1: microseconds.
        frames: the pair of frames, or None.
    """

    recording: int
    gt_index: int
    t0: int
    t1: int
    frames: tuple[int, int] | None


class LabelledRecordings(Dataset):
    """Samples of recordings with ground truth, learned from or held out.

    Args:
        paths: of recordings, or of folders of some.
        split: "train" or "validation".
        held_out: share that is held out, at least one pair or recording.
        by: "time": the last pairs of every recording, apart from pairs that share time with those
            before; "recording": the last recordings, by name.
        spec: how the events of a sample are sliced.

    Attributes:
        size: height and width of the smallest recording, px. Larger held-out samples are cropped.

    Raises:
        FileNotFoundError: there is no such recording.
        ValueError: one has no ground truth, or there is too little to be divided.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        split: Literal["train", "validation"],
        held_out: float,
        by: HeldOutBy,
        spec: InputSpec,
    ) -> None:
        self.paths = [found for path in paths for found in find_recordings(path)]
        self._spec, self._split = spec, split
        self._owner, self._open = 0, dict[int, Recording]()
        if by == "recording":
            count = len(self.paths)
            held = max(1, round(held_out * count))
            if held >= count:
                raise ValueError(
                    f"{count} recording(s), of which {held} would be held out: give more of them, "
                    "or hold out by time"
                )
            self.paths = self.paths[count - held :] if split == "validation" else self.paths[:-held]
        self.items: list[Item] = []
        counts, sizes = [], []
        for number, path in enumerate(self.paths):
            recording = self.recording(number)
            items = list_labelled(recording, number)
            if not items:
                raise ValueError(
                    f"{path}: no ground truth in this recording (flow/000000.flo, ...); training "
                    f"without any is --self-supervised {path}"
                )
            if by == "time":
                items = divide(items, held_out, split, path)
            self.items += items
            counts.append(len(recording.ground_truth_times))
            sizes.append((recording.height, recording.width))
        self.size = min(size[0] for size in sizes), min(size[1] for size in sizes)
        self._times = min(MOST_TIMES - 1, *counts)

    def recording(self, number: int) -> Recording:
        """A recording, opened anew in a forked process: an open file has one position for all."""
        if self._owner != os.getpid():
            self._owner, self._open = os.getpid(), {}
        found = self._open.pop(number, None)
        self._open[number] = open_recording(self.paths[number]) if found is None else found
        if len(self._open) > MOST_OPEN:  # a data set may have thousands, each with open files
            del self._open[next(iter(self._open))]
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is not forked: it opens the recordings itself."""
        return {**self.__dict__, "_owner": 0, "_open": {}}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"LabelledRecordings: index {index} of {len(self)} items")
        item = self.items[index]
        recording = self.recording(item.recording)
        known = recording.ground_truth_times
        chosen = np.linspace(0, len(known), self._times + 2)[1:-1].astype(int)
        sample = label(recording, item, (*(known[i] for i in chosen), 1.0), self._spec)
        return crop_centre(sample, self.size) if self._split == "validation" else sample


def find_recordings(path: Path) -> list[Path]:
    """The recordings at a path: itself, or those of a data set or plain ones in it, by name.

    Raises:
        FileNotFoundError: there is nothing.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such recording")
    others: list[DataSet] = [item for item in DATASETS if item.name != "directory"]
    if path.is_file() or any(DATASETS.ask(item, item.matches, path) for item in others):
        return [path]
    for item in others:
        names = DATASETS.ask(item, item.sequences, path)
        if names:
            return [path / name for name in names]
    if not (path / "flow").is_dir():
        found = sorted(place.parent for place in path.glob("*/flow") if place.is_dir())
        if found:
            return found
    return [path]


def list_labelled(recording: Recording, number: int) -> list[Item]:
    """What has ground truth in a recording, in the order of time."""
    if recording.has_frames:
        times = [int(time) for time in recording.frame_times]
        wanted = [Item(number, i, times[i], times[j], (i, j)) for i, j in recording.frame_pairs]
    else:
        intervals = getattr(recording, "ground_truth_intervals", ())
        wanted = [Item(number, i, int(a), int(b), None) for i, (a, b) in enumerate(intervals)]
    # A recording may say it without reading the flow.
    known = getattr(recording, "has_ground_truth", None)
    if known is None:
        return [
            item for item in wanted if recording.ground_truth_at(item.gt_index, 1.0) is not None
        ]
    return [item for item in wanted if known(item.gt_index)]


def divide(items: list[Item], held_out: float, split: str, path: Path) -> list[Item]:
    """Hold out the last share of the items of a recording; none shares time with one before.

    Raises:
        ValueError: nothing is left to learn from.
    """
    first = len(items) - max(1, round(held_out * len(items)))
    kept = items[first:]
    # Neither a frame nor an event of a pair that is held out is learned from.
    learned = [item for item in items[:first] if item.t1 < kept[0].t0]
    if not learned:
        raise ValueError(
            f"{path}: {len(items)} pair(s) with ground truth, of which {len(kept)} are held out "
            "and none before them is left to learn from: hold out less, or by recording"
        )
    return kept if split == "validation" else learned


def label(recording: Recording, item: Item, taus: Sequence[float], spec: InputSpec) -> Sample:
    """Make a sample with ground truth at some times.

    Args:
        recording: of the item.
        item: a pair of frames, or an interval.
        taus: T increasing times in (0, 1], the last one 1.
        spec: how the events are sliced.

    Returns:
        The sample. ``valid`` is where there is ground truth; the flow is 0 elsewhere. ``occluded``
        covers what leaves the image, and all pixels without ground truth. ``boundary`` is NaN:
        unknown.
    """
    height, width = recording.height, recording.width
    flow = torch.zeros(len(taus), 2, height, width)
    valid = torch.zeros(len(taus), height, width, dtype=torch.bool)
    for place, tau in enumerate(taus):
        found = recording.ground_truth_at(item.gt_index, tau)
        if found is not None:
            known = torch.from_numpy(np.ascontiguousarray(found[1]))
            valid[place] = known
            flow[place] = torch.where(known, torch.from_numpy(np.ascontiguousarray(found[0])), 0.0)
    seen = inside(pixel_grid(height, width) + flow, height, width)[:, 0]
    inputs = recording_inputs(recording, item.frames, item.t0, item.t1, spec)
    return Sample(
        *inputs,
        tau=torch.tensor(taus, dtype=torch.float32),
        flow=flow,
        valid=valid,
        occluded=~(valid & seen),
        boundary=torch.full((2, height, width), torch.nan),
    )
