"""What may be wrong between the events and the frames of a recording: its most likely cause.

Where the log intensity of a pixel changes from frame to frame, so does its number of ON minus OFF
events. The correlation of the two is clearly positive in a good recording. If it is negative, or
larger with the events mirrored, swapped, enlarged or at other times, that is the cause.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowfuse.data.inspection import (
    GRID_WIDTH,
    TimeOffset,
    change_of_frames,
    estimate_offset,
    polarity_sum,
    usable_pairs,
)
from flowfuse.data.recording import Recording, iterate_events
from flowfuse.events import Events

QUICK_PAIRS = 4
PAIRS = 12
# A cause is evident if it explains the events so well, and clearly better than nothing wrong does.
EVIDENT = 0.3
BETTER = 0.2
GOOD = 0.5  # events that explain the frames so well as given are not looked at at other times
_SAME_SIGN = 0.75  # share of the pairs that must agree
_SPAN_RATIO = 300  # wrong units make durations differ a thousandfold at least
_LEAST_COMMON = 0.5  # of the shorter of both: less is no common clock
# How the times of events must be scaled if they are in another unit than the one expected.
_SCALES = {1e-3: "1000 times too long", 1e-6: "10^6 times too long"}
_SCALES |= {1e3: "1000 times too short", 1e6: "10^6 times too short"}
_UNIT_HINTS = {
    1e-3: "nanoseconds where microseconds are expected, or milliseconds in text",
    1e-6: "microseconds in text, where seconds are expected",
    1e3: "milliseconds where microseconds are expected",
    1e6: "seconds where microseconds are expected",
}
_SAMPLE = 30_000  # events looked at for their unit
_FEWEST = 500
_SLOW = 100_000  # us between neighbouring events of a moving edge: 10 px/s
_CROWDED = 0.5  # of the time expected of independent events: below, they are of moving edges
_MOST_RATE = 1000.0  # events per second and pixel, on average: beyond any camera


@dataclass(frozen=True)
class Geometry:
    """How well the events explain the frames, as given and at best.

    Attributes:
        cause: in words, such as "x is mirrored"; "" for events as given.
        correlation: in [-1, 1], with the cause removed, polarity as given.
        as_given: of the events as they are.
        agreeing: share of the pairs whose correlation has the sign of ``correlation``.
        pairs: compared; 0: nothing could be.
    """

    cause: str
    correlation: float
    as_given: float
    agreeing: float
    pairs: int

    @property
    def is_inverted(self) -> bool:
        """Whether ON and OFF are exchanged."""
        return self.correlation < 0

    @property
    def is_evident(self) -> bool:
        """Whether something is wrong beyond doubt."""
        return (
            bool(self.cause or self.is_inverted)
            and abs(self.correlation) >= max(EVIDENT, self.as_given + BETTER)
            and self.agreeing >= _SAME_SIGN
        )

    def describe(self) -> str:
        """The cause in words."""
        causes = [self.cause] * bool(self.cause)
        # Both change the sign of all that is compared.
        inverted = "polarity is inverted (ON and OFF exchanged) or the frames are in reverse order"
        causes += [inverted] * self.is_inverted
        return (
            f"{' and '.join(causes)}: the events then explain the frames with a correlation of "
            f"{abs(self.correlation):.2f}, {self.as_given:.2f} as given ({self.pairs} "
            f"pair{'s' * (self.pairs != 1)})"
        )


def compare_geometry(recording: Recording, most_pairs: int = PAIRS) -> Geometry:
    """Compare frame differences with the events between, as given, mirrored and with axes swapped.

    Args:
        recording: with events and at least two frames.
        most_pairs: frame pairs, evenly spread.
    """
    indices = usable_pairs(recording, 0, most_pairs)
    found: dict[str, list[tuple[float, float, float]]] = {}
    factor = max(1, recording.width // GRID_WIDTH)
    for index in indices:
        t0, t1 = (int(t) for t in recording.frame_times[[index, index + 1]])
        change = change_of_frames(recording, index, factor)
        sums = polarity_sum(recording.events(t0, t1), t0, t1, change.shape, factor)
        for cause, image in _variants(sums).items():
            image = image - image.mean()
            terms = float((image * change).sum()), float((image**2).sum())
            found.setdefault(cause, []).append((*terms, float((change**2).sum())))
    if not found:
        return Geometry("", math.nan, math.nan, 0.0, 0)
    correlations = {cause: _correlation(np.array(rows)) for cause, rows in found.items()}
    best = max(correlations, key=lambda cause: abs(correlations[cause]))
    if correlations[""] > abs(correlations[best]) - BETTER:
        best = ""
    products = np.array(found[best])[:, 0]
    agreeing = float((np.sign(products) == np.sign(correlations[best])).mean())
    return Geometry(best, correlations[best], correlations[""], agreeing, len(indices))


def _variants(image: np.ndarray) -> dict[str, np.ndarray]:
    variants = {
        "": image,
        "x is mirrored": image[:, ::-1],
        "y is mirrored": image[::-1],
        "x and y are mirrored": image[::-1, ::-1],
    }
    # Of a camera that gives events at half its resolution: all of them lie in one quarter.
    quarter = image[: -(-image.shape[0] // 2), : -(-image.shape[1] // 2)]
    doubled = quarter.repeat(2, axis=0).repeat(2, axis=1)
    variants["x and y are half as large"] = doubled[: image.shape[0], : image.shape[1]]
    swapped = np.zeros_like(image)
    side = min(image.shape)
    swapped[:side, :side] = image.T[:side, :side]
    variants["x and y are swapped"] = swapped
    if image.shape[0] == image.shape[1]:
        variants["x and y are swapped and x is mirrored"] = swapped[:, ::-1]
        variants["x and y are swapped and y is mirrored"] = swapped[::-1]
        variants["x and y are swapped and mirrored"] = swapped[::-1, ::-1]
    return variants


def _correlation(rows: np.ndarray) -> float:
    product, energy, other = rows.sum(axis=0)
    return float(product / math.sqrt(energy * other)) if energy > 0 and other > 0 else 0.0


@dataclass(frozen=True)
class Clocks:
    """What the times of events and frames say about their clocks.

    Attributes:
        scale: the times of the events must be multiplied by it: another unit; 1: none.
        offset: us, to be added to the times of the frames; None: unknown, or nothing wrong.
        correlation: with the cause removed; NaN: nothing could be compared.
        has_common: whether events and frames lie at common times as given.
    """

    scale: float = 1.0
    offset: float | None = None
    correlation: float = math.nan
    has_common: bool = True

    def describe(self) -> str | None:
        """The cause in words; None if nothing is wrong."""
        sure = self.correlation >= EVIDENT
        shown = f" (correlation {self.correlation:.2f} then)" if sure else ""
        if self.scale != 1:
            return (
                f"the times of the events {'are' if sure else 'may be'} {_SCALES[self.scale]}"
                f"{shown}: {_UNIT_HINTS[self.scale]}; or those of the frames are "
                f"{_SCALES[1 / self.scale]}: a text of times has seconds"
            )
        if self.offset is not None:
            offset = TimeOffset(self.offset, self.correlation, 0.0, 0, 0).option
            return f"events and frames have different clocks{shown}: try {offset}"
        if not self.has_common:
            return "events and frames have different clocks, or are of different recordings"
        return None


def compare_clocks(recording: Recording, reach: int = 50_000) -> Clocks:
    """Look whether events and frames are of one time and one unit; try others where they are not.

    Args:
        recording: with events and at least two frames.
        reach: us, how far starts, or ends, may be apart where clocks differ.
    """
    if recording.event_range is None or len(recording.frame_times) < 2:
        return Clocks()
    events, frames = recording.event_range, tuple(recording.frame_times[[0, -1]].tolist())
    spans = [max(1, last - first) for first, last in (events, frames)]
    common = _common(events, frames) >= _LEAST_COMMON
    if common and max(spans) <= _SPAN_RATIO * min(spans):
        return Clocks()
    candidates = []
    for scale in _SCALES:
        scaled = tuple(round(time * scale) for time in events)
        if not spans[1] / _SPAN_RATIO < scaled[1] - scaled[0] < spans[1] * _SPAN_RATIO:
            continue
        if _common(scaled, frames) >= _LEAST_COMMON:
            found = compare_geometry(_View(recording, scale, 0), QUICK_PAIRS)
            candidates.append(Clocks(scale, None, abs(found.correlation), common))
    if candidates:
        return max(candidates, key=lambda clocks: np.nan_to_num(clocks.correlation, nan=-1.0))
    if common:
        return Clocks()
    best = Clocks(has_common=False)
    for shift in (events[0] - frames[0], events[1] - frames[1]):
        offset = estimate_offset(_View(recording, 1.0, shift), reach, QUICK_PAIRS)
        if offset.correlation > max(EVIDENT, np.nan_to_num(best.correlation)):
            best = Clocks(1.0, shift + offset.offset, offset.correlation, False)
    return best


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """The share of the shorter of two ranges of time that lies in the other."""
    shorter = max(1, min(first[1] - first[0], second[1] - second[0]))
    return (min(first[1], second[1]) - max(first[0], second[0])) / shorter


class _View:
    """A recording whose events are at scaled times, and whose frames are shifted."""

    def __init__(self, recording: Recording, scale: float, shift: int) -> None:
        self._recording, self._scale = recording, scale
        self.height, self.width = recording.height, recording.width
        self.frame_times = recording.frame_times + shift
        first, last = recording.event_range or (0, 0)
        self.event_range = round(first * scale), round(last * scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recording, name)

    def events(self, t0: int, t1: int) -> Events:
        first, last = (math.ceil(time / self._scale) for time in (t0, t1))
        found = self._recording.events(max(first, 0), last)
        t = np.floor(found.t * self._scale).astype(np.int64)
        return Events(found.x, found.y, t, found.p, height=self.height, width=self.width)


def guess_unit(recording: Recording) -> str | None:
    """Say whether the times of events, without frames, are likely in another unit.

    The events of a moving edge follow those at neighbouring pixels within milliseconds; where that
    takes longer than 0.1 s though they crowd together as those of edges do, times are too long.

    Returns:
        A sentence, or None: nothing is odd, or there are too few events to tell.
    """
    sample = _first_events(recording)
    if len(sample) < _FEWEST:
        return None
    duration = int(sample.t[-1]) - int(sample.t[0])
    rate = len(sample) / max(1, duration)  # per us
    pixels = recording.height * recording.width
    if rate * 1e6 > _MOST_RATE * pixels:
        return (
            f"{rate * 1e6 / pixels:.0f} events per pixel and second are beyond any camera: the "
            f"times may be {_SCALES[1e3]} ({_UNIT_HINTS[1e3]}) or {_SCALES[1e6]}"
        )
    waits = _waits(sample, recording.height, recording.width)
    if len(waits) < _FEWEST:
        return None
    wait = float(np.median(waits))
    expected = math.log(2) * pixels / (9 * rate)  # of independent events, per us
    if wait <= _SLOW or wait > _CROWDED * expected:
        return None
    scale = 1e-3 if wait * 1e-3 <= _SLOW else 1e-6
    return (
        f"an edge takes {wait / 1e6:.3g} s from pixel to pixel (median): unless the motion is that "
        f"slow, the times are {_SCALES[scale]} ({_UNIT_HINTS[scale]})"
    )


def _first_events(recording: Recording) -> Events:
    parts, count = [], 0
    for part in iterate_events(recording, _SAMPLE):
        parts.append(part)
        count += len(part)
        if count >= _SAMPLE:
            break
    return Events.concatenate(parts) if parts else Events.empty()


def _waits(events: Events, height: int, width: int) -> np.ndarray:
    """Times (us) from the latest event at a pixel or its eight neighbours to each event."""
    count = min(len(events), _SAMPLE)
    x, y = (np.rint(values[:count]).astype(np.int64) + 1 for values in (events.x, events.y))
    t, number = events.t[:count], np.arange(count)
    pixel = y * (width + 2) + x
    around = [dy * (width + 2) + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    # Every event is noted at nine pixels, after it has been asked for the latest note at its own.
    pixels = np.concatenate([pixel, *(pixel + step for step in around)])
    moments = np.concatenate([2 * number, *(2 * number + 1 for _ in around)])
    asks = np.arange(len(pixels)) < count
    order = np.lexsort((moments, pixels))
    pixels, asks, source = pixels[order], asks[order], (moments // 2)[order]
    note = np.maximum.accumulate(np.where(asks, -1, np.arange(len(pixels))))
    asked = asks & (note >= 0)
    asked[asked] = pixels[note[asked]] == pixels[asked]
    return t[source[asked]] - t[source[note[asked]]]


def find_cause(recording: Recording) -> str | None:
    """Look quickly whether something is evidently wrong, at a few frame pairs.

    Args:
        recording: with events; with frames or without.

    Returns:
        The cause in words; None: nothing is evident.
    """
    if not recording.has_events or recording.event_range is None:
        return None
    if len(recording.frame_times) < 2:
        return guess_unit(recording)
    told = compare_clocks(recording).describe()
    if told is not None:
        return told
    found = compare_geometry(recording, QUICK_PAIRS)
    if found.pairs == 0 or not (found.is_evident or found.as_given < GOOD):
        return None
    # Frames at a wrong time can look so, too: it must be a better explanation than that.
    shifted = estimate_offset(recording, most_pairs=QUICK_PAIRS)
    best = np.nan_to_num(shifted.correlation)
    if found.is_evident and best <= abs(found.correlation) - BETTER:
        return f"{found.describe()}; correct the recording, or use --frames-only until then"
    if best >= 2 * EVIDENT and shifted.is_evident:
        return (
            "the clocks of frames and events differ: the events explain the frames with a "
            f"correlation of {best:.2f} with {shifted.option}, {shifted.as_given:.2f} as given "
            f"({shifted.pairs} pair{'s' * (shifted.pairs != 1)})"
        )
    return None
