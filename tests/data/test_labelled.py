"""Own recordings with ground truth as training samples: what is held out, sizes, times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowfuse.data import labelled
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.labelled import Item, LabelledRecordings, divide, label
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.samples import Sample
from flowfuse.events import Events
from flowfuse.inputs import InputSpec, Modality
from flowfuse.io.flow import write_flow

SPEC = InputSpec(2, 2)
STEP = 20_000


def write(path, *, frames=7, size=(24, 32), flow=True, between=True):
    """Frames 20 ms apart; the flow from frame i is (i + 1, 0) px, half of it at tau = 0.5."""
    height, width = size
    rng = np.random.default_rng(0)
    times = STEP * np.arange(1, frames + 1)
    t = np.sort(rng.integers(0, STEP * (frames + 1), 3000))
    x, y = rng.integers(0, width, 3000), rng.integers(0, height, 3000)
    events = Events(x, y, t, rng.integers(0, 2, 3000), height=height, width=width)
    images = rng.integers(0, 256, (frames, height, width), dtype=np.uint8)
    write_recording(path, events, images, times)
    valid = np.ones(size, bool)
    valid[0] = False
    for i in range(frames - 1 if flow else 0):
        motion = np.zeros((2, *size), np.float32)
        motion[0] = i + 1
        for folder, share in (("flow", 1.0), ("flow_at/0.5", 0.5)):
            if share < 1 and not between:
                continue
            (path / folder).mkdir(parents=True, exist_ok=True)
            write_flow(path / folder / f"{i:06d}.flo", share * motion, valid)
    return path


def test_the_last_pairs_are_held_out_and_share_nothing(tmp_path):
    path = write(tmp_path / "a")
    learned, measured = (
        LabelledRecordings([path], split, 0.3, "time", SPEC) for split in ("train", "validation")
    )
    # Six pairs, the last two held out; pair 3 ends in the frame that pair 4 begins with.
    assert [item.gt_index for item in measured.items] == [4, 5]
    assert [item.gt_index for item in learned.items] == [0, 1, 2]
    sample = measured[1]
    assert sample.tau.tolist() == [0.5, 1.0] and sample.flow.shape == (2, 2, 24, 32)
    assert sample.flow[:, 0, 5, 5].tolist() == [3, 6] and not sample.flow[:, :, 0].any()
    assert not sample.valid[:, 0].any() and sample.valid[:, 1:].all()
    assert sample.occluded[1, 5].tolist() == [x + 6 > 31 for x in range(32)]
    assert sample.modality_mask.tolist() == [1, 1, 1, 1] and sample.boundary.isnan().all()
    with pytest.raises(IndexError):
        measured[2]


def test_recordings_are_held_out_by_name(tmp_path):
    """A folder of recordings stands for all of them; sizes and times may differ."""
    for name, size in (("a", (24, 32)), ("b", (40, 48)), ("c", (24, 48))):
        write(tmp_path / name, size=size, frames=4, between=name != "b")
    learned = LabelledRecordings([tmp_path], "train", 0.2, "recording", SPEC)
    measured = LabelledRecordings([tmp_path], "validation", 0.2, "recording", SPEC)
    assert [path.name for path in learned.paths] == ["a", "b"] and learned.size == (24, 32)
    assert [path.name for path in measured.paths] == ["c"] and len(measured) == 3
    assert [learned[i].tau.tolist() for i in (0, 3)] == [[1.0], [1.0]]  # what all of them have
    both = LabelledRecordings([tmp_path / "b", tmp_path / "a"], "validation", 0.2, "time", SPEC)
    batch = Sample.collate([both[0], both[1]])
    assert batch.flow.shape == (2, 1, 2, 24, 32)


def test_few_recordings_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "MOST_OPEN", 1)
    paths = [write(tmp_path / name, frames=4) for name in "ab"]
    samples = LabelledRecordings(paths, "train", 0.3, "time", SPEC)
    first = samples.recording(0)
    assert samples.recording(0) is first and samples.recording(1) is samples.recording(1)
    assert samples.recording(0) is not first and len(samples._open) == 1
    assert torch.equal(samples[0].flow, samples[len(samples) - 1].flow)


def test_what_cannot_be_divided(tmp_path):
    path = write(tmp_path / "a", frames=3)
    with pytest.raises(ValueError, match=r"2 pair.s. with ground truth, of which 1 are held out"):
        LabelledRecordings([path], "train", 0.5, "time", SPEC)
    with pytest.raises(ValueError, match=r"1 recording.s., of which 1 would be held out"):
        LabelledRecordings([path], "train", 0.5, "recording", SPEC)
    bare = write(tmp_path / "b", flow=False)
    with pytest.raises(ValueError, match=f"{bare}: no ground truth in this recording"):
        LabelledRecordings([bare], "train", 0.5, "time", SPEC)
    with pytest.raises(FileNotFoundError, match="none: no such recording"):
        LabelledRecordings([tmp_path / "none"], "train", 0.5, "time", SPEC)


def test_intervals_without_frames(tmp_path):
    class Intervals(FileRecording):
        def __init__(self, source):
            super().__init__(None, source._event_file, None, stated_size=("test", (24, 32)))
            self.ground_truth_intervals = np.array([[STEP, 2 * STEP], [3 * STEP, 4 * STEP]])

        def ground_truth_at(self, index, tau):
            return np.full((2, 24, 32), index + tau, np.float32), np.ones((24, 32), bool)

    recording = Intervals(open_recording(write(tmp_path / "a")))
    sample = label(recording, Item(0, 1, 3 * STEP, 4 * STEP, None), (1.0,), SPEC)
    assert sample.modality_mask[Modality.FRAMES] == 0 and sample.modality_mask[Modality.EVENTS] == 1
    assert torch.equal(sample.flow, torch.full((1, 2, 24, 32), 2.0))
    assert not sample.frame0.any() and sample.slices.abs().sum() > 0


def test_overlapping_pairs_are_not_learned_from(tmp_path):
    items = [Item(0, i, 10 * i, 10 * i + 35, None) for i in range(10)]
    learned, measured = (divide(items, 0.1, s, tmp_path) for s in ("train", "validation"))
    assert [item.gt_index for item in measured] == [9]
    assert [item.gt_index for item in learned] == [0, 1, 2, 3, 4, 5]  # ends at 85, before 90
