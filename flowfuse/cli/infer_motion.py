"""Files of motion beside the flow: long tracks, and the velocity of every event."""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import numpy as np

from flowfuse.data.recording import Recording
from flowfuse.io.atomic import atomic_path, remove_abandoned
from flowfuse.result import Result
from flowfuse.runner import Interval
from flowfuse.tracking import Tracker

AUTO = "auto"  # in place of a file of points: they are chosen
TRACKS = "tracks.csv"
EVENT_FLOW = "event_flow"
_NAMED = 5  # points outside of the image


def read_points(path: Path) -> np.ndarray:
    """Read points to follow.

    Args:
        path: lines ``x,y`` in px; a first line of these two words is passed over, as are empty
            lines and what follows a #.

    Returns:
        [N, 2] float32.

    Raises:
        FileNotFoundError, ValueError: naming the file and the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of points")
    points = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text or (number == 1 and [w.strip().lower() for w in text.split(",")] == ["x", "y"]):
            continue
        try:
            x, y = map(float, text.split(","))
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: 'x,y' in px expected, found {text!r}"
            ) from None
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"{path}, line {number}: finite numbers expected, found {text!r}")
        points.append((x, y))
    if not points:
        raise ValueError(f"{path}: no point found, expected lines 'x,y' in px")
    return np.array(points, np.float32)


class MotionFiles:
    """Writes tracks.csv and event_flow/ of a run; every file is complete or absent.

    Args:
        root: directory of the results; it exists when the block is entered.
        tracks: a file of points, "auto", or None: no tracks are written.
        event_flow: whether the velocity of every event is written.
    """

    def __init__(self, root: Path, tracks: str | None, event_flow: bool) -> None:
        self.tracks, self.event_flow = root / TRACKS, root / EVENT_FLOW
        self._follows, self._asks = tracks is not None, event_flow
        points = None if tracks in (None, AUTO) else read_points(Path(str(tracks)))
        self._given = tracks, points
        # Points that someone asks for are followed wherever they go.
        self._tracker = Tracker(points, max_uncertainty=3.0 if points is None else None)
        self._file: TextIO | None = None

    def check_points(self, height: int, width: int) -> None:
        """Warn of given points outside of the image, which are lost at once.

        Args:
            height, width: of the image, px.

        Raises:
            ValueError: none is inside.
        """
        name, points = self._given
        if points is None:
            return
        last = np.array([width - 1, height - 1])
        outside = points[((points < 0) | (points > last)).any(axis=1)].tolist()
        if not outside:
            return
        named = ", ".join(f"({x:g}, {y:g})" for x, y in outside[:_NAMED])
        told = (
            f"--tracks {name}: {len(outside)} of {len(points)} points outside of the image: "
            f"{named}{', ...' * (len(outside) > _NAMED)}; expected x from 0 to {last[0]}, y from 0 "
            f"to {last[1]} px"
        )
        if len(outside) == len(points):
            raise ValueError(told)
        warnings.warn(told, stacklevel=2)

    def __enter__(self) -> MotionFiles:
        self._stack = ExitStack()
        if self._asks:
            self.event_flow.mkdir(exist_ok=True)
            remove_abandoned(self.event_flow)
        if self._follows:
            temporary = self._stack.enter_context(atomic_path(self.tracks))
            self._file = self._stack.enter_context(open(temporary, "w", newline="\n"))
            self._file.write("id,t_us,x,y,lost\n")
        return self

    def __exit__(self, *exception) -> None:
        self._stack.__exit__(*exception)

    def file(self, index: int) -> Path:
        """The file of the events of an interval."""
        return self.event_flow / f"{index:06d}.npz"

    def is_done(self, index: int) -> bool:
        """Whether nothing is left to write of an interval; tracks go through all of them anew."""
        return not self._follows and (not self._asks or self.file(index).is_file())

    def write(self, recording: Recording, interval: Interval, result: Result) -> None:
        """Write what is asked for of one time interval; they come in the order of time.

        Raises:
            OSError: a file cannot be written.
        """
        if self._asks:
            events = recording.events(interval.t0, interval.t1)
            with atomic_path(self.file(interval.index)) as temporary:
                np.savez(
                    temporary,
                    x=events.x,
                    y=events.y,
                    t=events.t,
                    p=events.p,
                    velocity=result.velocity_at_events(events),
                    flow=result.at_events(events),
                )
        if self._file is None:
            return
        step = self._tracker.update(result)
        for number, place in zip(step.new_ids.tolist(), step.new_points.tolist(), strict=True):
            self._row(number, step.t0, *place)
        for number, place in zip(step.ids.tolist(), step.points.tolist(), strict=True):
            self._row(number, step.t1, *place)
        for number, end in step.lost.items():
            self._row(number, end.t, end.x, end.y, end.reason)

    def _row(self, number: int, t: int, x: float, y: float, lost: str = "") -> None:
        assert self._file is not None, "tracks are written"
        self._file.write(f"{number},{t},{x:.3f},{y:.3f},{lost}\n")

    def lines(self) -> list[str]:
        """Say where things are."""
        lines = [f"tracks: {self.tracks}"] if self._follows else []
        return lines + ([f"velocity of events: {self.event_flow}"] if self._asks else [])
