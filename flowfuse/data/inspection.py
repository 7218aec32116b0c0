"""What a recording is like: rates, gaps, hot pixels, and whether its clocks agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from flowfuse.data.recording import Recording, iterate_events
from flowfuse.events import Events
from flowfuse.io.images import as_gray

BIN = 10_000  # us, in which rates are counted
MOST_BINS = 10_000_000
GAP_BINS = 5  # so many bins without any event are a gap
HOT_FACTOR = 20  # a hot pixel fires so many times as often as the median of those that fire
HOT_LEAST = 50  # events
GRID_WIDTH = 160  # px, of the images that are correlated
STEP = 1000  # us, between tried offsets
# An offset is evident where the correlation rises from zero offset by so much, and by so much in
# Fisher's z = atanh(r), in which 0.80 -> 0.91 is as large a step as 0.10 -> 0.46. The lag of events
# behind the light alone makes up to 0.08 and 0.33 (slider_depth, whose camera has one clock).
CLEAR_GAIN = 0.05
CLEAR_GAIN_Z = 0.4


@dataclass
class EventStatistics:
    """Counted over all events.

    Attributes:
        count: of events.
        positive: share of ON events.
        counts: [H, W] int64, events per pixel.
        per_bin: [B] int64, events per BIN from the first event on.
        start: us, of the first event.
        last: us, of the last event.
        fault: what stopped the count, such as times that are not sorted; None: nothing.
    """

    count: int = 0
    positive: float = math.nan
    counts: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), np.int64))
    per_bin: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    start: int = 0
    last: int = 0
    fault: str | None = None

    def gaps(self) -> list[tuple[int, int]]:
        """Stretches of at least GAP_BINS bins without any event: start and end in us."""
        silent = np.concatenate(([False], self.per_bin == 0, [False]))
        edges = np.flatnonzero(np.diff(silent.astype(np.int8)))
        return [
            (self.start + int(first) * BIN, self.start + int(end) * BIN)
            for first, end in zip(edges[::2], edges[1::2], strict=True)
            if end - first >= GAP_BINS
        ]

    def hot_pixels(self) -> np.ndarray:
        """[N, 2] (x, y) of hot pixels, the hottest first."""
        firing = self.counts[self.counts > 0]
        if not len(firing):
            return np.empty((0, 2), int)
        limit = max(HOT_LEAST, HOT_FACTOR * float(np.median(firing)))
        y, x = np.nonzero(self.counts > limit)
        order = np.argsort(-self.counts[y, x], kind="stable")
        return np.stack((x, y), axis=1)[order]


def count_events(recording: Recording) -> EventStatistics:
    """Count all events of a recording, part by part."""
    found = EventStatistics(counts=np.zeros((recording.height, recording.width), np.int64))
    try:
        event_range = recording.event_range
    except ValueError as error:
        found.fault = str(error)
        return found
    if event_range is None:
        return found
    found.start, found.last = event_range
    bins = (found.last - found.start) // BIN + 1
    if bins > MOST_BINS:
        found.fault = (
            f"the events go from {found.start} to {found.last} us, more than {MOST_BINS} times "
            f"{BIN} us: are the units right?"
        )
        return found
    found.per_bin = np.zeros(bins, np.int64)
    positive = 0
    try:
        for part in iterate_events(recording):
            x, y = (np.rint(values).astype(int) for values in (part.x, part.y))
            inside = (x >= 0) & (y >= 0) & (x < recording.width) & (y < recording.height)
            pixels = y[inside] * recording.width + x[inside]
            size = recording.height * recording.width
            found.counts += np.bincount(pixels, minlength=size).reshape(found.counts.shape)
            found.per_bin += np.bincount((part.t - found.start) // BIN, minlength=bins)
            found.count += len(part)
            positive += int(part.p.sum())
    except ValueError as error:
        found.fault = str(error)
    found.positive = positive / found.count if found.count else math.nan
    return found


@dataclass(frozen=True)
class TimeOffset:
    """How far the clocks of frames and events are apart.

    Attributes:
        offset: us, to be added to the times of the frames; NaN where nothing could be compared.
        correlation: in [-1, 1], of frame differences with polarity sums at this offset.
        as_given: the same at offset 0.
        pairs: frame pairs compared.
        reach: us, the largest offset that was tried.
    """

    offset: float
    correlation: float
    as_given: float
    pairs: int
    reach: int

    @property
    def is_evident(self) -> bool:
        """Whether the correlation is clearly better than at offset 0."""
        gain = self.correlation - self.as_given
        gain_z = np.diff(np.arctanh(np.clip([self.as_given, self.correlation], -0.9999, 0.9999)))
        return bool(gain >= CLEAR_GAIN and gain_z >= CLEAR_GAIN_Z)  # False for NaN

    @property
    def option(self) -> str:
        """The option of the commands that applies it."""
        return f"--time-offset={self.offset / 1000:.2f}ms"


def estimate_offset(recording: Recording, reach: int = 50_000, most_pairs: int = 12) -> TimeOffset:
    """Compare the differences of successive frames with the polarity sums of shifted windows.

    Where the log intensity changes by dL from frame to frame, (number of ON - OFF events) x
    threshold is dL as well, when the events are those between the frames. The shift with the
    largest correlation over all pixels and pairs is the offset.

    An event fires once the light has changed by a threshold, so events lag behind the light by the
    time of about half a threshold: a few milliseconds where motion is slow. A positive offset as
    small as that is this lag, and not one of the clocks.

    Args:
        recording: with events and at least two frames.
        reach: us, the largest offset that is tried, to both sides.
        most_pairs: evenly spread.
    """
    nothing = TimeOffset(math.nan, math.nan, math.nan, 0, reach)
    chosen = usable_pairs(recording, reach, most_pairs)
    return _offset_of(recording, reach, chosen) if chosen else nothing


def usable_pairs(recording: Recording, reach: int, most: int) -> list[int]:
    """The first frames of pairs that lie in the time of the events, evenly spread.

    Args:
        recording: with or without events and frames.
        reach: us, that the events go on before and after, where some pairs have that. Where the
            events cover none, those count whose time they cover but for a tenth at either end:
            events that were cut to two frames begin and end between them.
        most: so many at most.
    """
    times = recording.frame_times
    if recording.event_range is None or len(times) < 2:
        return []
    first, last = recording.event_range
    usable = [
        i
        for i in range(len(times) - 1)
        if first + reach <= times[i] and times[i + 1] <= last - reach
    ] or [i for i in range(len(times) - 1) if first <= times[i] and times[i + 1] <= last]
    if not usable:
        slack = np.diff(times) // 10
        usable = [
            i
            for i in range(len(times) - 1)
            if first <= times[i] + slack[i] and times[i + 1] - slack[i] <= last
        ]
    if not usable:
        return []
    places = np.unique(np.linspace(0, len(usable) - 1, min(len(usable), most)).astype(int))
    return [usable[i] for i in places.tolist()]


def _offset_of(recording: Recording, reach: int, chosen: Sequence[int]) -> TimeOffset:
    """The offset that some frame pairs tell."""
    times = recording.frame_times
    shifts = np.arange(-reach // STEP, reach // STEP + 1)
    products, energies, energy = np.zeros(len(shifts)), np.zeros(len(shifts)), 0.0
    factor = max(1, recording.width // GRID_WIDTH)
    for index in chosen:
        change = change_of_frames(recording, index, factor)
        sums = _shifted_sums(recording, int(times[index]), int(times[index + 1]), reach, factor)
        sums -= sums.mean(axis=(1, 2), keepdims=True)
        products += (sums * change).sum(axis=(1, 2))
        energies += (sums**2).sum(axis=(1, 2))
        energy += float((change**2).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(products / np.sqrt(energies * energy))
    best = int(np.argmax(correlation))
    if correlation[best] <= 0:
        return TimeOffset(
            math.nan,
            float(correlation[best]),
            float(correlation[len(shifts) // 2]),
            len(chosen),
            reach,
        )
    return TimeOffset(
        STEP * (shifts[best] + _peak(correlation, best)),
        float(correlation[best]),
        float(correlation[len(shifts) // 2]),
        len(chosen),
        reach,
    )


def change_of_frames(recording: Recording, index: int, factor: int) -> np.ndarray:
    """[h, w]: how log intensity changes from a frame to the next, on a grid coarser by a factor."""
    change = _log_image(recording, index + 1, factor) - _log_image(recording, index, factor)
    return change - np.median(change)  # of the exposure, not of motion


def polarity_sum(
    events: Events, t0: int, t1: int, shape: tuple[int, ...], factor: int
) -> np.ndarray:
    """[h, w]: ON minus OFF events of [t0, t1), as blurred as :func:`change_of_frames`."""
    return cv2.GaussianBlur(_sum(events, t0, t1, shape[0], shape[1], factor), (0, 0), 1.0)


@dataclass(frozen=True)
class ClockDrift:
    """The offset of the clocks at the first frame, and how it changes.

    Attributes:
        offset: us, to be added to the times of the frames; NaN: nothing could be compared.
        drift: added per time since the first frame; 0 where none is evident.
        spread: us, of the offsets of single stretches around this line.
        stretches: compared.
        correlation: their mean.
    """

    offset: float
    drift: float
    spread: float
    stretches: int
    correlation: float

    @property
    def option(self) -> str:
        """The option of the commands that applies it."""
        drift = f",{self.drift * 1e6:.3g}ppm" if self.drift else ""
        return f"--time-offset={self.offset / 1000:.2f}ms{drift}"


STRETCHES = 8
_PAIRS_EACH = 6
_LEAST_CORRELATION = 0.2


def estimate_drift(recording: Recording, reach: int = 50_000) -> ClockDrift:
    """Estimate the offset of the clocks in several stretches, and a line through them.

    A drift is told only if it moves the clocks, over all frames, by more than a step of the search
    and by more than twice the spread of the offsets around the line.

    Args:
        recording: with events and frames.
        reach: us, the largest offset that is tried.
    """
    times = recording.frame_times
    chosen = usable_pairs(recording, reach, STRETCHES * _PAIRS_EACH)
    rows = []
    for group in np.array_split(np.array(chosen, int), min(STRETCHES, len(chosen)) or 1):
        if not len(group):
            continue
        found = _offset_of(recording, reach, group.tolist())
        if found.correlation >= _LEAST_CORRELATION and not math.isnan(found.offset):
            moment = float((times[group].mean() + times[group + 1].mean()) / 2 - times[0])
            rows.append((moment, found.offset, found.correlation))
    if not rows:
        return ClockDrift(math.nan, 0.0, math.nan, 0, math.nan)
    moments, offsets, correlations = np.array(rows).T
    mean = float(np.average(offsets, weights=correlations**2))
    plain = ClockDrift(mean, 0.0, float(np.std(offsets)), len(rows), float(correlations.mean()))
    if len(rows) < 4:
        return plain
    drift, offset = np.polyfit(moments, offsets, 1, w=correlations)
    spread = float(np.std(offsets - offset - drift * moments))
    moved = abs(drift) * float(times[-1] - times[0])
    if moved <= max(STEP, 2 * spread):
        return plain
    return ClockDrift(float(offset), float(drift), spread, len(rows), plain.correlation)


def _log_image(recording: Recording, index: int, factor: int) -> np.ndarray:
    """Log intensity of a frame, reduced."""
    gray = as_gray(recording.frame(index))
    if gray.dtype == np.uint16:
        gray = gray.astype(np.float32) / np.float32(257)
    height, width = (side // factor for side in gray.shape)
    whole = gray[: height * factor, : width * factor].astype(np.float32)
    blocks = whole.reshape(height, factor, width, factor).mean(axis=(1, 3))
    # Blurred: neither camera is sharper than a pixel, and alignment rarely better.
    return cv2.GaussianBlur(np.log(blocks + 5), (0, 0), 1.0)


def _shifted_sums(recording: Recording, t0: int, t1: int, reach: int, factor: int) -> np.ndarray:
    """[S, h, w] polarity sums over [t0 + shift, t1 + shift) for all shifts."""
    events = recording.events(max(0, t0 - reach), t1 + reach)
    height, width = recording.height // factor, recording.width // factor
    # The window moves by whole steps: what enters and leaves is counted per step.
    count = 2 * (reach // STEP)
    start = _sum(events, t0 - reach, t1 - reach, height, width, factor)
    sums = np.empty((count + 1, height, width), np.float32)
    sums[0] = start
    for step in range(count):
        low, high = t0 - reach + step * STEP, t1 - reach + step * STEP
        sums[step + 1] = (
            sums[step]
            + _sum(events, high, high + STEP, height, width, factor)
            - _sum(events, low, low + STEP, height, width, factor)
        )
    for image in sums:
        image[:] = cv2.GaussianBlur(image, (0, 0), 1.0)
    return sums


def _sum(events: Events, t0: int, t1: int, height: int, width: int, factor: int) -> np.ndarray:
    part = events.slice_time(t0, t1)
    x, y = ((np.rint(values).astype(int)) // factor for values in (part.x, part.y))
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    signs = 2.0 * part.p[inside] - 1
    flat = np.bincount(y[inside] * width + x[inside], signs, minlength=height * width)
    return flat.reshape(height, width).astype(np.float32)


def _peak(values: np.ndarray, best: int) -> float:
    """Where the parabola through the largest value and its neighbours has its top, in (-1, 1)."""
    if not 0 < best < len(values) - 1:
        return 0.0
    left, top, right = values[best - 1 : best + 2]
    bend = left - 2 * top + right
    return float((left - right) / (2 * bend)) if bend < 0 else 0.0
