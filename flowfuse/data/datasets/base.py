"""What tells one data set from another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from flowfuse.data.recording import Recording


class DataSet(ABC):
    """A layout of files that :func:`flowfuse.open_recording` knows.

    A module or folder of ``flowfuse/data/datasets`` has one as ``DATASET``; another package names
    one as an entry point of the group ``flowfuse.datasets``.

    Attributes:
        name: what messages call it.
        rank: the order in which data sets are asked; low ones come first. 100 unless stated.
        own_calibration: why no calibration file can be given.
    """

    name: str
    rank: int = 100
    own_calibration: str = "the data set has one of its own"

    def check(self) -> None:
        """Refuse a data set that does not say what it is.

        Raises:
            TypeError: naming the attribute.
        """
        if not isinstance(getattr(self, "name", None), str):
            raise TypeError("name must be a string")

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether a path is a recording of this data set; it need not exist. Must not raise."""

    @abstractmethod
    def open(self, path: Path) -> Recording:
        """Open a recording that :meth:`matches`; no event is loaded.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: naming the file, what was found and what was expected.
        """

    def sequences(self, path: Path) -> list[str]:
        """The names of the recordings in a directory that is none itself, sorted."""
        return []
