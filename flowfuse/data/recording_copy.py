"""Copying recordings into other layouts, part by part."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flowfuse.data.datasets.mvsec.recording import DATA_SUFFIX
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.data.formats.event_writer import EVENT_FORMATS, write_event_parts
from flowfuse.data.recording import Recording, iterate_events
from flowfuse.data.recording_writer import write_frames
from flowfuse.data.registry import event_suffixes, video_suffixes
from flowfuse.io.atomic import atomic_directory
from flowfuse.io.flow import tau_directory, write_flow
from flowfuse.io.images import as_8_bits, as_gray


def copy_recording(
    recording: Recording, path: str | os.PathLike, *, events_format: str | None = None
) -> list[str]:
    """Write a recording in another layout, complete or not at all; what it cannot hold is told.

    Args:
        recording: of any kind.
        path: ``<name>_data.hdf5``: MVSEC, with ``<name>_gt.hdf5`` beside it. A name that ends in
            .h5, .npz, .txt or .csv: the events alone. Else a directory, a plain recording, whose
            name must not be one of an event file of another kind or of a video.
        events_format: of the events in a directory, or of an .h5 file ("h5" or "dsec"): a key of
            EVENT_FORMATS. None: "h5", or what the name of a file says.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: the layout cannot hold the recording; something is in the way.
        OSError: a file cannot be written.
    """
    path = Path(path)
    if recording.has_events and recording.event_range is None:
        if not recording.has_frames:
            raise ValueError(f"{recording.path}: holds no event, and no frames: nothing to write")
        warnings.warn(f"{recording.path}: the event file holds no event", stacklevel=2)
    if events_format not in (None, *EVENT_FORMATS):
        known = ", ".join(EVENT_FORMATS)
        raise ValueError(f"events_format must be one of {known}, got {events_format!r}")
    is_mvsec, suffix = path.name.endswith(DATA_SUFFIX), path.suffix.lower()
    is_file = is_mvsec or suffix in EVENT_FORMATS.values()
    if is_file and events_format and (is_mvsec or EVENT_FORMATS[events_format] != suffix):
        kind = "MVSEC" if is_mvsec else suffix
        raise ValueError(
            f"{path}: its name says {kind}, events_format says {events_format}: give one of them"
        )
    if suffix in {*event_suffixes(), *video_suffixes()} and not (is_mvsec or is_file):
        written = ", ".join(sorted(set(EVENT_FORMATS.values())))
        raise ValueError(
            f"{path}: nothing is written as {suffix}; name a file that ends in {written} (events "
            f"alone) or {DATA_SUFFIX} (MVSEC), or a directory"
        )
    if is_mvsec:
        return _copy_to_mvsec(recording, path)
    if is_file:
        return _copy_events(recording, path, events_format)
    return _copy_to_directory(recording, path, events_format or "h5")


def _copy_events(recording: Recording, path: Path, events_format: str | None) -> list[str]:
    if path.exists():
        raise ValueError(f"{path}: exists already")
    if not recording.has_events:
        raise ValueError(f"{recording.path}: no events to write to {path}")
    if recording.has_frames:
        warnings.warn(f"{path} holds events alone, the frames are left out", stacklevel=3)
    size = (recording.height, recording.width)
    parts = iterate_events(recording)
    count = write_event_parts(path, parts, size, events_format)
    return [f"{path}: {count} events"]


def _copy_to_directory(recording: Recording, path: Path, events_format: str) -> list[str]:
    size, count, lines = (recording.height, recording.width), len(recording.frame_times), []
    with atomic_directory(path) as directory:
        if recording.has_events:
            name = f"events{EVENT_FORMATS[events_format]}"
            parts = iterate_events(recording)
            events = write_event_parts(directory / name, parts, size, events_format)
            lines.append(f"{path / name}: {events} events")
        # Text and .npz do not tell the size of the sensor.
        (directory / "sensor.txt").write_text(f"{recording.width} {recording.height}\n")
        if count:
            frames = (recording.frame(i) for i in range(count))
            write_frames(directory, frames, recording.frame_times, recording.exposures)
            lines.append(f"{path / 'images'}: {count} frames")
        fields = 0
        for tau in (*recording.ground_truth_times, 1.0) if _fits_truth(recording, path) else ():
            target = directory / "flow" if tau == 1 else tau_directory(directory / "flow_at", tau)
            for index in range(count - 1):
                ground_truth = recording.ground_truth_at(index, tau)
                if ground_truth is not None:
                    target.mkdir(parents=True, exist_ok=True)
                    write_flow(target / f"{index:06d}.npz", *ground_truth)
                    fields += 1
        if fields:
            lines.append(f"{path / 'flow'}: {fields} fields of ground truth")
    return lines


def _copy_to_mvsec(recording: Recording, path: Path) -> list[str]:
    if path.exists():
        raise ValueError(f"{path}: exists already")
    if not recording.has_frames or not recording.has_events:
        raise ValueError(f"{recording.path}: MVSEC holds events and frames, one of them is missing")
    if recording.exposures is not None:
        warnings.warn(f"{path}: MVSEC holds no exposures, they are left out", stacklevel=3)
    if recording.ground_truth_times:
        warnings.warn(
            f"{path}: MVSEC holds no ground truth at times in between, it is left out", stacklevel=3
        )
    count = len(recording.frame_times)
    has_truth = _fits_truth(recording, path) and any(
        recording.ground_truth(i) is not None for i in range(count - 1)
    )
    prefix = str(path).removesuffix(DATA_SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mvsec(
        prefix,
        iterate_events(recording),
        (_gray(recording, i) for i in range(count)),
        recording.frame_times,
        _maps(recording, path) if has_truth else None,
        recording.frame_times if has_truth else None,
    )
    ground_truth = [f"{prefix}_gt.hdf5: {count} maps of ground truth"] if has_truth else []
    return [f"{path}: events, {count} frames", *ground_truth]


def _fits_truth(recording: Recording, path: Path) -> bool:
    """Whether ground truth leads to the next frame; warns where it leads further, as DSEC's
    does."""
    step = recording.ground_truth_step
    if step == 1:
        return True
    further = "second next frame" if step == 2 else f"frame {step} further"
    if any(recording.ground_truth(first) is not None for first, _ in recording.frame_pairs):
        warnings.warn(
            f"{path}: the ground truth of {recording.path} leads to the {further}, which no "
            "other layout holds; it is left out",
            stacklevel=4,
        )
    return False


def _gray(recording: Recording, index: int) -> np.ndarray:
    frame = recording.frame(index)
    if frame.ndim == 3:
        if index == 0:
            warnings.warn("MVSEC holds gray frames: colour is left out", stacklevel=2)
    if frame.dtype == np.uint16 and index == 0:
        warnings.warn("MVSEC holds frames of 8 bits: the rest is left out", stacklevel=2)
    return as_8_bits(as_gray(frame))


def _maps(recording: Recording, path: Path) -> Iterator[np.ndarray]:
    """One map per frame; 0 where there is no ground truth, as after the last frame."""
    lost = 0
    for index in range(len(recording.frame_times)):
        ground_truth = recording.ground_truth(index)
        if ground_truth is None:
            yield np.zeros((2, recording.height, recording.width), np.float32)
            continue
        flow, valid = ground_truth
        lost += int((valid & (flow == 0).all(axis=0)).sum())
        yield np.where(valid, flow, np.float32(0))
    if lost:
        warnings.warn(
            f"{path}: ground truth of exactly (0, 0) at {lost} pixels: MVSEC marks unknown flow so",
            stacklevel=2,
        )
