"""Files that hold events and frames together: AEDAT 4 and ROS bags.

Their readers need packages that are optional, and are imported when such a file is opened.
"""

from __future__ import annotations

from pathlib import Path

from flowfuse.data.formats.events import EventFile
from flowfuse.data.formats.frames import FrameSource


def is_container(path: Path) -> bool:
    """Whether a path is an .aedat4 file, a .bag file or the directory of a ROS 2 bag."""
    return path.suffix.lower() in (".aedat4", ".bag") or is_ros2_bag(path)


def is_ros2_bag(path: Path) -> bool:
    """Whether a directory is a bag of ROS 2."""
    meta = path / "metadata.yaml"
    return meta.is_file() and "rosbag2_bagfile_information" in meta.read_text(errors="replace")


def find_contents(path: Path) -> tuple[bool, bool]:
    """Whether a container has events, and frames.

    Raises:
        ModuleNotFoundError: the package that reads it is not installed; says which.
        ValueError: it is damaged.
    """
    if path.suffix.lower() == ".aedat4":
        from flowfuse.data.formats import aedat4 as reader
    else:
        from flowfuse.data.formats import ros_bag as reader
    return reader.find_contents(path)


def open_contained_events(path: Path) -> EventFile:
    """Open the events of a container; errors as of :func:`find_contents`."""
    if path.suffix.lower() == ".aedat4":
        from flowfuse.data.formats.aedat4 import Aedat4Events

        return Aedat4Events(path)
    from flowfuse.data.formats.ros_bag import BagEvents

    return BagEvents(path)


def open_contained_frames(path: Path) -> FrameSource:
    """Open the frames of a container; errors as of :func:`find_contents`."""
    if path.suffix.lower() == ".aedat4":
        from flowfuse.data.formats.aedat4 import Aedat4Frames

        return Aedat4Frames(path)
    from flowfuse.data.formats.ros_bag import BagFrames

    return BagFrames(path)
