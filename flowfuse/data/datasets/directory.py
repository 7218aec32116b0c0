"""A directory of events, frames, their times, and ground truth where it is known: any camera.

A directory holds, where all but one of events and frames may be missing::

    events.h5 | .npz | .txt | .csv     see flowfuse.data.formats, which has more; .aedat4, .aedat
        | .raw | .aedat4 | .bag ...    and bags may hold the frames, too
    images.txt                         lines "t path", t in seconds, mid-exposure; or
    images/ or frames/, or the images  with timestamps.txt or times.txt (one column of seconds, or
    themselves                         "t path"), beside them or in the directory; or
    one video                          its times are the container's, or timestamps.txt
    exposures.txt                      lines "start end" per frame, seconds
    sensor.txt                         "width height", needed when nothing else tells; also read
                                       beside a single file of events
    flow/000000.flo                    ground truth from frame 0 to frame 1 (.png: KITTI encoding)
    flow_at/0.25/000000.flo            true displacement from frame 0 to tau = 0.25
"""

from __future__ import annotations

import math
import os
import re
import warnings
from pathlib import Path

import numpy as np

from flowfuse.data.calibration import apply_calibration, read_calibration
from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.base import EVENTS, FRAMES, EventFile, Format, FrameSource, StatedTimes
from flowfuse.data.formats.frames import has_images, list_images, read_exposures
from flowfuse.data.formats.triggers import is_trigger_spec, trigger_times
from flowfuse.data.formats.wrapped_frames import ShiftedFrames
from flowfuse.data.reading import ReadingOptions
from flowfuse.data.recording import Flow
from flowfuse.data.registry import (
    check_event_path,
    event_suffixes,
    find_format,
    open_event_file,
    open_frames,
    video_suffixes,
)
from flowfuse.data.repair import put_in_order
from flowfuse.io.flow import FLOW_SUFFIXES, read_flow

MOST_SHIFT = 1000  # us between a frame's time and the middle of its exposure
_FLOW_NAME = re.compile(r"\d{6}\.(flo|png|npy|npz)")


class NothingRecordedError(ValueError):
    """A directory has neither events nor frames."""


