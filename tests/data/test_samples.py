"""The inputs of a pair of frames, by hand, and what is missing of them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.samples import Sample, unlabelled_sample
from flowfuse.events import Events
from flowfuse.inputs import InputSpec, ModelInputs

HEIGHT, WIDTH = 16, 18
TIMES = np.array([10_000, 20_000, 30_000, 40_000])
# Column, time (us), polarity; all in row 3. None before frame 0, none from frame 2 on.
EVENTS = [(1, 10_000, 1), (2, 14_999, 1), (3, 15_000, 0), (4, 19_999, 1), (5, 25_000, 0)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    x, t, p = np.array(EVENTS).T
    frames = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    frames[1, 0, 0] = (255, 0, 0)
    path = tmp_path_factory.mktemp("pairs") / "recording"
    events = Events(x, np.full(len(x), 3), t, p, height=HEIGHT, width=WIDTH)
    write_recording(path, events, frames, TIMES, exposures=np.array([1000, 2000, 0, 0]))
    return open_recording(path)


def test_a_pair_by_hand(recording):
    sample = unlabelled_sample(recording, 0, 1, InputSpec(2, 1))
    assert sample.tensors().keys() == set(ModelInputs._fields)
    # Slices [5, 10), [10, 15) and [15, 20) ms: the first is empty, as nothing is before 10 ms.
    rows = sample.slices[:, 0, 3, :7].tolist()
    assert rows == [[0] * 7, [0, 1, 1, 0, 0, 0, 0], [0, 0, 0, -1, 1, 0, 0]]
    assert sample.exposure.tolist() == pytest.approx([0.1, 0.2])
    # Exposure 0 goes from 9.5 to 10.5 ms, exposure 1 from 19 to 21 ms: the events at 10.000 and
    # 19.999 ms count by half.
    found = sample.event_sum[0, 3, :7].tolist()
    assert found == pytest.approx([0, 0.5, 1, -1, 0.5, 0, 0], abs=1e-3)
    assert sample.frame0.shape == (1, HEIGHT, WIDTH)
    # Red counts 0.299 in gray.
    assert sample.frame1[0, 0, :2].tolist() == pytest.approx([76 / 255, 0])


@pytest.mark.parametrize(
    ("pair", "present"), [((0, 1), [1, 1, 0, 1]), ((1, 2), [1, 1, 1, 1]), ((2, 3), [1, 0, 0, 1])]
)
def test_what_is_missing_is_told(recording, pair, present):
    sample = unlabelled_sample(recording, *pair, InputSpec(2, 1))
    assert sample.modality_mask.dtype == torch.float32 and sample.modality_mask.tolist() == present


def test_a_batch_passes_workers_with_and_without_ground_truth(recording):
    bare = unlabelled_sample(recording, 1, 2, InputSpec(2, 1))
    known = bare._replace(tau=torch.ones(1), flow=torch.zeros(1, 2, HEIGHT, WIDTH))
    for sample in (bare, known):
        for workers in (0, 1):
            loader = DataLoader(
                [sample] * 2, batch_size=2, collate_fn=Sample.collate, num_workers=workers
            )
            (batch,) = loader
            assert isinstance(batch, Sample)
            assert batch.tensors().keys() == sample.tensors().keys()
            for name, value in sample.tensors().items():
                found = batch.tensors()[name]
                assert torch.equal(found, torch.stack((value, value))), name
            assert batch.inputs.slices is batch.slices
            assert batch.to("meta").frame0.device.type == "meta"
