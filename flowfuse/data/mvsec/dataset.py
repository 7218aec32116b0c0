"""Frame pairs of MVSEC as training samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowfuse.data.mvsec.recording import MvsecRecording
from flowfuse.data.pairs import pair_inputs


class MvsecDataset(Dataset):
    """Training samples of one sequence; every item is a function of its index.

    Args:
        recording: with true flow (:func:`flowfuse.data.mvsec.recording.open_mvsec`).
        slices: K >= 2.
        bins: temporal bins per slice.
        step: a pair is a frame and the one so many frames later ("dt").
        frames: half-open range of frames to take pairs from; None = all.

    Raises:
        ValueError: the recording has no true flow, or no pair in the range is covered by it.
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
            raise ValueError(f"{recording.path}: no true flow beside it (_gt.hdf5)")
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
                f"{recording.path}: no pair of frames [{first}, {last}) has true flow, which goes "
                f"from {begin} to {end} us"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Make sample ``index``.

        Returns:
            What :func:`flowfuse.data.generation.dataset.scene_sample` returns, where

            exposure: [2] zeros, unknown.
            present: [3], what there is: at the begin of a recording there is no history.
            tau: [1]: 1, the only time with truth.
            flow: [1, 2, H, W]; 0 where not valid.
            valid: [1, H, W].
            occluded: [1, H, W]: True where there is no truth: what is hidden is not known here, and
                nothing is to be matched where the displacement is not known.
            boundary: [2, H, W] NaN, unknown: a loss has to leave it out.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"MvsecDataset: index {index} of {len(self)} items")
        recording, first = self.recording, self.starts[index]
        second = first + self.step
        t0, t1 = (int(recording.frame_times[i]) for i in (first, second))
        flow, valid = (torch.from_numpy(part) for part in recording.maps.between(t0, t1))
        return {
            **pair_inputs(recording, first, second, slices=self.slices, bins=self.bins),
            "tau": torch.ones(1),
            "flow": flow[None],
            "valid": valid[None],
            "occluded": ~valid[None],
            "boundary": torch.full((2, recording.height, recording.width), torch.nan),
        }
