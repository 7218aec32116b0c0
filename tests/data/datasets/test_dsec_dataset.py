"""Training samples of DSEC, from small sequences in several layouts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dsec_cases import FIRST, HEIGHT, OFFSET, STEP, WIDTH, make_events, write
from torch.utils.data import DataLoader

from flowfuse.data.augment import AugmentConfig, augment
from flowfuse.data.datasets.dsec.dataset import (
    FLOW_SEQUENCES,
    VALIDATION_SEQUENCES,
    DsecDataset,
)
from flowfuse.data.datasets.dsec.sequence import open_sequence
from flowfuse.data.datasets.dsec.writer import write_raw_events
from flowfuse.data.samples import Sample, labelled_sample
from flowfuse.inputs import InputSpec, slice_events, sum_events
from flowfuse.losses.supervised import LossConfig, supervised_loss
from flowfuse.model import FlowFuse, ModelConfig


def test_split_is_by_sequence():
    assert len(set(FLOW_SEQUENCES)) == 18
    assert set(VALIDATION_SEQUENCES) < set(FLOW_SEQUENCES)
    drives = {name.rpartition("_")[0] for name in VALIDATION_SEQUENCES}
    trained = set(FLOW_SEQUENCES) - set(VALIDATION_SEQUENCES)
    assert not drives & {name.rpartition("_")[0] for name in trained}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write(root, "thun_00_a")
    write(root, "zurich_city_09_a", layout="bulk", exposures=None)
    write(root, "thun_01_a", flow=None, layout="per_file")  # no truth: a test sequence
    return root


def test_data_sets_by_split(root):
    def names(split: str) -> list[str]:
        return [s.name for s in DsecDataset(root, split, 2, 2).sequences]

    assert names("train") == ["thun_00_a"] and names("validation") == ["zurich_city_09_a"]
    assert names("all") == ["thun_00_a", "zurich_city_09_a"]
    data = DsecDataset(root, "all", 2, 2)
    assert len(data) == 6 and data.items[4] == (1, 2, 4)
    with pytest.raises(IndexError, match="index 6 of 6 items"):
        data[6]
    with pytest.raises(ValueError, match="split must be train, validation or all, got 'test'"):
        DsecDataset(root, "test", 2, 2)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        DsecDataset(root / "nowhere", "train", 2, 2)
    with pytest.raises(FileNotFoundError, match="ground truth for 'train'; sequences there: zur"):
        DsecDataset(root / "train_events", "train", 2, 2)


def test_samples_hold_what_the_sequence_gives(root):
    sequence = open_sequence(root / "thun_00_a")
    sample = labelled_sample(sequence, 2, 4, sequence.ground_truth(2), InputSpec(2, 3))
    t0, t1 = (int(sequence.frame_times[i]) for i in (2, 4))
    size = {"height": HEIGHT, "width": WIDTH}
    events = sequence.events(t0 - 60_000, t1 + 60_000)
    torch.testing.assert_close(
        sample.slices, slice_events(events, t0, t1, slices=2, bins=3, **size), rtol=0, atol=0
    )
    assert sample.slices[0].abs().sum() > 0  # history before t0
    torch.testing.assert_close(
        sample.event_sum, sum_events(events, t0, t1, 8000, 8000, **size), rtol=0, atol=0
    )
    torch.testing.assert_close(sample.exposure, torch.tensor([0.08, 0.08]))
    gray = cv2.cvtColor(sequence.frame(4), cv2.COLOR_RGB2GRAY)
    torch.testing.assert_close(sample.frame1, torch.from_numpy(gray)[None] / 255)
    assert sample.tau.tolist() == [1.0] and sample.flow.shape == (1, 2, HEIGHT, WIDTH)
    assert not sample.valid[0, :5].any() and sample.valid[0, 5:].all()
    # Flow (3, -1.5): row 5 stays inside, the last three columns leave.
    hidden = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    hidden[5:, : WIDTH - 3] = False
    assert torch.equal(sample.occluded[0], hidden)
    assert sample.boundary.isnan().all() and sample.boundary.shape == (2, HEIGHT, WIDTH)
    unknown = DsecDataset(root, "validation", 2, 3)[0]
    assert unknown.exposure.tolist() == [0.0, 0.0]


def test_workers_give_the_same_samples(root):
    data = DsecDataset(root, "all", 2, 2)
    data.sequences[0].raw_events(OFFSET, OFFSET + 9)  # an open handle is inherited
    loaded = list(DataLoader(data, batch_size=None, num_workers=2))
    assert len(loaded) == 6
    for expected, sample in zip([data[i] for i in range(6)], loaded, strict=True):
        found = sample.tensors()
        for name, value in expected.tensors().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)


def test_losses_work_on_samples(root):
    data = DsecDataset(root, "train", 2, 3)
    rng = np.random.default_rng(0)
    config = AugmentConfig(drop_frames=0, drop_events=0, drop_history=0)
    samples = [augment(data[i], rng, config, (16, 24)) for i in range(2)]
    batch = Sample.collate(samples)
    torch.manual_seed(0)
    model = FlowFuse(ModelConfig(
        name="tiny", slices=2, stem_channels=8, channels=8, hidden=8, token_channels=8,
        boundary_channels=8, iterations=1, radius=1, levels=1, dilations=(1, 2),
    ))  # fmt: skip
    output = model(batch.inputs)
    loss, _ = supervised_loss(output, batch, LossConfig())
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients) and any(g.any() for g in gradients)


def test_flow_beyond_the_events_is_left_out(tmp_path):
    path = write(tmp_path)
    file = path / "events" / "left" / "events.h5"
    file.unlink()
    write_raw_events(file, make_events().slice_time(45_000, 300_000), OFFSET)
    # Maps start at 60, 160 and 260 ms; a slice of history is 50 ms.
    with pytest.warns(UserWarning, match="2 of 3 flow maps are left out: they reach beyond"):
        data = DsecDataset(path.parent, "train", 2, 2)
    assert data.items == [(0, 2, 4)]
    sequence = data.sequences[0]
    assert sequence.covers(OFFSET + 50_000, OFFSET + 290_000)
    assert not sequence.covers(OFFSET + 50_000, OFFSET + 310_000)
    assert sequence.time_range[0] < OFFSET + 60_000
    assert sequence.time_range[1] == OFFSET + FIRST + 6 * STEP
