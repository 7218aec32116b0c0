"""How papers evaluate on MVSEC: which intervals, which pixels, which errors are outliers.

The numbers of different protocols cannot be compared, so every result is to be printed together
with :meth:`Protocol.describe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flowfuse.data.datasets.mvsec.ground_truth import Flow
from flowfuse.data.datasets.mvsec.recording import MvsecRecording
from flowfuse.events import Events

OUTLIER_PIXELS = 3
OPEN = 1e9  # seconds, later than the end of any sequence


@dataclass(frozen=True)
class EvaluationInterval:
    """One flow field to evaluate.

    Attributes:
        index: of the first frame; of the flow map where intervals go from map to map.
        t0, t1: microseconds.
        frames: indices of the two frames; None where none were taken at these times.
    """

    index: int
    t0: int
    t1: int
    frames: tuple[int, int] | None


@dataclass(frozen=True)
class Protocol:
    """A way of evaluating.

    Attributes:
        name: what it is called.
        steps: how many frames an interval may span ("dt"); () = from one flow map to the next.
        frames: sequence -> half-open range of frames; both frames of an interval lie in it.
        starts: sequence -> half-open range of first frames (of flow maps without ``steps``).
        seconds: sequence -> interval in seconds from the recording's first event or frame; both
            frames of an interval lie in it.
        disjoint: whether intervals follow each other, from the end of one to the next, so that
            only every dt-th frame begins one; as DCEIFlow's code, without the last.
        only_listed: whether the sequences named in ``frames`` or ``starts`` are all there are.
        crop: side of the square in the centre that counts, px.
        outdoor_rows: outdoors, so many rows from the top of the crop count; None = all.
        full_rows: so many rows from the top of the full frame count; None = all.
        masks: which pixels with valid ground truth count: "dense" all, "events" those with an event
            in the interval. The first is the headline.
        straddle: see :func:`flowfuse.data.datasets.mvsec.ground_truth.propagate_flow`.
        outlier_fraction: an outlier is off by more than 3 px and by more than this fraction of the
            true magnitude.
    """

    name: str
    steps: tuple[int, ...]
    frames: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    starts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    seconds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    disjoint: bool = False
    only_listed: bool = False
    crop: int = 256
    outdoor_rows: int | None = None
    full_rows: int | None = None
    masks: tuple[str, ...] = ("dense",)
    straddle: bool = False
    outlier_fraction: float = 0.0

    def describe(self, sequence: str, step: int) -> list[str]:
        """Say everything that the numbers depend on, in lines."""
        spans = [
            f"{kind} [{first}, {last})"
            for kind, ranges in (
                ("frames", self.frames),
                ("first frames" if self.steps else "flow maps", self.starts),
            )
            if sequence in ranges
            for first, last in [ranges[sequence]]
        ]
        if sequence in self.seconds:
            first, last = self.seconds[sequence]
            until = f"{first} to {last} s" if last < OPEN else f"from {first} s on, counted"
            spans.append(f"{until} after the first event or frame")
        if self.disjoint:
            spans.append("one after another, without the last")
        rows = []
        if self.full_rows is not None:
            rows.append(f"rows below {self.full_rows} of the full frame")
        if self.outdoor_rows is not None and is_outdoor(sequence):
            rows.append(f"the top {self.outdoor_rows} rows of the crop")
        span = f"dt={step}: frame i to frame i + {step}" if self.steps else "flow map to flow map"
        passing = "only its first map, scaled" if self.straddle else "both maps in turn"
        relative = f" and > {100 * self.outlier_fraction:g} %" if self.outlier_fraction else ""
        masks = {
            "dense": "all pixels with ground truth",
            "events": "pixels with ground truth and events",
        }
        return [
            f"protocol {self.name}, {sequence}, {span}",
            f"time intervals: {', '.join(spans) or 'the whole sequence'}",
            f"pixels: {self.crop} x {self.crop} centre crop{''.join(f', {r}' for r in rows)}; "
            + " / ".join(masks[name] for name in self.masks),
            "ground truth: finite and not (0, 0); a time interval shorter than a map's that "
            f"passes into the next map gets {passing}",
            f"outlier: > {OUTLIER_PIXELS} px{relative}; average: mean of the time intervals' means",
        ]

    def intervals(
        self, recording: MvsecRecording, step: int = 1, stride: int = 1
    ) -> list[EvaluationInterval]:
        """List the intervals of a recording that have ground truth.

        Args:
            recording: with ground truth.
            step: frames that an interval spans; ignored without ``steps``.
            stride: only every so many-th interval.

        Raises:
            ValueError: the protocol does not know the sequence or the step, the recording has no
                ground truth, or no interval is left.
        """
        if self.steps and step not in self.steps:
            known = " or ".join(map(str, self.steps))
            raise ValueError(f"protocol {self.name}: dt must be {known}, got {step}")
        if recording.maps is None:
            raise ValueError(f"{recording.path}: no ground truth beside it (_gt.hdf5)")
        sequence, limits = recording.sequence, {**self.frames, **self.starts}
        if self.only_listed and sequence not in limits:
            known = ", ".join(sorted(limits))
            raise ValueError(f"protocol {self.name} is defined for {known}, not for {sequence!r}")
        times = recording.frame_times if self.steps else recording.maps.times
        span = step if self.steps else 1
        start = recording.time_range[0]
        low, high = (start + round(s * 1e6) for s in self.seconds.get(sequence, (0.0, OPEN)))
        first, last = self.frames.get(sequence, (0, len(times)))
        begin, end = self.starts.get(sequence, (0, len(times)))
        stop = min(last - span, end, len(times) - span)
        if self.disjoint:
            stop, stride = min(last, len(times)) - span - 1, stride * span  # as its code counts
        indices = range(max(first, begin), stop, stride)
        found = [
            EvaluationInterval(i, t0, t1, (i, i + span) if self.steps else None)
            for i in indices
            for t0, t1 in [(int(times[i]), int(times[i + span]))]
            if low <= t0 and t1 <= high
            if recording.maps.times[0] <= t0 and t1 <= recording.maps.times[-1]
        ]
        if not found:
            raise ValueError(
                f"{recording.path}: no time interval of protocol {self.name} has ground truth; the "
                f"sequence has {len(times)} {'frames' if self.steps else 'flow maps'}, "
                f"ground truth from {recording.maps.times[0]} to {recording.maps.times[-1]} us, "
                f"frames from {recording.frame_times[0]} to {recording.frame_times[-1]} us"
            )
        return found

    def ground_truth(self, recording: MvsecRecording, interval: EvaluationInterval) -> Flow:
        """Ground truth of the crop [2, c, c], and where it is valid, before any mask of events."""
        assert recording.maps is not None, "intervals() has looked"
        found = recording.maps.between(interval.t0, interval.t1, straddle=self.straddle)
        assert found is not None, "the maps cover every interval"
        flow, valid = found
        if self.full_rows is not None:
            valid[self.full_rows :] = False
        flow, valid = self.cut(flow), self.cut(valid)
        if self.outdoor_rows is not None and is_outdoor(recording.sequence):
            valid[self.outdoor_rows :] = False
        return flow, valid

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The centre crop of an image [..., H, W], copied."""
        top, left = self.corner(*image.shape[-2:])
        return image[..., top : top + self.crop, left : left + self.crop].copy()

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """The first row and column of the crop."""
        if height < self.crop or width < self.crop:
            raise ValueError(
                f"protocol {self.name}: images of at least {self.crop} x {self.crop} px expected, "
                f"got {width} x {height}"
            )
        return (height - self.crop) // 2, (width - self.crop) // 2

    def event_mask(self, events: Events) -> np.ndarray:
        """[c, c] bool: the pixels of the crop where an event fired; events of the full frame."""
        assert events.height is not None and events.width is not None
        mask = np.zeros((events.height, events.width), bool)
        x, y = (np.rint(part).astype(int) for part in (events.x, events.y))
        inside = (x >= 0) & (x < events.width) & (y >= 0) & (y < events.height)
        mask[y[inside], x[inside]] = True
        return self.cut(mask)


