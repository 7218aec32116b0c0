"""EVIMO2: sequences in its layout with either flow, and a named error for each fault."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from flowfuse.data.datasets.evimo2 import CLASSIC, CONTINUOUS, SIZE
from flowfuse.data.opening import open_recording

COUNT = 5000


@pytest.fixture
def sequence(tmp_path):
    path = tmp_path / "evimo2" / "samsung_mono" / "imo" / "eval" / "scene13"
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(path / "dataset_events_t.npy", np.sort(rng.uniform(0.1, 1.2, COUNT)).astype(np.float32))
    xy = np.stack((rng.integers(0, SIZE[1], COUNT), rng.integers(0, SIZE[0], COUNT)), axis=1)
    np.save(path / "dataset_events_xy.npy", xy.astype(np.uint16))
    np.save(path / "dataset_events_p.npy", np.ones(COUNT, np.uint8))
    return path


def write_continuous(path, times=(0.3, 0.6, 0.8), steps=10):
    """The flow after step k + 1 of map i is (i + 1, k + 1) px; the upper half is unknown."""
    with h5py.File(path / CONTINUOUS, "w") as file:
        file["time"] = np.array(times)
        shape = (len(times), steps, 2, *SIZE)
        flow = file.create_dataset("multiflow", shape, np.float32, chunks=(1, 1, 2, *SIZE))
        for i in range(len(times)):
            for k in range(steps):
                one = np.full((2, *SIZE), np.nan, np.float32)
                one[0, 240:], one[1, 240:] = i + 1, k + 1
                flow[i, k] = one


def test_the_continuous_flow(sequence):
    write_continuous(sequence)
    recording = open_recording(sequence)
    assert (recording.height, recording.width) == SIZE and not recording.has_frames
    # 0.4 s of history are asked for, so the first map, 0.2 s after the first event, is left out.
    assert recording.ground_truth_intervals.tolist() == [[600_000, 900_000], [800_000, 1_100_000]]
    assert recording.ground_truth_times == pytest.approx([1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
    for tau, step in ((1 / 6, 1), (1 / 2, 3), (1.0, 6)):
        flow, valid = recording.ground_truth_at(1, tau)
        assert flow[:, 300, 5].tolist() == [3, step] and not flow[:, :240].any()
        assert valid[240:].all() and not valid[:240].any()
    assert recording.ground_truth_at(1, 0.25) is None and recording.ground_truth_at(2, 1.0) is None
    assert recording.has_ground_truth(1) and not recording.has_ground_truth(2)


def test_the_polarity_of_one_camera_is_inverted(sequence):
    assert not open_recording(sequence).events(0, 2_000_000).p.any()
    other = sequence.parents[2].rename(sequence.parents[3] / "left_camera")
    assert open_recording(other / "imo/eval/scene13").events(0, 2_000_000).p.all()


def test_the_classic_flow(sequence):
    flow = np.full((*SIZE, 2), np.nan, np.float32)
    flow[10, 20] = 1, -2
    names = {f"flow_{number:010d}": flow for number in (4, 5, 6)}
    starts = np.array([0.2, 0.3, 0.4])
    np.savez(sequence / CLASSIC, t=starts, t_end=starts + np.array([0.01, 0.01, 0]), **names)
    recording = open_recording(sequence)
    # The last one has no length.
    assert recording.ground_truth_intervals.tolist() == [[200_000, 210_000], [300_000, 310_000]]
    found, valid = recording.ground_truth_at(1, 1.0)
    assert valid.sum() == 1 and found[:, 10, 20].tolist() == [1, -2]
    assert recording.ground_truth_at(1, 0.5) is None


def test_without_flow_and_above(sequence):
    assert len(open_recording(sequence).ground_truth_intervals) == 0
    root = sequence.parents[3]
    with pytest.raises(ValueError, match=r"sequences of EVIMO2; .*samsung_mono/imo/eval/scene13"):
        open_recording(root)


def test_faults(sequence):
    write_continuous(sequence, times=(0.6,), steps=5)
    with pytest.raises(ValueError, match=r"multiflow \[N, >= 6, 2, H, W\] expected"):
        open_recording(sequence)
    (sequence / CONTINUOUS).unlink()
    np.savez(sequence / CLASSIC, t=np.zeros(2), t_end=np.ones(2), flow_0=np.zeros((*SIZE, 2)))
    with pytest.raises(ValueError, match=r"as many flow_<number> as t and t_end .* 1, 2 and 2"):
        open_recording(sequence)
    np.savez(sequence / CLASSIC, t=np.zeros(2))
    with pytest.raises(ValueError, match="cannot read t_end"):
        open_recording(sequence)
