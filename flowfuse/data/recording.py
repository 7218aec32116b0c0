"""Plain recordings of any camera: events, frames, their times, and true flow where it is known."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flowfuse.data.datasets.dsec.files import find_sequence, list_sequences
from flowfuse.data.datasets.dsec.sequence import DsecSequence
from flowfuse.data.formats.containers import find_contents, is_container
from flowfuse.data.formats.events import (
    EVENT_SUFFIXES,
    EventFile,
    check_event_path,
    open_event_file,
)
from flowfuse.data.formats.frames import (
    VIDEO_SUFFIXES,
    FrameSource,
    list_images,
    open_frames,
    read_exposures,
)
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events
from flowfuse.io.flow import FLOW_SUFFIXES, read_flow

__all__ = ["Recording", "iterate_events", "open_recording", "write_recording"]

Flow = tuple[np.ndarray, np.ndarray]  # flow [2, H, W] float32 px, valid [H, W] bool

PART_EVENTS = 1 << 20  # in memory at once, about
_FIRST_SPAN = 10_000  # us
MOST_SHIFT = 1000  # us between a frame's time and the middle of its exposure


class Recording:
    """Events and frames on one common pixel grid; made by :func:`open_recording`.

    Attributes:
        path: the directory or file, or None.
        height, width: px, of sensor and frames.
        frame_times: [F] int64, microseconds, mid-exposure; F = 0 without frames.
        exposures: [F, 2] int64, start and end in microseconds, or None when unknown.
        has_events, has_frames: bool.
        ground_truth_times: the tau in (0, 1) at which :meth:`ground_truth_at` may have some,
            increasing.
    """

    def __init__(
        self,
        path: Path | None,
        event_file: EventFile | None,
        frame_source: FrameSource | None,
    ) -> None:
        self.path = path
        self._event_file = event_file
        self._frame_source = frame_source
        times = frame_source.times if frame_source is not None else np.empty(0, np.int64)
        self.frame_times = times
        self.has_events = event_file is not None
        self.has_frames = len(times) > 0
        self.exposures = None if frame_source is None else frame_source.exposures
        if path is not None and path.is_dir() and (path / "exposures.txt").is_file():
            self.exposures = read_exposures(path / "exposures.txt", len(times))
            if self.has_frames:
                self._check_exposures(path / "exposures.txt")
        self.height, self.width = self._find_size()
        self._ground_truth_directories = self._find_ground_truth()
        self.ground_truth_times = tuple(tau for tau in self._ground_truth_directories if tau < 1)

    def __repr__(self) -> str:
        events = "events" if self.has_events else "no events"
        return (
            f"Recording({self.path}, {self.width} x {self.height}, "
            f"{len(self.frame_times)} frames, {events})"
        )

    @property
    def time_range(self) -> tuple[int, int]:
        """The times of the first and the last thing recorded, event or frame, in microseconds."""
        ranges = [(int(self.frame_times[0]), int(self.frame_times[-1]))] if self.has_frames else []
        if self.event_range is not None:
            ranges.append(self.event_range)
        if not ranges:
            raise ValueError(f"{self.path}: the recording has neither an event nor a frame")
        return min(first for first, _ in ranges), max(last for _, last in ranges)

    @property
    def frame_pairs(self) -> list[tuple[int, int]]:
        """The frames between which flow is wanted: successive ones."""
        return [(i, i + 1) for i in range(len(self.frame_times) - 1)]

    @property
    def source_files(self) -> list[Path]:
        """The files, or the directory, beside the frames, that estimates depend on."""
        return [] if self.path is None else [self.path]

    @property
    def event_range(self) -> tuple[int, int] | None:
        """The times of the first and the last event, microseconds; None without any event."""
        return None if self._event_file is None else self._event_file.time_range

    @property
    def frame_files(self) -> list[Path]:
        """The files that the frames are read from: images, or one video."""
        return [] if self._frame_source is None else self._frame_source.files

    def frame(self, index: int) -> np.ndarray:
        """Read frame ``index``: uint8 [H, W], or [H, W, 3] in RGB order."""
        if not 0 <= index < len(self.frame_times):
            raise IndexError(f"frame {index} of a recording with {len(self.frame_times)} frames")
        frame = self._frame_source.read(index)
        if frame.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"{self._frame_source.name(index)} is {frame.shape[1]} x {frame.shape[0]} px, but "
                f"{self._size_source} is {self.width} x {self.height} px; "
                "all frames must have the size of the sensor"
            )
        return frame

    def events(self, t0: int, t1: int) -> Events:
        """Read the events of the half-open window [t0, t1), microseconds, and nothing else.

        A recording without events (``has_events`` is False) gives none.
        """
        if self._event_file is None:
            return Events.empty(self.height, self.width)
        return self._event_file.window(int(t0), int(t1), self.height, self.width)

    def ground_truth(self, index: int) -> Flow | None:
        """True flow from frame ``index`` to the next, and where it is valid; None if unknown."""
        return self.ground_truth_at(index, 1.0)

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """True displacement from frame ``index`` to the time that is the fraction tau further on.

        Args:
            index: frame.
            tau: in (0, 1]; 1 is the next frame. Compared with the directories' to 1e-9.

        Returns:
            flow [2, H, W] float32 (px, from the frame) and valid [H, W] bool; None if unknown.
        """
        for known, directory in self._ground_truth_directories.items():
            if abs(known - tau) > 1e-9:
                continue
            for suffix in FLOW_SUFFIXES:
                path = directory / f"{index:06d}{suffix}"
                if path.is_file():
                    flow, valid = read_flow(path)
                    if valid.shape != (self.height, self.width):
                        raise ValueError(
                            f"{path} is {valid.shape[1]} x {valid.shape[0]} px, but "
                            f"{self._size_source} is {self.width} x {self.height} px"
                        )
                    return flow, valid
        return None

    def _find_size(self) -> tuple[int, int]:
        """(height, width); what states it goes to _size_source. Statements must agree."""
        stated: list[tuple[str, tuple[int, int]]] = []
        if self.path is not None and (self.path / "sensor.txt").is_file():
            stated.append((str(self.path / "sensor.txt"), _read_sensor(self.path / "sensor.txt")))
        if self.has_frames:
            first = self._frame_source.read(0)
            stated.append((self._frame_source.name(0), first.shape[:2]))
        if self._event_file is not None and self._event_file.sensor_size is not None:
            stated.append((str(self._event_file.path), self._event_file.sensor_size))
        if not stated and self._event_file is None:
            raise ValueError(f"{self.path}: the recording has neither events nor frames")
        if not stated:
            size = self._event_file.coordinate_extent()
            warnings.warn(
                f"{self._event_file.path}: the sensor size is not stated; {size[1]} x {size[0]} px "
                "is taken from the largest coordinates. State it in sensor.txt (width height)",
                stacklevel=4,
            )
            stated.append((f"the extent of {self._event_file.path}", size))
        self._size_source, size = stated[0]
        for source, other in stated[1:]:
            if tuple(other) != tuple(size):
                raise ValueError(
                    f"{source} is {other[1]} x {other[0]} px, but {self._size_source} is "
                    f"{size[1]} x {size[0]} px; events and frames must share one pixel grid"
                )
        return int(size[0]), int(size[1])

    def _check_exposures(self, file: Path) -> None:
        """Warn where frame times are not those of mid-exposure, but for instance of its start."""
        shift = float(np.median(self.exposures.mean(axis=1) - self.frame_times))
        length = float(np.median(np.diff(self.exposures)))
        if abs(shift) > max(MOST_SHIFT, length / 4):
            warnings.warn(
                f"{file}: exposures are centred {abs(shift):.0f} us (median) "
                f"{'after' if shift > 0 else 'before'} the times of the frames, which are taken as "
                "mid-exposure; correct one of them",
                stacklevel=4,
            )

    def _find_ground_truth(self) -> dict[float, Path]:
        """tau -> directory of flow files, increasing; tau = 1 is the next frame."""
        if self.path is None or not self.path.is_dir():
            return {}
        found = {1.0: self.path / "flow"} if (self.path / "flow").is_dir() else {}
        parent = self.path / "flow_at"
        for directory in _visible(parent) if parent.is_dir() else ():
            try:
                tau = float(directory.name)
            except ValueError:
                tau = math.nan
            if not 0 < tau <= 1:
                raise ValueError(f"{directory}: directories in flow_at are named by tau in (0, 1]")
            found.setdefault(tau, directory)
        for directory in found.values():
            strange = [p.name for p in _visible(directory) if not _FLOW_NAME.fullmatch(p.name)]
            if strange:
                warnings.warn(
                    f"{directory}: {len(strange)} files are not used as true flow, e.g. "
                    f"{min(strange)!r}; expected names like 000000.flo (the index of the frame)",
                    stacklevel=4,
                )
        return dict(sorted(found.items()))


def _visible(directory: Path) -> list[Path]:
    """What is in a directory, but for what macOS leaves there: .DS_Store, ._000000.flo."""
    return [path for path in directory.iterdir() if not path.name.startswith(".")]


_FLOW_NAME = re.compile(r"\d{6}\.(flo|png|npy|npz)")


def open_recording(
    path: str | os.PathLike | None = None,
    *,
    events: str | os.PathLike | None = None,
    frames: str | os.PathLike | None = None,
    times: str | os.PathLike | None = None,
    calibration: str | os.PathLike | None = None,
) -> Recording | DsecSequence:
    """Open a plain recording, or a sequence of DSEC.

    A directory holds, where all but one of events and frames may be missing::

        events.h5 | .npz | .txt | .csv     see flowfuse.data.formats.events; the last two may hold
            | .raw | .aedat4 | .bag        the frames, too
        images.txt                         lines "t path", t in seconds, mid-exposure; or
        images/ or frames/, or the images  with timestamps.txt or times.txt (one column of seconds,
        themselves                         or "t path"), beside them or in the directory; or
        one video                          its times are the container's, or timestamps.txt
        exposures.txt                      lines "start end" per frame, seconds
        sensor.txt                         "width height", needed when nothing else tells
        flow/000000.flo                    true flow from frame 0 to frame 1 (.png: KITTI encoding)
        flow_at/0.25/000000.flo            true displacement from frame 0 to tau = 0.25

    Args:
        path: such a directory, an event file, a video or a ROS bag; ROOT/SEQ of DSEC in any layout
            (see :mod:`flowfuse.data.datasets.dsec.files`); ``<seq>_data.hdf5`` of MVSEC; or None.
        events: an event file, used in place of the directory's.
        frames: a directory of images, a video, or a file of "t path" lines, likewise.
        times: a file of frame times in seconds, likewise.
        calibration: a file of :mod:`flowfuse.data.calibration`: events are undistorted, and frames
            brought into their view.

    Returns:
        Recording. No event is loaded by opening it; text files are read once when first needed.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file, what was found and what was expected.
    """
    if path is None and events is None and frames is None:
        raise ValueError("open_recording: nothing to open, expected a path, events or frames")
    directory = None if path is None else Path(path)
    if directory is not None and events is None and frames is None:
        sequence = find_sequence(directory)
        if sequence is not None:
            _refuse(calibration, "DSEC has one of its own")
            return DsecSequence(sequence)
    if directory is not None and not directory.exists():
        raise FileNotFoundError(f"{directory}: no such recording")
    if directory is not None and directory.is_file() and events is None and frames is None:
        from flowfuse.data.datasets.mvsec.recording import (  # builds on this module
            is_mvsec,
            open_mvsec,
        )

        if is_mvsec(directory):
            _refuse(calibration, "MVSEC has tables of its own: open_mvsec(..., undistort=...)")
            return open_mvsec(directory)
    if directory is not None and is_container(directory):
        has_events, has_frames = find_contents(directory)
        events = directory if events is None and has_events else events
        frames = directory if frames is None and has_frames else frames
    elif directory is not None and directory.is_file():
        if directory.suffix.lower() in VIDEO_SUFFIXES:
            frames = directory if frames is None else frames
        else:
            events = directory if events is None else events
    elif directory is not None:
        events = _find_events(directory) if events is None else events
        if events is not None:
            check_event_path(Path(events))
        if frames is None:
            frames, found_times = _find_frames(directory)
            times = found_times if times is None else times
        if frames is None and events is not None and is_container(Path(events)):
            frames = events if find_contents(Path(events))[1] else None
    if events is None and frames is None:
        sequences = list_sequences(directory)
        if sequences:
            raise ValueError(
                f"{directory}: holds sequences of DSEC; name one, such as "
                f"{directory / sequences[0]} ({', '.join(sequences)})"
            )
        raise ValueError(
            f"{directory}: neither events ({', '.join('events' + s for s in EVENT_SUFFIXES)}) nor "
            "frames (images.txt, images/, a video) found; name them (events, frames)"
        )
    if frames is None and times is not None:
        raise ValueError(f"{times}: frame times were given without frames")
    event_file = None if events is None else open_event_file(events)
    frame_source = None if frames is None else open_frames(frames, times)
    if calibration is not None:
        from flowfuse.data.calibration import apply_calibration, read_calibration

        rig = read_calibration(calibration)
        event_file, frame_source = apply_calibration(
            rig, event_file, frame_source, str(calibration)
        )
    return Recording(directory, event_file, frame_source)


def iterate_events(recording: Recording, part: int = PART_EVENTS) -> Iterator[Events]:
    """Read all events of a recording in parts, in the order of time.

    Args:
        recording: may be without events.
        part: a part has about so many events; the time it spans follows their rate.
    """
    if recording.event_range is None:
        return
    start, last = recording.event_range
    span = _FIRST_SPAN
    while start <= last:
        events = recording.events(start, start + span)
        yield events
        start += span
        # Towards the wanted number, at most fourfold at a time: rates change.
        wanted = span * part / max(len(events), 1)
        span = max(1, round(min(max(wanted, span / 4), span * 4)))


def _refuse(calibration: str | os.PathLike | None, reason: str) -> None:
    if calibration is not None:
        raise ValueError(f"{calibration}: no calibration file is taken here: {reason}")


def _find_events(directory: Path) -> Path | None:
    # A link to nothing counts: opening it fails, where taking no events would go unnoticed.
    found = [p for p in (directory / f"events{s}" for s in EVENT_SUFFIXES) if os.path.lexists(p)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{directory}: several event files ({names}); name one with events=")
    return found[0] if found else None


def _find_frames(directory: Path) -> tuple[Path | None, Path | None]:
    """The frames and the file of their times, each None if there is none."""
    if (directory / "images.txt").is_file():
        return directory / "images.txt", None
    candidates = [directory / name for name in ("timestamps.txt", "times.txt")]
    times = next((path for path in candidates if path.is_file()), None)
    for place in (directory / "images", directory / "frames", directory):
        if place.is_dir() and list_images(place):
            return place, times
    videos = sorted(p for p in directory.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    if len(videos) > 1:
        names = ", ".join(path.name for path in videos)
        raise ValueError(f"{directory}: several videos ({names}); name one with frames=")
    return (videos[0], times) if videos else (None, None)


def _read_sensor(path: Path) -> tuple[int, int]:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        width, height = (int(field) for field in text.split())
        if width < 1 or height < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"{path}: 'width height' in px expected, found {text[:40]!r}") from None
    return height, width