def is_outdoor(sequence: str) -> bool:
    """Whether the hood of the car is in the picture."""
    return sequence.startswith("outdoor")


def find_protocol(name: str) -> Protocol:
    """Return a preset.

    Raises:
        ValueError: listing the known ones.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


_DCEIFLOW_FRAMES = {
    **dict.fromkeys([f"indoor_flying{i}" for i in (1, 2, 3)], (314, 2199)),
    "indoor_flying4": (196, 570),
    "outdoor_day1": (245, 3000),
    "outdoor_day2": (4375, 7002),
}
_TAKEOFF = (4.0, 9.0, 7.0, 6.0)  # s: before, indoor_flying1 to 4 stand on the ground
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Zhu et al., EV-FlowNet, RSS 2018, and its code.
        Protocol(
            "evflownet",
            steps=(1, 4),
            seconds={
                "outdoor_day1": (222.4, 240.4),
                **{f"indoor_flying{i}": (s, OPEN) for i, s in enumerate(_TAKEOFF, 1)},
            },
            outdoor_rows=190,
            masks=("events",),
            straddle=True,
        ),
        # Wan et al., Learning Dense and Continuous Optical Flow from an Event Camera, TIP 2022.
        Protocol(
            "dceiflow",
            steps=(1, 4),
            frames=_DCEIFLOW_FRAMES,
            only_listed=True,
            outdoor_rows=190,
            masks=("dense", "events"),
            outlier_fraction=0.05,
        ),
        # ... and as its code counts them with skip_mode i: 1883 at dt=1, 470 at dt=4 indoors.
        Protocol(
            "dceiflow-disjoint",
            steps=(1, 4),
            frames=_DCEIFLOW_FRAMES,
            disjoint=True,
            only_listed=True,
            outdoor_rows=190,
            masks=("dense", "events"),
            outlier_fraction=0.05,
        ),
        # Gehrig et al., E-RAFT, 3DV 2021: at the rate of the ground truth, not that of dt=4 ...
        Protocol(
            "eraft20",
            steps=(),
            starts={"outdoor_day1": (4356, 4706)},
            only_listed=True,
            full_rows=193,
        ),
        # ... and at the rate of the frames.
        Protocol(
            "eraft45",
            steps=(1,),
            starts={"outdoor_day1": (10167, 10954)},
            only_listed=True,
            full_rows=193,
            straddle=True,
        ),
    )
}
