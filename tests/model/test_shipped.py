"""What ships with the package works together: sample recording, model, recipe."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import flowfuse
from flowfuse.cli.infer import main
from flowfuse.data.opening import open_recording
from flowfuse.evaluation.metrics import flow_metrics
from flowfuse.model import CONFIGS
from flowfuse.model.checkpoint import available, load_checkpoint, resolve_checkpoint


@pytest.fixture(scope="module")
def recording():
    return open_recording(flowfuse.sample_recording())


def test_sample_has_truth_at_all_its_times(recording):
    for index in range(len(recording.frame_times) - 1):
        assert recording.ground_truth(index) is not None
        for tau in (0.25, 0.5, 0.75):
            flow, valid = recording.ground_truth_at(index, tau)
            assert flow.shape == (2, recording.height, recording.width) and valid.all()


@pytest.mark.parametrize("name", available())
def test_models_are_what_their_names_say(name):
    model, _ = load_checkpoint(resolve_checkpoint(name), "cpu")
    assert model.config == CONFIGS[name]
    assert all(np.isfinite(p.detach().numpy()).all() for p in model.parameters())
    assert resolve_checkpoint(name).with_suffix(".md").is_file()


def test_import_beside_a_folder_of_the_same_name(tmp_path):
    """`git clone` makes one: a script beside it must not take it for the package."""
    (tmp_path / "flowfuse").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import flowfuse; flowfuse.load"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_small_is_shipped():
    assert "small" in available()


def test_both_modalities_are_better_than_either_on_the_sample(recording):
    estimator = flowfuse.load("small")
    errors = {"both": [], "frames": [], "events": [], "zero": []}
    for index, (t0, t1) in enumerate(
        zip(recording.frame_times[:-1], recording.frame_times[1:], strict=True)
    ):
        frames = recording.frame(index), recording.frame(index + 1)
        events = recording.events(int(t0) - int(t1 - t0), int(t1))
        inputs = {
            "both": (*frames, events),
            "frames": (*frames, None),
            "events": (None, None, events),
        }
        ground_truth, valid = recording.ground_truth(index)
        for name, values in inputs.items():
            flow = estimator(*values, t0=int(t0), t1=int(t1)).flow
            errors[name].append(flow_metrics(flow, ground_truth, valid)["epe"])
        errors["zero"].append(flow_metrics(np.zeros_like(ground_truth), ground_truth, valid)["epe"])
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["both"] < min(mean["frames"], mean["events"])
    assert mean["both"] < 0.5 * mean["zero"]


def test_bfloat16_stays_near_float32_on_the_sample(recording):
    whole, half = (flowfuse.load("small", dtype=dtype) for dtype in (None, torch.bfloat16))
    t0, t1 = map(int, recording.frame_times[:2])
    inputs = (recording.frame(0), recording.frame(1), recording.events(2 * t0 - t1, t1))
    expected, found = (estimator(*inputs, t0=t0, t1=t1) for estimator in (whole, half))
    ground_truth, valid = recording.ground_truth(0)
    # Coordinates and flow stay float32, whose errors would be 1 / 16 px and more in bfloat16.
    assert found.flow.dtype == np.float32
    difference = np.hypot(*(found.flow - expected.flow))
    assert 0 < difference.mean() < 0.1 and np.percentile(difference, 99) < 1
    errors = [flow_metrics(result.flow, ground_truth, valid)["epe"] for result in (expected, found)]
    assert abs(errors[1] - errors[0]) < 0.05


def test_demo_end_to_end(tmp_path):
    """The command that `make demo` runs."""
    out = tmp_path / "demo"
    times = "0.25,0.5,0.75"
    assert main([str(flowfuse.sample_recording()), "-o", str(out), "--times", times]) == 0
    report = json.loads((out / "metrics.json").read_text())
    assert report
    for index in range(3):
        flow, valid = flowfuse.read_flow(out / "flow" / f"{index:06d}.flo")
        assert flow.shape == (2, 192, 256) and valid.all()
        half, _ = flowfuse.read_flow(out / "flow_at" / "0.5" / f"{index:06d}.flo")
        assert 0 < np.abs(half).mean() < np.abs(flow).mean()
    assert len(list((out / "pictures").iterdir())) >= 12
    assert (out / "flow.mp4").stat().st_size > 0