class DirectoryRecording(FileRecording):
    """A :class:`~flowfuse.data.recording.Recording` of a directory, or of named files.

    Args:
        path: the directory or file, or None.
        event_file, frame_source: either may be None.

    Raises:
        ValueError: naming the file, what was found and what was expected.
    """

    def __init__(
        self,
        path: Path | None,
        event_file: EventFile | None,
        frame_source: FrameSource | None,
    ) -> None:
        times = np.empty(0, np.int64) if frame_source is None else frame_source.times
        exposures = size = None
        kept = None if frame_source is None else frame_source.kept
        if path is not None and path.is_dir() and (path / "exposures.txt").is_file():
            stored = len(times) if kept is None else len(kept)
            exposures = read_exposures(path / "exposures.txt", stored)
            exposures = exposures if kept is None else exposures[kept]
            if len(times):
                _check_exposures(path / "exposures.txt", exposures, times)
        if path is not None and (path / "sensor.txt").is_file():
            size = str(path / "sensor.txt"), _read_sensor(path / "sensor.txt")
        elif event_file is not None and event_file.sensor_size is None and not len(times):
            # Of a file alone nothing else tells; beside frames, it could be of another camera.
            beside = event_file.path.parent / "sensor.txt"
            if beside.is_file():
                size = str(beside), _read_sensor(beside)
        super().__init__(path, event_file, frame_source, exposures=exposures, stated_size=size)
        # Files of ground truth count all frames that are stored.
        self._stored = np.arange(len(times)) if kept is None else np.flatnonzero(kept)
        self._ground_truth_directories = _find_ground_truth(path)
        self.ground_truth_times = tuple(tau for tau in self._ground_truth_directories if tau < 1)

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth from frame ``index`` to the time that is the fraction tau further on.

        Args:
            index: frame.
            tau: in (0, 1]; 1 is the next frame. Compared with the directories' to 1e-9.

        Returns:
            flow [2, H, W] float32 (px, from the frame) and valid [H, W] bool; None if unknown.
        """
        path = self._find_flow(index, tau)
        if path is None:
            return None
        flow, valid = read_flow(path)
        if valid.shape != (self.height, self.width):
            raise ValueError(
                f"{path} is {valid.shape[1]} x {valid.shape[0]} px, but "
                f"{self._size_source} is {self.width} x {self.height} px"
            )
        return flow, valid

    def has_ground_truth(self, index: int) -> bool:
        """Whether there is a file of flow from frame ``index`` to the next; it is not read."""
        return self._find_flow(index, 1.0) is not None

    def _find_flow(self, index: int, tau: float) -> Path | None:
        """The file of ground truth, if the next frame is the one that it leads to."""
        if not 0 <= index < len(self._stored):
            return None
        if index + 1 < len(self._stored) and self._stored[index + 1] != self._stored[index] + 1:
            return None  # the next one was left out
        for known, directory in self._ground_truth_directories.items():
            if abs(known - tau) <= 1e-9:
                names = (f"{self._stored[index]:06d}{suffix}" for suffix in FLOW_SUFFIXES)
                return next((directory / n for n in names if (directory / n).is_file()), None)
        return None


def open_directory(
    path: Path | None,
    *,
    events: str | os.PathLike | None = None,
    frames: str | os.PathLike | None = None,
    times: str | os.PathLike | None = None,
    calibration: str | os.PathLike | None = None,
    options: ReadingOptions | None = None,
) -> DirectoryRecording:
    """Open a directory of the layout above, an event file, a video, a ROS bag, or named files.

    Args:
        path: of these; None where events or frames are named.
        events, frames, times: files or directories, in place of the directory's; ``times`` may be
            "triggers[:rising|falling][:INPUT]", those of the event file.
        calibration: a file of :mod:`flowfuse.data.calibration`.
        options: of reading.

    Raises:
        FileNotFoundError: if a file is missing.
        ModuleNotFoundError: the package that reads a format is not installed; says which.
        ValueError: naming the file, what was found and what was expected; NothingRecordedError for
            a directory in which nothing is found.
    """
    if path is not None and not path.exists():
        raise FileNotFoundError(f"{path}: no such recording")
    known = None if path is None else _find_any_format(path)
    if path is not None and known is not None:
        has_events, has_frames = known.contents(path)
        events = path if events is None and has_events else events
        frames = path if frames is None and has_frames else frames
    elif path is not None and path.is_file():
        events = path if events is None else events
    elif path is not None:
        events = _find_events(path) if events is None else events
        if events is not None:
            check_event_path(Path(events))
        if frames is None:
            frames, found_times = _find_frames(path)
            times = found_times if times is None else times
        if frames is None and events is not None and _holds_frames(Path(events)):
            frames = events
    if events is None and frames is None:
        raise NothingRecordedError(
            f"{path}: neither events ({', '.join('events' + s for s in event_suffixes())}) nor "
            "frames (images.txt, images/, a video) found; name them (events, frames)"
        )
    if frames is None and times is not None:
        raise ValueError(f"{times}: frame times were given without frames")
    options = options or ReadingOptions()
    _check_use(options, events is not None, frames is not None, calibration is not None)
    opened = None if events is None else open_event_file(events, options.columns, check=False)
    stated: str | os.PathLike | StatedTimes | None = times
    if times is not None and is_trigger_spec(str(times)):
        if opened is None:
            raise ValueError(f"{times}: frame times of triggers need an event file")
        stated = trigger_times(opened, str(times))
    frame_source = None
    if frames is not None:
        frame_source = open_frames(
            frames, stated, bit_depth=options.bit_depth, repair=options.repair
        )
        if options.time_offset is not None:
            shift = options.time_offset
            frame_source = ShiftedFrames(frame_source, shift.offset, shift.drift)
    event_file = None
    if opened is not None:
        size = None
        if options.repair:
            size = _stated_size(path, frame_source if calibration is None else None)
        event_file = put_in_order(opened, repair=options.repair, part=options.part, size=size)
    if calibration is not None:
        sizes = (
            None if event_file is None else event_file.sensor_size,
            _stated_size(None, frame_source),
        )
        rig = read_calibration(calibration, *sizes)
        event_file, frame_source = apply_calibration(
            rig, event_file, frame_source, str(calibration), options.depth
        )
    recording = DirectoryRecording(path, event_file, frame_source)
    recording.assumption = None if opened is None else opened.assumption
    return recording


def _check_use(options: ReadingOptions, events: bool, frames: bool, calibration: bool) -> None:
    """Refuse what is stated of something that is not there."""
    needs = {
        "frames": (frames, ("bit_depth", "time_offset")),
        "events": (events, ("part", "columns")),
        "a calibration": (calibration, ("depth",)),
    }
    for what, (present, names) in needs.items():
        stated = [name for name in names if name in options.stated()]
        if stated and not present:
            option = stated[0]
            raise ValueError(
                f"{option} {getattr(options, option)} was given (--{option.replace('_', '-')}) "
                f"without {what}"
            )


def holds_recording(path: Path) -> bool:
    """Whether a directory has what :func:`open_directory` looks for, sound or not."""
    if _find_any_format(path) is not None:
        return True
    try:
        return _find_events(path) is not None or _find_frames(path)[0] is not None
    except ValueError:  # too much of it
        return True


def _stated_size(path: Path | None, frames: FrameSource | None) -> tuple[int, int] | None:
    """(height, width) of the sensor as sensor.txt or the first frame has it; None: not stated."""
    if path is not None and (path / "sensor.txt").is_file():
        return _read_sensor(path / "sensor.txt")
    if frames is not None and len(frames.times):
        height, width = frames.read(0).shape[:2]
        return height, width
    return None


class DirectoryDataSet(DataSet):
    """What no other data set has: any directory or file."""

    name = "directory"
    rank = 1000

    def matches(self, path: Path) -> bool:
        return path.exists()

    def open(self, path: Path) -> DirectoryRecording:
        return open_directory(path)


DATASET = DirectoryDataSet()


def _find_any_format(path: Path) -> Format | None:
    """The format of a file, or of a directory that is one: of events before of frames."""
    found = find_format(path, EVENTS)
    return find_format(path, FRAMES) if found is None and path.is_file() else found


def _holds_frames(path: Path) -> bool:
    """Whether an event file holds frames, too."""
    found = find_format(path, EVENTS)
    return found is not None and FRAMES in found.holds and found.contents(path)[1]


def _check_exposures(file: Path, exposures: np.ndarray, frame_times: np.ndarray) -> None:
    """Warn where frame times are not those of mid-exposure, but for instance of its start."""
    shift = float(np.median(exposures.mean(axis=1) - frame_times))
    length = float(np.median(np.diff(exposures)))
    if abs(shift) > max(MOST_SHIFT, length / 4):
        warnings.warn(
            f"{file}: exposures are centred {abs(shift):.0f} us (median) "
            f"{'after' if shift > 0 else 'before'} the times of the frames, which are taken as "
            "mid-exposure; correct one of them",
            stacklevel=5,
        )


def _find_ground_truth(path: Path | None) -> dict[float, Path]:
    """tau -> directory of flow files, increasing; tau = 1 is the next frame."""
    if path is None or not path.is_dir():
        return {}
    found = {1.0: path / "flow"} if (path / "flow").is_dir() else {}
    parent = path / "flow_at"
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
                f"{directory}: {len(strange)} files are not used as ground truth, e.g. "
                f"{min(strange)!r}; expected names like 000000.flo (the index of the frame)",
                stacklevel=5,
            )
    return dict(sorted(found.items()))


def _visible(directory: Path) -> list[Path]:
    """What is in a directory, but for what macOS leaves there: .DS_Store, ._000000.flo."""
    return [path for path in directory.iterdir() if not path.name.startswith(".")]


def _find_events(directory: Path) -> Path | None:
    # A link to nothing counts: opening it fails, where taking no events would go unnoticed.
    found = [p for p in (directory / f"events{s}" for s in event_suffixes()) if os.path.lexists(p)]
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
    for place in (directory / "images", directory / "frames"):
        if place.is_dir() and has_images(place):
            return place, times
    videos = sorted(p for p in directory.iterdir() if p.suffix.lower() in video_suffixes())
    images = list_images(directory)
    # A single image beside a video is its thumbnail, or a picture of the rig.
    if len(images) > 1 or (images and not videos):
        if videos:
            warnings.warn(
                f"{directory}: {len(images)} images and {videos[0].name}; the images are taken as "
                "the frames, name the video (frames=, --frames) to use it",
                stacklevel=4,
            )
        return directory, times
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
