"""What tells one data set from another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from flowfuse.data.recording import Recording
from flowfuse.data.samples import Sample
from flowfuse.inputs import InputSpec

Split = Literal["train", "validation"]


class SampleSet(Protocol):
    """Training samples of a data set, all of one size: a ``torch`` data set with a size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, px."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class DataSet(ABC):
    """A layout of files that :func:`flowfuse.open_recording` knows.

    A module or folder of ``flowfuse/data/datasets`` has one as ``DATASET``; another package names
    one as an entry point of the group ``flowfuse.datasets``.

    Attributes:
        name: what messages call it.
        rank: the order in which data sets are asked; low ones come first. 100 unless stated.
        own_calibration: why no calibration file can be given.
        training_data: how ``flowfuse-train --data`` names it, such as "dsec:ROOT"; "" = it has no
            training samples.
    """

    name: str
    rank: int = 100
    own_calibration: str = "the data set has one of its own"
    training_data: str = ""

    def check(self) -> None:
        """Refuse a data set that does not say what it is.

        Raises:
            TypeError: naming the attribute.
            ValueError: ``training_data`` is no kind and a place.
        """
        if not isinstance(getattr(self, "name", None), str):
            raise TypeError("name must be a string")
        kind, _, place = self.training_data.partition(":")
        if self.training_data and not (kind.isidentifier() and place):
            raise ValueError(
                "training_data must be a name, a colon and what follows, such as dsec:ROOT, "
                f"got {self.training_data!r}"
            )

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

    def find_below(self, path: Path, groups: Sequence[str]) -> list[str]:
        """The recordings in a directory and in its folders of these names; see :meth:`sequences`.

        Args:
            path: the directory.
            groups: names of folders, such as splits; they need not be there.
        """
        places = [path, *(path / group for group in groups)]
        return sorted(
            str(found.relative_to(path))
            for place in places
            if place.is_dir()
            for found in place.iterdir()
            if self.matches(found)
        )

    def training_samples(self, path: Path, split: Split, spec: InputSpec) -> SampleSet:
        """Open the training samples; asked for only where there is a ``training_data``.

        Args:
            path: what follows the colon of ``--data``.
            split: "train", or "validation": what no training sees.
            spec: how the events of a sample are sliced.

        Returns:
            Samples with ground truth (:func:`flowfuse.data.samples.labelled_sample`).

        Raises:
            FileNotFoundError: there are none.
            ValueError: naming what is wrong.
        """
        raise NotImplementedError(f"{self.name} has no training samples")
