"""Training samples of the sequences of DSEC with ground truth."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from flowfuse.data.datasets.base import DataSet, Split
from flowfuse.data.datasets.dsec.files import DsecFiles, find_sequence, list_sequences
from flowfuse.data.datasets.dsec.sequence import DsecSequence, open_sequence
from flowfuse.data.samples import Sample, labelled_sample
from flowfuse.inputs import InputSpec, input_interval

# The training sequences that have ground truth.
FLOW_SEQUENCES = (
    "thun_00_a",
    "zurich_city_01_a",
    "zurich_city_02_a",
    "zurich_city_02_c",
    "zurich_city_02_d",
    "zurich_city_02_e",
    "zurich_city_03_a",
    "zurich_city_05_a",
    "zurich_city_05_b",
    "zurich_city_06_a",
    "zurich_city_07_a",
    "zurich_city_08_a",
    "zurich_city_09_a",
    "zurich_city_10_a",
    "zurich_city_10_b",
    "zurich_city_11_a",
    "zurich_city_11_b",
    "zurich_city_11_c",
)
# Held out of trainings by this project; DSEC itself has no validation set. All letters of a number
# together: by their names they are parts of one drive.
VALIDATION_SEQUENCES = (
    "zurich_city_01_a",
    "zurich_city_05_a",
    "zurich_city_05_b",
    "zurich_city_09_a",
)


class DsecDataset(Dataset):
    """Training samples (:func:`labelled_sample`) of the sequences with ground truth below a root.

    Args:
        root: of the data set, in any layout.
        split: "validation": those of VALIDATION_SEQUENCES; "train": all others; "all".
        slices, bins: see :class:`flowfuse.inputs.InputSpec`.

    Attributes:
        sequences: the sequences.
        items: (sequence, first frame, last frame) of each sample.

    Raises:
        FileNotFoundError: there is no such sequence with flow, or a file of one is missing.
        ValueError: naming what is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: Literal["train", "validation", "all"],
        slices: int,
        bins: int,
    ) -> None:
        if split not in ("train", "validation", "all"):
            raise ValueError(f"DsecDataset: split must be train, validation or all, got {split!r}")
        self.slices, self.bins = slices, bins
        found = [DsecFiles(Path(root), name) for name in list_sequences(root)]
        files = [f for f in found if f.find("flow") is not None]
        if split != "all":
            held_out = split == "validation"
            files = [f for f in files if (f.name in VALIDATION_SEQUENCES) == held_out]
        if not files:
            names = ", ".join(f.name for f in found) or "none"
            raise FileNotFoundError(
                f"{root}: no sequence with ground truth for {split!r}; sequences there: {names}"
            )
        self.sequences = [DsecSequence(f) for f in files]
        self.items: list[tuple[int, int, int]] = []
        for number, sequence in enumerate(self.sequences):
            pairs = [pair for pair in sequence.frame_pairs if self._has_events(sequence, *pair)]
            if len(pairs) < len(sequence.frame_pairs):
                warnings.warn(
                    f"{sequence.path}: {len(sequence.frame_pairs) - len(pairs)} of "
                    f"{len(sequence.frame_pairs)} flow maps are left out: they reach beyond the "
                    f"events, which go from {sequence.event_range} us",
                    stacklevel=2,
                )
            self.items += [(number, *pair) for pair in pairs]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, px."""
        return self.sequences[0].height, self.sequences[0].width

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"DsecDataset: index {index} of {len(self)} items")
        number, first, last = self.items[index]
        sequence = self.sequences[number]
        ground_truth = sequence.ground_truth(first)
        assert ground_truth is not None, "frame_pairs are those with true flow"
        return labelled_sample(
            sequence, first, last, ground_truth, InputSpec(self.slices, self.bins)
        )

    def _has_events(self, sequence: DsecSequence, first: int, last: int) -> bool:
        t0, t1 = (int(sequence.frame_times[i]) for i in (first, last))
        return sequence.covers(*input_interval(t0, t1, self.slices, None, None))


class DsecDataSet(DataSet):
    """The sequences of DSEC, in any layout."""

    name = "DSEC"
    rank = 10
    own_calibration = "DSEC has one of its own"
    training_data = "dsec:ROOT"

    def matches(self, path: Path) -> bool:
        return find_sequence(path) is not None

    def open(self, path: Path) -> DsecSequence:
        return open_sequence(path)

    def sequences(self, path: Path) -> list[str]:
        return list_sequences(path) if path.is_dir() else []

    def training_samples(self, path: Path, split: Split, spec: InputSpec) -> DsecDataset:
        return DsecDataset(path, split, spec.slices, spec.bins)


DATASET = DsecDataSet()
