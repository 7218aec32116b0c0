"""Opening recordings, of whatever data set and format.

Data sets are the modules and folders of ``flowfuse/data/datasets`` that have a ``DATASET``, and
what other packages name as entry points of the group ``flowfuse.datasets``. docs/extending/ shows
how to add one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.datasets.directory import DATASET as DIRECTORY
from flowfuse.data.datasets.directory import (
    NothingRecordedError,
    holds_recording,
    open_directory,
)
from flowfuse.data.reading import ReadingOptions, TimeOffset, parse_time_offset
from flowfuse.data.recording import Recording
from flowfuse.data.registry import Registry, event_suffixes, video_suffixes
from flowfuse.io.paths import as_path

_log = logging.getLogger(__name__)

DATASETS: Registry[DataSet] = Registry(
    DataSet,  # type: ignore[type-abstract]  # asked for by isinstance alone
    "flowfuse.data.datasets",
    "DATASET",
    "flowfuse.datasets",
)


def open_recording(  # noqa: PLR0913 - all that a user may know of a recording
    path: str | os.PathLike | None = None,
    *,
    events: str | os.PathLike | None = None,
    frames: str | os.PathLike | None = None,
    times: str | os.PathLike | None = None,
    calibration: str | os.PathLike | None = None,
    columns: str | None = None,
    bit_depth: int | None = None,
    repair: bool = False,
    part: int | None = None,
    time_offset: TimeOffset | str | None = None,
    depth: str | float | None = None,
) -> Recording:
    """Open a recording of any camera or data set.

    Args:
        path: a directory (see :mod:`flowfuse.data.datasets.directory`), an event file, a video or a
            ROS bag; ROOT/SEQ of DSEC in any layout (see :mod:`flowfuse.data.datasets.dsec.files`);
            ``<seq>_data.hdf5`` of MVSEC; a recording of an added data set; or None.
        events: an event file, used in place of the directory's.
        frames: a directory of images, a video, or a file of "t path" lines, likewise.
        times: a file of frame times in seconds, likewise; or those at the trigger inputs of the
            event camera, ``"triggers[:rising|falling][:INPUT]"``.
        calibration: a file of :mod:`flowfuse.data.calibration`: events are undistorted, and frames
            brought into their view.
        columns: of a table of events, such as "x,y,t_us,p" for t in microseconds; None: as the
            file shows them.
        bit_depth: of a camera whose frames are stored in 16 bits; None: stated by the file, or
            found by the largest value of all, with a warning.
        repair: drop, and count in a warning, events out of order or off the sensor, and frames out
            of order.
        part: the one to read, from 1 on, of a file of events whose clock was reset.
        time_offset: added to the times of the frames, such as "-24.5ms" or "3ms,12ppm".
        depth: of the scene, with a calibration of two cameras: metres, "plane:NX,NY,NZ,D", or the
            path of depth maps; see :mod:`flowfuse.data.depth`.

    Returns:
        Recording. No event is loaded by opening it; text files are read once when first needed.

    Raises:
        FileNotFoundError: if a file is missing.
        ModuleNotFoundError: the package that reads a format is not installed; says which.
        ValueError: naming the file, what was found and what was expected.
    """
    if path is None and events is None and frames is None:
        raise ValueError("open_recording: nothing to open, expected a path, events or frames")
    given = {"path": path, "events": events, "frames": frames, "times": times}
    for name, value in {**given, "calibration": calibration}.items():
        if value is not None:
            as_path(f"open_recording: {name}", value)
    if isinstance(time_offset, str):
        time_offset = parse_time_offset(time_offset)
    stated_depth = None if depth is None else str(depth)
    options = ReadingOptions(bit_depth, bool(repair), part, time_offset, stated_depth, columns)
    path = None if path is None else Path(path)
    if path is not None and events is None and frames is None:
        dataset = _find_dataset(path)
        if dataset is not None:
            if calibration is not None:
                raise ValueError(
                    f"{calibration}: no calibration file is taken here: {dataset.own_calibration}"
                )
            if options.stated():
                raise ValueError(
                    f"{path}: {', '.join(options.stated())} cannot be given for a recording of "
                    f"{dataset.name}; name the files it is for (events, frames)"
                )
            _log.info("%s: read as %s", path, dataset.name)
            return dataset.open(path)
    try:
        return open_directory(
            path,
            events=events,
            frames=frames,
            times=times,
            calibration=calibration,
            options=options,
        )
    except NothingRecordedError:
        if path is not None and path.is_dir():
            _refuse_root(path)
        raise


def find_recordings(path: str | os.PathLike) -> list[Path]:
    """Find the recordings of a folder.

    Args:
        path: a recording, or a folder that holds some: ROOT of a data set, or any folder, in which
            directories and files that are recordings are taken, and others passed over.

    Returns:
        The recordings in the order of their names; the path itself where it is one.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: nothing in it is a recording; or a directory in it is a broken one.
    """
    path = Path(path)
    if not path.is_dir() or _is_recording(path):
        return [path]  # what is wrong with it is told when it is opened
    for dataset in DATASETS:
        names = DATASETS.ask(dataset, dataset.sequences, path)
        if names:
            return [path / name for name in names]
    children = [child for child in path.iterdir() if not child.name.startswith(".")]
    found = sorted(child for child in children if _is_recording(child))
    if not found:
        raise ValueError(
            f"{path}: neither a recording nor a folder of recordings; expected events "
            f"({', '.join('events' + s for s in event_suffixes())}) or frames (images.txt, "
            "images/, a video) in it or in the folders in it"
        )
    return found


def _is_recording(path: Path) -> bool:
    """Whether a path is a recording; a broken one is."""
    if _find_dataset(path) is not None:
        return True
    if path.is_file():
        suffix = path.suffix.lower()
        known = {*event_suffixes(), *video_suffixes()} - {".txt", ".csv", ".npz", ".h5", ".hdf5"}
        return suffix in known  # the others hold many other things
    return holds_recording(path)


def _find_dataset(path: Path) -> DataSet | None:
    """The data set that a path is a recording of; None for a plain one."""
    for dataset in DATASETS:
        if dataset is not DIRECTORY and DATASETS.ask(dataset, dataset.matches, path):
            return dataset
    return None


def _refuse_root(path: Path) -> None:
    """Name the recordings of a directory that holds some, but is none itself."""
    for dataset in DATASETS:
        names = DATASETS.ask(dataset, dataset.sequences, path)
        if names:
            raise ValueError(
                f"{path}: holds sequences of {dataset.name}; name one, such as "
                f"{path / names[0]} ({', '.join(names)})"
            ) from None
