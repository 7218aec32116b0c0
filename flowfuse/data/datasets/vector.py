"""VECtor (Gao et al., RA-L 2022): events of 640 x 480 px.

A sequence is a folder with SEQ.synced.left_event.hdf5, in the layout of DSEC: events/{x, y, t, p},
ms_to_idx, t_offset. The frames of its other camera need a calibration and their times, so they are
named one by one. There is no ground-truth flow.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.registry import open_event_file

SIZE = 480, 640  # height and width of the event cameras, px
_SUFFIX = ".synced.left_event.hdf5"


class VectorDataSet(DataSet):
    """Sequences of VECtor."""

    name = "VECtor"
    own_calibration = "name the event file and the frames: --events, --frames, --frame-times"

    def matches(self, path: Path) -> bool:
        return find_events(path) is not None

    def open(self, path: Path) -> FileRecording:
        events = find_events(path)
        if events is None:
            raise FileNotFoundError(f"{path}: no *{_SUFFIX} of VECtor there")
        frames = events.with_name(events.name.replace("_event.hdf5", "_camera"))
        if frames.is_dir():
            warnings.warn(
                f"{path}: the events alone are read. For the frames of the other camera, give "
                f"--events {events.name} --frames {frames.name} with their times in seconds "
                "(--frame-times) and --calibration",
                stacklevel=3,
            )
        return FileRecording(path, open_event_file(events), None, stated_size=("VECtor", SIZE))

    def sequences(self, path: Path) -> list[str]:
        return sorted({file.parent.name for file in path.glob(f"*/*{_SUFFIX}")})


DATASET = VectorDataSet()


def find_events(path: Path) -> Path | None:
    """The events of the left camera: the file itself, or that of a folder with one."""
    if path.name.endswith(_SUFFIX) and path.is_file():
        return path
    found = sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None
