"""A small recording, a small network, and flowfuse-infer called on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from infer_cases import CONFIG, FIRST, FRAMES, HEIGHT, SHIFT, STEP, WIDTH

from flowfuse.cli.infer import main
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events
from flowfuse.model import FlowFuse
from flowfuse.model.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = FlowFuse(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():  # no zero output: the files must differ
            parameter += 0.02 * torch.randn_like(parameter)
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="module")
def events() -> Events:
    """Events from before the first frame to after the last, none during the last pair."""
    rng = np.random.default_rng(0)
    count, last = 2000, FIRST + 2 * STEP
    return Events(
        rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count),
        np.sort(rng.integers(0, last, count)), rng.integers(0, 2, count),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recording(tmp_path_factory, events) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "rec"
    frames = np.random.default_rng(1).integers(0, 256, (FRAMES, HEIGHT, WIDTH), np.uint8)
    ground_truth = np.broadcast_to(np.array(SHIFT, np.float32)[:, None, None], (2, HEIGHT, WIDTH))
    valid = np.zeros((HEIGHT, WIDTH), bool)
    valid[5:, :] = True
    write_recording(
        path, events, frames, FIRST + STEP * np.arange(FRAMES), exposures=np.full(FRAMES, 8_000),
        flow=[(ground_truth, valid)] * (FRAMES - 1),
        flow_at={0.5: [(ground_truth / 2, valid)] * (FRAMES - 1)},
    )  # fmt: skip
    return path


@pytest.fixture
def run(checkpoint, tmp_path):
    def call(*arguments: object, out: Path | None = None) -> int:
        out = tmp_path / "out" if out is None else out
        given = ["-o", out, "--checkpoint", checkpoint, "--threads", 1, "--device", "cpu"]
        given += arguments
        return main([str(argument) for argument in given])

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)
