"""Adaptation to a recording without truth: what it learns from, measures and refuses."""

from __future__ import annotations

import csv
import os
import pickle
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import flowfuse
from flowfuse.cli import train
from flowfuse.cli.train_options import read_command_line
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.estimator import Estimator
from flowfuse.events import Events
from flowfuse.inputs import ModelInputs
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model.checkpoint import save_checkpoint
from flowfuse.runner import FrameReader, estimate_interval
from flowfuse.training.finetune import RecordingPairs, RecordingValidator, compare

HEIGHT, WIDTH, SPEED, GAP = 40, 48, 3, 30_000  # px, px, px per frame, us between frames
pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ModelConfig(
    name="tiny", slices=2, bins=2, stem_channels=8, channels=8, hidden=8, token_channels=8,
    boundary_channels=8, iterations=2, radius=1, levels=1, dilations=(1, 2),
)  # fmt: skip
RECIPE = """
supervision: self
crop: [24, 32]
batch: 2
steps: 4
log_every: 1
validate_every: 2
checkpoint_every: 2
tensorboard: false
device: cpu
"""


def write_moving_texture(
    path: Path, frames: int = 6, *, speed: int = SPEED, events: bool = True, colour: bool = False
):
    """A texture that moves to the right; an event wherever it changes enough within 1 px."""
    rng = np.random.default_rng(0)
    length = WIDTH + speed * frames
    texture = cv2.GaussianBlur(rng.random((HEIGHT, length)), (0, 0), 1.5)
    texture = 20 + 220 * (texture - texture.min()) / np.ptp(texture)

    def view(step: int) -> np.ndarray:
        start = length - WIDTH - step
        return texture[:, start : start + WIDTH]

    found = []
    for step in range(speed * (frames - 1)):
        change = np.log(view(step + 1)) - np.log(view(step))
        y, x = np.nonzero(np.abs(change) > 0.15)
        times = np.full(len(x), (2 * step + 1) * GAP // (2 * speed))
        found.append((x, y, times, change[y, x] > 0))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    images = np.stack([view(speed * i).astype(np.uint8) for i in range(frames)])
    if colour:
        images = images[..., None].repeat(3, axis=3)
    sequence = Events(*columns, height=HEIGHT, width=WIDTH) if events else None
    write_recording(path, sequence, images, GAP * np.arange(frames))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adaptation") / "recording"
    write_moving_texture(path)
    return path


@pytest.fixture(scope="module")
def tiny(recording) -> list[str]:
    """Arguments of a short run from a model with random weights."""
    torch.manual_seed(0)
    checkpoint, recipe = recording.parent / "tiny.safetensors", recording.parent / "tiny.yaml"
    save_checkpoint(checkpoint, FlowFuse(TINY))
    model = ", ".join(
        f"{k}: {list(v) if isinstance(v, tuple) else str(v).lower()}" for k, v in vars(TINY).items()
    )
    recipe.write_text(f"model: {{{model}}}\ninit: {checkpoint}\n{RECIPE}")
    return ["--config", str(recipe), "--self-supervised", str(recording)]


def read_validation(run: Path) -> list[dict[str, float]]:
    with open(run / "validation.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_pairs_go_to_a_process_that_is_not_forked(recording):
    pairs = RecordingPairs(recording, 0.2, slices=2, bins=2)
    sent = pickle.dumps(pairs)
    assert len(sent) < 10_000  # without the recording, which is open
    found = pickle.loads(sent)
    assert len(found) == len(pairs)
    assert all(
        torch.equal(getattr(found[0], name), value) for name, value in pairs[0].tensors().items()
    )


def test_no_frame_is_both_learned_from_and_measured(recording):
    pairs = RecordingPairs(recording, 0.2, slices=2, bins=2)
    assert [w.frames for w in pairs.learned] == [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
    assert [w.frames for w in pairs.measured] == [(4, 5)]
    assert (pairs.learned[3].t0, pairs.learned[3].t1) == (0, 2 * GAP)
    pairs = RecordingPairs(recording, 0.4, slices=2, bins=2)
    assert [w.frames for w in pairs.learned] == [(0, 1), (1, 2), (0, 2)]
    assert [w.frames for w in pairs.measured] == [(3, 4), (4, 5)]


@pytest.mark.parametrize("supervision", ["self", "ground_truth"])
def test_gradients_pass_the_steps_where_there_is_no_ground_truth(
    tiny, tmp_path, monkeypatch, supervision
):
    grad_through_steps = set()
    forward = FlowFuse.forward

    def watched(self, *args, **kwargs):
        if self.training:
            grad_through_steps.add(kwargs["grad_through_steps"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FlowFuse, "forward", watched)
    arguments = [*tiny, "-o", str(tmp_path / "run"), "--steps", "1"]
    if supervision == "ground_truth":
        arguments[2:4] = ["--data", "scenes:slow", "--supervision", "ground_truth", "--scenes", "1"]
        arguments += ["--scene_size", "32", "40", "--validation_scenes", "1", "--workers", "0"]
    assert train.main(arguments) == 0
    assert grad_through_steps == {supervision == "self"}


@pytest.mark.parametrize("colour", [False, True])
def test_samples_are_what_the_network_is_shown_in_inference(tmp_path, monkeypatch, colour):
    write_moving_texture(tmp_path / "recording", colour=colour)
    pairs = RecordingPairs(tmp_path / "recording", 0.2, slices=4, bins=3)
    seen = []
    forward = FlowFuse.forward

    def watched(self, inputs, *args, **kwargs):
        seen.append(inputs)
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(FlowFuse, "forward", watched)
    estimator, source = Estimator(FlowFuse(ModelConfig())), pairs.recording
    for index in (0, 1, 4):
        estimate_interval(estimator, source, FrameReader(source), pairs.learned[index], None)
        sample = pairs[index]
        assert sample.tensors().keys() == set(ModelInputs._fields)
        for name, value in seen[-1]._asdict().items():
            if name.startswith("frame"):
                value = value[:, :1]  # three times the same gray; samples have it once
            assert torch.equal(getattr(sample, name), value[0]), name
    assert [pairs[index].modality_mask.tolist() for index in (0, 1)] == [[1, 1, 0, 1], [1, 1, 1, 1]]


def test_true_motion_measures_better_than_none(recording, monkeypatch):
    validator = RecordingValidator(
        RecordingPairs(recording, 0.2, slices=2, bins=2), 16, torch.device("cpu")
    )

    def moving(speed):
        field = np.zeros((2, HEIGHT, WIDTH), np.float32)
        field[0] = speed
        result = type("Result", (), {"flow": field})
        monkeypatch.setattr(validator, "_estimate", lambda model, window: result)
        return validator.measure(None)

    ground_truth, none = moving(SPEED), moving(0)
    for kind in ("", "_learned"):
        # Frames are rounded to whole gray values: at most 1 / 255 between the two.
        assert ground_truth[f"photometric{kind}"] < 1 / 255 < 0.05 < none[f"photometric{kind}"]
        assert ground_truth[f"photometric_zero{kind}"] == none[f"photometric{kind}"]
        assert ground_truth[f"sharpness{kind}"] > 1.2 and none[f"sharpness{kind}"] == 1


def test_pairs_to_measure_are_spread(recording):
    pairs = RecordingPairs(recording, 0.2, slices=2, bins=2)
    validator = RecordingValidator(pairs, 2, torch.device("cpu"))
    assert [w.frames for w in validator._intervals["_learned"]] == [(0, 1), (2, 3)]


def test_a_run_is_measured_before_and_after_and_resumes_exactly(
    tiny, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    assert train.main([*tiny, "-o", str(run)]) == 0
    message = capsys.readouterr().err
    assert "held-out pairs, step 0 -> 4: photometric error 0." in message
    rows = read_validation(run)
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0].keys() == {
        "step", "photometric", "photometric_zero", "sharpness",
        "photometric_learned", "photometric_zero_learned", "sharpness_learned",
    }  # fmt: skip
    assert rows[0]["photometric"] != rows[2]["photometric"]
    header = (run / "log.csv").read_text().splitlines()[0].split(",")
    assert "photometric" in header and not any(name.startswith("epe") for name in header)
    assert (run / "pictures/step_00000004.png").is_file()

    # What was adapted is a model like any other.
    source = open_recording(tiny[-1])
    result = flowfuse.load(run)(
        source.frame(4), source.frame(5), source.events(0, 5 * GAP), t0=4 * GAP, t1=5 * GAP
    )
    assert result.flow.shape == (2, HEIGHT, WIDTH)

    take_step = train.Trainer.take_step

    def interrupted(self, batch):
        if self.state.step + 1 == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(self, batch)

    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "take_step", interrupted)
        assert train.main([*tiny, "-o", str(other)]) == 130
    monkeypatch.chdir(tmp_path)
    assert train.main(["-o", str(other), "--resume"]) == 0
    assert read_validation(other) == rows
    last = "checkpoints/step_00000004.safetensors"
    expected, found = load_file(run / last), load_file(other / last)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_samples_do_not_depend_on_worker_processes(tiny, tmp_path):
    weights = []
    for workers in ("0", "2"):
        run = tmp_path / workers
        assert train.main([*tiny, "-o", str(run), "--steps", "2", "--workers", workers]) == 0
        weights.append(load_file(run / "model.safetensors"))
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def test_the_shipped_model_improves_on_held_out_frames(tmp_path, capsys):
    """The recipe as it is, but shorter, and on frames that are smaller."""
    recording, run = tmp_path / "recording", tmp_path / "run"
    write_moving_texture(recording, speed=5)  # at which there is something left to gain
    arguments = ["--self-supervised", str(recording), "-o", str(run), "--no-tensorboard"]
    arguments += ["--steps", "12", "--crop", str(HEIGHT), str(WIDTH), "--ema", "0.8"]
    assert train.main([*arguments, "--device", "cpu"]) == 0
    before, after = read_validation(run)[0], read_validation(run)[-1]
    assert after["photometric"] < 0.98 * before["photometric"]
    assert after["sharpness"] > 0.95 * before["sharpness"]
    assert compare(run / "validation.csv") in capsys.readouterr().err


def test_self_supervised_takes_the_recipe_for_it(recording):
    config, _ = read_command_line(["--self-supervised", str(recording), "-o", "x"])
    assert config.init == "small" and config.supervision == "self" and config.steps <= 500
    assert config.data == f"recording:{recording}"
    arguments = ["--self-supervised", str(recording), "-o", "x", "--config", "small"]
    config, _ = read_command_line([*arguments, "--steps", "7"])
    assert (config.init, config.supervision, config.steps) == (None, "self", 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--self-supervised", "{absent}"], "absent: no such recording"),
        (
            ["--self-supervised", "{events}"],
            "events.h5: has 0 frame(s); finetuning needs 4: a pair",
        ),
        (["--self-supervised", "{short}"], "short: has 3 frame(s); finetuning needs 4: a pair to"),
        (["--self-supervised", "{frames}"], "frames: has no events; finetuning learns from frames"),
        (["--self-supervised", "{late}"], "no event lies between the frames to learn from: "),
        (["--self-supervised", "{good}", "--held-out", "0.9"], "with 5 of 6 frames held out, no"),
        (["--self-supervised", "{good}", "--held-out", "1"], "held_out must be in [0, 1), got 1.0"),
        (["--self-supervised", "{good}"], "crop (128, 160) must not be larger than the frames of"),
        (
            ["--self-supervised", "{good}", "--data", "scenes:fast"],
            "--self-supervised says what --data is: give one of them",
        ),
        (
            ["--data", "recording:{good}"],
            "recording: no ground truth in this recording (flow/000000.flo, ...); training without",
        ),
        (
            ["--self-supervised", "{good}", "--crop", "24", "32", "--model", "base"],
            "has model.blocks = 1, this training 2: its weights cannot begin it",
        ),
    ],
)
def test_refused_in_one_line(recording, tmp_path, capsys, arguments, message):
    write_moving_texture(tmp_path / "short", frames=3)
    write_moving_texture(tmp_path / "frames", events=False)
    write_moving_texture(tmp_path / "late")
    (tmp_path / "late/images.txt").write_text(
        "".join(f"{9 + i} images/{i:06d}.png\n" for i in range(6))
    )
    places = {name: tmp_path / name for name in ("absent", "short", "frames", "late")}
    places |= {"good": recording, "events": recording / "events.h5"}
    words = [word.format(**places) for word in arguments]
    assert train.main([*words, "-o", str(tmp_path / "new")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    (error,) = (line for line in lines if not line.startswith("flowfuse-train: opening "))
    assert message in error
    assert not (tmp_path / "new").exists()
