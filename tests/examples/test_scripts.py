"""The examples run, each on something small."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

import flowfuse
from flowfuse.cli.infer_options import build_parser, parse_config
from flowfuse.cli.train_options import read_command_line
from flowfuse.visualization import write_video

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("one_thread")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_recording(tmp_path, capsys):
    error = load("own_recording").main(tmp_path)
    assert error < 0.5  # px, of 3.2
    flow, valid = flowfuse.read_flow(tmp_path / "000002.flo")
    assert valid.all() and flow.shape == (2, 96, 128)
    assert capsys.readouterr().out.count(": mean motion (") == 3


def test_live_webcam(tmp_path, capsys):
    noise = np.random.default_rng(0).random((64, 96), np.float32)
    pattern = (255 * cv2.GaussianBlur(noise, (0, 0), 2)).astype(np.uint8)
    images = [np.roll(pattern, step, 1)[..., None].repeat(3, 2) for step in range(5)]
    write_video(tmp_path / "a.mp4", images, np.arange(5) / 25)
    count = load("live_webcam").main(str(tmp_path / "a.mp4"))
    told = capsys.readouterr()
    assert count >= 1 and told.out.count(" ms late") == count
    assert "gives no more images" in told.err


def test_finetune_on_recording(tmp_path, capsys):
    sample = str(flowfuse.sample_recording())
    options = "--steps 2 --validate_every 2 --crop 64 64 --device cpu".split()
    before, after = load("finetune_on_recording").main(sample, str(tmp_path / "run"), *options)
    assert 0 < after < 2 * before
    assert f"{before:.4f} before, {after:.4f} after: keep " in capsys.readouterr().out


@pytest.mark.parametrize("scheduled", [True, False])
def test_train_on_dsec_gives_commands_that_their_parsers_take(tmp_path, scheduled):
    root, log = tmp_path / "dsec root", tmp_path / "log"
    (root / "zurich_city_01_a").mkdir(parents=True)
    if scheduled:
        (root / "test_forward_optical_flow_timestamps").mkdir()
    for name in ("flowfuse-train", "flowfuse-infer"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/bash\nprintf "%q " {name} "$@" >>"$LOG"\necho >>"$LOG"\n', encoding="utf-8"
        )
        program.chmod(0o755)
    environment = {
        **os.environ,
        "LOG": str(log),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    command = [str(EXAMPLES / "train_on_dsec.sh"), str(root), str(tmp_path / "out"), "--steps", "7"]
    subprocess.run(command, env=environment, check=True)
    train, *infer = (shlex.split(line) for line in log.read_text().splitlines())
    config, options = read_command_line(train[1:])
    assert (config.data, config.steps, options.resume) == (f"dsec:{root}", 7, True)
    for line in infer:
        parse_config(build_parser(), line[1:])
    assert ("--submission" in " ".join(infer[-1])) == scheduled
    usage = subprocess.run(command[:2], env=environment, capture_output=True, text=True)
    assert usage.returncode == 2 and "examples/train_on_dsec.sh ROOT OUT" in usage.stderr
