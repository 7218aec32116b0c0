"""What every format gives: event files, frame sources, and what tells one format from another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowfuse.events import Events

EVENTS, FRAMES = "events", "frames"
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, y, t, p
_MOST_OFF = 0.01  # of the events: if more are off the sensor, its size is rather wrong


@dataclass(frozen=True)
class StatedTimes:
    """Times of frames that are in no file of their own.

    Attributes:
        times: [F] int64, microseconds, strictly increasing.
        source: what a message calls them.
    """

    times: np.ndarray
    source: str

    def __str__(self) -> str:
        return self.source


class Format:
    """A file format of events, of frames or of both.

    A module of ``flowfuse/data/formats`` has one as ``FORMAT``; another package names one as an
    entry point of the group ``flowfuse.formats``. Packages that only some readers need are imported
    when a file is opened, not with the module.

    Attributes:
        name: what messages call the format.
        suffixes: of its files, in lower case, with the dot. () where content alone tells.
        holds: "events", "frames" or both.
        rank: the order of formats in messages and in doubt; low ones come first. 100 unless stated.
        has_frame_times: whether the frames' times are in the file, so that none can be given.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    holds: tuple[str, ...] = (EVENTS,)
    rank: int = 100
    has_frame_times: bool = True

    def check(self) -> None:
        """Refuse a format that does not say what it is.

        Raises:
            TypeError, ValueError: naming the attribute.
        """
        if not isinstance(getattr(self, "name", None), str):
            raise TypeError("name must be a string")
        if not isinstance(self.suffixes, tuple) or not isinstance(self.holds, tuple):
            raise TypeError("suffixes and holds must be tuples")
        if any(s != s.lower() or not s.startswith(".") for s in self.suffixes):
            raise ValueError(f"suffixes must be like '.cam', in lower case, got {self.suffixes}")
        if not self.holds or not {EVENTS, FRAMES}.issuperset(self.holds):
            raise ValueError(f"holds must have 'events', 'frames' or both, got {self.holds}")

    def recognizes(self, path: Path) -> bool:
        """Whether content shows this format.

        Asked where several formats have the suffix of a file, where none has it, and of
        directories. It must not raise on files of other formats, nor import optional packages.
        """
        return False

    def contents(self, path: Path) -> tuple[bool, bool]:
        """Whether a file has events, and frames; those that hold both look into it.

        Raises:
            ModuleNotFoundError: the package that reads it is not installed; says which.
            ValueError: it is damaged.
        """
        return EVENTS in self.holds, FRAMES in self.holds

    def open_events(self, path: Path) -> EventFile:
        """Open the events of a file; asked only where ``holds`` has "events".

        Raises:
            ModuleNotFoundError: the package that reads it is not installed; says which.
            ValueError: naming the file, what was found and what was expected.
        """
        raise NotImplementedError(f"{self.name} holds no events")

    def open_columns(self, path: Path, columns: str) -> EventFile:
        """As :meth:`open_events`, of a table whose columns are stated.

        Args:
            path: exists.
            columns: see :func:`flowfuse.data.formats.column_order.parse_columns`.

        Raises:
            ModuleNotFoundError, ValueError: as of :meth:`open_events`; files of the format name
                their columns themselves.
        """
        raise ValueError(f"{path}: columns are stated, but files of {self.name} name their own")

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        """Open the frames of a file or directory; asked only where ``holds`` has "frames".

        Args:
            path: exists.
            times: a file of frame times, or times that are known, which
                :func:`flowfuse.data.formats.frames.read_frame_list` reads both; always None where
                ``has_frame_times``.

        Raises:
            FileNotFoundError, ModuleNotFoundError, ValueError: as of :meth:`open_events`.
        """
        raise NotImplementedError(f"{self.name} holds no frames")


