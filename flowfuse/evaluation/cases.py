"""What accuracy is measured on: images with ground truth, and recordings.

A case is one frame pair with its events, or an interval of events alone, on which a network can be
run, with its ground truth where there is one.

A folder of images holds images and .flo files whose names end in a number: flow n leads from image
n to image n + 1 (frame10.png, frame11.png and flow10.flo of Middlebury; frame_0001.png,
frame_0002.png and frame_0001.flo of Sintel). A folder of real recordings is searched for plain
recordings with `flow/`, and for events alone with one `flow.flo` and a `meta.json` of its
interval, lens and constant rate of rotation. Exposures of recordings are left out: they are not
known.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowfuse.data.formats.frames import list_images, read_image
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.data.synthetic.interpolation import simulate_between
from flowfuse.estimator import Estimator
from flowfuse.evaluation.evaluate import Estimate, GroundTruth
from flowfuse.evaluation.rotation import rotation_flow
from flowfuse.evaluation.statistics import Facts
from flowfuse.events import Events
from flowfuse.io.flow import read_flow
from flowfuse.io.images import as_8_bits, as_gray

IMAGE_INTERVAL = 40_000  # us between two images: 25 frames per second
HISTORY_SHARE = 5  # one part in so many of an interval of events alone serves as history


@dataclass(frozen=True, eq=False)
class Case(ABC):
    """A frame pair, or an interval of events alone.

    Attributes:
        facts: its name, exposure and light.
        frames: two images uint8, [H, W] or [H, W, 3]; None for events alone.
        events: the stream; of a generated scene one event where polarities do not cancel, to draw.
        tau: [T] times; the last one is 1.
        known: the ground truth at these times, or None.
        boundary: [2, H, W] true B_e and B_m, or None.
    """

    facts: Facts
    frames: tuple[np.ndarray, np.ndarray] | None
    events: Events
    tau: np.ndarray
    known: GroundTruth | None
    boundary: np.ndarray | None

    @property
    def gray(self) -> list[np.ndarray]:
        """Both frames as uint8 [H, W]."""
        assert self.frames is not None, "events alone have no frames"
        return [as_8_bits(as_gray(frame)) for frame in self.frames]

    @property
    def events_between(self) -> Events:
        """The events between the two frames."""
        return self.events

    @abstractmethod
    def estimate(self, estimator: Estimator, mode: str, iterations: int | None = None) -> Estimate:
        """Run a network.

        Args:
            estimator: the network.
            mode: what is shown to it: "fused", "frames", "events" or, of frame 0 with the events,
                "frame 0".
            iterations: recurrent updates; None = the network's own number.
        """


@dataclass(frozen=True, eq=False)
class PairCase(Case):
    """A case with its event stream, given to a network as a user would; exposures are unknown.

    Attributes:
        t0, t1: times of the frames, us.
    """

    t0: int
    t1: int

    @property
    def events_between(self) -> Events:
        return self.events.slice_time(self.t0, self.t1)

    def estimate(self, estimator: Estimator, mode: str, iterations: int | None = None) -> Estimate:
        frame0, frame1 = None, None
        if mode != "events":
            assert self.frames is not None, "events alone are shown as such"
            frame0, frame1 = self.frames
        if mode == "frame 0":
            frame1 = None
        result = estimator(
            frame0,
            frame1,
            self.events if mode != "frames" else None,
            t0=self.t0,
            t1=self.t1,
            iterations=iterations,
        )
        boundary = result.boundary if estimator.model.config.boundary else None
        return Estimate(result.at(self.tau), result.uncertainty, boundary)


def pair_case(
    name: str,
    frames: tuple[np.ndarray, np.ndarray] | None,
    events: Events,
    t0: int,
    t1: int,
    ground_truth: tuple[np.ndarray, np.ndarray] | None,
) -> PairCase:
    """A case with ground truth at the end alone, flow and valid, or with none."""
    return PairCase(
        facts=Facts(name, math.nan, math.nan),
        frames=frames,
        events=events,
        tau=np.ones(1, np.float32),
        known=GroundTruth.of_flow(*ground_truth) if ground_truth is not None else None,
        boundary=None,
        t0=t0,
        t1=t1,
    )


class ImageSet:
    """The pairs of a folder of images with ground truth; events are simulated when one is taken.

    Raises:
        ValueError, FileNotFoundError: naming what is missing or does not fit.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        images = {_number(path): path for path in list_images(folder)}  # None: some other image
        ground_truths = sorted(folder.glob("*.flo"))
        if not ground_truths:
            raise FileNotFoundError(f"{folder}: no ground truth (*.flo) in this folder")
        self._pairs = []
        for path in ground_truths:
            number = _number(path)
            if number is None:
                raise ValueError(f"{path}: its name must end in a number, as frame_0001.flo does")
            for wanted in (number, number + 1):
                if wanted not in images:
                    raise FileNotFoundError(f"{path} needs image number {wanted}, not found there")
            self._pairs.append((path, images[number], images[number + 1]))
        self.what = (
            f"Pairs of images with ground truth: {len(ground_truths)}. The events are "
            "simulated along the ground truth: rows that see them show how the textures are met, "
            "not a real sensor."
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> PairCase:
        path, first, second = self._pairs[index]
        flow, valid = read_flow(path)
        frames = (read_image(first), read_image(second))
        for name, frame in zip((first, second), frames, strict=True):
            if frame.shape[:2] != valid.shape:
                raise ValueError(
                    f"{name} is {frame.shape[1]} x {frame.shape[0]} px, but {path} is "
                    f"{valid.shape[1]} x {valid.shape[0]} px"
                )
        if not valid.any():
            raise ValueError(f"{path}: the flow is unknown at every pixel")
        t0, t1 = IMAGE_INTERVAL, 2 * IMAGE_INTERVAL
        events = simulate_between(*frames, flow, valid, t0=t0, t1=t1)
        return pair_case(f"{self.name} {first.stem}", frames, events, t0, t1, (flow, valid))


def _number(path: Path) -> int | None:
    digits = re.search(r"\d+$", path.stem)
    return int(digits[0]) if digits else None


def recording_cases(path: Path) -> Iterator[PairCase]:
    """The frame pairs of a recording, without ground truth; one is held at a time.

    Raises:
        ValueError, FileNotFoundError: no recording with events and at least two frames.
    """
    recording = open_recording(path)
    times = [int(time) for time in recording.frame_times]
    if len(times) < 2:
        raise ValueError(f"{path}: two frames or more are needed, found {len(times)}")
    if not recording.has_events:
        raise ValueError(f"{path}: the recording has no events")
    for i, (t0, t1) in enumerate(itertools.pairwise(times)):
        yield _frame_pair(path.name, recording, (i, i + 1), t0, t1, None)


def _frame_pair(
    name: str,
    recording: Recording,
    pair: tuple[int, int],
    t0: int,
    t1: int,
    ground_truth: tuple[np.ndarray, np.ndarray] | None,
) -> PairCase:
    frames = (recording.frame(pair[0]), recording.frame(pair[1]))
    events = recording.events(t0 - (t1 - t0), t1)  # as much history as any network wants
    return pair_case(f"{name} {pair[0]}", frames, events, t0, t1, ground_truth)


class RealPairs:
    """The frame pairs of a real recording that have ground truth."""

    def __init__(self, path: Path, name: str) -> None:
        self.name, self._recording = name, open_recording(path)
        found = (
            (pair, self._recording.ground_truth(pair[0])) for pair in self._recording.frame_pairs
        )
        self._pairs = [pair for pair, ground_truth in found if ground_truth is not None]
        self.what = f"Frame pairs of a real recording with ground truth: {len(self._pairs)}."

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> PairCase:
        pair = self._pairs[index]
        t0, t1 = (int(self._recording.frame_times[i]) for i in pair)
        ground_truth = self._recording.ground_truth(pair[0])
        return _frame_pair(self.name, self._recording, pair, t0, t1, ground_truth)


class RealRotation:
    """An interval of events alone of a camera that turns at a constant rate: one case.

    With history, the interval begins after its first fifth, and its flow is that of the same rate
    of rotation for the time that is left.
    """

    def __init__(self, path: Path, name: str, *, history: bool) -> None:
        self.name = f"{name}, {'with' if history else 'no'} history"
        self._path, self._history = path, history
        self.what = "An interval of real events of a rotating camera, without frames."

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> PairCase:
        facts = json.loads((self._path / "meta.json").read_text())
        t0, t1 = facts["t0_us"], facts["t1_us"]
        events = open_recording(self._path).events(t0, t1)
        flow, valid = read_flow(self._path / "flow.flo")
        if self._history:
            t0 += (t1 - t0) // HISTORY_SHARE
            flow = rotation_flow(facts, (t1 - t0) * 1e-6, *valid.shape)
        return pair_case(self.name, None, events, t0, t1, (flow, valid))


def real_sets(root: Path) -> list[RealPairs | RealRotation]:
    """Find the real recordings with ground truth in a folder, searched recursively.

    Raises:
        FileNotFoundError: there is none.
    """
    pairs = sorted(path.parent for path in root.rglob("flow") if path.is_dir())
    rotations = sorted(path.parent for path in root.rglob("flow.flo"))
    if not pairs and not rotations:
        raise FileNotFoundError(f"{root}: no recording with flow/ or flow.flo in it")
    return [
        *(RealPairs(path, str(path.relative_to(root))) for path in pairs),
        *(
            RealRotation(path, str(path.relative_to(root)), history=history)
            for history in (True, False)
            for path in rotations
        ),
    ]
