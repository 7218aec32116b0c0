"""The formats that are known, and the one that a file has.

Formats are the modules of ``flowfuse/data/formats`` that have a ``FORMAT``, and what other packages
name as entry points of the group ``flowfuse.formats``. docs/extending/ shows how to add one.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from flowfuse.data.formats.base import EVENTS, FRAMES, EventFile, Format, FrameSource, StatedTimes
from flowfuse.data.formats.wrapped_frames import DeepFrames, frames_in_order


class Offered(Protocol):
    """What Format and DataSet have in common."""

    rank: int

    def check(self) -> None:
        """Refuse one that does not say what it is: TypeError, ValueError."""


Item = TypeVar("Item", bound=Offered)
Answer = TypeVar("Answer")


class Registry(Generic[Item]):
    """What the modules of a package and the entry points of a group offer, by rank.

    It is collected when first asked for. An entry point of another package that fails, then or
    later, is left out with one warning that names it.

    Args:
        kind: the class of what is offered: Format or DataSet.
        package: of this project; its modules offer something as ``attribute``, or nothing.
        attribute: such as "FORMAT".
        group: of entry points, each naming an instance of ``kind``.
    """

    def __init__(self, kind: type[Item], package: str, attribute: str, group: str) -> None:
        self.kind, self.package, self.attribute, self.group = kind, package, attribute, group
        self._items: list[Item] | None = None
        self._sources: dict[int, EntryPoint] = {}  # by id, of those from other packages

    def __iter__(self) -> Iterator[Item]:
        if self._items is None:
            found = [*self._own(), *self._foreign()]
            self._items = sorted(found, key=lambda item: item.rank)
        return iter(list(self._items))

    def forget(self) -> None:
        """Collect anew when next asked, as after a package was installed meanwhile."""
        self._items, self._sources = None, {}

    def ask(self, item: Item, question: Callable[..., Answer], *arguments: Any) -> Answer | None:
        """Ask one of the items, such as whether it recognizes a file.

        Returns:
            The answer; None if an item of another package fails, which is then left out.
        """
        if id(item) not in self._sources:
            return question(*arguments)
        try:
            return question(*arguments)
        except Exception as error:  # whatever it is, other files must stay readable
            self._warn(self._sources.pop(id(item)), error)
            self._items = [other for other in self if other is not item]
            return None

    def _own(self) -> Iterator[Item]:
        package = importlib.import_module(self.package)
        for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
            module = importlib.import_module(f"{self.package}.{name}")
            if hasattr(module, self.attribute):
                yield getattr(module, self.attribute)

    def _foreign(self) -> Iterator[Item]:
        for point in entry_points(group=self.group):
            try:
                item = point.load()
                if not isinstance(item, self.kind):
                    raise TypeError(f"a {self.kind.__name__} expected, found {item!r}")
                item.check()
            except Exception as error:  # whatever it is, other files must stay readable
                self._warn(point, error)
                continue
            self._sources[id(item)] = point
            yield item

    def _warn(self, point: EntryPoint, error: Exception) -> None:
        owner = f" of {point.dist.name}" if point.dist is not None else ""
        warnings.warn(
            f"{self.group}: {point.name} ({point.value}){owner} is left out, it fails with "
            f"{type(error).__name__}: {error}",
            stacklevel=4,
        )


FORMATS: Registry[Format] = Registry(Format, "flowfuse.data.formats", "FORMAT", "flowfuse.formats")


def event_suffixes() -> tuple[str, ...]:
    """The suffixes of event files, with the dot, those of this package first."""
    found = (suffix for item in FORMATS if EVENTS in item.holds for suffix in item.suffixes)
    return tuple(dict.fromkeys(found))


def video_suffixes() -> tuple[str, ...]:
    """The suffixes of files that hold frames and no events, such as .mp4."""
    return tuple(suffix for item in FORMATS if EVENTS not in item.holds for suffix in item.suffixes)


def find_format(path: Path, holds: str) -> Format | None:
    """Find the format of a file, or of a directory such as a ROS 2 bag.

    By the suffix of a file; where several formats have it, or none has, by content.

    Args:
        path: need not exist.
        holds: "events" or "frames", what the format must hold.

    Returns:
        The format; None if it is unknown.
    """
    candidates = [item for item in FORMATS if holds in item.holds]
    suffix = "" if path.is_dir() else path.suffix.lower()
    named = [item for item in candidates if suffix in item.suffixes]
    if len(named) == 1:
        return named[0]
    asked = named or candidates
    found = (item for item in asked if FORMATS.ask(item, item.recognizes, path))
    return next(found, named[0] if named else None)


def open_event_file(
    path: str | os.PathLike, columns: str | None = None, *, check: bool = True
) -> EventFile:
    """Open an event file; the modules of ``flowfuse/data/formats`` say what each kind must hold.

    Args:
        path: a file, or a directory such as a ROS 2 bag.
        columns: of a table, such as "x,y,t_us,p"; None: as the file shows them.
        check: whether to refuse times that go back, see :meth:`EventFile.check_order`.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: the package that reads the format is not installed; says which.
        ValueError: naming the file, what was found and what was expected.
    """
    path = Path(path)
    check_event_path(path)
    found = find_format(path, EVENTS)
    if found is None:
        raise ValueError(
            f"{path}: unknown event format {path.suffix.lower()!r}, expected one of "
            f"{', '.join(event_suffixes())}"
        )
    file = found.open_events(path) if columns is None else found.open_columns(path, columns)
    if check:
        file.check_order()
    return file


def check_event_path(path: Path) -> None:
    """Refuse a path at which no event file can be.

    Raises:
        FileNotFoundError: there is nothing, or a link that leads nowhere.
        ValueError: there is a directory that is no bag.
    """
    if path.is_dir():
        if find_format(path, EVENTS) is None:
            raise ValueError(f"{path}: is a directory, expected an event file")
    elif path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path}: is a link that leads nowhere, expected an event file")
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such event file")


def open_frames(
    source: str | os.PathLike,
    times: str | os.PathLike | StatedTimes | None = None,
    *,
    bit_depth: int | None = None,
    repair: bool = False,
) -> FrameSource:
    """Open frames: uint8, or uint16 whose white is 65535, whatever depth the camera has.

    Args:
        source: a directory of images, sorted by the numbers in their names; a video; a text file
            with lines ``t path`` (t in seconds, paths relative to the file); or an .aedat4 file or
            a ROS bag, which have their own times.
        times: a text file with the times in seconds: one column, or lines ``t path`` that then name
            the images inside the directory ``source`` or beside the file. Or known times. None for
            a video: the container's; for a directory: ``timestamps.txt`` or ``times.txt`` in it;
            for a text file: its own, which are replaced by those given.
        bit_depth: of frames stored in 16 bits; None: stated by the file, or found by the largest
            value of all, with a warning.
        repair: leave out, with a warning, frames whose times do not increase.

    Raises:
        FileNotFoundError: if a file is missing.
        ModuleNotFoundError: the package that reads the format is not installed; says which.
        ValueError: naming the file, what was found and what was expected.
    """
    source = Path(source)
    if times is not None and not isinstance(times, StatedTimes):
        times = Path(times)
        if not times.is_file():
            raise FileNotFoundError(f"{times}: no such file of frame times")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such directory of images, nor video")
    found = find_format(source, FRAMES)
    if found is None:
        raise ValueError(
            f"{source}: unknown kind of frames, expected a directory of images, a video "
            f"({', '.join(video_suffixes())}) or a text file of 't path'"
        )
    if times is not None and found.has_frame_times:
        raise ValueError(f"{times}: frame times were given, but {source} has its own")
    opened = found.open_frames(source, times)
    return DeepFrames(frames_in_order(opened, repair), bit_depth)
