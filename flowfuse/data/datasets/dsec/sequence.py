"""DSEC: driving sequences of an event camera and a frame camera side by side, with ground truth.

Everything is given in the rectified view of the left event camera, where the flow lives: events
have float coordinates there, frames are warped into it. All times are absolute microseconds.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import cv2
import h5py
import numpy as np

from flowfuse.data.datasets.dsec.files import (
    FLOW_STEP,
    DsecFiles,
    find_sequence,
    list_sequences,
    read_exposure_times,
    read_flow_times,
    read_image_times,
    read_rectify_map,
    read_view_change,
)
from flowfuse.data.formats.frames import list_images, read_image
from flowfuse.data.formats.hdf5_events import Hdf5Events
from flowfuse.data.interval_units import check_unit, whole_limits
from flowfuse.data.remapping import smooth_to_shrink
from flowfuse.events import Events
from flowfuse.io.flow import read_flow

TIME_TOLERANCE = 1000  # us between the stamps of a frame and of what refers to it; frames: 50 ms
# A window may reach this far beyond the first and last event before it counts as not recorded, us.
_QUIET = 1000


class DsecEvents(Hdf5Events):
    """The raw events of one camera, an events.h5, read window by window."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        first, last = self.time_range or (0, 0)
        if last < first:
            raise ValueError(
                f"{path}: t must be sorted, got t[0] = {first} us and t[-1] = {last} us"
            )

    def _find_columns(self, file: h5py.File):
        columns = super()._find_columns(file)
        for name in ("t_offset", "ms_to_idx"):
            if name not in file:
                raise ValueError(f"the data set {name!r} expected, found {sorted(file)}")
        for name in "xyt":
            kind = getattr(columns, name).dtype
            if kind.kind not in "iu":
                raise ValueError(f"events/{name} must be integers, got {kind}")
        return columns


