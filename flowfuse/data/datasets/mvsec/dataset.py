"""Frame pairs of MVSEC as training samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import ConcatDataset, Dataset, Subset

from flowfuse.data.datasets.base import DataSet, Split
from flowfuse.data.datasets.mvsec.recording import (
    DATA_SUFFIX,
    MvsecRecording,
    is_mvsec,
    open_mvsec,
)
from flowfuse.data.samples import Sample, labelled_sample
from flowfuse.inputs import InputSpec

HELD_OUT = 0.1  # of every sequence's pairs, at its end: MVSEC has no split of its own


class MvsecDataset(Dataset):
    """Training samples (:func:`labelled_sample`) of one sequence with ground truth.

    Args:
        recording: with ground truth (:func:`flowfuse.data.datasets.mvsec.recording.open_mvsec`).
        slices: K >= 2.
        bins: temporal bins per slice.
        step: a pair is a frame and the one so many frames later ("dt").
        frames: half-open range of frames to take pairs from; None = all.

    Raises:
        ValueError: the recording has no ground truth, or no pair in the range is covered by it.
    """

    def __init__(
        self,
        recording: MvsecRecording,
        *,
        slices: int,
        bins: int,
        step: int = 1,
        frames: tuple[int, int] | None = None,
    ) -> None:
        for name, value, least in (("slices", slices, 2), ("bins", bins, 1), ("step", step, 1)):
            if value < least:
                raise ValueError(f"MvsecDataset: {name} must be at least {least}, got {value}")
        if recording.maps is None:
            raise ValueError(f"{recording.path}: no ground truth beside it (_gt.hdf5)")
        self.recording, self.slices, self.bins, self.step = recording, slices, bins, step
        times, (first, last) = recording.frame_times, frames or (0, len(recording.frame_times))
        begin, end = recording.maps.times[[0, -1]]
        self.starts = [
            i
            for i in range(max(first, 0), min(last, len(times)) - step)
            if begin <= times[i] and times[i + step] <= end
        ]
        if not self.starts:
            raise ValueError(
                f"{recording.path}: no pair of frames [{first}, {last}) has ground truth, which "
                f"goes from {begin} to {end} us"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"MvsecDataset: index {index} of {len(self)} items")
        recording, first = self.recording, self.starts[index]
        second = first + self.step
        t0, t1 = (int(recording.frame_times[i]) for i in (first, second))
        assert recording.maps is not None
        ground_truth = recording.maps.between(t0, t1)
        assert ground_truth is not None, "the maps cover every pair of starts"
        return labelled_sample(
            recording, first, second, ground_truth, InputSpec(self.slices, self.bins)
        )


class MvsecSplit(ConcatDataset[Sample]):
    """The samples of one split of several sequences.

    Attributes:
        size: height and width of the frames, px.
    """

    def __init__(self, parts: Sequence[Subset[Sample]]) -> None:
        super().__init__(parts)
        pairs = parts[0].dataset
        assert isinstance(pairs, MvsecDataset)
        self.size = pairs.recording.height, pairs.recording.width


def split_sequences(path: Path, split: Split, spec: InputSpec) -> list[Subset[Sample]]:
    """Open the sequences of MVSEC at a path, from one frame to the next.

    Args:
        path: ``<seq>_data.hdf5``, or a directory of such files, with the ground truth beside them.
        split: "validation": the last tenth of every sequence's pairs with ground truth; "train":
            the pairs before, but for one that shares a frame with those.
        spec: of the samples.

    Raises:
        FileNotFoundError: there is none.
        ValueError: as of :class:`MvsecDataset`; or a sequence is too short to be divided.
    """
    files: Sequence[Path] = [path] if path.is_file() else sorted(path.glob(f"*{DATA_SUFFIX}"))
    if not files:
        raise FileNotFoundError(f"{path}: no *{DATA_SUFFIX} of MVSEC there")
    parts = []
    for file in files:
        pairs = MvsecDataset(open_mvsec(file), slices=spec.slices, bins=spec.bins)
        count = len(pairs)
        if count < 3:
            raise ValueError(
                f"{file}: {count} pair(s) of frames with ground truth; 3 are needed, of which the "
                "last is held out"
            )
        first = count - max(1, round(HELD_OUT * count))
        chosen = range(first, count) if split == "validation" else range(first - 1)
        parts.append(Subset(pairs, chosen))
    return parts


class MvsecDataSet(DataSet):
    """The sequences of MVSEC, raw; :func:`open_mvsec` undistorts them."""

    name = "MVSEC"
    rank = 20
    training_data = "mvsec:PATH"
    own_calibration = "MVSEC has tables of its own: open_mvsec(..., undistort=...)"

    def matches(self, path: Path) -> bool:
        return is_mvsec(path)

    def open(self, path: Path) -> MvsecRecording:
        return open_mvsec(path)

    def training_samples(self, path: Path, split: Split, spec: InputSpec) -> MvsecSplit:
        return MvsecSplit(split_sequences(path, split, spec))


DATASET = MvsecDataSet()
