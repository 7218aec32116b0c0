"""Frames of any source, changed on their way: to full depth, with some left out, at other times."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from flowfuse.data.formats.base import FrameSource

DEPTHS = (8, 10, 12, 14, 16)  # bits, of cameras
_WHITE = 65535  # of frames as they are given on


class WrappedFrames(FrameSource):
    """The frames of another source; what is changed is overridden."""

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        self.times, self.exposures, self.kept = source.times, source.exposures, source.kept

    @property
    def files(self) -> list[Path]:
        return self.source.files

    def read(self, index: int) -> np.ndarray:
        return self.source.read(index)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def white(self, index: int) -> int | None:
        return self.source.white(index)


class DeepFrames(WrappedFrames):
    """Frames of more than 8 bits at the full range of 16 bits; those of 8 bits as they are.

    Which value is white is stated by the user or by the file. Where it is not, the largest value of
    all frames tells: 3000 takes 12 bits. A warning then says what is assumed.

    Args:
        source: of any depth.
        bit_depth: of its 16-bit frames, 8 to 16; None: see above. That frames of 8 bits take
            nothing from it is told, once.
    """

    def __init__(self, source: FrameSource, bit_depth: int | None = None) -> None:
        super().__init__(source)
        self.bit_depth = bit_depth
        self._assumed: int | None = None
        self._told = False

    def read(self, index: int) -> np.ndarray:
        frame = self.source.read(index)
        if frame.dtype != np.uint16:
            if self.bit_depth not in (None, 8) and not self._told:
                self._told = True
                warnings.warn(
                    f"{self.name(index)} has 8 bits: --bit-depth {self.bit_depth} says nothing of "
                    "such frames",
                    stacklevel=3,
                )
            return frame
        if self.bit_depth is not None:
            white, said = (1 << self.bit_depth) - 1, f"--bit-depth {self.bit_depth} was given"
        else:
            stated = self.source.white(index)
            white = self._find_white() if stated is None else stated
            said = f"the largest value was to be {white}"
        largest = int(frame.max(initial=0))
        if largest > white:
            raise ValueError(
                f"{self.name(index)}: has values up to {largest}, more than "
                f"{white.bit_length()} bits hold, but {said}"
            )
        if white == _WHITE:
            return frame
        return np.rint(frame * np.float64(_WHITE / white)).astype(np.uint16)

    def white(self, index: int) -> int | None:
        return _WHITE

    def _find_white(self) -> int:
        """The largest value of the depth that all frames of unstated depth need."""
        if self._assumed is None:
            largest, where = 0, 0
            for index in range(len(self.times)):
                frame = self.source.read(index)
                if frame.dtype == np.uint16 and self.source.white(index) is None:
                    found = int(frame.max(initial=0))
                    largest, where = max((largest, where), (found, index))
                if largest >> DEPTHS[-2]:
                    break  # nothing less than all bits
            bits = next(bits for bits in DEPTHS if largest >> bits == 0)
            if not largest:
                bits = 16
            if bits < 16:
                warnings.warn(
                    f"{self.name(where)} and the other frames have 16 bits and values up to "
                    f"{largest}: {bits} bits are assumed, {(1 << bits) - 1} is white; --bit-depth "
                    "states another depth",
                    stacklevel=4,
                )
            self._assumed = (1 << bits) - 1
        return self._assumed


class SelectedFrames(WrappedFrames):
    """Some frames of a source.

    Args:
        source: of all.
        kept: [N] bool, which of its frames.
    """

    def __init__(self, source: FrameSource, kept: np.ndarray) -> None:
        super().__init__(source)
        self.kept = kept
        self.indices = indices = np.flatnonzero(kept)
        self.times = source.times[indices]
        if source.exposures is not None:
            self.exposures = source.exposures[indices]

    @property
    def files(self) -> list[Path]:
        files = self.source.files
        if len(files) != len(self.source.times):
            return files
        return [files[index] for index in self.indices.tolist()]

    def read(self, index: int) -> np.ndarray:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def white(self, index: int) -> int | None:
        return self.source.white(int(self.indices[index]))


class ShiftedFrames(WrappedFrames):
    """Frames whose clock is brought to that of the events.

    Args:
        source: of frames.
        offset: us, added to the times at the first frame.
        drift: added per time: 1e-6 is a microsecond more each second.
    """

    def __init__(self, source: FrameSource, offset: float, drift: float = 0.0) -> None:
        super().__init__(source)
        if not len(source.times):
            return
        start = int(source.times[0])

        def shifted(times: np.ndarray) -> np.ndarray:
            return times + np.rint(offset + drift * (times - start)).astype(np.int64)

        self.times = shifted(source.times)
        if (np.diff(self.times) <= 0).any():
            raise ValueError(f"{source.name(0)}: a drift of {drift:g} makes frame times go back")
        if self.times[0] < 0:
            raise ValueError(
                f"{source.name(0)}: with the time offset, the first frame is at {self.times[0]} "
                "us, before 0"
            )
        if source.exposures is not None:
            self.exposures = shifted(source.exposures)


def frames_in_order(source: FrameSource, repair: bool) -> FrameSource:
    """Refuse frames whose times do not increase, or leave out, with a warning, those that go back.

    Raises:
        ValueError: naming the frame; with ``repair`` never.
    """
    times = source.times
    if not (np.diff(times) <= 0).any():
        return source
    index = int(np.argmax(np.diff(times) <= 0)) + 1
    highest = np.maximum.accumulate(times)
    kept = np.concatenate(([True], times[1:] > highest[:-1]))
    count = int((~kept).sum())
    fault = (
        f"{source.name(index)} has {times[index]} us after {times[index - 1]} us of "
        f"{source.name(index - 1)}"
    )
    if not repair:
        raise ValueError(
            f"frame times must increase, frame {index}: {fault}; --repair leaves out {count} of "
            f"{len(times)} frames"
        )
    warnings.warn(
        f"--repair left out {count} of {len(times)} frames whose times do not increase; the first: "
        f"{fault}",
        stacklevel=4,
    )
    return SelectedFrames(source, kept)