def starts_with(path: Path, signature: bytes) -> bool:
    """Whether a path is a file that begins with these bytes; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(signature)) == signature
    except OSError:
        return False


class UnsortedError(ValueError):
    """Times of events go back."""


class EventFile(ABC):
    """A file of events sorted by time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def assumption(self) -> str | None:
        """What was assumed by a convention of the format, with its reason and how to state
        something else; None: nothing. Known once ``time_range`` was asked for. What rests on a
        guess is a warning instead.
        """
        return None

    @property
    @abstractmethod
    def time_range(self) -> tuple[int, int] | None:
        """Times of the first and of the last event, microseconds; None without events."""

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        """(height, width) that the file states, or None."""
        return None

    @abstractmethod
    def coordinate_extent(self) -> tuple[int, int]:
        """(height, width) of the smallest sensor that has all the events; reads all of x and y."""

    @abstractmethod
    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        """The events in [t0, t1), microseconds, checked against the sensor size."""

    def check_order(self) -> None:
        """Look whether times go back, where this is quickly told; continue an overflow.

        Other formats look when they index a file, or at each window.

        Raises:
            UnsortedError: they go back; says where, and why.
        """
        return None

    def stream(self) -> Iterator[Arrays]:
        """All events as they are stored, part by part: neither sorted nor checked.

        What is wrong with a file is found, and repaired, in them.

        Returns:
            x, y, t, p of each part: numbers [N], t int64 microseconds.

        Raises:
            NotImplementedError: this format cannot be read so.
        """
        raise NotImplementedError(f"{self.path}: events of this format cannot be repaired")

    def triggers(self) -> np.ndarray:
        """The edges at the camera's trigger inputs, in the order of the file.

        Returns:
            [N] of the fields t (int64, microseconds), p (1 rising, 0 falling), id (of the input).

        Raises:
            ValueError: files of this format hold none, or the file is damaged.
        """
        raise ValueError(f"{self.path}: files of this format hold no triggers of the camera")


class IndexedEventFile(EventFile):
    """A file that knows the index of a window's first event, to name the one at fault."""

    @abstractmethod
    def _read(self, t0: int, t1: int) -> tuple[int, tuple[Any, Any, Any, Any]]:
        """The index of the window's first event in the file, and its x, y, t, p."""

    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        first, columns = self._read(t0, t1)
        try:
            return Events(*columns, height=height, width=width)
        except ValueError as error:
            hint = off_sensor_hint(columns[0], columns[1], height, width)
            raise ValueError(
                f"{self.path}: {error} (indices count from event {first} of the file){hint}"
            ) from error


def off_sensor_hint(x: np.ndarray, y: np.ndarray, height: int, width: int) -> str:
    """What may be the matter with events of which some lie outside of the sensor; "" if none do.

    Args:
        x, y: [N].
        height, width: px, of the sensor.
    """
    off = ~((x > -1) & (y > -1) & (x < width) & (y < height))
    count = int(np.count_nonzero(off))
    if not count:
        return ""
    if x.max() < height and y.max() < width and min(x.min(), y.min()) >= 0:
        return (
            f"; {count} of {len(x)} events are off the sensor, but none is if x and y are swapped "
            "(rows in x, columns in y)"
        )
    if count > len(x) * _MOST_OFF:
        return f"; {count} of {len(x)} events are off the sensor: is its size right?"
    return f"; {count} of {len(x)} events read are off the sensor: --repair drops such"


class FrameSource(ABC):
    """Frames with their times.

    Attributes:
        times: [F] int64, microseconds, strictly increasing.
        exposures: [F, 2] int64, start and end in microseconds, or None where unknown.
        kept: [N] bool, of the N frames stored, where some are left out: which are these F frames.
    """

    times: np.ndarray
    exposures: np.ndarray | None = None
    kept: np.ndarray | None = None

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The files that the frames are read from."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Frame ``index``: uint8 or uint16 [H, W] or [H, W, 3] RGB; of 16 bits as stored."""

    def white(self, index: int) -> int | None:
        """The value of white in frame ``index``, of 16 bits, where the file states it."""
        return None

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error message calls frame ``index``."""
