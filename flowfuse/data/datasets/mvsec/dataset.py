"""Frame pairs of MVSEC as training samples."""

from __future__ import annotations

from torch.utils.data import Dataset

from flowfuse.data.datasets.mvsec.recording import MvsecRecording
from flowfuse.data.samples import Sample, labelled_sample
from flowfuse.inputs import InputSpec


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