class DsecSequence:
    """One sequence, in the rectified view of the left event camera.

    It is a :class:`~flowfuse.data.recording.Recording`.

    Args:
        files: where it lies; see :func:`open_sequence`.

    Attributes:
        name: of the sequence.
        path: ROOT/SEQ, which need not exist in every layout.
        height, width: px, of the event camera.
        frame_times: [F] int64, microseconds, mid-exposure.
        exposures: [F, 2] int64, start and end of the left camera's exposures; None if unknown.
        warped: whether frames come from rectified images, through the homography of infinite
            depth; False when they lie in ``images/left/ev_inf``.
        has_events, has_frames: True.
        ground_truth_step: 2, as a flow map leads to the second next frame.
        ground_truth_times: (), as there is no ground truth between the ends of a flow map.

    Raises:
        FileNotFoundError: listing the files that are missing.
        ValueError: naming the file, what was found and what was expected.
    """

    has_events = has_frames = True
    ground_truth_step = FLOW_STEP
    ground_truth_times: tuple[float, ...] = ()

    def __init__(self, files: DsecFiles) -> None:
        missing = missing_files(files)
        if missing:
            raise FileNotFoundError("; ".join(missing))
        self.files, self.name, self.path = files, files.name, files.root / files.name
        self._events = DsecEvents(files.get("events"))
        rectify_map = read_rectify_map(files.get("rectify_map"))
        self.height, self.width = rectify_map.shape[:2]
        x, y = rectify_map.reshape(-1, 2).T
        # Of each raw pixel, [H W]: its rectified column and row, and whether the view has it.
        self._rectified = np.ascontiguousarray(x), np.ascontiguousarray(y)
        self._seen = (x > -1) & (x < self.width) & (y > -1) & (y < self.height)
        self.frame_times = read_image_times(files.get("image_times"))
        exposures = files.find("exposures")
        self.exposures = (
            None if exposures is None else read_exposure_times(exposures, len(self.frame_times))
        )
        directory = files.find("event_view_images")
        self.warped = directory is None
        self._images = files.get("images") if directory is None else directory
        if self.warped:
            self._calibration = files.get("calibration")
            self._view_change, self._image_size = read_view_change(self._calibration)

    def __repr__(self) -> str:
        return f"DsecSequence({self.path}, {len(self.frame_times)} frames)"

    @property
    def event_range(self) -> tuple[int, int] | None:
        """The times of the first and the last event, microseconds; None without any event."""
        return self._events.time_range

    @property
    def time_range(self) -> tuple[int, int]:
        """The times of the first and the last thing recorded, event or frame, microseconds."""
        ends = [int(self.frame_times[0]), int(self.frame_times[-1]), *(self.event_range or ())]
        return min(ends), max(ends)

    @property
    def source_files(self) -> list[Path]:
        """The files, beside the images, that estimates depend on."""
        items = ("events", "rectify_map", "image_times", "exposures", "calibration")
        return [path for path in map(self.files.find, items) if path is not None]

    @property
    def frame_files(self) -> list[Path]:
        """The images."""
        return list_images(self._images)

    @cached_property
    def frame_pairs(self) -> list[tuple[int, int]]:
        """Frames between which flow is wanted: those of the ground truth where there is some, else
        every second frame and the second next, 100 ms later."""
        if self._flow_maps:
            return [(first, last) for first, (last, _) in self._flow_maps.items()]
        return [(i, i + FLOW_STEP) for i in range(0, len(self.frame_times) - FLOW_STEP, FLOW_STEP)]

    def raw_events(self, t0: int, t1: int) -> Events:
        """Read the events of [t0, t1), microseconds, at the pixels of the sensor."""
        return self._events.window(*whole_limits(t0, t1), self.height, self.width)

    def events(self, t0: int, t1: int) -> Events:
        """Read the events of [t0, t1), microseconds, at their rectified, float32 positions.

        Those with no share in any pixel of the rectified view are left out.
        """
        raw = self.raw_events(t0, t1)
        check_unit(t0, t1, raw, self.event_range)
        pixels = raw.y * np.int64(self.width) + raw.x
        t, p = raw.t, raw.p
        kept = self._seen.take(pixels)
        if not kept.all():
            pixels, t, p = pixels[kept], t[kept], p[kept]
        x, y = (places.take(pixels) for places in self._rectified)
        return Events(x, y, t, p, height=self.height, width=self.width)

    def frame(self, index: int) -> np.ndarray:
        """Read frame ``index`` in the rectified event view: uint8 [H, W, 3] RGB (or [H, W])."""
        path = self._image_path(index)
        image = read_image(path)
        if self.warped:
            if self._image_size is not None and image.shape[:2] != self._image_size:
                expected = f"{self._image_size[1]} x {self._image_size[0]} px"
                raise ValueError(
                    f"{path} is {image.shape[1]} x {image.shape[0]} px, but {self._calibration} is "
                    f"of images of {expected}"
                )
            return change_view(image, self._view_change, self.height, self.width)
        if image.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"{path} is {image.shape[1]} x {image.shape[0]} px, but the event view is "
                f"{self.width} x {self.height} px"
            )
        return image

    def ground_truth(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Read the ground truth that starts at frame ``index``.

        Returns:
            flow [2, H, W] float32, px, and valid [H, W] bool; None where there is no map.
        """
        if index not in self._flow_maps:
            return None
        path = self._flow_maps[index][1]
        flow, valid = read_flow(path, encoding="dsec")
        if valid.shape != (self.height, self.width):
            raise ValueError(
                f"{path} is {valid.shape[1]} x {valid.shape[0]} px, but the event view is "
                f"{self.width} x {self.height} px"
            )
        return flow, valid

    def ground_truth_at(self, index: int, tau: float) -> tuple[np.ndarray, np.ndarray] | None:
        """:meth:`ground_truth` for tau = 1; there is none in between."""
        return self.ground_truth(index) if tau == 1 else None

    def frame_at(self, time: int, source: object) -> int:
        """The frame at a time, microseconds; ``source`` names who asks.

        Raises:
            ValueError: no frame has this time stamp, to 1 ms.
        """
        index = int(np.argmin(np.abs(self.frame_times - time)))
        if abs(self.frame_times[index] - time) > TIME_TOLERANCE:
            times = self.files.find("image_times")
            raise ValueError(
                f"{source}: {time} us is not the time stamp of a frame in {times}, "
                f"the nearest is {self.frame_times[index]} us"
            )
        return index

    def covers(self, t0: int, t1: int) -> bool:
        """Whether events of all of [t0, t1), microseconds, were recorded."""
        if self.event_range is None:
            return False
        first, last = self.event_range
        return first <= t0 + _QUIET and t1 - _QUIET <= last

    def _image_path(self, index: int) -> Path:
        if not 0 <= index < len(self.frame_times):
            raise IndexError(f"frame {index} of a sequence with {len(self.frame_times)} frames")
        return self._images / f"{index:06d}.png"

    @cached_property
    def _flow_maps(self) -> dict[int, tuple[int, Path]]:
        """First frame -> last frame and file, in the order of time.

        A file is named by its first frame. That this is the frame at the map's time stamp, and
        which frame is its last, is read from the time stamps.
        """
        directory, times = self.files.find("flow"), self.files.find("flow_times")
        if directory is None:
            return {}
        if times is None:
            raise FileNotFoundError(self.files.missing("flow_times"))
        names = {path.name for path in directory.glob("[!.]*.png")}
        found = {}
        for start, end in read_flow_times(times).tolist():
            first, last = self.frame_at(start, times), self.frame_at(end, times)
            name = f"{first:06d}.png"
            if name not in names:
                raise ValueError(
                    f"{times}: flow from {start} us starts at frame {first}, but {directory} has "
                    f"no {name}"
                )
            found[first] = last, directory / name
        if len(found) != len(names):
            strange = min(names - {path.name for _, path in found.values()})
            raise ValueError(
                f"{directory}: {len(names)} flow maps for {len(found)} lines of {times}; "
                f"no line belongs to {strange}"
            )
        return found


def missing_files(files: DsecFiles, split: str = "train") -> list[str]:
    """Say which files are missing that estimates need, one line each."""
    items = ["events", "rectify_map", "image_times"]
    if files.find("event_view_images") is None:
        items += ["images", "calibration"]
    return [files.missing(item, split) for item in items if files.find(item) is None]


def open_sequence(path: str | os.PathLike) -> DsecSequence:
    """Open ROOT/SEQ, in any layout (see :mod:`flowfuse.data.datasets.dsec.files`).

    Raises:
        FileNotFoundError: there is no such sequence, or files of it are missing.
        ValueError: a file is damaged; the message names it.
    """
    files = find_sequence(path)
    if files is None:
        inside_root = list_sequences(path) if Path(path).is_dir() else []
        hint = f"; it holds the sequences {', '.join(inside_root)}" if inside_root else ""
        raise FileNotFoundError(f"{path}: not a sequence of DSEC, no events found{hint}")
    return DsecSequence(files)


def change_view(image: np.ndarray, view_change: np.ndarray, height: int, width: int) -> np.ndarray:
    """Warp an image into another view.

    Args:
        image: uint8 [h, w] or [h, w, 3].
        view_change: [3, 3], pixels (x, y, 1) of the image to pixels of the view.
        height, width: of the view, px. What the image does not show continues its border.

    Returns:
        uint8 [H, W] or [H, W, 3].
    """
    centre = np.array([[[width / 2, height / 2]], [[width / 2 + 1, height / 2]]])
    ends = cv2.perspectiveTransform(centre, np.linalg.inv(view_change))[:, 0]
    image = smooth_to_shrink(image, float(np.linalg.norm(ends[1] - ends[0])))
    return cv2.warpPerspective(
        image, view_change, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
